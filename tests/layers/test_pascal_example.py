"""examples/pascal: a synchronous data layer, and the same on fastbatch."""

import difflib
import importlib
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
Image = pytest.importorskip("PIL.Image")

from fastbatch.caffe import close_all

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pascal"
SHAPE = (20, 24)
SHOWN = [["cat"], ["dog", "cat"], ["person"], ["tvmonitor", "sofa"], ["train"], ["bird", "person", "boat"]]


@pytest.fixture
def pascal(tmp_path, monkeypatch):
    """The folder of six images in the layout of PASCAL VOC. The example's modules can be imported."""
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        os.makedirs(tmp_path / folder)
    names = [f"2008_{number:06d}" for number in range(len(SHOWN))]
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(names))
    for number, (name, shown) in enumerate(zip(names, SHOWN)):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        objects = "".join(f"<object><name>{each}</name></object>" for each in shown)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield str(tmp_path)
    close_all()


def layer(module, pascal, batch_size, **others):
    parameters = {"batch_size": batch_size, "pascal_root": pascal, "split": "train", "im_shape": SHAPE, **others}
    return (
        f'layer {{ name: "data" type: "Python" top: "data" top: "label" python_param {{ module: "{module}" '
        f'layer: "MultilabelLayer" param_str: "{parameters}" }} }}'
    )


def test_the_layer_on_fastbatch_gives_the_images_of_the_one_before(build, pascal):
    after = importlib.import_module("after")
    loader = after.BatchLoader(pascal, "train", SHAPE)
    net = build(layer("after", pascal, 4))
    for first in (0, 4, 2):
        net.forward()
        for row, index in enumerate(range(first, first + 4)):
            image, labels = loader.load_image(index % 6)
            assert {after.CLASSES[number] for number in np.flatnonzero(labels)} == set(SHOWN[index % 6])
            assert (net.blobs["label"].data[row] == labels).all()
            found = net.blobs["data"].data[row]
            assert (found == image).all() or (found == image[:, :, ::-1]).all()  # mirrored at random


def test_the_layer_before_works(build, pascal):
    before = importlib.import_module("before")
    net = build(layer("before", pascal, 6))
    net.forward()
    found = [tuple(before.CLASSES[number] for number in np.flatnonzero(labels)) for labels in net.blobs["label"].data]
    assert sorted(map(sorted, found)) == sorted(map(sorted, SHOWN))
    assert net.blobs["data"].data.std() > 10


def test_both_have_a_new_order_in_each_epoch(build, pascal):
    importlib.import_module("before").random.seed(5)
    labels = [tuple(sorted(each)) for each in SHOWN]
    for module, others in ("before", {}), ("after", {"shuffle": True, "seed": 1}):
        net, orders = build(layer(module, pascal, 6, **others)), []
        for _ in range(3):
            net.forward()
            names = importlib.import_module(module).CLASSES
            shown = [tuple(sorted(names[i] for i in np.flatnonzero(row))) for row in net.blobs["label"].data]
            orders.append([labels.index(each) for each in shown])
        assert all(sorted(order) == list(range(6)) for order in orders)
        assert len({tuple(order) for order in [*orders, range(6)]}) == 4


def test_fewer_than_ten_lines_change():
    before, after = (code_of(EXAMPLE / name) for name in ("before.py", "after.py"))
    added = [line for line in difflib.ndiff(before, after) if line.startswith("+ ") and line[2:].strip()]
    assert 0 < len(added) < 10


def code_of(path):
    """The lines after the module's docstring."""
    return path.read_text().split('"""', 2)[2].splitlines()
