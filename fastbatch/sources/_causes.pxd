"""The exceptions of a source's workers, which wait until the errors of their samples are raised."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastbatch._threads cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
)

cdef enum:
    CAUSES = 64  # older ones are dropped

cdef struct Cause:
    uint64_t index
    uint64_t epoch
    uint32_t size
    char *bytes  # the pickled exception

cdef struct Causes:
    pthread_mutex_t lock  # a leaf
    Cause kept[CAUSES]
    int count


cdef inline void causes_init(Causes *causes) noexcept nogil:
    """Prepares what calloc() gave."""
    pthread_mutex_init(&causes.lock, NULL)


cdef inline void causes_free(Causes *causes, bint forked) noexcept nogil:
    """forked: in a child, where a thread that does not exist there may hold the lock."""
    cdef int i
    for i in range(causes.count):
        free(causes.kept[i].bytes)
    if not forked:
        pthread_mutex_destroy(&causes.lock)


cdef inline Cause remove_cause(Causes *causes, int number) noexcept nogil:
    """Removes one of them; the older ones come first. Called under the lock."""
    cdef Cause cause = causes.kept[number]
    cdef int i
    causes.count -= 1
    for i in range(number, causes.count):
        causes.kept[i] = causes.kept[i + 1]
    return cause


cdef inline void causes_add(Causes *causes, uint64_t index, uint64_t epoch, const char *bytes,
                            uint32_t size) noexcept nogil:
    """Keeps the pickled exception of a sample, in place of an earlier one of the same sample and epoch."""
    cdef Cause cause
    cdef int same = 0
    cause.index = index
    cause.epoch = epoch
    cause.size = size
    cause.bytes = <char *>calloc(1, size + 1)
    if cause.bytes == NULL:
        return  # the message has the reason
    memcpy(cause.bytes, bytes, size)
    pthread_mutex_lock(&causes.lock)
    while same < causes.count and (causes.kept[same].index != index or causes.kept[same].epoch != epoch):
        same += 1
    if same < causes.count:
        free(remove_cause(causes, same).bytes)
    elif causes.count == CAUSES:
        free(remove_cause(causes, 0).bytes)
    causes.kept[causes.count] = cause
    causes.count += 1
    pthread_mutex_unlock(&causes.lock)


cdef inline Cause causes_take(Causes *causes, uint64_t index, uint64_t epoch) noexcept nogil:
    """Removes the exception of a sample. Its bytes are the caller's to free; NULL: there is none.

    If several epochs have one, that of `epoch` counts; otherwise the newest.
    """
    cdef Cause cause
    cdef int found = -1
    cdef int i
    cause.bytes = NULL
    pthread_mutex_lock(&causes.lock)
    for i in range(causes.count):
        if causes.kept[i].index == index and (found < 0 or causes.kept[i].epoch == epoch):
            found = i
    if found >= 0:
        cause = remove_cause(causes, found)
    pthread_mutex_unlock(&causes.lock)
    return cause
