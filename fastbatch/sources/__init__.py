"""The sources that a loader reads samples from.

Every source provides its reader through `__fastbatch_source__`; include/fastbatch.h defines the contract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Union

from fastbatch import _features
from fastbatch.sources._arrays import ArraySource
from fastbatch.sources._callback import CallbackSource
from fastbatch.sources._image_list import ImageListSource
from fastbatch.sources._joined import Joined
from fastbatch.sources._subset import Subset
from fastbatch.sources.image_folder import ImageFolderSource
from fastbatch.sources.python import PythonSource

__all__ = [
    "ArraySource",
    "CallbackSource",
    "ImageFolderSource",
    "ImageListSource",
    "Joined",
    "LMDBSource",
    "LevelDBSource",
    "PythonSource",
    "Subset",
]


class Source(Protocol):
    """What a `Loader` reads, for type checkers; a source need not derive from it."""

    def __fastbatch_source__(self, random_access: bool, /) -> Any:
        """Return a PyCapsule named "fastbatch.source" that holds an fb_source.

        `random_access` says whether the loader reads samples out of order.
        """


class Array(Protocol):
    """What NumPy accepts as an array, for type checkers."""

    def __array__(self) -> Any: ...


# What a Loader accepts. The tuples and dicts may hold anything that numpy.asarray() accepts.
Samples = Union[Source, Array, memoryview, tuple[Any], tuple[Any, Any], dict[str, Any]]


if TYPE_CHECKING or _features.problem("lmdb") is None:
    from fastbatch.sources._lmdb import LMDBSource
else:

    class LMDBSource:
        """Raises MissingLibraryError, because this fastbatch was built without LMDB."""

        def __init__(self, path, color="unchanged"):
            _features.require("lmdb")


if TYPE_CHECKING or _features.problem("leveldb") is None:
    from fastbatch.sources._leveldb import LevelDBSource
else:

    class LevelDBSource:
        """Raises MissingLibraryError, because this fastbatch was built without LevelDB."""

        def __init__(self, path, color="unchanged"):
            _features.require("leveldb")
