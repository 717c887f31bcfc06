"""Loading code of a user's own: a PythonSource against processes that put samples into a multiprocessing.Queue.

Small samples show what a sample costs beside its loading. Photographs are loaded while a net computes, by our layer and
by the usual one, which takes samples out of the queue; a third side only loads.
"""

import multiprocessing

import pytest

import own_code
from database import photographs
from fastbatch import Loader, PythonSource
from interleave import TURN, Loop, Reported, in_turns

WORKERS = 2
BATCH = 64


def bench_small_samples(benchmark, report):
    context = multiprocessing.get_context("fork")
    queue = context.Queue(maxsize=1000)
    item = bytes(own_code.Small()[0])
    processes = started(context, [(own_code.put_items, (item, queue))] * WORKERS)
    try:
        with Loader(PythonSource(own_code.Small(), workers=WORKERS), batch_size=256, prefetch=4) as loader:
            batches = iter(loader)
            ours = Loop(lambda: next(batches), 256, skip=6)
            rates = in_turns(benchmark, ours, {"queue": Loop(queue.get, 1, skip=1000)})
    finally:
        ended(processes)
    report.values("64 bytes from Python, 2 processes", rates["ours"], "samples/s", at_least=150_000)
    report.values("64 bytes by multiprocessing.Queue, 2 processes", rates["queue"], "items/s")
    report.ratio("64 bytes from Python: against the queue", rates["ours"], rates["queue"])
    report.values(
        "64 bytes from Python: for a sample", [WORKERS * 1e6 / rate for rate in rates["ours"]], "us of a core"
    )


def bench_photographs(benchmark, report):
    pytest.importorskip("cv2")
    pytest.importorskip("caffe._caffe")
    import python_layers
    from fastbatch.caffe import close_all

    dataset = own_code.Photographs(photographs()[2])
    context = multiprocessing.get_context("fork")
    python_layers.samples = queue = context.Queue(maxsize=2 * BATCH)
    work = [(own_code.put_samples, (dataset, rank, WORKERS, queue)) for rank in range(WORKERS)]
    processes = started(context, work)

    def load_only():
        counts = context.Queue()
        work = [(own_code.load_only, (dataset, rank, WORKERS, TURN, counts)) for rank in range(WORKERS)]
        loading = started(context, work)
        rate = sum(counts.get() for _ in loading)
        ended(loading)
        return rate

    try:
        usual, ours = python_layers.net("QueueLayer", BATCH), python_layers.net("OurLayer", BATCH)
        sides = {"queue": Loop(usual.forward, BATCH, 3), "loading": Reported(load_only)}
        rates = in_turns(benchmark, Loop(ours.forward, BATCH, 6), sides)
    finally:
        close_all()
        ended(processes)
    report.ratio("photographs from Python: against the queue", rates["ours"], rates["queue"], at_least=1.8)
    report.ratio("photographs from Python: of loading only", rates["ours"], rates["loading"], "%", at_least=90)
    report.values("photographs from Python, 2 processes, in a net", rates["ours"], "img/s")
    report.values("photographs by the queue, 2 processes, in a net", rates["queue"], "img/s")


def started(context, work):
    """Processes that run these functions with these arguments."""
    processes = [context.Process(target=function, args=arguments, daemon=True) for function, arguments in work]
    for process in processes:
        process.start()
    return processes


def ended(processes):
    """Ends the processes."""
    for process in processes:
        process.terminate()
        process.join()
