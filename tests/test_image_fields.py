"""ImageListSource: what it has beside the images. Several labels, arrays, and values of different counts."""

import pickle

import numpy as np
import pytest

from contracts import check_source, loader_of
from fastbatch import ImageListSource, Loader, SourceError, features
from fastbatch.sources._list_files import parse_labels
from jpegs import encode_png

pytestmark = pytest.mark.skipif(
    features()["jpeg"] is None or features()["png"] is None, reason="built without decoders"
)

NAMES = ["a.png", "b c.png", "d.png"]
LABELS = np.array([3, 1, 2], np.int64)
BOXES = [np.arange(8, dtype=np.float32).reshape(2, 4), np.zeros((0, 4), np.float32), np.full((1, 4), 7, np.float32)]


FLOATS = 'for other numbers say label_dtype="float32"'


@pytest.fixture
def folder(tmp_path):
    """Three images of 5 x 4, and their pixels as batches show them."""
    pixels = np.random.RandomState(0).randint(0, 256, (3, 5, 4, 3)).astype(np.uint8)
    for name, image in zip(NAMES, pixels):
        (tmp_path / name).write_bytes(encode_png(image, 2, 8))
    return tmp_path, list(np.ascontiguousarray(pixels[..., ::-1].transpose(0, 3, 1, 2)))


def keys():
    return [name.encode() for name in NAMES]


def test_any_number_of_arrays(folder):
    path, pixels = folder
    weight, box = np.array([0.5, 1, 2]), np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    source = ImageListSource(NAMES, path, box=box, label=LABELS.astype(np.uint8), weight=weight, flag=weight > 0.5)
    expected = {"data": pixels, "box": box, "label": LABELS, "weight": weight, "flag": weight > 0.5}
    check_source(source, {name: list(values) for name, values in expected.items()}, keys())
    assert list(source.arrays) == list(expected)[1:] and source.arrays["box"] is box


def test_arrays_beside_the_labels_of_a_list(folder):
    path, pixels = folder
    (path / "list.txt").write_text("".join(f"{name} {label}\n" for name, label in zip(NAMES, LABELS)))
    score = np.array([[1, 2], [3, 4], [5, 6]], np.float16)
    for images in path / "list.txt", list(zip(NAMES, LABELS)):
        expected = {"data": pixels, "label": list(LABELS), "score": list(score)}
        check_source(ImageListSource(images, path, score=score), expected, keys())


def test_labels_that_are_no_integers(folder):
    path, pixels = folder
    for label in np.array([0.5, np.nan, 2], np.float32), np.eye(3, dtype=np.float32), np.eye(3, dtype=bool):
        check_source(ImageListSource(NAMES, path, label=label), {"data": pixels, "label": list(label)}, keys())


@pytest.mark.parametrize(
    "lines, options, label",
    [
        ("a.png 0 1\nb c.png 1 0\nd.png 1 1\n", dict(labels=2), np.array([[0, 1], [1, 0], [1, 1]])),
        ("a.png\t0.5  1e2\r\nb c.png -1 .5\nd.png +1. nan", dict(labels=2, label_dtype="float32"), None),
        ("a.png 0.5\nb c.png 1\nd.png -2\n", dict(label_dtype=np.float64), np.array([0.5, 1, -2])),
        ("a.png 7\nb c.png 8\nd.png 9 \n", dict(labels=1, label_dtype=np.uint64), np.array([7, 8, 9], np.uint64)),
    ],
)
def test_lists_with_labels_of_any_number_and_type(folder, lines, options, label):
    path, pixels = folder
    (path / "list.txt").write_text(lines)
    if label is None:
        label = np.array([[0.5, 100], [-1, 0.5], [1, np.nan]], np.float32)
    source = ImageListSource(path / "list.txt", path, **options)
    check_source(source, {"data": pixels, "label": list(label)}, keys())


def test_a_list_of_paths(folder):
    path, pixels = folder
    (path / "list.txt").write_text("a.png \nb c.png\nd.png\n")
    check_source(ImageListSource(path / "list.txt", path, labels=0), {"data": pixels}, keys())
    source = ImageListSource(path / "list.txt", path, labels=0, label=LABELS)
    check_source(source, {"data": pixels, "label": list(LABELS)}, keys())


@pytest.mark.parametrize(
    "content, count, dtype, message",
    [
        (b"", 2, "i8", "list.txt: File is empty"),
        (b"a 1 2\n \n", 2, "i8", "list.txt: line 2 is blank"),
        (b"a 1 2\nb 1\n", 2, "i8", "list.txt: line 2 has too few words: it needs an image's path and 2 labels"),
        (b"a 1 x\n", 2, "i8", "list.txt: line 1 should end in 2 labels, and has 'x', which is not an integer"),
        (
            b"a 1 0.5\n",
            2,
            "i8",
            f"list.txt: line 1 should end in 2 labels, and has '0.5', which is not an integer; {FLOATS}",
        ),
        (b"a 1 1_0\n", 2, "f4", "list.txt: line 1 should end in 2 labels, and has '1_0', which is not a number"),
        (b"a 1 300\n", 2, "u1", "list.txt: line 1 should end in 2 labels, and has 300, which uint8 cannot hold"),
        (b"a 1 -1e39\n", 2, "f4", "list.txt: line 1 should end in 2 labels, and has -1e39, which float32 cannot hold"),
        (b"a 1 " + 65 * b"1", 2, "i8", None),
        (b"a\0 1 2\n", 2, "i8", None),
    ],
)
def test_lines_that_are_wrong(content, count, dtype, message):
    with pytest.raises(SourceError) as caught:
        parse_labels(content, "list.txt", count, np.dtype(dtype))
    assert str(caught.value) == message or message is None


def test_infinity_is_a_number():
    names, labels = parse_labels(b"a inf\n-inf -INF", "list", 1, np.dtype("f4"))
    assert names == [b"a", b"-inf"] and labels.tolist() == [np.inf, -np.inf]


def test_values_of_different_counts(folder):
    path, pixels = folder
    padded = np.zeros((3, 2, 4), np.float32)
    padded[0], padded[2, 0] = BOXES[0], BOXES[2][0]
    counts = [np.int64(2), np.int64(0), np.int64(1)]
    objects = np.empty(3, object)
    objects[:] = BOXES
    for boxes in BOXES, tuple(BOXES), objects, [BOXES[0], np.array([]), BOXES[2]]:
        source = ImageListSource(NAMES, path, box=boxes, label=LABELS)
        expected = {"data": pixels, "box": list(padded), "box_count": counts, "label": list(LABELS)}
        check_source(source, expected, keys())


def test_the_fields_do_not_depend_on_the_counts(folder):
    path, _ = folder
    for box in np.ones((2, 4)), np.empty((0, 4)):
        source = ImageListSource(NAMES, path, box=[box] * 3)
        assert list(source.arrays) == ["box", "box_count"] and source.arrays["box_count"].tolist() == [len(box)] * 3
        assert source.arrays["box"].shape == (3, *box.shape)


@pytest.mark.parametrize("form", ["a list file", "pairs", "paths"])
def test_pickling(folder, form):
    path, _ = folder
    (path / "list.txt").write_text("a.png 0 1\nb c.png 1 0\nd.png 1 1\n")
    options = dict(box=BOXES)
    if form == "a list file":
        source = ImageListSource(path / "list.txt", path, labels=2, **options)
    else:
        source = ImageListSource(list(zip(NAMES, LABELS)) if form == "pairs" else NAMES, path, **options)
    copy = pickle.loads(pickle.dumps(source))
    with loader_of(source, batch_size=3) as first, loader_of(copy, batch_size=3) as second:
        one, other = next(iter(first)), next(iter(second))
        assert one.names == other.names and one.sample_keys == other.sample_keys
        assert [array.tobytes() for array in one.values()] == [array.tobytes() for array in other.values()]


@pytest.mark.parametrize(
    "images, options, error, message",
    [
        (NAMES, dict(label=[1, 2]), ValueError, "label has 2 rows, and there are 3 images"),
        (NAMES, dict(data=[1, 2, 3]), ValueError, "data is given twice: the images have it already"),
        (list(zip(NAMES, LABELS)), dict(label=LABELS), ValueError, "label is given twice: the images have it already"),
        (
            NAMES,
            dict(label=["cat", "dog", "cat"]),
            TypeError,
            r"label has elements of type <U3; .*; numpy.unique\(label, return_inverse=True\)\[1\] makes a number of",
        ),
        (NAMES, dict(box=np.array([1, None, "x"], object)), TypeError, "box has elements of type object"),
        (
            NAMES,
            dict(box=[[1], [1, 2], []]),
            ValueError,
            "box holds values of different lengths, 0 to 2, which make no array",
        ),
        (
            NAMES,
            dict(box=[*BOXES[:2], np.ones((1, 5), np.float32)]),
            ValueError,
            r"box of image 2 has dtype float32 and shape \(1, 5\), and that of image 0 has float32 and \(2, 4\); only",
        ),
        (NAMES, dict(box=[*BOXES[:2], np.ones((1, 4))]), ValueError, "box of image 2 has dtype float64 and shape"),
        (NAMES, dict(box=BOXES, box_count=LABELS), ValueError, "leave box_count out"),
        (NAMES, dict(box=BOXES[:2]), ValueError, "box has 2 rows, and there are 3 images"),
        (NAMES, dict(box=[np.ma.masked_array([1.0], [True])] * 3), TypeError, "box is a masked array"),
        (NAMES, dict(weight=3.0), ValueError, r"weight has shape \(\)"),
        (NAMES, {f"f{i}": LABELS for i in range(16)}, ValueError, "17 fields; a batch has 1 to 16"),
        (NAMES, dict(labels=3), TypeError, "images is a sequence: give its labels as an array, label="),
        (NAMES, dict(label_dtype="float32"), TypeError, "images is a sequence: give its labels as an array, label="),
        (NAMES, dict(root_folder=LABELS), TypeError, r"root_folder is array\(\[3, 1, 2\]\); it is the folder"),
        ("list.txt", dict(labels=LABELS), TypeError, r"labels is array\(\[3, 1, 2\]\); it is the number of labels in"),
        ("list.txt", dict(labels=-1), ValueError, "labels is -1; it is the number"),
        ("list.txt", dict(labels=True), TypeError, "labels is True; it is the number"),
        ("list.txt", dict(label_dtype=bool), TypeError, "label_dtype is bool; labels are integers or floats"),
        (".", {}, SourceError, "cannot read the list of images .: Is a directory; for a folder with a folder for"),
    ],
)
def test_what_makes_no_source(images, options, error, message):
    with pytest.raises(error, match=message):
        ImageListSource(images, **options)


def test_arrays_are_checked_again_when_a_loader_is_made(folder):
    path, _ = folder
    source = ImageListSource(NAMES, path, label=LABELS)
    source.arrays["label"] = LABELS[:1]
    with pytest.raises(ValueError, match="label has 1 row, and there are 3 images"):
        Loader(source)
