"""examples/lists: layers for lists of images with masks, and for lists with several labels."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
cv2 = pytest.importorskip("cv2")

from fastbatch import SampleError
from fastbatch.caffe import close_all
from pictures import picture

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lists"
SIZES = [(20, 24), (31, 17), (20, 24), (12, 40)]
MEAN = np.reshape([104, 117, 123], (3, 1, 1)).astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images as PNG and their masks, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for number, (height, width) in enumerate(SIZES):
        cv2.imwrite(f"{number}.png", picture(number, height, width))
        cv2.imwrite(f"mask{number}.png", np.random.RandomState(number).choice([0, 1, 255], (height, width)))
    yield tmp_path
    close_all()


def test_images_and_masks(folder, build):
    (folder / "train.txt").write_text("".join(f"{i}.png mask{i}.png\n" for i in range(len(SIZES))))
    net = build((EXAMPLE / "segmentation.prototxt").read_text())
    assert net.blobs["data"].data.shape == (1, 3, 20, 24) and net.blobs["label"].data.shape == (1, 1, 20, 24)
    for number in [*range(len(SIZES)), *range(len(SIZES))]:
        net.forward()
        image, mask = cv2.imread(f"{number}.png"), cv2.imread(f"mask{number}.png", cv2.IMREAD_GRAYSCALE)
        assert (net.blobs["data"].data[0] == image.transpose(2, 0, 1) - MEAN).all()
        assert (net.blobs["label"].data[0, 0] == mask).all()
        assert net.blobs["score"].data.shape == (1, 2, *SIZES[number])
        assert np.isfinite(net.blobs["loss"].data)


def test_masks_in_larger_batches(folder, build):
    (folder / "train.txt").write_text("0.png mask0.png\n\n2.png mask2.png\n\n")
    net = build((EXAMPLE / "segmentation.prototxt").read_text().replace("'batch_size': 1", "'batch_size': 2"))
    net.forward()
    masks = [cv2.imread(f"mask{number}.png", cv2.IMREAD_GRAYSCALE) for number in (0, 2)]
    assert (net.blobs["label"].data[:, 0] == masks).all()


def test_a_first_sample_that_cannot_be_read(folder, build):
    (folder / "train.txt").write_text("0.png nowhere.png\n")
    with pytest.raises(SampleError, match="in images: Could not open or find file nowhere.png"):
        build((EXAMPLE / "segmentation.prototxt").read_text())


def test_many_labels(folder, build):
    labels = np.eye(len(SIZES), dtype=int)[::-1] + np.eye(len(SIZES), dtype=int)
    lines = [f"{number}.png {' '.join(map(str, row))}\n" for number, row in enumerate(labels)]
    (folder / "train.txt").write_text("".join(lines))
    net = build((EXAMPLE / "many_labels.prototxt").read_text())
    shown = []
    for _ in range(len(SIZES)):
        net.forward()
        assert net.blobs["data"].data.shape == (3, 3, 32, 32) and net.blobs["label"].data.shape == (3, 4)
        for image, row in zip(net.blobs["data"].data, net.blobs["label"].data):
            same = [
                number
                for number in range(len(SIZES))
                if (cv2.resize(cv2.imread(f"{number}.png"), (32, 32)).transpose(2, 0, 1) == image).all()
            ]
            assert len(same) == 1 and (row == labels[same[0]]).all()
            shown += same
        assert np.isfinite(net.blobs["loss"].data)
    assert np.bincount(shown).tolist() == [3, 3, 3, 3]
