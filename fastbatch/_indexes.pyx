# cython: language_level=3
"""The indexes of a ring's source, as far as files keep them: when they are written. See docs/jpeg.md."""

import logging

from libc.stdint cimport uint32_t

from fastbatch._contract cimport fb_error

_log = logging.getLogger("fastbatch")


cdef int save_indexes(Ring *ring, bint quiet) except -1:
    """Writes what the source's indexes have come to know. The caller keeps the source alive.

    quiet: runs no Python code, and says nothing of a file that cannot be written.
    """
    cdef fb_error error
    cdef uint32_t i
    cdef int code
    if ring.source.indexes == NULL or ring.codec.index_save == NULL:
        return 0
    for i in range(ring.source.field_count):
        if ring.source.indexes[i] == NULL:
            continue
        with nogil:
            code = ring.codec.index_save(ring.source.indexes[i], &error)
        if code != 0 and not quiet:
            _log.warning("%s", error.text.decode("utf-8", "replace"))
    return 0
