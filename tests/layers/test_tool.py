"""Our layer in the `caffe` command-line tool, which embeds Python: training, testing, timing, errors, signals."""

import re
import shutil
import signal
import time

import pytest

pytest.importorskip("caffe._caffe")

from caffe_tool import MODEL, TRAIN, Tool
from databases import datum, image_lmdb, images, write_lmdb
from nets import caffes, ours, params, slow_lmdb

pytestmark = pytest.mark.skipif(not shutil.which("caffe"), reason="the caffe tool is not installed")


def results(log):
    """The lines of a log that hold losses and accuracies, without their times."""
    lines = re.findall(r"\] (.*(?:loss|accuracy) = .*)", log)
    return [re.sub(r"\(.* iter/s.*iters\)", "", line) for line in lines]


@pytest.fixture
def database(tmp_path):
    return image_lmdb(tmp_path / "db", 9, (3, 12, 10))[0]


def test_train_then_test(tmp_path, database):
    """The logs of both layers hold the same losses and accuracies, to the last digit."""
    param_str = params(database, 2, "crop_size: 9 mirror: true scale: 0.004 mean_value: 110")
    logs = {}
    for layer in ours, caffes:
        folder = tmp_path / layer.__name__
        folder.mkdir()
        tool = Tool(folder, layer(param_str))
        status, trained = tool.run("train", TRAIN)
        assert status == 0 and "Optimization Done." in trained, trained
        # Without a seed the crops and mirrors of `caffe test` would be others each time.
        tool = Tool(folder, layer(params(database, 2, "crop_size: 9 scale: 0.004")))
        status, tested = tool.run("test", MODEL, "--weights=trained_iter_20.caffemodel", "--iterations=7")
        assert status == 0, tested
        logs[layer] = results(trained), results(tested)
        for log in trained, tested:
            assert f"Opened lmdb {database}" in log
            assert "output data size: 2,3,9,9" in log
            assert "Restarting data prefetching from start." in log
    trained, tested = logs[ours]
    assert len(trained) > 40 and len(tested) > 14 and len(set(trained)) > 40
    assert (trained, tested) == logs[caffes]


def test_a_drop_in(tmp_path, database):
    """If only the type and python_param are new: the same losses and accuracies, and errors are reported."""
    found = []
    for text in ours("", more=params(database, 3, "mirror: true")), caffes(params(database, 3, "mirror: true")):
        status, log = Tool(tmp_path, text).run("train", TRAIN)
        assert status == 0, log
        found.append(results(log))
    assert found[0] == found[1] and len(found[0]) > 20
    status, log = Tool(tmp_path, ours("", more="data_param { }")).run("time", MODEL)
    assert status != 0 and 'layer "data" (Data): data_param.source is missing.' in log


def test_time(tmp_path, database):
    status, log = Tool(tmp_path, ours(params(database, 2))).run("time", MODEL, "--iterations=20")
    assert status == 0, log
    assert re.search(r"data\s+forward: [\d.]+ ms\.", log) and re.search(r"data\s+backward: [\d.]+ ms\.", log)


def assert_traceback(log, *words):
    """One traceback, whole, before what the tool says when it aborts."""
    assert log.count("Traceback (most recent call last):") == 1, log
    traceback = log.partition("Traceback (most recent call last):")[2].partition("terminate called")[0]
    for word in words:
        assert word in traceback


@pytest.mark.parametrize("command", ["train", "time"])
def test_the_traceback_of_a_net_that_cannot_be_built(tmp_path, database, command):
    tool = Tool(tmp_path, ours(params(database, 2) + "thread: 3"))
    status, log = tool.run(command, TRAIN if command == "train" else MODEL)
    assert status != 0
    assert_traceback(log, 'Error: param_str of layer "data" (Data)', 'no field "thread". Did you mean threads?')


def test_the_traceback_of_a_bad_record(tmp_path):
    path = write_lmdb(tmp_path / "db", [datum(image, i) for i, image in enumerate(images(5))] + [b"\xff"])
    status, log = Tool(tmp_path, ours(params(path, 2))).run("train", TRAIN)
    assert status != 0 and "Optimization Done." not in log
    assert_traceback(log, f"fastbatch.errors.SampleError: {path}, sample 5 (key '00000005'): the record is not a Datum")


@pytest.mark.parametrize("layer", [ours, caffes])
def test_sigint_stops_training(tmp_path, database, layer):
    tool = Tool(tmp_path, layer(params(database, 2)), max_iter=10**8)
    tool.start("train", TRAIN)
    tool.wait_for("Iteration 10,")
    tool.process.send_signal(signal.SIGINT)
    status, log = tool.end()
    assert status == 0 and "Optimization stopped early." in log, log


def test_sigint_while_forward_waits(tmp_path):
    """`caffe time` ends as it does with a layer of Caffe's own, and says nothing."""
    tool = Tool(tmp_path, ours(params(slow_lmdb(tmp_path / "slow"), 20000, more="prefetch: 1")))
    tool.start("time", MODEL)
    tool.wait_for("Performing Forward")
    time.sleep(0.2)
    tool.process.send_signal(signal.SIGINT)
    status, log = tool.end()
    assert status == -signal.SIGINT, log
    assert "Traceback" not in log and "Aborted" not in log


@pytest.mark.parametrize("command", ["time", "test"])
@pytest.mark.parametrize("layer", [ours, caffes])
def test_sigint_ends_the_tool(tmp_path, database, layer, command):
    tool = Tool(tmp_path, layer(params(database, 2)))
    flags = [] if command == "time" else ["--weights=trained_iter_1.caffemodel"]
    if command == "test":
        assert Tool(tmp_path, layer(params(database, 2)), max_iter=1).run("train", TRAIN)[0] == 0
    tool.start(command, MODEL, "--iterations=100000000", *flags)
    tool.wait_for("Performing Forward" if command == "time" else "Batch 3,")
    tool.process.send_signal(signal.SIGINT)
    status, log = tool.end()
    assert status == -signal.SIGINT, log
    assert "Traceback" not in log


def test_a_long_wait_says_what_it_waits_for(tmp_path):
    """After 10 s (here 0.05 s), the stage, sample and time of every thread are logged, and the wait continues."""
    (tmp_path / "impatient.py").write_text("""
from fastbatch.caffe import Data
from fastbatch.caffe.layers import prefetching
assert prefetching._PATIENCE == 10
prefetching._PATIENCE = 0.05
""")
    path = slow_lmdb(tmp_path / "slow", 8 * [1])
    layers = ours(params(path, 1000, more="prefetch: 1") + "threads: 2", module="impatient")
    status, log = Tool(tmp_path, layers).run("time", MODEL, "--iterations=1")
    assert status == 0, log
    said = [line for line in log.splitlines() if line.startswith('fastbatch is still waiting in layer "data": ')]
    assert len(said) > 1
    thread = r"thread fastbatch-{}: [a-z ]+( sample [0-7]( \(key '0000000[0-7]'\))?)? for \d+\.\d+ s"
    for line in said:
        assert re.fullmatch(
            rf'fastbatch is still waiting in layer "data": no batch of {re.escape(path)} was ready within 0.05 s; '
            rf"the workers: {thread.format(0)}; {thread.format(1)}",
            line,
        ), line
    assert any("read sample" in line for line in said)
    assert "Benchmark ends" in log
