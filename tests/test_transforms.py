"""Transform: the arguments it accepts and refuses. tests/native and the loader's tests cover the pixels."""

import dataclasses
import pickle

import numpy as np
import pytest

from fastbatch.transforms import Transform


@pytest.fixture
def mean_file(tmp_path):
    """A mean file of shape (1, 2, 3), values 0 .. 5: legacy dims, then packed data."""
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(b"\x08\x01\x10\x01\x18\x02\x20\x03" + b"\x2a\x18" + np.arange(6, dtype="<f4").tobytes())
    return path


def test_defaults_are_caffes():
    plain = Transform()
    assert plain.crop_size == 0
    assert plain.mirror is False
    assert plain.scale == 1.0
    assert plain.mean_value == ()
    assert plain.mean_file is None
    assert plain.phase == "TRAIN"
    assert plain.mean_image() is None


def test_values_keep_their_types():
    transform = Transform(
        crop_size=np.int64(24), mirror=np.bool_(True), scale=np.float32(0.5), mean_value=np.array([1.5, 2, 3]), phase=1
    )
    assert (transform.crop_size, type(transform.crop_size)) == (24, int)
    assert transform.mirror is True
    assert (transform.scale, type(transform.scale)) == (0.5, float)
    assert transform.mean_value == (1.5, 2.0, 3.0)
    assert all(type(value) is float for value in transform.mean_value)
    assert transform.phase == "TEST"
    assert Transform(mean_value=104).mean_value == (104.0,)
    assert Transform(mirror=1, phase=0) == Transform(mirror=True)


def test_mean_file_is_read_once(mean_file):
    transform = Transform(mean_file=mean_file)
    assert transform.mean_file == str(mean_file)
    mean_file.unlink()
    mean = transform.mean_image()
    assert mean.dtype == np.float32 and mean.flags.c_contiguous
    np.testing.assert_array_equal(mean, [[[0, 1, 2], [3, 4, 5]]])
    assert transform.mean_image() is mean
    with pytest.raises(ValueError, match="read-only"):
        mean[0, 0, 0] = 1


def test_a_transform_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Transform().crop_size = 5


def test_equality_hash_repr_and_pickle(mean_file):
    one, same = Transform(crop_size=5, mean_file=mean_file), Transform(crop_size=5, mean_file=str(mean_file))
    assert one == same and hash(one) == hash(same)
    assert one != Transform(crop_size=5)
    assert repr(Transform(crop_size=5, mean_value=3)) == "Transform(crop_size=5, mean_value=(3.0,))"
    assert repr(Transform()) == "Transform()"
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    np.testing.assert_array_equal(copy.mean_image(), one.mean_image())


def test_replace(mean_file):
    training = Transform(crop_size=1, mirror=True, mean_file=mean_file)
    test = dataclasses.replace(training, phase="TEST", mirror=False)
    assert test == Transform(crop_size=1, mean_file=mean_file, phase="TEST")
    np.testing.assert_array_equal(test.mean_image(), training.mean_image())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"crop_size": -1}, "crop_size must lie between 0"),
        ({"crop_size": 2**31}, "crop_size must lie between 0"),
        ({"crop_size": 227.0}, "must be an integer, in pixels"),
        ({"crop_size": "227"}, "must be an integer, in pixels"),
        ({"crop_size": True}, "must be an integer, in pixels"),
        ({"mirror": "yes"}, "True or False"),
        ({"mirror": 2}, "True or False"),
        ({"scale": "0.5"}, "scale takes numbers"),
        ({"scale": (0.08, 1)}, "the share of an image for random_resized_crop is crop_area"),
        ({"scale": float("nan")}, "scale takes finite numbers"),
        ({"scale": float("inf")}, "scale takes finite numbers"),
        ({"scale": 1e39}, "fit into a float32"),
        ({"mean_value": "104"}, "mean_value is a number, or one number for each channel, not '104'"),
        ({"mean_value": [1, None]}, "mean_value takes numbers"),
        ({"mean_value": object()}, "one number for each channel"),
        ({"mean_value": [float("nan")]}, "mean_value takes finite numbers"),
        ({"phase": "val"}, '"TRAIN" or "TEST"'),
        ({"phase": 2}, '"TRAIN" or "TEST"'),
        ({"phase": []}, '"TRAIN" or "TEST"'),
        ({"mean_value": 1, "mean_file": "anything"}, "Cannot specify mean_file and mean_value at the same time"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Transform(**arguments)


def test_a_bad_mean_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="File not found"):
        Transform(mean_file=tmp_path / "nowhere.binaryproto")
    (tmp_path / "text").write_text("hello, hello")
    with pytest.raises(ValueError, match="text.*not a binaryproto"):
        Transform(mean_file=tmp_path / "text")


def test_parameters_are_keyword_only():
    with pytest.raises(TypeError):
        Transform(227)


def test_the_phase_in_small_letters():
    assert Transform(phase="train").phase == Transform(phase="Train").phase == "TRAIN"
    assert Transform(phase="test") == Transform(phase="TEST") == Transform(phase=1)


@pytest.mark.parametrize(
    "keyword, words",
    [
        ("crop_siz", "Transform has no parameter crop_siz: did you mean crop_size?"),
        ("expand_param", "has no parameter expand_param: SSD's Caffe has it, and fastbatch does not do it"),
        ("emit_constraint", "boxes of which the crop shows too little are dropped by least_visible"),
        ("distort_param", "has no parameter distort_param: the steps of SSD's distort_param are brightness, contrast"),
        ("resize_param", "images are resized with resize=(height, width)"),
        ("img_rand_resize_upper", "NVIDIA's Caffe has it"),
        ("min_scale", "its parameters are crop_size, mirror, scale, mean_value, mean_file, phase, mean, std, color"),
        ("new_height", "images are resized with resize=(height, width)"),
        ("force_color", "the source decodes in color or gray"),
        ("center_crop", 'crop_size= with phase="TEST" cuts out the center'),
        ("random_crop", "crop_size= cuts out a square at random"),
        ("normalize", "are mean= and std="),
        ("interpolation", "images are resized bilinearly"),
        ("hue", "nothing changes the hue"),
    ],
)
def test_a_parameter_that_it_does_not_have(keyword, words):
    with pytest.raises(TypeError) as caught:
        Transform(**{keyword: 3})
    assert words in str(caught.value)
