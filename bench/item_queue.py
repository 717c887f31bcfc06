"""The loader compared with the usual recipe of processes and a queue.

Two loader processes transform one sample at a time and put it into a multiprocessing.Queue. The consumer takes samples
out and stacks them into a batch.
"""

import multiprocessing

import lmdb
import numpy
import pytest

from fastbatch import LMDBSource, Loader, Transform
from interleave import Loop, in_turns

pytest.importorskip("caffe._caffe")
import caffe

BATCH = 64
CROP = 227
MEAN = (104, 117, 123)
LOADERS = 2


def load(path, rank, samples):
    """A loader process: every LOADERS-th record, repeatedly."""
    random = numpy.random.RandomState(rank)
    mean = numpy.array(MEAN, dtype=numpy.float32).reshape(3, 1, 1)
    environment = lmdb.open(path, readonly=True, lock=False)
    with environment.begin() as transaction:
        while True:
            for number, (_, value) in enumerate(transaction.cursor()):
                if number % LOADERS != rank:
                    continue
                record = caffe.proto.caffe_pb2.Datum.FromString(value)
                image = caffe.io.datum_to_array(record)
                top, left = random.randint(image.shape[1] - CROP + 1), random.randint(image.shape[2] - CROP + 1)
                image = image[:, top : top + CROP, left : left + CROP].astype(numpy.float32) - mean
                if random.randint(2):
                    image = image[:, :, ::-1]
                samples.put((image, record.label))


def bench_item_queue(benchmark, report, database):
    context = multiprocessing.get_context("fork")
    samples = context.Queue(maxsize=2 * BATCH)
    processes = [context.Process(target=load, args=(database, rank, samples), daemon=True) for rank in range(LOADERS)]
    for process in processes:
        process.start()
    try:
        with Loader(
            LMDBSource(database),
            Transform(crop_size=CROP, mirror=True, mean_value=MEAN),
            batch_size=BATCH,
            threads=LOADERS,
        ) as loader:
            batches = endless(loader)

            def from_queue():
                images, labels = zip(*(samples.get() for _ in range(BATCH)))
                return numpy.stack(images), numpy.array(labels)

            rates = in_turns(
                benchmark,
                Loop(lambda: next(batches)["data"], BATCH, skip=5),
                {"queue": Loop(from_queue, BATCH, skip=3)},
            )
    finally:
        for process in processes:
            process.terminate()
            process.join()
    report.ratio("Loader, 2 threads: against the item queue, 2 processes", rates["ours"], rates["queue"], at_least=30)
    report.values("Loader, 2 threads", rates["ours"], "img/s")
    report.values("item queue, 2 processes", rates["queue"], "img/s")


def endless(loader):
    """The loader's batches, epoch after epoch."""
    while True:
        yield from loader
