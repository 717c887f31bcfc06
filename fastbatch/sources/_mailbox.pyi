from typing import Any, Callable, Optional, final

ROOM: int
ALIGNMENT: int

@final
class Memory:
    size: int
    def __init__(self, file: int) -> None: ...

@final
class Mailbox:
    def __init__(self, memory: Memory) -> None: ...
    def serve(
        self,
        load: Callable[[int, int, int, Any], None],
        arrays_of: Callable[[int, list[int], list[int]], Any],
        expect: Optional[Callable[[list[int]], None]] = None,
    ) -> None: ...
    def say_shape(self, number: int, shape: tuple[int, ...]) -> None: ...

def described(error: BaseException, what: str = "loading it raised") -> tuple[bytes, bytes]: ...
def end_with(process: int, socket: int) -> None: ...
def keep_memory() -> None: ...
