"""Tops of a real net that show memory of ours, who can still read it, and Caffe's random stream."""

import gc

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

from fastbatch.caffe.runtime._blob import Top, random_draw
from nets import anonymous_kb


class Showing(caffe.Layer):
    """Its n-th forward() shows the n-th of the arrays that the test has put into `arrays`."""

    arrays = []
    zero_copy = True
    shape_first = None

    def setup(self, bottom, top):
        if self.shape_first:
            top[0].reshape(*self.shape_first)
        self.top = Top(top[0], zero_copy=self.zero_copy)
        self.calls = 0
        top[0].reshape(*self.arrays[0].shape)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        array = self.arrays[self.calls]
        self.calls += 1
        self.top.set(array.ctypes.data, array.shape)


DOUBLED = 'layer { name: "doubled" type: "Power" bottom: "data" top: "doubled" power_param { scale: 2 } }'
NEGATED = 'layer { name: "negated" type: "Power" bottom: "data" top: "negated" power_param { scale: -1 } }'


@pytest.fixture
def showing(build, monkeypatch):
    """showing(arrays, layers, **attributes of Showing): a net whose "data" shows the arrays, one in each forward()."""

    def showing(arrays, *layers, **attributes):
        for name, value in dict(attributes, arrays=arrays).items():
            monkeypatch.setattr(Showing, name, value)
        python = f'python_param {{ module: "{__name__}" layer: "Showing" }}'
        return build(f'layer {{ name: "data" type: "Python" top: "data" {python} }} ' + " ".join(layers))

    return showing


def arrays_of(*shapes):
    rng = np.random.RandomState(1)
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def test_zero_copy_shows_the_memory_itself(showing):
    arrays = arrays_of(*[(2, 3, 4, 5)] * 3)
    net = showing(arrays, DOUBLED)
    assert net.layers[0].top.zero_copy and net.layers[0].top.reason is None
    for array in arrays:
        net.forward()
        assert net.blobs["data"].data.ctypes.data == array.ctypes.data
        np.testing.assert_array_equal(net.blobs["doubled"].data, 2 * array)


@pytest.mark.parametrize("zero_copy", [True, False])
def test_any_shape_may_follow_any_other(showing, zero_copy):
    arrays = arrays_of((2, 3), (1,), (4, 3, 2, 2), (2,), (), (3, 1, 5), (3, 1, 5), (50, 50), (1, 1))
    net = showing(arrays, DOUBLED, NEGATED, zero_copy=zero_copy)
    assert net.layers[0].top.zero_copy is zero_copy
    for array in arrays:
        net.forward()
        for name, factor in ("data", 1), ("doubled", 2), ("negated", -1):
            assert net.blobs[name].data.shape == array.shape
            np.testing.assert_array_equal(net.blobs[name].data, factor * array)


def test_copies_where_zero_copy_is_switched_off(showing):
    arrays = arrays_of((2, 3), (2, 3))
    net = showing(arrays, zero_copy=False)
    assert net.layers[0].top.reason == "zero_copy is switched off"
    net.forward()
    assert net.blobs["data"].data.ctypes.data != arrays[0].ctypes.data
    shown = arrays[0].copy()
    arrays[0][:] = 0
    np.testing.assert_array_equal(net.blobs["data"].data, shown)
    assert net.layers[0].top.in_use is False


def test_copies_into_a_blob_that_had_a_shape_before(showing):
    arrays = arrays_of((2, 3), (2, 2))
    net = showing(arrays, shape_first=(4, 3))
    assert net.layers[0].top.reason == "the blob had a shape before"
    for array in arrays:
        net.forward()
        np.testing.assert_array_equal(net.blobs["data"].data, array)


class LooksLikeABlob:
    """An object with a Blob's methods, laid out in another way."""

    def __init__(self):
        self.data = np.zeros(0, np.float32)

    count = property(lambda self: self.data.size)
    shape = property(lambda self: self.data.shape)

    def reshape(self, *shape):
        self.data = np.zeros(shape, np.float32)


class WithoutWeakReferences(LooksLikeABlob):
    __slots__ = ()


@pytest.mark.parametrize("kind", [LooksLikeABlob, WithoutWeakReferences])
def test_copies_into_what_has_another_layout(kind):
    blob = kind()
    top = Top(blob)
    assert top.reason == "pycaffe's Blob is not laid out as expected"
    (array,) = arrays_of((3, 4))
    top.set(array.ctypes.data, (3, 4))
    np.testing.assert_array_equal(blob.data, array)


def test_the_trial_leaves_the_blob_with_memory_of_its_own(showing):
    first, second = showing(arrays_of((1,))), showing(arrays_of((1,)))
    for net, value in (first, 1), (second, 2):
        assert net.blobs["data"].data.tolist() == [0]
        net.blobs["data"].data[...] = value
    assert first.blobs["data"].data.tolist() == [1] and second.blobs["data"].data.tolist() == [2]


def test_a_users_reshape_does_not_last(showing):
    arrays = arrays_of((2, 3), (2, 3), (2, 3))
    net = showing(arrays, DOUBLED)
    net.forward()
    for shape in (3, 2), (40, 40):
        net.blobs["data"].reshape(*shape)
        net.forward()
    np.testing.assert_array_equal(net.blobs["doubled"].data, 2 * arrays[2])


def test_address_zero_is_refused(showing):
    net = showing(arrays_of((2, 3)))
    with pytest.raises(ValueError, match="address 0"):
        net.layers[0].top.set(0, (2, 3))


def test_in_use_while_the_net_lives_or_its_blob_is_kept(showing):
    net = showing(arrays_of((2, 3)), DOUBLED)
    top = net.layers[0].top
    assert top.in_use is False  # nothing shown
    net.forward()
    assert top.in_use is True
    blob = net.blobs["data"]
    del net
    gc.collect()
    assert top.in_use is True
    view = blob.data
    del blob
    assert top.in_use is True  # an array keeps its blob
    np.testing.assert_array_equal(view, Showing.arrays[0])
    del view
    assert top.in_use is False


def test_in_use_ends_with_the_net(showing):
    net = showing(arrays_of((2, 3), (4, 5)), DOUBLED, NEGATED)
    net.forward()
    net.forward()
    top = net.layers[0].top
    assert top.in_use is True
    del net
    gc.collect()
    assert top.in_use is False


@pytest.mark.parametrize("new_shape", [(2, 3), (7, 3)])
def test_in_use_through_a_split_that_did_not_run_again(showing, new_shape):
    """Caffe gives a blob new memory when its size changes; a Split layer's blob keeps the old memory until it runs."""
    arrays = arrays_of((2, 3), new_shape)
    net = showing(arrays, DOUBLED, NEGATED)
    net.forward()
    split = net.blobs["data_data_0_split_0"]
    assert split.data.ctypes.data == arrays[0].ctypes.data
    net.forward(end="data")
    top = net.layers[0].top
    del net
    gc.collect()
    assert top.in_use is True
    if new_shape != (2, 3):
        np.testing.assert_array_equal(split.data, arrays[0])
    del split
    assert top.in_use is False


def test_a_change_of_size_frees_what_caffe_has_replaced(showing):
    """60,000 changes between two sizes: what is held too long is seen."""
    arrays = arrays_of(*[(1, 2), (1, 3)] * 5)
    net = showing(arrays)
    layer = net.layers[0]

    def run(times):
        for _ in range(times):
            layer.calls = 0
            for _ in range(10):
                net.forward()

    run(300)
    before = anonymous_kb()
    run(6000)
    assert anonymous_kb() - before < 1024  # a SyncedMemory has 56 bytes, its count 24: 60,000 of them were 5 MB


def test_random_draws_are_caffes():
    caffe.set_random_seed(1701)
    assert [random_draw() for _ in range(3)] == [384112814, 2227967492, 495543390]
    caffe.set_random_seed(1701)
    assert random_draw() == 384112814


def test_random_draws_and_fillers_share_one_stream(build):
    filler = 'dummy_data_param { shape { dim: 4 } data_filler { type: "uniform" } }'

    def filled(draws):
        caffe.set_random_seed(7)
        for _ in range(draws):
            random_draw()
        net = build(f'layer {{ name: "filled" type: "DummyData" top: "filled" {filler} }}')
        net.forward()
        return net.blobs["filled"].data.tolist()

    assert filled(0) == filled(0) != filled(1) == filled(1)
