"""Images per second of our Data layer, beside Caffe's own and beside a bare C loop that does the same conversion.

In one process of the real Caffe, with nets of a data layer only: raw uint8 3 x 256 x 256 LMDB in the page cache, batch
64, crop 227, mirror, three mean values, TRAIN.
"""

import time

import pytest

import nets
from fastbatch.caffe import close_all
from interleave import Loop, in_turns

BATCH = 64
PREFETCH = 4
STOCK = PREFETCH + 2  # the batches that may be ready when a turn begins, plus one


@pytest.mark.parametrize("threads, target", [(2, 5), (1, 3.5)])
def bench_data_layer(benchmark, report, database, limit, threads, target):
    native = nets.net(nets.data_layer(database, BATCH, PREFETCH))
    ours = nets.net(nets.data_layer(database, BATCH, PREFETCH, threads))
    sides = {"caffe": Loop(native.forward, BATCH, STOCK), "limit": limit(database, threads)}
    our_side = Loop(ours.forward, BATCH, STOCK)
    idle = idle_cpu()
    rates = in_turns(benchmark, our_side, sides)
    close_all()

    name = f"Data layer, {threads} thread{'s' * (threads > 1)}"
    report.ratio(f"{name}: against Caffe's own", rates["ours"], rates["caffe"], at_least=target)
    report.ratio(f"{name}: of the bare C loop", rates["ours"], rates["limit"], "%", at_least=85)
    report.values(f"{name}: ours", rates["ours"], "img/s")
    report.values(f"{name}: Caffe's own", rates["caffe"], "img/s")
    report.values(f"{name}: bare C loop", rates["limit"], "img/s")
    report.ratio(f"{name}: CPU time for an image, Caffe's against ours", sides["caffe"].cpu, our_side.cpu)
    report.values(f"{name}: CPU time for an image", [1e6 * seconds for seconds in our_side.cpu], "us")
    report.values(f"{name}: CPU use of both nets at rest", [100 * idle], "%")


def idle_cpu():
    """The cores that this process uses when all rings are full and no batch is requested."""
    time.sleep(0.5)
    begin, cpu = time.perf_counter(), time.process_time()
    time.sleep(0.5)
    return (time.process_time() - cpu) / (time.perf_counter() - begin)
