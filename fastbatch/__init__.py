"""fastbatch: batches for Caffe, and for any Python loop, assembled by native threads that never need the GIL.

`Loader` iterates over batches of a source (`LMDBSource`, `LevelDBSource`, `ImageListSource`, `ArraySource`), with a
`Transform` applied. `fastbatch.caffe.Data` is the same engine as a data layer in a prototxt. `BlockingQueue` is its
queue, for any objects, and `decode_image` its decoder, for single images.
"""

from __future__ import annotations

import os
import sys

try:
    from fastbatch._batch import Batch
except ModuleNotFoundError as _error:
    if _error.name != "fastbatch._batch":
        raise
    # The folder in which Python was started comes first on its path. After `pip install .`, that is the source folder.
    _folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    raise ModuleNotFoundError(
        f"{_folder} holds the sources of fastbatch, which are not compiled there for Python "
        f"{'{}.{}'.format(*sys.version_info)}. If fastbatch is installed, start Python in another folder, since it "
        f"looks in that one first; else install it: pip install {_folder}",
        name=_error.name,
    ) from None
from fastbatch._build_info import VERSION as __version__
from fastbatch._features import features
from fastbatch._queue import BlockingQueue
from fastbatch.errors import (
    BatchesHeldError,
    Closed,
    DataTimeout,
    FastbatchError,
    ForkedError,
    MissingLibraryError,
    SampleError,
    SourceError,
    TooManyErrors,
)
from fastbatch.images import decode_image
from fastbatch.loader import Loader
from fastbatch.sources import (
    ArraySource,
    CallbackSource,
    ImageFolderSource,
    ImageListSource,
    Joined,
    LevelDBSource,
    LMDBSource,
    PythonSource,
    Subset,
)
from fastbatch.sources._current import CurrentSample, current_sample
from fastbatch.stats import Stats
from fastbatch.transforms import Transform

__all__ = [
    "ArraySource",
    "Batch",
    "BatchesHeldError",
    "BlockingQueue",
    "CallbackSource",
    "Closed",
    "CurrentSample",
    "DataTimeout",
    "FastbatchError",
    "ForkedError",
    "ImageFolderSource",
    "ImageListSource",
    "Joined",
    "LMDBSource",
    "LevelDBSource",
    "Loader",
    "MissingLibraryError",
    "PythonSource",
    "SampleError",
    "SourceError",
    "Stats",
    "Subset",
    "TooManyErrors",
    "Transform",
    "__version__",
    "current_sample",
    "decode_image",
    "features",
    "get_include",
]


def get_include() -> str:
    """The directory of fastbatch.h, to compile your own sources and extensions that cimport fastbatch._core."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")
