"""Detects orphaned layers, whose net has been destroyed, and frees them.

Caffe never destroys a Python layer: its C++ half holds its Python half, which holds its C++ half. The `__del__` of a
layer never runs, so every net ever built would keep its threads and its batches. However, the net also holds a
reference to the Python half. It drops the reference when it is destroyed or when building it fails. A layer is
therefore orphaned if only its other half and the registry refer to it.

The last batch of a destroyed net may still be read: users may keep `net.blobs["data"]` for as long as they like. That
memory is freed when `Top.in_use` says that nobody can read it.

The registry requires the following of a layer. `close()` stops its threads, may be called twice, and leaves the last
batch readable. `_tops` is the list of its Tops, or empty. `_survives_fork` is True if the layer works in a forked
child, because it has neither threads nor locks. Everything else that it owns is freed with the last reference to it.
When an orphaned layer can be freed, all of its attributes are deleted.
"""

import atexit
import gc
import os
import sys
import threading
import time
import warnings
from functools import partial

from fastbatch.caffe.runtime._collection import Alone, after_collection, current_process

_CALLED_BY_CAFFE = ("setup", "reshape", "forward", "backward")
_PATIENCE = 5.0  # seconds that other threads may stay in a layer when the interpreter ends


def embedded():
    """True if another program embeds this Python, as the `caffe` tool does. Tracebacks and atexit are lost there."""
    return sys.argv in ([], [""]) and os.path.realpath("/proc/self/exe") != os.path.realpath(sys.executable)


class Registry:
    """The layers of this process. The only instance is `registry`.

    Thread-safety: every method may be called from any thread. sweep() may be called at any moment, because Python calls
    it after a garbage collection. If two sweeps coincide, the second does nothing.
    """

    def __init__(self):
        self.detects = True  # False: this Caffe's nets do not hold their layers as expected, so none counts as orphaned
        self._layers = []
        self._orphans = []  # closed, but their last batch may still be read
        self._left_alone = []  # never touched again: they belong to the parent process, or failed to close
        self._sweeping = Alone()
        self._process = current_process()
        self._call_references = None
        self._collection_callback = None

    def add(self, layer):
        """Register a layer. Must be the first call in setup(), in the very method that Caffe calls.

        Also closes and frees orphaned layers.
        """
        if self._call_references is None:
            self._begin()
        # References besides those of the call: its other half's and the net's.
        self._expect(2, sys.getrefcount(layer))
        self.sweep()
        self._layers.append(layer)

    def seen(self, layer):
        """Verify that the net of a layer holds it. Raises RuntimeError after a fork.

        Must be the first call in forward(), in the very method that Caffe calls.
        """
        # References besides those of the call: its other half's, the net's and the registry's. The comparison repeats
        # that of _expect() to save a call: this runs for every batch, with cold caches.
        if sys.getrefcount(layer) < self._call_references + 3:
            self._expect(3, sys.getrefcount(layer))
        if self._process != current_process():
            self._notice_fork()
        if self._left_alone and layer in self._left_alone:
            raise RuntimeError(
                "this net was built before the process forked, and its threads stayed behind: build it after the fork"
            )

    def sweep(self):
        """Close orphaned layers, and free those whose last batch nobody can read any more."""
        self._notice_fork()
        self._sweeping(self._sweep)

    def _sweep(self):
        self._close_orphans()
        self._orphans = [layer for layer in self._orphans if not _free(layer)]

    def close_all(self):
        """Close all layers, even of living nets, whose batches stay readable. Then raise the first error, if any."""
        self._notice_fork()
        first_error = None
        for layer in list(self._layers):
            try:
                layer.close()
            except Exception as error:
                first_error = first_error or error
        self.sweep()
        if first_error is not None:
            raise first_error

    def _close_orphans(self):
        index = 0
        while self.detects and index < len(self._layers):
            if _references(self._layers, index) > _REFERENCES_OF_LIST + 1:  # 1: that of its other half
                index += 1
                continue
            problem = _close(self._layers[index])
            if problem is None:
                _move(self._layers, index, self._orphans)
            else:
                _move(self._layers, index, self._left_alone)
                # A warning, because an exception would hit the net that is being built, or the garbage collector.
                what = f"the layer of a net that is gone could not be closed: {problem}"
                warnings.warn(what, RuntimeWarning, stacklevel=2)

    def _expect(self, references, found):
        if self.detects and found < self._call_references + references:
            self.detects = False
            what = (
                "this Caffe does not hold its Python layers as expected, so fastbatch cannot detect when a net is "
                "destroyed: call fastbatch.caffe.close_all() to stop the threads of nets that you don't need any more"
            )
            warnings.warn(what, RuntimeWarning, stacklevel=4)

    def _notice_fork(self):
        """In a forked child, leave the parent's layers alone: their threads are gone, and their locks may be held."""
        if self._process != current_process():
            self._process = current_process()
            self._left_alone += [layer for layer in self._layers + self._orphans if not _survives_fork(layer)]
            self._layers = list(filter(_survives_fork, self._layers))
            self._orphans = list(filter(_survives_fork, self._orphans))
            self._sweeping = Alone()

    def _begin(self):
        """Measure how many references a call adds, which depends on Python. Sweep after every garbage collection."""
        probe, recorder = _Probe(), _Recorder()
        partial(probe.forward, recorder, None)()  # called from C, as Caffe calls a layer
        self._call_references = recorder.references - 1  # without the variable `probe`
        self._collection_callback = partial(after_collection, self.sweep)
        gc.callbacks.append(self._collection_callback)
        atexit.register(self._at_exit)

    def _at_exit(self):
        gc.callbacks.remove(self._collection_callback)
        try:
            self.close_all()
        finally:
            self._wait_for_calls()

    def _wait_for_calls(self):
        """Wait until no other thread is in a layer. The layers are closed, so none of them waits for a batch any more.

        Up to Python 3.13, a daemon thread that runs Python code when the interpreter ends is ended there, by unwinding
        its stack. The C++ frames of Caffe, from which layers are called, do not survive that: the process aborts.
        """
        classes = {type(layer) for layer in self._layers + self._orphans}
        codes = {getattr(getattr(each, name, None), "__code__", None) for each in classes for name in _CALLED_BY_CAFFE}
        end = time.monotonic() + _PATIENCE
        while _runs_elsewhere(codes) and time.monotonic() < end:
            time.sleep(0.001)


class _Recorder:
    """Stands in for the registry in _begin()."""

    def seen(self, layer):
        self.references = sys.getrefcount(layer)


class _Probe:
    """Stands in for a layer in _begin(); it has no other half and no net."""

    def forward(self, recorder, _):
        recorder.seen(self)


def _runs_elsewhere(codes):
    """Whether another thread runs one of these code objects."""
    for thread, frame in sys._current_frames().items():
        while frame is not None and thread != threading.get_ident():
            if frame.f_code in codes:
                return True
            frame = frame.f_back
    return False


def _survives_fork(layer):
    return getattr(layer, "_survives_fork", False)


def _close(layer):
    """Close a layer. Returns its error, or None. Re-raises what a signal handler raised meanwhile."""
    try:
        layer.close()
    except Exception as error:
        try:
            layer.close()
        except Exception as again:
            if (type(again), str(again)) == (type(error), str(error)):
                return error  # it recurs, so it is the layer's own error
        raise  # a signal handler's; the next sweep closes the layer
    return None


def _move(layers, index, into):
    """Move a layer without a bytecode instruction in between, at which a signal handler could run."""
    into.extend(map(layers.pop, [index]))


def _free(layer):
    if any(top.in_use for top in getattr(layer, "_tops", ())):
        return False
    vars(layer).clear()
    return True


def _references(objects, index):
    """The number of references to objects[index], plus a constant that depends on the Python version."""
    return sys.getrefcount(objects[index])


_REFERENCES_OF_LIST = _references([object()], 0)

registry = Registry()
