"""Windows per second of our WindowData layer and of Caffe's own, from JPEG photographs.

The photographs are 500 x 375; batch 128, crop 227, mirror, three mean values, TRAIN, as in R-CNN's fine-tuning, with
and without 16 pixels of context.
"""

import numpy
import pytest

import nets
from database import HEIGHT, PHOTOGRAPHS, WIDTH, photographs
from fastbatch.caffe import close_all
from interleave import Loop, in_turns

BATCH = 128
PREFETCH = 2
STOCK = PREFETCH + 2  # the batches that may be ready when a turn begins, plus one
WINDOWS = 50  # per photograph; of all sizes, like region proposals


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """(the path of a window file, the folder of its images)"""
    _, _, folder = photographs()
    random = numpy.random.RandomState(0)
    lines = []
    for number in range(PHOTOGRAPHS):
        lines.append(f"# {number} {number:05}.jpg 3 {HEIGHT} {WIDTH} {WINDOWS}\n")
        for window in range(WINDOWS):
            width, height = (int(20 * (size / 20) ** random.rand()) for size in (WIDTH, HEIGHT))
            x, y = random.randint(0, WIDTH - width + 1), random.randint(0, HEIGHT - height + 1)
            lines.append(f"{window % 20 + 1} {random.rand():.3f} {x} {y} {x + width - 1} {y + height - 1}\n")
    path = tmp_path_factory.mktemp("windows") / "windows.txt"
    path.write_text("".join(lines))
    return str(path), folder


@pytest.mark.parametrize("context_pad", [16, 0])
@pytest.mark.parametrize("threads, target", [(2, 5), (1, 2.5)])
def bench_windows(benchmark, report, windows, threads, target, context_pad):
    native, ours = (
        nets.net(nets.window_layer(*windows, BATCH, PREFETCH, context_pad, each)) for each in (None, threads)
    )
    sides = {"caffe": Loop(native.forward, BATCH, STOCK)}
    our_side = Loop(ours.forward, BATCH, STOCK)
    rates = in_turns(benchmark, our_side, sides)
    close_all()

    name = f"WindowData, context {context_pad}, {threads} thread{'s' * (threads > 1)}"
    report.ratio(f"{name}: against Caffe's own", rates["ours"], rates["caffe"], at_least=target)
    report.values(f"{name}: ours", rates["ours"], "img/s")
    report.values(f"{name}: Caffe's own", rates["caffe"], "img/s")
    report.ratio(f"{name}: CPU time for a window, Caffe's against ours", sides["caffe"].cpu, our_side.cpu)
