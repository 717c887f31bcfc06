from collections.abc import Sequence
from typing import Any, Optional, final

import numpy

COLUMNS: tuple[str, ...]

def parse_windows(
    content: bytes, source: Any, root_folder: bytes = b"", fg_threshold: float = 0.5, bg_threshold: float = 0.5
) -> tuple[list[tuple[bytes, int, int, int]], numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]: ...

@final
class CaffeWindows:
    @property
    def path(self) -> str: ...
    def __init__(
        self,
        images: Sequence[tuple[bytes, int, int, int]],
        foreground: numpy.ndarray[Any, Any],
        background: numpy.ndarray[Any, Any],
        *,
        source: str,
        crop_size: int,
        root_folder: bytes = b"",
        context_pad: int = 0,
        square: bool = False,
        scale: float = 1.0,
        mean_values: Sequence[float] = (0, 0, 0),
        mean_image: Optional[numpy.ndarray[Any, Any]] = None,
        cache_images: bool = False,
        tolerant: bool = False,
    ) -> None: ...
    def __len__(self) -> int: ...
    def close(self) -> None: ...
    def __fastbatch_source__(self, random_access: bool) -> Any: ...
