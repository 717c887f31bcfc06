"""What a Transform shows of an image and of the fields beside it, against NumPy: resize, padding, crops, mirror."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import PATIENCE
from fastbatch import ArraySource, ImageListSource, Joined, Loader, SampleError, Transform
from fastbatch._features import features
from fastbatch.images import decode_image
from geometries import assert_same_bits, batch_of, geometries
from jpegs import encode_jpeg, encode_png, noise, with_exif
from pixel_reference import finished, nearest, placed
from reference import draws

jpeg = pytest.mark.skipif(not features()["jpeg"], reason="needs libjpeg-turbo and libpng")


@settings(max_examples=60)
@given(geometries(), st.sampled_from([1, 2, 3, 3, 4]), st.booleans(), st.integers(0, 2**64 - 1))
def test_arrays(geometry, channels, interleaved, seed):
    height, width, parameters = geometry
    pick = np.random.RandomState(seed % 2**32)
    images = pick.randint(0, 256, (3, height, width, channels)).astype(np.uint8).transpose(0, 3, 1, 2)
    if not interleaved:
        images = np.ascontiguousarray(images)
    masks = {
        "mask": pick.randint(0, 200, (3, height, width)).astype(np.int32),
        "depth": pick.rand(3, 2, height, width).astype(np.float32),
    }
    fill, mask_fill = (7, 255) if parameters.get("padding") else (0, 0)
    arithmetic = {"mean_value": (3.0,), "scale": 0.5}
    found = batch_of(
        ArraySource(data=images, **masks),
        seed,
        fields=("data", "mask", "depth"),
        fill=fill,
        mask_fill=mask_fill,
        **arithmetic,
        **parameters,
    )
    for i, raw in enumerate(draws(seed, 0, 3)):
        image = placed(images[i], raw, fill=fill, **parameters)
        assert_same_bits(found["data"][i], finished(image, **arithmetic))
        for name in masks:
            planes = masks[name][i] if name == "depth" else masks[name][i][None]
            expected = placed(planes, raw, nearest, mask_fill, **parameters)
            assert_same_bits(found[name][i], expected if name == "depth" else expected[0])


@jpeg
@settings(max_examples=40)
@given(geometries(), st.sampled_from(["jpeg", "oriented", "gray", "png"]), st.integers(0, 2**64 - 1))
def test_files(tmp_path_factory, geometry, kind, seed):
    height, width, parameters = geometry
    pixels = noise(*((width, height) if kind == "oriented" else (height, width)), seed=seed % 1000)
    content = encode_png(pixels.astype(int), 2, 8) if kind == "png" else encode_jpeg(pixels)
    if kind == "oriented":
        content = with_exif(content, 5 + seed % 4)
    path = tmp_path_factory.mktemp("files") / "image"
    path.write_bytes(content)
    color = "gray" if kind == "gray" else "color"
    form = {"color": "rgb", "layout": "NHWC", "dtype": "uint8"}
    found = batch_of(ImageListSource([path], color=color), seed, **parameters, **form)
    image = decode_image(content, color).reshape(height, width, -1).transpose(2, 0, 1)
    assert_same_bits(found["data"][0], finished(placed(image, draws(seed, 0, 1)[0], **parameters), **form))


@jpeg
@settings(max_examples=20)
@given(geometries(), st.integers(0, 2**32))
def test_files_with_masks(tmp_path_factory, geometry, seed):
    height, width, parameters = geometry
    folder = tmp_path_factory.mktemp("masks")
    pixels = noise(height, width, seed=seed % 1000).astype(np.uint8)
    classes = noise(height, width, 1, seed=1).reshape(height, width).astype(np.uint8)
    (folder / "image").write_bytes(encode_png(pixels.astype(int), 2, 8))
    (folder / "mask").write_bytes(encode_png(classes[:, :, None].astype(int), 0, 8))
    source = Joined(ImageListSource([folder / "image"]), mask=ImageListSource([folder / "mask"], color="gray"))
    found = batch_of(source, seed, fields=("data", "mask"), **parameters)
    raw = draws(seed, 0, 1)[0]
    image = pixels[:, :, ::-1].transpose(2, 0, 1)
    assert_same_bits(found["data"][0], finished(placed(image, raw, **parameters)))
    assert_same_bits(found["mask"][0], placed(classes[None], raw, nearest, **parameters))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_padding_in_every_form(dtype, layout):
    images = np.random.RandomState(0).randint(0, 256, (4, 3, 5, 40)).astype(np.uint8)
    geometry = {"padding": (1, 3), "crop_size": (6, 44), "fill": 7, "mirror": True}
    form = {"color": "rgb", "dtype": dtype, "layout": layout}
    arithmetic = {} if dtype == "uint8" else {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    found = batch_of(ArraySource(images), 1, **geometry, **form, **arithmetic)["data"]
    for i, raw in enumerate(draws(1, 0, 4)):
        assert_same_bits(found[i], finished(placed(images[i], raw, **geometry), unit=255.0, **form, **arithmetic))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_borders_of_any_width(dtype):
    images = np.random.RandomState(0).randint(0, 256, (2, 2, 4, 6)).astype(np.uint8)
    masks = np.random.RandomState(1).randint(0, 127, (2, 4, 6)).astype(dtype)
    fills = {"fill": 7, "mask_fill": 99}
    for gap in range(1, 20):
        geometry = {"padding": (0, (gap + 1) // 2), "crop_size": (4, 6 + gap), "phase": "TEST", "mirror": True}
        options = {"fields": ("data", "mask"), "dtype": "uint8", **fills, **geometry}
        found = batch_of(ArraySource(data=images, mask=masks), gap, **options)
        for i, raw in enumerate(draws(gap, 0, 2)):
            assert_same_bits(found["data"][i], placed(images[i], raw, fill=7, **geometry))
            assert_same_bits(found["mask"][i], placed(masks[i][None], raw, nearest, 99, **geometry)[0])


def test_a_fill_beyond_the_bytes_is_for_floats():
    images = np.zeros((1, 1, 2, 2), np.uint8)
    for fill in -300.5, 300.5:
        found = batch_of(ArraySource(images), padding=1, fill=fill, dtype="float16", layout="NHWC")["data"][0, ..., 0]
        assert (found[[0, 3]] == fill).all() and (found[1:3, 1:3] == 0).all()


@pytest.mark.parametrize("ratio", [5e-324, 1e-300, 1e-9, 1e9, 1e38])
def test_ratios_that_fit_no_image_give_the_largest_region(ratio):
    image = np.arange(35, dtype=np.uint8).reshape(1, 1, 5, 7)
    found = batch_of(ArraySource(image), random_resized_crop=(5, 7), crop_ratio=(ratio, ratio))["data"][0, 0]
    tall = ratio < 1
    assert (found == (image[0, 0, :, 3:4] if tall else image[0, 0, 2:3])).all()


def test_the_shapes_that_people_expect():
    images = np.zeros((1, 3, 50, 80), np.uint8)
    for parameters, shape in (
        ({"resize": 25}, (25, 40)),
        ({"resize": (7, 9)}, (7, 9)),
        ({"resize": 30, "crop_size": 20}, (20, 20)),
        ({"crop_size": (20, 30)}, (20, 30)),
        ({"padding": 4}, (58, 88)),
        ({"padding": (1, 2), "crop_size": 50}, (50, 50)),
        ({"random_resized_crop": (8, 9)}, (8, 9)),
    ):
        assert batch_of(ArraySource(images), **parameters)["data"].shape == (1, 3, *shape)
    assert Transform.imagenet(train=True).random_resized_crop == 224
    train = batch_of(ArraySource(images), **vars_of(Transform.imagenet(train=True)))
    test = batch_of(ArraySource(images), **vars_of(Transform.imagenet(train=False, dtype="float16")))
    assert train["data"].shape == test["data"].shape == (1, 3, 224, 224)
    assert (train["data"].dtype, test["data"].dtype) == (np.float32, np.float16)
    black = (np.float32(0) - np.float32(255 * 0.485)) * np.float32(1 / (255 * 0.229))
    assert (train["data"][0, 0] == black).all()


def vars_of(transform):
    return {name: value for name, value in vars(transform).items() if not name.startswith("_")}


def test_a_random_resized_crop_has_the_areas_and_ratios_asked_for():
    """Of an image whose pixels are their own places, each sample another part; the same for any number of threads."""
    count = 300
    columns = np.broadcast_to(np.arange(200, dtype=np.uint8), (count, 1, 200, 200))
    source = ArraySource(data=columns, rows=np.ascontiguousarray(columns.transpose(0, 1, 3, 2)))
    parameters = {"fields": ("data", "rows"), "random_resized_crop": 50, "dtype": "uint8"}
    found = batch_of(source, 9, **parameters)
    width = found["data"][:, 0, 0, -1].astype(float) - found["data"][:, 0, 0, 0]
    height = found["rows"][:, 0, -1, 0].astype(float) - found["rows"][:, 0, 0, 0]
    area, ratio = width * height / 200**2, width / height
    assert 0.05 < area.min() < 0.2 and 0.7 < area.max() <= 1 and 0.3 < area.mean() < 0.65
    assert 0.7 < ratio.min() < 0.85 and 1.18 < ratio.max() < 1.42
    assert len({one.tobytes() for one in found["data"]}) > count // 2
    with Loader(source, Transform(**parameters), batch_size=count, seed=9, threads=1, timeout=PATIENCE) as loader:
        assert (next(iter(loader)).data == found["data"]).all()


def test_the_image_may_have_another_name():
    source = ArraySource(image=np.full((2, 3, 4, 5), 10, np.uint8), label=np.arange(40).reshape(2, 4, 5))
    found = batch_of(source, fields=("image", "label"), crop_size=(2, 3), phase="TEST", scale=0.5)
    assert found["image"].shape == (2, 3, 2, 3) and (found["image"] == 5).all()
    assert (found["label"] == np.arange(40).reshape(2, 4, 5)[:, 1:3, 1:4]).all() and found["label"].dtype == np.int64


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"crop_size": (3,)}, r"crop_size is one integer, or a pair \(height, width\), not \(3,\)"),
        ({"crop_size": (3, 0)}, "crop_size has a height and a width of at least 1"),
        ({"crop_size": "ab"}, "crop_size must be an integer, in pixels, or a pair of them"),
        ({"resize": -1}, "resize must lie between 0 \\(no resize\\)"),
        ({"resize": (2.0, 3)}, "resize must be an integer"),
        ({"padding": 3, "crop_size": 3}, "padding must be smaller than crop_size"),
        ({"padding": (0, 5), "crop_size": (9, 5)}, "padding must be smaller than crop_size"),
        ({"fill": 3}, "fill has no effect without padding"),
        ({"mask_fill": 3, "padding": 2}, "mask_fill has no effect without padding, and fields beside the image"),
        ({"fill": 0.5, "padding": 2, "dtype": "uint8"}, "fill is an integer from 0 to 255, not 0.5"),
        ({"fill": 256, "padding": 2, "dtype": "uint8"}, "fill is an integer from 0 to 255, not 256"),
        ({"fill": -1e5, "padding": 2, "dtype": "float16"}, r"fill=-100000.0 is beyond what float16 can hold after"),
        ({"fill": 3, "padding": 2, "dtype": "float16", "std": (1, 1e-7, 1)}, "beyond what float16 can hold"),
        ({"fill": 3e38, "padding": 2, "scale": 2}, "fill=3e[+]38 is beyond what float32 can hold"),
        ({"random_resized_crop": 3, "crop_size": 3}, "random_resized_crop does not go together with crop_size"),
        ({"random_resized_crop": 3, "resize": 3}, "does not go together with resize"),
        ({"random_resized_crop": 3, "phase": "TEST"}, "random_resized_crop is for training"),
        ({"crop_area": (0.5, 1)}, "crop_area and crop_ratio are those of random_resized_crop, which is not given"),
        ({"random_resized_crop": 3, "crop_area": (0.5, 2)}, "at most 1, not 2.0"),
        ({"random_resized_crop": 3, "crop_area": (0, 1)}, "a pair of positive numbers, the smaller one first"),
        ({"random_resized_crop": 3, "crop_ratio": (2, 1)}, "a pair of positive numbers, the smaller one first"),
        ({"fields": "data"}, "fields are names, the image's first"),
        ({"fields": ()}, "fields are names"),
        ({"fields": ("data", "data")}, "fields are names"),
    ],
)
def test_parameters_that_do_not_go_together(parameters, words):
    with pytest.raises(ValueError, match=words):
        Transform(**parameters)


IMAGES = np.zeros((2, 3, 8, 9), np.uint8)


@pytest.mark.parametrize(
    "arrays, parameters, words",
    [
        ({"data": IMAGES}, {"fields": ("data", "mask")}, "a transform changes the array 'mask', which .* not have"),
        ({"data": IMAGES}, {"fields": ("image",)}, "a transform changes the array 'image'"),
        (
            {"data": IMAGES, "mask": IMAGES[:, 0]},
            {"resize": 4},
            r"mask, whose samples have shape \(8, 9\), .* Name it too: Transform\(fields=\('data', 'mask'\), ...\)",
        ),
        (
            {"data": IMAGES, "mask": IMAGES[:, :1, 1:]},
            {"fields": ("data", "mask"), "mirror": True},
            "with another height or width than those of data",
        ),
        (
            {"data": IMAGES, "mask": IMAGES[:, 0]},
            {"fields": ("data", "mask"), "padding": 1, "mask_fill": 256},
            "mask is uint8, which has no 256, the transform's mask_fill",
        ),
        *(
            (
                {"data": IMAGES, "mask": IMAGES[:, 0].astype(kind)},
                {"fields": ("data", "mask"), "padding": 1, "mask_fill": fill},
                f"mask is {np.dtype(kind).name}, which has no ",
            )
            for kind, fill in [
                ("i8", 2.0**63),
                ("u8", 2.0**64),
                ("u8", -1),
                ("i4", 1e30),
                ("i2", 0.5),
                ("?", 2),
                ("f2", 1e5),
            ]
        ),
        (
            {"data": IMAGES, "mask": np.zeros((2, 7))},
            {"fields": ("data", "mask"), "mirror": True},
            "the transform does not fit mask: an image has 3 dimensions",
        ),
        (
            {"data": IMAGES.astype(np.float32)},
            {"resize": 4},
            "only images of uint8 are resized, and this one is float32",
        ),
        ({"data": IMAGES}, {"crop_size": (9, 9)}, r"smaller than crop_size 9 \(Check failed: datum_height"),
        ({"data": IMAGES}, {"crop_size": (8, 12), "padding": 1}, "datum_width >= crop_size \\(11 vs. 12"),
        ({"data": IMAGES}, {"resize": 40000}, "blob size exceeds INT_MAX"),
    ],
)
def test_what_does_not_fit_the_arrays(arrays, parameters, words):
    with pytest.raises(ValueError, match=words):
        Loader(arrays, Transform(**parameters))


@jpeg
def test_what_does_not_fit_a_file_is_an_error_of_its_batch(tmp_path):
    path = tmp_path / "small.jpg"
    path.write_bytes(encode_jpeg(noise(8, 9)))
    source = ImageListSource([path, path])
    with Loader(source, Transform(resize=6, crop_size=(7, 6)), timeout=PATIENCE) as loader:
        batches = iter(loader)
        with pytest.raises(SampleError, match=r"small.jpg.* smaller than crop_size 7 .*\(6 vs. 7\)"):
            next(batches)
    with pytest.raises(ValueError, match="pixel values from 0 to 1"):
        Loader(source, Transform(mean=117))
    with pytest.raises(ValueError, match="resizes its images .size., and so would the transform"):
        Loader(ImageListSource([path], size=5), Transform(resize=6))
