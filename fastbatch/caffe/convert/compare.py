"""Whether two nets get the same batches, in the real Caffe: `python -m fastbatch convert --check`.

Each net runs in a process of its own, one after the other: the draws of one cannot disturb the other's, a LevelDB can be
open only once on a machine, and where Caffe aborts, the report goes on. What comes back is a digest of every image.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Tuple

import caffe
import numpy as np
from caffe.proto import caffe_pb2

from fastbatch.caffe import MemoryData

FORWARDS = 20
SEED = 1701
_LIMIT = 600  # seconds that a process may take; with prefetch: 0 Caffe waits for ever
_NOT_FED = "pycaffe can give arrays to a net's first layer only"
_MISSING = re.compile("No such file|File not found|Failed to open source file")  # in Caffe's words and in ours
_PHASES = {caffe_pb2.TRAIN: "TRAIN", caffe_pb2.TEST: "TEST"}


class State(NamedTuple):
    """A state that Caffe can build a net in, as in NetState."""

    phase: int
    level: int = 0
    stages: Tuple[str, ...] = ()

    def __str__(self):
        level = f", level {self.level}" if self.level else ""
        return f"phase {_PHASES[self.phase]}{level}" + "".join(f", stage {stage}" for stage in self.stages)


def check(original, converted, layers, say):
    """Compare FORWARDS batches of each data layer of two net files, in each phase, and in what other states their rules ask for.

    layers: the LayerParameters of the data layers as they stand in the original; in the converted net they have the same names. say: called
    with each line of the report. Returns True if every layer was compared and every batch is identical to the last bit.
    """
    say(f"--check: {FORWARDS} batches of each data layer in Caffe, random seed {SEED}")
    good, missing, unseen = True, False, {layer.name for layer in layers}
    for state in _states(layers):
        here = [layer for layer in layers if included(layer, state)]
        if not here:
            continue
        theirs = _run(original, state, [(layer.name, layer.type) for layer in here])
        ours = _run(converted, state, [(layer.name, "Python") for layer in here])
        failed = [(name, result) for name, result in (("original", theirs), ("converted", ours)) if isinstance(result, str)]
        for name, why in failed:
            say(f"{state}: Caffe cannot run the {name} net: {why}")
        if failed:
            good = False
            missing = missing or any(_MISSING.search(why) for _, why in failed)
            unseen -= {layer.name for layer in here}
            continue
        for layer in here:
            if layer.name not in theirs and layer.name not in ours:
                continue  # the net itself names stages, and a rule keeps the layer out of these
            unseen.discard(layer.name)
            difference = _difference(theirs.get(layer.name), ours.get(layer.name))
            good = good and not difference
            say(f'{state}, layer "{layer.name}": {difference or "identical: " + _shapes(ours[layer.name])}')
    if missing:
        say(f"Paths in a net are relative to the folder in which Caffe is started, here {os.getcwd()}: start the check where you train")
    for name in sorted(unseen):
        say(f'layer "{name}": its include and exclude rules keep it out of every state that was tried, so it was not compared')
    good = good and not unseen
    say("The batches are identical to the last bit." if good else "The batches are not shown to be identical.")
    return good


def included(layer, state):
    """Whether Caffe builds this layer in a net of this state: Net::FilterNet and Net::StateMeetsRule of its net.cpp."""
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule, state):
    return ((not rule.HasField("phase") or rule.phase == state.phase)
            and (not rule.HasField("min_level") or state.level >= rule.min_level)
            and (not rule.HasField("max_level") or state.level <= rule.max_level)
            and set(rule.stage) <= set(state.stages) and not set(rule.not_stage) & set(state.stages))


def _states(layers):
    """Both phases; and for each include rule that asks for more, a state that has it."""
    states = [State(phase) for phase in _PHASES]
    for layer in layers:
        for rule in layer.include:
            for phase in [rule.phase] if rule.HasField("phase") else _PHASES:
                level = rule.min_level if rule.HasField("min_level") else min(0, rule.max_level)
                states.append(State(phase, level, tuple(rule.stage)))
    return list(dict.fromkeys(states))


def _difference(theirs, ours):
    """What differs between the batches of one layer, or ""; each side a list of batches, these lists of (shape, digests)."""
    if theirs == _NOT_FED:
        return f"NOT COMPARED: {_NOT_FED}"
    if not theirs or not ours:
        return f"DIFFERENT: Caffe did not build it in the {'original' if not theirs else 'converted'} net"
    for number, (batch, other) in enumerate(zip(theirs, ours)):
        if len(batch) != len(other):
            return f"DIFFERENT: {len(batch)} tops in the original net, {len(other)} in the converted one"
        for top, ((name, shape, digests), (_, other_shape, other_digests)) in enumerate(zip(batch, other)):
            where = f'DIFFERENT: top {top} ("{name}") of batch {number}'
            if shape != other_shape:
                return f"{where} has shape {_shape(shape)} in the original net, {_shape(other_shape)} in the converted one"
            items = [item for item, (one, another) in enumerate(zip(digests, other_digests)) if one != another]
            if items:
                return f"{where} differs in {len(items)} of {len(digests)} items, the first of them item {items[0]}"
    return ""


def _shapes(batches):
    return ", ".join(f"{name} {_shape(shape)}" for name, shape, _ in batches[-1])


def _shape(shape):
    return "x".join(map(str, shape))


# Each side in a process of its own

def _run(path, state, layers):
    """{layer name: its batches}, or in words why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result"), Path(folder, "log")
        task = dict(path=path, state=state, layers=layers, result=str(result))
        with open(log, "wb") as output:
            try:
                status = subprocess.run([sys.executable, "-m", __name__, json.dumps(task)], stdin=subprocess.DEVNULL, stdout=output,
                                        stderr=output, timeout=_LIMIT).returncode
            except subprocess.TimeoutExpired:
                return f"it was not done after {_LIMIT} seconds"
        if status == 0:
            return json.loads(result.read_text())
        ended = f"it ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with exit status {status}"
        return f"{ended}. {_last_words(log.read_bytes().decode('utf-8', 'replace'))}"


def _last_words(log):
    """What Caffe or Python gave as the reason."""
    lines = [line for line in log.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("F") and "]" in line]
    return (fatal or lines[-1:] or ["It said nothing."])[0]


def _child(path, state, layers, result):
    state, layers = State(*state), {tuple(layer) for layer in layers}
    caffe.set_mode_cpu()
    caffe.set_random_seed(SEED)
    net = caffe.Net(path, state.phase, level=state.level, stages=list(state.stages))
    numbers = [number for number, name in enumerate(net._layer_names) if (name, net.layers[number].type) in layers]
    batches = {net._layer_names[number]: [] if _feed(net, number) else _NOT_FED for number in numbers}
    for _ in range(FORWARDS):
        for number in numbers:
            of_layer = batches[net._layer_names[number]]
            if of_layer != _NOT_FED:
                net._forward(number, number)
                of_layer.append([_digests(net, top) for top in net._top_ids(number)])
    Path(result).write_text(json.dumps(batches))


def _feed(net, number):
    """Gives the same arrays to every MemoryData layer, Caffe's or ours. Whether that can be done; True for other layers."""
    layer = net.layers[number]
    ours = isinstance(layer, MemoryData)
    if not ours and layer.type != "MemoryData":
        return True
    if not ours and number:
        return False
    batch_size, *image = net._blobs[net._top_ids(number)[0]].data.shape
    random, count = np.random.RandomState(SEED), 3 * batch_size  # FORWARDS is no multiple of 3
    data, labels = random.rand(count, *image).astype(np.float32), np.arange(count, dtype=np.float32)
    (layer if ours else net).set_input_arrays(data, labels)
    return True


def _digests(net, top):
    """(name, shape, a digest of each item's bytes) of a top."""
    data = net._blobs[top].data
    return net._blob_names[top], data.shape, [hashlib.blake2b(item.tobytes(), digest_size=16).hexdigest() for item in data]


if __name__ == "__main__":
    _child(**json.loads(sys.argv[1]))
