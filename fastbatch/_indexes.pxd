"""The indexes of a ring's source, for the consumer's side."""

from fastbatch._ring cimport Ring

cdef int save_indexes(Ring *ring, bint quiet) except -1
