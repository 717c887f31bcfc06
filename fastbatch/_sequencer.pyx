# cython: language_level=3
"""The sequencer: it hands out samples in the order of delivery, with their indices in a batch and their random draws.

Nothing in this file needs the GIL, and nothing in it knows Python.

No thread is the sequencer. One worker at a time takes the next sample, or several small ones, with `Ring.sequencer`
held. This lock is not a leaf: its holder may wait for a free slot and may do the source's I/O. Only workers take it,
with no other lock held, so a consumer never waits for it.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastbatch._contract cimport FB_END, fb_error, fb_fail, fb_record
from fastbatch._core cimport CLOSED, FOREVER, OK, Answer, queue_pop, queue_push
from fastbatch._failures cimport Failure, no_error
from fastbatch._random cimport FB_DRAW_REPLACEMENT, fb_mix_draws, fb_sample_draws
from fastbatch._ring cimport AGAIN, MAX_CHUNK, Slot, fb_scratch, slot_number
from fastbatch._slots cimport slot_fail, slot_reset
from fastbatch._stages cimport BEGUN, LOCATE, QUEUED, SPACE, enter
from fastbatch._threads cimport (
    atomic_add, atomic_add64, atomic_get, atomic_get64, atomic_set64, now, pthread_mutex_lock, pthread_mutex_unlock
)
from fastbatch._trace cimport fb_trace_add, fb_trace_renumber
from fastbatch.orders._order cimport fb_pick

cdef enum:
    ANNOUNCED_TIME = 400000  # CHUNK_TIME for samples that others make: these must be woken up for them
    MAX_TRIES = 16  # to find a sample that is not the one to be replaced; an order may consist of a single one


# ---- Chunks of samples ----------------------------------------------------------------------------------------------

cdef int next_tickets(Ring *ring, Worker *worker, Ticket *tickets) noexcept nogil:
    """Takes the next samples in the order of delivery, all of one batch, and returns how many.

    Takes as many as the worker's chunk, and waits for a free slot if it must. 0 means: stop working.
    """
    cdef int taken = 0
    cdef int64_t begin
    enter(worker, QUEUED)
    pthread_mutex_lock(&ring.sequencer)
    if open_slot(ring, worker) == OK:
        begin = now()
        # Stops early if these samples already took too long: records that are copied may suddenly be large.
        while (taken < worker.chunk and ring.open != NULL
               and (taken == 0 or atomic_get64(&worker.since) - begin < CHUNK_TIME)):
            take_sample(ring, worker, &tickets[taken], &worker.record_buffers[taken])
            taken += 1
        worker.busy = now() - begin
    pthread_mutex_unlock(&ring.sequencer)
    return taken


cdef void choose_chunk(Ring *ring, Worker *worker, int taken) noexcept nogil:
    """Chooses how many samples the worker takes per lock acquisition.

    Takes several small samples at a time; one at a time, workers spend longer on the lock and on contended cache lines
    than on work. A chunk takes CHUNK_TIME, by the mean of the latest samples: if every tenth sample is slow, small ones
    must not wait behind it.
    """
    cdef int64_t most = min(<int64_t>MAX_CHUNK, <int64_t>ring.source.at_once)
    cdef int64_t time = ANNOUNCED_TIME if ring.announces else CHUNK_TIME
    worker.sample_time += (worker.busy // taken - worker.sample_time) // 8
    worker.chunk = <int>max(<int64_t>1, min(most, time // max(<int64_t>1, worker.sample_time)))


# ---- Batches --------------------------------------------------------------------------------------------------------

cdef Answer open_slot(Ring *ring, Worker *worker) noexcept nogil:
    """Ensures that `ring.open` is a slot with samples left to assign."""
    cdef Answer answer
    cdef void *slot = NULL
    while True:
        if atomic_get(&ring.stop):
            return CLOSED
        if atomic_get(&ring.wanted_generation) != ring.generation:
            start_over(ring)
        if ring.open != NULL:
            return OK
        if ring.next != NULL:
            if ring.next.again and ring.next.generation == ring.generation:
                ring.next.again = False
                ring.open = ring.next
            else:
                begin_batch(ring, ring.next)
            fb_trace_add(&worker.trace, worker.since, BEGUN, slot_number(ring, ring.open))
            ring.next = NULL
            return OK
        enter(worker, SPACE)
        atomic_set64(&ring.space_wait_since, now())
        answer = queue_pop(ring.free, &slot, FOREVER)
        atomic_add64(&ring.space_wait, now() - atomic_get64(&ring.space_wait_since))
        atomic_set64(&ring.space_wait_since, 0)
        if answer != OK:
            return CLOSED
        enter(worker, QUEUED)
        ring.next = <Slot *>slot  # not opened yet: the consumer may have asked for another epoch since


cdef void start_over(Ring *ring) noexcept nogil:
    """Discards the open batch and continues at the beginning of the batch that the consumer wants."""
    cdef Slot *slot = ring.open
    cdef int unissued
    pthread_mutex_lock(&ring.control)
    ring.generation = ring.wanted_generation
    ring.order = ring.wanted_order
    ring.seed = ring.wanted_seed
    ring.epoch = ring.wanted_epoch
    ring.batch = ring.wanted_batch
    pthread_mutex_unlock(&ring.control)
    ring.position = first_position(ring)
    ring.sequence = 0
    ring.open = NULL
    if slot != NULL:
        unissued = <int>(slot.size - slot.issued)
        # Otherwise the worker that finishes the slot's last sample does it.
        if atomic_add(&slot.unfinished, -unissued) == 0:
            queue_push(ring.free, slot, FOREVER)


cdef uint64_t batches_before(const fb_order *order, uint32_t batch_size, uint64_t epoch) noexcept nogil:
    """Counts the batches that begin before an epoch of an order with a cycle."""
    cdef uint64_t step = batch_size * order.stride  # samples of all ranks
    return (epoch * order.cycle + step - 1) // step


cdef uint64_t first_position(const Ring *ring) noexcept nogil:
    """The position of the first sample of the ring's batch."""
    cdef uint64_t before = ring.batch
    if ring.order.cycle:
        before += batches_before(ring.order, ring.batch_size, ring.epoch)
    return before * ring.batch_size


cdef void begin_batch(Ring *ring, Slot *slot) noexcept nogil:
    cdef uint64_t left = ring.order.count - ring.position
    slot.sequence = ring.sequence
    slot.generation = ring.generation
    slot.order = ring.order
    slot.seed = ring.seed
    slot.epoch = ring.epoch
    slot.batch = ring.batch
    slot.position = ring.epoch * ring.order.count + ring.position
    slot.size = slot.real = ring.batch_size
    slot.next_epoch = ring.epoch
    if ring.order.count:
        slot.size = <uint32_t>min(<uint64_t>ring.batch_size, left)
        slot.real = <uint32_t>min(<uint64_t>slot.size, max(ring.order.real, ring.position) - ring.position)
        slot.next_epoch += left <= ring.batch_size
    elif ring.order.cycle:
        # Of all ranks: their loops over an epoch end at the same batch.
        slot.next_epoch = (ring.position + ring.batch_size) * ring.order.stride // ring.order.cycle
    slot.last = slot.next_epoch != ring.epoch
    slot_reset(slot)
    ring.sequence += 1
    ring.batch += 1
    ring.open = slot


# ---- Samples --------------------------------------------------------------------------------------------------------

cdef void take_sample(Ring *ring, Worker *worker, Ticket *ticket, fb_scratch *record_buffer) noexcept nogil:
    """Fills in the ticket of the open slot's next sample, and closes the slot with its last one."""
    cdef Slot *slot = ring.open
    ticket.slot = slot
    ticket.row = slot.issued
    ticket.attempt = slot.attempt
    ticket.record_buffer = record_buffer
    ticket.found = ticket.located = False
    slot.issued += 1
    if slot.attempt:
        while slot.states[slot.cursor] != AGAIN:
            slot.cursor += 1
        ticket.row = slot.cursor
        slot.cursor += 1
    else:
        ring.position += 1
    ticket.position = slot.position + ticket.row
    if slot.issued == slot.size:
        ring.open = NULL
        if slot.last and slot.attempt == 0:
            ring.epoch = slot.next_epoch
            ring.batch = 0
            if ring.order.count:
                ring.position = 0
    if not finds_in_parallel(ring):
        find_sample(ring, worker, ticket)


cdef bint finds_in_parallel(const Ring *ring) noexcept nogil:
    """Whether workers find their samples without the lock: neither the order nor the source remembers the last one.

    The lock is then held for some nanoseconds. Otherwise it would limit many workers on small samples.
    """
    return ring.pure and (ring.source.locate == NULL or ring.source.pure_locate)


cdef void find_sample(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Asks the order for the ticket's sample, and has the source locate it."""
    cdef const fb_order *order = ticket.slot.order
    cdef fb_error error
    ticket.found = True
    no_error(&error)
    memset(&ticket.record, 0, sizeof(fb_record))
    memset(&ticket.pick, 0, sizeof(fb_pick))
    if not finds_in_parallel(ring):
        enter(worker, LOCATE)
    ticket.record.index = ticket.position
    if ticket.attempt:
        pick_replacement(ring, ticket)
        ticket.located = locate(ring, worker, ticket, &error)
    elif finds_in_parallel(ring):
        order.pure_at(order.self, ticket.position, &ticket.pick)
        ticket.located = locate(ring, worker, ticket, &error)
    elif order.at(order.self, ticket.position, &ticket.pick, &error) == 0:
        ticket.located = locate(ring, worker, ticket, &error)
        if order.count == 0 and order.cycle == 0:
            ticket.slot.epoch = ticket.pick.epoch  # ends up as the epoch of the batch's last sample
    if not finds_in_parallel(ring):
        fb_trace_renumber(&worker.trace, LOCATE, ticket.pick.index)
    if not ticket.located:
        slot_fail(ticket.slot, ring, ticket, LOCATE, &error)


cdef void pick_replacement(const Ring *ring, Ticket *ticket) noexcept nogil:
    """Picks another sample of the same epoch and rank in place of the one that failed.

    The choice is a function of seed, epoch, and position in the epoch. An order that draws from a stream cannot be
    asked out of turn. Any other sample of the source is taken then (or any that the order says is alike), with the
    draws of the one that failed, so that the stream stays as it is.
    """
    cdef const fb_order *order = ticket.slot.order
    cdef uint64_t count = ring.epoch_samples
    cdef uint64_t epoch, first, own, other, failed, step, alike
    cdef int _tries
    if order.pure_at == NULL:
        epoch = ticket.position // count
        first_pick(ticket)
        first, step, alike = 0, 1, count
        if order.alike != NULL:
            order.alike(order.self, ticket.pick.index, &first, &step, &alike)
            if alike < 2:
                first, step, alike = 0, 1, count
        other = draw_other(ticket, epoch, ticket.position - epoch * count, alike)
        other += other >= (ticket.pick.index - first) // step
        ticket.pick.index = first + other * step
        return
    order.pure_at(order.self, ticket.position, &ticket.pick)
    failed = ticket.pick.index
    if order.count:
        epoch = ticket.position // order.count
        first = epoch * order.count
    else:
        epoch = ticket.pick.epoch
        first = epoch * order.cycle // order.stride
    own = ticket.position - first
    other = draw_other(ticket, epoch, own, count)
    other += other >= own
    for _tries in range(MAX_TRIES):
        order.pure_at(order.self, first + other, &ticket.pick)
        if ticket.pick.epoch < epoch:  # `first` may still belong to the epoch before, on this rank
            order.pure_at(order.self, first + count, &ticket.pick)
        if ticket.pick.index != failed:
            break
        other = (other + 1) % count  # a position that repeats the sample that failed


cdef uint64_t draw_other(const Ticket *ticket, uint64_t epoch, uint64_t own, uint64_t count) noexcept nogil:
    """A random number below count - 1, for the replacement of the sample at position `own` of the epoch."""
    cdef uint32_t[4] draws
    fb_sample_draws(ticket.slot.seed, <uint32_t>epoch, own, FB_DRAW_REPLACEMENT + (ticket.attempt << 8), draws)
    return (<uint64_t>draws[1] << 32 | draws[0]) % (count - 1)


cdef void first_pick(Ticket *ticket) noexcept nogil:
    """Sets the ticket's pick to that of the sample that was to be in its row."""
    cdef const Failure *failure
    pthread_mutex_lock(&ticket.slot.lock)  # other workers may add to the list
    failure = ticket.slot.failures.of_row[ticket.row]
    while failure.attempt:
        failure = failure.previous
    ticket.pick = failure.pick
    pthread_mutex_unlock(&ticket.slot.lock)


cdef bint locate(Ring *ring, Worker *worker, Ticket *ticket, fb_error *error) noexcept nogil:
    """Has the source locate the sample that the order picked. False on failure, with the reason."""
    cdef const fb_order *order = ticket.slot.order
    cdef uint64_t count
    cdef int code = locate_pick(ring, worker, ticket, error)
    if code == FB_END:
        count = ticket.record.index
        if order.counted != NULL and 1 <= count <= ticket.pick.index:
            # The count is known now: the pick belongs to a later epoch.
            order.counted(order.self, count, &ticket.pick)
            code = locate_pick(ring, worker, ticket, error)
    if code == FB_END:
        error.fatal = 1
        fb_fail(error, "the source says that it has only %llu sample%s", <unsigned long long>ticket.record.index,
                b"" if ticket.record.index == 1 else b"s")
    return code == 0


cdef int locate_pick(Ring *ring, Worker *worker, Ticket *ticket, fb_error *error) noexcept nogil:
    cdef const fb_order *order = ticket.slot.order  # the ring may have another one since
    ticket.record.index = ticket.pick.index
    ticket.record.epoch = ticket.pick.epoch
    if ring.source.seeded:
        if order.draw != NULL:
            order.draw(order.self, &ticket.pick)
        ticket.record.seed = fb_mix_draws(ticket.pick.draws)
    atomic_set64(&worker.index, <int64_t>ticket.pick.index)
    worker.lent.record_buffer = ticket.record_buffer
    if ring.source.locate == NULL:
        return 0
    return ring.source.locate(ring.source.self, &ticket.record, &worker.lent, error)
