"""The first epoch with an index of JPEG files from a file: against one without an index, and one that makes it.

CPU time, which says more than the clock about one thread: crops of photographs, of a list and of a database. Beside it,
what `python -m fastbatch index` makes of them.
"""

import os
import time

import pytest

pytest.importorskip("cv2")

from database import photographs
from fastbatch import ImageListSource, LMDBSource, Loader, Transform
from interleave import QUICK, Reported, in_turns

TRAIN = Transform(crop_size=227, mirror=True, mean_value=(104, 117, 123))
SMALLEST = Transform(crop_size=1)  # with which the command reads an image's codes and hardly any pixel


@pytest.mark.parametrize("kind", ["files", "LMDB"])
def bench_index_file(benchmark, report, tmp_path, kind):
    database, path, folder = photographs()
    index = tmp_path / "index"

    def open_source(**options):
        return LMDBSource(database, "color", **options) if kind == "LMDB" else ImageListSource(path, folder, **options)

    def epoch(source, transform=TRAIN):
        """CPU microseconds for an image of a new loader's first epoch."""
        begin = time.process_time()
        with Loader(source, transform, batch_size=50, threads=1, prefetch=1, shuffle=True, seed=0) as loader:
            for _batch in loader:
                pass
        return 1e6 * (time.process_time() - begin) / images

    def first(**options):
        with open_source(**options) as source:
            return epoch(source)

    def make():
        if index.exists():
            index.unlink()
        with open_source(index_file=index) as source:
            return epoch(source, SMALLEST)

    images = len(ImageListSource(path, folder))
    make()
    size = os.path.getsize(index)
    with open_source() as known:
        epoch(known)
        others = {
            "none": Reported(lambda: first(index_bytes=0)),
            "made": Reported(first),
            "known": Reported(lambda: epoch(known)),
            "command": Reported(make),
        }
        taken = in_turns(benchmark, Reported(lambda: first(index_file=index)), others, rounds=2 if QUICK else 25)
    name = f"first epoch of {kind}, index from a file"
    report.ratio(f"{name}: without an index", taken["none"], taken["ours"])
    report.ratio(f"{name}: making one in memory", taken["made"], taken["ours"])
    report.ratio(f"{name}: index in memory", taken["known"], taken["ours"])
    report.values(f"{name}: CPU time", taken["ours"], "us/image")
    report.values(f"making the file of {kind}: CPU time", taken["command"], "us/image")
    report.values(f"the file of {kind}", [size / images], "bytes/image")
