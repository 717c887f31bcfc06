from typing import Any, Callable, final

@final
class Memory:
    def __init__(self, file: int) -> None: ...

@final
class Mailbox:
    def __init__(self, memory: Memory) -> None: ...
    def serve(
        self,
        load: Callable[[int, int, int, list[Any]], None],
        arrays_of: Callable[[int, list[int], list[int]], list[Any]],
    ) -> None: ...

def described(error: BaseException) -> tuple[bytes, bytes]: ...
def end_with(process: int) -> None: ...
