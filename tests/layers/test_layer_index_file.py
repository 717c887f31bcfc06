"""The layers with an index of JPEG files in a file: Caffe's bits, and an index from the first batch of a later net."""

import os

import pytest

pytest.importorskip("caffe._caffe")
pytest.importorskip("cv2")
codec = pytest.importorskip("fastbatch.images._codec")

from databases import encoded
from fastbatch.caffe import close_all
from layer_contracts import check_same_batches
from nets import params
from pictures import JPEG, encode, picture
from windows import window_file

if codec.jpeg_decoder() != "own":
    pytest.skip("the own JPEG decoder is not in use here", allow_module_level=True)

COUNT, BATCH = 6, 4
SIZE = 200, 300


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with photographs, list.txt and windows.txt."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(COUNT):
        (folder / f"{i}.jpg").write_bytes(encode(picture(i, *SIZE), *JPEG))
        os.utime(folder / f"{i}.jpg", (1e9, 1e9))
    (folder / "list.txt").write_text("".join(f"{i}.jpg {i}\n" for i in range(COUNT)))
    windows = [(label, label % 2, 10, 100, 40, 130) for label in range(2)]
    window_file(folder, [(f"{i}.jpg", SIZE, windows) for i in range(COUNT)])
    return folder


def layer(kind, param, options=None):
    python = ""
    if options is not None:
        python = f"python_param {{ module: 'fastbatch.caffe' layer: '{kind}' param_str: '{options}' }}"
    kind = kind if options is None else "Python"
    return f'layer {{ name: "data" type: "{kind}" top: "data" top: "label" {python} {param} }}\n'


def check(build, kind, param, folder):
    """One net makes the file, and closes; the next one uses it. Both are compared with Caffe's own.

    A net that is not closed makes one, too: the `caffe` tool ends without closing it.
    """
    net = build(layer(kind, param, f'threads: 2 index_file: "{folder}/running.index"'))
    for _ in range(70):
        net.forward()
    assert (folder / "running.index").exists()
    close_all()  # a database is open once in a process
    options = f'threads: 2 index_file: "{folder}/train.index"'
    for _ in range(2):
        check_same_batches(build, [layer(kind, param, options), layer(kind, param)], 5, [7])
    net = build(layer(kind, param, options))
    for _ in range(5):
        net.forward()
    images = net.layers[0].stats()["images"]
    assert images["own"] == 0 and images["index"] >= COUNT


def test_data(build, files, write, tmp_path):
    path = write(tmp_path / "database", [encoded((files / f"{i}.jpg").read_bytes(), i) for i in range(COUNT)])
    check(build, "Data", params(path, BATCH, "crop_size: 40 mirror: true"), tmp_path)


def test_image_data(build, files, tmp_path):
    param = (
        f'image_data_param {{ source: "{files}/list.txt" root_folder: "{files}/" batch_size: {BATCH} shuffle: true }}'
    )
    check(build, "ImageData", param + " transform_param { crop_size: 40 mirror: true }", tmp_path)


def test_window_data(build, files, tmp_path):
    param = f'window_data_param {{ source: "{files}/windows.txt" root_folder: "{files}/" batch_size: {BATCH} }}'
    check(build, "WindowData", param + " transform_param { crop_size: 40 mirror: true }", tmp_path)
