# cython: language_level=3
"""The heart of fastbatch: batches, filled by native threads.

Nothing in this file needs the GIL, and nothing in it knows Python.

Read it from top to bottom, with the structures in `_ring.pxd` beside it:

1. The slots, which circulate between two blocking queues (`_core.pyx`), `free` and `full`.
2. The sequencer. One worker at a time takes the next sample, or several small ones, with their indices in a batch and
   their random draws.
3. The workers. A worker reads a sample, decodes the part that the batch will show, writes it straight into the batch,
   and hands over the slot with its last sample. Where shapes vary, the worker of a batch's first sample lays the slot
   out. The other workers wait for that when they need to write.
4. The ring: starting and stopping.

`_batches.pyx` is the consumer's side.

Locks. `Queue.lock`, `Ring.control`, `Slot.lock` and `Ring.leaving` are leaves: a thread that holds one does nothing
that can block, call Python or take another lock. `Ring.sequencer` is not a leaf: its holder may wait for a free slot
and may do the source's I/O. Only workers take it, with no other lock held, so a consumer never waits for it.
"""

from libc cimport errno as c_errno
from libc.errno cimport ENOMEM
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strerror
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from fastbatch._pixels cimport (
    FB_CUT, FB_KEPT, FB_NORMALIZED, fb_arena_empty, fb_arena_free, fb_arithmetic, fb_can_convert, fb_check_dtype,
    fb_check_means, fb_collate, fb_geometry, fb_geometry_fits, fb_geometry_resizes, fb_kernel_choose, fb_kernel_name,
    fb_pixels_copy, fb_pixels_normalize, fb_pixels_part, fb_pixels_resize, fb_pixels_write, fb_transform,
    fb_transform_apply, fb_transform_choose, fb_transform_shape
)
from fastbatch._core cimport CLOSED, FOREVER, OK, Answer, queue_close, queue_delete, queue_new, queue_pop, queue_push
from fastbatch._failures cimport REPLACED, failure_copy, failure_new, failures_add, failures_free
from fastbatch._random cimport FB_DRAW_REPLACEMENT, fb_mix_draws, fb_sample_draws
from fastbatch._trace cimport fb_note_set, fb_times_add, fb_trace_add
from fastbatch._threads cimport (
    atomic_add, atomic_add64, atomic_get, atomic_get64, atomic_set, atomic_set64,
    deadline_after, now, pthread_cond_broadcast, pthread_cond_init,
    pthread_cond_timedwait, pthread_cond_wait, pthread_condattr_destroy, pthread_condattr_init,
    pthread_condattr_setclock, pthread_condattr_t, pthread_join, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock, spin_pause, thread_start, thread_yields
)
from fastbatch._contract cimport (
    FB_ENCODED, FB_END, FB_MAX_FIELDS, check_view, fb_decoder, fb_decoding, fb_dtype, fb_dtype_size, fb_error, fb_fail,
    fb_place, fb_record, fb_scratch, fb_view, fb_worker, fb_worker_decoder
)

cdef extern from * nogil:  # built into gcc and clang
    bint __builtin_mul_overflow(size_t a, size_t b, size_t *product) noexcept

cdef enum:
    ALIGNMENT = 64
    CHUNK_TIME = 20000  # nanoseconds
    ANNOUNCED_TIME = 200000  # the same for samples that others make: these must be woken up for them
    RECENT = 32  # samples after which a worker decides whether to free memory
    KEPT_BUFFER = 1024 * 1024  # bytes that a worker may keep although it does not need them
    SPINS = 200  # some microseconds
    CPU_PERIOD = 10000000  # nanoseconds between a worker's readings of its processor time
    # Batches of at least this many bytes are written past the caches; a smaller one is still cached when it is read.
    STREAMED = 4 * 1024 * 1024


# ---- 1. The slots ----------------------------------------------------------------------------------------------------

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


cdef const char **STAGES = [
    b"start", b"wait for its turn", b"wait for a free batch", b"locate", b"read", b"decode",
    b"wait for the batch's first sample", b"collate", b"write", b"stopped",
    b"slot begun", b"slot full", b"wait for a batch", b"batch taken"
]


cdef const char *stage_name(int stage) noexcept nogil:
    return STAGES[stage]


cdef uint64_t slot_number(const Ring *ring, const Slot *slot) noexcept nogil:
    """What traces call a batch: its number in the epoch, and above it the slot."""
    return <uint64_t>(slot - ring.slots) << 32 | <uint32_t>slot.batch


# ---- 2. The sequencer ------------------------------------------------------------------------------------------------

cdef void no_error(fb_error *error) noexcept nogil:
    """Initializes an error, without clearing all of its text: workers do this several times for each sample."""
    error.fatal = 0
    error.text[0] = 0


cdef void enter(Worker *worker, Stage stage) noexcept nogil:
    """Sets the stage that the worker is in, and counts the time of the stage before.

    The time of a sample in a stage is one number, even if the worker enters the stage twice.
    """
    cdef int64_t time = now()
    cdef int64_t spent = time - worker.since
    cdef int former = worker.stage
    if former == READ or former == DECODE or former == COLLATE or former == WRITE:
        worker.spent[former] += spent
    elif former != STARTING:
        fb_times_add(&worker.times[former], spent)
    if worker.sample_done:
        count_sample(worker)
    fb_trace_add(&worker.trace, time, stage, <uint64_t>worker.index)
    atomic_set(&worker.stage, stage)
    atomic_set64(&worker.since, time)


cdef void count_sample(Worker *worker) noexcept nogil:
    """Counts the times of the sample that the worker has finished."""
    cdef int stage
    worker.sample_done = False
    for stage in range(READ, WRITE + 1):
        if worker.spent[stage]:
            fb_times_add(&worker.times[stage], worker.spent[stage])
            worker.spent[stage] = 0


cdef void read_cpu_time(Worker *worker) noexcept nogil:
    """Reads the processor time that the worker has used, now and then: this is a system call."""
    cdef timespec used
    if worker.since - worker.cpu_read < CPU_PERIOD:
        return
    worker.cpu_read = worker.since
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used)
    atomic_set64(&worker.cpu, <int64_t>used.tv_sec * 1000000000 + used.tv_nsec)


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
    slot.issued = 0
    slot.attempt = 0
    slot.again = False
    slot.unrecorded = False
    failures_free(&slot.failures)
    slot.layout = PENDING
    slot.leader = 0
    fb_keys_reset(&slot.keys)
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
    slot.unfinished = <int32_t>slot.size
    memset(slot.states, GOOD, slot.size)
    ring.sequence += 1
    ring.batch += 1
    ring.open = slot


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
    if not ticket.located:
        slot_fail(ticket.slot, ring, ticket, LOCATE, &error)


cdef void pick_replacement(const Ring *ring, Ticket *ticket) noexcept nogil:
    """Picks another sample of the same epoch and rank in place of the one that failed.

    The choice is a function of seed, epoch, and position in the epoch. An order that draws from a stream cannot be
    asked out of turn. Any other sample of the source is taken then, with the draws of the one that failed, so that the
    stream stays as it is.
    """
    cdef const Failure *failure
    cdef const fb_order *order = ticket.slot.order
    cdef uint64_t count = ring.epoch_samples
    cdef uint64_t epoch, first, own, other
    cdef uint32_t[4] draws
    if order.pure_at == NULL:
        first = 0
        epoch = ticket.position // count
        own = ticket.position - epoch * count
    elif order.count:
        epoch = ticket.position // order.count
        first = epoch * order.count
        own = ticket.position - first
    else:
        order.pure_at(order.self, ticket.position, &ticket.pick)
        epoch = ticket.pick.epoch
        first = epoch * order.cycle // order.stride
        own = ticket.position - first
    fb_sample_draws(ticket.slot.seed, <uint32_t>epoch, own, FB_DRAW_REPLACEMENT + (ticket.attempt << 8), draws)
    other = (<uint64_t>draws[1] << 32 | draws[0]) % (count - 1)
    if order.pure_at != NULL:
        other += other >= own
        order.pure_at(order.self, first + other, &ticket.pick)
        if ticket.pick.epoch < epoch:  # `first` may still belong to the epoch before, on this rank
            order.pure_at(order.self, first + count, &ticket.pick)
        return
    pthread_mutex_lock(&ticket.slot.lock)  # other workers may add to the list
    failure = ticket.slot.failures.first
    while failure.row != ticket.row:
        failure = failure.next
    ticket.pick = failure.pick
    pthread_mutex_unlock(&ticket.slot.lock)
    ticket.pick.index = other + (other >= ticket.pick.index)


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
        fb_fail(error, "the source says that it has only %llu samples", <unsigned long long>ticket.record.index)
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


# ---- 3. The workers --------------------------------------------------------------------------------------------------

cdef bint read_views(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Gets views of the sample's fields from the source, and the shapes of encoded images from the codec.

    False: the slot records the failure.
    """
    cdef fb_error error
    cdef int i
    enter(worker, READ)
    no_error(&error)
    for i in range(ring.outputs_count):
        ticket.views[i].data = NULL  # for check_view
        ticket.views[i].ndim = -1
    if ring.source.read(ring.source.self, &ticket.record, &worker.lent, ticket.views, &error) != 0:
        slot_fail(ticket.slot, ring, ticket, READ, &error)
        return False
    for i in range(ring.outputs_count):
        if not check_view(&ring.source.fields[i], &ticket.views[i], &error):
            slot_fail(ticket.slot, ring, ticket, READ, &error)
            return False
        if ticket.views[i].dtype == FB_ENCODED:
            enter(worker, DECODE)
            if not begin_decoding(ring, worker, i, &ticket.views[i], &error):
                slot_fail(ticket.slot, ring, ticket, DECODE, &error)
                return False
    return True


cdef bint begin_decoding(Ring *ring, Worker *worker, int field, fb_view *view, fb_error *error) noexcept nogil:
    """Reads the image's header and gives the view the shape of the decoded image."""
    cdef fb_decoder *decoder
    cdef const fb_decoding *decoding = ring.source.decoding
    if ring.source.decodings != NULL:
        decoding = &ring.source.decodings[field]
    if ring.codec.begin == NULL:
        fb_fail(error, "it holds an encoded image (JPEG or PNG), which this fastbatch cannot decode: python -m "
                       "fastbatch info says what "
                "to install")
        return False
    decoder = fb_worker_decoder(&worker.lent, field, &ring.codec)
    if decoder == NULL:
        fb_fail(error, "no memory for a decoder")
        return False
    if ring.codec.begin(decoder, view.data, <size_t>view.shape[0], decoding, view.shape, error) != 0:
        return False
    view.ndim = 3
    return True


cdef bint shape_of(Ring *ring, int output, const fb_view *view, Shape *shape, fb_error *error) noexcept nogil:
    """The shape that this view will have in the batch."""
    cdef int axis
    if ring.outputs[output].role != FB_KEPT:
        return fb_transform_shape(&ring.transform, ring.outputs[output].role, view, shape.sizes, &shape.ndim,
                                  error) == 0
    shape.ndim = view.ndim
    for axis in range(view.ndim):
        shape.sizes[axis] = view.shape[axis]
    return True


cdef bint lay_out(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Gives the slot its shapes, and memory for them.

    Shapes that are not known beforehand are those of the batch's first sample, as in Caffe. This ticket is that sample,
    and its views have been read, if that is needed. False: the slot records the failure.
    """
    cdef Slot *slot = ticket.slot
    cdef fb_error error
    cdef int i
    enter(worker, COLLATE)
    no_error(&error)
    for i in range(ring.outputs_count):
        if not ring.shapes_vary:
            slot.shapes[i] = ring.outputs[i].shape
        elif not shape_of(ring, i, &ticket.views[i], &slot.shapes[i], &error):
            slot_fail(slot, ring, ticket, COLLATE, &error)
            return False
    if not slot_lay_out(slot, ring):
        fb_fail(&error, "no memory for a batch of %u such samples (%s)", ring.batch_size, strerror(c_errno.errno))
        slot_fail(slot, ring, ticket, COLLATE, &error, True)
        return False
    # Wakes the workers that wait.
    pthread_mutex_lock(&slot.lock)
    atomic_set(&slot.layout, LAID_OUT)
    pthread_mutex_unlock(&slot.lock)
    pthread_cond_broadcast(&slot.laid_out)
    return True


cdef bint leads(const Ticket *ticket) noexcept nogil:
    """Whether the slot is to be laid out, and this ticket's sample decides how."""
    return (atomic_get(&ticket.slot.layout) == PENDING
            and atomic_get(&ticket.slot.leader) == <int32_t>ticket.row)


cdef bint must_wait(const Ticket *ticket) noexcept nogil:
    return atomic_get(&ticket.slot.layout) == PENDING and not leads(ticket)


cdef bint wait_for_layout(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Waits until the samples before this one have been examined, and lays the slot out if none of them could be read.

    Returns whether the slot is laid out. Also False if the ring is stopped in the meantime.
    """
    cdef Slot *slot = ticket.slot
    cdef int64_t begin
    cdef int spins = 0
    if must_wait(ticket):
        enter(worker, FIRST)
        begin = now()
        # Reading a small sample takes less time than falling asleep.
        while must_wait(ticket) and spins < SPINS:
            spin_pause()
            spins += 1
        pthread_mutex_lock(&slot.lock)
        while must_wait(ticket) and not atomic_get(&ring.stop):
            pthread_cond_wait(&slot.laid_out, &slot.lock)
        pthread_mutex_unlock(&slot.lock)
        worker.busy -= now() - begin
    if leads(ticket):
        return lay_out(ring, worker, ticket)
    return atomic_get(&slot.layout) == LAID_OUT


cdef bint same_shape(const Shape *a, const Shape *b) noexcept nogil:
    cdef int axis
    if a.ndim != b.ndim:
        return False
    for axis in range(a.ndim):
        if a.sizes[axis] != b.sizes[axis]:
            return False
    return True


cdef void describe_shape(const Shape *shape, char *text, size_t room) noexcept nogil:
    cdef size_t used = 1
    cdef int axis
    text[0] = b"("
    text[1] = 0
    for axis in range(shape.ndim):
        if used < room:
            used += snprintf(text + used, room - used, b"%s%lld", b"" if axis == 0 else b", ",
                             <long long>shape.sizes[axis])
    if used < room:
        snprintf(text + used, room - used, ")")


cdef bint decode(Ring *ring, Worker *worker, int field, const fb_geometry *geometry, fb_view *pixels,
                 fb_error *error) noexcept nogil:
    """Decodes what the geometry needs of the field's image, whose header was the last one read, and resizes it.

    A field that is only cut is not resized.
    """
    enter(worker, DECODE)
    if ring.outputs[field].role == FB_CUT or not fb_geometry_resizes(geometry):
        if ring.codec.finish(worker.decoders[field], &geometry.region, pixels, error) != 0:
            return False
    elif ring.codec.finish_part(worker.decoders[field], &geometry.region, <int>geometry.height, <int>geometry.width,
                                &geometry.part, pixels, error) != 0:
        return False
    enter(worker, COLLATE)
    return True


cdef bint put(Ring *ring, Worker *worker, Ticket *ticket, int output, fb_geometry *geometry,
              fb_error *error) noexcept nogil:
    """Writes one field of the sample into the batch. Its values are written only this once.

    `geometry` is the sample's, all zero before its first image.
    """
    cdef Slot *slot = ticket.slot
    cdef const fb_view *view = &ticket.views[output]
    cdef fb_view part
    cdef fb_geometry whole
    cdef Output *target = &ring.outputs[output]
    cdef char *destination = slot.memory.data + slot.offsets[output] + ticket.row * slot.strides[output]
    cdef Shape shape
    cdef char[128] expected
    cdef char[128] found
    if not shape_of(ring, output, view, &shape, error):
        return False
    if not same_shape(&shape, &slot.shapes[output]):
        describe_shape(&slot.shapes[output], expected, sizeof(expected))
        describe_shape(&shape, found, sizeof(found))
        fb_fail(error, "its %s has shape %s, but the batch has %s, the shape of its first sample (in Caffe's words: "
                       "Check failed: %s); use crop_size, a batch size of 1, or samples of one shape (images of a "
                       "list: size=, or new_height and new_width)", ring.source.fields[output].name, found,
                expected,
                b"channels == datum_channels" if shape.ndim == 3 and shape.sizes[0] != slot.shapes[output].sizes[0]
                else b"datum_width == width" if shape.ndim == 3 and shape.sizes[1] == slot.shapes[output].sizes[1]
                else b"datum_height == height")
        return False
    if target.role != FB_KEPT:
        if geometry.out_height == 0:  # decided by the sample's first image
            if slot.order.draw != NULL and (
                    ring.transform.mirror or ring.transform.random_crop or ring.transform.jitters):
                slot.order.draw(slot.order.self, &ticket.pick)
            if fb_transform_choose(&ring.transform, view, ticket.pick.draws, geometry, error) != 0:
                return False
        elif fb_geometry_fits(geometry, view, error) != 0:
            return False
    if view.dtype == FB_ENCODED:
        whole.region.top = whole.region.left = 0
        whole.region.height = whole.height = view.shape[1]
        whole.region.width = whole.width = view.shape[2]
        if not decode(ring, worker, output, &whole if target.role == FB_KEPT else geometry, &part, error):
            return False
        view = &part
    elif target.role != FB_KEPT:
        fb_pixels_part(geometry, view, &part)
        view = &part
        if target.role == FB_NORMALIZED and fb_geometry_resizes(geometry):
            fb_arena_empty(&worker.resized)
            if fb_pixels_resize(geometry, &part, &worker.resized, error) != 0:
                return False
    # The three functions that write return False only if the ring is stopped. Nobody waits for the batch then, so no
    # reason is needed.
    if target.role == FB_NORMALIZED:
        return fb_pixels_write(&ring.transform, geometry, view, destination, slot.streaming, &ring.stop)
    if not fb_can_convert(view.dtype, target.dtype):
        fb_fail(error, "its %s is of another type than the first sample's, from which the batch has its type; a "
                       "transform makes float32 of both", ring.source.fields[output].name)
        return False
    if target.role == FB_CUT:
        return fb_pixels_copy(geometry, view, destination, target.dtype, ring.transform.cut_fill, &ring.stop)
    return fb_collate(view, destination, target.dtype, &ring.stop)


cdef bint fill_row(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Reads the ticket's sample and writes it into the batch.

    False: the slot records the reason.
    """
    cdef Slot *slot = ticket.slot
    cdef fb_geometry geometry
    cdef fb_error error
    cdef int i
    if not ticket.found:
        find_sample(ring, worker, ticket)
    atomic_set64(&worker.index, <int64_t>ticket.record.index)
    worker.lent.record_buffer = ticket.record_buffer
    if atomic_get(&slot.layout) == IMPOSSIBLE:
        return False
    if not ticket.located:
        return False
    fb_note_set(&worker.note, ticket.record.key, ticket.record.key_size)
    if not ring.shapes_vary and not lay_out_first(ring, worker, ticket):
        return False
    if not (ring.writes or read_views(ring, worker, ticket)) or not wait_for_layout(ring, worker, ticket):
        return False
    enter(worker, COLLATE)
    fb_memory_populate(&slot.memory, &ring.stop)
    no_error(&error)
    if fb_keys_store(&slot.keys, slot.size, &ticket.record, &slot.sample_keys[ticket.row]) != 0:
        fb_fail(&error, "no memory for its key")
        slot_fail(slot, ring, ticket, COLLATE, &error)
        return False
    if ring.writes:
        if not write_sample(ring, worker, ticket):
            return False
        if ticket.attempt:
            slot.states[ticket.row] = GOOD
        return True
    memset(&geometry, 0, sizeof(fb_geometry))
    for i in range(ring.outputs_count):
        if not put(ring, worker, ticket, i, &geometry, &error):
            slot_fail(slot, ring, ticket, atomic_get(&worker.stage), &error)
            return False
    if ticket.attempt:
        slot.states[ticket.row] = GOOD
    return True


cdef bint lay_out_first(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Lays out the slot if this sample leads, before it is read, so that nobody has to wait for that.

    False: that failed, for the reason that the slot records.
    """
    return not leads(ticket) or lay_out(ring, worker, ticket)


cdef void announce(Ring *ring, Worker *worker, Ticket *tickets, int taken) noexcept nogil:
    """Tells the source which samples it is to write next, and where."""
    cdef fb_place[FB_MAX_FIELDS] places
    cdef uint32_t number = 0
    cdef int i
    for i in range(taken):
        if not tickets[i].found:
            find_sample(ring, worker, &tickets[i])
        if not tickets[i].located:
            continue
        if not wait_for_layout(ring, worker, &tickets[i]):
            return
        find_places(ring, &tickets[i], places)
        worker.lent.record_buffer = tickets[i].record_buffer
        ring.source.announce(ring.source.self, number, &tickets[i].record, &worker.lent, places)
        number += 1


cdef void find_places(const Ring *ring, const Ticket *ticket, fb_place *places) noexcept nogil:
    """Where the sample's fields belong in the batch."""
    cdef Slot *slot = ticket.slot
    cdef int i, axis
    for i in range(ring.outputs_count):
        places[i].data = slot.memory.data + slot.offsets[i] + ticket.row * slot.strides[i]
        places[i].file = slot.memory.file if slot.memory.shared else -1
        places[i].offset = <char *>places[i].data - slot.memory.data if slot.memory.shared else 0
        places[i].dtype = ring.outputs[i].dtype
        places[i].ndim = slot.shapes[i].ndim
        for axis in range(slot.shapes[i].ndim):
            places[i].shape[axis] = slot.shapes[i].sizes[axis]


cdef bint write_sample(Ring *ring, Worker *worker, Ticket *ticket) noexcept nogil:
    """Lets the source write the sample into the batch itself. False: the slot records the failure."""
    cdef fb_place[FB_MAX_FIELDS] places
    cdef fb_error error
    enter(worker, WRITE)
    no_error(&error)
    find_places(ring, ticket, places)
    if ring.source.write(ring.source.self, &ticket.record, &worker.lent, places, &error) != 0:
        slot_fail(ticket.slot, ring, ticket, WRITE, &error)
        return False
    return True


cdef void shrink(Worker *worker, int taken) noexcept nogil:
    """Frees memory that is far larger than what the latest samples took.

    One large record must not cost every worker its memory forever.
    """
    cdef int i
    worker.since_shrink += taken
    if worker.since_shrink < RECENT:
        return
    worker.since_shrink = 0
    shrink_scratch(&worker.scratch)
    for i in range(MAX_CHUNK):
        shrink_scratch(&worker.record_buffers[i])


cdef void shrink_scratch(fb_scratch *scratch) noexcept nogil:
    if scratch.size > KEPT_BUFFER and scratch.size // 4 > scratch.wanted:
        free(scratch.data)
        scratch.data = NULL
        scratch.size = 0
    scratch.wanted = 0


cdef void hand_over(Ring *ring, Worker *worker, Slot *slot) noexcept nogil:
    """Hands a batch to the consumer after its last sample was written."""
    cdef Failure *copy
    cdef int64_t bytes = 0
    cdef int i
    if slot.generation != atomic_get(&ring.wanted_generation):
        # A discarded batch. The consumer would free it too, but perhaps much later.
        queue_push(ring.free, slot, FOREVER)
        return
    if slot.failures.first != NULL and slot.attempt == 0:
        copy = failure_copy(slot.failures.first)
        pthread_mutex_lock(&ring.control)
        if copy != NULL:
            copy, ring.last_failure = ring.last_failure, copy
        pthread_mutex_unlock(&ring.control)
        free(copy)
        atomic_add64(&ring.failures, 1)
    if slot.failures.first != NULL and ring.replaces and replace_failures(ring, slot):
        queue_push(ring.free, slot, FOREVER)
        return
    for i in range(ring.outputs_count):
        bytes += slot.strides[i] * slot.size
    atomic_add64(&ring.batches, 1)
    atomic_add64(&ring.bytes, bytes)
    fb_trace_add(&worker.trace, now(), FULL, slot_number(ring, slot))
    queue_push(ring.full, slot, FOREVER)


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


cdef void *work(void *argument) noexcept nogil:
    """The main function of a worker thread."""
    cdef Worker *worker = <Worker *>argument
    cdef Ring *ring = worker.ring
    cdef Ticket[MAX_CHUNK] tickets
    cdef int taken, written, i
    cdef int64_t begin
    thread_yields()
    while True:
        taken = next_tickets(ring, worker, tickets)
        if taken == 0:
            break
        written = 0
        begin = now()
        if ring.announces:
            announce(ring, worker, tickets, taken)
        for i in range(taken):
            if i == 0 or not atomic_get(&ring.stop):
                written += fill_row(ring, worker, &tickets[i])
                worker.sample_done = True
            if tickets[i].located and ring.source.done != NULL:
                worker.lent.record_buffer = tickets[i].record_buffer
                ring.source.done(ring.source.self, &tickets[i].record, &worker.lent)
        atomic_add64(&worker.samples, written)
        if atomic_get(&ring.stop):
            break  # nobody waits for the batch, which may be incomplete
        worker.busy += now() - begin - worker.lent.latency
        worker.lent.latency = 0
        choose_chunk(ring, worker, taken)
        shrink(worker, taken)
        read_cpu_time(worker)
        if atomic_add(&tickets[0].slot.unfinished, -taken) == 0:
            hand_over(ring, worker, tickets[0].slot)
    enter(worker, STOPPED)
    leave(ring)
    return NULL


# ---- 4. Starting and stopping ----------------------------------------------------------------------------------------

cdef Ring *ring_new(int slots_count, int workers_count, uint32_t batch_size) noexcept nogil:
    """A ring whose slots are all free and have no memory yet; NULL if memory runs out."""
    cdef Ring *ring = <Ring *>calloc(1, sizeof(Ring))
    cdef pthread_condattr_t monotonic
    cdef int i
    if ring == NULL:
        return NULL
    pthread_mutex_init(&ring.sequencer, NULL)
    pthread_mutex_init(&ring.control, NULL)
    pthread_mutex_init(&ring.leaving, NULL)
    pthread_condattr_init(&monotonic)
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
    pthread_cond_init(&ring.left, &monotonic)
    pthread_condattr_destroy(&monotonic)
    ring.slots = <Slot *>calloc(slots_count, sizeof(Slot))
    ring.workers = <Worker *>calloc(workers_count, sizeof(Worker))
    ring.reorder = <Slot **>calloc(slots_count, sizeof(Slot *))
    ring.free = queue_new(slots_count)
    ring.full = queue_new(slots_count)
    if ring.slots == NULL or ring.workers == NULL or ring.reorder == NULL or ring.free == NULL or ring.full == NULL:
        ring_delete(ring)
        return NULL
    ring.slots_count = slots_count
    for i in range(slots_count):
        pthread_mutex_init(&ring.slots[i].lock, NULL)
        pthread_cond_init(&ring.slots[i].laid_out, NULL)
        ring.slots[i].sample_keys = <fb_sample_key *>calloc(batch_size, sizeof(fb_sample_key))
        ring.slots[i].states = <char *>calloc(batch_size, 1)
        if ring.slots[i].sample_keys == NULL or ring.slots[i].states == NULL:
            ring_delete(ring)
            return NULL
        queue_push(ring.free, &ring.slots[i], FOREVER)
    return ring


cdef void ring_delete(Ring *ring) noexcept nogil:
    """Frees everything. No worker may be running, and nobody may hold a slot."""
    cdef int i
    for i in range(ring.slots_count):
        fb_memory_free(&ring.slots[i].memory)
        free(ring.slots[i].sample_keys)
        free(ring.slots[i].states)
        failures_free(&ring.slots[i].failures)
        fb_keys_free(&ring.slots[i].keys)
    queue_delete(ring.free)
    queue_delete(ring.full)
    free(ring.slots)
    free(ring.workers)
    free(ring.reorder)
    free(ring.last_failure)
    free(ring)


cdef int ring_start(Ring *ring, int count) noexcept nogil:
    """Starts the workers. 0, or an errno."""
    cdef char[32] name
    cdef int i
    cdef int problem = 0
    ring.started = now()
    for i in range(count):
        ring.workers[i].ring = ring
        ring.workers[i].chunk = 1
        ring.workers[i].sample_time = CHUNK_TIME
        ring.workers[i].since = now()
        ring.workers[i].index = -1
        ring.workers[i].lent.size = sizeof(fb_worker)
        ring.workers[i].lent.scratch = &ring.workers[i].scratch
        ring.workers[i].lent.decoders = ring.workers[i].decoders
        ring.workers[i].lent.stop = &ring.stop
        ring.workers[i].resized.stop = &ring.stop
        pthread_mutex_lock(&ring.leaving)
        ring.alive += 1
        pthread_mutex_unlock(&ring.leaving)
        snprintf(name, sizeof(name), "fastbatch-%d", i)  # at most 15 characters: 4096 threads
        problem = thread_start(&ring.workers[i].thread, work, &ring.workers[i], name)
        if problem:
            pthread_mutex_lock(&ring.leaving)
            ring.alive -= 1
            pthread_mutex_unlock(&ring.leaving)
            break
        ring.workers_count += 1
    return problem


cdef void ring_stop(Ring *ring) noexcept nogil:
    """Tells the workers to leave and wakes every waiting thread. Returns at once."""
    cdef int i
    pthread_mutex_lock(&ring.control)
    ring.closing = True
    if ring.stopped == 0:
        atomic_set64(&ring.stopped, now())
    pthread_mutex_unlock(&ring.control)
    atomic_set(&ring.stop, 1)
    queue_close(ring.free)
    queue_close(ring.full)
    for i in range(ring.slots_count):
        pthread_mutex_lock(&ring.slots[i].lock)  # not between another thread's check of `stop` and its wait
        pthread_mutex_unlock(&ring.slots[i].lock)
        pthread_cond_broadcast(&ring.slots[i].laid_out)


cdef bint ring_wait(Ring *ring, double seconds) noexcept nogil:
    """Waits up to `seconds` for all workers to leave. Returns whether they have."""
    cdef timespec deadline = deadline_after(seconds)
    cdef bint gone
    pthread_mutex_lock(&ring.leaving)
    while ring.alive and pthread_cond_timedwait(&ring.left, &ring.leaving, &deadline) == 0:
        pass
    gone = ring.alive == 0
    pthread_mutex_unlock(&ring.leaving)
    return gone


cdef bint ring_dismantle(Ring *ring) noexcept nogil:
    """Frees the memory of the workers and of the slots that nobody holds.

    The memory of the other slots is freed when they come back. True: all workers have left, so the ring and what they
    read may be freed too. False: some are still at work, perhaps in a system call. The last one to leave then frees
    that memory; call again.
    """
    cdef bint gone, ours
    cdef bint joining = False
    cdef int i
    pthread_mutex_lock(&ring.control)
    if not ring.dismantled:
        ring.dismantled = True
        for i in range(ring.slots_count):
            ring.slots[i].doomed = not ring.slots[i].leased
    pthread_mutex_unlock(&ring.control)
    pthread_mutex_lock(&ring.leaving)
    gone = ring.alive == 0
    ours = gone and not ring.left_behind and not ring.joined
    ring.left_behind |= not gone
    if gone and not ring.joined:
        ring.joined = joining = True
    pthread_mutex_unlock(&ring.leaving)
    if joining:
        for i in range(ring.workers_count):
            pthread_join(ring.workers[i].thread, NULL)
        if ours:
            give_back(ring)
    if gone:
        pthread_mutex_lock(&ring.leaving)
        ring.freed |= joining
        pthread_cond_broadcast(&ring.left)
        while not ring.freed:  # another thread is doing it right now
            pthread_cond_wait(&ring.left, &ring.leaving)
        pthread_mutex_unlock(&ring.leaving)
    return gone


cdef void give_back(Ring *ring) noexcept nogil:
    """Frees what no worker will touch any more. The source, which may own the codec, is still alive."""
    cdef int i
    for i in range(ring.slots_count):
        if ring.slots[i].doomed:
            slot_empty(&ring.slots[i])
    for i in range(ring.workers_count):
        worker_free(ring, &ring.workers[i])


cdef void leave(Ring *ring) noexcept nogil:
    """A worker's last step. The last worker of a ring that was left behind frees the ring's memory."""
    cdef bint last
    pthread_mutex_lock(&ring.leaving)
    last = ring.left_behind and ring.alive == 1
    if last:
        pthread_mutex_unlock(&ring.leaving)
        give_back(ring)
        pthread_mutex_lock(&ring.leaving)
    ring.alive -= 1
    pthread_cond_broadcast(&ring.left)
    pthread_mutex_unlock(&ring.leaving)


cdef void worker_free(Ring *ring, Worker *worker) noexcept nogil:
    """Frees what a worker keeps from sample to sample."""
    cdef int i
    for i in range(MAX_CHUNK):
        free(worker.record_buffers[i].data)
    free(worker.scratch.data)
    fb_arena_free(&worker.resized)
    for i in range(FB_MAX_FIELDS):
        if worker.decoders[i] != NULL:
            ring.codec.close(worker.decoders[i])


# The pixel pipeline for other extensions, which use the instruction set chosen here.

cdef int check_means(const fb_arithmetic *arithmetic, int64_t channels, int64_t height, int64_t width,
                     fb_error *error) noexcept nogil:
    return fb_check_means(arithmetic, channels, height, width, error)


cdef int check_dtype(const fb_transform *transform, fb_dtype dtype, fb_error *error) noexcept nogil:
    return fb_check_dtype(transform, dtype, error)


cdef int transform_shape(const fb_transform *transform, const fb_view *image, int64_t *shape,
                         fb_error *error) noexcept nogil:
    """The channels, height and width of the transformed image. 0, or -1 with *error."""
    cdef int ndim
    return fb_transform_shape(transform, FB_NORMALIZED, image, shape, &ndim, error)


cdef int transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t *draws, float *out,
                         fb_error *error) noexcept nogil:
    return fb_transform_apply(transform, image, draws, out, False, error)


cdef bint normalize_pixels(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part,
                           float *out, const int32_t *stop) noexcept nogil:
    return fb_pixels_normalize(arithmetic, geometry, part, out, False, stop)


cdef const char *kernel() noexcept nogil:
    """The instruction set that transforms use."""
    return fb_kernel_name()


cdef int choose_kernel(const char *name) noexcept nogil:
    """Uses this instruction set from now on, for tests and benchmarks; -1 if the processor lacks it.

    NULL: the best one.
    """
    return fb_kernel_choose(name)
