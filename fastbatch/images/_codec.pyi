from typing import Any, Optional

import numpy

__pyx_capi__: dict[str, Any]  # for cimport

def codec_capsule() -> Any: ...
def decode_image(
    bytes: Any,
    color: str = "color",
    size: Optional[tuple[int, int]] = None,
    region: Optional[tuple[int, int, int, int]] = None,
) -> numpy.ndarray[Any, Any]: ...
