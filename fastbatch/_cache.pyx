# cython: language_level=3
"""The cache of a ring's decoded images: whether there can be one, and what it has counted.

native/cache.h is the cache itself, and _workers.pyx uses it.
"""

import os

from libc cimport errno as c_errno
from libc.string cimport strerror

from fastbatch._contract cimport FB_UINT8
from fastbatch._pixels cimport fb_are_rows
from fastbatch._ring cimport fb_cache_new, fb_cache_table, fb_cache_used
from fastbatch._threads cimport atomic_get64


cdef int set_up_cache(Ring *ring, source, str source_name, uint64_t size, bytes folder) except -1:
    """Gives the ring a cache, in a file if there is a folder for it; or rejects one that would have no effect."""
    cdef const char *place = NULL
    cdef uint64_t images
    cdef int i
    cdef int problem
    if ring.writes or ring.source.codec == NULL or not decodes(source):
        raise ValueError(f"cache_bytes has no effect on {source_name}: it keeps images that fastbatch decodes, and the "
                         "samples of this source need no decoding")
    for i in range(ring.outputs_count):
        ring.cache_number[i] = -1
        if (ring.source.fields[i].dtype == FB_UINT8 and ring.source.fields[i].ndim in (-1, 3)
                and not fb_are_rows(ring.outputs[i].role)):
            ring.cache_number[i] = ring.cache_fields
            ring.cache_fields += 1
    images = ring.source.count * ring.cache_fields
    if folder is not None:
        place = folder
    with nogil:  # a disk may be slow
        ring.cache = fb_cache_new(size, images, place)
        problem = c_errno.errno
    if ring.cache != NULL:
        return 0
    if problem == c_errno.EINVAL:
        raise ValueError(f"cache_bytes={size} has no room for images: their table takes {fb_cache_table(images)} bytes "
                         f"of the whole pages of memory in it ({source_name}, {images} images)")
    reason = strerror(problem).decode()
    if folder is None:
        raise MemoryError(f"no memory for a cache of {size} bytes: {reason}")
    name = os.fsdecode(folder)
    if problem in (c_errno.ENOSPC, c_errno.EFBIG):
        raise OSError(f"cache_folder={name!r} has no room for the {size} bytes of cache_bytes: {reason}")
    if problem == c_errno.EOPNOTSUPP:
        raise OSError(f"cache_folder={name!r} is on a file system that cannot reserve room for the {size} bytes of "
                      "cache_bytes, and a disk that is full later would end the process: choose another folder")
    raise OSError(f"no file for the cache can be made in cache_folder={name!r}: {reason}")


cdef bint decodes(source) except -1:
    """Whether a source with a codec may have images for it. A database of others has one, too."""
    from fastbatch.sources import ArraySource, CallbackSource, Joined, PythonSource, Subset  # they import this file

    if isinstance(source, Joined):
        return any([decodes(each) for each in source.sources])
    if isinstance(source, Subset):
        return decodes(source.source)
    return getattr(source, "encoded", not isinstance(source, (ArraySource, CallbackSource, PythonSource)))


cdef dict cache_counters(Ring *ring):
    """What the cache has counted, under the names of `Stats`."""
    cdef int i
    return {
        "cache_hits": sum([atomic_get64(&ring.workers[i].cache_hits) for i in range(ring.workers_count)]),
        "cache_misses": sum([atomic_get64(&ring.workers[i].cache_misses) for i in range(ring.workers_count)]),
        "cache_used": 0 if ring.cache == NULL else fb_cache_used(ring.cache),
    }
