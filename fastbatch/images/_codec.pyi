from typing import Any, Optional, SupportsIndex, Union

import numpy

__pyx_capi__: dict[str, Any]  # for cimport

def codec_capsule() -> Any: ...
def decode_image(
    bytes: Any,
    color: str = "color",
    size: Optional[Union[SupportsIndex, tuple[SupportsIndex, SupportsIndex]]] = None,
    region: Optional[tuple[SupportsIndex, SupportsIndex, SupportsIndex, SupportsIndex]] = None,
) -> numpy.ndarray[Any, Any]: ...
