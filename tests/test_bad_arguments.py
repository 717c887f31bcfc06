"""What a loader refuses before it starts a thread: parameters, sources, arrays, and transforms that do not fit."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from children import native_threads
from contracts import outcomes
from databases import datum, images, varint, write_lmdb
from fastbatch import ArraySource, LMDBSource, Loader, MissingLibraryError, Transform
from planned import PATIENCE

# ---- parameters


@pytest.mark.parametrize("name, most", [("batch_size", 2**31 - 1), ("prefetch", 2**16), ("threads", 4096)])
def test_counts_out_of_range(name, most):
    before = native_threads()
    for value in (0, -1, most + 1, 2**70):
        with pytest.raises(ValueError, match=f"{name} must be between 1 and {most}, not {value}"):
            Loader(np.arange(4), **{name: value})
    for value in (1.5, "2", True, [1], np.float32(1)):
        with pytest.raises(TypeError, match=f"{name} must be an integer, not "):
            Loader(np.arange(4), **{name: value})
    assert native_threads() == before


@pytest.mark.parametrize("name", ["batch_size", "prefetch", "threads"])
def test_counts_of_numpys_types(name):
    with Loader(np.arange(4), **{name: np.int8(2)}) as loader:
        assert sum(len(batch) for batch in loader) == 4


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"seed": -1}, ValueError, "seed must be between 0 and 2**64 - 1, not -1"),
        ({"seed": 2**64}, ValueError, "seed must be between 0 and 2**64 - 1, not 18446744073709551616"),
        ({"seed": "7"}, TypeError, "seed must be an integer, not '7'"),
        ({"seed": True}, TypeError, "seed must be an integer, not True"),
        (
            {"timeout": -1},
            ValueError,
            "timeout must be seconds, 0 or more, or None to wait as long as it takes; not -1",
        ),
        (
            {"timeout": float("nan")},
            ValueError,
            "timeout must be seconds, 0 or more, or None to wait as long as it takes; not nan",
        ),
        (
            {"timeout": "soon"},
            TypeError,
            "timeout must be seconds, 0 or more, or None to wait as long as it takes; not 'soon'",
        ),
        ({"transform": {"crop_size": 3}}, TypeError, "transform must be a fastbatch.Transform or None, not dict"),
        ({"transform": 64}, TypeError, "Transform or None, not int: the size of a batch is batch_size=64"),
        ({"transform": np.flip}, TypeError, "call it where your data set loads a sample, in its worker processes"),
        (
            {"last_batch": "drop", "batch_size": 5},
            ValueError,
            'there are 4 samples, too few for a batch of 5: "drop" leaves nothing',
        ),
        ({"shuffel": True}, TypeError, "Loader has no parameter shuffel: did you mean shuffle?"),
        ({"batchsize": 3}, TypeError, "did you mean batch_size?"),
        (
            {"colour": 3},
            TypeError,
            "threads, prefetch, last_batch, rank, ranks, even, timeout",
        ),
        ({"shuffle": [3, 2, 1]}, TypeError, "shuffle must be True or False, not [3, 2, 1]"),
        ({"shuffle": "False"}, TypeError, "shuffle must be True or False, not 'False'"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False, not 1"),
        (
            {"shuffle": 1000},
            TypeError,
            "not 1000: to shuffle within windows of 1000 consecutive samples, say shuffle=True, shuffle_window=1000",
        ),
        ({"shuffle_window": 1000}, ValueError, "shuffle_window has no effect without shuffle=True"),
        ({"shuffle": True, "shuffle_window": 1}, ValueError, "shuffle_window must be at least 2 samples, not 1"),
        ({"shuffle": True, "shuffle_window": 2.5}, TypeError, "shuffle_window must be an integer, not 2.5"),
        (
            {"shuffle": True, "weights": [1] * 4},
            ValueError,
            "weights draws samples at random already: leave out shuffle",
        ),
        ({"weights": [1, 2, 3]}, ValueError, "weights has 3 numbers, and there are 4 samples: it needs one for each"),
        ({"weights": [1, 2, 3, -4]}, ValueError, "weights must be finite and at least 0, and weights[3] is -4.0"),
        (
            {"weights": [1] * 4, "rank": 0, "ranks": 2},
            ValueError,
            "several ranks that shuffle, or draw by weights, need",
        ),
        ({"last_batch": "keep"}, ValueError, "last_batch must be 'partial', 'drop', 'pad' or 'wrap', not 'keep'"),
        ({"last_batch": None}, ValueError, "last_batch must be 'partial', 'drop', 'pad' or 'wrap', not None"),
        (
            {"last_batch": "wrap", "rank": 0, "ranks": 2, "even": "pad"},
            ValueError,
            "even='pad' has no effect with last_batch=\"wrap\", which gives all ranks full batches",
        ),
        (
            {"drop_last": True},
            TypeError,
            'Loader has no parameter drop_last: last_batch="drop" leaves out a smaller last batch',
        ),
        ({"rank": 2, "ranks": 2}, ValueError, "rank must be between 0 and 1 with ranks=2, not 2"),
        ({"rank": -1, "ranks": 2}, ValueError, "rank must be between 0 and 1 with ranks=2, not -1"),
        ({"rank": 0, "ranks": 0}, ValueError, "ranks must be between 1 and 2147483647, not 0"),
        ({"rank": 0}, ValueError, 'rank and ranks belong together: give both, or rank="auto" alone'),
        ({"ranks": 2}, ValueError, 'rank and ranks belong together: give both, or rank="auto" alone'),
        ({"rank": "auto", "ranks": 2}, ValueError, 'rank="auto" finds the number of ranks as well: leave ranks out'),
        ({"rank": "first", "ranks": 2}, ValueError, "rank must be an integer or \"auto\", not 'first'"),
        ({"rank": 0, "ranks": 2, "even": True}, ValueError, "even must be None, 'pad' or 'drop', not True"),
        ({"even": "pad"}, ValueError, "even='pad' has no effect without rank= and ranks="),
        (
            {"rank": 0, "ranks": 2, "shuffle": True},
            ValueError,
            "several ranks that shuffle, or draw by weights, need the same seed: without seed=, each would draw",
        ),
        (
            {"rank": 4, "ranks": 5},
            ValueError,
            'there are 4 samples, so shard 4 of 5 is empty; use fewer shards, or even="pad"',
        ),
        # PyTorch's
        (
            {"num_workers": 4},
            TypeError,
            "Loader has no parameter num_workers: samples are read by native threads of this process",
        ),
        ({"pin_memory": True}, TypeError, "to the device by way of pinned memory"),
        ({"collate_fn": list}, TypeError, "native threads put the samples side by side"),
        ({"sampler": [2, 1]}, TypeError, "shuffle=True gives a new order for each epoch, fixed by seed"),
        ({"batch_sampler": [[2, 1]]}, TypeError, "shuffle=True gives a new order for each epoch, fixed by seed"),
        ({"worker_init_fn": print}, TypeError, "threads=, by default one for each usable core"),
        ({"prefetch_factor": 2}, TypeError, "prefetch= is the number of batches prepared ahead"),
        ({"persistent_workers": True}, TypeError, "the threads of a loader live as long as it does"),
        ({"generator": None}, TypeError, "the order and the random crops are fixed by seed"),
    ],
)
def test_other_options(options, error, words):
    before = native_threads()
    with pytest.raises(error) as caught:
        Loader(np.arange(4), **options)
    assert words in str(caught.value)
    assert native_threads() == before


@pytest.mark.parametrize(
    "source, words",
    [
        (
            [1, 2, 3],
            "not list: make one array of its samples by numpy.asarray(), or say fastbatch.ArraySource(*arrays)",
        ),
        ([], "not list: make one array of its samples"),
        ([(np.zeros(3), 1)], "or fastbatch.PythonSource(...) of this list if it holds samples (data, label)"),
        ([np.arange(3), np.arange(3)], "not list: make one array of its samples"),
        (
            [("cat.jpg", 0)],
            "not list: for pairs of a file's path and a label say fastbatch.ImageListSource(...) of this list",
        ),
        ([[Path("cat.jpg"), 0]], "say fastbatch.ImageListSource(...)"),
        (None, "not NoneType"),
        (7, "not int"),
        (
            (np.arange(3), np.arange(3), np.arange(3)),
            "not a tuple of 3: more than two arrays go into a dict, by their names",
        ),
        ((), "not a tuple of 0"),
    ],
)
def test_what_is_no_source(source, words):
    with pytest.raises(TypeError) as caught:
        Loader(source)
    assert str(caught.value).startswith(
        "source must be a source such as ArraySource or LMDBSource, an array, a tuple (data, label) or a dict"
    )
    assert words in str(caught.value)


def test_a_loader_is_no_source():
    with Loader(np.zeros((4, 2))) as loader:
        with pytest.raises(
            TypeError, match=r"not a Loader, which makes batches of one: give its source \(loader.source"
        ):
            Loader(loader)
        with Loader(loader.source) as other:
            assert len(other) == 4


def test_paths_are_no_sources(tmp_path):
    """It says which source reads what is there."""
    said = {}
    for name in "lmdb/data.mdb", "leveldb/CURRENT", "folder/a.jpg", "train.txt", "a.npy", "a.npz", "a.h5":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (
        "lmdb",
        "lmdb/data.mdb",
        "leveldb",
        "folder",
        "folder/a.jpg",
        "train.txt",
        "a.npy",
        "a.npz",
        "a.h5",
        "none",
    ):
        path = str(tmp_path / name)
        for source in path, Path(path), path.encode():
            with pytest.raises(TypeError) as caught:
                Loader(source)
            said[name] = str(caught.value).replace(str(tmp_path), "...")
            assert said[name].startswith("source must be a source, not a path: ")
    ends = {name: words.split("path: ", 1)[1] for name, words in said.items()}
    assert ends["lmdb"] == ends["lmdb/data.mdb"] == "for the database say fastbatch.LMDBSource('.../lmdb')"
    assert ends["leveldb"] == "for the database say fastbatch.LevelDBSource('.../leveldb')"
    assert "say fastbatch.ImageListSource of a list of pairs (path, label)" in ends["folder"]
    assert ends["folder/a.jpg"] == "for image files say fastbatch.ImageListSource([('.../folder/a.jpg', label), ...])"
    assert (
        ends["train.txt"]
        == "for a list of image files, a line for each, say fastbatch.ImageListSource('.../train.txt')"
    )
    assert ends["a.npy"].startswith("give the array: numpy.load('.../a.npy', mmap_mode='r')")
    assert ends["a.npz"] == "give the arrays: dict(numpy.load('.../a.npz'))"
    assert ends["a.h5"].startswith("give the arrays, such as h5py.File('.../a.h5')['data'][:]")
    assert ends["none"].startswith("there is no .../none, either")


# ---- arrays


@pytest.mark.parametrize("name", ["a\0b", "\udc80", "a\nb"])
def test_names_that_cannot_be_printed(name):
    with pytest.raises(
        ValueError, match="an array cannot have the name .*: it holds characters that cannot be printed"
    ):
        Loader({name: np.arange(3), "a": np.arange(3)})


def test_names_that_are_no_strings():
    with pytest.raises(
        TypeError, match="the dict of arrays has the key 1: keys are the arrays' names, and must be strings"
    ):
        Loader({1: np.arange(3)})


@pytest.mark.parametrize(
    "array, words",
    [
        (np.array(["a", "b"]), "elements of type <U1"),
        (np.array([1, None], dtype=object), "elements of type object"),
        (np.zeros(3, np.complex64), "elements of type complex64"),
        (np.zeros(3, "M8[s]"), "elements of type datetime64[s]"),
        (np.zeros(3, ">f4"), "elements of type >f4"),
        (np.zeros(3, [("x", "f4")]), "elements of type [('x', '<f4')]"),
    ],
)
def test_arrays_of_other_types(array, words):
    with pytest.raises(TypeError) as caught:
        ArraySource(image=array)
    assert str(caught.value).startswith("image has " + words)
    assert "uint8" in str(caught.value) and "float32" in str(caught.value) and "astype()" in str(caught.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({}, "0 arrays; an ArraySource has 1 to 16"),
        ({f"a{i}": np.arange(3) for i in range(17)}, "17 arrays; an ArraySource has 1 to 16"),
        (
            {"data": np.arange(3), "label": np.arange(4)},
            "the arrays have different numbers of samples: data has 3, label has 4",
        ),
        ({"data": np.empty((0, 3))}, "the arrays are empty; a loader needs at least one sample"),
        ({"data": np.float32(1)}, "data has shape (); it needs a first axis that counts samples"),
        ({"data": np.zeros((1,) * 9)}, "data has shape (1, 1, 1, 1, 1, 1, 1, 1, 1)"),
    ],
)
def test_arrays_that_do_not_fit(arrays, words):
    with pytest.raises(ValueError) as caught:
        ArraySource(**arrays)
    assert words in str(caught.value)


def test_an_array_given_twice():
    with pytest.raises(ValueError, match="the array 'data' is given twice, by position and by name"):
        ArraySource(np.arange(3), data=np.arange(3))


def test_masked_arrays():
    """Their mask was lost: what it hides arrived in batches."""
    masked = np.ma.masked_equal([1, -9999, 3], -9999)
    for arrays in masked, (np.arange(3), masked), {"data": np.arange(3), "weight": masked}:
        with pytest.raises(TypeError, match=r"is a masked array, and batches have no mask: .* with \w+\.filled"):
            Loader(arrays)
    with Loader(masked.filled(0), batch_size=3) as loader:
        assert next(iter(loader)).data.tolist() == [1, 0, 3]


# ---- transforms


def mean_file(path, *dims, values=None):
    """A BlobProto of this shape, as compute_image_mean writes it."""
    count = int(np.prod(dims)) if values is None else values
    packed = b"".join(map(varint, dims))
    blob = (
        b"\x3a"
        + varint(2 + len(packed))
        + b"\x0a"
        + varint(len(packed))
        + packed
        + b"\x2a"
        + varint(4 * count)
        + bytes(4 * count)
    )
    path.write_bytes(blob)
    return str(path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"crop_size": 9}, "the image, 3 x 8 x 9 (channels, height, width), is smaller than crop_size 9"),
        ({"crop_size": 10**9, "phase": "TEST"}, "is smaller than crop_size 1000000000"),
        ({"mean_value": (1, 2)}, "Specify either 1 mean_value or as many as channels: 3 (there are 2)"),
        ({"mean_value": (1, 2, 3, 4)}, "Specify either 1 mean_value or as many as channels: 3 (there are 4)"),
        (
            {"mean_file": (1, 3, 8, 8)},
            "the mean image is 3 x 8 x 8 (channels, height, width) but the image, before cropping, is 3 x 8 x 9",
        ),
        (
            {"mean_file": (1, 1, 8, 9), "crop_size": 4},
            "the mean image is 1 x 8 x 9 (channels, height, width) but the image",
        ),
    ],
)
def test_transforms_that_do_not_fit_the_image(tmp_path, options, words):
    if "mean_file" in options:
        options = {**options, "mean_file": mean_file(tmp_path / "mean.binaryproto", *options["mean_file"])}
    path = write_lmdb(tmp_path / "db", [datum(images(1, (3, 8, 9))[0], 0), datum(images(1, (3, 8, 9))[0], 0)])
    with LMDBSource(path) as source, Loader(source, Transform(**options), timeout=PATIENCE) as loader:
        errors = outcomes(iter(loader))
        assert [error.key for error in errors] == [b"00000000", b"00000001"]
        for error in errors:
            assert error.source == path and words in error.reason


def refusal(arrays, **options):
    """The error with which a loader refuses to transform these arrays, before it starts a thread."""
    before = native_threads()
    with pytest.raises((TypeError, ValueError)) as caught:
        Loader(arrays, Transform(**options))
    assert native_threads() == before
    return f"{caught.type.__name__}: {caught.value}"


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.float16, bool], ids=lambda dtype: np.dtype(dtype).name)
def test_arrays_of_types_that_no_transform_takes(dtype):
    data = np.zeros((4, 3, 8, 9), dtype)
    assert refusal((data, np.arange(4))) == (
        f"TypeError: data is {data.dtype}, and a transform takes uint8 or float32: convert it with "
        f"astype(numpy.float32)"
    )


@pytest.mark.parametrize("ndim", [0, 1, 4])
def test_arrays_that_are_no_images(ndim):
    assert refusal(np.zeros((2, *[3] * ndim), np.uint8)) == (
        "ValueError: the transform does not fit data: an image has 3 dimensions (channels, height, width) or 2 "
        f"(height, width), this one has {ndim}"
    )


@pytest.mark.parametrize(
    "shape, options, words, looks_last",
    [
        (
            (8, 9, 3),
            {"mean_value": (1, 2, 3)},
            "Specify either 1 mean_value or as many as channels: 8 (there are 3)",
            True,
        ),
        (
            (28, 28, 1),
            {"crop_size": 24},
            "the image, 28 x 28 x 1 (channels, height, width), is smaller than crop_size 24",
            True,
        ),
        ((8, 9, 4), {"crop_size": 5}, "is smaller than crop_size 5", True),
        ((8, 9, 3), {"mean_file": (1, 3, 8, 9)}, "the mean image is 3 x 8 x 9", True),
        (
            (3, 8, 9),
            {"mean_value": (1, 2)},
            "Specify either 1 mean_value or as many as channels: 3 (there are 2)",
            False,
        ),
        ((3, 8, 3), {"crop_size": 5}, "is smaller than crop_size 5", False),
        ((8, 9, 2), {"crop_size": 5}, "is smaller than crop_size 5", False),
        ((9, 3), {"crop_size": 5}, "is smaller than crop_size 5", False),
        ((3, 0, 3), {}, "the image has no pixels", False),
    ],
)
def test_arrays_that_a_transform_does_not_fit(tmp_path, shape, options, words, looks_last):
    if "mean_file" in options:
        options = {"mean_file": mean_file(tmp_path / "mean.binaryproto", *options["mean_file"])}
    data = np.zeros((2, *shape), np.float32)
    said = refusal({"label": np.arange(2), "data": data}, **options)
    assert said.startswith("ValueError: the transform does not fit data: ") and words in said
    hint = "; the array looks like n x height x width x channels: use images.transpose(0, 3, 1, 2)"
    assert said.endswith(hint) == looks_last
    if looks_last:
        with Loader(data.transpose(0, 3, 1, 2), Transform(**options)) as loader:
            assert len(outcomes(iter(loader))) == 2


@pytest.mark.parametrize("options", [{"mirror": True}, {"crop_size": 2}], ids=str)
def test_channels_at_the_end_and_a_transform_that_moves_pixels(options):
    """Without a crop, the array was taken for 8 channels of 9 x 3 pixels.

    Red and blue were silently exchanged in one image of two.
    """
    said = refusal(np.zeros((2, 8, 9, 3), np.uint8), **options)
    assert said.startswith(
        "ValueError: a transform crops and mirrors images of channels x height x width; the array looks like n x height"
    )
    for shape in (3, 8, 9), (10, 3, 3), (8, 9, 5):  # the last two are odd, but who knows
        with Loader(np.zeros((2, *shape), np.uint8), Transform(**options)) as loader:
            assert len(outcomes(iter(loader))) == 2
    with Loader(np.ones((2, 8, 9, 3), np.uint8), Transform(scale=2)) as loader:  # no pixel moves
        assert (next(iter(loader)).data == 2).all()


@pytest.mark.parametrize("options", [{"mirror": True}, {"crop_size": 4}], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 9), (8, 9, 1), (4, 4, 4)], ids=str)
def test_images_beside_data_that_a_transform_would_leave_as_they_are(shape, options):
    """A mask was neither cropped nor mirrored with its image, without a word."""
    arrays = {"data": np.zeros((2, 3, 8, 9), np.uint8), "mask": np.zeros((2, *shape), np.uint8), "label": np.arange(2)}
    said = refusal(arrays, **options)
    assert said.startswith(
        "ValueError: the transform crops or mirrors data, and data only: mask, whose samples have shape "
    )
    assert "Name it too: Transform(fields=('data', 'mask'), ...)" in said
    with Loader(arrays, Transform(scale=2)) as loader:
        assert [array.shape for array in next(iter(loader)).values()] == [(1, 3, 8, 9), (1, *shape), (1,)]


def test_fields_that_are_no_images_may_stand_beside_a_transform():
    arrays = {
        "data": np.zeros((2, 3, 8, 9), np.uint8),
        "boxes": np.zeros((2, 5, 4)),
        "name": np.zeros((2, 9)),
        "label": np.arange(2),
    }
    with Loader(arrays, Transform(crop_size=4, mirror=True)) as loader:
        assert next(iter(loader)).shapes == {"data": (1, 3, 4, 4), "boxes": (1, 5, 4), "name": (1, 9), "label": (1,)}


def test_mean_value_and_mean_file_together(tmp_path):
    with pytest.raises(ValueError, match="Cannot specify mean_file and mean_value at the same time"):
        Transform(mean_value=3, mean_file=mean_file(tmp_path / "mean.binaryproto", 1, 3, 8, 9))


@pytest.mark.parametrize(
    "case, error, words",
    [
        ("missing", FileNotFoundError, "File not found"),
        ("empty", ValueError, "the file is empty"),
        ("text", ValueError, "it is not a binaryproto file"),
        ("cut", ValueError, "truncated or corrupt"),
        ("3-D", ValueError, "the blob in it is (3, 8, 9), expected (1, C, H, W)"),
        ("two images", ValueError, "the blob in it is (2, 3, 8, 9), expected (1, C, H, W)"),
        ("too few values", ValueError, "its shape, (1, 3, 8, 9), needs 216 values but it holds 215"),
        ("absurd", ValueError, "impossible shape"),
    ],
)
def test_mean_files_that_are_none(tmp_path, case, error, words):
    path = tmp_path / "mean.binaryproto"
    if case == "empty":
        path.write_bytes(b"")
    elif case == "text":
        path.write_bytes(b"data_mean: 104\n")
    elif case == "cut":
        mean_file(path, 1, 3, 8, 9)
        path.write_bytes(path.read_bytes()[:-5])
    elif case == "3-D":
        mean_file(path, 3, 8, 9)
    elif case == "two images":
        mean_file(path, 2, 3, 8, 9)
    elif case == "too few values":
        mean_file(path, 1, 3, 8, 9, values=215)
    elif case == "absurd":
        mean_file(path, 1, 2**31, 2**31, 2**31, values=3)
    with pytest.raises(error) as caught:
        Transform(mean_file=path)
    assert str(path) in str(caught.value) and "mean_file" in str(caught.value) and words in str(caught.value)


# ---- a library that is missing


def test_fastbatch_torch_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "fastbatch.torch", raising=False)
    with pytest.raises(MissingLibraryError, match="needs PyTorch, which is not installed for this Python: pip install"):
        importlib.import_module("fastbatch.torch")
