# cython: language_level=3
"""The blocking queue, which every batch passes through, and the process, which may fork.

Nothing in this file needs the GIL, and nothing in it knows Python. `_ring.pyx` builds the ring of batches on it.

`Queue.lock` is a leaf: a thread that holds it does nothing that can block, call Python or take another lock.
"""

from libc.stdlib cimport calloc, free, malloc
from posix.time cimport CLOCK_MONOTONIC, timespec

from fastbatch._threads cimport (
    deadline_after, pthread_atfork, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init,
    pthread_cond_signal, pthread_cond_timedwait, pthread_cond_wait, pthread_condattr_destroy, pthread_condattr_init,
    pthread_condattr_setclock, pthread_condattr_t, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock
)


# ---- The blocking queue ----------------------------------------------------------------------------------------------

cdef Queue *queue_new(size_t limit) noexcept nogil:
    """An empty queue of at most `limit` items (0: unbounded), or NULL if memory runs out.

    A bounded queue never allocates again.
    """
    cdef Queue *queue = <Queue *>calloc(1, sizeof(Queue))
    cdef pthread_condattr_t monotonic
    if queue == NULL:
        return NULL
    queue.limit = limit
    queue.room = limit if limit else 16
    queue.items = <void **>calloc(queue.room, sizeof(void *))  # checks the product for overflow
    if queue.items == NULL:
        free(queue)
        return NULL
    pthread_mutex_init(&queue.lock, NULL)
    pthread_condattr_init(&monotonic)
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
    pthread_cond_init(&queue.readable, &monotonic)
    pthread_cond_init(&queue.writable, &monotonic)
    pthread_condattr_destroy(&monotonic)
    return queue


cdef void queue_delete(Queue *queue) noexcept nogil:
    """Frees the queue, not its items. No other thread may be in one of its functions."""
    if queue == NULL:
        return
    pthread_cond_destroy(&queue.readable)
    pthread_cond_destroy(&queue.writable)
    pthread_mutex_destroy(&queue.lock)
    free(queue.items)
    free(queue)


cdef bint queue_grow(Queue *queue) noexcept nogil:
    """Doubles the capacity of an unbounded queue. The caller holds the lock. False if memory runs out."""
    cdef size_t i
    cdef void **items = <void **>malloc(2 * queue.room * sizeof(void *))
    if items == NULL:
        return False
    for i in range(queue.size):
        items[i] = queue.items[(queue.first + i) % queue.room]
    free(queue.items)
    queue.items = items
    queue.first = 0
    queue.room *= 2
    return True


cdef Answer queue_push(Queue *queue, void *item, double timeout) noexcept nogil:
    """Appends an item, waiting up to `timeout` seconds for space (FOREVER: as long as it takes).

    OK, TIMEOUT (also when an unbounded queue finds no memory to grow), or CLOSED, which no push gets past.
    """
    cdef Answer answer = OK
    cdef timespec deadline
    cdef bint timed_out = timeout == 0
    if timeout > 0:
        deadline = deadline_after(timeout)
    pthread_mutex_lock(&queue.lock)
    while not queue.closed and queue.limit and queue.size == queue.limit and not timed_out:
        if timeout < 0:
            pthread_cond_wait(&queue.writable, &queue.lock)
        else:
            timed_out = pthread_cond_timedwait(&queue.writable, &queue.lock, &deadline) != 0
    if queue.closed:
        answer = CLOSED
    elif queue.size == queue.room and (queue.limit or not queue_grow(queue)):
        answer = TIMEOUT
    else:
        queue.items[(queue.first + queue.size) % queue.room] = item
        queue.size += 1
    pthread_mutex_unlock(&queue.lock)
    # Signals after unlocking, here and below. Otherwise the woken thread would run into the lock and sleep again.
    if answer == OK:
        pthread_cond_signal(&queue.readable)
    return answer


cdef Answer queue_take(Queue *queue, void **item, double timeout, bint remove) noexcept nogil:
    """The common part of pop and peek. A closed queue still gives its remaining items."""
    cdef Answer answer = OK
    cdef timespec deadline
    cdef bint timed_out = timeout == 0
    if timeout > 0:
        deadline = deadline_after(timeout)
    pthread_mutex_lock(&queue.lock)
    while not queue.closed and queue.size == 0 and not timed_out:
        if timeout < 0:
            pthread_cond_wait(&queue.readable, &queue.lock)
        else:
            timed_out = pthread_cond_timedwait(&queue.readable, &queue.lock, &deadline) != 0
    if queue.size:
        item[0] = queue.items[queue.first]
        if remove:
            queue.first = (queue.first + 1) % queue.room
            queue.size -= 1
    else:
        answer = CLOSED if queue.closed else TIMEOUT
    pthread_mutex_unlock(&queue.lock)
    if answer == OK:
        # After a peek the item is still there, so pass the wake-up on to another reader.
        pthread_cond_signal(&queue.writable if remove else &queue.readable)
    return answer


cdef Answer queue_try_push(Queue *queue, void *item) noexcept nogil:
    return queue_push(queue, item, 0)


cdef Answer queue_pop(Queue *queue, void **item, double timeout) noexcept nogil:
    """Takes the oldest item, waiting up to `timeout` seconds for one. OK, TIMEOUT, or CLOSED: closed and drained."""
    return queue_take(queue, item, timeout, True)


cdef Answer queue_try_pop(Queue *queue, void **item) noexcept nogil:
    return queue_take(queue, item, 0, True)


cdef Answer queue_peek(Queue *queue, void **item, double timeout) noexcept nogil:
    """Like pop, but leaves the item where it is."""
    return queue_take(queue, item, timeout, False)


cdef Answer queue_try_peek(Queue *queue, void **item) noexcept nogil:
    return queue_take(queue, item, 0, False)


cdef size_t queue_size(Queue *queue) noexcept nogil:
    cdef size_t size
    pthread_mutex_lock(&queue.lock)
    size = queue.size
    pthread_mutex_unlock(&queue.lock)
    return size


cdef void queue_close(Queue *queue) noexcept nogil:
    """Refuses every later push and wakes everyone who waits. What is in the queue can still be popped."""
    pthread_mutex_lock(&queue.lock)
    queue.closed = True
    pthread_cond_broadcast(&queue.readable)
    pthread_cond_broadcast(&queue.writable)
    pthread_mutex_unlock(&queue.lock)


cdef bint queue_closed(Queue *queue) noexcept nogil:
    cdef bint closed
    pthread_mutex_lock(&queue.lock)
    closed = queue.closed
    pthread_mutex_unlock(&queue.lock)
    return closed


# ---- The process -----------------------------------------------------------------------------------------------------

cdef int process = 1


cdef void note_fork() noexcept nogil:
    global process
    process += 1


cdef int process_number() noexcept nogil:
    """A number, never 0, that tells this process from the ones it was forked from.

    It identifies what a parent process made. A process id would not do: the first process of a PID namespace has id 1,
    and so may its parent.
    """
    return process


if pthread_atfork(NULL, NULL, note_fork) != 0:
    raise MemoryError("no memory to have forks of this process noted")
