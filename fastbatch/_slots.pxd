"""The slots of the ring."""

from libc.stdint cimport int32_t, uint32_t

from fastbatch._contract cimport fb_error
from fastbatch._ring cimport Ring, Slot, Ticket

cdef bint slot_init(Slot *slot, uint32_t batch_size) noexcept nogil
cdef void slot_free(Slot *slot) noexcept nogil
cdef void slot_reset(Slot *slot) noexcept nogil
cdef bint slot_lay_out(Slot *slot, Ring *ring) noexcept nogil
cdef void slot_empty(Slot *slot) noexcept nogil
cdef void slot_compact(Ring *ring, Slot *slot) noexcept nogil
cdef void slot_fail(Slot *slot, Ring *ring, Ticket *ticket, int stage, const fb_error *error,
                    bint whole=*) noexcept nogil
cdef bint slot_again(Ring *ring, Slot *slot) noexcept nogil
cdef bint all_skipped(const Slot *slot) noexcept nogil
cdef bint replace_failures(Ring *ring, Slot *slot) noexcept nogil
