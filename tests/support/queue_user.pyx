# cython: language_level=3
"""What somebody else's extension does with the core's queue: every call, and threads that never need the GIL."""

from libc.stdlib cimport calloc, free

from fastbatch._core cimport (
    CLOSED, FOREVER, OK, TIMEOUT, Answer, Queue, queue_close, queue_closed, queue_delete, queue_new, queue_peek,
    queue_pop, queue_push, queue_size, queue_try_peek, queue_try_pop, queue_try_push
)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, void *attributes, void *(*body)(void *) noexcept nogil,
                       void *argument) noexcept
    int pthread_join(pthread_t thread, void **result) noexcept

ANSWERS = {OK: "OK", TIMEOUT: "TIMEOUT", CLOSED: "CLOSED"}


cdef class NativeQueue:
    """The calls, one by one; items are numbers above 0. Those that take an item return (answer, item or None)."""

    cdef Queue *queue

    def __cinit__(self, size_t limit):
        self.queue = queue_new(limit)
        if self.queue == NULL:
            raise MemoryError()

    def __dealloc__(self):
        queue_delete(self.queue)

    def push(self, size_t item, double timeout=FOREVER):
        cdef Answer answer
        with nogil:
            answer = queue_push(self.queue, <void *>item, timeout)
        return ANSWERS[answer]

    def try_push(self, size_t item):
        return ANSWERS[queue_try_push(self.queue, <void *>item)]

    def pop(self, double timeout=FOREVER):
        cdef void *item = NULL
        cdef Answer answer
        with nogil:
            answer = queue_pop(self.queue, &item, timeout)
        return ANSWERS[answer], <size_t>item or None

    def try_pop(self):
        cdef void *item = NULL
        cdef Answer answer = queue_try_pop(self.queue, &item)
        return ANSWERS[answer], <size_t>item or None

    def peek(self, double timeout=FOREVER):
        cdef void *item = NULL
        cdef Answer answer
        with nogil:
            answer = queue_peek(self.queue, &item, timeout)
        return ANSWERS[answer], <size_t>item or None

    def try_peek(self):
        cdef void *item = NULL
        cdef Answer answer = queue_try_peek(self.queue, &item)
        return ANSWERS[answer], <size_t>item or None

    def size(self):
        return queue_size(self.queue)

    def close(self):
        queue_close(self.queue)

    def closed(self):
        return bool(queue_closed(self.queue))


cdef struct Thread:
    pthread_t thread
    Queue *queue
    size_t first  # a producer's items: first, first + step, ... `count` of them
    size_t step
    size_t count
    size_t taken  # a consumer's
    size_t total
    size_t *latest  # by producer: a consumer sees each producer's items in order
    bint in_order


cdef void *produce(void *argument) noexcept nogil:
    cdef Thread *self = <Thread *>argument
    cdef size_t i
    for i in range(self.count):
        if queue_push(self.queue, <void *>(self.first + i * self.step), FOREVER) != OK:
            return NULL
    return NULL


cdef void *consume(void *argument) noexcept nogil:
    cdef Thread *self = <Thread *>argument
    cdef void *item = NULL
    cdef void *seen = NULL
    cdef size_t number, producer
    while True:
        if self.taken % 3 == 0:
            queue_peek(self.queue, &seen, 0.001)
        if queue_pop(self.queue, &item, FOREVER) != OK:
            return NULL
        number = <size_t>item
        producer = number % self.step
        if number <= self.latest[producer]:
            self.in_order = False
        self.latest[producer] = number
        self.taken += 1
        self.total += number


def hammer(size_t limit, int producers, int consumers, size_t count):
    """Native threads push `count` items each and pop them all: (how many, their sum, whether each's came in order)."""
    cdef Queue *queue = queue_new(limit)
    cdef Thread *threads = <Thread *>calloc(producers + consumers, sizeof(Thread))
    cdef int i
    with nogil:
        for i in range(producers + consumers):
            threads[i].queue = queue
            threads[i].first = i + producers
            threads[i].step = producers
            threads[i].count = count
            threads[i].latest = <size_t *>calloc(producers, sizeof(size_t))
            threads[i].in_order = True
            pthread_create(&threads[i].thread, NULL, produce if i < producers else consume, &threads[i])
        for i in range(producers):
            pthread_join(threads[i].thread, NULL)
        queue_close(queue)
        for i in range(producers, producers + consumers):
            pthread_join(threads[i].thread, NULL)
    result = (
        sum([threads[i].taken for i in range(producers + consumers)]),
        sum([threads[i].total for i in range(producers + consumers)]),
        all([threads[i].in_order for i in range(producers + consumers)]),
    )
    for i in range(producers + consumers):
        free(threads[i].latest)
    free(threads)
    queue_delete(queue)
    return result
