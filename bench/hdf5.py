"""What HDF5Data costs the training thread, compared with Caffe's own layer.

Rows of 3 x 227 x 227 float32, batch 64, files of four batches each. Caffe copies every row inside forward(), and reads
a whole file in the forward() that reaches the end of the previous one. Ours swaps a pointer if the batch is ready; its
file has been read by then.
"""

import ctypes
import time

import nets
from database import hdf5_files
from fastbatch.caffe import close_all
from interleave import QUICK, Single, in_turns

BATCH = 4 if QUICK else 64
FILES, BATCHES = 3, 4  # BATCHES per file
ROUNDS = 2 if QUICK else 24
COMPUTES = 20_000 if QUICK else 150_000  # microseconds for which the net holds the GIL and leaves a core idle
MILLI = 1e3

hold_gil = ctypes.PyDLL(None).usleep  # a PyDLL's functions run with the GIL held


def both():
    source = hdf5_files(FILES, BATCH * BATCHES)
    return [nets.net(nets.hdf5_layer(source, BATCH, threads)) for threads in (2, None)]


def bench_hdf5_ready(benchmark, report):
    """In the middle of a file, where neither layer has a file to read."""
    ours, caffes = both()
    layer = ours.layers[0]
    turns = {"ours": 0, "caffe": 0}

    def before_the_middle(side, net):
        while turns[side] % BATCHES == BATCHES - 1:
            forward(side, net)
        while layer.stats()["ready"] < 1:
            time.sleep(1e-3)

    def forward(side, net):
        turns[side] += 1
        net._forward(0, 0)

    sides = [
        Single(lambda side=side, net=net: forward(side, net), lambda side=side, net=net: before_the_middle(side, net))
        for side, net in (("ours", ours), ("caffe", caffes))
    ]
    seconds = in_turns(benchmark, sides[0], {"caffe": sides[1]}, ROUNDS, pause=0)
    close_all()
    report.ratio(
        "HDF5Data, batch ready: Caffe's forward() against ours", seconds["caffe"], seconds["ours"], at_least=10
    )
    for name, side in ("ours", "ours"), ("Caffe's own", "caffe"):
        report.values(f"HDF5Data, batch ready: forward() of {name}", [MILLI * each for each in seconds[side]], "ms")


def bench_hdf5_at_the_end_of_files(benchmark, report):
    """Every forward() of epochs in which the net computes in between."""
    ours, caffes = both()
    seconds = {"ours": [], "caffe": []}

    def epoch(side, net):
        for _ in range(FILES * BATCHES):
            hold_gil(COMPUTES)
            begin = time.perf_counter()
            net._forward(0, 0)
            seconds[side].append(time.perf_counter() - begin)

    for net in ours, caffes:
        for _ in range(FILES * BATCHES):
            net._forward(0, 0)
    in_turns(
        benchmark,
        Single(lambda: epoch("ours", ours)),
        {"caffe": Single(lambda: epoch("caffe", caffes))},
        2 if QUICK else 5,
        pause=0,
    )
    close_all()
    ends = {side: times[BATCHES - 1 :: BATCHES] for side, times in seconds.items()}
    report.ratio("HDF5Data, end of a file: Caffe's forward() against ours", ends["caffe"], ends["ours"], at_least=10)
    report.values("HDF5Data, end of a file: forward() of ours", [MILLI * each for each in ends["ours"]], "ms")
    report.values("HDF5Data, end of a file: forward() of Caffe's own", [MILLI * each for each in ends["caffe"]], "ms")
    report.values(
        "HDF5Data, every forward() of ours",
        [MILLI * each for each in seconds["ours"]],
        "ms",
        at_most=1,
        of_maximum=True,
    )
