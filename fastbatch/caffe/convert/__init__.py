"""Rewrites the data layers of a net to ours, in its text: `python -m fastbatch convert`.

protobuf says what a net means, and is asked again when all is done: the new net must mean the old one, but for what was
to be changed. Whatever need not change stands in the new text as in the old, comments included.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Tuple

from caffe.proto import caffe_pb2
from google.protobuf import text_format

import fastbatch.caffe
from fastbatch.caffe.convert import text as prototxt
from fastbatch.caffe.convert.compare import check
from fastbatch.caffe.convert.upgrade import MOVED, upgraded


class _Layer(NamedTuple):
    """How one of Caffe's data layers becomes ours, which is the class of fastbatch.caffe with the name of Caffe's type."""

    messages: Tuple[str, ...]  # what goes into param_str; the first holds the source and must be there
    ignored: Tuple[str, ...] = ()  # fields, as message.field, that Caffe reads and never uses, and that our layer refuses


_LAYERS = {
    "Data": _Layer(("data_param", "transform_param"),
                   ignored=tuple(f"data_param.{name}" for name in (*MOVED, "rand_skip", "force_encoded_color"))),
    "ImageData": _Layer(("image_data_param", "data_param", "transform_param"),
                        ignored=tuple(f"image_data_param.{name}" for name in MOVED)),
    "HDF5Data": _Layer(("hdf5_data_param", "transform_param")),
    "WindowData": _Layer(("window_data_param", "data_param", "transform_param"),  # scale works in window_data_param, and only there
                         ignored=(*(f"window_data_param.{name}" for name in MOVED if name != "scale"), "transform_param.scale",
                                  "transform_param.force_color", "transform_param.force_gray")),
    "MemoryData": _Layer(("memory_data_param", "transform_param")),
}
_BEGINNING = 65536  # bytes of a file that show whether it is text
_LONGEST = 200  # characters of protobuf's that are passed on


class Conversion(NamedTuple):
    """What became of a net."""

    text: str
    layers: Tuple[caffe_pb2.LayerParameter, ...]  # those rewritten, as Caffe reads them in the old text
    notes: Tuple[str, ...]  # sentences on what a user should know


def convert(text):
    """Rewrite what can be rewritten of the net that `text` holds. Returns a Conversion; without a layer to rewrite, its text is `text`.

    ValueError if Caffe would not read the text as a net, with line and column. Thread-safe.
    """
    net = _read(text)
    lines = _lines_of_layers(text, net)
    new_text, notes = text, ()
    if net.layers:
        new_text, notes = upgraded(text, net)
        net = _read(new_text)
    edits, layers, said = [], [], []
    blocks = [field for field in prototxt.fields(new_text) if field.name == "layer"]
    for number, (block, layer, line) in enumerate(zip(blocks, net.layer, lines)):
        rule = _LAYERS.get(layer.type)
        if rule is None:
            continue
        place = f'layer "{layer.name}" ({layer.type}, line {line})'
        why_not = _why_not(layer, rule)
        if why_not:
            said.append(f"{place} is left as it is: {why_not}.")
            continue
        edits += _edits(new_text, block, layer, rule)
        said += [f"{place}: {path} is left out, because Caffe ignores it there." for path in _ignored(layer, rule)]
        if layer.type == "MemoryData":
            said.append(f"{place}: your program has to give it its arrays by fastbatch.caffe.set_input_arrays(net, data, labels) from now on, "
                        "because net.set_input_arrays(data, labels) knows Caffe's own layer only.")
        layers.append((number, layer))
    if not layers:
        return Conversion(text, (), tuple(said))
    new_text = prototxt.replaced(new_text, edits)
    _compare(net, layers, _read(new_text))
    return Conversion(new_text, tuple(layer for _, layer in layers), (*(f"{note}." for note in notes), *said))


def _read(text):
    if text.startswith("\ufeff"):
        raise ValueError("Caffe would not read it as a net: it begins with a byte order mark, which no editor shows; save it as UTF-8 without one")
    if "\0" in text:
        raise ValueError("it is no text but a binary file, or text in UTF-16: a net is a prototxt, in UTF-8")
    net = caffe_pb2.NetParameter()
    try:
        text_format.Parse(text, net)
        return net
    except text_format.ParseError as error:
        problem = error
    except RecursionError:
        raise ValueError("Caffe would not read it as a net: its messages are nested too deeply") from None
    try:
        solver = text_format.Parse(text, caffe_pb2.SolverParameter())
    except text_format.ParseError:
        raise ValueError(f"Caffe would not read it as a net: {_where(problem)}") from None
    files = [*filter(None, [solver.net, solver.train_net]), *solver.test_net]
    raise ValueError("it is a solver, not a net" + (f"; its net is in {' and '.join(files)}" if files else ""))


def _lines_of_layers(text, net):
    """The line on which each layer begins, less those that don't survive an upgrade."""
    blocks = [field for field in prototxt.fields(text) if field.name in ("layer", "layers")]
    gone = [layer.layer.type == "padding" for layer in net.layers] or [False] * len(blocks)
    return [text.count("\n", 0, block.start) + 1 for block, is_gone in zip(blocks, gone) if not is_gone]


def _where(error):
    """What protobuf says of a text, without its full stop. What it quotes may be as long as the file, and invisible."""
    line, column = error.GetLine(), error.GetColumn()
    what, prefix = str(error), f"{line}:{column} : "
    place = ""
    if what.startswith(prefix):
        what, place = what[len(prefix):], f"line {line}, column {column}: "
    what = what.rstrip(".") if len(what) <= _LONGEST else what[:_LONGEST] + "..."
    return place + "".join(one if one.isprintable() else ascii(one)[1:-1] for one in what)


def _why_not(layer, rule):
    """Why a layer cannot be ours, or "". """
    if not hasattr(fastbatch.caffe, layer.type):
        return f"this version of fastbatch has no layer {layer.type}"
    if not layer.HasField(rule.messages[0]):
        return f"it has no {rule.messages[0]}, with which Caffe itself would fail"
    if layer.HasField("python_param"):
        return "it has a python_param already"
    return ""


def _ignored(layer, rule):
    """The paths of what a layer has and Caffe never uses."""
    return [path for path in rule.ignored if _holder(layer, path).HasField(path.split(".")[1])]


def _holder(layer, path):
    return getattr(layer, path.split(".")[0])


def _edits(text, block, layer, rule):
    """The edits that make this layer ours."""
    edits = [(field.value_start, field.value_end, '"Python"') for field in block.named("type")]
    messages = block.named(*rule.messages)
    before = prototxt.indent(text, messages[0].start)
    multiline = "\n" in text[block.value_start:block.value_end]
    lines = []
    for message in messages:
        lines += _lines(text, message, [path.split(".")[1] for path in rule.ignored if path.split(".")[0] == message.name])
    if not multiline:
        lines = [(" ".join(code for code, _ in lines), "")]
    items = ['module: "fastbatch.caffe"', f'layer: "{layer.type}"', *_param_str(lines)]
    new = prototxt.message("python_param", items, before, multiline, prototxt.newline(text))
    return edits + prototxt.replacing(text, messages, new)


def _lines(text, message, ignored):
    """The lines of a message's own text without the fields `ignored`, each as code and comment, less the indent of the first one."""
    start, end = message.start, message.value_end
    cuts = [(left - start, right - start, new) for left, right, new in prototxt.replacing(text, message.named(*ignored))]
    before = prototxt.indent(text, start)
    lines = prototxt.replaced(text[start:end], cuts).split("\n")
    return [prototxt.code_and_comment(line[len(before):] if line.startswith(before) else line.lstrip()) for line in lines]


def _param_str(lines):
    """The field param_str, with a string for each line: a string of protobuf's text may not hold an end of line, nor a comment."""
    code = "".join(code for code, _ in lines)
    quote = '"' if "'" in code and '"' not in code else "'"
    items, key = [], "param_str: "
    last = max(number for number, (code, _) in enumerate(lines) if code)
    for number, (code, comment) in enumerate(lines):
        string = ""
        if code:
            code = code.replace("\\", "\\\\").replace(quote, "\\" + quote)
            string = quote + code + (" " if number < last else "") + quote
        items.append((key + string + ("  " if string and comment else "") + comment).rstrip())
        key = " " * len(key)
    return items


def _compare(net, layers, new_net):
    """Makes sure that `new_net` is `net` with these layers rewritten. It cannot fail, but a net that is wrong trains without a word."""
    expected = caffe_pb2.NetParameter()
    expected.CopyFrom(net)
    found = caffe_pb2.NetParameter()
    found.CopyFrom(new_net)
    for number, layer in layers:
        rule = _LAYERS[layer.type]
        for path in _ignored(layer, rule):
            _holder(expected.layer[number], path).ClearField(path.split(".")[1])
        ours = found.layer[number]
        text_format.Merge(ours.python_param.param_str, ours)
        ours.type = ours.python_param.layer
        ours.ClearField("python_param")
    if expected != found:
        raise RuntimeError("fastbatch would have made another net of this one, which is a bug: please report it with the net")


def run(net, out=None, with_check=False):
    """`python -m fastbatch convert NET [-o OUT] [--check]`.

    Returns its exit status: 0, 1 if the check failed, 2 if nothing could be done.
    """
    try:
        with open(net, "rb") as file:
            data = file.read(_BEGINNING)
            if b"\0" not in data:  # else it is no net, and may be a database that is larger than the memory
                data += file.read()
        # What isn't UTF-8 may stand in comments, and is kept.
        conversion = convert(data.decode("utf-8", "surrogateescape"))
    except (OSError, ValueError) as problem:
        return _fail(f"{net} cannot be converted: {getattr(problem, 'strerror', None) or problem}.")
    for note in conversion.notes:
        _say(f"{net}: {note}")
    if not conversion.layers:
        _say(f"{net}: it has no data layer to rewrite, and stays as it is.")
    new = conversion.text.encode("utf-8", "surrogateescape")
    if with_check and conversion.layers:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "converted.prototxt")
            path.write_bytes(new)
            if not check(net, str(path), conversion.layers, _say):
                _say("The new net is not written.")
                return 1
    try:
        _write(new, out)
    except OSError as problem:
        return _fail(f"{out or 'standard output'} cannot be written: {problem.strerror}.")
    return 0


def _write(data, out):
    """To the file `out`, which is the old one or the new one at any moment, or to standard output."""
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    out = os.path.realpath(out)  # a link stays one
    if os.path.exists(out) and not os.path.isfile(out):  # /dev/stdout, a pipe
        Path(out).write_bytes(data)
        return
    handle, part = tempfile.mkstemp(prefix=os.path.basename(out) + ".", dir=os.path.dirname(out))
    try:
        with open(handle, "wb") as file:
            file.write(data)
        if os.path.exists(out):
            shutil.copymode(out, part)
        else:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o666 & ~mask)
        os.replace(part, out)
    except BaseException:
        os.unlink(part)
        raise


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _fail(text):
    _say(text)
    return 2
