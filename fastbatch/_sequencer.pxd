"""The sequencer, for workers, and positions in the order, for the consumer."""

from libc.stdint cimport uint32_t, uint64_t

from fastbatch._ring cimport Ring, Ticket, Worker
from fastbatch.orders._order cimport fb_order

cdef enum:
    CHUNK_TIME = 20000  # nanoseconds

cdef int next_tickets(Ring *ring, Worker *worker, Ticket *tickets) noexcept nogil
cdef void choose_chunk(Ring *ring, Worker *worker, int taken) noexcept nogil
cdef void find_sample(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil
cdef uint64_t batches_before(const fb_order *order, uint32_t batch_size, uint64_t epoch) noexcept nogil
cdef uint64_t first_position(const Ring *ring) noexcept nogil
