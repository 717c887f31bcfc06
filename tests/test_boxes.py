"""Boxes and points that move with their image, against NumPy."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import datasets
from contracts import PATIENCE
from fastbatch import ArraySource, ImageListSource, Joined, Loader, PythonSource, SampleError, Transform
from fastbatch._features import features
from geometries import assert_same_bits, batch_of, geometries
from jpegs import encode_jpeg, noise, with_exif
from pixel_reference import axes_of, moved_boxes, moved_points
from reference import draws
from third_party import FLOAT16, FLOAT32, INT32, ThirdParty

jpeg = pytest.mark.skipif(not features()["jpeg"], reason="needs libjpeg-turbo and libpng")


@st.composite
def moving(draw):
    """A geometry that moves something."""
    height, width, parameters = draw(geometries())
    return height, width, parameters if len(parameters) > 1 else {"mirror": True}


def rows_of(pick, count, rows, columns, height, width, dtype, corners):
    """Boxes or points around an image, some of them at its edges, some without an area."""
    size = np.array([width, height] * corners)
    values = np.zeros((count, rows, columns))
    values[..., : 2 * corners] = pick.uniform(-0.3, 1.3, (count, rows, 2 * corners)) * size
    whole = pick.rand(count, rows) < 0.4
    values[whole] = np.rint(values[whole])
    if corners == 2:
        first, second = np.minimum(values[..., :2], values[..., 2:4]), np.maximum(values[..., :2], values[..., 2:4])
        values[..., :2], values[..., 2:4] = first, second
    values[..., 2 * corners :] = pick.randint(-5, 100, (count, rows, columns - 2 * corners))
    return values.astype(dtype)


@settings(max_examples=80)
@given(
    moving(),
    st.integers(0, 5),
    st.integers(0, 2),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.floats(0, 1) | st.just(0),
    st.integers(0, 2**64 - 1),
)
def test_against_the_reference(geometry, rows, more, dtype, counted, least, seed):
    height, width, parameters = geometry
    pick = np.random.RandomState(seed % 2**32)
    images = np.zeros((3, 1, height, width), np.uint8)
    boxes = rows_of(pick, 3, rows, 4 + more, height, width, dtype, 2)
    points = rows_of(pick, 3, rows, 2 + more, height, width, dtype, 1)[:, ::-1]  # not contiguous
    arrays = {"points": points, "data": images, "boxes": boxes}
    if counted:
        arrays["boxes_count"] = pick.randint(0, rows + 1, 3).astype(np.int32)
        arrays["points_count"] = pick.randint(0, rows + 1, 3).astype(np.uint8)
    found = batch_of(
        ArraySource(**arrays), seed, boxes=("boxes",), points=("points",), least_visible=least, **parameters
    )
    for i, raw in enumerate(draws(seed, 0, 3)):
        moves = axes_of(height, width, raw, **parameters)
        assert found["data"].shape[2:] == tuple(axis[-1] for axis in moves[0])
        count = arrays["boxes_count"][i] if counted else None
        expected, left = moved_boxes(boxes[i], moves, count, least)
        assert_same_bits(found["boxes"][i], expected)
        assert not counted or found["boxes_count"][i] == left
        count = arrays["points_count"][i] if counted else None
        expected, left = moved_points(points[i], moves, count)
        assert_same_bits(found["points"][i], expected)
        assert not counted or found["points_count"][i] == left
    if counted:
        assert found["boxes_count"].dtype == np.int32 and found["points_count"].dtype == np.uint8


@settings(max_examples=40)
@given(moving(), st.integers(0, 2**64 - 1))
def test_a_box_around_a_rectangle_stays_around_it(geometry, seed):
    height, width, parameters = geometry
    assume(min(height, width) >= 4)
    pick = np.random.RandomState(seed % 2**32)
    images = np.zeros((4, 1, height, width), np.uint8)
    boxes = np.zeros((4, 1, 4), np.float32)
    for image, box in zip(images, boxes):
        (x1, x2), (y1, y2) = (np.sort(pick.choice(side + 1, 2, replace=False)) for side in (width, height))
        image[:, y1:y2, x1:x2] = 255
        box[:] = x1, y1, x2, y2
    found = batch_of(
        ArraySource(data=images, mask=images[:, 0], box=boxes, box_count=np.ones(4, np.int64)),
        seed,
        fields=("data", "mask"),
        boxes=("box",),
        **parameters,
    )
    for mask, box, count in zip(found["mask"], found["box"], found["box_count"]):
        x1, y1, x2, y2 = box[0]
        for more, all_bright in (-1e-4, True), (1e-4, False):  # the nearest value may be that on either side of an edge
            rows, columns = (
                np.abs(np.arange(side) + 0.5 - (low + high) / 2) < (high - low) / 2 + more
                for side, low, high in zip(mask.shape, (y1, x1), (y2, x2))
            )
            inside = rows[:, None] & columns & bool(count)
            assert (mask[inside] == 255).all() if all_bright else (mask[~inside] == 0).all()


IMAGES = np.zeros((2, 3, 8, 10), np.uint8)
MIRRORED = {"mirror": True}


def one(rows, count=None, name="boxes", parameters=None, **more):
    """What becomes of the rows of one sample, and of their count, in the center of 4 x 6 pixels from (2, 2) on."""
    arrays = {"data": IMAGES[:1], "some": rows[None]}
    if count is not None:
        arrays["some_count"] = np.array([count])
    found = batch_of(
        ArraySource(**arrays), **(parameters or {"crop_size": (4, 6), "phase": "TEST"}), **{name: ("some",)}, **more
    )
    return found["some"][0].tolist(), None if count is None else found["some_count"][0]


def test_what_is_left_of_boxes():
    boxes = np.array(
        [
            [3, 3, 5, 5, 1],  # inside
            [0, 0, 10, 8, 2],  # around everything
            [0, 0, 2, 8, 3],  # beside it: they share an edge
            [0, 2, 4, 4, 4],  # half of it
            [4, 4, 4, 6, 5],  # no area
            [9, 9, 9, 9, 6],  # beyond the count
        ],
        np.float32,
    )
    inside, around, half = [1, 1, 3, 3, 1], [0, 0, 6, 4, 2], [0, 0, 2, 2, 4]
    zeros = [0] * 5
    assert one(boxes, 5) == ([inside, around, half, zeros, zeros, zeros], 3)
    assert one(boxes) == ([inside, around, zeros, half, zeros, zeros], None)
    assert one(boxes, 5, least_visible=0.5) == ([inside, half, zeros, zeros, zeros, zeros], 2)
    assert one(boxes, 5, least_visible=0.51)[1] == 1 and one(boxes, 5, least_visible=1)[1] == 1
    assert one(boxes, 0) == ([zeros] * 6, 0)
    assert one(boxes[0]) == (inside, None) and one(boxes[0], 1) == (inside, 1) and one(boxes[2], 1) == (zeros, 0)


def test_where_points_go():
    points = np.array([[3, 3, 1], [2, 2, 2], [8, 6, 3], [1.5, 3, 4], [np.nan, 3, 5]], np.float64)
    moved = [[1, 1, 1], [0, 0, 2], [6, 4, 3], [-0.5, 1, 4]]
    found, count = one(points, name="points")
    assert found[:4] == moved and np.isnan(found[4][0]) and found[4][1:] == [1, 5] and count is None
    assert one(points[:4], 4, name="points") == ([*moved[:3], [0, 0, 0]], 3)
    assert one(points[1], name="points") == ([0, 0, 2], None)


def test_a_mirrored_box_has_its_corners_in_order():
    boxes = np.array([[1, 2, 3, 4, 9]], np.float32)
    source = ArraySource(data=np.repeat(IMAGES[:1], 20, 0), box=np.repeat(boxes[None], 20, 0))
    found = {tuple(rows[0].tolist()) for rows in batch_of(source, boxes=("box",), mirror=True)["box"]}
    assert found == {(1, 2, 3, 4, 9), (7, 2, 9, 4, 9)}


def test_enormous_coordinates_are_clipped():
    most = np.finfo(np.float64).max
    boxes = np.array([[-most, -most, most, most], [most / 2, 0, most, 1], [0, 3, 10, np.nextafter(3, 4)]])
    for height, width in (80, 100), (8, 10):
        thin = [0, 3 * height / 8, width, np.nextafter(3, 4) * height / 8]
        for least, whole in (0, [0, 0, width, height]), (0.5, [0] * 4):
            found, _ = one(boxes, parameters={"resize": (height, width)}, least_visible=least)
            assert found == [whole, [0] * 4, thin]


@pytest.mark.parametrize(
    "name, rows, count, words",
    [
        ("boxes", [[1, 1, np.nan, 2]], None, "row 0 of its some has a coordinate that is not a finite number"),
        ("boxes", [[1, 1, 2, 2], [-np.inf, 1, 1, 2]], 2, "row 1 of its some has a coordinate that is not a finite"),
        ("boxes", [[5, 5, 3, 7]], 1, r"row 0 of its some is \(5, 5, 3, 7\), whose second corner .* not x, y, width"),
        ("points", [[1, np.inf]], None, "row 0 of its some has an infinite coordinate"),
        ("points", [[1, np.nan]], 1, "row 0 of its some has a coordinate that is not a number"),
        ("points", [[1, 1.7e308]], None, "row 0 of its some has a coordinate that is too large"),
        ("boxes", [[1, 1, 2, 2]], 2, "its some_count is 2, and its some has 1 row"),
        ("boxes", [[1, 1, 2, 2]], -1, "its some_count is -1, and its some has 1 row"),
    ],
)
def test_rows_that_are_wrong_name_their_sample(name, rows, count, words):
    rows = np.array([np.ones_like(rows), rows], np.float64)
    arrays = {"data": IMAGES, "some": rows}
    if count is not None:
        arrays["some_count"] = np.array([1, count])
    for on_error, expected in ("raise", None), ("skip", [0]), ("replace", [0, 0]):
        transform = Transform(resize=(80, 100), **{name: ("some",)})
        with Loader(arrays, transform, batch_size=2, on_error=on_error, timeout=PATIENCE) as loader:
            if expected is None:
                with pytest.raises(SampleError, match=f"sample 1.*{words}"):
                    next(iter(loader))
            else:
                assert next(iter(loader)).sample_keys == expected
                assert len(loader.errors) == 1


def test_wrong_rows_beyond_the_count_do_not_matter():
    assert one(np.array([[3, 3, 5, 5], [np.nan, 9, 1, 1]]), 1) == ([[1, 1, 3, 3], [0, 0, 0, 0]], 1)


BOXES = np.ones((2, 3, 4), np.float32)


@pytest.mark.parametrize(
    "arrays, parameters, error, words",
    [
        ({}, {"boxes": ("box",)}, ValueError, "the array 'box', which .* does not have"),
        ({}, {"points": ("point",)}, ValueError, "the array 'point', which .* does not have"),
        (
            {"box": BOXES.astype(int)},
            {"boxes": ("box",)},
            TypeError,
            r"box is int64, .* are not integers: .* astype\(numpy.float32\)",
        ),
        (
            {"box": BOXES.astype("f2")},
            {"boxes": ("box",)},
            TypeError,
            r"box is float16, .* more digits .* astype\(numpy.float32\)",
        ),
        ({"box": BOXES[..., :3]}, {"boxes": ("box",)}, ValueError, r"does not fit box: boxes have shape \(n, 4\)"),
        ({"box": BOXES[..., :1]}, {"points": ("box",)}, ValueError, r"does not fit box: points have shape \(n, 2\)"),
        ({"box": BOXES[..., None]}, {"boxes": ("box",)}, ValueError, r"does not fit box: boxes have shape \(n, 4\)"),
        ({"box": BOXES[..., None]}, {"points": ("box",)}, ValueError, r"such as \(n, 17, 2\), to \(n \* 17, 2\)"),
        ({"box": BOXES[:, 0, 0]}, {"boxes": ("box",)}, ValueError, r"does not fit box: boxes have shape \(n, 4\)"),
        (
            {"box": BOXES, "box_count": BOXES[:, 0, 0]},
            {"boxes": ("box",)},
            ValueError,
            "box_count has dtype float32, .* by its name, it is the number of boxes in box, one integer",
        ),
        (
            {"box": BOXES, "box_count": np.ones((2, 3), int)},
            {"points": ("box",)},
            ValueError,
            r"box_count has dtype int64, and its samples have shape \(3,\): .* the number of points in box",
        ),
    ],
)
def test_what_does_not_fit_the_arrays(arrays, parameters, error, words):
    with pytest.raises(error, match=words):
        Loader({"data": IMAGES, **arrays}, Transform(mirror=True, **parameters))


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"boxes": ("box",)}, "boxes has no effect without a step that moves pixels"),
        ({"points": ("box",), "mean": 0.5}, "points has no effect without a step that moves pixels"),
        ({"boxes": "box", **MIRRORED}, r'boxes are names of arrays, such as \("boxes",\), not \'box\''),
        ({"boxes": 3, **MIRRORED}, "boxes are names of arrays"),
        ({"points": ("a", "a"), **MIRRORED}, "points are names of arrays, .*, each only once"),
        ({"points": ("a",), "boxes": ("a",), **MIRRORED}, "'a' can be only one of these"),
        ({"fields": ("data", "a"), "boxes": ("a",), **MIRRORED}, "'a' can be only one of these"),
        ({"least_visible": 0.5, "points": ("a",), **MIRRORED}, "least_visible has no effect without boxes"),
        ({"least_visible": 1.5, "boxes": ("a",), **MIRRORED}, "a share of a box's area, from 0 to 1, not 1.5"),
        ({"least_visible": "a", "boxes": ("a",), **MIRRORED}, "least_visible takes numbers"),
    ],
)
def test_parameters_that_do_not_go_together(parameters, words):
    with pytest.raises(ValueError, match=words):
        Transform(**parameters)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_for_any_number_of_threads_and_from_any_position(threads):
    pick = np.random.RandomState(5)
    boxes = rows_of(pick, 40, 6, 5, 30, 40, np.float32, 2)
    arrays = {"box": boxes, "data": pick.randint(0, 256, (40, 3, 30, 40)).astype(np.uint8)}
    arrays["box_count"] = pick.randint(0, 7, 40)
    transform = Transform(random_resized_crop=(12, 16), mirror=True, boxes=("box",), least_visible=0.2)
    expected = []
    for index, raw in enumerate(draws(4, 0, 40)):
        axes = axes_of(30, 40, raw, random_resized_crop=(12, 16), mirror=True)
        expected.append(moved_boxes(boxes[index], axes, arrays["box_count"][index], 0.2))
    options = {"batch_size": 4, "seed": 4, "threads": threads, "timeout": PATIENCE}
    with Loader(arrays, transform, **options) as loader:
        batches = iter(loader)
        found = [(next(batches)["box"].copy(), loader.state_dict()) for _ in range(3)]
        assert_same_bits(np.concatenate([rows for rows, _ in found]), np.stack([rows for rows, _ in expected[:12]]))
        state = found[1][1]
    with Loader(arrays, transform, **options) as loader:
        loader.load_state_dict(state)
        batch = next(iter(loader))
        assert_same_bits(batch["box"], np.stack([rows for rows, _ in expected[8:12]]))
        assert batch["box_count"].tolist() == [left for _, left in expected[8:12]]


@jpeg
@pytest.mark.parametrize("oriented", [False, True])
def test_boxes_beside_files_of_different_sizes(tmp_path, oriented):
    sizes = [(20, 30), (41, 17), (30, 30)]
    boxes = [np.array([[2, 3, 10, 12, 7]], np.float32), np.zeros((0, 5), np.float32), np.full((2, 5), 4, np.float32)]
    boxes[2][:, 2:4] = 29
    paths = []
    for number, size in enumerate(sizes):
        paths.append(tmp_path / f"{number}.jpg")
        content = encode_jpeg(noise(*(size[::-1] if oriented else size)))
        paths[-1].write_bytes(with_exif(content, 6) if oriented else content)
    parameters = {"resize": 16, "crop_size": 12, "mirror": True}
    listed = ImageListSource(paths, box=boxes)
    for source in listed, Joined(ImageListSource(paths), **listed.arrays):
        found = batch_of(source, 3, boxes=("box",), **parameters)
        for i, raw in enumerate(draws(3, 0, 3)):
            axes = axes_of(*sizes[i], raw, **parameters)
            expected, left = moved_boxes(source_rows(boxes, i), axes, len(boxes[i]))
            assert_same_bits(found["box"][i], expected)
            assert found["box_count"][i] == left


def source_rows(boxes, i):
    """The rows of image i, filled up to two."""
    rows = np.zeros((2, 5), np.float32)
    rows[: len(boxes[i])] = boxes[i]
    return rows


@jpeg
def test_a_source_that_resizes_by_itself_does_not_move_boxes(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encode_jpeg(noise(8, 9)))
    source = ImageListSource([path], size=5, box=BOXES[:1])
    with pytest.raises(
        ValueError, match=r"resizes its images \(size\), but not its box: leave size out, and resize in"
    ):
        Loader(source, Transform(mirror=True, boxes=("box",)))
    Loader(source, Transform(mirror=True)).close()


def test_boxes_whose_shape_is_known_with_the_sample():
    """Of a source in C, in batches of one."""
    source = ThirdParty(1)
    rows = np.array([[1, 1, 3, 2], [0, 0, 1, 1], [5, 5, 9, 9]], np.float32)
    count = source.native.fields[2]
    count.name, count.dtype, count.ndim = b"label_count", INT32, -1
    source.native.source.field_count = 3
    boxes, counted = source.native.views[1], source.native.views[2]
    source.native.fields[1].dtype, source.native.fields[1].ndim = FLOAT32, -1
    counted.data, counted.dtype, counted.ndim = source.keep(np.int32(2).tobytes()), INT32, 0
    for shape, strides, left in ((3, 4), (16, 4), 2), ((4,), (4,), 1):
        boxes.data, boxes.dtype, boxes.ndim = source.keep(rows.tobytes()), FLOAT32, len(shape)
        for axis in range(len(shape)):
            boxes.shape[axis], boxes.strides[axis] = shape[axis], strides[axis]
        counted.data = source.keep(np.int32(left).tobytes())
        found = batch_of(source, boxes=("label",), resize=(8, 10))
        expected = moved_boxes(rows[:left], axes_of(4, 5, (0,) * 4, resize=(8, 10)))[0]
        assert found["label"].reshape(-1, 4)[:left].tolist() == expected.tolist()
        assert found["label"].shape == (1, *shape) and found["label_count"].tolist() == [left]
    for change, words in (
        (lambda: setattr(boxes, "dtype", FLOAT16), "its label is of another type than the first sample's"),
        (lambda: setattr(boxes, "ndim", 0), r"boxes have shape \(n, 4\), or \(4,\) for one box"),
        (lambda: setattr(counted, "ndim", 1), "its label_count is not one number, that of the rows of label"),
    ):
        before = boxes.dtype, boxes.ndim
        change()
        with pytest.raises(SampleError, match=words):
            batch_of(source, boxes=("label",), resize=(8, 10))
        boxes.dtype, boxes.ndim = before


@pytest.mark.parametrize("kind, ragged", [("process", False), ("thread", False), ("thread", True)])
def test_a_data_set_in_python(kind, ragged):
    options = {"padded": {"boxes": 3}, "varying": ["data"]} if ragged else {}
    source = PythonSource(datasets.Annotated(ragged=ragged), workers=2, kind=kind, **options)
    parameters = {"crop_size": (9, 11), "mirror": True}
    found = batch_of(source, 2, boxes=("boxes",), points=("points",), **parameters)
    for i, raw in enumerate(draws(2, 0, len(source))):
        sample, size = datasets.Annotated()[i], datasets.Annotated(ragged=ragged)[i]["data"].shape[1:]
        axes = axes_of(*size, raw, **parameters)
        expected, left = moved_boxes(sample["boxes"], axes, sample["boxes_count"])
        assert_same_bits(found["boxes"][i], expected)
        assert found["boxes_count"][i] == left and found["boxes_count"].dtype == np.int64
        assert_same_bits(found["points"][i], moved_points(sample["points"], axes)[0])
