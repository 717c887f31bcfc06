"""What becomes of samples that could not be loaded."""

from libc.stdint cimport uint64_t

from fastbatch._failures cimport Failure, Verdict
from fastbatch._ring cimport Ring, Slot

cdef class BadSamples:
    cdef Ring *ring
    cdef str source_name
    cdef object team  # the worker processes of a PythonSource
    cdef object channels  # to them
    cdef object on_error  # "raise", "skip", "replace", or a function of a SampleError
    cdef object budget  # samples, or their share, that may fail; None: any number
    # Of batches that were delivered or given up.
    cdef list known  # the first errors
    cdef uint64_t skipped
    cdef uint64_t replaced
    cdef uint64_t seen  # samples
    cdef uint64_t counted  # of these, those that could not be loaded, unless they were raised
    # With those of the batch at hand.
    cdef list notes  # its errors
    cdef uint64_t failed
    cdef const Failure *asked  # the failure that the next two belong to; NULL: none
    cdef object question  # its error
    cdef object cause  # the pickled exception of a worker, until the error has it
    cdef int tries  # how often the error was to get it
    cdef object lost  # why the source as a whole cannot be read any more; None: it can
    cdef int set_up(self, Ring *ring, str source_name, team, on_error, budget) except -1
    cdef object settle(self, Slot *slot, consumer)
    cdef object ask_about(self, Failure *failure, Slot *slot)
    cdef int deliver(self) except -1
    cdef int give_up(self) except -1
    cdef int keep_notes(self) except -1
    cdef int forget(self) except -1
    cdef int forget_causes(self) except -1
    cdef Verdict verdict(self, Failure *failure, error) except *
    cdef object check_budget(self, Slot *slot)
    cdef object too_many(self, text)
    cdef object error_of(self, Failure *failure, epoch=*, batch=*)
