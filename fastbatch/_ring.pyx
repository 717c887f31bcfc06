# cython: language_level=3
"""The heart of fastbatch: batches, filled by native threads.

Nothing in these files needs the GIL, and nothing in them knows Python. Read them in this order, each from top to
bottom, with the structures in `_ring.pxd` beside them:

1. `_slots.pyx`: the slots, which circulate between two blocking queues (`_core.pyx`), `free` and `full`.
2. `_sequencer.pyx`: one worker at a time takes the next sample, or several small ones, with their indices in a batch
   and their random draws.
3. `_workers.pyx`: a worker reads, decodes and transforms samples into the batch, and hands over the slot with its last
   sample. `_stages.pxd` counts what it does, and for how long.
4. This file: starting and stopping.

`_batches.pyx` is the consumer's side.

Locks. `Queue.lock`, `Ring.control`, `Slot.lock` and `Ring.leaving` are leaves: a thread that holds one does nothing
that can block, call Python or take another lock. `Ring.sequencer` is not a leaf: its holder may wait for a free slot
and may do the source's I/O. Only workers take it, with no other lock held, so a consumer never waits for it.
"""

from libc.stdint cimport uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from posix.time cimport CLOCK_MONOTONIC, timespec

from fastbatch._contract cimport FB_AT_ITS_OWN, fb_progress_set, fb_worker
from fastbatch._core cimport FOREVER, queue_close, queue_delete, queue_new, queue_push
from fastbatch._sequencer cimport CHUNK_TIME
from fastbatch._slots cimport slot_empty, slot_free, slot_init
from fastbatch._threads cimport (
    atomic_set, atomic_set64, deadline_after, now, pthread_cond_broadcast, pthread_cond_init, pthread_cond_timedwait,
    pthread_cond_wait, pthread_condattr_destroy, pthread_condattr_init, pthread_condattr_setclock, pthread_condattr_t,
    pthread_join, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, thread_start
)
from fastbatch._workers cimport work, worker_free


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
        if not slot_init(&ring.slots[i], batch_size):
            ring_delete(ring)
            return NULL
        queue_push(ring.free, &ring.slots[i], FOREVER)
    return ring


cdef void ring_delete(Ring *ring) noexcept nogil:
    """Frees everything. No worker may be running, and nobody may hold a slot."""
    cdef int i
    for i in range(ring.slots_count):
        slot_free(&ring.slots[i])
    queue_delete(ring.free)
    queue_delete(ring.full)
    free(ring.slots)
    free(ring.workers)
    free(ring.reorder)
    free(ring.last_failure)
    fb_cache_free(ring.cache)
    free(ring)


cdef void *run(void *argument) noexcept nogil:
    """The main function of a worker thread."""
    cdef Worker *worker = <Worker *>argument
    cdef Ring *ring = worker.ring
    work(ring, worker)
    leave(ring)
    return NULL


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
        ring.workers[i].lent.progress = &ring.workers[i].progress
        fb_progress_set(&ring.workers[i].progress, FB_AT_ITS_OWN, 0)
        ring.workers[i].prepared.stop = &ring.stop
        pthread_mutex_lock(&ring.leaving)
        ring.alive += 1
        pthread_mutex_unlock(&ring.leaving)
        snprintf(name, sizeof(name), "fastbatch-%d", i)  # at most 15 characters: 4096 threads
        problem = thread_start(&ring.workers[i].thread, run, &ring.workers[i], name)
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
    fb_cache_empty(ring.cache)
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
