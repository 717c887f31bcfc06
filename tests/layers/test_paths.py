"""A prototxt's paths are used as the bytes that it contains, in any locale.

In the `caffe` tool and in containers, often no locale is set.
"""

import os
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
cv2 = pytest.importorskip("cv2")
h5py = pytest.importorskip("h5py")

import caffe

from databases import datum, image_lmdb, images, write_leveldb

pytestmark = pytest.mark.skipif(not shutil.which("caffe"), reason="the caffe tool is not installed")

NAMES = {"UTF-8": "b\u00e4se-\u732b".encode(), "Latin-1": b"b\xe4se"}


@pytest.fixture(params=NAMES)
def folder(request, tmp_path):
    """A folder, as bytes, whose name is not ASCII, with what each layer reads."""
    folder = os.path.join(os.fsencode(tmp_path), NAMES[request.param])
    os.mkdir(folder)
    image_lmdb(tmp_path / "lmdb", 4, (3, 8, 9))
    write_leveldb(tmp_path / "leveldb", [datum(image, 1) for image in images(4, (3, 8, 9))])
    for kind in b"lmdb", b"leveldb":
        shutil.move(os.path.join(os.fsencode(tmp_path), kind), os.path.join(folder, kind))
    mean = caffe.io.array_to_blobproto(images(1, (3, 8, 9), np.float32))
    encoded = cv2.imencode(".png", images(1, (8, 9, 3))[0])[1].tobytes()
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["data"], file["label"] = np.zeros((4, 3, 8, 9)), np.zeros(4)
    shutil.move(tmp_path / "rows.h5", os.path.join(folder, b"rows.h5"))
    for name, content in {
        b"mean": mean.SerializeToString(),
        b"cat.png": encoded,
        b"list.txt": b"cat.png 1\ncat.png 0\n",
        b"windows.txt": b"# 0\ncat.png\n3 8 9\n2\n1 0.9 0 0 5 5\n0 0.1 2 2 7 7\n",
        b"files.txt": folder + b"/rows.h5\n",
    }.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    return folder


LAYERS = {
    "Data, LMDB": (
        b'data_param { source: "FOLDER/lmdb" backend: LMDB batch_size: 2 } transform_param { mean_file: "FOLDER/mean" }'
    ),
    "Data, LevelDB": b'data_param { source: "FOLDER/leveldb" batch_size: 2 }',
    "ImageData": (
        b'image_data_param { source: "FOLDER/list.txt" root_folder: "FOLDER/" batch_size: 2 } transform_param { '
        b'mean_file: "FOLDER/mean" }'
    ),
    "WindowData": b'window_data_param { source: "FOLDER/windows.txt" root_folder: "FOLDER/" batch_size: 2 } '
    b'transform_param { crop_size: 4 mean_file: "FOLDER/mean" }',
    "HDF5Data": b'hdf5_data_param { source: "FOLDER/files.txt" batch_size: 2 }',
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("is_ours", [True, False])
def test_in_the_tool_without_a_locale(tmp_path, folder, layer, is_ours):
    kind = layer.partition(",")[0].encode()
    python = (
        b'type: "Python" python_param { module: "fastbatch.caffe" layer: "%s" }' % kind
        if is_ours
        else b'type: "%s"' % kind
    )
    (tmp_path / "net.prototxt").write_bytes(
        b'layer { name: "data" top: "data" top: "label" %s %s }' % (python, LAYERS[layer].replace(b"FOLDER", folder))
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LANG", "LC_CTYPE", "PYTHONUTF8", "PYTHONIOENCODING")
    }
    process = subprocess.run(
        ["caffe", "time", "--model=net.prototxt", "--iterations=2"],
        cwd=tmp_path,
        env={**environment, "LC_ALL": "C"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
    )
    assert process.returncode == 0, process.stdout.decode("utf-8", "replace")
    assert b"Traceback" not in process.stdout
