"""Rewrites the data layers in the text of a net to fastbatch's: `python -m fastbatch convert`.

Caffe's own parser reads the net before and after. The new net must equal the old one except for these layers. All other
text stays unchanged, including comments.
"""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from caffe.proto import caffe_pb2
from google.protobuf import text_format

from fastbatch.caffe import LAYERS
from fastbatch.caffe.convert import rewrite
from fastbatch.caffe.convert import text as prototxt
from fastbatch.caffe.convert.reading import read
from fastbatch.caffe.convert.upgrade import upgraded
from fastbatch.caffe.layers.params import text_of
from fastbatch.caffe.runtime.layer_param import LayerParam

# Layers without bottoms that read no data.
_NO_DATA = ("DummyData", "Input", "Parameter", "Python")


class Conversion(NamedTuple):
    """A net and the result of its conversion.

    Attributes
    ----------
    text : str
        The new net.
    upgraded : str
        The old net in today's format.
    net : NetParameter
        What `upgraded` means.
    numbers : tuple of int
        The indices of the layers of `net` that were rewritten.
    notes : tuple of str
        Sentences for the user.
    """

    text: str
    upgraded: str
    net: caffe_pb2.NetParameter
    numbers: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def layers(self):
        """The layers that were rewritten, as Caffe reads them in the old net."""
        return tuple(self.net.layer[number] for number in self.numbers)


def convert(text, param_str=False):
    """Rewrite the data layers of a net.

    Parameters
    ----------
    text : str
        The net. Bytes that are not UTF-8 are represented as by decode("utf-8", "surrogateescape").
    param_str : bool
        Whether to write the parameters of the layers into param_str, which every Caffe passes to Python layers. If
        layers cannot read their layer parameter in this Caffe, the parameters are always written there.

    Returns
    -------
    Conversion
        If there is no layer to rewrite, its text is `text`.

    Raises
    ------
    ValueError
        If Caffe would not read the text as a net. The message says where and why, without a final period.

    Thread-safety: any thread may call this.
    """
    net = _read_net(text)
    lines = _lines_of_layers(text, net)
    old_text, notes = text, []
    if net.layers:
        old_text, notes = upgraded(text, net)
        net = _read_net(old_text)
    hidden = "" if param_str else _why_hidden()
    if hidden:
        notes = [*notes, f"the parameters go into param_str, because {hidden}"]
    edits, numbers, said = [], [], []
    expected = caffe_pb2.NetParameter()
    expected.CopyFrom(net)
    blocks = [field for field in prototxt.fields(old_text) if field.name == "layer"]
    for number, (block, layer, line) in enumerate(zip(blocks, net.layer, lines)):
        where = f'layer "{text_of(layer.name)}" ({text_of(layer.type)}, line {line})'
        if layer.type not in LAYERS:
            if layer.top and not layer.bottom and layer.type not in _NO_DATA:
                said.append(f"{where} is left unchanged: fastbatch has no layer of this type.")
            continue
        try:
            ours, ignored = _converted(layer)
            if param_str or hidden:
                edits += _in_param_str(old_text, block, ours, ignored)
            else:
                edits += rewrite.in_place(old_text, block, layer.type, ignored)
        except ValueError as problem:
            said.append(f"{where} is left unchanged: {getattr(problem, 'reason', problem)}".rstrip(".") + ".")
            continue
        said += [f"{where}: {'.'.join(path)} is left out, because Caffe ignores it there." for path in ignored]
        if LAYERS[layer.type].conversion_note:
            said.append(f"{where}: {LAYERS[layer.type].conversion_note}.")
        numbers.append(number)
        expected.layer[number].CopyFrom(ours)
    if not numbers:
        return Conversion(text, old_text, net, (), tuple(said))
    new_text = prototxt.replaced(old_text, edits)
    _compare(expected, read(new_text, caffe_pb2.NetParameter), numbers)
    return Conversion(new_text, old_text, net, tuple(numbers), (*(f"{note}." for note in notes), *said))


def _read_net(text):
    if "\0" in text:
        raise ValueError("it is a binary file or text in UTF-16, and a net is a prototxt, in UTF-8")
    try:
        return read(text, caffe_pb2.NetParameter)
    except ValueError as problem:
        raise ValueError(_solver(text) or f"Caffe would not read it as a net: {problem}") from None


def _solver(text):
    """The message for a text that is a solver, of this Caffe or of a fork; "" if it is not a solver."""
    try:
        fields = prototxt.fields(text)
    except ValueError:
        return ""
    names = {field.name for field in fields}
    own = set(caffe_pb2.SolverParameter.DESCRIPTOR.fields_by_name) - set(
        caffe_pb2.NetParameter.DESCRIPTOR.fields_by_name
    )
    if not names & own or names & {"layer", "layers"}:
        return ""
    files = [
        text[field.value_start : field.value_end].strip("\"'")
        for field in fields
        if field.name in ("net", "train_net", "test_net")
    ]
    if files:
        return f"it is a solver, not a net; its net is in {' and '.join(files)}"
    inside = [field for field in fields if field.name in ("net_param", "train_net_param", "test_net_param")]
    if inside:
        where = " and ".join(f"{field.name} {{ }} (line {_line(text, field)})" for field in inside)
        return (
            f"it is a solver, with its net in {where}: move what is between the brackets to a separate file, convert "
            "that file, and name it in the solver (net, train_net, test_net)"
        )
    return "it is a solver, not a net"


def _line(text, field):
    return text.count("\n", 0, field.start) + 1


def _lines_of_layers(text, net):
    """The line on which each layer begins, without the layers that an upgrade removes."""
    blocks = [field for field in prototxt.fields(text) if field.name in ("layer", "layers")]
    gone = [layer.layer.type == "padding" for layer in net.layers] or [False] * len(blocks)
    return [_line(text, block) for block, is_gone in zip(blocks, gone) if not is_gone]


def _converted(layer):
    """(fastbatch's layer, the fields left out). Raises ValueError with the reason if the layer cannot be converted."""
    kind = LAYERS[layer.type]
    if layer.HasField("python_param"):
        raise ValueError("it has a python_param already")
    ours = caffe_pb2.LayerParameter()
    ours.CopyFrom(layer)
    ours.type, ours.python_param.module, ours.python_param.layer = "Python", "fastbatch.caffe", layer.type
    ignored = [tuple(path.split(".")) for path in kind.schema.ignored_in(layer)]
    for message, name in ignored:
        getattr(ours, message).ClearField(name)
    kind.check(kind.schema.parse("", LayerParam(ours)))
    return ours, ignored


def _in_param_str(text, block, ours, ignored):
    """The edits that move a layer's parameters into param_str.

    Fastbatch's layer reads them there with protobuf's Python parser. If that parser does not read the text as Caffe
    does, the parameters are written anew, without comments.
    """
    kind = ours.python_param.layer
    schema = LAYERS[kind].schema
    parameters = schema.parse("", LayerParam(ours)).SerializeToString(deterministic=True)
    lines = rewrite.parameters(text, block, schema.messages, ignored)
    try:
        same = schema.parse(" ".join(code for code, _ in lines)).SerializeToString(deterministic=True) == parameters
    except ValueError:
        same = False
    if not same:
        code = " ".join(
            f"{name} {{ {text_format.MessageToString(getattr(ours, name), as_one_line=True)} }}"
            for name in schema.messages
            if ours.HasField(name)
        )
        try:
            schema.parse(code)
        except ValueError:
            raise ValueError("one of its strings is not UTF-8, and param_str holds only UTF-8") from None
        lines = [(code, "")]
    return rewrite.in_param_str(text, block, kind, schema.messages, lines)


def _compare(expected, found, numbers):
    """Verify that the new net is the expected one: a wrong net would train without an error."""
    for number in numbers:
        layer = found.layer[number]
        if layer.python_param.param_str:
            parsed = LAYERS[layer.python_param.layer].schema.parse(layer.python_param.param_str)
            for field, value in parsed.ListFields():
                getattr(layer, field.name).CopyFrom(value)
            layer.python_param.ClearField("param_str")
    if expected.SerializeToString(deterministic=True) != found.SerializeToString(deterministic=True):
        raise RuntimeError(
            "fastbatch would have changed what this net means, which is a bug: please report it with the net"
        )


@functools.cache
def _why_hidden():
    """Why layers cannot read their layer parameter in this Caffe, as the end of a sentence; "" if they can.

    Tries a layer that needs no files, in a separate process: Caffe writes pages to standard error when it builds a net.
    """
    net = (
        'layer { name: "data" type: "Python" top: "data" top: "label" '
        'python_param { module: "fastbatch.caffe" layer: "MemoryData" } '
        "memory_data_param { batch_size: 1 channels: 1 height: 1 width: 1 } }"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.prototxt")
        path.write_text(net)
        program = "import sys, caffe; caffe.Net(sys.argv[1], caffe.TEST)"
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "GLOG_minloglevel": "2"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    return "" if done.returncode == 0 else "this Caffe does not show them to a Python layer anywhere else"
