"""Image files that are not in memory: fetched ahead or not, with as many threads as cores and with more.

Before each epoch, the files' pages are dropped from the system's page cache (POSIX_FADV_DONTNEED). The figures say
something about the disk on which the user's cache is, and about no other.
"""

import math
import os
from pathlib import Path

import pytest

pytest.importorskip("cv2")

from database import photographs
from fastbatch import ImageListSource, Loader, Transform
from fastbatch.sources._image_list import fetch_if_slower
from interleave import Reported, in_turns

TRAIN = Transform(crop_size=227, mirror=True, mean_value=(104, 117, 123))


@pytest.mark.parametrize("threads", [2, 8])
def bench_cold_files(benchmark, report, threads):
    _, path, folder = photographs()
    files = sorted(Path(folder).iterdir())
    source = ImageListSource(path, folder)

    def epoch(cold, ahead):
        if cold:
            drop(files)
        former = fetch_if_slower(150e-6 if ahead else math.inf)
        try:
            with Loader(source, TRAIN, batch_size=50, shuffle=True, seed=0, threads=threads) as loader:
                for _ in loader:
                    pass
                return loader.stats().samples_per_second
        finally:
            fetch_if_slower(former)

    sides = {"as they come": (True, False), "warm": (False, True), "warm, never": (False, False)}
    others = {name: Reported(lambda how=how: epoch(*how)) for name, how in sides.items()}
    rates = in_turns(benchmark, Reported(lambda: epoch(True, True)), others)
    name = f"cold files, {threads} threads"
    report.ratio(f"{name}: fetched ahead, against as they come", rates["ours"], rates["as they come"])
    report.ratio(f"{name}: fetched ahead, of warm files", rates["ours"], rates["warm"], "%")
    report.ratio(
        f"warm files, {threads} threads: if slow ones would be fetched", rates["warm"], rates["warm, never"], "%"
    )
    report.values(name, rates["ours"], "img/s")


def drop(files):
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
