# cython: language_level=3
"""`BlockingQueue`: the core's queue, for Python objects."""

import itertools
import queue
from types import GenericAlias

from fastbatch.errors import Closed, ForkedError

cimport cython
from cpython.exc cimport PyErr_CheckSignals

from libc.stdint cimport int64_t
from fastbatch._core cimport (
    CLOSED, OK, Answer, process_number, Queue, queue_close, queue_closed, queue_delete, queue_new, queue_peek,
    queue_pop, queue_push, queue_size
)
from fastbatch._threads cimport now
from fastbatch._waiting cimport PyThreadState, come_back, go_away

cdef double SLICE = 0.05  # seconds between a waiting thread's checks for signals


@cython.final
@cython.no_gc_clear  # __dealloc__ needs only the native queue, but the items must be freed before it
cdef class BlockingQueue:
    """A first-in, first-out queue of any objects that can be closed, for many producers and many consumers.

    Parameters
    ----------
    maxsize : int
        Maximum number of items; 0: unbounded.

    A blocked call releases the GIL, returns at once when the queue is closed, and handles signals within 100 ms, so
    Ctrl-C works. All timeouts are in seconds; None waits as long as it takes.

    Thread-safety: any thread may call any method at any time. A queue does not survive a fork: the child gets
    `ForkedError`.
    """

    cdef Queue *queue
    cdef dict items  # by ticket; the native queue holds tickets only, so that the garbage collector sees the objects
    cdef object tickets
    cdef int owner
    cdef readonly Py_ssize_t maxsize
    """Maximum number of items; 0: unbounded."""

    def __cinit__(self, *args, **kwargs):
        self.owner = process_number()
        self.items = {}
        self.tickets = itertools.count(1)

    def __init__(self, maxsize=0):
        if maxsize < 0:
            raise ValueError(f"maxsize must be 0 (unbounded) or more, not {maxsize}")
        if self.queue != NULL:
            raise RuntimeError("a BlockingQueue cannot be initialized twice")
        self.maxsize = maxsize
        self.queue = queue_new(maxsize)
        if self.queue == NULL:
            raise MemoryError(f"no memory for a queue of {maxsize} items")

    def __dealloc__(self):
        if process_number() == self.owner:  # in a child, a thread that does not exist there may hold the lock
            queue_delete(self.queue)

    cdef int check_usable(self) except -1:
        if self.queue == NULL:
            raise RuntimeError("BlockingQueue.__init__ was not called")
        if process_number() != self.owner:
            raise ForkedError("this queue was made before a fork, in another process: make it in the child")
        return 0

    def push(self, item, timeout=None):
        """Appends an item.

        Raises queue.Full if there is no space within `timeout`, Closed if the queue is closed before or during the
        wait, and MemoryError if an unbounded queue cannot grow.
        """
        cdef Answer answer
        cdef double left
        cdef int64_t end
        cdef size_t ticket
        cdef PyThreadState *state
        self.check_usable()
        end = deadline(timeout)
        ticket = next(self.tickets)
        self.items[ticket] = item
        try:
            while True:
                left = SLICE if timeout is None else min(SLICE, max((end - now()) * 1e-9, 0))
                state = go_away()
                answer = queue_push(self.queue, <void *>ticket, left)
                come_back(state)
                if answer == OK:
                    return
                if answer == CLOSED:
                    raise Closed("the queue is closed: nothing more can be pushed")
                if self.maxsize == 0:  # an unbounded queue has space at once, or no memory
                    raise MemoryError(f"no memory for more than the {queue_size(self.queue)} items of the queue")
                PyErr_CheckSignals()
                if timeout is not None and now() >= end:
                    raise queue.Full(f"no space among {self.maxsize} items within {timeout} s")
        except BaseException:
            del self.items[ticket]
            raise

    def try_push(self, item):
        """Appends an item if there is space now, and returns whether it did.

        Raises Closed if the queue is closed, and MemoryError if an unbounded queue cannot grow.
        """
        try:
            self.push(item, 0)
        except queue.Full:
            return False
        return True

    cdef object _take(self, timeout, bint remove):
        cdef Answer answer
        cdef double left
        cdef int64_t end
        cdef void *ticket = NULL
        cdef PyThreadState *state
        self.check_usable()
        end = deadline(timeout)
        while True:
            left = SLICE if timeout is None else min(SLICE, max((end - now()) * 1e-9, 0))
            state = go_away()
            if remove:
                answer = queue_pop(self.queue, &ticket, left)
            else:
                answer = queue_peek(self.queue, &ticket, left)
            come_back(state)
            if answer == OK:
                if remove:
                    return self.items.pop(<size_t>ticket)
                try:
                    return self.items[<size_t>ticket]
                except KeyError:
                    continue  # another thread popped it between the two steps
            if answer == CLOSED:
                raise Closed("the queue is closed, and nothing is left in it")
            PyErr_CheckSignals()
            if timeout is not None and now() >= end:
                raise queue.Empty(f"no item within {timeout} s")

    def pop(self, timeout=None):
        """Takes the oldest item.

        Raises queue.Empty if there is none within `timeout`, and Closed once the queue is closed and drained.
        """
        return self._take(timeout, True)

    def try_pop(self):
        """Takes the oldest item. Raises queue.Empty if there is none now, Closed if closed and drained."""
        return self._take(0, True)

    def peek(self, timeout=None):
        """The oldest item, which stays in the queue. Raises what `pop` raises."""
        return self._take(timeout, False)

    def try_peek(self):
        """The oldest item, which stays in the queue. Raises what `try_pop` raises."""
        return self._take(0, False)

    def __len__(self):
        """The current number of items."""
        self.check_usable()
        return queue_size(self.queue)

    def close(self):
        """Rejects every later push and wakes all waiting threads.

        The remaining items can still be popped. May be called twice.
        """
        self.check_usable()
        queue_close(self.queue)

    @property
    def closed(self):
        """Whether close() was called."""
        self.check_usable()
        return bool(queue_closed(self.queue))

    def __reduce__(self):
        raise TypeError("a BlockingQueue connects the threads of one process, and cannot be pickled or copied")

    @classmethod
    def __class_getitem__(cls, item):
        """`BlockingQueue[int]`: for type checkers, a queue of int."""
        return GenericAlias(cls, item)

    def __repr__(self):
        state = ", closed" if self.closed else ""
        return f"<fastbatch.BlockingQueue, {len(self)} of {self.maxsize or 'any number of'} items{state}>"


cdef int64_t deadline(timeout) except -1:
    """When the timeout ends, in nanoseconds of the monotonic clock; 0 without a timeout."""
    if timeout is None:
        return 0
    if not timeout >= 0:
        raise ValueError(f"timeout must be seconds, 0 or more, or None to wait as long as it takes; not {timeout!r}")
    return now() + <int64_t>(min(timeout, 1e8) * 1e9)
