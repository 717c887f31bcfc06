import re
from collections.abc import Iterable
from os import PathLike
from typing import Any, Optional, SupportsIndex, Union, final

import numpy
from typing_extensions import Self

from fastbatch.sources._subset import Subset

DTYPES: tuple[numpy.dtype[Any], ...]

LABEL: re.Pattern[bytes]

_Path = Union[str, bytes, PathLike[str], PathLike[bytes]]

def parse_list(content: bytes, source: Any) -> list[tuple[bytes, int]]: ...
def fetch_if_slower(seconds: float) -> float: ...

@final
class ImageListSource:
    @property
    def path(self) -> str: ...
    @property
    def arrays(self) -> dict[str, numpy.ndarray[Any, Any]]: ...
    def __init__(
        self,
        images: Union[_Path, Iterable[_Path], Iterable[tuple[_Path, SupportsIndex]]],
        root_folder: _Path = "",
        color: str = "color",
        size: Optional[Union[SupportsIndex, tuple[SupportsIndex, SupportsIndex]]] = None,
        *,
        labels: Optional[SupportsIndex] = None,
        label_dtype: Any = None,
        index_bytes: Optional[SupportsIndex] = None,
        index_file: Optional[_Path] = None,
        **arrays: Any,
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    def shape_of(self, index: int) -> tuple[int, int, int]: ...
    def __getitem__(self, indices: Any, /) -> Subset: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def close(self) -> None: ...
    def __fastbatch_source__(self, random_access: bool) -> Any: ...

def source_of(
    images: Any, options: tuple[Any, ...], arrays: dict[str, numpy.ndarray[Any, Any]], path: str
) -> ImageListSource: ...
def named_images(
    path: str,
    names: list[str],
    root_folder: str,
    color: str,
    size: Any,
    index_bytes: Optional[SupportsIndex],
    index_file: Optional[_Path],
    **arrays: Any,
) -> ImageListSource: ...
def caffe_images(
    path: _Path,
    root_folder: _Path,
    color: str,
    size: Optional[tuple[int, int]],
    index_bytes: Optional[int] = None,
    index_file: Optional[_Path] = None,
) -> ImageListSource: ...
