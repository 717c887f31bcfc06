"""Images per second with RGB, mean and std, as torchvision has them, against BGR and three means, as Caffe has them."""

import pytest

from fastbatch import LMDBSource, Loader, Transform
from interleave import Loop, in_turns

BATCH = 64
COMMON = {"crop_size": 227, "mirror": True}
CAFFES = Transform(mean_value=(104, 117, 123), **COMMON)
TORCHVISIONS = Transform(color="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), **COMMON)


@pytest.mark.parametrize("threads", [1, 2])
def bench_rgb_and_std(benchmark, report, database, threads):
    loaders = [
        Loader(LMDBSource(database), transform, batch_size=BATCH, threads=threads, prefetch=4)
        for transform in (TORCHVISIONS, CAFFES)
    ]
    ours, usual = (Loop(stepper(loader), BATCH, skip=6) for loader in loaders)
    rates = in_turns(benchmark, ours, {"bgr": usual})
    for loader in loaders:
        loader.close()
    name = f"RGB, mean and std, {threads} thread{'s' * (threads > 1)}"
    report.ratio(f"{name}: of BGR and mean", rates["ours"], rates["bgr"], "%", at_least=97)
    report.values(f"{name}", rates["ours"], "img/s")
    report.ratio(f"{name}: processor time of BGR's", ours.cpu, usual.cpu, "%")


def stepper(loader):
    """A function that takes the next batch, epoch after epoch."""
    batches = endless(loader)
    return lambda: next(batches)


def endless(loader):
    while True:
        yield from loader
