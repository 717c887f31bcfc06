"""Nets for the tests of `python -m fastbatch convert`, and what these share."""

import shutil
import subprocess
import sys

import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format

needs_tool = pytest.mark.skipif(
    not shutil.which("upgrade_net_proto_text"), reason="Caffe's upgrade_net_proto_text is not installed"
)

DATA = 'data_param { source: "db" backend: LMDB batch_size: 4 }'
V2 = f'layer {{ name: "data" type: "Data" top: "data" top: "label" {DATA} }}\n'

TRAIN_AND_TEST = """\
# The net of a test: every line is kept.
name: "net"   # its name
layer {
  name: "data"  # the same name in both phases
  type: "Data"
  top: "data"
  top: "label"
  include { phase: TRAIN }
  # what is done to an image
  transform_param {
    crop_size: 7
    mirror: true
    mean_file: "mean.binaryproto"   # by hand
    scale: 0.003906250
  }
  data_param {
    source: "db"
    # how many
    batch_size: 4
    backend: LMDB
  }
}
layer {
  name: "data"
  type: "Data"
  top: "data"
  top: "label"
  include { phase: TEST }
  transform_param { crop_size: 7 mean_value: 1.50 mean_value: 2 mean_value: 3e0 }
  data_param { source: "db" batch_size: 3 backend: LMDB }
}
"""

CONVERTED = """\
# The net of a test: every line is kept.
name: "net"   # its name
layer {
  name: "data"  # the same name in both phases
  type: "Python"
  top: "data"
  top: "label"
  include { phase: TRAIN }
  # what is done to an image
  python_param {
    module: "fastbatch.caffe"
    layer: "Data"
    param_str: 'transform_param { '
               '  crop_size: 7 '
               '  mirror: true '
               '  mean_file: "mean.binaryproto" '  # by hand
               '  scale: 0.003906250 '
               '} '
               'data_param { '
               '  source: "db" '
               # how many
               '  batch_size: 4 '
               '  backend: LMDB '
               '}'
  }
}
layer {
  name: "data"
  type: "Python"
  top: "data"
  top: "label"
  include { phase: TEST }
  python_param {
    module: "fastbatch.caffe"
    layer: "Data"
    param_str: 'transform_param { crop_size: 7 mean_value: 1.50 mean_value: 2 mean_value: 3e0 } '
               'data_param { source: "db" batch_size: 3 backend: LMDB }'
  }
}
"""

IN_PLACE = TRAIN_AND_TEST.replace(
    '  type: "Data"\n',
    """  type: "Python"
  python_param { module: "fastbatch.caffe" layer: "Data" }
""",
)

V1 = """\
layers {
  name: "data"
  type: DATA   # 5
  top: "data"
  top: "label"
  data_param {
    source: "db"
    backend: LMDB
    scale: 0.00390625   # of a byte
    batch_size: 4
    mirror: true crop_size: 7
    mean_file: "mean.binaryproto"
  }
  transform_param {
    scale: 3
  }
}
"""

V0 = """\
name: "v0"  # zero
input: "extra" input_dim: 1 input_dim: 2 input_dim: 3 input_dim: 4
# the data
layers {
  layer { name: "data" type: "data"
    source: "db"  # a LevelDB
    batchsize: 4 scale: 0.00390625 meanfile: "mean.binaryproto" cropsize: 7 mirror: true rand_skip: 3 }
  top: "data" top: "label"
}
layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "data" top: "pad" }
# a convolution
layers { layer { name: "conv" type: "conv" num_output: 4 kernelsize: 5 blobs_lr: 1. blobs_lr: 2. } \
bottom: "pad" top: "conv" }
"""

REST = """\
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""

REST_V1 = """\
layers { name: "ip" type: INNER_PRODUCT bottom: "data" top: "ip" blobs_lr: 1 blobs_lr: 2 weight_decay: 1 weight_decay: 0
         inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.01 } } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "ip" bottom: "label" top: "loss" }
"""


def parse(text):
    return text_format.Parse(text, caffe_pb2.NetParameter())


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "fastbatch", "convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
    )


def save(text, name="net.prototxt"):
    with open(name, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    return name


def random_text(message, chance):
    """A message as text in randomly varied styles."""
    parts = []
    for field, value in message.ListFields():
        values = value if field.label == field.LABEL_REPEATED else [value]
        written = []
        for one in values:
            if field.type == field.TYPE_MESSAGE:
                brackets = chance.choice(["{}", "<>"])
                written.append(brackets[0] + random_text(one, chance) + brackets[1])
            elif field.type == field.TYPE_STRING:
                middle = chance.randrange(len(one) + 1)
                written.append(
                    chance.choice([f'"{one}"', f"'{one}'", f"\"{one[:middle]}\"{gap(chance)}'{one[middle:]}'"])
                )
            elif field.type == field.TYPE_ENUM:
                written.append(chance.choice([field.enum_type.values_by_number[one].name, str(one)]))
            else:
                written.append(str(one).lower() if isinstance(one, bool) else repr(one))
        colon = ":" if field.type != field.TYPE_MESSAGE or chance.random() < 0.3 else ""
        if field.label == field.LABEL_REPEATED and field.type != field.TYPE_MESSAGE and chance.random() < 0.3:
            written = ["[" + f"{gap(chance)},".join(written) + "]"]
        parts += [
            f"{field.name}{gap(chance)}{colon}{gap(chance)}{one}{chance.choice([' ', ';', ',', ''])}" for one in written
        ]
    if not any(field.label == field.LABEL_REPEATED for field, _ in message.ListFields()):
        chance.shuffle(parts)
    return gap(chance) + "".join(part + (gap(chance) or " ") for part in parts)


def gap(chance):
    return chance.choice(["", "", " ", " ", "\n", "\n    ", "\t", " # a { comment: \"'\n", "\n  # and another }\n  "])
