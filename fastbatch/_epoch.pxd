"""The iterator over an epoch of a `Loader`."""

from libc.stdint cimport uint64_t

from fastbatch._batches cimport BatchRing

cdef class Epoch:
    cdef object __weakref__
    cdef object loader  # None: the epoch is over
    cdef BatchRing ring
    cdef readonly uint64_t number
    cdef void *caller  # the address of the frame that called next() last, which may be gone
    cdef object code  # of that frame
    cdef bint raised  # the latest next() did not return
    cdef bint superseded
    cdef uint64_t restored  # how often the ring had been
    cdef bint _current(self) noexcept
