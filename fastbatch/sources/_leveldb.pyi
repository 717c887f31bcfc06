from os import PathLike
from typing import Any, Optional, SupportsIndex, Union, final

from fastbatch.sources._database import DatumSource, Handle, Handles

def version() -> str: ...

@final
class Database(Handle): ...

@final
class Databases(Handles): ...

@final
class LevelDBSource(DatumSource):
    def __init__(
        self,
        path: Union[str, bytes, PathLike[str], PathLike[bytes]],
        color: str = "unchanged",
        index_bytes: Optional[SupportsIndex] = None,
        index_file: Optional[Union[str, bytes, PathLike[str], PathLike[bytes]]] = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> LevelDBSource: ...
    def __fastbatch_source__(self, random_access: bool) -> Any: ...
