"""Where samples come from. Every source gives its reader through `__fastbatch_source__`, the contract in include/fastbatch.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Union

from fastbatch import _features
from fastbatch.sources._arrays import ArraySource
from fastbatch.sources._image_list import ImageListSource

__all__ = ["ArraySource", "ImageListSource", "LMDBSource", "LevelDBSource"]


class Source(Protocol):
    """What a `Loader` reads, for type checkers; a source need not derive from it."""

    def __fastbatch_source__(self, random_access: bool, /) -> Any:
        """A PyCapsule, named "fastbatch.source", of an fb_source; `random_access` says whether samples are read out of order."""


class Array(Protocol):
    """What NumPy takes for an array, for type checkers."""

    def __array__(self) -> Any: ...


# What a Loader takes; anything that numpy.asarray() takes may stand in the tuples and dicts.
Samples = Union[Source, Array, memoryview, tuple[Any], tuple[Any, Any], dict[str, Any]]


if TYPE_CHECKING or _features.problem("lmdb") is None:
    from fastbatch.sources._lmdb import LMDBSource
else:

    class LMDBSource:
        """Stands in where fastbatch was built without LMDB: making one raises MissingLibraryError, which says what to install."""

        def __init__(self, path, color="unchanged"):
            _features.require("lmdb")


if TYPE_CHECKING or _features.problem("leveldb") is None:
    from fastbatch.sources._leveldb import LevelDBSource
else:

    class LevelDBSource:
        """Stands in where fastbatch was built without LevelDB: making one raises MissingLibraryError, which says what to install."""

        def __init__(self, path, color="unchanged"):
            _features.require("leveldb")
