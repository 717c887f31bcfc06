"""The consumer's side of the core, for the extensions that take batches without going through Python."""

from libc.stdint cimport uint64_t

from fastbatch._bad_samples cimport BadSamples
from fastbatch._batch cimport Batch, Lease
from fastbatch._ring cimport Ring, Slot
from fastbatch.orders._order cimport fb_order

cdef class BatchRing:
    cdef object __weakref__
    cdef Ring *ring
    cdef object capsule  # keeps the fb_source alive that the workers read
    cdef object source  # behind the capsule, whose memory may be that object's
    cdef object team  # the worker processes of a PythonSource
    cdef list orders  # the same of the fb_orders that it has had
    cdef const fb_order *order  # the latest
    cdef uint64_t seed
    cdef object transform  # keeps the mean that the workers subtract alive
    cdef readonly tuple names
    cdef readonly str source_name
    cdef readonly uint64_t epoch  # of the batch that comes next
    cdef uint64_t taken_epoch  # where the consumer is: it has taken this many batches of this epoch
    cdef uint64_t taken_batches
    cdef uint64_t saved_epoch  # in which what indexes know was last saved
    cdef uint64_t unsaved_batches  # how many were taken since, ...
    cdef uint64_t saved_after  # ... and after how many it is saved again, if the order has no epochs
    cdef readonly uint64_t restored  # how often; iterators from before are void
    cdef Slot *troubled  # a full slot some of whose samples failed, until what becomes of it is settled; else NULL
    cdef BadSamples bad
    cdef bint delivered  # a batch of this epoch was
    cdef int owner  # the process whose threads these are
    cdef bint left_behind  # a worker was, with all that this refers to
    cdef int start(self, int threads) except -1
    cdef int _begin_at(self, uint64_t epoch, uint64_t batch) except -1
    cdef int _number_batch(self, uint64_t *epoch, uint64_t *batch) except -1
    cdef const fb_order *_take_order(self, order, uint64_t count) except NULL
    cdef int check_ours(self) except -1
    cdef int check_usable(self) except -1
    cdef bint usable(self) noexcept
    cdef bint _saves_now(self) noexcept
    cdef int _save_indexes(self, bint quiet) except -1
    cdef Slot *_wait(self, timeout) except NULL
    cdef void _set_aside(self, Slot *slot) noexcept
    cdef Slot *_next_in_order(self) noexcept
    cdef void _took(self, Slot *slot) noexcept
    cdef int _drop(self, Slot *slot) except -1
    cdef Batch _lease(self, Slot *slot, Lease lease, Batch batch)
    cdef void _pass_epoch(self) noexcept
    cdef int _close(self, bint interruptible) except -1
    cdef int _let_go(self, bint interruptible) except -1

cdef class Closer:
    cdef BatchRing ring
