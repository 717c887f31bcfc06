from typing import Any

from fastbatch.stats import WAYS as WAYS

__pyx_capi__: dict[str, Any]  # for cimport
