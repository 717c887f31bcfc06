"""PythonSource: samples that the user's own Python code loads, in processes and in threads."""

import collections
import gc
import os
import pickle
import re
import resource
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import datasets
from children import FORKS, run_child
from fastbatch import (
    ArraySource,
    DataTimeout,
    Loader,
    PythonSource,
    SampleError,
    SourceError,
    Transform,
    current_sample,
)
from fastbatch.sources import _channels, _serving, _team
from fastbatch.sources._exceptions import WorkerTraceback
from fastbatch.sources._samples import layout_of
from planned import wait_until

PATIENCE = 60
KINDS = ["process", "thread"]


def batches(loader):
    """The batches of an epoch as lists of arrays, and the errors in place of those that were not delivered."""
    found, epoch = [], iter(loader)
    while True:
        try:
            found.append([array.copy() for array in next(epoch).values()])
        except StopIteration:
            return found
        except SampleError as error:
            found.append(error)


def expected(count, **options):
    source = ArraySource(np.stack([datasets.image(index) for index in range(count)]), np.arange(count))
    with Loader(source, timeout=PATIENCE, **options) as loader:
        return batches(loader)


# ---- samples

Point = collections.namedtuple("Point", "x y")


class ArrayLike:
    def __array__(self, dtype=None, copy=None):
        return np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    "sample, fields",
    [
        (np.zeros((3, 4), np.uint8), [("data", "uint8", (3, 4))]),
        (7, [("data", "int64", ())]),
        ([1.0, 2.0], [("data", "float64", (2,))]),
        ((np.zeros(3, np.float32), 1), [("data", "float32", (3,)), ("label", "int64", ())]),
        ((1.5, True), [("data", "float64", ()), ("label", "bool", ())]),
        ([np.zeros(3), np.zeros(2)], [("data", "float64", (3,)), ("label", "float64", (2,))]),
        ((1, 2, 3, 4), [(name, "int64", ()) for name in ("data", "label", "field2", "field3")]),
        ((np.zeros(1), np.int32(3)), [("data", "float64", (1,)), ("label", "int64", ())]),
        (Point(1, [[2]]), [("x", "int64", ()), ("y", "int64", (1, 1))]),
        ({"image": ArrayLike(), "box": (1, 2, 3, 4)}, [("image", "float32", (2, 2)), ("box", "int64", (4,))]),
    ],
)
def test_names_types_and_shapes_of_a_sample(sample, fields):
    layout = layout_of(sample)
    assert [(name, str(dtype), shape) for name, dtype, shape in layout.fields] == fields
    arrays = [np.full(shape, 9, dtype) for _, dtype, shape in layout.fields]
    layout.put(sample, arrays)
    values = sample.values() if isinstance(sample, dict) else [sample] if layout.single else sample
    for array, value in zip(arrays, values):
        assert (array == np.asarray(value)).all()


@pytest.mark.parametrize(
    "sample, message",
    [
        ("text", "data: a value is a str, and batches hold numbers"),
        ((1, {"a": 1}), "label: a value is a dict, .* return one flat dict, such as"),
        ({"a": 1, "b": {"c": 1}}, "b: a value is a dict, .* return one flat dict, such as"),
        (None, 'it is None: to leave a sample out, raise an exception, and give the loader on_error="skip"'),
        ((1, None), "label: a value is a NoneType"),
        (np.zeros(2, "S3"), r"data has elements of type \|S3; batches hold uint8"),
        (np.zeros(2, ">i4"), "data has elements of type >i4"),
        (np.ma.array([1, 2], mask=[0, 1]), "data: a value is a masked array, and batches have no mask: say what to"),
        ((1, np.ma.array([1, 2])), "label: a value is a masked array"),
        ((), "a sample has 0 values"),
        ({1: 2}, "a sample has the key 1"),
        (np.zeros((1,) * 9), r"data has shape .* at most 8 dimensions"),
    ],
)
def test_what_cannot_be_a_sample(sample, message):
    with pytest.raises((TypeError, ValueError), match=message):
        layout_of(sample)


def test_names_of_a_users_own():
    assert layout_of((1, 2, 3), ["a", "b", "c"]).names == ["a", "b", "c"]
    with pytest.raises(ValueError, match="names has 2 names, and a sample has 3 values"):
        layout_of((1, 2, 3), ["a", "b"])
    with pytest.raises(ValueError, match="samples are dicts, whose keys are the names: a; leave names out"):
        layout_of({"a": 1}, ["b"])


@pytest.mark.parametrize(
    "first, other, message",
    [
        ((1, 2), (1,), r"it is a tuple, but the first sample has 2 values: data, label"),
        ((1, 2), None, "it is None: to leave a sample out, raise"),
        ({"a": 1}, None, "it is None: to leave a sample out, raise"),
        (1, None, "it is None: to leave a sample out, raise"),
        ((1, 2), {"data": 1}, r"it is a dict, but the first sample has 2 values"),
        ({"a": 1}, (1,), r"it is a tuple, but the first sample is a dict of a$"),
        ({"a": 1}, {"b": 1}, r"it has 'b' and no 'a', but the first sample is a dict of a; all samples need the same"),
        ({"a": 1, "b": 2}, {"b": 1}, r"it has no 'a', but the first sample is a dict of a, b"),
        ({"a": 1}, {"a": 1, "b": 1, 3: 1}, r"it has 'b' and 3, but the first sample is a dict of a"),
        (
            np.zeros(2),
            np.zeros(3),
            r"its data has shape \(3,\), but the first sample's has dtype float64 and shape \(2,\)",
        ),
        (np.zeros(2, np.uint8), np.zeros(2), r"its data has dtype float64, but the first sample's has dtype uint8"),
        (np.int8(1), 300, r"its data is 300, but the first sample's has dtype int8"),
        (True, 5, r"its data is 5, but the first sample's has dtype bool"),
        (1, 1.5, r"its data has dtype float64, but the first sample's has dtype int64"),
        (1.5, 2**53 + 1, r"its data is 9007199254740993, but the first sample's has dtype float64"),
        (1.5, 10**400, r"its data is 1000.*0, but the first sample's has dtype float64"),
        (np.float32(1), 2**24 + 1, r"its data is 16777217, but the first sample's has dtype float32"),
        (np.float16(1), -2049, r"its data is -2049, but the first sample's has dtype float16"),
        (
            [1.5, 2.5],
            [2**53 + 1, 0],
            r"its data has dtype int64 and integers that no float64 holds exactly, but the first sample's has dtype fl",
        ),
        (np.zeros(2), np.full(2, -(2**53) - 1), "dtype int64 and integers that no float64 holds exactly"),
        (np.zeros(2), np.full(2, 2**64 - 1, np.uint64), "dtype uint64 and integers that no float64 holds exactly"),
        (np.zeros(2), np.ma.array([1.0, 2.0], mask=[True, False]), r"a masked array, .* masked, with .filled\(...\)"),
    ],
)
def test_a_sample_that_is_not_like_the_first(first, other, message):
    layout = layout_of(first)
    arrays = [np.zeros(shape, dtype) for _, dtype, shape in layout.fields]
    with pytest.raises((TypeError, ValueError), match=message):
        layout.put(other, arrays)


def test_values_that_lose_nothing_are_converted():
    layout = layout_of((np.zeros(2, np.float64), 1.5))
    arrays = [np.zeros(2), np.zeros(())]
    layout.put((np.ones(2, np.float32), 3), arrays)
    assert arrays[0].tolist() == [1, 1] and arrays[1] == 3
    for whole in (2**53, -(2**53), 2**60, 2**63 - 2**10, -(2**63)):
        layout.put((np.array([whole, 1]), whole), arrays)
        assert arrays[0].tolist() == [whole, 1] and int(arrays[1]) == whole
    layout.put((np.array([2**63, 1], np.uint64), 10**22), arrays)
    assert arrays[0].tolist() == [2**63, 1] and int(arrays[1]) == 10**22
    layout = layout_of(np.float16(1))
    layout.put(2050, arrays[1:])
    assert arrays[1] == 2050


# ---- batches


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_same_arrays(kind):
    """Written into the batch by the workers; and with a transform, by way of shared memory."""
    source = PythonSource(datasets.Images(20), workers=2, kind=kind)
    assert len(source) == 20 and source.workers == 2 and source.kind == kind and source.shape == datasets.SHAPE
    source = pickle.loads(pickle.dumps(source))
    assert source.fields == {"data": (np.uint8, datasets.SHAPE), "label": (np.int64, ())}
    for options in (
        dict(batch_size=7),
        dict(batch_size=6, shuffle=True, seed=3),
        dict(batch_size=5, transform=Transform(crop_size=5, mirror=True, scale=0.5), seed=4),
    ):
        with Loader(source, timeout=PATIENCE, **options) as loader:
            assert loader.threads == 2
            found = batches(loader)
        for ours, theirs in zip(found, expected(20, **options)):
            for a, b in zip(ours, theirs):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_that_fills_arrays(kind):
    fields = {"data": ("uint8", datasets.SHAPE), "label": (np.int64, ())}
    source = PythonSource(datasets.fill, 10, fields=fields, workers=1, kind=kind)
    with Loader(source, batch_size=4, timeout=PATIENCE) as loader:
        found = batches(loader)
    for ours, theirs in zip(found, expected(10, batch_size=4)):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize(
    "load, reason",
    [
        (
            lambda out: out.update(data=np.ones(2)),
            'ValueError: load(index, out) put an ndarray in the place of out["data"], an array of the batch',
        ),
        (lambda out: out.update(n=1), 'ValueError: load(index, out) put an int in the place of out["n"]'),
        (lambda out: out.pop("n"), "ValueError: load(index, out) returned an ndarray, and what counts are the arrays"),
        (lambda out: out.clear(), 'ValueError: load(index, out) removed out["data"]'),
        (lambda out: out.update(box=1), "ValueError: load(index, out) added 'box' to out, and fields has data, n"),
        (lambda out: (out["data"], 1), "ValueError: load(index, out) returned a tuple, and what counts are the arrays"),
    ],
)
def test_a_function_that_leaves_values_elsewhere_than_in_the_arrays(load, reason):
    """The batch had zeros, or an earlier sample's values."""

    def spoil(index, out):
        out["data"][...] = out["n"][...] = index + 1
        return load(out) if index == 1 else None

    spoil.__qualname__ = "load"
    fields = {"data": ("float32", (2,)), "n": ("int64", ())}
    source = PythonSource(spoil, 3, fields=fields, workers=1, kind="thread")
    with Loader(source, timeout=PATIENCE) as loader:
        first, second, third = batches(loader)
    assert first[0].tolist() == [[1, 1]] and third[0].tolist() == [[3, 3]] and third[1].tolist() == [3]
    assert second.reason.startswith(f"loading it raised {reason}")


@pytest.mark.parametrize("transform", [None, Transform(scale=1.0)])
def test_a_function_that_fills_a_part_leaves_zeros(transform):
    """It left values of whichever sample was there before."""

    def load(index, out):
        out["data"][0, 0, : index % 3] = index
        out["n"] += index

    fields = {"data": ("float32", (1, 1, 3)), "n": ("int64", ())}
    source = PythonSource(load, 12, fields=fields, workers=1, kind="thread")
    with Loader(source, transform, batch_size=2, prefetch=1, timeout=PATIENCE) as loader:
        for _ in range(2):
            found = batches(loader)
            assert np.concatenate([batch[0] for batch in found]).reshape(12, 3).tolist() == [
                index % 3 * [index] + (3 - index % 3) * [0] for index in range(12)
            ]
            assert np.concatenate([batch[1] for batch in found]).tolist() == list(range(12))


def test_a_loader_takes_a_data_set_as_it_is():
    with Loader(datasets.Images(5), batch_size=5, timeout=PATIENCE) as loader:
        assert isinstance(loader.source, PythonSource)
        assert next(iter(loader)).label.tolist() == list(range(5))


def test_two_loaders_of_one_source_have_their_own_workers():
    source = PythonSource(datasets.Images(8), workers=1, kind="thread")
    with Loader(source, batch_size=8) as one, Loader(source, batch_size=8) as other:
        assert (next(iter(one)).data == next(iter(other)).data).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_value_that_is_empty(kind):
    """Its rows begin at the same address."""
    with Loader(PythonSource(datasets.Boxes(), workers=2, kind=kind), batch_size=8, timeout=PATIENCE) as loader:
        batch = next(iter(loader))
    assert batch.boxes.shape == (8, 0, 4) and batch.id.tolist() == list(range(8))


# ---- random numbers


def epochs(source, seed, count=2, **options):
    """The arrays of `count` epochs, one after the other."""
    with Loader(source, batch_size=7, seed=seed, timeout=PATIENCE, **options) as loader:
        return [np.concatenate(arrays) for _ in range(count) for arrays in zip(*batches(loader))]


def test_random_numbers_belong_to_the_sample():
    one = epochs(PythonSource(datasets.RandomNumbers(), workers=1), 5)
    two = epochs(PythonSource(datasets.RandomNumbers(), workers=2), 5)
    assert all((a == b).all() for a, b in zip(one, two))
    assert len(np.unique(one[0])) == len(np.unique(one[1])) == len(np.unique(one[2])) == 30
    for values in range(3):  # another epoch, and another seed
        assert not np.isin(one[values], one[values + 3]).any()
    other = epochs(PythonSource(datasets.RandomNumbers(), workers=1), 6)
    assert not np.isin(one[0], other[0]).any()


def test_threads_know_the_samples_seed():
    process = epochs(PythonSource(datasets.RandomNumbers(), workers=2), 5)
    thread = epochs(PythonSource(datasets.RandomNumbers(), workers=2, kind="thread"), 5)
    assert (process[2] == thread[2]).all() and (process[5] == thread[5]).all()


def test_shuffled_samples_keep_their_random_numbers():
    plain = epochs(PythonSource(datasets.RandomNumbers(), workers=1), 5, count=1)
    shuffled = epochs(PythonSource(datasets.RandomNumbers(), workers=1), 5, count=1, shuffle=True)
    assert not (plain[2] == shuffled[2]).all() and (np.sort(plain[2]) == np.sort(shuffled[2])).all()


def test_outside_of_a_worker_there_is_no_current_sample():
    with pytest.raises(RuntimeError, match="no sample is being loaded here"):
        current_sample()


# ---- iterables


@pytest.mark.parametrize("kind", KINDS)
def test_an_iterable_begins_anew_in_every_epoch(kind):
    source = PythonSource(datasets.Stream(10), count=8, names=("index", "epoch"), kind=kind)
    with Loader(source, batch_size=3, timeout=PATIENCE) as loader:
        for epoch in range(3):
            found = batches(loader)
            assert [batch[0].tolist() for batch in found] == [[0, 1, 2], [3, 4, 5], [6, 7]]
            assert all((batch[1] == epoch).all() for batch in found)
        next(iter(loader))  # the rest of this epoch is given up
        assert [batch[0].tolist() for batch in batches(loader)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("kind", KINDS)
def test_each_loader_iterates_by_itself(kind):
    source = PythonSource(datasets.Stream(60), count=60, names=("index", "epoch"), kind=kind)
    one, other = (Loader(source, batch_size=1, timeout=PATIENCE) for _ in range(2))
    with one, other:
        for index, (a, b) in enumerate(zip(one, other)):
            assert a["index"][0] == b["index"][0] == index


@pytest.mark.parametrize("dataset", [datasets.generator, datasets.SizedStream(5), datasets.Unsized()])
def test_what_can_be_iterated_over(dataset):
    source = PythonSource(dataset, count=5, kind="thread")
    with Loader(source, batch_size=5, timeout=PATIENCE) as loader:
        assert batches(loader)[0][0].tolist() == [0, 1, 2, 3, 4]


def test_an_epoch_may_take_less_than_an_iterable_has():
    with Loader(PythonSource(datasets.SizedStream(5), count=3), batch_size=3, timeout=PATIENCE) as loader:
        assert [batch.data.tolist() for _ in range(2) for batch in loader] == [[0, 1, 2]] * 2


def test_a_loader_takes_an_iterable_with_a_length():
    with Loader(datasets.SizedStream(4), batch_size=4, timeout=PATIENCE) as loader:
        assert (loader.threads, batches(loader)[0][0].tolist()) == (1, [0, 1, 2, 3])


def test_an_iterable_of_which_a_shard_is_loaded():
    with Loader(datasets.SizedStream(9), batch_size=3, rank=1, ranks=2, timeout=PATIENCE) as loader:
        for _ in range(2):
            assert [value for batch in batches(loader) for value in batch[0].tolist()] == [1, 3, 5, 7]


def test_an_iterable_that_ends_early_or_raises():
    with Loader(PythonSource(datasets.Stream(4), count=6), batch_size=2, timeout=PATIENCE) as loader:
        good, _, short = batches(loader)
    assert good[0].tolist() == [0, 1]
    assert short.reason == (
        "loading it raised RuntimeError: the iteration has already ended in this epoch: it gives 4 samples, and the "
        "source was made with a count of more"
    )
    with Loader(PythonSource(datasets.Stream(6, raises=3), count=6), batch_size=2, timeout=PATIENCE) as loader:
        for _ in range(2):
            _, fails, rest = batches(loader)
            assert fails.index == 3 and type(fails.__cause__) is LookupError
            assert rest.reason.endswith("the iteration has already ended in this epoch: sample 3 raised LookupError")


def test_an_iteration_begins_anew_when_a_sample_is_asked_for_again():
    """After an error, an epoch that was restored found it still ended."""
    fails = [3]

    def samples():
        for index in range(6):
            if index in fails:
                raise LookupError(fails.pop())
            yield index

    source = PythonSource(samples, count=6, kind="thread")
    with Loader(source, batch_size=3, timeout=PATIENCE) as loader:
        epoch = iter(loader)
        next(epoch)
        before = loader.state_dict()
        with pytest.raises(SampleError, match="sample 3: loading it raised LookupError: 3"):
            next(epoch)
        loader.load_state_dict(before)
        assert [batch.data.tolist() for batch in loader] == [[3, 4, 5]]


def test_a_process_that_ends_in_the_middle_of_an_iteration():
    """The next one passes the samples before."""
    with Loader(PythonSource(datasets.dying_stream, count=9), batch_size=3, timeout=PATIENCE) as loader:
        first, second, third = batches(loader)
    assert second.index == 4 and "which was to load it, was ended by SIGKILL" in second.reason
    assert first[0].tolist() == [0, 1, 2]
    assert third.index == 6  # the new process dies as well


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: PythonSource(iter([1, 2]), count=2), TypeError, "list_iterator can be iterated over only once"),
        (lambda: PythonSource(datasets.generator()), TypeError, "generator can be iterated over only once"),
        (lambda: PythonSource(datasets.Stream()), TypeError, "Stream does not say how many samples there are"),
        (lambda: PythonSource(datasets.Stream(), count=3, workers=2), ValueError, "which one worker reads in order"),
        (lambda: Loader(datasets.SizedStream(3), shuffle=True), ValueError, "SizedStream is an iterable, whose sampl"),
        (lambda: Loader(datasets.SizedStream(3), threads=2), ValueError, "whose samples one thread asks for"),
        (lambda: Loader(datasets.Stream()), TypeError, "not Stream, which does not say how many samples there are"),
        (lambda: Loader(datasets.generator), TypeError, r"say fastbatch.PythonSource\(..., count=...\) of it"),
        (lambda: Loader(iter([1, 2])), TypeError, "list_iterator, which can be iterated over only once, and every"),
        (lambda: Loader(datasets.generator()), TypeError, r"the generator function, to fastbatch.PythonSource\(..., c"),
    ],
)
def test_what_an_iterable_cannot_be(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


# ---- errors


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_is_the_cause_of_the_samples_error(kind):
    source = PythonSource(datasets.Images(9, raises=4, exits=7), workers=2, kind=kind)
    with Loader(source, batch_size=3, timeout=PATIENCE) as loader:
        first, second, third = batches(loader)
        fourth, *_ = batches(loader)  # the next epoch goes on
    assert first[1].tolist() == fourth[1].tolist() == [0, 1, 2]
    assert str(second).startswith("Images, sample 4: loading it raised LookupError: no such image, 世界. It failed in")
    assert type(second.__cause__) is LookupError and second.__cause__.args == ("no such image, 世界",)
    assert type(second.__cause__.__cause__) is WorkerTraceback
    assert 'raise LookupError("no such image, 世界")' in str(second.__cause__.__cause__)
    assert third.reason == "loading it raised SystemExit: enough" and type(third.__cause__) is SystemExit


def test_the_same_error_in_two_epochs_has_its_cause_in_both():
    """The second epoch's sample fails before the first one's error is raised."""
    source = PythonSource(datasets.Images(2, raises=1), workers=1, kind="thread")
    with Loader(source, batch_size=1, prefetch=4, timeout=PATIENCE) as loader:
        wait_until(lambda: loader.stats().ready == 5)
        for _ in range(3):
            good, bad = batches(loader)
            assert good[1].tolist() == [0] and type(bad.__cause__) is LookupError


def test_an_exception_that_cannot_be_pickled_leaves_its_traceback():
    source = PythonSource(datasets.bad_exception, 3, fields={"data": ("uint8", ())}, workers=1, kind="thread")
    with Loader(source, timeout=PATIENCE) as loader:
        error, *_ = batches(loader)
    assert error.reason == "loading it raised Unpicklable: 3 and 4"
    assert type(error.__cause__) is RuntimeError and str(error.__cause__) == "Unpicklable: 3 and 4"
    assert "raise Unpicklable(1, 2)" in str(error.__cause__.__cause__)


def test_an_exception_without_words():
    source = PythonSource(datasets.Speechless(), workers=1, kind="thread")
    with Loader(source, timeout=PATIENCE) as loader:
        first, second = batches(loader)
    assert first[0] == 0
    assert second.reason == "loading it raised Wordless"
    assert type(second.__cause__) is datasets.Wordless


@pytest.mark.slow
def test_the_start_of_a_worker_does_not_count_as_time_for_a_sample():
    source = PythonSource(datasets.SlowToUnpickle(), workers=1, timeout=2)
    with Loader(source, timeout=PATIENCE) as loader:
        assert [batch[0].tolist() for batch in batches(loader)] == [[0], [1]]


def test_a_sample_that_differs_is_an_error_of_its_batch():
    with Loader(PythonSource(datasets.of, 4, workers=1, kind="thread"), batch_size=2, timeout=PATIENCE) as loader:
        good, bad = batches(loader)
    assert good[1].tolist() == [0, 1]
    assert "its data has shape (3, 2), but the first sample's has dtype float32 and shape (2, 3)" in bad.reason


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_sample_that_cannot_be_loaded(kind):
    source = PythonSource(datasets.Images(raises=0), workers=1, kind=kind)
    with pytest.raises(
        SourceError, match="sample 0 of Images cannot be loaded: loading it raised LookupError"
    ) as caught:
        Loader(source)
    assert type(caught.value.__cause__) is LookupError


def test_a_first_sample_that_hangs():
    """Nothing limited the time in which the loader learned what samples look like."""
    source = PythonSource(datasets.Images(hangs=2), workers=1, timeout=0.5)
    with pytest.raises(SourceError, match=r"sample 2 of Images was not loaded within 0\.5 s, .* a longer timeout="):
        Loader(source[2:])


def test_a_message_that_is_cut_in_the_middle_of_a_character():
    with pytest.raises(SourceError, match="sample 0 of wordy cannot be loaded: loading it raised ValueError: xéé"):
        Loader(PythonSource(datasets.wordy, 2, kind="thread"))


def test_a_process_that_ends_is_named_and_replaced():
    source = PythonSource(datasets.Images(12, dies=4), workers=2)
    with Loader(source, batch_size=3, timeout=PATIENCE) as loader:
        for _ in range(2):
            first, second, third, fourth = batches(loader)
            assert second.index == 4 and re.fullmatch(
                r"the worker process \d+, which was to load it, was ended by SIGKILL, as the kernel does when memory "
                "runs out; another one takes its place",
                second.reason,
            )
            assert (first[1].tolist(), third[1].tolist(), fourth[1].tolist()) == ([0, 1, 2], [6, 7, 8], [9, 10, 11])


def test_a_process_that_ends_is_noticed_though_it_leaves_another_one_behind(tmp_path):
    """That one held the connection by whose end the worker's is noticed."""
    path = tmp_path / "stay"
    path.touch()
    try:
        with Loader(PythonSource(datasets.Forks(str(path)), workers=1), timeout=PATIENCE) as loader:
            first, second, third, fourth = batches(loader)
    finally:
        path.unlink()
    assert (first[0], second[0], fourth[0]) == (0, 1, 3)
    assert re.search(r"ended( with exit code \d| by SIG.*)?; another one takes its place$", third.reason)


def test_a_process_that_ends_is_noticed_though_another_one_began_beside_it(monkeypatch):
    """A library that forks meanwhile holds the connection too."""
    make, others = _team.process_of, []

    def process_of(context, name, arguments):
        if name != "probe":
            files = [arguments[-1].fileno()]
            others.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=files))
        return make(context, name, arguments)

    monkeypatch.setattr(_team, "process_of", process_of)
    try:
        with Loader(PythonSource(datasets.Images(4, dies=1), workers=1), timeout=PATIENCE) as loader:
            first, second, third, fourth = batches(loader)
        assert [batch[1].tolist() for batch in (first, third, fourth)] == [[0], [2], [3]]
        assert "was ended by SIGKILL" in second.reason
        assert len(others) == 2
    finally:
        for other in others:
            other.communicate(b"\n", timeout=PATIENCE)


@pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")  # an earlier test's thread may be ending
def test_a_process_that_is_forked_keeps_no_connection_of_another_worker():
    """Another thread may be about to start that one."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            _team.connections.add(theirs)
            loader = Loader(PythonSource(datasets.Images(4), workers=1, start_method="fork"), timeout=PATIENCE)
        with loader:
            next(iter(loader))
            ours.settimeout(PATIENCE)
            assert ours.recv(1) == b""


def test_a_file_that_a_worker_is_sent_is_not_inherited_by_other_programs(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, open(tmp_path / "file", "w") as file:
        socket.send_fds(ours, [b"f"], [file.fileno()])
        received = _serving._received_file(theirs)
        try:
            assert os.path.sameopenfile(received, file.fileno()) and not os.get_inheritable(received)
        finally:
            os.close(received)


def test_a_file_that_a_worker_has_no_room_for():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [b"f"], [ours.fileno()])
        unused = os.dup(0)
        os.close(unused)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (unused, limits[1]))
        try:
            with pytest.raises(OSError, match=r"this process has too many open files \(ulimit -n\)"):
                _serving._received_file(theirs)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_small_samples_are_asked_for_together_and_loaded_once_each(tmp_path):
    loads, fails, dies = tmp_path / "loads", (901, 905, 1400), 1902
    source = PythonSource(datasets.Counted(str(loads), 2000, fails, dies), workers=2)
    with Loader(source, batch_size=50, timeout=PATIENCE) as loader:
        found = batches(loader)
    wrong = {18: 901, 28: 1400, 38: 1902}  # for each batch, the first of its samples that failed
    for number, batch in enumerate(found):
        if number in wrong:
            assert batch.index == wrong[number]
        else:
            assert batch[0].tolist() == list(range(number * 50, number * 50 + 50))
    assert [type(found[number].__cause__) for number in wrong] == [LookupError, LookupError, type(None)]
    numbers = list(map(int, loads.read_text().split()))
    # The first ones were also loaded to see what samples look like, and for the next epoch.
    assert sorted(number for number in numbers if number >= 500) == list(range(500, 2000))


def test_a_process_that_hangs_is_ended_and_replaced():
    source = PythonSource(datasets.Images(4, hangs=1), workers=1, timeout=3)
    with Loader(source, batch_size=2, timeout=PATIENCE) as loader:
        first, second = batches(loader)
    assert "has not loaded it within 3 s; it was ended, and another one takes its place" in first.reason
    assert second[1].tolist() == [2, 3]


def said_in_timeout(loader, number, sample):
    """What a DataTimeout says about each worker thread, when the loader waits for a batch with a sample that hangs."""
    batches = iter(loader)
    for _ in range(number):
        next(batches)
    wait_until(lambda: any(f" sample {sample} for " in sentence for sentence in loader._ring.activity()))
    loader._timeout = 0
    with pytest.raises(DataTimeout) as caught:
        next(batches)
    said, remedy = str(caught.value).split("the workers: ")[1].split(". ")
    assert "a longer timeout=" in remedy and ("PythonSource" in remedy) == bool(loader._ring.processes)
    return [re.sub(r"\d+\.\d+$", "...", sentence[:-2]) for sentence in said.split("; ")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subset", [False, True])
def test_a_timeout_names_the_sample_that_hangs(kind, subset, monkeypatch):
    """And not the first one of those that a worker was asked for with it."""
    monkeypatch.setattr(_team, "PATIENCE", 0.1)
    datasets.Small.gate.clear()
    source = PythonSource(datasets.Small(2000, hangs=1777), workers=1, kind=kind)
    if subset:
        source = source[range(1000, 2000)]
    with Loader(source, batch_size=100, timeout=PATIENCE) as loader:
        said = said_in_timeout(loader, 7 if subset else 17, 1777)
        datasets.Small.gate.set()
    assert said == ["thread fastbatch-0: write sample 1777 for ..."]


def test_a_timeout_tells_a_sample_that_hangs_from_those_that_wait(monkeypatch):
    monkeypatch.setattr(_team, "PATIENCE", 0.1)
    datasets.Small.gate.clear()
    source = PythonSource(datasets.Small(1000, hangs=1), workers=1)
    with Loader(source, threads=3, prefetch=500, timeout=PATIENCE) as loader:
        wait_until(
            lambda: (
                sum(" sample 1 for " in sentence for sentence in loader._ring.activity()) == 1
                and sum(", which waits for a worker, for " in sentence for sentence in loader._ring.activity()) == 2
            )
        )


def test_a_process_that_hangs_does_not_keep_a_loader_from_closing(monkeypatch):
    monkeypatch.setattr(_team, "PATIENCE", 0.1)
    loader = Loader(PythonSource(datasets.Images(4, hangs=1), workers=1), batch_size=1, timeout=PATIENCE)
    next(iter(loader))
    [process] = loader._ring.processes
    loader.close()
    assert ended(process)


def test_what_cannot_be_sent_to_a_process():
    with pytest.raises(TypeError, match='cannot be sent to worker processes: .* or kind="thread"'):
        PythonSource(lambda index: index, 3).fields
    assert PythonSource(lambda index: index, 3, kind="thread").fields == {"data": (np.int64, ())}


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((5,), {}, "int has neither"),
        ((datasets.fill,), {}, "a function does not say how many samples there are: give count="),
        ((object(), 3), {}, "object has neither"),
        (([],), {}, "list has 0 samples"),
        (([1],), dict(kind="fiber"), 'kind must be "process" or "thread", not \'fiber\''),
        (([1],), dict(start_method="teleport"), "start_method must be"),
        (([1],), dict(kind="thread", timeout=3), 'timeout is for kind="process"'),
        (
            ([1],),
            dict(kind="thread", start_method="spawn"),
            'start_method is for kind="process": no process is started for a thread; leave it out',
        ),
        (([1],), dict(timeout="5"), "timeout must be more than 0 seconds and at most 1000000, not '5'"),
        (([1],), dict(timeout=True), "timeout must be more than 0 seconds and at most 1000000, not True"),
        (([(1, 2)],), dict(names="ab"), """names must be a tuple of names, such as \\("data", "label"\\), not 'ab'"""),
        (([(1, 2)],), dict(names=(1, 2)), r"names must be a tuple of names, .* not \(1, 2\)"),
        (([(1, 2)],), dict(names=5), "names must be a tuple of names, .* not 5"),
        (([(1, 2)],), dict(names=("a", "a")), "names has 'a' 2 times: each value needs a name of its own"),
        (([(1, 2)],), dict(names=("a", "")), "names has '', and a batch's arrays need printable strings"),
        ((datasets.fill, 3), dict(fields=["a"]), r"fields must be a dict of names, types and shapes, .* not \['a'\]"),
        ((datasets.fill, 3), dict(fields={1: ("uint8", ())}), "fields must be a dict of names, types and shapes"),
        ((datasets.fill, 3), dict(fields={"a": "uint8"}), "fields gives a 'uint8': say its type and its shape"),
        ((datasets.fill, 3), dict(fields={"a": ("uint8", 3)}), "fields gives a the shape 3, and a shape is a tuple"),
        (([1],), dict(timeout=0), "timeout must be more than 0 seconds and at most 1000000, not 0"),
        (([1],), dict(timeout=float("inf")), "timeout must be more than 0 seconds and at most 1000000, not inf"),
        (([1],), dict(workers=0), 'workers must be 1 to 4096, not 0; kind="thread" loads samples in this process'),
        (([1],), dict(workers=-1), "workers must be 1 to 4096, not -1"),
        (([1],), dict(workers="4"), "workers must be the number of processes or threads, an integer, not '4'"),
        (([1],), dict(workers=2.0), "workers must be the number of processes or threads, an integer, not 2.0"),
        (([1],), dict(workers=True), "workers must be the number of processes or threads, an integer, not True"),
        (([1],), dict(num_workers=4), "PythonSource has no parameter num_workers: workers= is the number"),
        (([1],), dict(batch_size=4), r"no parameter batch_size: it belongs to the loader, .*, batch_size=\.\.\.\)"),
        (([1],), dict(worker=4), r"no parameter worker: did you mean workers\?"),
        (([1] * 9, 4), {}, r"count is 4, and list has 9 samples by its len\(\): .*\[:n\] are n .* and workers= is"),
        (([1] * 3, 4), {}, "count is 4, and list has 3 samples"),
        ((datasets.Unsized(),), {}, "the length is not known"),
        ((datasets.fill, 3), {}, r'fill\(index, out\) needs fields=, .* such as fields=\{"data"'),
        (
            (datasets.slowly, 3),
            dict(fields={"a": ("uint8", ())}),
            r"slowly\(index\) is not given them: .* Leave fields",
        ),
        ((lambda: 3, 3), {}, r"<lambda>\(\) cannot be called for a sample: load\(index\) returns"),
        (([1],), dict(fields={"a": ("uint8", ())}), "fields is for a function"),
        ((datasets.fill, 3), dict(fields={"a": ("S3", ())}), "a has elements of type"),
        (
            (datasets.fill, 3),
            dict(fields={str(i): ("uint8", ()) for i in range(17)}),
            "17 fields; a sample has 1 to 16",
        ),
        ((datasets.fill, 3), dict(fields={"a": ("uint8", (1,) * 9)}), "at most 8 dimensions"),
        ((datasets.fill, 3), dict(fields={"a": ("uint8", (2**40, 2**40))}), "a cannot have shape"),
        ((datasets.fill, 3), dict(fields={"a": ("uint8", ())}, names=["a"]), "fields already has the names"),
    ],
)
def test_arguments_that_make_no_source(arguments, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PythonSource(*arguments, **options)


# ---- ends


def test_nothing_is_left():
    """No file, no process, no memory."""
    source = PythonSource(datasets.Images(8), workers=2)
    before = None
    for _ in range(4):
        with Loader(source, batch_size=4, timeout=PATIENCE) as loader:
            next(iter(loader))
            processes = loader._ring.processes
        assert len(processes) == 2 and all(map(ended, processes))
        gc.collect()  # also what other tests left
        files = len(os.listdir("/proc/self/fd"))
        before = before or files  # the first one starts multiprocessing's own servers
        assert files <= before


def test_a_channel_keeps_no_descriptor_of_its_makers():
    """They were handed over, and an interrupt on the way lost them."""
    gc.collect()  # what other tests left
    before = os.listdir("/proc/self/fd")
    channels = _channels.Channels("x", 1, [("data", np.dtype("uint8"), ())], 1, None)
    ours, theirs = socket.socketpair()
    with _channels.MemoryFile(channels.size, False) as file, ours, theirs:
        channels.open(0, file.fileno(), ours.fileno(), 0)
    assert channels.end(PATIENCE)
    channels.shut(0)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_of_a_channel_that_an_interrupt_drops_is_closed():
    """The descriptor was an integer, which an interrupt before the next statement lost."""
    gc.collect()
    before = os.listdir("/proc/self/fd")
    file = _channels.MemoryFile(4096, False)
    assert os.fstat(file.fileno()).st_size == 4096
    del file
    with pytest.raises(TypeError):
        _channels.MemoryFile("4096", False)
    assert os.listdir("/proc/self/fd") == before


def test_a_process_that_the_kernel_keeps_holds_nobody_up():
    """One that is in the middle of a read from a dead disk, for example. close() waits for it once more."""
    waited = []

    class Kept:
        pid = 1
        exitcode = None

        def kill(self):
            pass

        def join(self, timeout):
            waited.append(timeout)

    team = PythonSource(datasets.Images(4), workers=1).__fastbatch_team__(False, 1)
    first, team.workers[0] = team.workers[0], Kept()
    team.channels.shut(0)  # as if it had ended
    team.tend()
    assert team.workers[0].pid != first.pid and set(waited) == {0}
    team.close()
    assert waited[0] == 0 and max(waited) <= _team.PATIENCE
    first.kill()
    first.join(PATIENCE)


def test_a_forked_child_that_exits_leaves_the_parents_workers_alone():
    run_child(
        """
        import os
        import datasets
        from fastbatch import Loader, PythonSource

        if __name__ == "__main__":
            loader = Loader(PythonSource(datasets.Images(8), workers=2), batch_size=4, timeout=60)
            batches = iter(loader)
            next(batches)
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
                assert next(batches).label.tolist() == [4, 5, 6, 7]
                for batch in loader:
                    assert len(batch) == 4
        """,
        *FORKS,
    )


def test_a_forked_child_may_drop_the_loader():
    """Threads that do not exist in the child may wait for a worker."""
    run_child(
        """
        import gc, os
        import datasets
        from fastbatch import Loader, PythonSource

        if __name__ == "__main__":
            source = PythonSource(datasets.Images(1000), workers=1, kind="thread")
            loader = Loader(source, batch_size=100, threads=4, timeout=60)
            batches = iter(loader)
            next(batches)
            child = os.fork()
            if child == 0:
                del batches, loader
                gc.collect()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            loader.close()
        """,
        *FORKS,
    )


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_a_handler_of_sigterm_does_not_keep_workers_alive(method):
    run_child(
        f"""
        import signal, sys
        import datasets
        from fastbatch import Loader, PythonSource

        if __name__ == "__main__":
            signal.signal(signal.SIGTERM, lambda *arguments: sys.exit(1))
            loader = Loader(PythonSource(datasets.Images(1000), workers=2, start_method={method!r}), batch_size=10)
            next(iter(loader))
        """,
        *FORKS,
    )


def test_a_thread_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(_team, "PATIENCE", 0.1)
    begun, gate = threading.Event(), threading.Event()

    def load(index):
        if index:
            begun.set()
            gate.wait(PATIENCE)
        return index

    loader = Loader(PythonSource(load, 4, workers=1, kind="thread"), batch_size=1, timeout=PATIENCE)
    next(iter(loader))
    assert begun.wait(PATIENCE)
    with pytest.warns(RuntimeWarning, match="is still loading a sample, and is left behind"):
        loader.close()
    gate.set()


def ended(process):
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
