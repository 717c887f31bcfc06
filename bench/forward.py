"""What Caffe's training thread spends in our layer when a batch is ready.

That is a pointer swap or, with zero_copy: false, a copy, which is compared with memcpy itself.
"""

import ctypes
import time

import numpy
import pytest

import nets
from fastbatch.caffe import close_all
from interleave import QUICK, Single, in_turns

SIZES = (8, 32) if QUICK else (64, 512)  # images; a batch of 512 has 317 MB
ROUNDS = 10 if QUICK else 45
MICRO = 1e6


class Layer:
    """A net of one of our Data layers; wait() returns when its next batch is ready and its workers are idle."""

    def __init__(self, database, batch_size, zero_copy=True):
        self.net = nets.net(nets.data_layer(database, batch_size, prefetch=1, threads=2, zero_copy=zero_copy))
        self.layer = self.net.layers[0]
        self.net.forward()

    def wait(self):
        while self.layer.stats()["ready"] < 1:
            time.sleep(1e-3)
        time.sleep(1e-3)

    def run(self):
        self.net._forward(0, 0)  # what the net's forward() and a solver's step() call for this layer

    def side(self):
        return Single(self.run, self.wait)


def bench_forward(benchmark, report, database):
    small, large = (Layer(database, size) for size in SIZES)
    sides = {"small": small.side(), "pycaffe": Single(small.net.forward, small.wait)}
    seconds = in_turns(benchmark, large.side(), sides, ROUNDS, pause=0)
    close_all()
    for size, times in zip(SIZES, (seconds["small"], seconds["ours"])):
        report.values(f"forward(), batch {size} ready", [MICRO * each for each in times], "us", at_most=100)
    report.ratio(f"forward(): batch {SIZES[1]} against batch {SIZES[0]}", seconds["ours"], seconds["small"])
    pycaffe = [MICRO * each for each in seconds["pycaffe"]]
    report.values(f"net.forward() of pycaffe, batch {SIZES[0]} ready", pycaffe, "us")


def bench_forward_after_a_rest(benchmark, report, database):
    """Compared with Caffe's own layer, which does not show when a batch is ready. Each gets the time of twenty."""
    ours = Layer(database, SIZES[0])
    caffes = nets.net(nets.data_layer(database, SIZES[0]))
    caffes.forward()

    def rest():
        time.sleep(20 * SIZES[0] / 4000)

    sides = {"caffe": Single(lambda: caffes._forward(0, 0), rest)}
    seconds = in_turns(benchmark, Single(ours.run, rest), sides, ROUNDS, pause=0)
    close_all()
    for name, side in ("our", "ours"), ("Caffe's own", "caffe"):
        report.values(f"forward() of {name} layer after 0.3 s of rest", [MICRO * each for each in seconds[side]], "us")


@pytest.mark.parametrize("size", SIZES)
def bench_forward_with_copy(benchmark, report, database, size):
    ours = Layer(database, size, zero_copy=False)
    blob = ours.net.blobs["data"].data
    batch = numpy.ones(blob.shape, blob.dtype)  # the size of the slot that forward() reads, and as rarely in a cache

    def memcpy():
        ctypes.memmove(blob.ctypes.data, batch.ctypes.data, blob.nbytes)

    seconds = in_turns(benchmark, ours.side(), {"memcpy": Single(memcpy, ours.wait)}, ROUNDS // 3, pause=0)
    close_all()
    name = f"forward() with zero_copy: false, batch {size}"
    report.ratio(f"{name}: against memcpy", seconds["ours"], seconds["memcpy"], at_most=1.3)
    report.values(name, [1e3 * each for each in seconds["ours"]], "ms")
