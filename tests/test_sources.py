"""Every source, against the contract that all sources share."""

import contextlib
import pickle
import threading

import numpy as np
import pytest

from contracts import assert_samples, check_source, loader_of, stack
from databases import image_lmdb, images
from fastbatch import ArraySource, Closed, LMDBSource, Loader, SampleError, SourceError, Transform
from fastbatch._batches import BatchRing
from fastbatch._contract import DTYPES
from planned import PATIENCE, PlannedSource, planned_loader, wait_until


def in_another_process(source):
    """The source as a worker process of the caller's would get it."""
    return pickle.loads(pickle.dumps(source))


def test_sources_can_be_pickled_and_are_context_managers(tmp_path):
    path, pictures = image_lmdb(tmp_path / "db", 3, (1, 2, 2))
    assert LMDBSource(path, "gray", check=True).__reduce__() == (LMDBSource, (str(path), "gray", True, None, None))
    for source, shape in (
        (LMDBSource(path, color="gray"), (1, 2, 2)),
        (ArraySource(pictures, label=np.arange(3)), (1, 2, 2)),
    ):
        with source as same, in_another_process(source) as other:
            assert same is source and type(other) is type(source) and repr(other) == repr(source)
            assert other.shape == source.shape == shape and len(other) == 3
            with Loader(other, batch_size=3) as loader:
                assert next(iter(loader)).data.tobytes() == pictures.tobytes()
    source = LMDBSource(path)
    source.close()
    with pytest.raises(Closed, match="is closed, and cannot be pickled"):
        pickle.dumps(source)


# ---- arrays

COUNT = 7


def numbers(dtype, shape=(COUNT, 2, 3)):
    """Values of all magnitudes that the type has; not a number, infinities and -0 included."""
    bits = np.random.RandomState(1).randint(0, 256, np.dtype(dtype).itemsize * int(np.prod(shape))).astype(np.uint8)
    if np.dtype(dtype) == bool:
        bits &= 1
    return bits.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_of_every_type(dtype):
    array = numbers(dtype)
    check_source(ArraySource(array), {"data": list(array)})


def strided():
    base = numbers("int32", (COUNT * 2, 6, 8))
    return {
        "transposed": numbers("float32", (COUNT, 4, 5, 3)).transpose(0, 3, 1, 2),
        "samples last": numbers("float32", (4, 5, COUNT)).transpose(2, 0, 1),
        "every second sample": base[::2],
        "backwards": base[COUNT - 1 :: -1, ::-1, ::-2],
        "columns": base[:COUNT, :, 3],
        "broadcast": np.broadcast_to(base[0], (COUNT, 6, 8)),
        "one value": np.broadcast_to(np.float64(1.5), (COUNT,)),
        "not aligned": np.frombuffer(b"x" + numbers("float64", (COUNT, 3)).tobytes(), np.uint8)[1:]
        .view("f8")
        .reshape(COUNT, 3),
        "fortran order": np.asfortranarray(base[:COUNT]),
        "no values at all": np.empty((COUNT, 0, 3), np.float32),
        "scalars": numbers("float32", (COUNT,)),
        "eight axes": numbers("int16", (COUNT, 1, 2, 1, 2, 1, 2, 3)),
    }


@pytest.mark.parametrize("case", list(strided()))
def test_arrays_as_they_lie(case):
    array = strided()[case]
    check_source(ArraySource(array), {"data": list(array)})


def test_several_arrays():
    first, second, third = numbers("float32", (COUNT, 5)), numbers("uint8", (COUNT, 2, 2)), numbers("float64", (COUNT,))
    check_source(
        ArraySource(b=first, a=second, weight=third), {"b": list(first), "a": list(second), "weight": list(third)}
    )


def test_labels_that_int64_cannot_hold_stay_what_they_are():
    labels = np.array([0, 2**63, 2**64 - 1], np.uint64)
    with Loader((np.zeros(3, np.float32), labels), batch_size=3) as loader:
        batch = next(iter(loader))
        assert batch.label.dtype == np.uint64 and batch.label.tolist() == labels.tolist()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_integer_labels_become_int64(dtype):
    data, labels = images(COUNT), np.arange(COUNT).astype(dtype)[::-1]
    check_source(ArraySource(data, labels), stack(data, labels))


def test_float_labels_stay_as_they_are():
    data, labels = images(COUNT), np.linspace(0, 1, COUNT, dtype=np.float32)
    check_source(ArraySource(data, labels), {"data": list(data), "label": list(labels)})


def test_memory_mapped_array(tmp_path):
    array = numbers("float32", (COUNT, 3, 4))
    np.save(tmp_path / "array.npy", array)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    check_source(ArraySource(mapped), {"data": list(array)})


def test_a_folder_of_arrays(tmp_path):
    """The documentation's way."""
    data, label = numbers("uint8"), np.arange(COUNT)
    np.save(tmp_path / "data.npy", data)
    np.save(tmp_path / "label.npy", label)
    arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(tmp_path.glob("*.npy"))}
    check_source(ArraySource(**arrays), stack(data, label))
    with pytest.raises(
        TypeError, match=r"for arrays, in a file each, say fastbatch.ArraySource\(\*\*\{file.stem: numpy"
    ):
        Loader(tmp_path)


def test_an_npz_file(tmp_path):
    data, label = numbers("uint8"), np.arange(COUNT)
    np.savez(tmp_path / "arrays.npz", data=data, label=label)
    with np.load(tmp_path / "arrays.npz") as file, loader_of(file, batch_size=COUNT) as loader:
        assert_samples(next(iter(loader)), stack(data, label), list(range(COUNT)))


def test_memoryview_as_an_array():
    array = numbers("int16")
    check_source(ArraySource(memoryview(array)), {"data": list(array)})


def test_arrays_are_not_copied():
    array = np.zeros((4, 2), np.float32)
    source = ArraySource(array)
    array[:] = 7
    with Loader(source, batch_size=4) as loader:
        assert (next(iter(loader)).data == 7).all()
    assert np.shares_memory(source.arrays["data"], array)


def test_arrays_live_as_long_as_they_are_read():
    source = ArraySource(np.full((50, 1000), 3, np.int32))
    with loader_of(source, prefetch=1) as loader:
        source.arrays.clear()  # the last references of ours
        del source
        assert all((batch.data == 3).all() for batch in loader)


def test_a_loader_makes_a_source_of_arrays():
    data, labels = images(COUNT), np.arange(COUNT)
    for given, expected in (
        (data, {"data": list(data)}),
        (memoryview(data), {"data": list(data)}),
        ((data,), {"data": list(data)}),
        ((data, labels), stack(data, labels)),
        ({"data": data, "label": labels}, stack(data, labels)),
    ):
        with loader_of(given) as loader:
            for index, batch in enumerate(loader):
                assert_samples(batch, expected, [index])


# ---- a third party's source


@pytest.mark.parametrize("varying", [False, True])
def test_source_in_c(varying):
    source = PlannedSource("." * 11, varying=varying)
    check_source(
        source, {"data": [np.full(3, i, np.int32) for i in range(11)], "label": [np.int64(i) for i in range(11)]}
    )


def test_source_in_c_with_shapes_that_vary():
    expected = {
        "data": [np.full(3 + (i == 2), i, np.int32) for i in range(5)],
        "label": [np.int64(i) for i in range(5)],
    }
    check_source(PlannedSource("..s..", varying=True), expected)


def test_a_source_is_deleted_when_its_loader_is_closed():
    source = PlannedSource("....")
    loader = Loader(source)
    next(iter(loader))
    assert source.deleted == 0
    loader.close()
    assert source.deleted == 1
    with Loader(source):
        pass
    assert source.deleted == 2


def test_source_with_a_capsule_of_another_name():
    source = PlannedSource("....")
    source.capsule_name = b"something.else"
    with pytest.raises(
        TypeError, match=r"PlannedSource.__fastbatch_source__\(\) must return a PyCapsule named 'fastbatch.source'"
    ):
        Loader(source)


def test_source_that_returns_no_capsule():
    class Wrong:
        def __len__(self):
            return 3

        def __fastbatch_source__(self, random_access):
            return 3

    with pytest.raises(TypeError, match=r"Wrong.__fastbatch_source__\(\) must return a PyCapsule"):
        Loader(Wrong())


def test_source_without_samples():
    source = PlannedSource("")
    with pytest.raises(SourceError, match="planned is empty; a loader needs at least one sample"):
        Loader(source)
    assert source.deleted == 1


def test_transform_of_a_source_without_data():
    with pytest.raises(
        ValueError,
        match="a transform changes the array 'data', which arrays does not have: its arrays are image, label",
    ):
        Loader({"image": images(3), "label": np.arange(3)}, Transform(crop_size=4))


def test_keys_are_made_by_index_where_the_source_has_none():
    ring = BatchRing(ArraySource(np.arange(9)), batch_size=4, slots=2, threads=1)
    assert ring.next(PATIENCE).sample_keys == [0, 1, 2, 3]
    ring.close()


@pytest.mark.parametrize("at_once", [0, 5])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("plan", ["." * 20, "l" + "." * 19, "..r..s..l..r" + "." * 8])
def test_a_source_hears_once_of_the_end_of_every_sample_that_it_located(plan, threads, at_once):
    with planned_loader(plan, varying=True, at_once=at_once, batch_size=4, threads=threads) as (source, loader):
        for _ in range(2):
            batches = iter(loader)
            for _ in range(5):
                with contextlib.suppress(SampleError):
                    next(batches)
            batches.close()
    assert source.done == source.located >= 2 * (20 - plan.count("l"))


@pytest.mark.parametrize("at_once, most", [(0, 1), (1, 1), (3, 3), (100, 32)])
@pytest.mark.parametrize("threads", [1, 3])
def test_small_samples_are_taken_several_at_a_time_where_the_source_lets_them(threads, at_once, most):
    with planned_loader("." * 5000, at_once=at_once, batch_size=70, threads=threads) as (source, loader):
        for _ in range(2):
            labels = [label for batch in loader for label in batch.label]
            assert labels == list(range(5000))
    assert source.done == source.located >= 10000
    assert (1 if most == 1 else 2) <= source.held <= threads * most


def test_samples_that_were_taken_and_not_read_are_given_up_when_the_loader_is_closed():
    """A slow one among small ones: those after it are not waited for."""
    with planned_loader("." * 1000 + "w" + "." * 999, at_once=100, batch_size=500, threads=1) as (source, loader):
        batches = iter(loader)
        next(batches), next(batches)
        wait_until(lambda: source.waiting == 1, "the slow sample")
        closing = threading.Thread(target=loader.close)
        closing.start()
        wait_until(lambda: loader.closed, "close() to have begun")
        source.open_gate()
        closing.join()
    assert source.done == source.located >= source.reads == 1001
