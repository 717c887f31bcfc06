"""Memory that a loader and a net add to a process, and the cost of a batch once the ring is warm.

The cost is counted in page faults, allocations and objects.

As a program, `python memory.py CASE LMDB` is one case in a fresh process; it prints JSON.
"""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys

BATCH = 64
PREFETCH = 4
SHAPE = (BATCH, 3, 227, 227)
HUGE_PAGE = 2**21
RING = (PREFETCH + 1) * -(-(4 * BATCH * 3 * 227 * 227 + 8 * BATCH) // HUGE_PAGE) * HUGE_PAGE  # bytes
MB = 2**20


def anonymous():
    """This process's RssAnon in bytes: its memory that is not backed by a file."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))


def loader_batches(path):
    """A function that takes one batch of a new Loader and returns its arrays, and the number of batches in an epoch."""
    from fastbatch import LMDBSource, Loader, Transform

    transform = Transform(crop_size=227, mirror=True, mean_value=(104, 117, 123))
    loader = Loader(LMDBSource(path), transform, batch_size=BATCH, threads=2, prefetch=PREFETCH)

    def endless():
        while True:
            yield from loader

    batches = endless()

    def take():
        batch = next(batches)
        return batch["data"], batch["label"]

    return take, len(loader)


def net_of(layer):
    """A net with this data layer and a small layer after it, as a function that runs it once."""
    import nets

    pooling = "pooling_param { global_pooling: true }"
    return nets.net(layer, f'layer {{ name: "pool" type: "Pooling" bottom: "data" top: "pool" {pooling} }}').forward


def bare(path):
    """A bare interpreter with NumPy."""
    import numpy  # noqa: F401

    return {"anonymous": anonymous()}


def loader(path):
    """A Loader in steady state: after one epoch every page of the ring and of the database has been touched."""
    take, epoch = loader_batches(path)
    for _ in range(epoch + PREFETCH + 1):
        take()
    count = 2 * epoch
    before, faults = anonymous(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        take()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"anonymous": anonymous(), "growth": anonymous() - before, "faults": faults / count, "batches": count}


def allocations(path):
    """The same with allocations.c preloaded."""
    import numpy

    counter = ctypes.CDLL(os.environ["LD_PRELOAD"])
    take, epoch = loader_batches(path)
    for _ in range(epoch + PREFETCH + 1):
        take()
    count = 2 * epoch
    gc.disable()
    main, others = counter.allocations_by_main_thread(), counter.allocations_by_others()
    assert main > 0 and others > 0, "nothing was counted while the loader was made: allocations.c is not in use"
    for _ in range(count):
        take()
    main, others = counter.allocations_by_main_thread() - main, counter.allocations_by_others() - others
    objects = sys.getallocatedblocks()
    arrays = take()
    objects = sys.getallocatedblocks() - objects
    assert all(isinstance(array, numpy.ndarray) for array in arrays)
    return {"main": main / count, "others": others / count, "objects": objects, "batches": count}


def input_net(path):
    """A net with an Input layer."""
    shapes = f"shape {{ {' '.join(f'dim: {size}' for size in SHAPE)} }} shape {{ dim: {BATCH} }}"
    run = net_of(f'layer {{ name: "data" type: "Input" top: "data" top: "label" input_param {{ {shapes} }} }}')
    for _ in range(3):
        run()
    return {"anonymous": anonymous()}


def data_net(path):
    """The same net with our Data layer, its ring full."""
    import time

    import nets

    run = net_of(nets.data_layer(path, BATCH, PREFETCH, threads=2))
    for _ in range(3 * PREFETCH):
        run()
    time.sleep(0.2)
    return {"anonymous": anonymous()}


CASES = {case.__name__: case for case in (bare, loader, allocations, input_net, data_net)}


def run_case(case, path, **environment):
    """Runs a case in a fresh process. Returns what it printed."""
    command = [sys.executable, __file__, case.__name__, path]
    environment = {**os.environ, **environment}
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def bench_anonymous_memory(benchmark, report, database):
    import pytest

    from interleave import QUICK, Reported, in_turns

    pytest.importorskip("caffe._caffe")

    def side(case):
        return Reported(lambda: run_case(case, database))

    found = in_turns(
        benchmark,
        side(loader),
        {case.__name__: side(case) for case in (bare, input_net, data_net)},
        rounds=2 if QUICK else 5,
        pause=0,
    )

    def beside_ring(ours, without):
        return [(a["anonymous"] - b["anonymous"] - RING) / MB for a, b in zip(ours, without)]

    name = f"anonymous memory beside the ring of {RING // MB} MB"
    loaders = found["ours"]
    report.values(f"Loader: {name}", beside_ring(loaders, found["bare"]), "MB", at_most=64)
    report.values(f"Data layer: {name}", beside_ring(found["data_net"], found["input_net"]), "MB", at_most=64)
    growth = [each["growth"] / MB for each in loaders]
    report.values(f"Loader: anonymous memory grown in {loaders[0]['batches']} batches", growth, "MB", at_most=1)
    report.values("Loader: page faults for a batch", [each["faults"] for each in loaders], "", at_most=0.1)


def bench_allocations(benchmark, report, database, compiled):
    from interleave import QUICK

    counter = compiled("allocations", "-shared", "-fPIC")
    found = []
    rounds = 2 if QUICK else 5
    benchmark.pedantic(lambda: found.append(run_case(allocations, database, LD_PRELOAD=counter)), rounds=rounds)
    report.values("Loader: allocations by the workers for a batch", [each["others"] for each in found], "", at_most=0)
    report.values("Loader: allocations by the consumer for a batch", [each["main"] for each in found], "")
    blocks = [each["objects"] for each in found]
    report.values("Loader: blocks of Python's allocator that a batch and its two arrays hold", blocks, "")


if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](sys.argv[2])))
