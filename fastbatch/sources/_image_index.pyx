# cython: language_level=3
"""`ImageIndex`: what a source's workers and loaders know of its JPEG files. See docs/jpeg.md."""

import logging
import operator
import os

from fastbatch._files import quoted
from fastbatch.errors import SourceError

cimport cython
from libc.stdint cimport uint64_t

from fastbatch._contract cimport fb_error, fb_index, image_codec
from fastbatch._core cimport process_number

_log = logging.getLogger("fastbatch")

DEFAULT_BYTES = 512 * 2**20
"""What an index may take unless `index_bytes` says otherwise: enough for 600,000 photographs of 500 x 375 pixels, and a
smaller kind of index for 2 million."""

LEAST_BYTES = 1024
"""An index itself takes 0.7 KB, so that with less, no image would find room."""


def check_index_bytes(index_bytes):
    """Returns the number of bytes that `index_bytes` allows."""
    if index_bytes is None:
        return DEFAULT_BYTES
    try:
        if isinstance(index_bytes, bool):
            raise TypeError
        limit = operator.index(index_bytes)
    except TypeError:
        raise TypeError(f"index_bytes is {quoted(index_bytes)}; it is a number of bytes, or None for the "
                        "default") from None
    if not 0 <= limit < 2**63:
        raise ValueError(f"index_bytes is {limit}; it is a number of bytes, 0 for no index")
    if 0 < limit < LEAST_BYTES:
        raise ValueError(f"index_bytes is {limit}, in which no image finds room: give 0 for no index, or at least "
                         f"{LEAST_BYTES}")
    return limit


def check_index_file(index_file):
    """Returns the absolute path of `index_file`, as bytes; or None."""
    if index_file is None:
        return None
    try:
        path = os.fsencode(index_file)
    except TypeError:
        raise TypeError(f"index_file is {quoted(index_file)}; it is the path of the file that keeps the index of JPEG "
                        "files, or None for no file") from None
    if not path or b"\0" in path:
        raise ValueError(f"index_file is {quoted(index_file)}, which is not the path of a file")
    return os.path.abspath(path)


@cython.final
cdef class ImageIndex:
    """The index of one source, made when it is first needed, from a file if there is one.

    Workers use it without the GIL, through the fb_source of a capsule that keeps this object alive.
    """

    def __init__(self, index_bytes=None, index_file=None):
        self.limit = check_index_bytes(index_bytes)
        self.path = check_index_file(index_file)
        if self.path is not None and self.limit == 0:
            raise ValueError("index_file has no effect with index_bytes=0, which turns the index off")
        self.codec = image_codec()

    cdef fb_index *take(self, uint64_t count) except? NULL:
        """The index, for about `count` images (0: unknown). NULL: there is none.

        A child process begins one of its own: at the fork, a worker may have been adding to that of the parent.
        """
        cdef fb_index *made
        if self.codec == NULL or self.limit == 0:
            return NULL
        if self.native == NULL or self.owner != process_number():
            made = self.codec.index_new(count, self.limit)
            if self.path is not None:
                if made == NULL:
                    raise MemoryError("no memory for an index of JPEG files")
                try:
                    self._open(made)
                except BaseException:
                    self.codec.index_delete(made)
                    raise
                if self.native != NULL and self.owner == process_number():  # another thread was faster
                    self.codec.index_delete(made)
                    return self.native
            self.native = made
            self.owner = process_number()
        return self.native

    cdef int _open(self, fb_index *made) except -1:
        """Has the index use its file."""
        cdef fb_error error
        cdef const char *path = self.path
        cdef int code
        with nogil:
            code = self.codec.index_open(made, path, &error)
        if code != 0:
            sentence = error.text.decode("utf-8", "replace")
            if code < 0:
                raise SourceError(sentence)
            _log.warning("%s", sentence)
        return 0

    def __dealloc__(self):
        if self.native != NULL and self.owner == process_number():
            self.codec.index_delete(self.native)

    def counts(self):
        """How many images it knows, and how many bytes it takes."""
        cdef uint64_t images = 0
        cdef uint64_t bytes = 0
        if self.native != NULL and self.owner == process_number():
            self.codec.index_counts(self.native, &images, &bytes)
        return images, bytes
