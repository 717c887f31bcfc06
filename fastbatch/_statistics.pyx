# cython: language_level=3
"""What a ring has counted, and what its threads are doing: read without stopping them.

The caller has checked that this is the process that made the ring. In a child, a thread that does not exist there may
hold a lock.
"""

from fastbatch.stats import WAYS, StageTimes

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastbatch._cache cimport cache_counters
from fastbatch._contract cimport FB_AT_ITS_OWN, FB_FOR_ANOTHER, FB_STARTING
from fastbatch._core cimport queue_size
from fastbatch._failures cimport failure_copy
from fastbatch._ring cimport Worker
from fastbatch._stages cimport COLLATE, DECODE, LOCATE, QUEUED, READ, WRITE, stage_name
from fastbatch._threads cimport atomic_get, atomic_get64, now, pthread_mutex_lock, pthread_mutex_unlock
from fastbatch._trace cimport (
    FB_BUCKETS, FB_EVENTS, FB_NOTED, FB_STAGES, fb_event, fb_note_get, fb_trace, fb_trace_copy, fb_version_get,
    fb_version_kept
)

cdef enum:
    MAX_TRIES = 1000  # to read a worker's times between two of its steps


cdef Failure *last_failure(Ring *ring) noexcept:
    """A copy of the latest failure, which the caller frees. NULL if there is none, or no memory for it."""
    cdef Failure *failure = NULL
    pthread_mutex_lock(&ring.control)
    if ring.last_failure != NULL:
        failure = failure_copy(ring.last_failure)
    pthread_mutex_unlock(&ring.control)
    return failure


cdef dict counters_of(Ring *ring):
    """What the ring has counted, under the names of `Stats`."""
    cdef int64_t since = atomic_get64(&ring.space_wait_since)
    cdef int64_t waits_since = atomic_get64(&ring.data_wait_since)
    cdef int64_t stopped = atomic_get64(&ring.stopped)
    cdef int i
    return {
        "ready": queue_size(ring.full) + ring.reorder_count,
        "held": atomic_get(&ring.leased),
        "slots": ring.slots_count,
        "threads": ring.workers_count,
        "samples": sum([atomic_get64(&ring.workers[i].samples) for i in range(ring.workers_count)]),
        "errors": atomic_get64(&ring.failures),
        "last_error": None,
        "elapsed": ((stopped if stopped else now()) - ring.started) * 1e-9,
        "batches": atomic_get64(&ring.batches),
        "bytes": atomic_get64(&ring.bytes),
        "images": {
            name: sum([atomic_get64(&ring.workers[i].images[way]) for i in range(ring.workers_count)])
            for way, name in enumerate(WAYS)},
        "cpu": sum([atomic_get64(&ring.workers[i].cpu) for i in range(ring.workers_count)]) * 1e-9,
        "stages": stages_of(ring),
        **cache_counters(ring),
        "waited_for_data": (atomic_get64(&ring.data_wait) + (now() - waits_since if waits_since else 0)) * 1e-9,
        "waited_for_space": (atomic_get64(&ring.space_wait) + (now() - since if since else 0)) * 1e-9,
    }


cdef dict stages_of(Ring *ring):
    """The time that workers have spent in each stage, as a dict of StageTimes."""
    cdef int64_t[FB_STAGES] totals
    cdef uint64_t[FB_BUCKETS] counts
    cdef int stage, bucket, i
    stages = {}
    memset(totals, 0, sizeof(totals))
    for i in range(ring.workers_count):
        add_times(&ring.workers[i], atomic_get64(&ring.stopped), totals)
    for stage in range(QUEUED, WRITE + 1):
        memset(counts, 0, sizeof(counts))
        for i in range(ring.workers_count):
            for bucket in range(FB_BUCKETS):
                counts[bucket] += <uint32_t>atomic_get(
                    <const int32_t *>&ring.workers[i].times[stage].counts[bucket])
        stages[stage_name(stage).decode()] = StageTimes(
            totals[stage] * 1e-9, tuple([counts[bucket] for bucket in range(FB_BUCKETS)]))
    return stages


cdef void add_times(Worker *worker, int64_t stopped, int64_t *totals) noexcept nogil:
    """Adds the worker's nanoseconds in each stage, with the stage at hand: a long wait does not wait for its end.

    stopped: when the ring was; 0: not yet.
    """
    cdef int64_t[FB_STAGES] times
    cdef int64_t since
    cdef uint32_t version
    cdef int stage, _tries
    for _tries in range(MAX_TRIES):
        version = fb_version_get(&worker.times_version)
        for stage in range(FB_STAGES):
            times[stage] = atomic_get64(&worker.times[stage].total) + atomic_get64(&worker.spent[stage])
        stage = atomic_get(&worker.stage)
        since = atomic_get64(&worker.since)
        if fb_version_kept(&worker.times_version, version):
            break
    times[stage] += max(<int64_t>0, (stopped if stopped else now()) - since)
    for stage in range(FB_STAGES):
        totals[stage] += times[stage]


cdef list activity_of(Ring *ring):
    """One sentence per worker about what it is doing, for error messages."""
    cdef Worker *worker
    cdef int i, stage
    cdef int64_t index, since
    cdef size_t size
    cdef char[FB_NOTED] key
    sentences = []
    for i in range(ring.workers_count):
        worker = &ring.workers[i]
        stage = atomic_get(&worker.stage)
        since = atomic_get64(&worker.since)
        sample = ""
        if stage in (LOCATE, READ, DECODE, COLLATE, WRITE):
            index = atomic_get64(&worker.progress.index) if stage in (READ, WRITE) else FB_AT_ITS_OWN
            since = max(since, atomic_get64(&worker.progress.since))
            sample = f" sample {index if index >= 0 else atomic_get64(&worker.index)}"
            size = fb_note_get(&worker.note, key) if stage != LOCATE and index < 0 else 0
            if size:
                shown = key[:min(size, <size_t>FB_NOTED)].decode("utf-8", "backslashreplace")
                sample += f" (key '{'...' if size > <size_t>FB_NOTED else ''}{shown}')"
            if index == FB_STARTING:
                sample += ", whose worker is still starting,"
            if index == FB_FOR_ANOTHER:
                sample += ", which waits for a worker,"
        seconds = (now() - since) * 1e-9
        sentences.append(f"thread fastbatch-{i}: {stage_name(stage).decode()}{sample} for {seconds:.3f} s")
    return sentences


cdef list traces_of(Ring *ring):
    """The latest events of each worker, and last those of the consumer.

    Returns a list of lists of (seconds, what began, number): of a sample; of a slot and a batch; or 0.
    """
    cdef fb_event *events = <fb_event *>malloc(FB_EVENTS * sizeof(fb_event))
    cdef fb_trace *trace
    cdef int i, k, count
    if events == NULL:
        raise MemoryError()
    traces = []
    try:
        for i in range(ring.workers_count + 1):
            trace = &ring.trace if i == ring.workers_count else &ring.workers[i].trace
            count = fb_trace_copy(trace, events)
            traces.append([
                ((events[k].time - ring.started) * 1e-9, stage_name(events[k].subject & 255).decode(),
                 events[k].subject >> 8) for k in range(count)])
    finally:
        free(events)
    return traces
