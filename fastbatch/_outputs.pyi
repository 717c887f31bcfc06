from typing import Any

from fastbatch._contract import DTYPES as DTYPES

CHANNELS_LAST: str
SAMPLE_CHANNELS_LAST: str

__pyx_capi__: dict[str, Any]  # for cimport
