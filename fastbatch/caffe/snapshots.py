"""Snapshots of a solver that include where its data layers are."""

import json
import os
from pathlib import Path

from caffe.proto import caffe_pb2

from fastbatch._text import counted
from fastbatch.caffe.layers.hdf5_data import HDF5Data
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.caffe.runtime._layer_param import serialized

__all__ = ["restore", "snapshot"]

_SUFFIX = ".fastbatch"
_MOST_BATCHES = 2**48


def snapshot(solver):
    """Save the solver, and where the fastbatch layers of its nets are. Returns the path of the solver's state.

    Like pycaffe's `solver.snapshot()`, with a small file beside Caffe's two: the name of the solver's state, with
    ".fastbatch" after it. Call it between two steps. `restore` goes on from it.

    Raises RuntimeError if a layer cannot be restored (`HDF5Data`), or the solver's snapshot_prefix cannot be read.
    """
    layers = {where: layer._position() for where, layer in _layers(solver)}
    try:
        param = caffe_pb2.SolverParameter.FromString(serialized(solver.param, "SolverParameter"))
    except (AttributeError, LookupError) as problem:
        raise RuntimeError(
            f"the solver's snapshot_prefix cannot be read here, because {problem}, so nobody knows where the snapshot "
            "goes: use `caffe train`, with resume: true in the layers"
        ) from None
    path = Path(f"{param.snapshot_prefix}_iter_{solver.iter}.solverstate")
    if param.snapshot_format == param.HDF5:
        path = path.with_name(path.name + ".h5")
    solver.snapshot()
    if not path.exists():
        raise RuntimeError(f"the solver has written no {path}")
    beside = Path(f"{path}{_SUFFIX}")
    new = beside.with_name(beside.name + ".new")
    new.write_text(json.dumps({"iteration": solver.iter, "layers": layers}))
    os.replace(new, beside)
    return str(path)


def restore(solver, file):
    """Go on where `snapshot` saved this solver: the weights, the iteration, and what each layer shows next.

    file: the path of the solver's state, as `snapshot` returns it.

    Like pycaffe's `solver.restore(file)`. The next step trains on the batch that was next then, with the same random
    draws, if the layers draw the same numbers when their nets are built: with the same random_seed in the solver, or
    seed in param_str.

    Raises ValueError if the files do not belong to this solver, or are damaged.
    """
    path = Path(f"{os.fspath(file)}{_SUFFIX}")
    iteration, positions = _read(path)
    layers = dict(_layers(solver))
    if set(layers) != set(positions):
        raise ValueError(
            f"{path} is of a solver whose fastbatch layers are {_list(positions)}; this solver's are {_list(layers)}"
        )
    for where, layer in layers.items():
        if positions[where]["made_of"] != layer._made_of:
            raise ValueError(
                f"the layer {where} has another batch_size or order, or has drawn other random numbers, than the one "
                f"in {path}, so its batches would be others. Give the solver the random_seed that it had, or the layer "
                "its seed"
            )
        then, now = positions[where].get("samples"), layer._samples()
        if None not in (then, now) and then != now:
            raise ValueError(
                f"the layer {where} reads a data set of {counted(now, 'sample')}, and in {path} it has {then}, so its "
                "batches would be others. Restore it with the data set that it had"
            )
    solver.restore(os.fspath(file))
    if solver.iter != iteration:
        raise ValueError(f"{file} is of iteration {solver.iter}, and {path} of iteration {iteration}")
    for where, layer in layers.items():
        layer._go_to(positions[where])


def _read(path):
    """The iteration, and the layers' positions by name, in a file that snapshot() wrote."""
    try:
        saved = json.loads(path.read_text())
        iteration, positions = saved["iteration"], saved["layers"]
        numbers = [iteration, *(position["batches"] for position in positions.values())]
        lists = [position["made_of"] for position in positions.values()]
        sound = all(type(number) is int and 0 <= number < _MOST_BATCHES for number in numbers)
        sound = sound and all(isinstance(each, list) for each in lists)
        counts = [position.get("samples") for position in positions.values()]
        sound = sound and all(count is None or type(count) is int for count in counts)
    except FileNotFoundError:
        raise ValueError(
            f"there is no {path}, which fastbatch.caffe.snapshot(solver) writes. If solver.snapshot() or `caffe train` "
            "made the snapshot, nobody knows where the data layers were"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(
            f"{path} is damaged, or is not a file of fastbatch.caffe.snapshot(): restore an earlier snapshot. "
            "solver.restore() restores this one without it; the data layers then begin at their first batch"
        )
    return iteration, positions


def _layers(solver):
    """Pairs of a name, such as "train/data", and a layer of fastbatch's that has a position."""
    nets = [("train", solver.net), *((f"test {number}", net) for number, net in enumerate(solver.test_nets))]
    for role, net in nets:
        for name, layer in zip(net._layer_names, net.layers):
            if isinstance(layer, HDF5Data):
                raise RuntimeError(
                    f"{role}/{name} is an HDF5Data, which cannot be restored here, because it shares C's rand() with "
                    "the process: `caffe train --snapshot` can, with resume: true in the layer's param_str"
                )
            if isinstance(layer, PrefetchingLayer):
                yield f"{role}/{name}", layer


def _list(names):
    return ", ".join(sorted(names)) or "none"
