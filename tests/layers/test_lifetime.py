"""When a net dies, its layers are closed, and freed once nobody can read what they showed last."""

import atexit
import gc
import mmap
import os
import shutil
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

from fastbatch.caffe.runtime import lifetime
from fastbatch.caffe.runtime._blob import Top
from fastbatch.caffe.runtime.lifetime import Registry, registry
from nets import anonymous_kb, thread_count


class Slot:
    """A page-aligned float32 array in its own mapping, so that reading it after it is freed is a segmentation fault."""

    live = 0

    def __init__(self, size):
        self.array = np.frombuffer(mmap.mmap(-1, 4 * size), np.float32)
        Slot.live += 1

    def __del__(self):
        Slot.live -= 1


class Slots(caffe.Layer):
    """Shows data and labels full of 1, then 2, 3, ..., from two slots in turn. Its thread waits for close()."""

    _tops = ()
    shape = (8, 3, 32, 32)
    fails_in_close = False

    def setup(self, bottom, top):
        registry.add(self)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.stop.wait, name="slots", daemon=True)
        self.thread.start()
        self.slots = [Slot(int(np.prod(self.shape))) for _ in range(2)]
        self.labels = [Slot(self.shape[0]) for _ in range(2)]
        self.shown = 0
        self._tops = [Top(top[i]) for i in range(len(top))]  # a RawBlobVec can be indexed, not iterated over
        top[0].reshape(*self.shape)
        if len(top) > 1:
            top[1].reshape(self.shape[0])
        if self.param_str == "fail":
            raise ValueError("fails in setup, with its thread running")

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        registry.seen(self)
        self.shown += 1
        for top, slots, shape in zip(self._tops, (self.slots, self.labels), (self.shape, self.shape[:1])):
            array = slots[self.shown % 2].array
            array[:] = self.shown
            top.set(array.ctypes.data, shape)

    def backward(self, top, propagate_down, bottom):
        pass

    def close(self):
        if self.fails_in_close:
            raise RuntimeError("a thread would not stop")
        self.stop.set()
        self.thread.join()


def python_layer(name="data", tops=("data",), param_str=""):
    tops = " ".join(f'top: "{top}"' for top in tops)
    python = f'python_param {{ module: "{__name__}" layer: "Slots" param_str: "{param_str}" }}'
    return f'layer {{ name: "{name}" type: "Python" {tops} {python} }} '


NET = python_layer() + 'layer { name: "doubled" type: "Power" bottom: "data" top: "doubled" power_param { scale: 2 } } '
TRAINABLE = (
    python_layer(tops=("data", "label"))
    + """
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
            inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
)


@pytest.fixture(autouse=True)
def nothing_stays():
    gc.collect()
    assert (Slot.live, running()) == (0, 0)
    yield
    gc.collect()
    assert (Slot.live, running()) == (0, 0)
    assert registry.detects


def running():
    return sum(thread.name == "slots" for thread in threading.enumerate())


def test_a_destroyed_net_is_noticed_by_the_garbage_collector(build):
    net = build(NET)
    net.forward()
    gc.collect()
    assert (Slot.live, running()) == (4, 1)
    del net
    gc.collect()
    assert (Slot.live, running()) == (0, 0)


def test_a_destroyed_net_is_noticed_when_the_next_is_built(build):
    gc.disable()
    try:
        net = build(NET)
        net.forward()
        for _ in range(5):
            net = build(NET)  # dies when the next is there
            net.forward()
            assert (Slot.live, running()) == (8, 2)
    finally:
        gc.enable()


def test_a_net_that_never_ran(build):
    net = build(NET)
    assert running() == 1
    del net
    gc.collect()
    assert running() == 0


def test_a_living_net_is_left_alone(build):
    net = build(NET)
    for number in range(1, 20):
        net.forward()
        gc.collect()
        assert net.blobs["doubled"].data.min() == net.blobs["doubled"].data.max() == 2 * number
    assert running() == 1


def test_a_layer_that_is_kept_is_left_alone(build):
    net = build(NET)
    layer = net.layers[0]
    del net
    gc.collect()
    assert running() == 1 and layer.thread.is_alive()
    del layer
    gc.collect()
    assert running() == 0


def test_a_kept_blob_still_shows_the_last_batch(build):
    net = build(NET)
    for _ in range(3):
        net.forward()
    blob = net.blobs["data"]
    del net
    gc.collect()
    assert (Slot.live, running()) == (4, 0)
    for _ in range(20):  # others come and go meanwhile
        build(NET).forward()
    gc.collect()
    assert Slot.live == 4
    assert blob.data.shape == Slots.shape and blob.data.min() == blob.data.max() == 3
    del blob
    gc.collect()
    assert Slot.live == 0


def test_a_net_whose_building_fails_in_another_layer(build):
    for _ in range(3):
        with pytest.raises(ValueError, match="fails in setup"):
            build(NET + python_layer("fails", ["other"], "fail"))
        assert running() > 0
        gc.collect()
        assert (Slot.live, running()) == (0, 0)


def test_several_layers_in_a_net(build):
    net = build("".join(python_layer(f"data{i}", [f"data{i}", f"label{i}"]) for i in range(3)))
    net.forward()
    layers = list(net.layers)
    layers[1].close()
    gc.collect()
    assert running() == 2
    del layers
    blob = net.blobs["label2"]
    del net
    gc.collect()
    assert (Slot.live, running()) == (4, 0)
    assert blob.data.tolist() == [1] * 8
    del blob


def test_a_solver_with_its_train_and_test_nets(tmp_path):
    (tmp_path / "net.prototxt").write_text(TRAINABLE)
    (tmp_path / "solver.prototxt").write_text(f"""
        train_net: "{tmp_path}/net.prototxt" test_net: "{tmp_path}/net.prototxt" test_iter: 2 test_interval: 3
        base_lr: 0.001 lr_policy: "fixed" max_iter: 10 snapshot_after_train: false display: 0
    """)
    for _ in range(3):
        solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
        assert running() == 2
        solver.step(7)
        assert solver.net.blobs["label"].data.tolist() == [7] * 8
        assert solver.test_nets[0].blobs["label"].data.tolist() == [6] * 8  # before iterations 0, 3 and 6
        test_net = solver.test_nets[0]
        del solver
        gc.collect()
        assert running() == 1
        test_net.forward()
        assert test_net.blobs["label"].data.tolist() == [7] * 8
        del test_net
        gc.collect()
        assert (Slot.live, running()) == (0, 0)


def test_300_nets_leave_no_thread_and_no_memory(build):
    kept = []

    def build_and_drop(nets):
        for number in range(nets):
            net = build(TRAINABLE)
            for _ in range(1 + number % 3):
                net.forward()
            kept.append((net.blobs["data"], 1 + number % 3))
            if len(kept) > 3:  # some blobs always outlive their nets
                blob, last = kept.pop(0)
                assert blob.data.min() == blob.data.max() == last

    build_and_drop(30)
    before = anonymous_kb(), thread_count()
    build_and_drop(300)
    assert Slot.live <= 4 * 5
    assert thread_count() <= before[1] + 1
    # What a net leaves for ever is its layer, empty, with its half in C++: a few KB. One set of slots has 192 KB.
    assert anonymous_kb() - before[0] < 300 * 10
    kept.clear()


def test_garbage_collected_in_other_threads(build):
    """Sweeps at any moment, from several threads at once, while nets come, run and go."""
    stop = threading.Event()

    def collect():
        while not stop.wait(0.001):
            gc.collect()

    threads = [threading.Thread(target=collect) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            net = build(TRAINABLE)
            net.forward()
            net.forward()
            assert net.blobs["data"].data.min() == 2
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_close_all_leaves_what_living_nets_show(build):
    net = build(NET)
    net.forward()
    registry.close_all()
    registry.close_all()
    assert (Slot.live, running()) == (4, 0)
    assert net.blobs["data"].data.min() == net.blobs["data"].data.max() == 1
    del net


def test_close_all_closes_the_others_when_one_fails(build, monkeypatch):
    nets = [build(NET) for _ in range(3)]
    nets[0].layers[0].fails_in_close = True
    with pytest.raises(RuntimeError, match="would not stop"):
        registry.close_all()
    assert running() == 1
    nets[0].layers[0].fails_in_close = False


def test_an_interrupt_of_the_garbage_collector_is_not_lost(build, monkeypatch):
    net = build(NET)
    with monkeypatch.context() as patch:

        def interrupted(layer):
            patch.undo()
            raise KeyboardInterrupt

        patch.setattr(Slots, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            del net
            gc.collect()
            for _ in range(1000):
                pass
    assert running() == 1
    gc.collect()
    assert running() == 0


def test_what_fails_to_close_is_not_freed(build):
    net = build(NET)
    layer = net.layers[0]
    stop, thread, layer.fails_in_close = layer.stop, layer.thread, True
    del net, layer
    with pytest.warns(RuntimeWarning, match="a net that is gone could not be closed: a thread would not stop"):
        registry.sweep()
    assert (Slot.live, running()) == (4, 1)
    stop.set()
    thread.join()
    vars(registry._left_alone.pop()).clear()


def test_nothing_counts_as_orphaned_where_nets_do_not_hold_their_layers():
    class WithoutANet:
        """An object that is called like a layer, with one reference for each name bound to it."""

        closed = False

        def setup(self, bottom, top):
            careful.add(self)

        def forward(self, bottom, top):
            careful.seen(self)

        def close(self):
            self.closed = True

    careful = Registry()
    try:
        layer = another_name = WithoutANet()
        partial(layer.setup, None, None)()
        partial(layer.forward, None, None)()
        assert careful.detects  # two names, as a living layer has its other half and its net
        del another_name
        with pytest.warns(RuntimeWarning, match="does not hold its Python layers as expected"):
            partial(layer.forward, None, None)()
        assert not careful.detects
        kept = [layer]
        del layer
        gc.collect()
        assert careful._layers == kept and not kept[0].closed
    finally:
        gc.callbacks.remove(careful._collection_callback)
        atexit.unregister(careful._at_exit)


def test_a_forked_child_touches_nothing(build):
    net = build(NET)
    net.forward()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            layer = net.layers[0]
            with pytest.raises(RuntimeError, match="built before the process forked"):
                net.forward()
            registry.close_all()
            assert not layer.stop.is_set()
            del net, layer
            gc.collect()
            assert Slot.live == 4
            own = build(NET)  # its own nets work as everywhere
            own.forward()
            assert own.blobs["data"].data.min() == 1
            assert (Slot.live, running()) == (8, 1)
            del own
            gc.collect()
            assert (Slot.live, running()) == (4, 0)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    net.forward()
    assert net.blobs["data"].data.min() == 2


def run(command, folder):
    """Run a command in that folder, with our modules, the tests' and the folder's; returns (status, stdout, stderr)."""
    path = os.pathsep.join([str(folder), os.path.dirname(__file__), *filter(None, sys.path)])
    environment = dict(os.environ, GLOG_minloglevel="2", PYTHONPATH=path)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_exit_with_a_living_net_is_silent(tmp_path):
    (tmp_path / "net.prototxt").write_text(NET.replace(__name__, "test_lifetime"))
    code = """
import caffe, threading
net = caffe.Net("net.prototxt", caffe.TRAIN)
net.forward()
print(threading.active_count())
"""
    assert run([sys.executable, "-c", code], tmp_path) == (0, "2\n", "")


@pytest.mark.parametrize("method", ["setup", "forward"])
def test_exit_while_another_thread_is_in_a_layer(tmp_path, method):
    (tmp_path / "busy.py").write_text(f"""
import threading
import time

import test_lifetime

begun = threading.Event()

class Slots(test_lifetime.Slots):
    def {method}(self, *blobs):
        super().{method}(*blobs)
        begun.set()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
""")
    (tmp_path / "net.prototxt").write_text(NET.replace(__name__, "busy"))
    code = """
import busy, caffe, threading
threading.Thread(target=lambda: caffe.Net("net.prototxt", caffe.TRAIN).forward(), daemon=True).start()
busy.begun.wait()
"""
    assert run([sys.executable, "-c", code], tmp_path) == (0, "", "")


def test_embedded_in_python_itself():
    assert lifetime.embedded() is False


@pytest.mark.skipif(not shutil.which("caffe"), reason="the caffe tool is not installed")
def test_embedded_in_the_caffe_tool(tmp_path):
    (tmp_path / "tells.py").write_text("""
import caffe
from fastbatch.caffe.runtime import lifetime

class Tells(caffe.Layer):
    def setup(self, bottom, top):
        print("embedded:", lifetime.embedded(), flush=True)

    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        pass

    def backward(self, top, propagate_down, bottom):
        pass
""")
    python = 'python_param { module: "tells" layer: "Tells" }'
    (tmp_path / "net.prototxt").write_text(f'layer {{ name: "data" type: "Python" top: "data" {python} }}')
    status, output, errors = run(["caffe", "time", "-model", "net.prototxt", "-iterations", "1"], tmp_path)
    assert (status, output) == (0, "embedded: True\n"), errors
