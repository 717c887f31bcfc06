"""fastbatch's own JPEG decoder against libjpeg-turbo: CPU time for a part of a photograph, one thread, in turns.

"resized" is what ImageData does: the whole photograph is resized to 256 x 256, and a crop of that is kept.

It needs no Caffe: `pytest bench/jpeg_decoder.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from database import photographs
from interleave import QUICK

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def program(compiled):
    """jpeg_decoder.c, compiled as the extensions are: not for this very processor."""
    sys.path.append(str(CHECKOUT))  # at the end: no fastbatch is imported from there
    from build_support.extensions import NATIVE, c_sources

    sources = [str(CHECKOUT / source) for source in c_sources("fastbatch.images._codec")]
    return compiled("jpeg_decoder", "-march=x86-64", "-I", str(CHECKOUT / NATIVE), *sources, "-ljpeg", "-lpng", "-lm")


@pytest.mark.parametrize("crop, side, target", [(227, 0, 2.1), (0, 0, None), (227, 256, 1.9)])
def bench_jpeg_decoder(benchmark, report, program, crop, side, target):
    _, _, folder = photographs()
    command = [program, folder, "1" if QUICK else "5", str(crop), str(side)]
    output = benchmark.pedantic(lambda: subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    libjpeg, own = zip(*(map(float, line.split()) for line in output.splitlines()))
    name = f"decoding a crop of {crop}" if crop else "decoding a whole photograph"
    if side:
        name = f"decoding, resizing to {side}, a crop of {crop}"
    report.ratio(f"{name}: libjpeg-turbo's CPU time against ours", libjpeg, own, at_least=target)
    report.values(f"{name}: ours", own, "us")
    report.values(f"{name}: libjpeg-turbo", libjpeg, "us")
