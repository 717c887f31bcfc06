from collections.abc import Mapping, Sequence
from typing import Any, Optional, SupportsIndex, final

import numpy
from typing_extensions import Self

from fastbatch.sources._subset import Subset

DTYPES: tuple[numpy.dtype[Any], ...]

@final
class CallbackSource:
    fields: Mapping[str, tuple[numpy.dtype[Any], tuple[int, ...]]]
    def __init__(
        self,
        function: Any,
        fields: Mapping[str, tuple[Any, Sequence[int]]],
        count: Optional[SupportsIndex] = None,
        *,
        context: int = 0,
        owner: object = None,
    ) -> None: ...
    def __getitem__(self, indices: Any, /) -> Subset: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def close(self) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __fastbatch_source__(self, random_access: bool) -> Any: ...
