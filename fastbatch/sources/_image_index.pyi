from os import PathLike
from typing import Optional, SupportsIndex, Union, final

DEFAULT_BYTES: int
LEAST_BYTES: int

def check_index_bytes(index_bytes: Optional[SupportsIndex]) -> int: ...
def check_index_file(index_file: Optional[Union[str, bytes, PathLike[str], PathLike[bytes]]]) -> Optional[bytes]: ...

@final
class ImageIndex:
    def __init__(
        self,
        index_bytes: Optional[SupportsIndex] = None,
        index_file: Optional[Union[str, bytes, PathLike[str], PathLike[bytes]]] = None,
    ) -> None: ...
    def counts(self) -> tuple[int, int]: ...
