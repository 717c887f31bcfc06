"""However a process ends while it loads samples: it ends at once, with the right exit code, and nothing is left.

Also if nobody ends anything: loops that are left early, one after the other.
"""

import gc
import os
import re
import signal

import numpy as np
import pytest

import datasets
from children import FORKS, HANG, anonymous_memory, finish_child, start_child
from fastbatch import Loader, PythonSource, _build_info
from planned import wait_until

# Every slot is full, and the caller has a batch. Nothing is in /dev/shm, so nothing can be left there.
SCRIPT = """
    import os, signal, sys, time
    import datasets
    from fastbatch import Loader, PythonSource

    def shared():
        with open("/proc/self/maps") as maps:
            return "/dev/shm" in maps.read()

    if __name__ == "__main__":
        os.setsid()
        source = PythonSource(datasets.Images(100), workers=2, {options})
        loader = Loader(source, batch_size=5, timeout=60)
        batches = iter(loader)
        batch = next(batches)
        while loader.stats().ready < 3:
            time.sleep(0.01)
        assert not shared()
        processes = loader._ring.processes
        print("ready", flush=True)
        {end}
"""
KINDS = {
    "forkserver": 'start_method="forkserver"',
    "fork": 'start_method="fork"',
    "spawn": 'start_method="spawn"',
    "thread": 'kind="thread"',
}
SLOW = {"spawn"}
ENDS = {
    "at its end": ("pass", 0, ""),
    "closed": ("loader.close()", 0, ""),
    "exception": ("raise LookupError(3)", 1, r"Traceback .*\nLookupError: 3\n"),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "os._exit": ("os._exit(4)", 4, ""),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM, ""),
    "SIGINT": (
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
        -signal.SIGINT,
        r"Traceback .*\nKeyboardInterrupt\n",
    ),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in KINDS])
def test_nothing_is_left_of_a_process_that_ends(kind, end):
    last, code, error = ENDS[end]
    child = start_child(SCRIPT.format(options=KINDS[kind], end=last), *FORKS)
    out, err = child.communicate(timeout=HANG)
    assert out == "ready\n" and child.returncode == code and re.fullmatch(error, err, re.DOTALL), (out, err)
    wait_until(lambda: not members(child.pid))


@pytest.mark.parametrize("kind", ["forkserver", "fork"])
def test_nothing_is_left_of_a_worker_that_is_killed(kind):
    """Another one takes its place, and no sample is lost: none of the workers has one while all batches are ready."""
    end = """
        os.kill(processes[0], signal.SIGKILL)
        found = [label for batch in batches for label in batch.label]
        assert found == list(range(5, 100)), found
    """
    child = start_child(SCRIPT.format(options=KINDS[kind], end=end.strip()), *FORKS)
    out, err = child.communicate(timeout=HANG)
    assert (out, child.returncode, err) == ("ready\n", 0, "")
    wait_until(lambda: not members(child.pid))


FORK = """parent = os.getpid()
        if os.fork() == 0:
            os.setsid()
            while os.getppid() == parent:
                time.sleep(0.05)
            os._exit(0)
        """


@pytest.mark.parametrize("kind, before", [("forkserver", ""), ("fork", ""), ("fork", FORK)])
def test_nothing_is_left_when_the_process_becomes_another_program(kind, before):
    """It keeps its number, by which workers knew that their loader was there; a process that it forks, its files."""
    end = before + 'os.execv(sys.executable, [sys.executable, "-c", "input()"])'
    child = start_child(SCRIPT.format(options=KINDS[kind], end=end), *FORKS)
    try:
        assert child.stdout.readline() == "ready\n"
        wait_until(lambda: members(child.pid) == [child.pid])
        child.stdin.write("\n")
    finally:
        finish_child(child)


def members(session):
    """The ids of a session's processes that are still running."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/stat") as file:
                state, _, _, its = file.read().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(its) == session and state not in "ZX":
            found.append(int(process))
    return found


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["native", "process", "thread"])
def test_many_loops_that_are_left_after_their_first_batch(kind, count):
    source = np.zeros((64, 3, 20, 20), np.uint8)
    if kind != "native":
        source = PythonSource(datasets.Images(64), workers=2, kind=kind)
    with Loader(source, batch_size=8, timeout=HANG) as loader:

        def loops(number):
            for _ in range(number):
                next(iter(loader))
            gc.collect()
            return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), anonymous_memory()

        loops(100)
        threads, files, memory = loops(100)
        now = loops(count)
        assert now[:2] == (threads, files)
        if "sanitizer" not in _build_info.MODE:  # they keep freed memory for a while
            assert now[2] < memory + 2**22
    assert loader.stats().held == 0
