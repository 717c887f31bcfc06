"""A loader that keeps decoded images, from its second epoch on, against the same images as raw records.

The images are photographs of a list, resized to 256 x 256; the raw records are arrays of that size. Both sides crop and
mirror. A third side keeps the images in a file, in pytest's temporary folder; the system's page cache holds all of it.
"""

import itertools

import numpy
import pytest

pytest.importorskip("cv2")

from database import BYTES, RECORDS, SHAPE, photographs
from fastbatch import ImageListSource, Loader, Transform
from interleave import Loop, in_turns

BATCH = 64
PREFETCH = 3


@pytest.fixture(scope="module")
def images():
    """The photographs, several times over, so that the decoded images are more than any processor's cache."""
    _, path, folder = photographs()
    once = ImageListSource(path, folder, size=SHAPE[1:])
    return once[numpy.arange(RECORDS) % len(once)]


@pytest.mark.parametrize("threads", [2, 1])
def bench_cache(benchmark, report, images, threads, tmp_path):
    raw = numpy.random.RandomState(0).randint(0, 256, (RECORDS, *SHAPE)).astype(numpy.uint8)
    options = {"batch_size": BATCH, "shuffle": True, "seed": 0, "threads": threads, "prefetch": PREFETCH}
    room = {"cache_bytes": RECORDS * (BYTES + 256)}
    with (
        Loader(images, TRAIN, **options, **room) as kept,
        Loader(images, TRAIN, **options, **room, cache_folder=tmp_path) as in_file,
        Loader(raw, TRAIN, **options) as (plain),
        Loader(images, TRAIN, **options) as decoded,
    ):
        for loader in kept, in_file:
            for _ in loader:  # the first epoch
                pass
        mark = kept.stats()
        rates = in_turns(
            benchmark, side(kept), {"raw": side(plain), "decoded": side(decoded), "in a file": side(in_file)}
        )
        hit_rate = kept.stats(since=mark).cache_hit_rate
    name = f"images from the cache, {threads} thread{'s' if threads > 1 else ''}"
    report.ratio(f"{name}: of raw records", rates["ours"], rates["raw"], "%", at_least=90)
    report.ratio(f"{name}: against decoding them", rates["ours"], rates["decoded"])
    report.ratio(f"{name}, in a file: of raw records", rates["in a file"], rates["raw"], "%")
    report.values(f"{name}", rates["ours"], "img/s")
    report.values(f"{name}: found there", [100 * hit_rate], "%")


TRAIN = Transform(crop_size=227, mirror=True, mean_value=(104, 117, 123))


def side(loader):
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return Loop(lambda: next(batches), BATCH, skip=PREFETCH + 2)
