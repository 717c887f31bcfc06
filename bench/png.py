"""PNG images with libdeflate, against libpng alone, decoded one after the other on one thread."""

import glob

import pytest

pytest.importorskip("cv2")
import cv2

from database import photographs
from fastbatch import decode_image
from fastbatch.images._codec import use_libdeflate
from interleave import QUICK, Loop, in_turns

IMAGES = 4 if QUICK else 40
KINDS = {
    "photographs": (lambda image: image, []),
    "photographs, compression 3": (lambda image: image, [cv2.IMWRITE_PNG_COMPRESSION, 3]),
    "masks": (lambda image: image[:, :, 0] // 13, []),
}


@pytest.mark.parametrize("kind", KINDS)
def bench_png(benchmark, report, kind):
    if not use_libdeflate(True):
        pytest.skip("needs libdeflate")
    convert, options = KINDS[kind]
    paths = sorted(glob.glob(f"{photographs()[2]}/**/*.jpg", recursive=True))[:IMAGES]
    files = [cv2.imencode(".png", convert(cv2.imread(path)), options)[1].tobytes() for path in paths]
    try:
        rates = in_turns(benchmark, side(files, True), {"libpng": side(files, False)})
    finally:
        use_libdeflate(True)
    report.ratio(f"PNG, {kind}: against libpng", rates["ours"], rates["libpng"], at_least=1.5)
    report.values(f"PNG, {kind}", rates["ours"], "img/s")


def side(files, with_libdeflate):
    def decode_all():
        use_libdeflate(with_libdeflate)
        for data in files:
            decode_image(data, "unchanged")

    return Loop(decode_all, len(files), skip=0)
