"""How long close() takes: while all workers are at work, with a full ring, and in the middle of a slow sample."""

import time

import pytest

from fastbatch import LMDBSource, Loader, Transform
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
