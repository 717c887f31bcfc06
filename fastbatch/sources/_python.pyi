from collections.abc import Sequence
from typing import Any, Callable, Optional, final

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
    ) -> None: ...
    @property
    def lost(self) -> list[int]: ...
    def capsule(self, team: Any) -> Any: ...
    def open(self, number: int, file: int, socket: int, process: int) -> None: ...
    def cause(self, index: int) -> Optional[bytes]: ...
    def quit(self) -> None: ...

@final
class Mailbox:
    def __init__(self, file: int) -> None: ...
    def serve(
        self,
        load: Callable[[int, list[Any]], None],
        arrays_of: Callable[[int, list[int], list[int]], list[Any]],
    ) -> None: ...

def described(error: BaseException) -> tuple[bytes, bytes]: ...
def new_file(size: int) -> int: ...
def end_with(process: int) -> None: ...
