"""Images per second of our Data layer and of Caffe's own from LevelDB, Caffe's default backend.

Raw images of CIFAR's size and of 256 x 256, and JPEG photographs (500 x 375). Batch 64, mirror, three mean values,
TRAIN; the larger images are cropped to 227. Each side has its own copy of the database, because LevelDB opens a
database only once. In the first epoch, only one thread at a time reads large records, so that epoch is measured
separately.
"""

import ctypes

import pytest

import nets
from database import LEVELDB_RECORDS, leveldbs
from databases import leveldb
from fastbatch.caffe import close_all
from interleave import Loop, Single, in_turns

BATCH = 64
PREFETCH = 4
STOCK = PREFETCH + 2  # the batches that may be ready when a turn begins, plus one


@pytest.mark.parametrize("threads", [2, 1])
@pytest.mark.parametrize("kind", ["32x32", "256x256", "photographs"])
def bench_leveldb(benchmark, report, kind, threads):
    one, other = leveldbs(kind)
    transform = nets.TRANSFORM.replace("crop_size: 227", "" if kind == "32x32" else "crop_size: 227")
    native, ours = (
        nets.net(nets.data_layer(path, BATCH, PREFETCH, each, backend="LEVELDB", transform=transform))
        for path, each in ((one, None), (other, threads))
    )
    sides = {"caffe": Loop(native.forward, BATCH, STOCK)}
    our_side = Loop(ours.forward, BATCH, STOCK)
    rates = in_turns(benchmark, our_side, sides)
    close_all()

    name = f"LevelDB, {kind}, {threads} thread{'s' * (threads > 1)}"
    report.ratio(f"{name}: against Caffe's own", rates["ours"], rates["caffe"])
    report.values(f"{name}: ours", rates["ours"], "img/s")
    report.values(f"{name}: Caffe's own", rates["caffe"], "img/s")
    report.ratio(f"{name}: CPU time for an image, Caffe's against ours", sides["caffe"].cpu, our_side.cpu)


def bench_first_epoch(benchmark, report):
    """The first epoch of a new net, including all of its setup."""

    def epoch(path, threads):
        net = nets.net(nets.data_layer(path, BATCH, PREFETCH, threads, backend="LEVELDB"))
        for _ in range(LEVELDB_RECORDS["256x256"] // BATCH):
            net.forward()
        del net
        close_all()

    one, other = leveldbs("256x256")
    sides = {"caffe": Single(lambda: epoch(one, None))}
    seconds = in_turns(benchmark, Single(lambda: epoch(other, 2)), sides)
    report.ratio("LevelDB, 256x256, 2 threads, first epoch: against Caffe's own", seconds["caffe"], seconds["ours"])


@pytest.mark.parametrize("kind", ["32x32", "256x256"])
def bench_checksums(benchmark, report, kind):
    """The cost of LevelDB's checksums: its own iterator, stepped from Python, with and without verification."""
    path, _ = leveldbs(kind)
    library, problem = leveldb(), ctypes.c_char_p()
    for name, result in (
        ("readoptions_create", ctypes.c_void_p),
        ("create_iterator", ctypes.c_void_p),
        ("iter_valid", ctypes.c_uint8),
    ):
        getattr(library, "leveldb_" + name).restype = result
    database = ctypes.c_void_p(library.leveldb_open(library.leveldb_options_create(), path.encode(), problem))

    def stepper(verify):
        options = ctypes.c_void_p(library.leveldb_readoptions_create())
        library.leveldb_readoptions_set_verify_checksums(options, ctypes.c_uint8(verify))
        iterator = ctypes.c_void_p(library.leveldb_create_iterator(database, options))

        def step():
            for _ in range(BATCH):
                if not library.leveldb_iter_valid(iterator):
                    library.leveldb_iter_seek_to_first(iterator)
                library.leveldb_iter_next(iterator)

        return Loop(step, BATCH, 1)

    rates = in_turns(benchmark, stepper(True), {"without": stepper(False)})
    cost = [1e6 * (1 / verified - 1 / without) for verified, without in zip(rates["ours"], rates["without"])]
    report.values(f"LevelDB, {kind}: checksum of a record", cost, "us")
