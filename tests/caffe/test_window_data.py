"""Our WindowData layer and Caffe's own, one after the other in one process: the same windows, bits and draws."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("fastbatch._images")

import caffe  # noqa: E402
from databases import images  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from jpegs import with_exif  # noqa: E402
from nets import assert_same_bits, native_threads, open_files, run, shown  # noqa: E402
from test_encoded import JPEG, PROGRESSIVE, encode, picture  # noqa: E402

import fastbatch  # noqa: E402

pytestmark = pytest.mark.usefixtures("leaves_nothing")

BATCH, FORWARDS = 7, 6
CROP = 40

# A layer that draws from Caffe's stream when the net is built, after the data layer.
DRAWING = """
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
            inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
"""


def window_file(folder, listed, name="windows.txt", ending="\n"):
    """Writes a list: of (path, (height, width), [(class, overlap, x1, y1, x2, y2), ...])."""
    lines = []
    for number, (path, (height, width), windows) in enumerate(listed):
        lines += [f"# {number}", str(path), "3", str(height), str(width), str(len(windows))]
        lines += [" ".join(map(str, window)) for window in windows]
    (folder / name).write_bytes("".join(line + ending for line in lines).encode())
    return str(folder / name)


def windows_of(height, width, seed):
    """Of all kinds: the whole image, each corner, one pixel, a row, a column, and random ones; half of them foreground."""
    random = np.random.RandomState(seed)
    boxes = [(0, 0, width - 1, height - 1), (0, 0, 0, 0), (width - 1, height - 1, width - 1, height - 1), (0, height - 1, width // 2, height - 1),
             (width // 3, height // 3, width // 3, height // 3), (0, height // 2, width - 1, height // 2), (width // 2, 0, width // 2, height - 1),
             (0, 0, width // 2, height // 3), (width // 2, height // 3, width - 1, height - 1)]
    for _ in range(12):
        x, y = sorted(random.randint(0, width, 2)), sorted(random.randint(0, height, 2))
        boxes.append((x[0], y[0], x[1], y[1]))
    return [(random.randint(1, 21) if i % 2 else 0, random.uniform(0.5, 1) if i % 2 else random.uniform(0, 0.5), *box)
            for i, box in enumerate(boxes)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with windows.txt, its images of every kind, and mean.binaryproto."""
    folder = tmp_path_factory.mktemp("windows")
    listed = []

    def add(name, data, size):
        (folder / name).write_bytes(data)
        listed.append((name, size, windows_of(*size, seed=len(listed))))

    for i, kind in enumerate([JPEG, (".png",), PROGRESSIVE, JPEG, (".png",)]):
        size = (61 + 7 * i, 113 - 9 * i)
        add(f"{i}{kind[0]}", encode(picture(i, *size), *kind), size)
    add("gray.jpg", encode(picture(6, 53, 67, channels=1), *JPEG), (53, 67))
    add("gray.png", encode(picture(7, 53, 67, channels=1), ".png"), (53, 67))
    add("alpha.png", encode(picture(8, 30, 91, channels=4), ".png"), (30, 91))
    add("row.jpg", encode(picture(9, 1, 50), *JPEG), (1, 50))
    add("crop.png", encode(picture(10, CROP, CROP), ".png"), (CROP, CROP))
    add("twice.jpg", encode(picture(11, 2 * CROP, 2 * CROP), *JPEG), (2 * CROP, 2 * CROP))
    for orientation in range(1, 9):
        size = (48, 71) if orientation < 5 else (71, 48)
        add(f"turned{orientation}.jpg", with_exif(encode(picture(orientation, 48, 71), *JPEG), orientation), size)
    window_file(folder, listed)
    for name, shape in ("mean", (CROP + 9, CROP + 9)), ("high", (CROP + 30, CROP + 5)), ("exact", (CROP, CROP)):
        mean = caffe.io.array_to_blobproto(images(1, (3, *shape), np.float32, seed=9))
        (folder / f"{name}.binaryproto").write_bytes(mean.SerializeToString())
    return folder


def ours(param, transform="", options="", more="", tops=("data", "label")):
    python = f'python_param {{ module: "fastbatch.caffe" layer: "WindowData" param_str: "{options}" }}'
    return layer("Python", python, param, transform, more, tops)


def caffes(param, transform="", options="", more="", tops=("data", "label")):
    return layer("WindowData", "", param, transform, more, tops)


def layer(kind, python, param, transform, more, tops):
    tops = " ".join(f'top: "{top}"' for top in tops)
    transform = f"transform_param {{ crop_size: {CROP} {transform} }}" if "crop_size" not in transform else f"transform_param {{ {transform} }}"
    return f'layer {{ name: "data" type: "{kind}" {tops} {python} window_data_param {{ {param} }} {transform} {more} }}\n'


def of(made, more="", batch_size=BATCH):
    return f'source: "{made}/windows.txt" root_folder: "{made}/" batch_size: {batch_size} {more}'


def assert_conforms(build, param, transform="", options="", phase=caffe.TRAIN, seeds=(1701,), after=DRAWING, forwards=FORWARDS):
    for seed in seeds:
        results = [run(build, kind(param, transform, options) + after, forwards, seed=seed, phase=phase,
                       names=["data", "label"] + (["ip"] if after else [])) for kind in (ours, caffes)]
        assert_same_bits(*results)


MEANS = {
    "none": "",
    "one value": "mean_value: 117.3",
    "three values": "mean_value: 104.1 mean_value: 116.7 mean_value: 122.7",
    "file": 'mean_file: "FOLDER/mean.binaryproto"',
    "high file": 'mean_file: "FOLDER/high.binaryproto"',
    "exact file": 'mean_file: "FOLDER/exact.binaryproto"',
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("mirror", ["false", "true"])
@pytest.mark.parametrize("context_pad", [0, 16])
@pytest.mark.parametrize("mode", ["warp", "square"])
def test_same_windows_same_bits_same_draws(build, made, mode, context_pad, mirror, mean, threads):
    param = of(made, f'crop_mode: "{mode}" context_pad: {context_pad} fg_fraction: 0.4 scale: 0.017')
    transform = f"mirror: {mirror} {MEANS[mean].replace('FOLDER', str(made))}"
    assert_conforms(build, param, transform, f"threads: {threads}")
