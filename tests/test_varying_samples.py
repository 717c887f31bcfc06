"""PythonSource: samples with different numbers of rows, or of different shapes; and first samples that say nothing."""

import pickle

import numpy as np
import pytest

import datasets
from fastbatch import Loader, PythonSource, SourceError
from fastbatch.sources._samples import layout_of

PATIENCE = 60
KINDS = ["process", "thread"]


def in_thread(load, count, **options):
    return PythonSource(load, count, workers=1, kind="thread", **options)


def arrays(source, **options):
    """The arrays of an epoch's batches, by name, one after the other."""
    with Loader(source, timeout=PATIENCE, **options) as loader:
        found = [{name: array.copy() for name, array in batch.items()} for batch in loader]
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def error_of(source, index, **options):
    """The reason why a sample cannot be loaded."""
    with Loader(source, timeout=PATIENCE, on_error="skip", **options) as loader:
        for _ in loader:
            pass
        return {error.index: error.reason for error in loader.errors}[index]


# ---- different numbers of rows


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_filled_up_with_zeros_and_counted(kind):
    source = PythonSource(datasets.Detections(), padded={"boxes": 5}, workers=2, kind=kind)
    source = pickle.loads(pickle.dumps(source))
    for given, indices in ((source, range(8)), (source[::-1], range(7, -1, -1)), (source[4:], range(4, 8))):
        found = arrays(given, batch_size=3)
        assert list(found) == ["data", "boxes", "boxes_count", "id"]
        assert found["boxes_count"].dtype == np.int64 and found["boxes"].dtype == np.float32
        assert found["boxes_count"].tolist() == [index % 4 for index in indices]
        for row, index in enumerate(indices):
            own = datasets.boxes(index)
            assert (found["boxes"][row] == np.concatenate([own, np.zeros((5 - len(own), 4))])).all()
            assert (found["data"][row] == datasets.image(index)).all()
    assert source.fields["boxes"] == (np.float32, (5, 4)) and source.fields["boxes_count"] == (np.int64, ())


def test_the_rows_of_an_earlier_batch_do_not_stay():
    """The memory of a batch is used again."""
    with Loader(in_thread(lambda i: (0, [i] * (3 - i % 4)), 16, padded={"label": 3}), prefetch=1) as loader:
        for _ in range(3):
            for index, batch in enumerate(loader):
                assert batch.label.tolist() == [([index] * (3 - index % 4) + [0] * 3)[:3]]
                assert batch.label_count == 3 - index % 4


def test_all_that_is_padded_and_as_large_as_there_is_room():
    source = in_thread(lambda i: (np.full((i, 2, 2), i, np.int16), i), 4, padded={"data": 3}, names=["points", "n"])
    with pytest.raises(ValueError, match="padded has 'data', and samples have points, n"):
        Loader(source)
    source = in_thread(lambda i: np.full((i, 2, 2), i, np.int16), 4, padded={"data": 3})
    found = arrays(source)
    assert found["data"].shape == (4, 3, 2, 2) and found["data_count"].tolist() == [0, 1, 2, 3]
    assert (found["data"][3] == 3).all() and found["data"].sum() == 4 * (1 + 4 + 9)


@pytest.mark.parametrize(
    "value, reason",
    [
        (np.zeros((6, 4), np.float32), r'6 rows, and padded={"boxes": 5} has room for 5: give a larger number, or'),
        (np.zeros((2, 5), np.float32), "shape (2, 5), but each row of the first sample's has shape (4,); only the"),
        (np.zeros((2, 4), np.float64), "dtype float64, but the first sample's has dtype float32"),
        (7.0, "its boxes is a float, and padded= is for arrays, whose first axis is padded"),
        ("text", "a value is a str"),
    ],
)
def test_rows_that_do_not_fit_are_an_error_of_their_sample(value, reason):
    source = PythonSource(datasets.Detections(boxes=value), padded={"boxes": 5}, workers=1, kind="thread")
    assert reason in error_of(source, 5)


@pytest.mark.parametrize(
    "sample, padded, message",
    [
        ({"a": 1}, {"a": 3}, "its a is an int, and padded= is for arrays"),
        ({"a": [1], "a_count": 1}, {"a": 3}, "padded makes a field a_count of the number of rows, and samples have"),
        ({str(i): [i] for i in range(16)}, {"5": 3}, "a sample has 17 fields, with the counts of padded="),
        ({"a": np.zeros((2, 2**17))}, {"a": 2**30}, "a cannot have shape"),
    ],
)
def test_what_cannot_be_padded(sample, padded, message):
    with pytest.raises((TypeError, ValueError), match=message):
        layout_of(sample, padded=padded)


@pytest.mark.parametrize(
    "options, kind, message",
    [
        (dict(padded={"a": 0}), ValueError, "padded gives a 0 rows; it can have 1 to 2147483647"),
        (dict(padded={"a": 1.5}), TypeError, "float"),
        (dict(padded={"a": 2}, fields={"a": ("uint8", (3,))}), ValueError, "leave padded out"),
    ],
)
def test_arguments_that_make_no_source(options, kind, message):
    with pytest.raises(kind, match=message):
        PythonSource(datasets.fill, 3, **options)


# ---- the first sample


def test_rows_are_looked_for_where_the_first_sample_has_none():
    """An empty list says neither a type nor a shape."""
    source = in_thread(lambda i: ([[0.5, i]] * (i - 3) if i > 3 else [], i), 6, padded={"data": 4})
    found = arrays(source, batch_size=6)
    assert found["data"].shape == (6, 4, 2) and found["data_count"].tolist() == [0, 0, 0, 0, 1, 2]
    nothing = in_thread(lambda i: np.zeros((0, 4), np.int32), 20, padded={"data": 2})
    assert nothing.fields == {"data": (np.int32, (2, 4)), "data_count": (np.int64, ())}
    fails = in_thread(lambda i: 1 // 0 if i else ([], 0), 2, padded={"data": 2})
    assert fails.fields["data"] == (np.float64, (2,))


@pytest.mark.parametrize("kind, wrong", [("process", "dies"), ("process", "raises"), ("thread", "raises")])
def test_a_first_sample_that_may_be_passed_over(kind, wrong):
    """With on_error="skip", a data set whose sample 0 is bad could not be loaded at all."""
    source = PythonSource(datasets.Images(4, **{wrong: 0}), workers=1, kind=kind)
    with pytest.raises(SourceError, match="sample 0"):
        Loader(source)
    with Loader(source, on_error="skip", batch_size=2, timeout=PATIENCE) as loader:
        assert [batch.label.tolist() for batch in loader] == [[1], [2, 3]]
        assert [error.index for error in loader.errors] == [0]


def test_a_first_sample_that_hangs_may_be_passed_over():
    source = PythonSource(datasets.Images(4, hangs=0), workers=1, timeout=1)
    assert source._known_layout(range(4), tolerant=True).index == 1


def test_all_first_samples_fail():
    loaded = []

    def load(index):
        loaded.append(index)
        raise LookupError(index)

    with pytest.raises(SourceError, match="sample 9 of .* cannot be loaded: loading it raised LookupError: 9"):
        Loader(in_thread(load, 100)[[9, 7, 50, *range(20, 40)]], on_error="skip")
    assert loaded == [9, 7, 50, *range(20, 33)]
