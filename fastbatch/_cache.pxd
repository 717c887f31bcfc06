"""The cache of a ring's decoded images, for the consumer's side."""

from libc.stdint cimport uint64_t

from fastbatch._ring cimport Ring

cdef int set_up_cache(Ring *ring, source, str source_name, uint64_t size, bytes folder) except -1
cdef dict cache_counters(Ring *ring)
