"""forward() interrupted between any two bytecode instructions, as by a signal's handler.

No batch is lost, shown twice, or shown in part.
"""

import ctypes
import itertools
import os
import sys

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

import fastbatch.caffe
from databases import image_lmdb, images
from nets import caffes, ours, params, shown

pytestmark = pytest.mark.usefixtures("leaves_nothing")

libc = ctypes.CDLL(None)
PACKAGE = os.path.dirname(fastbatch.caffe.__file__) + os.sep
SHAPE = (3, 6, 5)


class Interrupt(BaseException):
    """What a handler raises."""


class Interrupted:
    """Within it, the nth instruction of the layers' Python code raises Interrupt. `came`: whether there are so many."""

    def __init__(self, n):
        self.left, self.came = n, False

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and not self.came:
            self.left -= 1
            if self.left < 0:
                self.came = True
                raise Interrupt
        return self.trace

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, kind, error, traceback):
        sys.settrace(None)
        self.error = error  # with its frames, as an interactive Python keeps it
        return kind is Interrupt


FORWARDS = 900  # more than instructions of a forward(), and as many undisturbed ones


def course(build, text, between, prepare):
    """What a net shows, forward() by forward()."""
    net = build(text)
    prepare(net)
    course = []
    for _ in range(FORWARDS):
        net.forward()
        course.append(shown(net))
        between()
    return course


def check(build, caffes_text, our_text, between=lambda: None, prepare=lambda net: None):
    """Interrupts one forward() at its first instruction, another at its second, and so on to the last.

    Either the tops show the batch that Caffe's own layer shows next, or all of them still show the previous one.

    between() is called between the forward()s that finish or have nothing left to do; prepare(net), before the first.
    """
    libc.srand(3)
    expected = course(build, caffes_text, between, prepare)
    libc.srand(3)
    net = build(our_text)
    prepare(net)
    at = -1
    ended = []

    def shows(number):
        """Whether the net shows this batch. (No two that follow each other are alike.)"""
        return all(np.array_equal(found, right) for found, right in zip(shown(net), expected[number]))

    for n in itertools.count():
        with Interrupted(n) as interrupted:
            net.forward()
        ended.append(interrupted)
        if shows(at + 1):
            at += 1
            between()
        assert at == -1 or shows(at), f"after instruction {n}"
        if not interrupted.came:
            break
        net.forward()
        at += 1
        assert shows(at), f"in the forward() after the one that was interrupted at instruction {n}"
        between()
    assert n > 50  # the instructions of a forward(): they were seen
    for later in range(at + 1, at + 20):  # as long as all tracebacks are held
        net.forward()
        assert shows(later)
        between()
    if hasattr(net.layers[0], "stats"):
        assert net.layers[0].stats()["held"] == 1


@pytest.mark.parametrize("zero_copy", ["true", "false"])
def test_data(build, tmp_path, zero_copy):
    param = params(image_lmdb(tmp_path / "db", 37, SHAPE)[0], 2, "crop_size: 4 mirror: true", more="prefetch: 1")
    check(lambda text: seeded(build, text), caffes(param), ours(param + f"zero_copy: {zero_copy}"))


def seeded(build, text):
    caffe.set_random_seed(5)
    return build(text)


@pytest.fixture
def pictures(tmp_path):
    cv2 = pytest.importorskip("cv2")
    for number, picture in enumerate(images(23, (20, 24, 3))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    return tmp_path


def layer(kind, is_ours, rest):
    python = (
        f'type: "Python" python_param {{ module: "fastbatch.caffe" layer: "{kind}" }}' if is_ours else f'type: "{kind}"'
    )
    return f'layer {{ name: "data" {python} top: "data" top: "label" {rest} }}\n'


def both(kind, rest):
    """The same layer, Caffe's and ours."""
    return layer(kind, False, rest), layer(kind, True, rest)


def test_image_data(build, pictures):
    (pictures / "list.txt").write_text("".join(f"{number}.png {number}\n" for number in range(23)))
    check(
        lambda text: seeded(build, text),
        *both(
            "ImageData",
            f"""
        image_data_param {{ source: "{pictures}/list.txt" root_folder: "{pictures}/" batch_size: 3 shuffle: true }}
        transform_param {{ crop_size: 9 }} data_param {{ prefetch: 1 }}""",
        ),
    )


def test_window_data(build, pictures):
    windows = "".join(
        f"# {number} {pictures}/{number}.png 3 20 24 2 1 0.9 1 2 {number % 9 + 5} 15 0 0.1 3 3 9 {number % 7 + 9}\n"
        for number in range(23)
    )
    (pictures / "windows.txt").write_text(windows)
    check(
        lambda text: seeded(build, text),
        *both(
            "WindowData",
            f"""
        window_data_param {{ source: "{pictures}/windows.txt" batch_size: 4 }}
        transform_param {{ crop_size: 9 mirror: true }}
        data_param {{ prefetch: 1 }}""",
        ),
    )


@pytest.mark.parametrize("draws_of_others", [False, True])
@pytest.mark.parametrize("thread_safe", [True, False])
def test_hdf5_data(build, tmp_path, monkeypatch, thread_safe, draws_of_others):
    h5py = pytest.importorskip("h5py")
    hdf5 = pytest.importorskip("fastbatch.sources._hdf5")
    monkeypatch.setattr(hdf5, "is_thread_safe", lambda: thread_safe)
    paths = [tmp_path / f"{number}.h5" for number in range(3)]
    for path, count in zip(paths, (9, 7, 8)):
        with h5py.File(path, "w") as file:
            file["data"] = np.random.RandomState(count).rand(count, 2, 3)
            file["label"] = 100.0 * count + np.arange(count)
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    param = f'hdf5_data_param {{ source: "{tmp_path}/list.txt" batch_size: 5 shuffle: true }}'
    caffes, ours = layer("HDF5Data", False, param), layer("HDF5Data", True, param + "data_param { prefetch: 3 }")
    check(build, caffes, ours, libc.rand if draws_of_others else lambda: None)


@pytest.mark.parametrize("read_only", [False, True])
def test_memory_data(build, read_only):
    data, labels = images(28, SHAPE, np.float32), np.arange(28, dtype=np.float32)

    def prepare(net):
        if net.layers[0].type == "MemoryData":
            net.set_input_arrays(data, labels)
        else:
            if read_only:
                data.flags.writeable = labels.flags.writeable = False
            fastbatch.caffe.set_input_arrays(net, data, labels)

    check(
        build,
        *both("MemoryData", "memory_data_param { batch_size: 4 channels: 3 height: 6 width: 5 }"),
        prepare=prepare,
    )


def test_arrays_that_were_shown_for_an_instant_are_not_freed(build):
    """Arrays are replaced after a forward() interrupted at any instruction: what the tops show stays alive."""
    net = build(layer("MemoryData", True, "memory_data_param { batch_size: 4 channels: 3 height: 6 width: 5 }"))
    for n in itertools.count():
        fastbatch.caffe.set_input_arrays(net, np.full((4, *SHAPE), n, np.float32), np.full(4, n, np.float32))
        with Interrupted(n) as interrupted:
            net.forward()
        fastbatch.caffe.set_input_arrays(net, np.full((4, *SHAPE), -1, np.float32), np.full(4, -1, np.float32))
        np.empty((4, *SHAPE), np.float32)[...] = 1e30  # would be where freed ones were
        values = {value for blob in net.blobs.values() for value in blob.data.ravel()} if n else {-1}
        assert values in ({n}, {-1}), n
        net.forward()
        assert {value for blob in net.blobs.values() for value in blob.data.ravel()} == {-1}
        if not interrupted.came:
            break
    assert n > 50
