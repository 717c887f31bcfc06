"""A shuffled, sharded loader over ten million samples: opening it, and saving and restoring a position anywhere.

As a program, `python position.py` measures in this process and prints JSON.
"""

import json
import random
import statistics
import subprocess
import sys
import time

SAMPLES = 10_000_000
POINTS = 200


def measure():
    """Milliseconds to open a loader, MB that it adds, and milliseconds to save and to restore at random positions."""
    import numpy

    from fastbatch import ArraySource, Loader
    from memory import MB, anonymous

    source = ArraySource(numpy.broadcast_to(numpy.uint8(0), SAMPLES))
    Loader(source, threads=2).close()  # what only a process's first loader costs is measured by first_batch.py
    before, begin = anonymous(), time.perf_counter()
    loader = Loader(source, batch_size=64, shuffle=True, seed=1, rank=1, ranks=8, threads=2)
    found = {"open": 1e3 * (time.perf_counter() - begin)}
    next(iter(loader))
    found["memory"] = (anonymous() - before) / MB
    saves, restores = [], []
    state, batches = loader.state_dict(), len(loader)
    for _ in range(POINTS):
        state["epoch"], state["batch"] = random.randrange(2**32), random.randrange(batches)
        begin = time.perf_counter()
        loader.load_state_dict(state)
        restores.append(1e3 * (time.perf_counter() - begin))
        next(iter(loader))
        begin = time.perf_counter()
        after = loader.state_dict()
        saves.append(1e3 * (time.perf_counter() - begin))
        assert after == {**state, "batch": state["batch"] + 1}
    loader.close()
    found.update(save=statistics.median(saves), restore=statistics.median(restores))
    found.update(slowest_save=max(saves), slowest_restore=max(restores), bytes=len(json.dumps(state)))
    return found


def bench_position(benchmark, report):
    from interleave import QUICK

    found = []

    def once():
        output = subprocess.run([sys.executable, __file__], check=True, stdout=subprocess.PIPE).stdout
        found.append(json.loads(output))

    benchmark.pedantic(once, rounds=2 if QUICK else 7)

    def values(what):
        return [each[what] for each in found]

    report.values("opening a shuffled shard of 10 million samples", values("open"), "ms", at_most=50)
    report.values("its memory, with the first batch", values("memory"), "MB", at_most=10)
    report.values("saving a position, the slowest of 200", values("slowest_save"), "ms", at_most=1)
    report.values("restoring a position, median of 200", values("restore"), "ms", at_most=1)
    report.values("restoring a position, the slowest of 200", values("slowest_restore"), "ms")
    report.values("bytes of a state as JSON", values("bytes"), "", at_most=99)


if __name__ == "__main__":
    print(json.dumps(measure()))
