"""How long close() takes with all workers busy, with a full ring, and in the middle of a slow sample.

Also how soon a waiting call returns when another thread closes the loader or a signal interrupts it.
"""

import os
import signal
import threading
import time

import pytest

from fastbatch import BlockingQueue, Closed, LMDBSource, Loader, Transform
from interleave import QUICK
from wakeup import SlowSource

ROUNDS = 5 if QUICK else 50
SLOW = 50_000_000  # nanoseconds
TRANSFORM = Transform(crop_size=227, mirror=True, mean_value=(104, 117, 123))


def working(database, compiled):
    """Two threads, both in the middle of a batch."""
    loader = Loader(LMDBSource(database), TRANSFORM, batch_size=64, threads=2, prefetch=2)
    next(iter(loader)).release()
    return loader


def full(database, compiled):
    """Two threads that wait for space."""
    loader = working(database, compiled)
    while loader.stats().ready < loader.stats().slots:
        time.sleep(1e-3)
    return loader


def slow_sample(database, compiled):
    """Two threads, each at the beginning of a sample that takes 50 ms."""
    loader = Loader(SlowSource(compiled("wakeup", "-shared", "-fPIC"), SLOW, 1000), batch_size=64, threads=2)
    time.sleep(5e-3)
    return loader


@pytest.mark.parametrize("make, at_most", [(working, 100), (full, 100), (slow_sample, 100 + SLOW / 1e6)])
def bench_close(benchmark, report, database, compiled, make, at_most):
    seconds = []

    def close(loader):
        begin = time.perf_counter()
        loader.close()
        seconds.append(time.perf_counter() - begin)

    benchmark.pedantic(close, setup=lambda: ((make(database, compiled),), {}), rounds=ROUNDS)
    name = f"close(): {make.__doc__.rstrip('.').lower()}"
    report.values(name, [1e3 * each for each in seconds], "ms", at_most=at_most, of_maximum=True)


def waiting_queue(compiled):
    """A pop() from an empty queue, and what closes it."""
    queue = BlockingQueue()
    return queue.pop, queue.close


def waiting_loader(compiled):
    """A next() of a loader whose first batch takes 64 s, and what closes it."""
    loader = Loader(SlowSource(compiled("wakeup", "-shared", "-fPIC"), 1_000_000_000, 1000), batch_size=64, threads=1)
    return iter(loader).__next__, loader.close


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


@pytest.mark.parametrize("make", [waiting_queue, waiting_loader])
@pytest.mark.parametrize("what", ["a signal", "close()"])
def bench_interrupt(benchmark, report, compiled, make, what):
    """Measures how soon a waiting call returns. The signal's handler raises, as that of Ctrl-C does.

    close() itself waits for the sample in progress; the call that it interrupts does not.
    """
    milliseconds = []

    def once():
        wait, close = make(compiled)
        begin = []

        def end():
            time.sleep(0.02 + 0.05 * len(milliseconds) / ROUNDS)  # at various moments between two checks for signals
            begin.append(time.perf_counter())
            if what == "close()":
                close()
            else:
                os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=end)
        thread.start()
        with pytest.raises((Interrupted, Closed)):
            wait()
        milliseconds.append(1e3 * (time.perf_counter() - begin[0]))
        thread.join()
        close()

    former = signal.signal(signal.SIGUSR1, interrupt)
    try:
        benchmark.pedantic(once, rounds=ROUNDS // 5)
    finally:
        signal.signal(signal.SIGUSR1, former)
    call = "BlockingQueue.pop()" if make is waiting_queue else "next()"
    report.values(f"{call} that waits, until it answers {what}", milliseconds, "ms", at_most=100, of_maximum=True)
