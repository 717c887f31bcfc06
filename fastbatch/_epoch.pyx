# cython: language_level=3
"""`Epoch`: the iterator that a `for` loop over a `Loader` uses."""

import sys

from fastbatch.errors import Closed, DataTimeout

cimport cython
from libc.stdint cimport uint64_t

from fastbatch._batches cimport BatchRing

cdef extern from *:
    """
    #define code_of_frame(frame) ((PyObject *)PyFrame_GetCode(frame))
    """
    void *PyEval_GetFrame() noexcept  # borrowed
    object code_of_frame(void *frame)


cdef str remedy(BatchRing ring):
    """What to do about a timeout."""
    text = "If a batch may take longer, give the loader a longer timeout="
    if ring.processes:
        text += "; PythonSource(..., timeout=) ends and replaces a worker process that takes too long for a sample"
    return text


@cython.final
@cython.auto_pickle(False)
cdef class Epoch:
    """The iterator over one epoch's batches.

    It outlives errors: after a `SampleError`, next() gives the following batch.

    It keeps no count. Only the ring knows how far the epoch has come, so an interrupt cannot leave two different
    answers. It is not a Python class, for two reasons: an exception that a signal handler raises in a Python `__del__`
    is lost, and a traceback that somebody keeps would hold it through the frames of its methods.
    """

    def __init__(self, loader, BatchRing ring not None, uint64_t number):
        self.loader = loader
        self.ring = ring
        self.number = number
        self.restored = ring.restored

    cdef bint _current(self) noexcept:
        """Whether it may touch the ring, which has not been restored since."""
        return self.loader is not None and self.restored == self.ring.restored

    @property
    def open(self):
        """Whether batches remain: False after the last one, after close(), and once its loop was left."""
        return self._current() and not self.superseded and self.ring.epoch == self.number

    @property
    def over(self):
        """Whether next() has said that there are no more batches, or close() was called.

        The body of a loop is still in the epoch.
        """
        return self.loader is None

    @property
    def running(self):
        """Whether batches remain and the function that asked for the latest one still runs.

        False if that function got an error instead of a batch.
        """
        return self.open and not self.raised and self.code is not None and is_running(<size_t>self.caller, self.code)

    def supersede(self):
        """Another iterator takes over. If batches remain, next() raises RuntimeError from now on."""
        self.superseded = self.superseded or self.open

    def __iter__(self):
        return self

    def __reduce__(self):
        raise TypeError("an iterator over the batches of a Loader cannot be pickled or copied: state_dict() of the "
                        "loader says where it is")

    def __next__(self):
        if self.superseded:
            raise RuntimeError("the rest of this epoch was given up when a later iter() or `for` of the same loader "
                               "began the next one: a loader has one loop at a time; make a second Loader for two at "
                               "once (sources can be shared)")
        while True:
            if self.loader is None:
                raise StopIteration
            if not self._current():
                raise RuntimeError("this iterator is from before load_state_dict(), after which the loader is "
                                   "elsewhere: begin another `for`")
            if self.ring.epoch != self.number:
                if self.ring.taken_epoch == self.number:  # otherwise the consumer is in a later one already
                    self.ring._pass_epoch()
                self.close()
                raise StopIteration
            self.caller = PyEval_GetFrame()
            self.code = code_of_frame(self.caller) if self.caller != NULL else None
            self.raised = True
            try:
                batch = self.ring.next(self.loader._timeout)
            except DataTimeout as waiting:
                raise DataTimeout(f"{waiting}. {remedy(self.ring)}") from None
            self.raised = False
            if batch is not None:
                deliver = self.loader._deliver
                return batch if deliver is None else deliver(batch)

    def close(self):
        """Ends this epoch and discards its remaining batches. May be called twice."""
        if self.loader is not None:
            try:
                if self._current():
                    self.ring.end_epoch(self.number)
            except Closed:
                pass  # with the loader
            self.superseded = False
            self.loader = None

    def __del__(self):
        # Without the help of an exception: at the end of the interpreter, the names of their classes may be gone.
        if self.ring is not None and self.ring.usable():
            self.close()


def is_running(size_t frame, code):
    """Whether a thread of this process is executing this frame now.

    Only the frame's address, which is its id, and its code are known. Keeping the frame would keep its variables alive,
    including batches.
    """
    for top in sys._current_frames().values():
        while top is not None:
            if <size_t><void *>top == frame and top.f_code is code:
                return True
            top = top.f_back
    return False
