"""Loaders that threads share: a call does what it says, or says why not. Nothing depends on whose turn it is."""

import contextlib
import re
import sys
import threading

import numpy as np
import pytest

from children import HANG, native_threads
from fastbatch import Closed, Loader, PythonSource
from planned import wait_until

COUNT = 40
BATCH = 4
NUMBERS = np.arange(COUNT)
# What a second thread may be told: of the loop, of the batch that is waited for, of the epoch that was given up.
BUSY = "iterator of this loader is still open|another thread is waiting|the rest of this epoch was given up"


@pytest.fixture(autouse=True)
def short_turns():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def load(index):
    return np.full(3, index), index


SOURCES = {
    "native": lambda: {"data": np.repeat(NUMBERS[:, None], 3, 1), "label": NUMBERS},
    "thread": lambda: PythonSource(load, COUNT, workers=2, kind="thread"),
}


class Users:
    """Threads that run functions until those return. What one of them raises is raised by `join`."""

    def __init__(self):
        self.threads = []
        self.raised = []

    def start(self, function, *arguments):
        def run():
            try:
                function(*arguments)
            except BaseException as error:
                self.raised.append(error)

        self.threads.append(threading.Thread(target=run))
        self.threads[-1].start()

    def join(self):
        for thread in self.threads:
            thread.join(HANG)
            assert not thread.is_alive()
        if self.raised:
            raise self.raised[0]


def loop(loader, taken):
    """Takes what batches it gets, until the loader is closed."""
    while True:
        try:
            for batch in loader:
                first = int(batch.label[0])
                assert first % BATCH == 0 and batch.label.tolist() == list(range(first, first + BATCH))
                assert batch.data.tolist() == [[i] * 3 for i in range(first, first + BATCH)]
                taken.append(first)
        except Closed:
            return
        except RuntimeError as error:
            assert re.search(BUSY, str(error)), error


def watch(loader):
    """Asks for what any thread may ask for at any time."""
    while not loader.closed:
        stats = loader.stats()
        assert 0 <= stats.held <= stats.slots and stats.errors == 0
        assert loader.errors == []
        with contextlib.suppress(Closed):
            loader.state_dict()
        loader.report()


@pytest.mark.parametrize("closers", [1, 3])
@pytest.mark.parametrize("kind", SOURCES)
def test_threads_that_loop_and_watch_and_close(kind, closers):
    before = native_threads()
    for _ in range(5):
        users, taken = Users(), []
        loader = Loader(SOURCES[kind](), batch_size=BATCH, prefetch=7, threads=2, timeout=HANG)
        for _ in range(3):
            users.start(loop, loader, taken)
        users.start(watch, loader)
        wait_until(lambda taken=taken: len(taken) >= 5)
        for _ in range(closers):
            users.start(loader.close)
        users.join()
        assert loader.stats().held == 0
        del loader, users
    wait_until(lambda: native_threads() <= before)  # those of earlier tests may be ending


@pytest.mark.parametrize("kind", SOURCES)
def test_loaders_of_one_source_in_many_threads(kind):
    """Each thread makes loaders, leaves their loops anywhere, and lets them go with or without close()."""
    source = SOURCES[kind]()

    def use(number):
        for turn in range(5):
            with contextlib.ExitStack() as stack:
                loader = Loader(source, batch_size=BATCH, threads=2, timeout=HANG, shuffle=True, seed=number)
                if turn % 2:
                    stack.enter_context(loader)
                for batch in loader:
                    assert batch.data.tolist() == [[i] * 3 for i in batch.label.tolist()]
                    if batch.number == turn:
                        break

    before = native_threads()
    users = Users()
    for number in range(4):
        users.start(use, number)
    users.join()
    wait_until(lambda: native_threads() <= before)  # those of earlier tests may be ending


def test_one_batch_in_many_threads():
    """All ask for the same arrays at once, and each gets views of the same memory."""
    with Loader(SOURCES["native"](), batch_size=BATCH, timeout=HANG) as loader:
        for batch in loader:
            users, found, gate = Users(), [], threading.Barrier(4)

            def look(batch=batch, found=found, gate=gate):
                gate.wait(HANG)
                found.append((batch.data, batch.label, batch.sample_keys))

            for _ in range(4):
                users.start(look)
            users.join()
            for data, label, keys in found:
                assert np.shares_memory(data, found[0][0]) and np.shares_memory(label, found[0][1])
                assert label.tolist() == keys == [int(i) for i in data[:, 0]]
