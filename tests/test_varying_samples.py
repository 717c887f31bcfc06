"""PythonSource: samples with different numbers of rows, or of different shapes; and first samples that say nothing."""

import gc
import os
import pickle

import numpy as np
import pytest

import datasets
from fastbatch import Loader, PythonSource, SourceError, Transform
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


def channel_files():
    """The files of shared memory that this process has open: {inode: path}."""
    gc.collect()  # loaders of earlier tests, whose files would be closed meanwhile
    files = [f"/proc/self/fd/{file}" for file in os.listdir("/proc/self/fd")]
    files = [file for file in files if os.path.lexists(file) and "memfd:fastbatch" in os.readlink(file)]
    return {os.stat(file).st_ino: file for file in files}


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


def test_what_is_padded_or_varies_and_has_no_rows_is_one_kind_of_error():
    """Of a number, the probe of the first sample failed: another class than of a name that is wrong."""
    for options, message in (
        (dict(padded={"label": 3}), "padded has 'label', which is a number, and has no rows: leave it out"),
        (dict(padded={"box": 3}), "padded has 'box', and samples have data, label"),
        (dict(varying=["label"]), "varying has 'label', which is a number, and has always the same shape: leave it"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(in_thread(lambda i: ([1, 2], i), 4, **options))
    assert arrays(in_thread(lambda i: [i], 2, varying=np.True_))["data"].tolist() == [[0], [1]]


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


def test_first_samples_whose_empty_lists_do_not_say_what_a_row_is():
    """It was said that rows have shape ()."""
    source = in_thread(lambda i: (0, np.ones((2, 4), np.float32) if i == 16 else []), 17, padded={"label": 3})
    assert error_of(source, 16).endswith(
        "its label has shape (2, 4), and the samples that were looked at first have none, and do not say what shape a "
        'row has: for a sample without rows, return numpy.zeros((0, 4), "float32"), and not []'
    )
    none = np.zeros((0, 4), np.float32)
    found = arrays(in_thread(lambda i: (0, none + i if i < 16 else none + 1), 17, padded={"label": 3}))
    assert found["label"].shape == (17, 3, 4) and found["label"].dtype == np.float32


@pytest.mark.parametrize(
    "sample, padded, message",
    [
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
        (dict(padded={"a": 1.5}), TypeError, "padded gives a 1.5 rows, and the number of rows must be an integer"),
        (dict(padded={"a": "3"}), TypeError, "padded gives a '3' rows, and the number of rows must be an integer"),
        (dict(padded={"a": True}), TypeError, "padded gives a True rows, and the number of rows must be an integer"),
        (dict(padded=("a",)), TypeError, r'padded must be a dict of names and numbers of rows, such as {"boxes": 20}'),
        (dict(padded={1: 2}), TypeError, r"padded must be a dict of names and numbers of rows, .* not {1: 2}"),
        (
            dict(varying=None),
            TypeError,
            r'varying must be a tuple of names, such as \("data",\), or True or False, not N',
        ),
        (dict(varying=0), TypeError, "varying must be a tuple of names, .* not 0"),
        (dict(padded={"a": 2}, fields={"a": ("uint8", (3,))}), ValueError, "leave padded and varying out"),
    ],
)
def test_arguments_that_make_no_source(options, kind, message):
    with pytest.raises(kind, match=message):
        PythonSource(datasets.fill, 3, **options)


# ---- different shapes

TRANSFORMS = [
    dict(crop_size=7, mirror=True, scale=0.5),
    dict(resize=11, crop_size=(9, 10), phase="TEST"),
    dict(random_resized_crop=6, mean=(0.1, 0.2, 0.3)),
]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_one_have_the_shape_of_their_sample(kind):
    source = PythonSource(datasets.Photos(), varying=("data", "mask"), workers=2, kind=kind)
    source = pickle.loads(pickle.dumps(source))
    for given, indices in ((source, range(12)), (source[3:], range(3, 12))):
        with Loader(given, timeout=PATIENCE) as loader:
            for index, batch in zip(indices, loader):
                assert batch.label == index and batch.label.dtype == np.int64
                np.testing.assert_array_equal(batch.data[0], datasets.photo(index))
                np.testing.assert_array_equal(batch.mask[0], datasets.photo(index)[0])
    assert source.shape == source.shape_of(0) == (3, 8, 20) and source[3:].shape == (3, 11, 17)
    with pytest.raises(IndexError, match="the source has 12 samples, and no 12"):
        source.shape_of(12)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_makes_images_of_one_shape(kind, transform):
    """The same as of arrays that have only this image."""
    transform = Transform(fields=("data", "mask"), **transform)
    source = PythonSource(datasets.Photos(), varying=True, workers=2, kind=kind)
    found = arrays(source, transform=transform, batch_size=5, seed=3)
    for index in range(12):
        same = np.stack([datasets.photo(index)] * 12)
        expected = arrays({"data": same, "mask": same[:, 0]}, transform=transform, batch_size=12, seed=3)
        for name in ("data", "mask"):
            np.testing.assert_array_equal(found[name][index], expected[name][index])
    assert found["label"].tolist() == list(range(12))


def test_tensors_of_different_shapes():
    pytest.importorskip("torch")
    import torch_datasets
    from fastbatch.torch import TorchLoader

    source = PythonSource(torch_datasets.Photos(), varying=("data",), workers=2)
    with TorchLoader(source, Transform(crop_size=7), batch_size=5, timeout=PATIENCE) as loader:
        assert [tuple(batch["data"].shape) for batch in loader] == [(5, 3, 7, 7), (5, 3, 7, 7)]
    with TorchLoader(source, timeout=PATIENCE) as loader:
        for index, batch in enumerate(loader):
            np.testing.assert_array_equal(batch["data"][0].numpy(), datasets.photo(index))


def test_a_batch_of_different_shapes_is_an_error_that_says_what_to_do():
    source = PythonSource(datasets.Photos(), varying=("data", "mask"), workers=1, kind="thread")
    said = error_of(source, 1, batch_size=2)
    assert "its data has shape (3, 9, 19), but the batch has (3, 8, 20)" in said
    assert "use crop_size, a batch size of 1, or samples of one shape" in said
    source = in_thread(lambda i: [0] * (i + 1), 2, varying=True)
    assert error_of(source, 1, batch_size=2) == (
        "its data has shape (2), but the batch has (1), the shape of its first sample; use a batch size of 1, a "
        "Transform that crops, or samples of one shape (of rows: padded= of a PythonSource)"
    )


@pytest.mark.parametrize(
    "name, value, reason",
    [
        (
            "data",
            np.zeros((8, 9), np.uint8),
            r"its data has shape (8, 9), and the first sample's has 3 dimensions; sizes",
        ),
        ("data", np.zeros((3, 8, 9), np.int16), "its data has dtype int16, but the first sample's has dtype uint8"),
        ("label", [1, 2], "its label has shape (2,), but the first sample's has dtype int64 and shape ()"),
        ("data", None, "a value is a NoneType"),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"transform": Transform(crop_size=8, fields=("data", "mask"))}], ids=["", "crop"]
)
def test_a_sample_of_another_kind_is_an_error(name, value, reason, options):
    source = PythonSource(datasets.Photos(**{name: value}), varying=("data", "mask"), workers=1, kind="thread")
    assert reason in error_of(source, 5, **options)


def test_samples_of_different_shapes_without_varying_are_told_of_it():
    with Loader(in_thread(lambda i: np.zeros((3, i + 1)), 2), on_error="skip", timeout=PATIENCE) as loader:
        assert len(list(loader)) == 1
        assert loader.errors[0].reason.endswith(
            """all samples need the same. If shapes vary, say PythonSource(..., varying=("data",))"""
        )
    with Loader(in_thread(lambda i: np.zeros((i + 1, 4)), 2), on_error="skip", timeout=PATIENCE) as loader:
        assert len(list(loader)) == 1
        assert loader.errors[0].reason.endswith(
            """varying=("data",)), or padded={"data": ...} to have rows of zeros behind each"""
        )


@pytest.mark.parametrize("varying", [False, True])
def test_images_whose_channels_are_last_are_refused_with_the_way_out(varying):
    source = in_thread(lambda i: np.zeros((8 + i, 9, 3), np.uint8), 2, varying=varying)
    with pytest.raises(
        ValueError, match=r"a sample looks like height x width x channels: have the data set return numpy.asarray\(imag"
    ):
        Loader(source, Transform(crop_size=3))
    with Loader(source, Transform(scale=2)) as loader:  # moves no pixel
        assert next(iter(loader)).data.shape == (1, 8, 9, 3)


def test_images_beside_the_image_are_not_left_as_they_are():
    source = PythonSource(datasets.Photos(), varying=True, workers=1, kind="thread")
    for given in (source, source[2:]):
        with pytest.raises(ValueError, match=r"Name it too: Transform\(fields=\('data', 'mask'\), ...\)"):
            Loader(given, Transform(crop_size=3))
    with Loader(source, Transform(scale=2), timeout=PATIENCE) as loader:
        assert next(iter(loader)).mask.shape == (1, 8, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_the_room_for_a_sample_grows_and_shrinks(kind):
    """A sample that is far larger than all others costs its memory for some time only."""
    before = channel_files()
    source = PythonSource(datasets.large, 100, varying=True, workers=1, kind=kind)
    with Loader(source, threads=1, prefetch=1, timeout=PATIENCE) as loader:
        (path,) = (path for inode, path in channel_files().items() if inode not in before)
        room = os.open(path, os.O_RDWR)
        try:
            for index, batch in enumerate(loader):
                assert batch.data.shape[1] == (1 << 26 if index == 3 else 1000 + index)
                assert (batch.data == index % 251).all()
                if index == 3:
                    assert os.fstat(room).st_blocks * 512 >= 1 << 26
            assert os.fstat(room).st_blocks * 512 < 1 << 20
            with pytest.raises(PermissionError):  # the loader would be ended by a file that gets smaller
                os.ftruncate(room, 1 << 20)
        finally:
            os.close(room)
    assert channel_files() == before


LIES = [
    (-1, 4, 4),
    (3, -1, 4),
    (1 << 62, 4, 4),
    (0, 1 << 62, 1 << 62),
    (1 << 40, 1 << 40, 1 << 40),
    (3, 1 << 20, 1 << 20),
    (1 << 45, 1, 1),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_that_is_not_true_is_an_error(kind):
    """A worker whose memory is damaged must not have the loader read what is not there."""
    dataset = datasets.Lying(LIES)
    source = PythonSource(dataset, len(LIES) + 2, varying=("data",), workers=1, kind=kind)
    with Loader(source, on_error="skip", timeout=PATIENCE) as loader:
        assert [batch.label.tolist() for batch in loader] == [[0], [len(LIES) + 1]]
        assert [error.index for error in loader.errors] == list(range(1, len(LIES) + 1))
        for error in loader.errors:
            assert "says a shape of its data that the shared memory has no room for" in error.reason


@pytest.mark.parametrize(
    "options, kind, message",
    [
        (
            dict(varying="data"),
            TypeError,
            r'varying must be a tuple of names, such as \("data",\), or True or False, not \'data\'',
        ),
        (dict(varying=[3]), TypeError, "varying must be a tuple of names"),
        (dict(varying=["a"], padded={"a": 3}), ValueError, "a is both padded, to one shape, and varying"),
        (dict(varying=True, fields={"a": ("uint8", (3,))}), ValueError, "leave padded and varying out"),
    ],
)
def test_what_cannot_vary(options, kind, message):
    with pytest.raises(kind, match=message):
        PythonSource(datasets.fill, 3, **options)


@pytest.mark.parametrize(
    "sample, varying, message",
    [
        ((np.zeros(3), 1), ["image"], "varying has 'image', and samples have data, label"),
        ((np.zeros(3), 1), ["data", "label"], "varying has 'label', which is a number, and has always the same shape"),
        (1, True, "varying=True has no effect: samples have data, of which none is an array"),
    ],
)
def test_what_cannot_vary_in_samples(sample, varying, message):
    with pytest.raises(ValueError, match=message):
        Loader(in_thread(lambda i: sample, 2, varying=varying))


def test_varying_and_padded_values_and_positions():
    """An iterable, errors that are skipped, a position, and both kinds of values."""

    def samples():
        for index in range(9):
            yield {"data": np.full((index + 1, 2), index, np.float32), "tags": list(range(index % 3)), "id": index}

    source = PythonSource(samples, 9, varying=True, padded={"tags": 2}, kind="thread")
    with Loader(source, batch_size=1, timeout=PATIENCE) as loader:
        epoch = iter(loader)
        for _ in range(4):
            batch = next(epoch)
        assert (batch.data.shape, batch.tags.tolist(), batch.tags_count) == ((1, 4, 2), [[0, 0]], 0)
        state = loader.state_dict()
    with Loader(source, batch_size=1, timeout=PATIENCE) as loader:
        loader.load_state_dict(state)
        batch = next(iter(loader))
        assert (batch.data.tolist(), batch.tags.tolist(), batch.tags_count) == ([[[4.0, 4.0]] * 5], [[0, 0]], 1)


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
