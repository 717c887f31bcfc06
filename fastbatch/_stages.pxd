"""What a worker is doing, and for how long it has been.

Workers call these functions several times for each sample, so each extension compiles its own copy.
"""

from libc.stdint cimport int64_t, uint64_t
from posix.time cimport CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from fastbatch._ring cimport Worker
from fastbatch._threads cimport atomic_set, atomic_set64, now
from fastbatch._trace cimport fb_times_add, fb_trace_add, fb_version_begin, fb_version_end

cdef enum Stage:  # what a worker is doing, for threads that wait for it
    STARTING, QUEUED, SPACE, LOCATE, READ, DECODE, FIRST, COLLATE, WRITE, STOPPED
    # Only in traces: of a slot, and of the consumer.
    BEGUN, FULL, WAITS, TAKES

cdef enum:
    CPU_PERIOD = 10000000  # nanoseconds between a worker's readings of its processor time

cdef const char *stage_name(int stage) noexcept nogil


cdef inline void enter(Worker *worker, Stage stage) noexcept nogil:
    """Sets the stage that the worker is in, and counts the time of the stage before.

    The time of a sample in a stage is one number, even if the worker enters the stage twice.
    """
    cdef int64_t time = now()
    cdef int64_t spent = time - worker.since
    cdef int former = worker.stage
    fb_version_begin(&worker.times_version)
    if former == READ or former == DECODE or former == COLLATE or former == WRITE:
        atomic_set64(&worker.spent[former], worker.spent[former] + spent)
    elif former != STARTING:
        fb_times_add(&worker.times[former], spent)
    if worker.sample_done:
        count_sample(worker)
    atomic_set(&worker.stage, stage)
    atomic_set64(&worker.since, time)
    fb_version_end(&worker.times_version)
    fb_trace_add(&worker.trace, time, stage, <uint64_t>worker.index)


cdef inline void count_sample(Worker *worker) noexcept nogil:
    """Counts the times of the sample that the worker has finished."""
    cdef int stage
    worker.sample_done = False
    for stage in range(READ, WRITE + 1):
        if worker.spent[stage]:
            fb_times_add(&worker.times[stage], worker.spent[stage])
            atomic_set64(&worker.spent[stage], 0)


cdef inline void read_cpu_time(Worker *worker) noexcept nogil:
    """Reads the processor time that the worker, and others for it, have used, now and then: this is a system call."""
    cdef timespec used
    if worker.since - worker.cpu_read < CPU_PERIOD:
        return
    worker.cpu_read = worker.since
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used)
    atomic_set64(&worker.cpu, <int64_t>used.tv_sec * 1000000000 + used.tv_nsec + worker.lent.cpu_elsewhere)
