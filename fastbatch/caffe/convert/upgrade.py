"""Upgrades the text of nets in Caffe's old formats to today's, the only one with Python layers.

V1 (`layers { type: DATA ... }`) is still common. It is rewritten here, field by field, as UpgradeV1LayerParameter and
UpgradeNetDataTransformation of Caffe's upgrade_proto.cpp would do. Caffe's own tool would drop every comment and
reformat everything.

V0 (`layers { layer { ... } }`, of 2013) is very rare, and its fields are arranged very differently. Caffe's own tool
upgrades it, block by block. Text outside the blocks is preserved.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from fastbatch.caffe.convert import glog
from fastbatch.caffe.convert import text as prototxt
from fastbatch.caffe.layers.params import MOVED

_TYPES = {
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "NONE": "",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SLICE": "Slice",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "TANH": "TanH",
    "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData",
}

# V1's lists with one value for each blob of a layer, and the name of the value in today's param { }.
_PARAM = {"blobs_lr": "lr_mult", "weight_decay": "decay_mult", "param": "name", "blob_share_mode": "share_mode"}

# In data layers of these types, Caffe moves the fields of MOVED in this message to transform_param, where they replace
# what is there.
_MOVED_FROM = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
_TOOL = "upgrade_net_proto_text"


def upgraded(text, net):
    """(text, notes): a V0 or V1 net as text in today's format, and sentences on what could not be preserved.

    `net` is the NetParameter that Caffe reads from `text`. Raises ValueError if Caffe would reject such a net, or if it
    is of format V0 and Caffe's upgrade tool cannot be found.
    """
    old = [layer.HasField("layer") for layer in net.layers]
    if net.layer:
        raise ValueError("it has both `layer` and `layers` blocks, which Caffe refuses: write all of it with `layer`")
    if all(old):
        return _upgraded_v0(text, net)
    if any(old):
        raise ValueError(
            "some of its `layers` blocks hold a `layer` block (format V0) and others do not (V1), which Caffe reads as "
            "a different net: use one format throughout"
        )
    edits = []
    for block, layer in zip(_layers(text), net.layers):
        edits += _v1_edits(text, block, layer)
    return prototxt.replaced(text, edits), []


def _layers(text):
    return [field for field in prototxt.fields(text) if field.name == "layers"]


def _v1_edits(text, block, layer):
    kind = layer.LayerType.Name(layer.type)
    edits = [
        (block.start, block.start + len("layers"), "layer"),
        *((field.value_start, field.value_end, f'"{_TYPES[kind]}"') for field in block.named("type")),
    ]
    return edits + _param_edits(text, block) + _transform_edits(text, block, _MOVED_FROM.get(kind))


def _param_edits(text, block):
    old = block.named(*_PARAM)
    params = {}
    for name, new_name in _PARAM.items():
        for number, field in enumerate(block.named(name)):
            params.setdefault(number, []).append(f"{new_name}: {text[field.value_start : field.value_end]}")
    lines = [f"param {{ {' '.join(params[number])} }}" for number in sorted(params)]
    return prototxt.replacing(text, old, _separator(text, old).join(lines)) if lines else []


def _transform_edits(text, block, name):
    if name is None:
        return []
    old = [field for message in block.named(name) for field in message.named(*MOVED)]
    if not old:
        return []
    moved = [f"{field.name}: {text[field.value_start : field.value_end]}" for field in old]
    edits = prototxt.replacing(text, old)
    for target in block.named("transform_param"):
        edits += prototxt.replacing(text, target.named(*(field.name for field in old)))
        separator = _separator(text, target.fields)
        inside = target.value_start + 1
        behind = "" if text[inside].isspace() else " "
        return [*edits, (inside, inside, "".join(separator + item for item in moved) + behind)]
    source = block.named(name)[0]
    before, end_of_line = prototxt.indent(text, source.start), prototxt.newline(text)
    new = prototxt.message("transform_param", moved, before, "\n" in text[block.start : block.end], end_of_line)
    return [*edits, (source.end, source.end, _separator(text, [source]) + new)]


def _separator(text, fields):
    """The separator of two fields: a space, or a line break and an indent if the first of `fields` begins a line."""
    if not fields or text[text.rfind("\n", 0, fields[0].start) + 1 : fields[0].start].strip():
        return " "
    return prototxt.newline(text) + prototxt.indent(text, fields[0].start)


def _upgraded_v0(text, net):
    """Replace each block by the result of Caffe's tool, preceded by the comments from inside the block."""
    new_text, notes = _run_tool(text)
    new = [field for field in prototxt.fields(new_text) if field.name == "layer"]
    old = _layers(text)
    padding = [layer.layer.type == "padding" for layer in net.layers]  # these become `pad` of the next layer
    if net.input and new_text[new[0].start : new[0].end].find('type: "Input"') > 0:
        del new[0]  # made from the net's `input` fields, which Caffe still reads
    if len(new) != len(old) - sum(padding):
        raise ValueError(
            f"from its {len(old)} `layers` blocks, {_TOOL} made {len(new)}, which cannot be matched: convert the "
            f"result of {_TOOL} instead"
        )
    edits, end_of_line, blocks = [], prototxt.newline(text), iter(new)
    for field, is_padding in zip(old, padding):
        before = prototxt.indent(text, field.start)
        comments = [
            comment
            for _, comment in map(prototxt.code_and_comment, text[field.start : field.end].split("\n"))
            if comment
        ]
        lines = comments
        if not is_padding:
            block = next(blocks)
            lines = comments + new_text[block.start : block.end].split("\n")
        edits += prototxt.replacing(text, [field], (end_of_line + before).join(lines))
    return prototxt.replaced(text, edits), [*notes, f"its format is V0: Caffe's {_TOOL} wrote its layers anew"]


def _run_tool(text):
    tool = shutil.which(_TOOL)
    if tool is None:
        raise ValueError(
            f"its format is V0, of 2013, which only Caffe's own {_TOOL} can upgrade, and that is not on the PATH: it "
            "is in Debian's package caffe and in build/tools of a Caffe built by hand"
        )
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old.prototxt"), Path(folder, "new.prototxt")
        old.write_bytes(text.encode("utf-8", "surrogateescape"))
        done = subprocess.run(
            [tool, str(old), str(new)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **glog.SETTINGS},
        )
        said = glog.errors(done.stdout.decode("utf-8", "replace"))
        # 1: it lost something, as Caffe does when it reads such a net
        if done.returncode not in (0, 1) or not new.exists():
            raise ValueError(
                f"its format is V0, and {_TOOL} failed on it (exit status {done.returncode}): {' '.join(said)}"
            )
        return new.read_bytes().decode("utf-8", "surrogateescape"), [f"{_TOOL}: {line}" for line in said]
