# cython: language_level=3
"""`ImageIndex`: what a source's workers and loaders know of its JPEG files. See docs/jpeg.md."""

import operator

from fastbatch._files import quoted

cimport cython
from libc.stdint cimport uint64_t

from fastbatch._contract cimport fb_index, image_codec
from fastbatch._core cimport process_number

DEFAULT_BYTES = 512 * 2**20
"""What an index may take unless `index_bytes` says otherwise: enough for 600,000 photographs of 500 x 375 pixels, and a
smaller kind of index for 2 million."""


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
    return limit


@cython.final
cdef class ImageIndex:
    """The index of one source, made when it is first needed.

    Workers use it without the GIL, through the fb_source of a capsule that keeps this object alive.
    """

    def __init__(self, index_bytes=None):
        self.limit = check_index_bytes(index_bytes)
        self.codec = image_codec()

    cdef fb_index *take(self, uint64_t count) noexcept:
        """The index, for about `count` images (0: unknown). NULL: there is none.

        A child process begins one of its own: at the fork, a worker may have been adding to that of the parent.
        """
        if self.codec == NULL or self.limit == 0:
            return NULL
        if self.native == NULL or self.owner != process_number():
            self.native = self.codec.index_new(count, self.limit)
            self.owner = process_number()
        return self.native

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
