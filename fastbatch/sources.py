"""Where samples come from. Every source gives its reader through `__fastbatch_source__`, the contract in native/fastbatch.h."""

from fastbatch import _features
from fastbatch._arrays import ArraySource

__all__ = ["ArraySource", "LMDBSource"]

if _features.problem("lmdb") is None:
    from fastbatch._lmdb import LMDBSource
else:

    class LMDBSource:
        """Stands in where fastbatch was built without LMDB: making one raises MissingLibraryError, which says what to install."""

        def __init__(self, path):
            _features.require("lmdb")
