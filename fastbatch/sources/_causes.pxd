"""The exceptions of a source's workers, which wait until the errors of their samples are raised."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastbatch._threads cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
)

cdef enum:
    MOST_BYTES = 16777216  # of all exceptions that wait; beyond it, the oldest are dropped

cdef struct Cause:
    Cause *next
    uint64_t index
    uint64_t epoch
    uint32_t size
    char *bytes  # the pickled exception, in the memory behind this struct

cdef struct Causes:
    pthread_mutex_t lock  # a leaf
    Cause *first  # the oldest
    Cause *last
    size_t size


cdef inline void causes_init(Causes *causes) noexcept nogil:
    """Prepares what calloc() gave."""
    pthread_mutex_init(&causes.lock, NULL)


cdef inline void causes_free(Causes *causes, bint forked) noexcept nogil:
    """forked: in a child, where a thread that does not exist there may hold the lock."""
    while causes.first != NULL:
        free(remove_cause(causes, NULL))
    if not forked:
        pthread_mutex_destroy(&causes.lock)


cdef inline Cause *remove_cause(Causes *causes, Cause *before) noexcept nogil:
    """Removes the one behind another one, or the oldest. It is the caller's to free. Called under the lock."""
    cdef Cause *cause = causes.first if before == NULL else before.next
    if before == NULL:
        causes.first = cause.next
    else:
        before.next = cause.next
    if causes.last == cause:
        causes.last = before
    causes.size -= sizeof(Cause) + cause.size
    return cause


cdef inline void causes_add(Causes *causes, uint64_t index, uint64_t epoch, const char *bytes,
                            uint32_t size) noexcept nogil:
    """Keeps the pickled exception of a sample."""
    cdef Cause *cause = <Cause *>calloc(1, sizeof(Cause) + size)
    if cause == NULL:
        return  # the message has the reason
    cause.index = index
    cause.epoch = epoch
    cause.size = size
    cause.bytes = <char *>(cause + 1)
    memcpy(cause.bytes, bytes, size)
    pthread_mutex_lock(&causes.lock)
    if causes.last == NULL:
        causes.first = cause
    else:
        causes.last.next = cause
    causes.last = cause
    causes.size += sizeof(Cause) + size
    while causes.size > MOST_BYTES:
        free(remove_cause(causes, NULL))
    pthread_mutex_unlock(&causes.lock)


cdef inline Cause *causes_take(Causes *causes, uint64_t index, uint64_t epoch) noexcept nogil:
    """Removes the oldest exception of a sample. It is the caller's to free; NULL: there is none.

    If several epochs have one, that of `epoch` counts; otherwise the oldest.
    """
    cdef Cause *cause
    cdef Cause *before = NULL
    cdef Cause *found = NULL
    cdef Cause *before_found = NULL
    pthread_mutex_lock(&causes.lock)
    cause = causes.first
    while cause != NULL:
        if cause.index == index and (found == NULL or cause.epoch == epoch):
            found = cause
            before_found = before
            if cause.epoch == epoch:
                break
        before = cause
        cause = cause.next
    if found != NULL:
        remove_cause(causes, before_found)
    pthread_mutex_unlock(&causes.lock)
    return found


cdef inline void causes_forget(Causes *causes) noexcept nogil:
    """Drops all of them: nobody will ask."""
    pthread_mutex_lock(&causes.lock)
    while causes.first != NULL:
        free(remove_cause(causes, NULL))
    pthread_mutex_unlock(&causes.lock)
