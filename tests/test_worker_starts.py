"""PythonSource: how workers start, and what happens if they cannot, or stop for no reason that is theirs to tell."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import datasets
from children import FORKS, HANG, environment, run_child, start_child
from fastbatch import DataTimeout, Loader, PythonSource, SampleError, SourceError

PATIENCE = 60


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_what_can_be_sent_only_while_a_process_starts(method):
    """Locks and shared memory, also torch's tensors. The replaced worker gets its own, too."""
    visits = multiprocessing.get_context(method).Value("i", 0)
    source = PythonSource(datasets.Visited(8, visits), workers=2, start_method=method)
    with Loader(source, batch_size=4, timeout=PATIENCE) as loader:
        assert labels(loader) == [0, 1, 2, 3, 4, 5, 6, 7]
        for process in loader._ring.processes:
            os.kill(process, signal.SIGKILL)
        for _ in range(3):  # as many epochs as may have samples that these processes were loading
            try:
                found = labels(loader)
            except SampleError:
                pass
        assert found == [0, 1, 2, 3, 4, 5, 6, 7]
    assert visits.value > 0


def labels(loader):
    return [label for batch in loader for label in batch.label.tolist()]


def test_workers_that_cannot_begin(tmp_path):
    licence = tmp_path / "licence"
    licence.touch()
    source = PythonSource(datasets.Licensed(licence), workers=1)
    with Loader(source, batch_size=2, timeout=PATIENCE) as loader:
        batches = iter(loader)
        next(batches)
        licence.unlink()
        [process] = loader._ring.processes
        os.kill(process, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(SourceError, match=r"^3 workers of Licensed ended before .* exit code 1\. See above"):
                while True:
                    following(batches)
        licence.touch()
        assert following(batches) is not None


def following(batches):
    """The next batch that has none of the samples that a process was loading when it was killed."""
    while True:
        try:
            return next(batches)
        except SampleError:
            pass


def test_a_process_that_is_stopped_counts_as_hung():
    source = PythonSource(datasets.Images(1000), workers=1, timeout=0.5)
    with Loader(source, batch_size=2, timeout=PATIENCE) as loader:
        batches = iter(loader)
        next(batches)
        [process] = loader._ring.processes
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(SampleError, match="has not loaded it within 0.5 s; it was ended"):
            for _ in range(20):
                next(batches)
        next(batches)


def test_a_process_that_hangs_in_its_start_does_not_hold_up_close():
    """Here, a worker that has begun may take longer to leave than a child may take at all."""
    run_child(
        f"""
        import datasets
        from fastbatch import Loader, PythonSource
        from fastbatch.sources import _team

        if __name__ == "__main__":
            _team.PATIENCE = {2 * HANG}
            source = PythonSource(datasets.Stuck(), 4, fields={{"data": ("uint8", (2,))}}, workers=2)
            with Loader(source, batch_size=2) as loader:
                processes = loader._ring.processes
            assert len(processes) == 2 and not any(map(datasets.exists, processes))
        """
    )


IN_MAIN = """
import multiprocessing
from fastbatch import Loader, PythonSource, SourceError

class Mine:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index

try:
    Loader(PythonSource(Mine(), start_method=METHOD))
except SourceError as error:
    assert not multiprocessing.current_process().daemon
    print(error)
    print(repr(error.__cause__))
print(next(iter(Loader(PythonSource(Mine(), start_method="fork"), batch_size=3))).data)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_data_set_of_an_interactive_session(method):
    """A worker process cannot import it. No sample is to blame."""
    said, cause, data = run_child(IN_MAIN.replace("METHOD", repr(method)), *FORKS).splitlines()
    assert said.startswith("Mine cannot be loaded in a worker process: unpickling it raised AttributeError: ")
    assert said.endswith('not in an interactive session; or use start_method="fork", or kind="thread"')
    assert cause.startswith("AttributeError") and data == "[0 1 2]"


def test_a_program_from_standard_input():
    """Worker processes would import the file "<stdin>"."""
    program = subprocess.run(
        [sys.executable, *FORKS, "-"],
        input=IN_MAIN.replace("METHOD", "None"),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
        check=True,
    )
    said, _, data = program.stdout.splitlines()
    assert (
        "the worker process of Mine ended with exit code 1 before it had loaded sample 0; see above" in said
        or "no worker process can be started: multiprocessing's forkserver has ended; see above" in said  # Python 3.14
    )
    assert "the main program, which is no file (" in said and '"fork", or kind="thread"' in said and data == "[0 1 2]"


@pytest.mark.parametrize("method", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize("dataset", ["Speaks", "SpeaksByItself"])
def test_what_workers_print_and_log(method, dataset):
    """A forked process has the logging of the main program. Another one has what its own modules configure."""
    child = start_child(
        f"""
        import logging
        import datasets
        from fastbatch import Loader, PythonSource

        if __name__ == "__main__":
            logging.basicConfig(level="INFO", format="MAIN %(message)s")
            source = PythonSource(datasets.{dataset}(), workers=1, start_method="{method}")
            with Loader(source, batch_size=3, timeout=60) as loader:
                next(iter(loader))
        """,
        *FORKS,
    )
    out, err = child.communicate(timeout=HANG)
    assert child.returncode == 0 and {"printed 0", "printed 1", "printed 2"} == set(out.splitlines())
    lines = err.splitlines()
    before = "MAIN " if method == "fork" else "OWN " if dataset == "SpeaksByItself" else ""
    assert {f"{before}logged {index}" for index in range(3)} <= set(lines)
    assert (f"{before}informed 1" in lines) == bool(before)
    assert any("UserWarning: warned 1" in line for line in lines)


def test_a_timeout_says_that_a_worker_is_starting():
    source = PythonSource(datasets.Stuck(), 4, fields={"data": ("uint8", (2,))}, workers=1)
    said = "fastbatch-0: write sample 0, whose worker is still starting, for "
    with Loader(source, batch_size=2, timeout=0.5) as loader, pytest.raises(DataTimeout, match=said):
        next(iter(loader))


@pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")  # an earlier test's thread may be ending
@pytest.mark.parametrize("method", ["forkserver", "fork", "spawn"])
def test_multiprocessing_may_still_ask_about_a_worker_that_has_ended(method):
    """Its active_children() does, in another thread, with a list that it took before."""
    before = multiprocessing.active_children()
    with Loader(PythonSource(datasets.Images(4), workers=2, start_method=method), batch_size=4, timeout=60) as loader:
        next(iter(loader))
        workers = [each for each in multiprocessing.active_children() if each not in before]
    assert len(workers) == 2 and not set(workers).intersection(multiprocessing.active_children())
    for worker in workers:
        assert worker._popen.poll() is not None and "closed" in repr(worker)
        with pytest.raises(ValueError, match="closed"):
            worker.join()


def test_a_forked_child_starts_a_forkserver_of_its_own():
    out = run_child(
        """
        import os

        import datasets
        from fastbatch import Loader, PythonSource

        def labels():
            with Loader(source, batch_size=4, timeout=60) as loader:
                return next(iter(loader)).label.tolist()

        if __name__ == "__main__":
            source = PythonSource(datasets.Images(4), workers=1)
            assert labels() == [0, 1, 2, 3]
            child = os.fork()
            if child == 0:
                print(labels(), flush=True)
            else:
                assert os.waitpid(child, 0)[1] == 0
                assert labels() == [0, 1, 2, 3]
        """,
        *FORKS,
    )
    assert out == "[0, 1, 2, 3]\n"


def daemonic():
    with pytest.raises(RuntimeError, match=r"cannot start worker processes in a process that .* daemonic"):
        Loader(PythonSource(datasets.Images(4), workers=1))
    with Loader(PythonSource(datasets.Images(4), workers=1, kind="thread"), batch_size=4) as loader:
        next(iter(loader))


def test_a_daemonic_process_has_no_worker_processes():
    process = multiprocessing.get_context("spawn").Process(target=daemonic, daemon=True)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0


def test_a_worker_thread_that_collects_its_own_loader_as_garbage():
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def load(index):
        if index == 5:
            begun.set()
            assert go.wait(PATIENCE)
            gc.collect()
            done.set()
        return np.float32(index)

    loader = Loader(PythonSource(load, 10, workers=2, kind="thread"), batch_size=5, timeout=PATIENCE)
    next(iter(loader))
    assert begun.wait(PATIENCE)
    cycle = [loader]
    cycle.append(cycle)
    del loader, cycle
    go.set()
    assert done.wait(5)  # it waited for itself, for 20 s
