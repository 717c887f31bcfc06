from typing import Any

import numpy

__pyx_capi__: dict[str, Any]  # for cimport
DTYPES: tuple[numpy.dtype[Any], ...]
