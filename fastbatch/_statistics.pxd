"""What a ring has counted, and what its threads are doing."""

from fastbatch._failures cimport Failure
from fastbatch._ring cimport Ring

cdef dict counters_of(Ring *ring)
cdef Failure *last_failure(Ring *ring) noexcept
cdef list activity_of(Ring *ring)
cdef list traces_of(Ring *ring)
