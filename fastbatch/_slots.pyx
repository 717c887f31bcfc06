# cython: language_level=3
"""The slots of the ring: the memory of one batch each, and what becomes of samples that fail.

Nothing in this file needs the GIL, and nothing in it knows Python.

`Slot.lock` is a leaf: a thread that holds it does nothing that can block, call Python or take another lock.
"""

from libc cimport errno as c_errno
from libc.errno cimport ENOMEM
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastbatch._contract cimport fb_dtype_size
from fastbatch._failures cimport (
    REPLACED, SKIPPED, Failure, failure_new, failures_add, failures_clear, failures_free, failures_init
)
from fastbatch._ring cimport (
    AGAIN, BAD, GOOD, IMPOSSIBLE, MAX_REPLACEMENTS, PENDING, fb_keys_free, fb_keys_reset, fb_memory_empty,
    fb_memory_free, fb_memory_reserve, fb_sample_key
)
from fastbatch._threads cimport (
    atomic_set, pthread_cond_broadcast, pthread_cond_init, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock
)

cdef extern from * nogil:  # built into gcc and clang
    bint __builtin_mul_overflow(size_t a, size_t b, size_t *product) noexcept

cdef enum:
    ALIGNMENT = 64
    # Batches of at least this many bytes are written past the caches; a smaller one is still cached when it is read.
    STREAMED = 4 * 1024 * 1024


# ---- Memory ----------------------------------------------------------------------------------------------------------

cdef bint slot_init(Slot *slot, uint32_t batch_size) noexcept nogil:
    """Prepares a slot that has no memory for a batch yet. False if memory runs out."""
    pthread_mutex_init(&slot.lock, NULL)
    pthread_cond_init(&slot.laid_out, NULL)
    slot.sample_keys = <fb_sample_key *>calloc(batch_size, sizeof(fb_sample_key))
    slot.states = <char *>calloc(batch_size, 1)
    return failures_init(&slot.failures, batch_size) and slot.sample_keys != NULL and slot.states != NULL


cdef void slot_free(Slot *slot) noexcept nogil:
    """Frees all memory of the slot."""
    fb_memory_free(&slot.memory)
    free(slot.sample_keys)
    free(slot.states)
    failures_free(&slot.failures)
    fb_keys_free(&slot.keys)


cdef void slot_reset(Slot *slot) noexcept nogil:
    """Forgets the samples of the batch before, once the slot has the size of the next one."""
    slot.issued = 0
    slot.attempt = 0
    slot.again = slot.counted = False
    slot.unrecorded = False
    failures_clear(&slot.failures)
    slot.layout = PENDING
    slot.leader = 0
    fb_keys_reset(&slot.keys)
    slot.unfinished = <int32_t>slot.size
    memset(slot.states, GOOD, slot.size)


cdef bint slot_lay_out(Slot *slot, Ring *ring) noexcept nogil:
    """Assigns every output an aligned offset in the slot, once the shapes of the batch are known.

    False if memory runs out.
    """
    # Not 0, the start of a page. A large block from malloc starts 16 bytes into its page, and glibc 2.31's memcpy (with
    # AMD's fast `rep movsb`) is eight times slower if the destination lies 16 bytes further into its page than the
    # source. Callers copy batches.
    cdef size_t total = ALIGNMENT
    cdef size_t bytes
    cdef int i, axis
    cdef bint too_large = False  # an array may claim any size: a broadcast one occupies a single value
    for i in range(ring.outputs_count):
        bytes = fb_dtype_size(ring.outputs[i].dtype)
        for axis in range(slot.shapes[i].ndim):
            too_large |= __builtin_mul_overflow(bytes, <size_t>slot.shapes[i].sizes[axis], &bytes)
        slot.strides[i] = bytes
        slot.offsets[i] = total
        too_large |= __builtin_mul_overflow(bytes, ring.batch_size, &bytes)
        if too_large or bytes >> 56:  # exceeds any address space; sums of smaller sizes cannot overflow
            c_errno.errno = ENOMEM
            return False
        total += (bytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    slot.streaming = total >= STREAMED
    return fb_memory_reserve(&slot.memory, total) == 0


cdef void slot_empty(Slot *slot) noexcept nogil:
    """Frees the slot's memory once no further batch will be written."""
    fb_memory_empty(&slot.memory)


cdef void slot_compact(Ring *ring, Slot *slot) noexcept nogil:
    """Closes the gaps that samples left which failed, so that the batch is smaller. Nobody else may use the slot."""
    cdef uint32_t row
    cdef uint32_t kept = 0
    cdef uint32_t real = 0
    cdef char *values
    cdef int i
    for row in range(slot.size):
        if slot.states[row] != GOOD:
            continue
        if kept != row:
            for i in range(ring.outputs_count):
                values = slot.memory.data + slot.offsets[i]
                memcpy(values + kept * slot.strides[i], values + row * slot.strides[i], slot.strides[i])
            slot.sample_keys[kept] = slot.sample_keys[row]
        kept += 1
        real += row < slot.real
    slot.size = kept
    slot.real = real


# ---- Samples that fail -----------------------------------------------------------------------------------------------

cdef void slot_fail(Slot *slot, Ring *ring, Ticket *ticket, int stage, const fb_error *error,
                    bint whole=False) noexcept nogil:
    """Records why a sample is missing from the batch; `whole`: why the batch as a whole cannot be made.

    If it was this sample that was to decide the batch's shapes, the next one does.
    """
    cdef Failure *failure = failure_new(ticket.row, ticket.attempt, &ticket.pick, &ticket.record, stage, error)
    cdef int32_t leader
    cdef bint wake
    pthread_mutex_lock(&slot.lock)
    if failure == NULL:
        slot.unrecorded = True
    else:
        failure.whole = whole
        failures_add(&slot.failures, failure)
    slot.states[ticket.row] = BAD
    leader = slot.leader
    wake = slot.layout == PENDING and (whole or leader == <int32_t>ticket.row)
    if wake:
        if ring.tolerant and not whole:
            leader = next_leader(slot, leader + 1)
        if leader == <int32_t>slot.size or whole or not ring.tolerant:
            atomic_set(&slot.layout, IMPOSSIBLE)
        else:
            atomic_set(&slot.leader, leader)
    pthread_mutex_unlock(&slot.lock)
    if wake:
        pthread_cond_broadcast(&slot.laid_out)


cdef int32_t next_leader(const Slot *slot, int32_t row) noexcept nogil:
    """The first row from `row` on that may still decide the shapes; the number of rows if there is none."""
    while row < <int32_t>slot.size and slot.states[row] == BAD:
        row += 1
    return row


cdef bint slot_again(Ring *ring, Slot *slot) noexcept nogil:
    """Prepares a slot for workers to replace the samples whose verdict is REPLACED. False if there are none.

    Nobody else may use the slot. It goes to the sequencer with the free ones.
    """
    cdef Failure *failure = slot.failures.first
    cdef int32_t count = 0
    while failure != NULL:
        if failure.verdict == REPLACED and failure.attempt == slot.attempt:
            slot.states[failure.row] = AGAIN
            count += 1
        failure = failure.next
    if count == 0:
        return False
    slot.attempt += 1
    slot.again = True
    slot.cursor = 0
    slot.issued = slot.size - count
    slot.unfinished = count
    if slot.layout == IMPOSSIBLE:  # no sample was there to decide the shapes
        slot.layout = PENDING
        slot.leader = next_leader(slot, 0)
    return True


cdef bint replace_failures(Ring *ring, Slot *slot) noexcept nogil:
    """Has the samples replaced that failed in the latest attempt. False if that cannot be, or not any more."""
    cdef Failure *failure = slot.failures.first
    if slot.attempt == MAX_REPLACEMENTS or slot.unrecorded or ring.epoch_samples < 2:
        return False
    while failure != NULL:
        if failure.fatal or failure.whole:
            return False
        failure = failure.next
    failure = slot.failures.first
    while failure != NULL:
        failure.verdict = REPLACED
        failure = failure.next
    return slot_again(ring, slot)


cdef bint all_skipped(const Slot *slot) noexcept nogil:
    """Whether the batch has no sample left."""
    cdef const Failure *failure = slot.failures.first
    cdef uint32_t count = 0
    while failure != NULL:
        count += failure.verdict == SKIPPED
        failure = failure.next
    return count == slot.size
