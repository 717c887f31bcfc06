"""Images per second from JPEG photographs.

The photographs are 500 x 375; batch 64, crop 227, mirror, three mean values, TRAIN. Our Data layer on encoded records
is compared with Caffe's own, and with a bare C program that decodes the same crops with libjpeg-turbo; and in its first
epoch, while it makes an index of the photographs, with Caffe's own. Our ImageData layer, which resizes to 256 x 256
first, is compared with Caffe's own.
"""

import subprocess
import time
from pathlib import Path

import pytest

import nets
from database import COPIES, PHOTOGRAPHS, photographs, repeated_photographs
from fastbatch.caffe import close_all
from interleave import TURN, Loop, Reported, in_turns

BATCH = 64
PREFETCH = 4
STOCK = PREFETCH + 2  # the batches that may be ready when a turn begins, plus one
NATIVE = Path(__file__).resolve().parent.parent / "fastbatch" / "native"


@pytest.fixture(scope="module")
def photos():
    return photographs()


@pytest.fixture(scope="module")
def limit_decode(compiled):
    """limit_decode.c as a side, for a database and a number of threads."""
    sources = [str(NATIVE / name) for name in ("pixels/pixels.c", "pixels/kernels.c", "files/datum.c")]
    program = compiled("limit_decode", "-I", str(NATIVE), *sources, "-ljpeg", "-llmdb")

    def side(path, threads, *options):
        command = [program, path, str(threads), str(TURN), *options]
        return Reported(lambda: float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))

    return side


@pytest.mark.parametrize("threads, target", [(2, 8), (1, 4)])
def bench_encoded(benchmark, report, photos, limit_decode, threads, target):
    path, _, _ = photos
    native = nets.net(nets.data_layer(path, BATCH, PREFETCH))
    ours = nets.net(nets.data_layer(path, BATCH, PREFETCH, threads))
    sides = {
        "caffe": Loop(native.forward, BATCH, STOCK),
        "limit": limit_decode(path, threads),
        "full": limit_decode(path, threads, "--full"),
    }
    our_side = Loop(ours.forward, BATCH, STOCK)
    rates = in_turns(benchmark, our_side, sides)
    close_all()

    name = f"encoded Data, {threads} thread{'s' * (threads > 1)}"
    report.ratio(f"{name}: against Caffe's own", rates["ours"], rates["caffe"], at_least=target)
    report.ratio(f"{name}: of bare C", rates["ours"], rates["limit"], "%", at_least=85)
    report.values(f"{name}: ours", rates["ours"], "img/s")
    report.values(f"{name}: Caffe's own", rates["caffe"], "img/s")
    report.values(f"{name}: bare C, crops only", rates["limit"], "img/s")
    report.values(f"{name}: bare C, whole images", rates["full"], "img/s")
    report.ratio(f"{name}: CPU time for an image, Caffe's against ours", sides["caffe"].cpu, our_side.cpu)


@pytest.mark.parametrize("index", ["made", "off"])
def bench_first_epoch(benchmark, report, index):
    """The first epoch of a new net, from its first batch to its last one."""
    path = repeated_photographs()
    native = nets.net(nets.data_layer(path, BATCH, PREFETCH))
    caffes = Loop(native.forward, BATCH, STOCK)
    batches = COPIES * PHOTOGRAPHS // BATCH
    more = "index_bytes: 0" if index == "off" else ""

    def first_epoch():
        ours = nets.net(nets.data_layer(path, BATCH, PREFETCH, threads=2, more=more))
        ours.forward()
        begin = time.perf_counter()
        for _ in range(1, batches):
            ours.forward()
        seconds = time.perf_counter() - begin
        close_all()
        return (batches - 1) * BATCH / seconds

    rates = in_turns(benchmark, Reported(first_epoch), {"caffe": caffes})
    close_all()

    name = f"encoded Data, 2 threads, first epoch, index {index}"
    at_least = 9 if index == "made" else None
    report.ratio(f"{name}: against Caffe's own", rates["ours"], rates["caffe"], at_least=at_least)
    report.values(f"{name}: ours", rates["ours"], "img/s")


@pytest.mark.parametrize("threads, target", [(2, 5), (1, 2.5)])
def bench_image_data(benchmark, report, photos, threads, target):
    _, source, folder = photos
    native, ours = (nets.net(nets.image_layer(source, folder, BATCH, PREFETCH, each)) for each in (None, threads))
    sides = {"caffe": Loop(native.forward, BATCH, STOCK)}
    our_side = Loop(ours.forward, BATCH, STOCK)
    rates = in_turns(benchmark, our_side, sides)
    close_all()

    name = f"ImageData, {threads} thread{'s' * (threads > 1)}"
    report.ratio(f"{name}: against Caffe's own", rates["ours"], rates["caffe"], at_least=target)
    report.values(f"{name}: ours", rates["ours"], "img/s")
    report.values(f"{name}: Caffe's own", rates["caffe"], "img/s")
    report.ratio(f"{name}: CPU time for an image, Caffe's against ours", sides["caffe"].cpu, our_side.cpu)
