"""Fixtures for the tests in the real Caffe: nets, and checks of what they leave behind."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap

import pytest

os.environ.setdefault("GLOG_minloglevel", "2")  # before libcaffe is loaded: no page of its log for every net

HERE = os.path.dirname(__file__)
SUPPORT = os.path.join(os.path.dirname(HERE), "support")


def python_path_without_scikit_image():
    """PYTHONPATH for processes that import pycaffe: a stand-in spares them two thirds of the time which that takes."""
    return os.pathsep.join([os.path.join(SUPPORT, "stand_ins"), os.environ.get("PYTHONPATH", "")])


def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path).startswith(HERE + os.sep):
            item.add_marker(pytest.mark.caffe)


@pytest.fixture(scope="session", autouse=True)
def quick_collections():
    """Caffe's imports leave half a million objects, which garbage collection need not visit each time."""
    pytest.importorskip("caffe._caffe")
    import caffe  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def build(tmp_path):
    """build(text, phase=caffe.TRAIN): a net from the text of its prototxt."""
    import caffe

    from fastbatch.caffe.runtime.lifetime import registry

    def build(text, phase=caffe.TRAIN):
        path = tmp_path / "net.prototxt"
        path.write_text(text)
        return caffe.Net(str(path), phase)

    yield build
    registry.sweep()  # Caffe's layer in the next test may want to open the same LevelDB


@pytest.fixture(scope="session", params=["LMDB", "LevelDB"])
def write(request):
    """write(path, records): makes a database of each of Caffe's two kinds."""
    import databases

    return {"LMDB": databases.write_lmdb, "LevelDB": databases.write_leveldb}[request.param]


@pytest.fixture
def start(tmp_path):
    """start(script): a Python process that runs it, with `nets` and `databases` to import, and its output in pipes.

    Processes that still run when the test ends are killed, with their children, which would hold the pipes open.
    """
    started = []

    def start(script):
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SUPPORT, python_path_without_scikit_image()])}
        process = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def leaves_nothing():
    """After the test, when its nets are gone, none of their threads runs and none of their databases is open."""
    from nets import native_threads, open_files

    gc.collect()
    before = native_threads(), open_files(".mdb")
    yield
    gc.collect()
    assert (native_threads(), open_files(".mdb")) == before


@pytest.fixture
def without_scikit_image(monkeypatch):
    """Processes that are started meanwhile import pycaffe without it."""
    monkeypatch.setenv("PYTHONPATH", python_path_without_scikit_image())


@pytest.fixture
def folder(tmp_path, monkeypatch, without_scikit_image):
    """The current folder, with a database db, whose labels are below 5, and its mean image."""
    import caffe
    import numpy as np

    from databases import datum, images, write_lmdb

    monkeypatch.chdir(tmp_path)
    pictures = images(11, (3, 10, 9), seed=3)
    write_lmdb("db", [datum(picture, label % 5) for label, picture in enumerate(pictures)])
    mean = pictures.mean(axis=0, dtype=np.float32)[np.newaxis]
    (tmp_path / "mean.binaryproto").write_bytes(caffe.io.array_to_blobproto(mean).SerializeToString())
    return tmp_path
