"""From Loader() to its first batch in a fresh process.

The reference is the time that one thread of plain C takes for a batch in untouched memory.

As a program, `python first_batch.py LMDB THREADS` is that fresh process. It prints the milliseconds of the first batch,
and of the first batch after a loop was left early, when every page of the ring has been touched before.
"""

import subprocess
import sys
import time
from pathlib import Path

BATCH = 64
NATIVE = Path(__file__).resolve().parent.parent / "fastbatch" / "native"


def measure(path, threads):
    """(milliseconds of the first batch, of a first batch into warm memory)"""
    from fastbatch import LMDBSource, Loader, Transform

    source = LMDBSource(path)
    transform = Transform(crop_size=227, mirror=True, mean_value=(104, 117, 123))
    begin = time.perf_counter()
    with Loader(source, transform, batch_size=BATCH, threads=threads) as loader:
        batches = iter(loader)
        next(batches)
        cold = time.perf_counter() - begin
        while loader.stats().ready < loader.stats().slots:
            time.sleep(1e-3)
        begin = time.perf_counter()
        batches.close()
        next(iter(loader))
        warm = time.perf_counter() - begin
    return 1e3 * cold, 1e3 * warm


def bench_first_batch(benchmark, report, database, compiled):
    from fastbatch.cores import usable_cores
    from interleave import ROUNDS, Reported, in_turns

    threads = usable_cores()
    sources = [
        str(NATIVE / name)
        for name in (
            "pixels/transform.c",
            "pixels/pixels.c",
            "pixels/forms.c",
            "pixels/cut.c",
            "images/resize.c",
            "pixels/kernels.c",
            "files/datum.c",
        )
    ]
    one_batch = compiled("one_batch", "-I", str(NATIVE), *sources, "-llmdb", "-lm")
    warm = []

    def ours():
        command = [sys.executable, __file__, database, str(threads)]
        cold_time, warm_time = map(float, subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split())
        warm.append(warm_time)
        return cold_time

    def plain():
        return float(subprocess.run([one_batch, database, str(BATCH)], check=True, stdout=subprocess.PIPE).stdout)

    times = in_turns(benchmark, Reported(ours), {"plain": Reported(plain)}, 2 * ROUNDS)
    allowed = [1.2 * each / threads + 2 for each in times["plain"]]
    name = f"first batch, {threads} thread{'s' * (threads > 1)}"
    allowed_name = f"{name}: of 1.2 x (plain C on one thread / {threads}) + 2 ms"
    report.ratio(allowed_name, times["ours"], allowed, "%", at_most=100)
    report.values(f"{name}: from Loader() to next(), fresh process", times["ours"], "ms")
    report.values("one batch, one thread, plain C, untouched memory", times["plain"], "ms")
    report.values(f"{name}: memory warm", warm, "ms")


if __name__ == "__main__":
    print(*measure(sys.argv[1], int(sys.argv[2])))
