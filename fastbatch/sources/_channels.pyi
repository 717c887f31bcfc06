from collections.abc import Sequence
from typing import Any, Optional, final

import numpy

DTYPES: tuple[numpy.dtype[Any], ...]

@final
class Channels:
    size: int
    def __init__(
        self,
        name: str,
        count: int,
        fields: Sequence[tuple[str, numpy.dtype[Any], tuple[int, ...]]],
        workers: int,
        timeout: Optional[float],
        varying: Sequence[str] = (),
    ) -> None: ...
    @property
    def lost(self) -> list[int]: ...
    def capsule(self) -> Any: ...
    def open(self, number: int, file: int, socket: int, process: int) -> None: ...
    def cause(self, index: int, epoch: int) -> Optional[bytes]: ...
    def end(self, patience: float) -> bool: ...
    def shut(self, number: int) -> None: ...

def new_file(size: int, grows: bool) -> int: ...
