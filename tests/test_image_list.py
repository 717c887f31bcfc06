"""ImageListSource: lists of image files, in the plain Python way."""

import fcntl
import os
import pickle
import signal

import numpy as np
import pytest

from contracts import PATIENCE, check_source, loader_of
from fastbatch import ImageListSource, Loader, SampleError, SourceError, Transform, features
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeLines
from fastbatch.sources._image_list import caffe_images, fetch_if_slower, parse_list
from jpegs import encode_png

pytestmark = pytest.mark.skipif(
    features()["jpeg"] is None or features()["png"] is None, reason="built without decoders"
)


@pytest.fixture
def folder(tmp_path):
    """Seven images of 5 x 4 named 0.png, 1.png, ..., a list of them, and their pixels as batches show them."""
    pixels = np.random.RandomState(0).randint(0, 256, (7, 5, 4, 3)).astype(np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / f"{i}.png").write_bytes(encode_png(image, 2, 8))
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {10 * i}\n" for i in range(7)))
    return tmp_path, np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2))  # blue first


NAMES = [b"%d.png" % i for i in range(7)]


def expected(pixels):
    return {"data": list(pixels), "label": [np.int64(10 * i) for i in range(7)]}


def check(source, pixels):
    check_source(source, expected(pixels), NAMES)


def test_what_is_no_file_is_not_waited_for(folder):
    path, pixels = folder
    os.mkfifo(path / "pipe.png")
    source = ImageListSource([("0.png", 0), ("pipe.png", 1), (".", 2)], f"{path}/")
    with loader_of(source, batch_size=1) as loader:
        batches = iter(loader)
        assert (next(batches).data == pixels[0]).all()
        for name in "pipe.png", ".":
            with pytest.raises(SampleError, match=f"{path}/{name} is not a file"):
                next(batches)
    for index in 1, 2:
        with pytest.raises(SampleError, match="is not a file"):
            source.shape_of(index)


def test_files_are_fetched_ahead(folder):
    """Where reading is slow: here, always. What cannot be opened is the error of its own batch."""
    path, pixels = folder
    os.mkfifo(path / "pipe.png")
    former = fetch_if_slower(0)
    try:
        check(ImageListSource(path / "list.txt", path), pixels)
        source = ImageListSource(["0.png", "pipe.png", "none.png", "1.png"] * 20, path)
        with loader_of(source, batch_size=1, on_error="skip") as loader:
            assert [batch.sample_keys for batch in loader] == [[b"0.png"], [b"1.png"]] * 20
            assert [error.key for error in loader.errors[:2]] == [b"pipe.png", b"none.png"]
    finally:
        fetch_if_slower(former)


def test_a_file_that_somebody_has_a_lease_on(folder):
    """As Samba has while somebody may write it. It is read once the lease is given back."""
    path, pixels = folder
    asked = []

    def give_back(*_):
        asked.append(fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK))

    handler = signal.signal(signal.SIGIO, give_back)
    try:
        with open(path / "0.png", "rb+") as file:
            try:
                fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            except OSError as problem:
                pytest.skip(f"no leases here: {problem}")
            with loader_of(ImageListSource([("0.png", 0)], f"{path}/"), batch_size=1) as loader:
                assert (next(iter(loader)).data == pixels[0]).all()
    finally:
        signal.signal(signal.SIGIO, handler)
    assert asked == [0]


def test_a_list_file(folder):
    path, pixels = folder
    source = ImageListSource(path / "list.txt", f"{path}/")
    check(source, pixels)
    assert source.shape == source.shape_of(6) == (3, 5, 4)
    assert repr(source) == f"ImageListSource('{path}/list.txt', 7 images)"
    with pytest.raises(IndexError, match="there are 7 images, and no 7"):
        source.shape_of(7)


def test_pairs(folder):
    path, pixels = folder
    check(ImageListSource([(f"{i}.png", 10 * i) for i in range(7)], f"{path}/"), pixels)


def test_gray_and_size(folder):
    path, _ = folder
    with Loader(ImageListSource(path / "list.txt", f"{path}/", color="gray", size=(9, 8)), batch_size=7) as loader:
        assert next(iter(loader)).data.shape == (7, 1, 9, 8)


def test_a_transform(folder):
    path, pixels = folder
    transform = Transform(crop_size=3, phase="TEST", mean_value=(1, 2, 3), scale=0.5)
    with loader_of(ImageListSource(path / "list.txt", f"{path}/"), transform=transform, batch_size=7) as loader:
        middle = pixels[:, :, 1:4, 0:3].astype(np.float32)
        np.testing.assert_array_equal(next(iter(loader)).data, (middle - np.reshape([1, 2, 3], (1, 3, 1, 1))) * 0.5)


def test_a_file_that_is_missing_is_an_error_of_its_batch(folder):
    path, _pixels = folder
    source = ImageListSource(path / "list.txt", f"{path}/")
    (path / "3.png").unlink()
    with loader_of(source, batch_size=2) as loader:
        for _ in range(2):
            batches = iter(loader)
            assert next(batches).sample_keys == NAMES[:2]
            with pytest.raises(SampleError, match=f"Could not open or find file {path}/3.png: No such file") as caught:
                next(batches)
            assert (caught.value.index, caught.value.key, caught.value.stage) == (3, b"3.png", "read")
            assert [batch.sample_keys for batch in batches] == [NAMES[4:6], NAMES[6:]]


def test_root_folder_joins_as_a_path(folder):
    path, pixels = folder
    for root in path, str(path), os.fsencode(path), f"{path}/":
        check(ImageListSource(path / "list.txt", root), pixels)
    assert ImageListSource([(path / "0.png", 0)], "/nowhere").shape == (3, 5, 4)
    source = ImageListSource([path / "3.png"], "/nowhere")  # an absolute name is where it says
    with loader_of(source, batch_size=1) as loader:
        batch = next(iter(loader))
        assert (batch.data == pixels[3]).all() and batch.sample_keys == [os.fsencode(path / "3.png")]


def test_paths_without_labels(folder):
    path, pixels = folder
    paths = [path / "0.png", str(path / "1.png"), os.fsencode(path / "2.png")]
    source = ImageListSource(paths)
    assert len(source) == 3 and source.shape_of(2) == (3, 5, 4)
    with loader_of(source, batch_size=3) as loader:
        assert tuple(loader.names) == ("data",)
        batch = next(iter(loader))
        assert (batch.data == pixels[:3]).all() and batch.sample_keys == [os.fsencode(each) for each in paths]
        with pytest.raises(KeyError, match="it has data"):
            batch["label"]


def test_one_number_is_a_square(folder):
    path, _ = folder
    assert ImageListSource(path / "list.txt", path, size=9).shape == (3, 9, 9)
    assert ImageListSource(path / "list.txt", path, size=np.int64(9)).shape == (3, 9, 9)
    assert ImageListSource(path / "list.txt", path, size=[8, np.uint8(9)]).shape == (3, 8, 9)


def test_a_list_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path / "pipe", "/dev/zero":
        with pytest.raises(
            SourceError, match="cannot read the list of images .*: it is a named pipe, a socket or a device, not a file"
        ):
            ImageListSource(path)
    with pytest.raises(SourceError, match="cannot read the list of images .*: Is a directory"):
        ImageListSource(tmp_path)


def test_more_labels_than_are_read(folder):
    path, _ = folder
    (path / "list.txt").write_text("0.png 1 0 1 1 0\n")
    with pytest.raises(SampleError) as caught:
        ImageListSource(path / "list.txt", path).shape
    assert caught.value.reason == (
        f"Could not open or find file {path}/0.png 1 0 1 1: No such file or directory; its line seems to have more "
        "labels than are read (one, or what labels= of ImageListSource says), and what is before them is its path"
    )


def test_messages_quote_little_of_what_is_long():
    long = "x" * 10_000_000
    for make in (
        lambda: parse_list(b"a " + long.encode(), "x"),
        lambda: parse_list(b"a " + b"1" * 10_000_000, "x"),
        lambda: ImageListSource(long),
        lambda: ImageListSource([("a", long)]),
        lambda: ImageListSource([("a", 10**10_000)]),
        lambda: ImageListSource([[long]]),
        lambda: ImageListSource(["a"], size=long),
        lambda: ImageListSource([long]).shape,
    ):
        with pytest.raises((SourceError, SampleError, TypeError, ValueError)) as caught:
            make()
        assert len(str(caught.value)) < 1500


def test_a_root_folder_that_does_not_end_in_a_slash(folder):
    path, _ = folder
    source = caffe_images(path / "list.txt", path, "color", None)
    advice = "; root_folder is prepended to each name verbatim, as in Caffe: a folder must end in a slash"
    with pytest.raises(SampleError) as caught:
        source.shape
    assert caught.value.reason == f"Could not open or find file {path}0.png: No such file or directory{advice}"
    with loader_of(source, batch_size=7) as loader, pytest.raises(SampleError, match=advice):
        next(iter(loader))
    for root, name in (
        ("", f"{path}/no.png"),
        (f"{path}/", "no.png"),
        (f"{path}/0.png/no", "thing"),
    ):  # the last: Not a directory
        (path / "list.txt").write_text(f"{name} 0\n")
        for source in ImageListSource([(name, 0)], root), caffe_images(path / "list.txt", root, "color", None):
            with pytest.raises(SampleError) as caught:
                source.shape
            assert "slash" not in caught.value.reason
    (path / "list.txt").write_text("png 0\n")
    assert caffe_images(path / "list.txt", f"{path}/0.", "gray", (4, 6)).shape == (1, 4, 6)  # Caffe's way: half a name


def test_the_shape_of_a_file_that_is_missing(folder):
    path, _ = folder
    source = ImageListSource(path / "list.txt", f"{path}/")
    (path / "3.png").unlink()
    with pytest.raises(SampleError) as caught:
        source.shape_of(3)
    error = caught.value
    assert (error.index, error.key, error.stage, error.epoch, error.batch) == (3, b"3.png", "read", None, None)
    assert str(error) == f"{path}/list.txt, sample 3 (key '3.png'): {error.reason}. It failed in stage 'read'."


def test_lines():
    assert parse_list(b"a b.jpg 3\n c -4\nd +5\r\n\xff\xfe 06", "x") == [
        (b"a b.jpg", 3),
        (b" c", -4),
        (b"d", 5),
        (b"\xff\xfe", 6),
    ]
    assert parse_list(b"a 7\t\nb \t8\nc\t \v-9\f\r\n", "x") == [
        (b"a", 7),
        (b"b", 8),
        (b"c\t", -9),
    ]  # as atoi() reads them


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "x: File is empty"),
        (b"\n", "x: line 1 is blank"),
        (b"a 1\n \t\r\n", "x: line 2 is blank"),
        (b"a 1\nb\n", "x: line 2 has no label"),
        (b"a\t1\n", "x: line 1 has a tab"),
        (b"a 1 \n", "x: line 1 ends in ''"),
        (b"a 1x\n", "x: line 1 ends in '1x', which is not an integer"),
        (b"a 1\t2\n", "x: line 1 ends in '1\\t2', which is not an integer"),
        (b"a 1\t \n", "x: line 1 ends in ''"),
        (b" 1\n", "x: line 1 has no name"),
        (b"a 2147483648\n", "x: line 1 has the label 2147483648"),
        (b"a\0 1\n", "x is not a plain text file"),
    ],
)
def test_lines_that_are_wrong(content, words):
    with pytest.raises(SourceError) as caught:
        parse_list(content, "x")
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (([],), SourceError, "the list of images is empty"),
        (([("a\0b", 1)],), ValueError, "zero byte"),
        (([("a", 1), ("b", 2.7)],), TypeError, "image 1 has the label 2.7, which is not an integer"),
        (([("a", "3")],), TypeError, "image 0 has the label '3', which is not an integer"),
        (([("a", 2**63)],), ValueError, "image 0 has the label 9223372036854775808, which is not a 64-bit integer"),
        (([("a", 1)], "", "blue"), ValueError, "color is 'blue'"),
        (([("a", 1)], "", "color", (0, 3)), ValueError, "each at least 1"),
        (
            ([("a", 1)], "", "color", (10.9, 12.9)),
            TypeError,
            r"size is \(10.9, 12.9\); it is a height and a width, two integers, or one integer",
        ),
        (([("a", 1)], "", "color", (1, 2, 3)), TypeError, "two integers, or one integer"),
        (([("a", 1)], "", "color", "128"), TypeError, "size is '128'; "),
        (
            (["a", ("b", 1)],),
            TypeError,
            "image 1 has a label, unlike those before it: give all of them a label, or none",
        ),
        (([("b", 1), "a"],), TypeError, "image 1 has no label, unlike those before it"),
        (
            ([("a", 1, 2)],),
            TypeError,
            r"image 0 is \('a', 1, 2\); it should be a path, or a pair of a path and an integer label",
        ),
        (([5],), TypeError, "image 0 is 5; it should be a path"),
        (("/nowhere/list.txt",), SourceError, "cannot read the list of images /nowhere/list.txt: No such file"),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, words):
    with pytest.raises(error, match=words):
        ImageListSource(*arguments)


def test_caffes_order_has_no_end(folder):
    """What it is in detail, tests/layers/test_image_data.py compares with Caffe."""
    path, _ = folder
    source = ImageListSource(path / "list.txt", f"{path}/")

    def batches(order, count):
        ring = BatchRing(source, batch_size=7, slots=3, threads=2, order=order)
        try:
            for _ in range(count):
                batch = ring.next(PATIENCE)
                assert batch.label.tolist() == [10 * NAMES.index(key) for key in batch.sample_keys]
                yield batch.sample_keys, batch.epoch
        finally:
            ring.close()

    given = list(batches(CaffeLines(0, skip=2), 4))
    assert [key for keys, _ in given for key in keys] == [NAMES[(2 + i) % 7] for i in range(28)]
    assert [epoch for _, epoch in given] == [1, 2, 3, 4]  # of the last sample
    epochs = [keys for keys, _ in batches(CaffeLines(0, shuffle_seed=1701), 20)]
    assert all(sorted(keys) == NAMES for keys in epochs) and len({tuple(keys) for keys in epochs}) > 15
    with pytest.raises(ValueError, match="there are 7 samples, of which 7 cannot be left out"):
        BatchRing(source, batch_size=1, slots=2, threads=1, order=CaffeLines(0, skip=7))


@pytest.mark.parametrize("form", ["a list file", "pairs", "paths"])
def test_a_list_can_be_pickled(folder, form):
    """By what it was made from: the path of the list, or the images."""
    path, _ = folder
    with open(path / "list.txt") as file:
        pairs = [(line.split()[0], int(line.split()[1])) for line in file]
    images = {"a list file": path / "list.txt", "pairs": pairs, "paths": [name for name, _ in pairs]}[form]
    with ImageListSource(images, path, color="gray", size=(3, 4)) as source:
        copy = pickle.loads(pickle.dumps(source))
    with loader_of(source, batch_size=len(pairs)) as first, loader_of(copy, batch_size=len(pairs)) as second:
        one, other = next(iter(first)), next(iter(second))
        assert one.names == other.names and one.sample_keys == other.sample_keys and one.data.shape[1:] == (1, 3, 4)
        assert [array.tobytes() for array in one.values()] == [array.tobytes() for array in other.values()]


@pytest.mark.parametrize(
    "images, way", [({"a.jpg": 1}, r"list\(d\.items\(\)\)"), ({"a.jpg", "b.jpg"}, r"sorted\(paths\)")]
)
def test_images_without_a_place_of_their_own(images, way):
    """A set has another order in each process: ranks would share its images out wrongly."""
    with pytest.raises(TypeError, match=f"a list is needed, in which each image has its place: give {way}"):
        ImageListSource(images)
