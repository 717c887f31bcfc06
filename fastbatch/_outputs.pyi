from typing import Any

CHANNELS_LAST: str

__pyx_capi__: dict[str, Any]  # for cimport
