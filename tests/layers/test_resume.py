"""Training that was stopped goes on with the batches that were next: in the `caffe` tool and in pycaffe."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
import caffe
import cv2
from caffe.proto import caffe_pb2

import fastbatch.caffe
from children import HANG
from databases import image_leveldb, image_lmdb
from fastbatch.caffe import close_all
from fastbatch.caffe.runtime.tool_run import ToolRun, flag_of, iteration_of, read_solver
from fastbatch.caffe.runtime.tool_run import run_of as run_of_tool
from nets import shown
from pictures import picture
from windows import window_file, windows_of

OWN = """
import numpy as np
import fastbatch.caffe

class Own(fastbatch.caffe.Layer):
    def source(self):
        values = np.random.RandomState(0).randint(0, 256, (10, 3, 6, 6)).astype(np.uint8)
        return {"data": values, "label": np.arange(10)}
"""


def data_layer(name, kind, param_str, resume, module="fastbatch.caffe"):
    """A data layer of this name, and what makes a loss of it."""
    if isinstance(param_str, dict):
        text = str({**param_str, "resume": True} if resume else param_str)
    else:
        text = param_str.replace('"', "'") + (" resume: true" if resume else "")
    return f"""
        layer {{ name: "{name}" type: "Python" top: "{name}" top: "{name}_label"
                 python_param {{ module: "{module}" layer: "{kind}" param_str: "{text}" }} }}
        layer {{ name: "{name}_conv" type: "Convolution" bottom: "{name}" top: "{name}_conv"
                 convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "{name}_pool" type: "Pooling" bottom: "{name}_conv" top: "{name}_pool"
                 pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }} }}
        layer {{ name: "{name}_ip" type: "InnerProduct" bottom: "{name}_pool" top: "{name}_ip"
                 inner_product_param {{ num_output: 30 weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "{name}_loss" type: "SoftmaxWithLoss" bottom: "{name}_ip" bottom: "{name}_label"
                 top: "{name}_loss" }}"""


@pytest.fixture
def layers(tmp_path):
    """A function: a net with a data layer of every kind, and a loss for each."""
    lmdb, _ = image_lmdb(tmp_path / "lmdb", 9)
    listed = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), picture(number, 12, 10))
        listed.append((path, (12, 10), windows_of(12, 10, number)))
    (tmp_path / "list.txt").write_text("".join(f"{path} {number}\n" for number, (path, _, _) in enumerate(listed)))
    (tmp_path / "own_layer.py").write_text(OWN)
    crop = "transform_param { crop_size: 8 mirror: true scale: 0.01 }"
    window_param = f'window_data_param {{ source: "{window_file(tmp_path, listed)}" batch_size: 5 scale: 0.01 }} '
    window_param += "transform_param { crop_size: 8 mirror: true mean_value: 100 }"
    kinds = {
        "lmdb": ("Data", f'data_param {{ source: "{lmdb}" backend: LMDB batch_size: 4 }} {crop}'),
        "list": (
            "ImageData",
            f'image_data_param {{ source: "{tmp_path}/list.txt" batch_size: 3 shuffle: true rand_skip: 5 }} {crop}',
        ),
        "windows": (
            "WindowData",
            window_param,
        ),
        "own": (
            "Own",
            {"batch_size": 4, "shuffle": True, "transform": {"crop_size": 5, "mirror": True, "scale": 0.01}},
            "own_layer",
        ),
    }
    leveldb, _ = image_leveldb(tmp_path / "leveldb", 11)
    kinds["leveldb"] = ("Data", f'data_param {{ source: "{leveldb}" batch_size: 4 }} transform_param {{ scale: 0.01 }}')
    if fastbatch.features()["hdf5"] is not None:
        h5py = pytest.importorskip("h5py")
        for number, rows in enumerate([5, 3]):
            with h5py.File(tmp_path / f"{number}.h5", "w") as file:
                file["rows"] = np.random.RandomState(number).rand(rows, 3, 6, 6).astype(np.float32)
                file["rows_label"] = np.arange(rows, dtype=np.float32)
        (tmp_path / "files.txt").write_text("".join(f"{tmp_path}/{number}.h5\n" for number in range(2)))
        kinds["rows"] = ("HDF5Data", f'hdf5_data_param {{ source: "{tmp_path}/files.txt" batch_size: 2 }}')

    def text(*without, resume=True):
        return "".join(
            data_layer(name, kind, param, resume, *module)
            for name, (kind, param, *module) in kinds.items()
            if name not in without
        )

    return text


SETTINGS = "random_seed: 7 iter_size: 2 test_iter: 3 test_interval: 5"


def write_solver(folder, net, settings=SETTINGS, max_iter=90):
    folder.mkdir(exist_ok=True)
    (folder / "net.prototxt").write_text(net)
    (folder / "solver.prototxt").write_text(f"""
        net: "{folder}/net.prototxt" base_lr: 0.01 momentum: 0.9 lr_policy: "fixed" max_iter: {max_iter}
        display: 1 snapshot: 7 snapshot_prefix: "{folder}/trained" solver_mode: CPU {settings}
    """)
    return str(folder / "solver.prototxt")


def start_tool(folder, *flags):
    # The folder above has own_layer.py.
    path = os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")])
    with open(folder / "log", "w") as log:
        return subprocess.Popen(
            ["caffe", "train", f"--solver={folder}/solver.prototxt", *flags],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path, "GLOG_minloglevel": "0"},
        )


def train(folder, *flags):
    """Trains to the end; the losses by iteration, of training and tests."""
    process = start_tool(folder, *flags)
    try:
        status = process.wait(timeout=HANG)
    finally:
        process.kill()
    log = (folder / "log").read_text()
    assert status == 0, log
    return losses(log)


def losses(log):
    """{(iteration, "Testing" or "loss"): the losses in the log, as digits}"""
    found, key = {}, None
    for line in log.splitlines():
        begin = re.search(r"\] Iteration (\d+).*(Testing net|loss) ", line)
        if begin:
            key = int(begin[1]), begin[2]
        value = re.search(r"net output #\d+: (\w+_loss = [^ ]+)", line)
        if value:
            found.setdefault(key, []).append(value[1])
    return found


tool = pytest.mark.skipif(not shutil.which("caffe"), reason="the caffe tool is not installed")


@tool
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, layers):
    """Killed at a random iteration, and resumed: the same losses, digit for digit, as the run that never stopped."""
    net = layers()
    write_solver(tmp_path / "whole", net)
    expected = train(tmp_path / "whole")
    assert "nan" not in str(expected)  # Caffe's pooling would write out of bounds
    assert len(expected) > 90 + 15 and len(expected[80, "loss"]) == net.count("SoftmaxWithLoss")
    folder = tmp_path / "killed"
    write_solver(folder, net, max_iter=1_000_000)
    process = start_tool(folder)
    until, end = f"] Iteration {random.randint(9, 70)} ", time.monotonic() + HANG
    while until not in (folder / "log").read_text():
        assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = max(iteration for iteration, _ in losses((folder / "log").read_text()))
    saved = (reached - 1) // 7 * 7  # a later snapshot may be incomplete
    saved = min(saved, 84)
    write_solver(folder, net)
    found = train(folder, f"--snapshot={folder}/trained_iter_{saved}.solverstate")
    assert found == {key: value for key, value in expected.items() if key[0] >= saved}
    assert "Resuming behind batch" in (folder / "log").read_text()


@tool
def test_resume_needs_fixed_random_numbers(tmp_path, layers):
    """Said at once, and not after days of training."""
    folder = tmp_path / "unseeded"
    write_solver(folder, layers(), "test_iter: 3 test_interval: 5")
    process = start_tool(folder)
    assert process.wait(timeout=HANG) != 0
    assert "write random_seed into the solver, or seed into the layer's param_str" in (folder / "log").read_text()


# ---- what the tool's arguments say


def test_flags():
    assert flag_of(["train", "--solver=a", "-solver", "b"], "solver") == "b"
    assert flag_of(["train", "-snapshot=x=y"], "snapshot") == "x=y"
    assert flag_of(["train", "--snapshot"], "snapshot") is None
    assert flag_of(["train", "--snapshots=a"], "snapshot") is None


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--flagfile=a.flags"], "flagfile"),
        (["--fromenv=logtostderr,snapshot", "--solver=s"], "fromenv"),
        (["-tryfromenv=solver"], "tryfromenv"),
        (["--solver=s", "--flagfile=a.flags", "--snapshot=x"], "flagfile"),
        (["--flagfile=a.flags", "--solver=s", "--snapshot=x", "--flagfile=b.flags"], "flagfile"),
    ],
)
def test_flags_from_elsewhere_are_refused(flags, named):
    """They were not seen, and the layer began at its first batch."""
    with pytest.raises(ValueError, match=f"cannot see what --{named} adds to them: write --solver and --snapshot"):
        run_of_tool(["train", *flags])


@pytest.mark.parametrize(
    "flag", ["--flagfile=a.flags", "-flagfile", "--fromenv=solver,snapshot", "--tryfromenv=solver"]
)
def test_the_last_one_of_several_flags_counts(tmp_path, flag):
    """As gflags has it: whatever the solver and the snapshot in a file are, those behind it are taken."""
    (tmp_path / "solver").write_text('net: "a" random_seed: 7')
    value = ["a.flags"] if flag == "-flagfile" else []
    run = run_of_tool(["train", flag, *value, f"--solver={tmp_path}/solver", "--snapshot="])
    assert (run.solver.random_seed, run.iteration) == (7, 0)


def test_flags_that_say_nothing_of_a_run():
    assert run_of_tool(["train", "--fromenv=logtostderr"]) is None
    assert run_of_tool(["time", "--flagfile=a.flags"]) is None


def test_samples_with_random_numbers_of_their_own_need_fixed_ones(build, tmp_path, monkeypatch):
    """An order that does not vary is not enough."""
    (tmp_path / "random_layer.py").write_text(
        "import random, fastbatch, fastbatch.caffe\n"
        "class Random(fastbatch.caffe.Layer):\n"
        "    def source(self):\n"
        "        return fastbatch.PythonSource(lambda index: random.random(), 8, kind='thread', workers=1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fastbatch.caffe.layers.draws, "EMBEDDED", True)
    for settings, param in ("", "'seed': 3"), ("random_seed: 4", ""), ("", ""):
        monkeypatch.setattr(fastbatch.caffe.layers.draws, "tool_run", lambda text=settings: run_of(text, 0))
        text = (
            'layer { name: "data" type: "Python" top: "data" python_param { module: "random_layer" layer: "Random" '
            f"param_str: \"{{'batch_size': 4, 'resume': True, {param}}}\" }} }}"
        )
        if settings or param:
            build(text)
        else:
            with pytest.raises(ValueError, match="resume: true needs random numbers that do not change from run to r"):
                build(text)
    close_all()


def run_of(text, iteration):
    solver = caffe_pb2.SolverParameter()
    fastbatch.caffe.runtime.tool_run.text_format.Merge(text, solver)
    return ToolRun(solver, iteration)


@pytest.mark.parametrize(
    "text, iteration, trained, tested",
    [
        ("", 10, 10, 0),
        ("iter_size: 3", 10, 30, 0),
        ("test_interval: 5 test_iter: 4", 0, 0, 0),
        ("test_interval: 5 test_iter: 4", 1, 1, 4),
        ("test_interval: 5 test_iter: 4", 10, 10, 8),  # the test of iteration 10 follows
        ("test_interval: 5 test_iter: 4", 11, 11, 12),
        ("test_interval: 5 test_iter: 4 test_initialization: false", 10, 10, 4),
        ("test_interval: 5 test_iter: 4 test_iter: 4 test_initialization: false", 3, 3, 0),
    ],
)
def test_batches_before_an_iteration(text, iteration, trained, tested):
    run = run_of(text, iteration)
    assert (run.batches(False), run.batches(True)) == (trained, tested)
    assert not run.seeded and run_of("random_seed: 0", 1).seeded


def test_what_the_tool_cannot_know():
    with pytest.raises(ValueError, match="cannot tell which of the solver's test nets this layer is in, .*: 4, 5"):
        run_of("test_interval: 5 test_iter: 4 test_iter: 5", 6).batches(True)
    assert iteration_of("a/b_iter_70.solverstate.h5") == 70
    with pytest.raises(ValueError, match="takes the iteration of a snapshot in HDF5 from its name"):
        iteration_of("a/latest.h5")
    with pytest.raises(ValueError, match="nowhere cannot be read: .*No such file"):
        iteration_of("nowhere")
    with pytest.raises(ValueError, match="nowhere cannot be read: .*No such file"):
        read_solver("nowhere")


def test_a_shuffle_with_rand_cannot_be_resumed(build):
    text = (
        'layer { name: "rows" type: "Python" top: "rows" python_param { module: "fastbatch.caffe" layer: "HDF5Data" '
        "param_str: \"hdf5_data_param { source: 'x' batch_size: 1 shuffle: true } resume: true\" } }"
    )
    with pytest.raises(ValueError, match="resume: true cannot restore shuffle: true, because HDF5Data shuffles with C"):
        build(text, caffe.TRAIN)


# ---- snapshot() and restore() in pycaffe


@pytest.fixture
def solver_of(tmp_path, layers, monkeypatch):
    """A function: a new solver of the net without HDF5Data."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(*without, settings=SETTINGS):
        net = layers("rows", *without, resume=False)
        return caffe.get_solver(write_solver(tmp_path / "pycaffe", net, settings))

    yield make
    close_all()


def steps(solver, count):
    """The bits of all blobs of the nets after each of the next steps; of a test net, of its latest test."""
    found = []
    for _ in range(count):
        solver.step(1)
        found.append([array.tobytes() for array in shown(solver.net, list(solver.net.blobs))])
    return found, [array.tobytes() for net in solver.test_nets for array in shown(net, list(net.blobs))]


@pytest.mark.parametrize("settings", [SETTINGS, SETTINGS + " snapshot_format: HDF5"])
def test_a_restored_solver_goes_on(solver_of, settings):
    """To the bit: in a new solver, and in the same one, which goes back."""
    solver = solver_of(settings=settings)
    steps(solver, 6)
    path = fastbatch.caffe.snapshot(solver)
    assert os.path.exists(path) and os.path.getsize(path + ".fastbatch") < 2000
    expected = steps(solver, 6)
    other = solver_of(settings=settings)
    steps(other, 1)
    for each in other, solver:
        fastbatch.caffe.restore(each, path)
        assert each.iter == 6
        assert steps(each, 6) == expected


def test_what_does_not_fit_is_not_restored(solver_of, tmp_path):
    solver = solver_of()
    steps(solver, 2)
    path = fastbatch.caffe.snapshot(solver)
    other = solver_of(settings=SETTINGS.replace("random_seed: 7", "random_seed: 8"))
    with pytest.raises(ValueError, match="the layer train/lmdb has another batch_size or order, or has drawn other"):
        fastbatch.caffe.restore(other, path)
    assert other.iter == 0
    with pytest.raises(ValueError, match="is of a solver whose fastbatch layers are test 0/leveldb, test 0/list, "):
        fastbatch.caffe.restore(solver_of("own"), path)
    beside = Path(path + ".fastbatch")
    beside.unlink()
    with pytest.raises(ValueError, match="there is no .*.fastbatch"):
        fastbatch.caffe.restore(solver, path)
    assert solver.iter == 2


@pytest.mark.parametrize("name, count", [("train/own", 10), ("train/lmdb", 9), ("train/list", 7)])
def test_another_data_set_is_refused(solver_of, name, count):
    """Only where both numbers are known: an older snapshot has none, nor has a LevelDB that nobody has counted."""
    solver = solver_of()
    steps(solver, 2)
    path = fastbatch.caffe.snapshot(solver)
    beside = Path(path + ".fastbatch")
    saved = json.loads(beside.read_text())
    assert saved["layers"][name]["samples"] == count and saved["layers"]["train/leveldb"]["samples"] is None
    saved["layers"][name]["samples"] += 1
    beside.write_text(json.dumps(saved))
    words = f"the layer {name} reads a data set of {count} samples, and in .* it has {count + 1}, so"
    with pytest.raises(ValueError, match=words):
        fastbatch.caffe.restore(solver, path)
    saved["layers"]["train/leveldb"]["samples"] = 5
    del saved["layers"][name]["samples"]
    beside.write_text(json.dumps(saved))
    fastbatch.caffe.restore(solver, path)


POSITION = {"batches": 1, "made_of": [4]}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "\0",
        "[" * 100_000,
        "[]",
        '{"iteration": 2}',
        json.dumps({"iteration": "2", "layers": {}}),
        json.dumps({"iteration": True, "layers": {}}),
        json.dumps({"iteration": 2, "layers": [[]]}),
        json.dumps({"iteration": 2, "layers": {"train/lmdb": 5}}),
        json.dumps({"iteration": 2, "layers": {"train/lmdb": {"batches": 1}}}),
        json.dumps({"iteration": 2, "layers": {"train/lmdb": {**POSITION, "batches": -1}}}),
        json.dumps({"iteration": 2, "layers": {"train/lmdb": {**POSITION, "batches": 2**64}}}),
        json.dumps({"iteration": 2, "layers": {"train/lmdb": {**POSITION, "made_of": None}}}),
        json.dumps({"iteration": 2, "layers": {"train/lmdb": {**POSITION, "samples": "9"}}}),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_restored(content, tmp_path):
    (tmp_path / "a.solverstate.fastbatch").write_text(content)
    with pytest.raises(ValueError, match=r"a\.solverstate\.fastbatch is damaged, .*: restore an earlier snapshot"):
        fastbatch.caffe.restore(None, tmp_path / "a.solverstate")


def test_hdf5_data_is_not_restored_in_pycaffe(tmp_path, layers):
    solver = caffe.get_solver(write_solver(tmp_path / "rows", layers("lmdb", "leveldb", "list", "windows", "own")))
    with pytest.raises(RuntimeError, match="train/rows is an HDF5Data, which cannot be restored here"):
        fastbatch.caffe.snapshot(solver)
    close_all()
