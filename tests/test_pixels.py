"""The pixel pipeline outside of a Loader: one image at a time, and fields that are cropped and mirrored together."""

import numpy as np
import pytest

from fastbatch import ArraySource, Transform
from fastbatch._batches import BatchRing
from fastbatch._transform import NativeTransform
from fastbatch.orders.caffe import CaffeRecords


def caffe(image, transform, draws):
    """Caffe's DataTransformer in NumPy, each operation rounded once."""
    mirror = transform.mirror and draws[0] % 2
    height, width = (transform.crop_size,) * 2 if transform.crop_size else image.shape[1:]
    room = image.shape[1] - height, image.shape[2] - width
    top, left = (
        draws[1 + axis] % (each + 1) if transform.phase == "TRAIN" else each // 2 for axis, each in enumerate(room)
    )
    part = np.s_[:, top : top + height, left : left + width]
    values = image[part].astype(np.float32)
    if transform.mean_value:
        values -= np.array(transform.mean_value, np.float32).reshape(-1, 1, 1)
    values *= np.float32(transform.scale)
    return values[:, :, ::-1] if mirror else values


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_one_image_has_caffes_bits(dtype):
    pick = np.random.RandomState(3)
    for _ in range(200):
        channels, height, width = pick.randint(1, 5), pick.randint(1, 30), pick.randint(1, 60)
        image = pick.randint(0, 256, (channels, height, width)).astype(dtype) / dtype(1 if dtype is np.uint8 else 7)
        if dtype is np.uint8:
            image = (
                pick.randint(0, 256, (height, width, channels))
                .astype(dtype)
                .transpose(2, 0, 1)[:, :: pick.choice([1, -1])]
            )
        transform = Transform(
            crop_size=int(pick.choice([0, pick.randint(1, min(height, width) + 1)])),
            mirror=bool(pick.randint(2)),
            scale=float(pick.choice([1, 1 / 3, 0.00390625])),
            mean_value=[(), (104.5,), tuple(range(channels))][pick.randint(3)],
            phase=str(pick.choice(["TRAIN", "TEST"])),
        )
        native, draws = (
            NativeTransform(transform, caffe_draws=True),
            pick.randint(0, 2**32, 3, dtype=np.uint64).tolist(),
        )
        out = np.full(native.check(image.shape), np.nan, np.float32)
        native.apply(image, draws, out)
        np.testing.assert_array_equal(
            out.view(np.uint32), np.ascontiguousarray(caffe(image, transform, draws)).view(np.uint32)
        )


def test_an_image_that_does_not_fit():
    native, out = NativeTransform(Transform(crop_size=4, mean_value=(1, 2))), np.zeros((2, 4, 4), np.float32)
    for shape, words in (
        ((2, 3, 5), "smaller than crop_size 4"),
        ((3, 5, 5), "Specify either 1 mean_value or as many as channels: 3"),
    ):
        with pytest.raises(ValueError, match=words):
            native.check(shape)
        with pytest.raises(ValueError, match=words):
            native.apply(np.zeros(shape, np.uint8), (0, 0, 0), out)
    with pytest.raises(ValueError, match=r"out has shape \(2, 4, 4\), and the image becomes \(1, 5, 6\)"):
        NativeTransform(None).apply(np.zeros((1, 5, 6), np.uint8), (0, 0, 0), out)
    for image in np.zeros((2, 5, 5), np.int16), np.zeros((5, 5), np.uint8):
        with pytest.raises(TypeError, match="an image is uint8 or float32 with 3 dimensions"):
            native.apply(image, (0, 0, 0), out)
    assert not out.any()


def ring_of(source, **arguments):
    return BatchRing(source, batch_size=8, slots=2, threads=2, **arguments)


@pytest.mark.parametrize(
    "order", [None, CaffeRecords(7, Transform(crop_size=9, mirror=True))], ids=["keyed draws", "Caffe's draws"]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, np.int64])
def test_a_mask_is_cropped_and_mirrored_as_its_image(dtype, order):
    places = np.arange(13 * 17, dtype=np.uint8).reshape(1, 1, 13, 17)
    data = np.ascontiguousarray((places + np.arange(32, dtype=np.uint8).reshape(-1, 1, 1, 1)).repeat(3, 1))
    mask, planes = data[:, 0].astype(dtype), data[:, :2].astype(dtype)
    source = ArraySource(mask=mask, data=data, planes=planes, other=mask.reshape(32, -1))
    ring = ring_of(
        source, transform=Transform(crop_size=9, mirror=True, fields=("data", "mask", "planes")), order=order
    )
    mirrored = set()
    try:
        for _ in range(4):
            batch = ring.next()
            assert (
                batch["data"].shape == (8, 3, 9, 9)
                and batch["mask"].shape == (8, 9, 9)
                and batch["planes"].shape == (8, 2, 9, 9)
            )
            assert batch["mask"].dtype == batch["planes"].dtype == batch["other"].dtype == dtype and batch[
                "other"
            ].shape == (8, 13 * 17)
            assert (batch["mask"] == batch["data"][:, 0].astype(dtype)).all() and (
                batch["planes"] == batch["data"][:, :2].astype(dtype)
            ).all()
            mirrored |= set((batch["mask"][:, 0, 0] > batch["mask"][:, 0, 1]).tolist())
    finally:
        ring.close()
    assert mirrored == {False, True}


def test_a_mask_of_another_size_is_refused():
    source = ArraySource(data=np.zeros((8, 3, 13, 17), np.uint8), mask=np.zeros((8, 12, 17), np.uint8))
    with pytest.raises(ValueError, match=r"the samples of mask have shape \(12, 17\), with another height or width"):
        ring_of(source, transform=Transform(crop_size=9, fields=("data", "mask")))
