"""Samples per second of a native callback that costs nothing, so that what remains is fastbatch's own work."""

import ctypes

from fastbatch import CallbackSource, Loader
from interleave import Loop, in_turns

BATCH = 1024
COUNT = 1 << 40


def bench_callback_source(benchmark, report, compiled):
    function = ctypes.CDLL(compiled("callback_source", "-shared", "-fPIC")).write_sample
    source = CallbackSource(function, {"data": ("uint8", (64,))}, COUNT)
    loaders = {threads: Loader(source, batch_size=BATCH, threads=threads, prefetch=8) for threads in (1, 2)}
    sides = {}
    for threads, loader in loaders.items():
        batches = iter(loader)
        sides[threads] = Loop(lambda batches=batches: next(batches), BATCH, skip=10)
    rates = in_turns(benchmark, sides[2], {"1 thread": sides[1]})
    for loader in loaders.values():
        loader.close()
    report.values("64 bytes from a callback, 2 threads", rates["ours"], "samples/s", at_least=1_000_000)
    report.values("64 bytes from a callback, 1 thread", rates["1 thread"], "samples/s")
    report.values(
        "64 bytes from a callback: processor time",
        [1e6 * seconds for seconds in sides[2].cpu],
        "us a sample",
        at_most=1,
    )
