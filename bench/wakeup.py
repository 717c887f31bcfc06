"""How long it takes from a worker's last write to the Python code that waited for the batch.

The reference is a bare condition variable in C.
"""

import ctypes
import statistics
import time

from fastbatch import Loader
from interleave import QUICK, ROUNDS, Reported, in_turns

PAUSE = 2_000_000  # nanoseconds that a sample takes: the consumer is asleep by then
COUNT = 20 if QUICK else 200  # wake-ups in a turn
CAPSULE = b"fastbatch.source"


class SlowSource:
    """wakeup.c as a source: samples take `pause` nanoseconds each; the array "done" has the time at their end."""

    def __init__(self, library, pause, count):
        self.library = ctypes.CDLL(library)
        self.pause, self.count = pause, count

    def __len__(self):
        return self.count

    def __fastbatch_source__(self, random_access):
        new = self.library.slow_source_new
        new.restype, new.argtypes = ctypes.c_void_p, [ctypes.c_int64, ctypes.c_uint64]
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return capsule(new(self.pause, self.count), CAPSULE, None)


def bench_wakeup(benchmark, report, compiled):
    library = compiled("wakeup", "-shared", "-fPIC")
    every = {"loader": [], "condition variable": []}

    def loader():
        latencies = []
        with Loader(SlowSource(library, PAUSE, COUNT), threads=1, prefetch=1) as batches:
            for batch in batches:
                running = time.monotonic_ns()
                latencies.append((running - int(batch.done[0])) / 1000)
        every["loader"] += latencies
        return statistics.median(latencies)

    def condition_variable():
        latencies = (ctypes.c_int64 * COUNT)()
        assert ctypes.CDLL(library).bare_wakeups(ctypes.c_int64(PAUSE), COUNT, latencies) == 0
        every["condition variable"] += [each / 1000 for each in latencies]
        return statistics.median(latencies) / 1000

    medians = in_turns(benchmark, Reported(loader), {"condition variable": Reported(condition_variable)}, ROUNDS)
    report.values("wake-up: from the worker's last write to the Python loop", every["loader"], "us", at_most=50)
    report.values("wake-up: bare condition variable in C", every["condition variable"], "us")
    report.ratio("wake-up: against the bare condition variable", medians["ours"], medians["condition variable"])
