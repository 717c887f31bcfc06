"""Which nets are dead, and what is freed then.

Caffe never destroys a Python layer: its C++ half holds its Python half, which holds its C++ half. No `__del__` of a
layer ever runs, and every net that was ever built would keep its threads and its batches. But the net holds a reference
to the Python half too, and drops it when it dies, also when building it fails. A layer to which only its other half and
our registry refer is therefore dead.

What a dead net showed last may still be read: users may keep `net.blobs["data"]` for as long as they like. That memory
stays until `Top.in_use` says that nobody can.

What the registry asks of a layer: `close()` stops its threads, may be called twice and leaves the last batch readable;
`_tops` is the list of its Tops, or empty; `_survives_fork` is True if it works in a forked child, because it has
neither threads nor locks; and whatever else it owns is freed with the last reference to it. When a dead
layer can be freed, all of its attributes are deleted.
"""

import atexit
import gc
import os
import sys
import warnings
from functools import partial

from fastbatch._batches import Alone, after_collection, current_process


def embedded():
    """True if this Python runs inside another program, as in the `caffe` tool, where tracebacks and atexit are lost."""
    return sys.argv in ([], [""]) and os.path.realpath("/proc/self/exe") != os.path.realpath(sys.executable)


class Registry:
    """The layers of this process. There is one, `registry`.

    Thread-safety: every method may be called from any thread, and sweep() at any moment, for it is called when Python
    has collected garbage. Of two sweeps at once, the second does nothing.
    """

    def __init__(self):
        self.reaps = True  # False: on this Caffe a net doesn't hold its layers as we know it, so none is taken for dead
        self._layers = []
        self._dead = []  # closed, but what they showed last may still be read
        self._left_alone = []  # never touched again: made by the process that we were forked from, or failed to close
        self._sweeping = Alone()
        self._process = current_process()
        self._call_references = None
        self._collection_callback = None

    def add(self, layer):
        """To be called in setup(), first of all, and in the very method that Caffe calls.

        Closes and frees the layers of nets that have died, and watches over this one from now on.
        """
        if self._call_references is None:
            self._begin()
        # Besides those of the call: its other half's and the net's.
        self._expect(2, sys.getrefcount(layer))
        self.sweep()
        self._layers.append(layer)

    def seen(self, layer):
        """To be called in forward(), first of all, and in the very method that Caffe calls. RuntimeError after a fork.

        Makes sure that the net of a living layer holds it.
        """
        # Besides those of the call: its other half's, the net's and the registry's. (One comparison more than _expect()
        # needs, but no call: this is done for every batch, with cold caches.)
        if sys.getrefcount(layer) < self._call_references + 3:
            self._expect(3, sys.getrefcount(layer))
        if self._process != current_process():
            self._notice_fork()
        if self._left_alone and layer in self._left_alone:
            raise RuntimeError(
                "this net was built before the process forked, and its threads stayed behind: build it after the fork"
            )

    def sweep(self):
        """Close the layers whose nets are dead, and free those whose last batch nobody can read any more."""
        self._notice_fork()
        self._sweeping(self._sweep)

    def _sweep(self):
        self._close_dead()
        self._dead = [layer for layer in self._dead if not _free(layer)]

    def close_all(self):
        """Close all layers, also of living nets; what these show stays readable. Raises the first error, at the end."""
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

    def _close_dead(self):
        index = 0
        while self.reaps and index < len(self._layers):
            if _references(self._layers, index) > _REFERENCES_OF_LIST + 1:  # the one is its other half's
                index += 1
                continue
            problem = _close(self._layers[index])
            if problem is None:
                _move(self._layers, index, self._dead)
            else:
                _move(self._layers, index, self._left_alone)
                # No exception: neither the net that is being built nor the garbage collector is to blame.
                what = f"the layer of a net that is gone could not be closed: {problem}"
                warnings.warn(what, RuntimeWarning, stacklevel=2)

    def _expect(self, references, found):
        if self.reaps and found < self._call_references + references:
            self.reaps = False
            what = (
                "this Caffe does not hold its Python layers as expected, so it can't be seen when a net is gone: "
                "call fastbatch.caffe.close_all() to stop the threads of nets that you don't need any more"
            )
            warnings.warn(what, RuntimeWarning, stacklevel=4)

    def _notice_fork(self):
        """In a forked child, leave alone what the parent made: its threads are not here, its locks may be held."""
        if self._process != current_process():
            self._process = current_process()
            self._left_alone += [layer for layer in self._layers + self._dead if not _survives_fork(layer)]
            self._layers = list(filter(_survives_fork, self._layers))
            self._dead = list(filter(_survives_fork, self._dead))
            self._sweeping = Alone()

    def _begin(self):
        """Learn how many references a call adds, which depends on Python; sweep after every garbage collection."""
        probe, recorder = _Probe(), _Recorder()
        partial(probe.forward, recorder, None)()  # from C, as Caffe calls a layer
        self._call_references = recorder.references - 1  # without the variable `probe`
        self._collection_callback = partial(after_collection, self.sweep)
        gc.callbacks.append(self._collection_callback)
        atexit.register(self._at_exit)

    def _at_exit(self):
        gc.callbacks.remove(self._collection_callback)
        self.close_all()


class _Recorder:
    """Is called as a registry is."""

    def seen(self, layer):
        self.references = sys.getrefcount(layer)


class _Probe:
    """Is called as a layer is, with neither another half nor a net."""

    def forward(self, recorder, _):
        recorder.seen(self)


def _survives_fork(layer):
    return getattr(layer, "_survives_fork", False)


def _close(layer):
    """Close a layer. Returns what is wrong with it, or None; what a signal's handler raises meanwhile is raised."""
    try:
        layer.close()
    except Exception as error:
        try:
            layer.close()
        except Exception as again:
            if (type(again), str(again)) == (type(error), str(error)):
                return error  # the layer's own, as it comes each time
        raise  # the next sweep closes it
    return None


def _move(layers, index, into):
    """Without an instruction of Python's in between, where a signal's handler could come."""
    into.extend(map(layers.pop, [index]))


def _free(layer):
    if any(top.in_use for top in getattr(layer, "_tops", ())):
        return False
    vars(layer).clear()
    return True


def _references(objects, index):
    """The references to objects[index], and some: how many more depends on Python, but is the same each time."""
    return sys.getrefcount(objects[index])


_REFERENCES_OF_LIST = _references([object()], 0)

registry = Registry()
