"""However a process ends whose net loads samples, in pycaffe and in the `caffe` tool: nothing of it is left."""

import re
import shutil
import signal

import pytest

pytest.importorskip("caffe._caffe")
pytest.importorskip("fastbatch.sources._lmdb")

import exits
import net_exits
from caffe_tool import TRAIN, Tool
from children import FORKS, HANG, finish_child, start_child
from planned import wait_until

pytestmark = pytest.mark.usefixtures("without_scikit_image")

KINDS = ["LMDB", "forkserver", "fork"]
FAST = {"global", "sys.exit", "os._exit", "SIGINT", "SIGTERM", "SIGKILL", "garbage collection", "SIGKILL of a worker"}


def matrix(happenings):
    """Every kind of layer with everything that may happen, in every second state: (kind, what, state); most are slow.

    test_exits.py has every state, of the loaders that are in the layers.
    """
    for column, what in enumerate(happenings):
        for row, kind in enumerate(KINDS):
            for number, state in enumerate(net_exits.STATES):
                if what == "SIGKILL of a worker" and (kind == "LMDB" or state == "mid-batch"):
                    continue
                fast = what in FAST and row == column % 2 and number == column % len(net_exits.STATES)
                if fast or (row + column + number) % 2 == 0:
                    yield pytest.param(kind, what, state, marks=() if fast else pytest.mark.slow)


def start(tmp_path, kind, what, state):
    program = f"""
        import os

        os.chdir({str(tmp_path)!r})  # in the folder of the checkout, Debian's imageio warns of a second fastbatch
        import exits, net_exits

        if __name__ == "__main__":
            make = lambda: net_exits.Work({kind!r}, {state!r}, {str(tmp_path)!r})
            exits.run(make, {what!r}, net_exits.SURVIVED)
    """
    return start_child(program, *FORKS)


@pytest.mark.parametrize("kind, end, state", list(matrix(exits.ENDS)))
def test_nothing_is_left_of_a_process_that_ends(tmp_path, kind, end, state):
    _, code, error = exits.ENDS[end]
    child = start(tmp_path, kind, end, state)
    word, *workers = child.stdout.readline().split()
    assert word == "ready" and len(workers) == (2 if kind in exits.PROCESSES else 0)
    wait_until(lambda: not exits.members(child.pid).intersection(map(int, workers)))
    out, err = child.communicate(timeout=HANG)
    assert (out, child.returncode) == ("", code) and re.fullmatch(error, err), (out, child.returncode, err)
    wait_until(lambda: not exits.members(child.pid))


@pytest.mark.parametrize("kind, what, state", list(matrix(net_exits.SURVIVED)))
def test_nothing_is_left_in_a_process_that_goes_on(tmp_path, kind, what, state):
    child = start(tmp_path, kind, what, state)
    assert finish_child(child).endswith("\nnothing is left\n")
    wait_until(lambda: not exits.members(child.pid))


# ---- the tool

SNAPSHOT = "Snapshotting solver state to binary proto file trained_iter_"
TOOL_ENDS = {  # samples, iterations, the signal, exit code, what the log says at last
    "end": ("good", 20, None, 0, "Optimization Done."),
    "SIGINT": ("good", 10**8, signal.SIGINT, 0, "Optimization stopped early."),
    "SIGHUP": ("good", 10**8, signal.SIGHUP, None, SNAPSHOT),
    "SIGTERM": ("good", 10**8, signal.SIGTERM, -signal.SIGTERM, ""),
    "SIGTERM, waiting": ("slow", 10**8, signal.SIGTERM, -signal.SIGTERM, ""),
    "SIGKILL": ("good", 10**8, signal.SIGKILL, -signal.SIGKILL, ""),
    "SIGKILL, waiting": ("slow", 10**8, signal.SIGKILL, -signal.SIGKILL, ""),
    "bad sample": ("bad", 10**8, None, -signal.SIGABRT, f"SampleError: .*sample {exits.BAD}"),
}
TOOL_FAST = [("LMDB", "SIGTERM"), ("forkserver", "SIGINT"), ("fork", "SIGHUP"), ("forkserver", "SIGKILL, waiting")]


@pytest.mark.skipif(not shutil.which("caffe"), reason="the caffe tool is not installed")
@pytest.mark.parametrize(
    "kind, end",
    [
        pytest.param(kind, end, marks=() if (kind, end) in TOOL_FAST else pytest.mark.slow)
        for kind in KINDS
        for end in TOOL_ENDS
    ],
)
def test_nothing_is_left_of_the_tool(tmp_path, kind, end):
    samples, iterations, number, code, said = TOOL_ENDS[end]
    tool = Tool(tmp_path, net_exits.layer(kind, samples, str(tmp_path)), max_iter=iterations, outputs=exits.COUNT)
    tool.start("train", TRAIN)
    session = tool.process.pid
    if number is not None:
        tool.wait_for("Solving " if samples == "slow" else "Iteration 10,")
        if samples == "slow" and kind != "LMDB":
            wait_until(lambda: len(exits.members(session)) > 2)
        tool.process.send_signal(number)
    if code is None:
        tool.wait_for(said)  # and goes on
        tool.process.terminate()
    status, log = tool.end()
    assert status == (-signal.SIGTERM if code is None else code) and re.search(said, log), log
    assert ("Traceback" in log) == (end == "bad sample") and "resource_tracker" not in log, log
    wait_until(lambda: not exits.members(session))
