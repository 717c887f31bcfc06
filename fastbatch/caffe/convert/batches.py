"""A separate program that checks a conversion: runs data layers of a net in Caffe and records their batches.

    python -m fastbatch.caffe.convert.batches TASK

TASK is what `run` takes, as JSON.
"""

import hashlib
import json
import sys
from pathlib import Path

import caffe
import numpy as np

from fastbatch.caffe import MemoryData
from fastbatch.caffe.layers.schema import EXAMPLE

FORWARDS = 20
SEED = 1701


def run(net, phase, level, stages, layers, wanted, result):
    """Write {"batches": {number: batches}}, or {"problem": text} if a layer raises, to the file `result`.

    Parameters
    ----------
    net, result : str
        Paths.
    phase, level, stages
        The state in which the net is built.
    layers : list of [str, str]
        Name and type of each layer that the net has in this state, in order. Caffe may insert others between them.
    wanted : list of int
        The indices of the `layers` to run.
    """
    try:
        written = {"batches": _batches(net, phase, level, stages, layers, wanted)}
    except Exception as problem:  # whatever a layer raises is a result of the check
        kind = next(kind for kind in type(problem).__mro__ if kind.__module__ in ("builtins", "fastbatch.errors"))
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        written = {"problem": f"{name}: {str(problem).split(EXAMPLE)[0]}"}
    Path(result).write_text(json.dumps(written))


def _batches(path, phase, level, stages, layers, wanted):
    caffe.set_mode_cpu()
    caffe.set_random_seed(SEED)
    net = caffe.Net(path, phase, level=level, stages=stages)
    numbers = _numbers(net, layers)
    batches = {number: [] for number in wanted}
    for number in wanted:
        _feed(net, numbers[number])
    for _ in range(FORWARDS):
        for number, found in batches.items():
            net._forward(numbers[number], numbers[number])
            found.append([_digests(net, top) for top in net._top_ids(numbers[number])])
    return batches


def _numbers(net, layers):
    """The indices of `layers` in the net, which has all of them in this order, and possibly others."""
    numbers, number = [], 0
    for name, kind in layers:
        while number < len(net.layers) and (net._layer_names[number], net.layers[number].type) != (name, kind):
            number += 1
        if number == len(net.layers):
            raise RuntimeError(f'Caffe did not build layer "{name}" ({kind})')
        numbers.append(number)
        number += 1
    return numbers


def _feed(net, number):
    """Give every MemoryData layer the same arrays. Caffe's own layer must be the first layer of its net."""
    layer = net.layers[number]
    if layer.type != "MemoryData" and not isinstance(layer, MemoryData):
        return
    batch_size, *image = net._blobs[net._top_ids(number)[0]].data.shape
    random, count = np.random.RandomState(SEED), 3 * batch_size  # FORWARDS is no multiple of 3
    data, labels = random.rand(count, *image).astype(np.float32), np.arange(count, dtype=np.float32)
    (layer if isinstance(layer, MemoryData) else net).set_input_arrays(data, labels)


def _digests(net, top):
    """(name, shape, a digest of each item's bytes) of a top."""
    data = net._blobs[top].data
    return (
        net._blob_names[top],
        data.shape,
        [hashlib.blake2b(item.tobytes(), digest_size=16).hexdigest() for item in data],
    )


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
