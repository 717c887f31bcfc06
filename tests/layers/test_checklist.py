"""The cases of Caffe's test_data_layer.cpp, for both layers: five images of 2 x 3 x 4 with labels 0 to 4."""

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

from databases import datum
from nets import caffes, ours, params, run

SHAPE = (2, 3, 4)
CENTERS = [5, 17]  # of images whose pixels are numbered; the crop of 1 x 1 rounds down


@pytest.fixture(params=[ours, caffes])
def layer(request):
    return request.param


@pytest.fixture
def numbered(tmp_path, write):
    """Every image has the pixels 0 to 23."""
    image = np.arange(24, dtype=np.uint8).reshape(SHAPE)
    return write(tmp_path / "numbered", [(b"%d" % i, datum(image, i)) for i in range(5)])


def test_read(build, tmp_path, layer, write):
    path = write(tmp_path / "db", [(b"%d" % i, datum(np.full(SHAPE, i, np.uint8), i)) for i in range(5)])
    arrays = run(build, layer(params(path, 5, "scale: 3")), 100)
    for data, label in zip(arrays[::2], arrays[1::2]):
        assert label.tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(data, np.broadcast_to(3 * np.arange(5).reshape(5, 1, 1, 1), (5, *SHAPE)))


def test_shapes_that_change_from_batch_to_batch(build, tmp_path, layer, write):
    shapes = [(2, i % 2 + 1, i % 4 + 1) for i in range(5)]
    records = [datum(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape), i) for i, shape in enumerate(shapes)]
    arrays = run(build, layer(params(write(tmp_path / "db", records), 1)), 10, phase=caffe.TEST)
    for i, (data, label) in enumerate(zip(arrays[::2], arrays[1::2])):
        assert data.shape == (1, *shapes[i % 5]) and label.tolist() == [i % 5]
        assert data.ravel().tolist() == list(range(data.size))


def test_crop_in_test_is_the_centre(build, numbered, layer):
    arrays = run(build, layer(params(numbered, 5, "crop_size: 1 scale: 3")), 2, phase=caffe.TEST)
    for data, label in zip(arrays[::2], arrays[1::2]):
        assert data.shape == (5, 2, 1, 1) and label.tolist() == [0, 1, 2, 3, 4]
        assert data.reshape(5, 2).tolist() == 5 * [[3 * center for center in CENTERS]]


def test_crop_in_train_is_anywhere(build, numbered, layer):
    text = layer(params(numbered, 5, "crop_size: 1 scale: 3"))
    arrays = run(build, text, 2, seed=1701, names=["data"])
    pixels = np.concatenate(arrays).reshape(10, 2) / 3
    np.testing.assert_array_equal(pixels[:, 1] - pixels[:, 0], 12)  # both channels are cut at one place
    assert len(np.unique(pixels[:, 0])) > 1 and set(pixels[:, 0]) <= set(range(12))


def test_a_seed_fixes_the_sequence(build, numbered, layer):
    text = layer(params(numbered, 5, "crop_size: 1 mirror: true"))
    first, second = (run(build, text, 2, seed=1701, names=["data"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_without_a_new_seed_the_sequence_goes_on(build, numbered, layer):
    caffe.set_random_seed(1701)
    text = layer(params(numbered, 5, "crop_size: 1 mirror: true"))
    first, second = (run(build, text, 2, names=["data"]) for _ in range(2))
    assert not np.array_equal(first, second)
