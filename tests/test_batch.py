"""Batch: a lease on memory, through NumPy, the buffer protocol and DLPack."""

import copy
import ctypes
import gc
import pickle
import weakref
from collections.abc import Mapping

import numpy as np
import pytest

from databases import image_lmdb
from fastbatch import Batch, BlockingQueue, LMDBSource, Loader, _batch
from fastbatch._contract import DTYPES
from planned import PATIENCE, planned_loader

COUNT = 6


def numbers(dtype, shape):
    bits = np.random.RandomState(2).randint(0, 256, np.dtype(dtype).itemsize * int(np.prod(shape))).astype(np.uint8)
    return (bits & 1 if np.dtype(dtype) == bool else bits).view(dtype).reshape(shape)


@pytest.fixture
def loader():
    """Batches of two samples, from a ring of three batches; data and label count up."""
    arrays = {"data": np.arange(COUNT * 6, dtype=np.float32).reshape(COUNT, 2, 3), "label": np.arange(COUNT)}
    with Loader(arrays, batch_size=2, prefetch=2, timeout=PATIENCE) as made:
        yield made


@pytest.fixture
def batch(loader):
    return next(iter(loader))


# ---- what is in it


def test_arrays_by_name_and_as_attributes(batch):
    assert batch.names == ("data", "label")
    assert batch["data"] is batch.data and batch["label"] is batch.label
    assert batch.data.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert batch.label.tolist() == [0, 1]
    assert (batch.epoch, batch.number, len(batch), batch.sample_keys) == (0, 0, 2, [0, 1])
    assert "data" in batch and "label" in batch and "weight" not in batch
    assert repr(batch) == "<fastbatch.Batch 0 of epoch 0: data float32 (2, 2, 3), label int64 (2,)>"


def test_a_mapping_of_its_arrays(batch):
    assert isinstance(batch, Mapping)
    assert list(batch) == list(batch.keys()) == ["data", "label"]
    for arrays in (
        dict(batch),
        dict(batch.items()),
        (lambda **arrays: arrays)(**batch),
        dict(zip(batch, batch.values())),
    ):
        assert list(arrays) == ["data", "label"] and arrays["data"] is batch.data and arrays["label"] is batch.label
    assert batch.get("data") is batch.data and batch.get("weight") is None and batch.get("weight", 3) == 3
    assert (len(batch.keys()), len(batch.values()), len(batch.items()), len(batch)) == (2, 2, 2, 2)
    assert {"data", "label", "sample_keys", "release"} <= set(dir(batch))


def test_arrays_in_the_order_of_their_names(loader, batch):
    data, label = batch.values()
    assert data is batch.data and label is batch.label
    batch.release()
    assert [label.tolist() for _, label in map(Batch.values, loader)] == [[0, 1], [2, 3], [4, 5]]
    for arrays in batch.values, batch.items, lambda: dict(batch):
        with pytest.raises(ValueError, match="released"):
            arrays()
    assert list(batch) == ["data", "label"]


def test_types_are_numpys_own():
    """NumPy has two types of integers of 64 bits, equal and yet not the same."""
    types = [
        np.uint8,
        np.int32,
        np.int64,
        np.float32,
        np.float64,
        np.int8,
        np.int16,
        np.uint16,
        np.uint32,
        np.uint64,
        np.float16,
        np.bool_,
    ]
    assert [dtype.type for dtype in DTYPES] == types
    for dtype in types:
        other = {"l": "q", "L": "Q"}.get(np.dtype(dtype).char, dtype)
        for given in np.dtype(dtype), np.dtype(other):
            with Loader({"data": np.zeros(2, given), "label": np.zeros(2, np.int8)}, batch_size=2) as loader:
                batch = next(iter(loader))
                assert type(batch.data[0]) is dtype and isinstance(batch.label[0], np.int64)
                assert np.asarray(memoryview(batch)).dtype.type is dtype


def test_a_name_that_it_does_not_have(batch):
    with pytest.raises(KeyError, match="the batch has no 'weight'; it has data, label"):
        batch["weight"]
    with pytest.raises(AttributeError, match="the batch has no attribute or array 'weight'"):
        batch.weight
    assert not hasattr(batch, "weight")


def test_shapes_by_name(loader, batch):
    assert batch.shapes == {"data": (2, 2, 3), "label": (2,)}


def test_names_that_are_methods_are_found_by_name():
    with Loader({"keys": np.arange(3), "release": np.arange(3)}, batch_size=3) as loader:
        batch = next(iter(loader))
        assert batch["keys"].tolist() == batch["release"].tolist() == [0, 1, 2]
        assert batch.sample_keys == [0, 1, 2]
        batch.release()


def test_arrays_are_contiguous_aligned_and_writable(batch):
    for name in batch.names:
        array = batch[name]
        assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
        assert array.ctypes.data % 64 == 0
        assert not array.flags.owndata
    batch.data[:] = -1
    assert (batch.data == -1).all() and batch.label.tolist() == [0, 1]


def test_address_and_shape_for_those_who_pass_it_to_c(batch):
    assert [batch.shape_of(0), batch.shape_of(1)] == [(2, 2, 3), (2,)]
    assert [batch.address(0), batch.address(1)] == [batch.data.ctypes.data, batch.label.ctypes.data]
    assert (ctypes.c_float * 12).from_address(batch.address(0))[:] == list(range(12))
    for number in (-1, 2):
        with pytest.raises(IndexError, match="the batch has 2 arrays"):
            batch.address(number)
        with pytest.raises(IndexError, match="the batch has 2 arrays"):
            batch.shape_of(number)


def test_the_last_batch_is_smaller(loader):
    with Loader(np.arange(10), batch_size=4, timeout=PATIENCE) as loader:
        sizes = [
            (len(batch), batch.data.shape, batch.shape_of(0), len(batch.sample_keys), memoryview(batch).nbytes)
            for batch in loader
        ]
    assert sizes == [(4, (4,), (4,), 4, 32)] * 2 + [(2, (2,), (2,), 2, 16)]


def test_keys_of_a_database(tmp_path):
    path, _ = image_lmdb(tmp_path / "db", 5)
    with LMDBSource(path) as source, Loader(source, batch_size=5) as loader:
        batch = next(iter(loader))
        assert batch.sample_keys == [b"00000000", b"00000001", b"00000002", b"00000003", b"00000004"]
        assert batch.sample_keys is batch.sample_keys


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_belongs_to_a_loader_cannot_be_pickled_or_copied(loader, batch, copied):
    with pytest.raises(TypeError, match="a Batch is memory of its loader, .* array.copy"):
        copied(batch)
    with pytest.raises(TypeError, match="an iterator over the batches of a Loader cannot be pickled or copied"):
        copied(iter(loader))
    with pytest.raises(TypeError, match="a Loader has threads of its own and cannot be pickled or copied"):
        copied(loader)
    with pytest.raises(TypeError, match="a BlockingQueue connects the threads of one process"):
        copied(BlockingQueue(1))


def test_batches_cannot_be_made():
    with pytest.raises(TypeError, match="batches come from a Loader; they cannot be made"):
        Batch()
    empty = Batch.__new__(Batch)
    for use in (lambda: empty["data"], lambda: empty.sample_keys, lambda: memoryview(empty), lambda: empty.address(0)):
        with pytest.raises(ValueError, match="released"):
            use()
    assert repr(empty) == "<fastbatch.Batch, released>"
    assert (list(empty), list(empty.keys()), empty.shapes, "data" in empty, len(empty)) == ([], [], {}, False, 0)


def test_a_field_without_a_batch_has_no_buffer():
    with pytest.raises((TypeError, BufferError)):
        memoryview(_batch.Field())


# ---- letting go of it


def free_again(loader):
    return loader.stats().held == 0


def test_release_lets_go_at_once(loader, batch):
    batch.release()
    assert free_again(loader)
    for use in (
        lambda: batch["data"],
        lambda: batch.data,
        lambda: batch.sample_keys,
        lambda: memoryview(batch),
        lambda: batch.shape_of(0),
    ):
        with pytest.raises(ValueError, match="this batch was released: its memory may hold other samples by now"):
            use()
    assert (len(batch), batch.epoch, batch.number, batch.names) == (2, 0, 0, ("data", "label"))
    assert repr(batch) == "<fastbatch.Batch, released>"
    batch.release()


def test_keys_that_were_asked_for_outlive_release(batch):
    keys = batch.sample_keys
    batch.release()
    assert batch.sample_keys is keys


def test_release_leaves_arrays_that_were_taken_alone(loader):
    epoch = iter(loader)
    batch = next(epoch)
    array = batch.data
    batch.release()
    assert loader.stats().held == 1
    assert next(epoch).data[0, 0, 0] == 12
    assert next(epoch).data[0, 0, 0] == 24
    assert array[0, 0, 0] == 0
    del array
    assert free_again(loader)


VIEWS = {
    "array": lambda batch: batch.data,
    "label": lambda batch: batch.label,
    "slice": lambda batch: batch.data[1:, ::-1],
    "reshaped": lambda batch: batch.data.reshape(-1).view(np.int32),
    "memoryview": memoryview,
    "memoryview of a memoryview": lambda batch: memoryview(batch).cast("B")[3:],
    "ctypes": lambda batch: (ctypes.c_char * 8).from_buffer(batch.data),
}


@pytest.mark.parametrize("view", list(VIEWS))
def test_any_view_keeps_the_memory(loader, view):
    epoch = iter(loader)
    kept = VIEWS[view](next(epoch))
    before = memoryview(kept).tobytes()
    gc.collect()
    assert loader.stats().held == 1
    for _ in range(2):  # the others go round meanwhile
        for batch in epoch:
            batch.release()
        epoch = iter(loader)
    assert memoryview(kept).tobytes() == before
    del kept
    assert free_again(loader)


def test_the_slot_is_not_overwritten_under_a_view_and_is_after_it():
    with Loader(np.arange(100), prefetch=1, timeout=PATIENCE) as loader:
        epoch = iter(loader)
        kept = next(epoch).data
        address = kept.ctypes.data
        others = {next(epoch).data.ctypes.data for _ in range(20)}
        assert kept.tolist() == [0] and address not in others
        del kept
        assert address in {next(epoch).data.ctypes.data for _ in range(4)}


def test_a_batch_in_a_cycle_is_collected(loader):
    epoch = iter(loader)

    def make():
        batch = next(epoch)
        cycle = {"batch": batch, "array": batch.data}
        cycle["me"] = cycle
        return weakref.ref(batch.data)

    array = make()
    gc.collect()
    assert array() is None
    assert free_again(loader)


def test_views_after_close_keep_their_values_and_free_their_memory():
    pictures = np.arange(4 * 3000, dtype=np.float64).reshape(4, 3000)
    loader = Loader({"data": pictures, "label": np.arange(4)}, batch_size=2, timeout=PATIENCE)
    epoch = iter(loader)
    first, second = next(epoch), next(epoch)
    view = second.data[1, ::7]
    loader.close()
    assert first.data.tobytes() == pictures[:2].tobytes()
    assert first.label.tolist() == [0, 1]  # an array that was never taken before
    assert first.sample_keys == [0, 1]
    assert memoryview(first).tolist() == pictures[:2].tolist()
    assert view.tobytes() == pictures[3, ::7].tobytes()
    assert loader.stats().held == 2
    del first, second, view
    assert free_again(loader)


def test_a_failed_batch_holds_nothing():
    with planned_loader(".r" * 20, prefetch=1) as (_, loader):
        epoch = iter(loader)
        for index in range(0, 40, 2):
            assert next(epoch).sample_keys == [index]
            with pytest.raises(ValueError):
                next(epoch)
        assert free_again(loader)


# ---- the buffer protocol


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (2, 1, 3)], ids=str)
def test_buffer_of_every_type(dtype, shape):
    array = numbers(dtype, (COUNT, *shape))
    with Loader(array, batch_size=COUNT) as loader:
        batch = next(iter(loader))
        view = memoryview(batch)
        assert (view.shape, view.strides, view.itemsize) == (array.shape, array.strides, array.itemsize)
        assert view.c_contiguous and not view.readonly
        assert np.dtype(view.format) == dtype
        assert view.nbytes == array.nbytes
        assert view.tobytes() == array.tobytes() == bytes(batch)
        assert np.asarray(view).ctypes.data == batch.address(0)


def test_a_buffer_can_be_written_to(batch):
    memoryview(batch)[0, 1, 2] = 99
    assert batch.data[0].tolist() == [[0, 1, 2], [3, 4, 99]]


def test_a_memoryview_of_a_batch_keeps_the_memory_and_not_the_batch(loader, batch):
    view = memoryview(batch)
    batch.release()
    assert view.tolist()[0] == [[0, 1, 2], [3, 4, 5]]
    assert loader.stats().held == 1
    view.release()
    assert free_again(loader)


class PyBuffer(ctypes.Structure):
    """CPython's Py_buffer."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


SIMPLE, WRITABLE, FORMAT, ND, STRIDES, C_CONTIGUOUS, F_CONTIGUOUS = 0, 1, 4, 8, 0x18, 0x38, 0x58


def get_buffer(exporter, flags):
    buffer = PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(exporter), ctypes.byref(buffer), flags)
    return buffer


@pytest.mark.parametrize("flags", [SIMPLE, WRITABLE, ND, STRIDES, C_CONTIGUOUS, STRIDES | FORMAT])
def test_a_buffer_has_what_was_asked_for(loader, batch, flags):
    """https://docs.python.org/3/c-api/buffer.html: fields that were not asked for are NULL."""
    buffer = get_buffer(batch, flags)
    try:
        assert (buffer.buf, buffer.len, buffer.itemsize, buffer.readonly) == (batch.address(0), 48, 4, 0)
        assert bool(buffer.shape) == bool(flags & ND)
        assert bool(buffer.strides) == (flags & STRIDES == STRIDES)
        assert buffer.format == (b"f" if flags & FORMAT else None)
        if flags & ND:
            assert buffer.shape[: buffer.ndim] == [2, 2, 3]
        if flags & STRIDES == STRIDES:
            assert buffer.strides[: buffer.ndim] == [24, 12, 4]
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    batch.release()
    assert free_again(loader)


def test_a_buffer_in_fortran_order_cannot_be_had(loader, batch):
    with pytest.raises(BufferError, match="C order"):
        get_buffer(batch, F_CONTIGUOUS)
    batch.release()
    assert free_again(loader)


# ---- DLPack

needs_dlpack = pytest.mark.skipif(not hasattr(np, "from_dlpack"), reason=f"NumPy {np.__version__} has no from_dlpack")


@needs_dlpack
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != bool], ids=str)  # noqa: E721 (NumPy's)
def test_dlpack_shares_the_memory(dtype):
    array = numbers(dtype, (COUNT, 2, 3))
    with Loader(array, batch_size=COUNT) as loader:
        batch = next(iter(loader))
        assert batch.__dlpack_device__() == (1, 0)
        tensor = np.from_dlpack(batch)
        assert tensor.dtype == dtype and tensor.shape == array.shape
        assert tensor.ctypes.data == batch.address(0)
        assert tensor.tobytes() == array.tobytes()


@needs_dlpack
def test_dlpack_keeps_the_memory(loader, batch):
    tensor = np.from_dlpack(batch)
    batch.release()
    assert loader.stats().held == 1
    for _ in range(3):
        for later in loader:
            assert later.address(0) != tensor.ctypes.data
    assert tensor[1, 1].tolist() == [9, 10, 11]
    del tensor, later
    assert free_again(loader)


@needs_dlpack
def test_a_dlpack_capsule_that_nobody_takes_is_freed(loader, batch):
    capsule = batch.__dlpack__()
    batch.release()
    assert loader.stats().held == 1
    del capsule
    assert free_again(loader)
