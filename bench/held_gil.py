"""How full an initially empty ring is after another thread held the GIL.

The GIL is held by C code that sleeps for 2 s, and by a long net.forward(). The reference is a prefetching Python
thread, as in many of Caffe's Python layers.
"""

import ctypes
import queue
import threading
import time

import numpy

import nets
from fastbatch import LMDBSource, Loader, Transform
from fastbatch.caffe import close_all
from interleave import QUICK

HOLD = 200_000 if QUICK else 2_000_000  # microseconds
PREFETCH = 4
BATCH = 64
ROUNDS = 2 if QUICK else 5
OUTPUTS = 2 if QUICK else 32  # of each convolution


class PythonPrefetch:
    """A Python thread that makes batches of the same size and puts them into a queue until close()."""

    def __init__(self):
        self.batches = queue.Queue(maxsize=PREFETCH)
        self.stop = False
        self.image = numpy.zeros((3, 256, 256), dtype=numpy.uint8)
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        while not self.stop:
            batch = numpy.stack([self.image[:, :227, :227].astype(numpy.float32) - 117 for _ in range(BATCH)])
            while not self.stop:
                try:
                    self.batches.put(batch, timeout=0.05)
                    break
                except queue.Full:
                    pass

    def close(self):
        self.stop = True
        self.thread.join()


def bench_held_by_c_function(benchmark, report, database):
    ready, python_ready = [], []
    hold_gil = ctypes.PyDLL(None).usleep  # a PyDLL's functions run with the GIL held

    def setup():
        transform = Transform(crop_size=227, mean_value=117)
        loader = Loader(LMDBSource(database), transform, batch_size=BATCH, threads=2, prefetch=PREFETCH)
        return (loader, PythonPrefetch()), {}

    def hold(loader, prefetch):
        hold_gil(HOLD)
        stats, in_queue = loader.stats(), prefetch.batches.qsize()
        ready.append(100 * stats.ready / stats.slots)
        python_ready.append(100 * in_queue / PREFETCH)
        loader.close()
        prefetch.close()

    benchmark.pedantic(hold, setup=setup, rounds=ROUNDS)
    name = f"GIL held for {HOLD / 1e6:g} s"
    report.values(f"{name}: ring full to", ready, "%", at_least=100)
    report.values(f"{name}: a Python thread's queue full to", python_ready, "%")


def bench_held_by_forward(benchmark, report, database):
    layers = [nets.data_layer(database, BATCH, PREFETCH, threads=2)]
    for number in range(4):
        bottom = f"conv{number - 1}" if number else "data"
        layers.append(
            f'layer {{ name: "conv{number}" type: "Convolution" bottom: "{bottom}" top: "conv{number}" '
            f"convolution_param {{ num_output: {OUTPUTS} kernel_size: 5 stride: 2 "
            'weight_filler { type: "xavier" } } }'
        )
    net = nets.net(*layers)
    layer = net.layers[0]
    ready, python_ready, seconds = [], [], []

    def setup():
        while layer.stats()["ready"]:
            net._forward(0, 0)
        return (PythonPrefetch(),), {}

    def forward(prefetch):
        begin = time.perf_counter()
        net.forward()
        stats, in_queue = layer.stats(), prefetch.batches.qsize()
        seconds.append(time.perf_counter() - begin)
        ready.append(100 * stats["ready"] / (stats["slots"] - stats["held"]))
        python_ready.append(100 * in_queue / PREFETCH)
        prefetch.close()

    benchmark.pedantic(forward, setup=setup, rounds=ROUNDS)
    close_all()
    name = "during net.forward()"
    report.values(f"{name}: ring full to", ready, "%", at_least=100)
    report.values(f"{name}: a Python thread's queue full to", python_ready, "%")
    report.values(f"{name}: which took", seconds, "s")
