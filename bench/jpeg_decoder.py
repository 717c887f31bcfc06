"""fastbatch's own JPEG decoder against libjpeg-turbo: CPU time for a part of a photograph, one thread, in turns.

With a resize, it is what ImageData does: the whole photograph becomes 256 x 256 pixels, of which a crop is kept.

It needs no Caffe: `pytest bench/jpeg_decoder.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from database import mosaics, photographs
from interleave import QUICK

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def program(compiled):
    """jpeg_decoder.c, compiled as the extensions are: not for this very processor."""
    sys.path.append(str(CHECKOUT))  # at the end: no fastbatch is imported from there
    from build_support.extensions import NATIVE, c_sources

    sources = [str(CHECKOUT / source) for source in c_sources("fastbatch.images._codec")]
    return compiled("jpeg_decoder", "-march=x86-64", "-I", str(CHECKOUT / NATIVE), *sources, "-ljpeg", "-lpng", "-lm")


def compare(benchmark, report, command, name, targets):
    """Reports the ways of decoding. `targets`: how much faster ours is, without and with an index."""
    output = benchmark.pedantic(lambda: subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    libjpeg, own, indexed, making = zip(*(map(float, line.split()) for line in output.splitlines()))
    ways = {"ours": own, "ours with an index": indexed, "ours while it makes the index": making}
    for (way, times), target in zip(ways.items(), (*targets, None)):
        report.ratio(f"{name}: libjpeg-turbo's CPU time against {way}", libjpeg, times, at_least=target)
        report.values(f"{name}: {way}", times, "us")
    report.values(f"{name}: libjpeg-turbo", libjpeg, "us")


@pytest.mark.parametrize("crop, side, targets", [(227, 0, (2.1, 3.1)), (0, 0, (None, None)), (227, 256, (1.9, None))])
def bench_jpeg_decoder(benchmark, report, program, crop, side, targets):
    _, _, folder = photographs()
    name = f"decoding a crop of {crop}" if crop else "decoding a whole photograph"
    if side:
        name = f"decoding, resizing to {side}, a crop of {crop}"
    compare(benchmark, report, [program, folder, "1" if QUICK else "5", str(crop), str(side)], name, targets)


def bench_large_photographs(benchmark, report, program):
    name = "decoding a crop of 224 of 2000 x 1500"
    compare(benchmark, report, [program, mosaics(), "1" if QUICK else "5", "224", "0"], name, (None, 20))
