"""Compares the batches of two nets in the real Caffe: `python -m fastbatch convert --check`.

The nets run in separate processes, one after the other. The random draws of one cannot disturb those of the other, only
one process can open a LevelDB, and the report continues if Caffe aborts. Each process returns a digest of every image.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from caffe.proto import caffe_pb2

from fastbatch._text import counted
from fastbatch.caffe.convert import batches, glog
from fastbatch.caffe.convert import text as prototxt
from fastbatch.caffe.convert.batches import FORWARDS, SEED
from fastbatch.caffe.layers.params import text_of

_LIMIT = 600  # seconds that a process may take; with prefetch: 0, Caffe waits for ever
_MISSING = re.compile("No such file|File not found|Failed to open source file")  # in Caffe's words and in ours
_PHASES = {caffe_pb2.TRAIN: "TRAIN", caffe_pb2.TEST: "TEST"}


class State(NamedTuple):
    """A state in which Caffe can build a net, as in NetState."""

    phase: int
    level: int = 0
    stages: tuple[str, ...] = ()

    def __str__(self):
        level = f", level {self.level}" if self.level else ""
        return f"phase {_PHASES[self.phase]}{level}" + "".join(f", stage {stage}" for stage in self.stages)


def check(original, converted, conversion, say):
    """Compare FORWARDS batches of each data layer of two nets, in each phase and each state that a rule requires.

    Parameters
    ----------
    original : str
        The path of the old net.
    converted : str
        The path of the new net.
    conversion : Conversion
        The conversion of the old net.
    say : callable
        Called with each line of the report.

    Returns
    -------
    bool
        Whether every layer was compared and all batches are identical bit for bit.
    """
    say(f"--check: {FORWARDS} batches of each data layer in Caffe, random seed {SEED}")
    with tempfile.TemporaryDirectory() as folder:
        comparison = _Comparison(original, converted, conversion, say, folder)
        for state in _states(conversion.layers):
            comparison.compare(state)
    if comparison.missing:
        say(
            f"Paths in a net are relative to the folder in which Caffe is started, here {os.getcwd()}: "
            "start the check where you train"
        )
    for number in sorted(comparison.unseen):
        say(
            f"{comparison.layer(number)}: its include and exclude rules keep it out of every state that was tried, "
            "so it was not compared"
        )
    good = comparison.good and not comparison.unseen
    say("The batches are identical to the last bit." if good else "The batches are not shown to be identical.")
    return good


class _Comparison:
    """The comparison of two nets.

    good: whether no difference has been found. missing: whether a file was missing. unseen: layers not yet compared.
    """

    def __init__(self, original, converted, conversion, say, folder):
        self._original, self._converted, self._say, self._folder = original, converted, say, folder
        self._net, self._rewritten = conversion.net, conversion.numbers
        self._texts = conversion.upgraded, Path(converted).read_bytes().decode("utf-8", "surrogateescape")
        self.good, self.missing, self.unseen = True, False, set(conversion.numbers)

    def layer(self, number):
        """A layer, for messages. Caffe allows several layers of one name."""
        name = self._net.layer[number].name
        same = sum(layer.name == name for layer in self._present) > 1
        tops = f", with tops {', '.join(map(text_of, self._net.layer[number].top))}" if same else ""
        return f'layer "{text_of(name)}"{tops}'

    def compare(self, state):
        """Compare the layers that a state has."""
        # Of the net's own state, Caffe adds the stages.
        rules = state._replace(stages=(*state.stages, *self._net.state.stage))
        members = [number for number, layer in enumerate(self._net.layer) if included(layer, rules)]
        self._present = [self._net.layer[number] for number in members]
        here = [number for number in members if number in self._rewritten]
        self.unseen -= set(here)
        # pycaffe can give arrays to the first layer of a net only. Others are compared in separate nets.
        apart = [
            number
            for number in here
            if self._net.layer[number].type == "MemoryData" and (number != members[0] or self._net.input)
        ]
        together = [number for number in here if number not in apart]
        if together:
            theirs = self._run(self._original, state, members, together, "original")
            ours = self._run(self._converted, state, members, together, "converted")
            if isinstance(theirs, str):
                theirs, ours = self._alone(state, together, theirs, ours)
            self._report(state, together, theirs, ours)
        for number in apart:
            self._report(state, [number], *self._run_alone(state, [number]))

    def _alone(self, state, numbers, theirs, ours):
        """The batches of the data layers in nets without other layers, or the reason why the nets do not run."""
        alone = self._run_alone(state, numbers)
        if any(isinstance(result, str) for result in alone):
            return theirs, alone[1] if isinstance(alone[1], str) else ours
        self._say(f"{state}: Caffe cannot run the original net, so its data layers alone are compared: {theirs}")
        return alone

    def _run_alone(self, state, numbers):
        paths = []
        for text, name in zip(self._texts, ("original", "converted")):
            path = Path(self._folder, f"{name}.prototxt")
            path.write_bytes(_only(text, numbers).encode("utf-8", "surrogateescape"))
            paths.append((str(path), name))
        return [self._run(path, state, numbers, numbers, name) for path, name in paths]

    def _run(self, path, state, members, wanted, name):
        """{number of a layer: its batches}, or the reason why there are none."""
        kinds = dict.fromkeys(self._rewritten, "Python") if name == "converted" else {}
        layers = [
            (text_of(self._net.layer[number].name), kinds.get(number, self._net.layer[number].type))
            for number in members
        ]
        found = _run(
            dict(
                net=path,
                phase=state.phase,
                level=state.level,
                stages=state.stages,
                layers=layers,
                wanted=[members.index(number) for number in wanted],
            )
        )
        return found if isinstance(found, str) else {members[int(index)]: of_layer for index, of_layer in found.items()}

    def _report(self, state, numbers, theirs, ours):
        failed = [
            (name, result) for name, result in (("original", theirs), ("converted", ours)) if isinstance(result, str)
        ]
        for name, why in failed:
            self._say(f"{state}: Caffe cannot run the {name} net: {why}")
            self.good = False
            self.missing = self.missing or bool(_MISSING.search(why))
        if not failed:
            for number in numbers:
                difference = _difference(theirs[number], ours[number])
                self.good = self.good and not difference
                self._say(f"{state}, {self.layer(number)}: {difference or 'identical: ' + _shapes(ours[number])}")


def included(layer, state):
    """Whether Caffe builds this layer in a net of this state: Net::FilterNet and Net::StateMeetsRule of its net.cpp."""
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule, state):
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and set(rule.stage) <= set(state.stages)
        and not set(rule.not_stage) & set(state.stages)
    )


def _states(layers):
    """Both phases, and a state for each include rule that requires more."""
    states = [State(phase) for phase in _PHASES]
    for layer in layers:
        for rule in layer.include:
            for phase in [rule.phase] if rule.HasField("phase") else _PHASES:
                level = rule.min_level if rule.HasField("min_level") else min(0, rule.max_level)
                states.append(State(phase, level, tuple(rule.stage)))
    return list(dict.fromkeys(states))


def _only(text, numbers):
    """The text of a net with only these layers, and without inputs."""
    fields = prototxt.fields(text)
    layers = [field for field in fields if field.name == "layer"]
    # By their beginning, because the elements of a list begin and end with the list, which must be there only once.
    rest = {field.start: field for field in fields if field.name != "layer" and not field.name.startswith("input")}
    parts = [text[field.start : field.end] for field in rest.values()]
    parts += [f"layer {text[layers[number].value_start : layers[number].value_end]}" for number in numbers]
    return "\n".join([*parts, ""])


def _difference(theirs, ours):
    """The difference between two lists of batches of a layer, or "". A batch is a list of (name, shape, digests)."""
    for number, (batch, other) in enumerate(zip(theirs, ours)):
        if len(batch) != len(other):
            return f"DIFFERENT: {counted(len(batch), 'top')} in the original net, {len(other)} in the converted one"
        for top, ((name, shape, digests), (_, other_shape, other_digests)) in enumerate(zip(batch, other)):
            where = f'DIFFERENT: top {top} ("{name}") of batch {number}'
            if shape != other_shape:
                return (
                    f"{where} has shape {_shape(shape)} in the original net, {_shape(other_shape)} in the converted one"
                )
            items = [item for item, (one, another) in enumerate(zip(digests, other_digests)) if one != another]
            if items:
                return f"{where} differs in {len(items)} of {len(digests)} items, the first of them item {items[0]}"
    return ""


def _shapes(of_layer):
    return ", ".join(f"{name} {_shape(shape)}" for name, shape, _ in of_layer[-1])


def _shape(shape):
    return "x".join(map(str, shape))


def _run(task):
    """The batches of a task for `batches.run`, or the reason why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result"), Path(folder, "log")
        with open(log, "wb") as output:
            try:
                status = subprocess.run(
                    [sys.executable, "-m", batches.__name__, json.dumps(dict(task, result=str(result)))],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **glog.SETTINGS},
                    timeout=_LIMIT,
                ).returncode
            except subprocess.TimeoutExpired:
                return f"it was not finished after {_LIMIT} seconds"
        if status == 0:
            found = json.loads(result.read_text())
            return found.get("problem") or found["batches"]
        ended = f"it ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with exit status {status}"
        return f"{ended}. {_last_words(log.read_bytes().decode('utf-8', 'replace'))}"


def _last_words(log):
    """The reason that Caffe or Python reported."""
    return (glog.errors(log, "F") or [line for line in log.splitlines() if line.strip()][-1:] or ["It said nothing."])[
        0
    ]
