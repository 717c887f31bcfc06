"""The blocking queue, for other extensions.

`from fastbatch._core cimport Queue, queue_new, queue_push, ...`, compiled with `fastbatch.get_include()` among the
include directories.
"""

from fastbatch._threads cimport pthread_cond_t, pthread_mutex_t


# ---- the blocking queue: a FIFO of pointers for many producers and many consumers, none of whom needs the GIL ----

cdef enum Answer:
    OK = 0
    TIMEOUT = 1
    CLOSED = 2

cdef enum:
    FOREVER = -1  # as a timeout in seconds; 0 asks once, without waiting

cdef struct Queue:
    pthread_mutex_t lock  # a leaf: its holder does not block, take another lock or call Python
    pthread_cond_t readable
    pthread_cond_t writable
    void **items  # a circular buffer of `room` pointers; `size` are in use, from `first` on
    size_t room
    size_t limit  # maximum number of items; 0: unbounded
    size_t first
    size_t size
    bint closed

cdef Queue *queue_new(size_t limit) noexcept nogil
cdef void queue_delete(Queue *queue) noexcept nogil
cdef Answer queue_push(Queue *queue, void *item, double timeout) noexcept nogil
cdef Answer queue_try_push(Queue *queue, void *item) noexcept nogil
cdef Answer queue_pop(Queue *queue, void **item, double timeout) noexcept nogil
cdef Answer queue_try_pop(Queue *queue, void **item) noexcept nogil
cdef Answer queue_peek(Queue *queue, void **item, double timeout) noexcept nogil
cdef Answer queue_try_peek(Queue *queue, void **item) noexcept nogil
cdef size_t queue_size(Queue *queue) noexcept nogil
cdef void queue_close(Queue *queue) noexcept nogil
cdef bint queue_closed(Queue *queue) noexcept nogil


# ---- the process ----

cdef int process_number() noexcept nogil
