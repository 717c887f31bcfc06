"""Colors, mean and std, channels, dtype and layout of a Transform, against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import PATIENCE
from fastbatch import Loader, Transform
from fastbatch._transform import kernel_name, use_kernel
from pixel_reference import finished, jittered
from reference import draws

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def transformed(images, seed=None, **parameters):
    """The images as a loader transforms them."""
    transform = Transform(**parameters)
    with Loader(images, transform, batch_size=len(images), seed=seed, threads=1, timeout=PATIENCE) as loader:
        return next(iter(loader)).data.copy()


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def each_kernel():
    best = kernel_name()
    for name in "avx512", "avx2", "neon", "generic":
        try:
            use_kernel(name)
        except ValueError:
            continue
        yield name
    use_kernel(best)


@st.composite
def cases(draw):
    """Images of a strange layout in memory, and the parameters of a Transform that fits them."""
    channels = draw(st.sampled_from([1, 3, 3, 3, 4]))
    height, width = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 15, 16, 17, 40, 1023, 1030]))
    kind = draw(st.sampled_from([np.uint8, np.uint8, np.float32]))
    pick = np.random.RandomState(draw(st.integers(0, 2**32 - 1)))
    interleaved = draw(st.booleans())
    shape = (2, height, width, channels) if interleaved else (2, channels, height, width)
    images = pick.randint(0, 256, shape).astype(kind)
    if kind is np.float32:
        images = images / np.float32(draw(st.sampled_from([255, 3, 1e-5])))
    if interleaved:
        images = images.transpose(0, 3, 1, 2)
    images = images[:, :, :: draw(st.sampled_from([1, -1])), :: draw(st.sampled_from([1, 1, -1]))]
    color = draw(st.sampled_from([None, "rgb", "bgr", "gray"])) if channels in (1, 3) else None
    count = {None: channels, "gray": 1}.get(color, 3)
    parameters = {"color": color, "layout": draw(st.sampled_from(["NCHW", "NHWC"]))}
    parameters["dtype"] = draw(st.sampled_from(["float32", "float16"] + ["uint8"] * (kind is np.uint8)))
    unit, positive = st.floats(-1, 1), st.floats(0.01, 1)
    if parameters["dtype"] != "uint8" and draw(st.booleans()):
        parameters["mean"] = draw(st.lists(unit, min_size=count, max_size=count) | st.tuples(unit) | st.just(()))
        parameters["std"] = draw(st.lists(positive, min_size=count, max_size=count) | st.tuples(positive))
    elif parameters["dtype"] != "uint8":
        parameters["mean_value"] = draw(st.lists(st.floats(0, 200, width=32), min_size=count, max_size=count))
        parameters["scale"] = draw(st.sampled_from([1.0, 0.017, 1 / 256]))
    return images, parameters


@settings(max_examples=60)
@given(cases())
def test_every_form_has_the_bits_of_numpy(case):
    images, parameters = case
    expected = np.stack([np.ascontiguousarray(finished(image, **parameters)) for image in images])
    for _ in each_kernel():
        assert_same_bits(transformed(images, **parameters), expected)


@st.composite
def ranges(draw):
    low = draw(st.sampled_from([0, 0.5, 1]))
    return low, low + draw(st.sampled_from([0, 0.7, 2]))


@settings(max_examples=60)
@given(cases().filter(lambda case: case[0].dtype == np.uint8 and case[0].shape[1] != 4), ranges(), ranges(), ranges())
def test_colors_have_the_bits_of_numpy(case, brightness, contrast, saturation):
    images, form = case
    jitter = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    if all(each == (1, 1) for each in jitter.values()):
        return
    expected = [
        finished(jittered(image, raw, **jitter), unit=255.0, **form) for image, raw in zip(images, draws(0, 0, 2))
    ]
    for _ in each_kernel():
        found = transformed(images, seed=0, **jitter, **form)
        assert_same_bits(found, np.stack([np.ascontiguousarray(each) for each in expected]))


def test_colors_vary_within_their_bounds():
    images = np.full((400, 3, 2, 2), 100, np.uint8)
    found = transformed(images, seed=1, brightness=0.3, dtype="uint8")[:, 0, 0, 0]
    assert found.min() in range(70, 74) and found.max() in range(127, 131) and 95 < found.mean() < 105
    assert len(np.unique(found)) > 45
    dull = transformed(np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4), saturation=(0, 0))
    np.testing.assert_allclose(dull[0, 0], dull[0, 2])
    flat = transformed(np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4), contrast=(0, 0))
    np.testing.assert_allclose(flat, 0.114 * 7.5 + 0.587 * 23.5 + 0.299 * 39.5, rtol=1e-6)


def test_a_gray_image_has_one_channel_wherever_its_channels_lie_in_memory():
    gray = np.random.RandomState(0).randint(0, 256, (1, 1, 9, 40)).astype(np.uint8)
    colored = np.broadcast_to(gray, (1, 3, 9, 40))
    jitter = {"contrast": (0.5, 0.5), "saturation": (0.3, 0.3)}
    expected = finished(jittered(colored[0], draws(0, 0, 1)[0], **jitter))
    assert_same_bits(transformed(colored, seed=0, **jitter)[0], expected)
    assert_same_bits(transformed(np.ascontiguousarray(colored), seed=0, **jitter)[0], expected)
    assert (transformed(gray, seed=0, color="rgb", **jitter)[0] != expected).any()


def test_mirrored_forms_are_the_forms_mirrored():
    images = np.random.RandomState(0).randint(0, 256, (32, 3, 5, 40)).astype(np.uint8)
    for parameters in (
        {"color": "gray"},
        {"dtype": "uint8"},
        {"dtype": "uint8", "color": "rgb", "layout": "NHWC"},
        {"dtype": "float16", "layout": "NHWC", **IMAGENET},
    ):
        columns = 2 if parameters.get("layout") == "NHWC" else 3
        plain = transformed(images, **parameters)
        found = transformed(images, mirror=True, **parameters)
        mirrored = [(one == np.flip(other, columns - 1)).all() for one, other in zip(found, plain)]
        same = [(one == other).all() for one, other in zip(found, plain)]
        assert all(np.logical_xor(mirrored, same)) and 0 < sum(mirrored) < 32


def test_float16_rounds_every_kind_of_number_as_numpy_does():
    bits = np.concatenate(
        [
            np.arange(0, 2**32, 9973, dtype=np.uint64),  # all signs and exponents, infinities and NaN
            np.arange(0x33000000 - 40, 0x33000000 + 40),  # half of the smallest number
            np.arange(0x38800000 - 9000, 0x38800000 + 9000),  # from subnormal to normal
            np.arange(0x477FE000 - 9000, 0x477FE000 + 9000),  # up to infinity
        ]
    ).astype(np.uint32)
    values = bits[: len(bits) // 8 * 8].view(np.float32).reshape(1, 1, 8, -1)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    for _ in each_kernel():
        found = transformed(values, dtype="float16")
        nan = np.isnan(expected)
        assert (np.isnan(found) == nan).all()
        assert_same_bits(found[~nan], expected[~nan])


def test_mean_and_std_are_torchvisions():
    """Up to rounding: torchvision divides by 255, then subtracts and divides."""
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3).transpose(0, 3, 1, 2)
    found = transformed(images, color="rgb", **IMAGENET)
    for channel in range(3):
        expected = (images[0, 2 - channel] / 255 - IMAGENET["mean"][channel]) / IMAGENET["std"][channel]
        np.testing.assert_allclose(found[0, channel], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(transformed(images, mean=0), images * np.float32(1 / 255))
    assert transformed(images, std=1).max() == 1


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"std": 0}, "std must be positive"),
        ({"std": (0.2, -0.2, 0.2)}, "std must be positive, because values are divided by it, and is -0.2"),
        ({"std": 1e-39}, "std must be positive"),
        ({"mean": (1, 2), "std": (1, 1, 1)}, "mean has 2 values and std has 3: give one for each channel"),
        ({"mean": 0.5, "mean_value": 3}, "mean and std take the place of mean_value, mean_file and scale"),
        ({"std": 0.5, "scale": 2}, "leave out scale"),
        ({"color": "gray", "mean": (0.1, 0.2, 0.3)}, 'color="gray" makes images with 1 channel, but mean has 3 values'),
        ({"color": "rgb", "mean_value": (1, 2)}, 'color="rgb" makes images with 3 channels, but mean_value has 2'),
        ({"color": "RGB"}, 'color is "rgb", "bgr" or "gray", not \'RGB\''),
        ({"dtype": "float64"}, 'dtype is "float32", "float16" or "uint8", not \'float64\''),
        ({"dtype": object()}, "dtype is"),
        ({"layout": "CHW"}, 'layout is "NCHW" or "NHWC", not \'CHW\''),
        ({"dtype": "uint8", "mean": 0.5}, "leave out mean and std"),
        ({"dtype": "uint8", "scale": 2}, "leave out scale"),
        ({"brightness": -1}, "brightness is a positive number, or a pair of them, the smaller one first"),
        ({"contrast": (2, 1)}, "contrast is a positive number, or a pair of them, the smaller one first"),
        ({"saturation": (1, 2, 3)}, "saturation is a positive number, or a pair"),
        ({"saturation": 0.5, "phase": "TEST"}, 'saturation is for training: leave it out with phase="TEST"'),
    ],
)
def test_parameters_that_do_not_go_together(parameters, words):
    with pytest.raises(ValueError, match=words):
        Transform(**parameters)


@pytest.mark.parametrize(
    "shape, kind, parameters, words",
    [
        ((4, 8, 8), np.uint8, {"color": "rgb"}, 'color="rgb" is made of 3 channels .* and the image has 4'),
        ((2, 8, 8), np.uint8, {"color": "gray"}, 'color="gray" is made of 3 channels'),
        ((3, 8, 8), np.float32, {"dtype": "uint8"}, 'the image is float32, of which no dtype="uint8" is made'),
        ((4, 8, 8), np.uint8, {"contrast": 0.5}, "for 3 channels .* and the image has 4"),
        ((3, 8, 8), np.float32, {"contrast": 0.5}, "for images of uint8, and this one is float32"),
        ((3, 8, 8), np.uint8, {"mean": 123.675}, "pixel values from 0 to 1, .* but mean has 123.675: divide by 255"),
        ((3, 8, 8), np.uint8, {"mean": 0.5, "std": 58.395}, "but std has 58.395"),
        ((3, 8, 8), np.uint8, {"mean": (0.1, 0.2)}, "as many as channels: 3"),
        ((1, 8, 8), np.uint8, {"std": (0.1, 0.2)}, "as many as channels: 1"),
    ],
)
def test_images_that_a_form_does_not_fit(shape, kind, parameters, words):
    with pytest.raises(ValueError, match=f"^the transform does not fit data: .*{words}"):
        Loader(np.zeros((2, *shape), kind), Transform(**parameters))


def test_values_of_float32_images_have_their_own_unit():
    images = np.float32([[[[-1000, 500]]]])
    assert transformed(images, mean=-500, std=250).tolist() == [[[[-2, 4]]]]
    np.testing.assert_allclose(transformed(images, mean=3e38, std=1e38), -3, rtol=1e-6)


def test_forms_as_attributes():
    transform = Transform(mean=[0.5], std=np.float32(0.25), color="rgb", dtype=np.float16, layout="NHWC")
    assert (transform.mean, transform.std) == ((0.5,), (0.25,))
    assert (transform.color, transform.dtype, transform.layout) == ("rgb", "float16", "NHWC")
    assert repr(transform) == "Transform(mean=(0.5,), std=(0.25,), color='rgb', dtype='float16', layout='NHWC')"
    assert eval(repr(transform)) == transform != Transform(mean=0.5, std=0.25)
