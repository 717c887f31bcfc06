# cython: language_level=3
"""`Positions`: an order on its own, without a loader."""

from fastbatch.errors import SourceError

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint64_t
from libc.string cimport memset

from fastbatch._contract cimport fb_error
from fastbatch.orders._order cimport FB_ORDER_CAPSULE, fb_order, fb_pick


cdef tuple answer(const fb_pick *pick):
    return pick.index, pick.epoch, (pick.draws[0], pick.draws[1], pick.draws[2], pick.draws[3])


@cython.final
cdef class Positions:
    """What an order returns for each position of a source of `count` samples, without a `Loader`.

    Parameters
    ----------
    order
        An object with `__fastbatch_order__(count)`, such as `Linear` or `Permuted`.
    count : int or None
        Samples in the source; None if not known yet, for orders that allow it.

    Thread-safety: none; one thread at a time.
    """

    cdef object capsule
    cdef const fb_order *order

    def __init__(self, order, count):
        self.capsule = order.__fastbatch_order__(count)
        self.order = <const fb_order *>PyCapsule_GetPointer(self.capsule, FB_ORDER_CAPSULE)

    def __len__(self):
        """Return the number of positions per epoch; 0 for an order whose batches continue across the ends of epochs."""
        return self.order.count

    def at(self, uint64_t position):
        """Return (index, epoch, draws) of a position: the sample, its epoch, and four 32-bit random numbers.

        Raises SourceError if the order cannot determine them.
        """
        cdef fb_pick pick
        cdef fb_error error
        cdef int code
        memset(&pick, 0, sizeof(pick))
        memset(&error, 0, sizeof(error))
        with nogil:
            code = self.order.at(self.order.self, position, &pick, &error)
            if code == 0 and self.order.draw != NULL:
                self.order.draw(self.order.self, &pick)
        if code != 0:
            raise SourceError(error.text.decode("utf-8", "replace"))
        return answer(&pick)

    def pure_at(self, uint64_t position):
        """Return what `at` returns, and leave the state as it is: how workers ask in parallel.

        None if the order draws from a stream.
        """
        cdef fb_pick pick
        if self.order.pure_at == NULL:
            return None
        memset(&pick, 0, sizeof(pick))
        with nogil:
            self.order.pure_at(self.order.self, position, &pick)
            if self.order.draw != NULL:
                self.order.draw(self.order.self, &pick)
        return answer(&pick)

    def save(self):
        """Return the order's state, as bytes of a fixed length. `load` continues from it."""
        state = PyBytes_FromStringAndSize(NULL, self.order.state_size)
        self.order.save(self.order.self, PyBytes_AS_STRING(state))
        return state

    def load(self, bytes state not None):
        """Restore a state that `save` returned. Returns the next position.

        Raises ValueError for a state of another order, or of one with other parameters; this one then stays unchanged.
        """
        cdef fb_error error
        cdef uint64_t next = 0
        cdef const char *bytes = state
        cdef int code
        if <size_t>len(state) != self.order.state_size:
            raise ValueError(f"a state of this order has {self.order.state_size} bytes, and this one has {len(state)}")
        memset(&error, 0, sizeof(error))
        with nogil:
            code = self.order.load(self.order.self, bytes, &next, &error)
        if code != 0:
            raise ValueError(error.text.decode("utf-8", "replace"))
        return next
