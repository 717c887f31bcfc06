"""However a process ends while it loads samples: it ends at once, with the right exit code, and nothing is left.

Also if nobody ends anything: loops that are left early, one after the other.
"""

import gc
import os
import re

import numpy as np
import pytest

import datasets
import exits
from children import FORKS, HANG, anonymous_memory, finish_child, run_child, start_child
from fastbatch import Loader, PythonSource, _build_info
from planned import wait_until

SLOW = [pytest.mark.slow, pytest.mark.once]


def matrix(happenings):
    """Every kind of source with everything that may happen, in every state: (kind, what, state).

    Those that are not slow are a Latin square: everything happens once to each kind of source (to some, every second
    thing), and several times in every state. The environments of `make test` share the others.
    """
    for row, kind in enumerate(exits.KINDS):
        for column, what in enumerate(happenings):
            if what == "SIGKILL of a worker" and kind not in exits.PROCESSES:
                continue
            for number, state in enumerate(exits.STATES):
                fast = number == (row + column) % len(exits.STATES) and (
                    kind in ("native", "forkserver") or (kind != "spawn" and (row + column) % 2 == 0)
                )
                yield pytest.param(kind, what, state, marks=() if fast else SLOW)


def start(tmp_path, kind, what, state):
    program = f"""
        import exits

        if __name__ == "__main__":
            exits.run(lambda: exits.Work({kind!r}, {state!r}, {str(tmp_path)!r}), {what!r})
    """
    return start_child(program, *FORKS)


@pytest.mark.parametrize("kind, end, state", list(matrix(exits.ENDS)))
def test_nothing_is_left_of_a_process_that_ends(tmp_path, kind, end, state):
    _, code, error = exits.ENDS[end]
    child = start(tmp_path, kind, end, state)
    word, *workers = child.stdout.readline().split()
    assert word == "ready" and len(workers) == (2 if kind in exits.PROCESSES else 0)
    # Also while the program that it has become, or a process that it has forked, is still waiting for its input.
    wait_until(lambda: not exits.members(child.pid).intersection(map(int, workers)))
    out, err = child.communicate(timeout=HANG)
    assert (out, child.returncode) == ("", code) and re.fullmatch(error, err), (out, child.returncode, err)
    wait_until(lambda: not exits.members(child.pid))


@pytest.mark.parametrize("kind, what, state", list(matrix(exits.SURVIVED)))
def test_nothing_is_left_in_a_process_that_goes_on(tmp_path, kind, what, state):
    child = start(tmp_path, kind, what, state)
    assert finish_child(child).endswith("\nnothing is left\n")
    wait_until(lambda: not exits.members(child.pid))


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=SLOW)])
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


WITHOUT_FORKSERVER = """
    import socket
    from multiprocessing import forkserver

    import datasets
    from fastbatch import Loader, PythonSource

    if __name__ == "__main__":
        forkserver.ensure_running()
        address = forkserver._forkserver._forkserver_address
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as client:  # as a start of a worker that is interrupted
                client.connect(address)
            source = PythonSource(datasets.Images(10), workers=2)
            with Loader(source, batch_size=10, timeout=60) as loader:
                assert next(iter(loader)).label.tolist() == list(range(10))
            address = forkserver._forkserver._forkserver_address
"""


def test_an_interrupted_start_of_a_worker_does_not_fail_the_next_one():
    """It ends multiprocessing's forkserver, which says so on stderr."""
    child = start_child(WITHOUT_FORKSERVER, *FORKS)
    out, err = child.communicate(timeout=HANG)
    assert (child.returncode, out) == (0, ""), err


INTERRUPTED_STARTS = """
    import signal
    from multiprocessing import forkserver

    import datasets
    from fastbatch import Loader, PythonSource

    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    if __name__ == "__main__":
        source = PythonSource(datasets.Images(10), workers=2)
        forkserver.ensure_running()
        process = forkserver._forkserver._forkserver_pid
        signal.signal(signal.SIGALRM, interrupt)
        for tenths in range(100):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0001 * (1 + tenths))
                with Loader(source, batch_size=10, timeout=60):
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                pass
        with Loader(source, batch_size=10, timeout=60) as loader:
            assert next(iter(loader)).label.tolist() == list(range(10))
        assert forkserver._forkserver._forkserver_pid == process
"""


def test_an_interrupt_while_a_worker_starts_leaves_the_forkserver_alone():
    assert run_child(INTERRUPTED_STARTS, *FORKS) == ""
