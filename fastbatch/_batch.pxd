"""A batch, for the extensions that take it without going through Python."""

from libc.stdint cimport uint64_t

from fastbatch._ring cimport Ring, Slot

cdef class Lease:
    cdef object owner  # keeps the ring alive
    cdef Ring *ring
    cdef Slot *slot
    cdef int process  # whose ring it is

cdef class Field:
    cdef Lease lease
    cdef int number
    cdef Py_ssize_t shape[9]
    cdef Py_ssize_t strides[9]

cdef class Batch:
    cdef Lease lease
    cdef dict arrays
    cdef readonly tuple names
    cdef readonly uint64_t epoch
    cdef readonly uint64_t number
    cdef readonly Py_ssize_t real
    cdef Py_ssize_t size
    cdef list known_keys
    cdef int check_held(self) except -1
    cdef dict _all(self)
    cdef int check_number(self, int number) except -1
