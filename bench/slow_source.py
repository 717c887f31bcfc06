"""Samples per second of a slow source, such as a network disk.

Each sample takes 20 ms, and shapes are not known beforehand. With 16 threads, 800 per second is the maximum; batches of
one sample each should come close.
"""

import ctypes
import time

from fastbatch import Loader
from interleave import QUICK, Reported, in_turns

DELAY = 20_000  # microseconds
THREADS = 16
SAMPLES = 64 if QUICK else 1600
ROUNDS = 1 if QUICK else 3


class SlowSource:
    """slow_source.c, as a source."""

    def __init__(self, library):
        self.library = ctypes.CDLL(library)

    def __len__(self):
        return 1 << 20

    def __fastbatch_source__(self, random_access):
        self.library.slow_source.restype = ctypes.c_void_p
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return capsule(self.library.slow_source(), b"fastbatch.source", None)


def rate(source, batch_size):
    """Samples per second, after the first batches."""
    with Loader(source, batch_size=batch_size, threads=THREADS, prefetch=max(3, 2 * THREADS // batch_size)) as loader:
        batches = iter(loader)
        for _ in range(2 * THREADS // batch_size + 1):
            next(batches)
        begin = time.perf_counter()
        for _ in range(SAMPLES // batch_size):
            next(batches)
        return SAMPLES / (time.perf_counter() - begin)


def bench_slow_source(benchmark, report, compiled):
    source = SlowSource(compiled("slow_source", "-shared", "-fPIC", f"-DDELAY={DELAY}"))
    sides = {"batches of 16": Reported(lambda: rate(source, 16))}
    rates = in_turns(benchmark, Reported(lambda: rate(source, 1)), sides, ROUNDS)
    name = f"a source that takes {DELAY / 1000:g} ms for each sample, {THREADS} threads"
    report.values(f"{name}: batch_size 1", rates["ours"], "samples/s", at_least=700)
    report.values(f"{name}: batch_size 16", rates["batches of 16"], "samples/s")
