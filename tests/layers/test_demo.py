"""The examples: a short demo, the Python loop over its databases, and its prototxts, which users copy."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("caffe._caffe")
for needed in "sklearn", "matplotlib", "tqdm", "lmdb":
    pytest.importorskip(needed)

import caffe
import numpy as np
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from matplotlib import image

from databases import LMDB

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ITERATIONS = 60
# Programs that run an example as if there were no Caffe, or as if fastbatch had been built without LMDB.
RUN = """
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WITHOUT_CAFFE = 'import runpy, sys; sys.modules["caffe"] = None' + RUN
WITHOUT_LMDB = (
    """
import runpy, sys, fastbatch
fastbatch.features = lambda: {"lmdb": None}
del fastbatch.LMDBSource"""
    + RUN
)


def run(script, *arguments, python=()):
    """What the script prints. It must exit with 0 and print nothing of fastbatch's on stderr; Matplotlib may."""
    ended = subprocess.run(
        [sys.executable, *python, str(EXAMPLES / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0 and "fastbatch" not in ended.stderr, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(the folder that a short demo has filled, what it printed)"""
    folder = tmp_path_factory.mktemp("demo") / "made by it"
    return folder, run("digits/train.py", "--out", folder, "--iterations", ITERATIONS)


def table(folder):
    """The rows of the demo's table: all that both trainings measured."""
    with open(folder / "digits.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.timeout(300)
def test_both_layers_train_the_same(demo):
    folder, printed = demo
    rows = table(folder)
    assert [int(row["iteration"]) for row in rows] == list(range(1, ITERATIONS + 1))
    for column in "loss", "accuracy":
        assert [row[f"fastbatch_{column}"] for row in rows] == [row[f"caffe_{column}"] for row in rows]
    losses = [float(row["fastbatch_loss"]) for row in rows]
    assert len(set(losses)) == ITERATIONS and sum(losses[-10:]) < sum(losses[:10]) / 2
    assert [int(row["iteration"]) for row in rows if row["fastbatch_accuracy"]] == [25, 50, 60]
    assert float(rows[-1]["fastbatch_accuracy"]) > 0.5  # of ten digits; all 600 iterations make it 0.99
    for row in rows:
        for name in "fastbatch", "caffe":
            assert 0 < float(row[f"{name}_wait_ms"]) < float(row[f"{name}_step_ms"])
    assert f"The losses of all {ITERATIONS} iterations are the same, digit for digit." in printed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_whole_demo_learns_the_digits(tmp_path):
    """What `make demo` runs: 97 % or more for both layers, with the same losses, digit for digit."""
    printed = run("digits/train.py", "--out", tmp_path)
    rows = table(tmp_path)
    assert len(rows) == 600
    for column in "loss", "accuracy":
        assert [row[f"fastbatch_{column}"] for row in rows] == [row[f"caffe_{column}"] for row in rows]
    assert len({row["fastbatch_loss"] for row in rows}) > 590
    last = rows[-1]
    assert float(last["fastbatch_accuracy"]) >= 0.97 and float(last["caffe_accuracy"]) >= 0.97
    said = re.findall(r"^  (.*?) +test accuracy ([\d.]+)%   last loss (\S+)$", printed, re.MULTILINE)
    expected = [f"{float(last['fastbatch_accuracy']):.2%}"[:-1], last["fastbatch_loss"]]
    assert said == [(f"{who} Data layer", *expected) for who in ("fastbatch's", "Caffe's own")]
    assert "The losses of all 600 iterations are the same, digit for digit." in printed


@pytest.mark.timeout(300)
def test_the_picture_is_there_and_the_user_is_told(demo):
    folder, printed = demo
    pixels = image.imread(str(folder / "digits.png"))
    assert pixels.shape[:2] == (960, 1440)
    for half in pixels[:480], pixels[480:]:  # something is drawn in each of the four charts
        for chart in half[:, :720], half[:, 720:]:
            assert (chart[..., :3].min(axis=-1) < 0.9).mean() > 0.02
    assert str(folder / "digits.png") in printed and 'module: "fastbatch.caffe"' in printed


@pytest.mark.timeout(300)
def test_the_python_loop_learns_from_the_databases(demo):
    folder, _ = demo
    percent, _, rest = run("loop/softmax.py", folder).partition("%")
    assert float(percent) > 90 and rest == " of 450 digits never trained on are recognized\n"


@pytest.mark.timeout(300)
def test_the_loop_needs_neither_caffe_nor_lmdb(demo, tmp_path):
    """As `make demo` runs without Caffe: the same digits, and the same weights from databases and arrays."""
    assert run("digits/databases.py", tmp_path / "new", python=["-c", WITHOUT_CAFFE]) == ""
    for name in "train", "test":
        assert records(tmp_path / "new" / f"{name}_lmdb") == records(demo[0] / f"{name}_lmdb")
    from_databases = run("loop/softmax.py", tmp_path / "new")
    assert run("loop/softmax.py", tmp_path / "new", python=["-c", WITHOUT_LMDB]) == from_databases


def records(path):
    """The keys and values of a database, in order."""
    with LMDB(path, readonly=True) as database:
        return database.items()


@pytest.mark.filterwarnings("ignore:tostring")  # NumPy's word on Caffe's own tool
@pytest.mark.timeout(300)
def test_the_records_are_those_of_caffes_own_tools(demo):
    folder, _ = demo
    for name, count, shape in ("train", 1347, (1, 32, 32)), ("test", 450, (1, 32, 32)), ("photos", 128, (3, 256, 256)):
        written = records(folder / f"{name}_lmdb")
        assert [key for key, _ in written] == [b"%08d" % number for number in range(count)]
        parsed = [caffe_pb2.Datum.FromString(value) for _, value in written]
        images = [np.frombuffer(datum.data, np.uint8).reshape(shape) for datum in parsed]
        labels = [datum.label for datum in parsed]
        caffes = [caffe.io.array_to_datum(image, label) for image, label in zip(images, labels)]
        assert [value for _, value in written] == [datum.SerializeToString() for datum in caffes]
        if name != "photos":
            assert set(labels) == set(range(10))
            with np.load(str(folder / f"{name}.npz")) as arrays:
                assert np.array_equal(arrays["data"], images) and np.array_equal(arrays["label"], labels)


@pytest.mark.parametrize("nets", ["lenet", "photos"])
def test_the_prototxts_differ_in_the_data_layer_only(nets):
    texts = [(EXAMPLES / f"digits/{nets}_{name}.prototxt").read_text() for name in ("fastbatch", "caffe")]
    ours, caffes = [text_format.Parse(text, caffe_pb2.NetParameter()) for text in texts]
    data_layers = 0
    for our, original in zip(ours.layer, caffes.layer):
        if original.type == "Data":
            python = our.python_param
            assert (our.type, python.module, python.layer, python.param_str) == (
                "Python",
                "fastbatch.caffe",
                "Data",
                "",
            )
            our.type = "Data"
            our.ClearField("python_param")
            data_layers += 1
        assert our == original
    assert len(ours.layer) == len(caffes.layer) and data_layers == {"lenet": 2, "photos": 1}[nets]
