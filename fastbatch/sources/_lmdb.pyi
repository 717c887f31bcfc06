from os import PathLike
from typing import Any, Optional, SupportsIndex, Union, final

from fastbatch.sources._database import DatumSource, Handle, Handles

def version() -> str: ...

@final
class Environment(Handle): ...

@final
class Environments(Handles): ...

@final
class LMDBSource(DatumSource):
    def __init__(
        self,
        path: Union[str, bytes, PathLike[str], PathLike[bytes]],
        color: str = "unchanged",
        check: Optional[bool] = None,
        index_bytes: Optional[SupportsIndex] = None,
        index_file: Optional[Union[str, bytes, PathLike[str], PathLike[bytes]]] = None,
    ) -> None: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> LMDBSource: ...
    def __fastbatch_source__(self, random_access: bool) -> Any: ...
