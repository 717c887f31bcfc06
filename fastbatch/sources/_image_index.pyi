from typing import Optional, SupportsIndex, final

DEFAULT_BYTES: int

def check_index_bytes(index_bytes: Optional[SupportsIndex]) -> int: ...

@final
class ImageIndex:
    def __init__(self, index_bytes: Optional[SupportsIndex] = None) -> None: ...
    def counts(self) -> tuple[int, int]: ...
