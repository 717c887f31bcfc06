"""`python -m fastbatch convert`: nets of each format, what is kept of them, what is refused, and the comparison in Caffe."""

import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

caffe = pytest.importorskip("caffe._caffe") and pytest.importorskip("caffe")
pytest.importorskip("lmdb")

from caffe.proto import caffe_pb2  # noqa: E402
from databases import datum, image_lmdb, images, write_leveldb, write_lmdb  # noqa: E402
from google.protobuf import text_format  # noqa: E402

import fastbatch.caffe  # noqa: E402
from fastbatch.cli import main  # noqa: E402
from fastbatch.caffe.convert import compare  # noqa: E402
from fastbatch.caffe import convert as converting  # noqa: E402
from fastbatch.caffe.convert import rewrite, text as prototxt, upgrade  # noqa: E402
from fastbatch.caffe.layers import schema as params  # noqa: E402
from fastbatch.caffe.runtime.layer_param import Block  # noqa: E402
from fastbatch.caffe.convert import convert  # noqa: E402

needs_tool = pytest.mark.skipif(not shutil.which("upgrade_net_proto_text"), reason="Caffe's upgrade_net_proto_text is not installed")

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


IN_BLOCK = (TRAIN_AND_TEST.replace('  type: "Data"\n', '''  type: "Python"
  python_param { module: "fastbatch.caffe" layer: "Data" }
'''))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a database db, its mean image whose labels are below 5."""
    monkeypatch.chdir(tmp_path)
    pictures = images(11, (3, 10, 9), seed=3)
    write_lmdb("db", [datum(picture, label % 5) for label, picture in enumerate(pictures)])
    mean = pictures.mean(axis=0, dtype=np.float32)[np.newaxis]
    (tmp_path / "mean.binaryproto").write_bytes(caffe.io.array_to_blobproto(mean).SerializeToString())
    return tmp_path


def parse(text):
    return text_format.Parse(text, caffe_pb2.NetParameter())


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "fastbatch", "convert", *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=120)


def save(text, name="net.prototxt"):
    with open(name, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    return name


# The text

def test_every_line_is_kept_but_those_of_the_layer():
    for param_str, converted in (False, IN_BLOCK), (True, CONVERTED):
        conversion = convert(TRAIN_AND_TEST, param_str)
        assert conversion.text == converted
        assert conversion.notes == () and [layer.name for layer in conversion.layers] == ["data", "data"]


@pytest.mark.parametrize("net", [IN_BLOCK, CONVERTED], ids=["block", "param_str"])
def test_a_converted_net_converts_to_itself(net):
    conversion = convert(net)
    assert conversion.text == net and conversion.layers == () and conversion.notes == ()


@pytest.mark.parametrize("text, expected", [
    # in a line of its own, where type has one
    ('layer {\r\n\tname: "x"\r\n\ttype: "Data"; # of "what"\r\n\tDATA\r\n}',
     'layer {\r\n\tname: "x"\r\n\ttype: "Python"; # of "what"\r\n\tOURS\r\n\tDATA\r\n}'),
    ('layer { type: "Data"\n    name: "x" DATA\n}', 'layer { type: "Python"\n    OURS\n    name: "x" DATA\n}'),
    ('  layer { type: "Data" name: "x"\nDATA }', '  layer { type: "Python" name: "x"\nOURS\nDATA }'),
    # behind type, where a line of its own would be in the middle of something
    ('layer { name: "x" type: "Data"DATA }', 'layer { name: "x" type: "Python" OURSDATA }'),
    ('layer { type: "Data" include {\n phase: TRAIN } DATA }', 'layer { type: "Python" OURS include {\n phase: TRAIN } DATA }'),
    ('layer { DATA type: "Data" } layer {\n}', 'layer { DATA type: "Python" OURS } layer {\n}'),
])
def test_where_the_new_line_goes(text, expected):
    conversion = convert(text.replace("DATA", DATA))
    assert conversion.text == expected.replace("OURS", 'python_param { module: "fastbatch.caffe" layer: "Data" }').replace("DATA", DATA)


def test_where_caffe_hides_the_block_parameters_go_into_param_str(monkeypatch):
    monkeypatch.setattr(converting, "_why_hidden", lambda: "of the moon")
    conversion = convert(TRAIN_AND_TEST)
    assert conversion.text == CONVERTED and conversion.notes == ("the parameters go into param_str, because of the moon.",)


def test_this_caffe_shows_the_block():
    converting._why_hidden.cache_clear()
    assert converting._why_hidden() == ""


def test_a_caffe_that_shows_nothing(monkeypatch):
    """As where pycaffe cannot be used in the process that is asked."""
    converting._why_hidden.cache_clear()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert converting._why_hidden() == "this Caffe does not show them to a Python layer anywhere else"
    converting._why_hidden.cache_clear()


def test_a_layer_on_one_line():
    assert convert(V2 + REST, True).text == ('layer { name: "data" type: "Python" top: "data" top: "label" python_param { '
                                       f"module: \"fastbatch.caffe\" layer: \"Data\" param_str: '{DATA}' }} }}\n") + REST
    assert f"param_str: '{DATA} transform_param {{ scale: 2 }}' }} }}" in convert(V2.replace("} }", "} transform_param { scale: 2 } }"), True).text


def test_v1_becomes_v2():
    old = "# old\nname: 'x';\n" + V1 + "\n# the rest\n" + REST_V1
    assert convert(old).text.startswith("""\
# old
name: 'x';
layer {
  name: "data"
  type: "Python"   # 5
  python_param { module: "fastbatch.caffe" layer: "Data" }
  top: "data"
  top: "label"
  data_param {
    source: "db"
    backend: LMDB
    # of a byte
    batch_size: 4
  }
  transform_param {
    scale: 0.00390625
    mirror: true
    crop_size: 7
    mean_file: "mean.binaryproto"
  }
}

# the rest
layer {""")
    conversion = convert(old, param_str=True)
    assert conversion.text == """\
# old
name: 'x';
layer {
  name: "data"
  type: "Python"   # 5
  top: "data"
  top: "label"
  python_param {
    module: "fastbatch.caffe"
    layer: "Data"
    param_str: 'data_param { '
               '  source: "db" '
               '  backend: LMDB '
               # of a byte
               '  batch_size: 4 '
               '} '
               'transform_param { '
               '  scale: 0.00390625 '
               '  mirror: true '
               '  crop_size: 7 '
               '  mean_file: "mean.binaryproto" '
               '}'
  }
}

# the rest
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
         inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


def test_what_caffe_ignores_is_left_out_and_said():
    text = V2.replace("batch_size: 4", "scale: 2 batch_size: 4, mean_file: 'x'; rand_skip: 3 crop_size: 5 mirror: true "
                      "force_encoded_color: true")
    assert convert(text).text == V2.replace('"Data"', '"Python" python_param { module: "fastbatch.caffe" layer: "Data" }').replace(": 4", ": 4,")
    conversion = convert(text, True)
    param_str = parse(conversion.text).layer[0].python_param.param_str
    assert param_str == 'data_param { source: "db" backend: LMDB batch_size: 4, }'
    place = 'layer "data" (Data, line 1): data_param.'
    assert [note[len(place):].split()[0] for note in conversion.notes] == [
        "scale", "mean_file", "crop_size", "mirror", "rand_skip", "force_encoded_color"]
    assert conversion.notes[0] == place + "scale is left out, because Caffe ignores it there."


@pytest.mark.parametrize("text", [
    'layer{name:"data"type:"Data"top:"data"top:"label"data_param{source:"db"backend:LMDB batch_size:4}}',
    'layer: { name: \'data\'; type: \'Da\' "ta", top: ["data", "label"] data_param: <source: \'db\' backend: 1; batch_size: 0x4;>; };',
    '# {\nlayer # {"\n{ name #:\n: "data" type: "Data" # "\n top: "data" data_param # <\n { source: "d" # {\n "b" '
    'batch_size: 4 backend: LMDB } }',
    'layer: [{ name: "data" type: "Data" data_param { source: "db" batch_size: 4 backend: LMDB } }, <name: "n" type: "Data" data_param '
    '{ source: "db" batch_size: 2 backend: LMDB }>]',
    r'''layer { type: "Data" data_param { source: "a\"b\\ '\061{#" backend: LMDB batch_size: 1 } transform_param { mean_file: '"}' } }''',
    "layer { type: 'Data' data_param { source: 'a#b}' backend: LMDB batch_size: 1 } }",
    'layer {\r\n  type: "Data"\r\n  data_param {\r\n    source: "db"  # x\r\n    backend: LMDB batch_size:\r\n    3\r\n  }\r\n}\r\n',
    'layer {\n\ttype: "Data"\n\tdata_param {\nsource:\n"db"\nbackend:\nLMDB\nbatch_size:\n3\n}\n\ttransform_param {}\n}',
    'layer { type: "Data" data_param { source: "caf\u00e9 \\303\\251" backend: LMDB batch_size: 1 } } # caf\udce9',
])
@pytest.mark.parametrize("param_str", [False, True], ids=["block", "param_str"])
def test_odd_formatting(text, param_str):
    conversion = convert(text, param_str)
    old, new = parse(text), parse(conversion.text)
    assert len(conversion.layers) == len(old.layer)
    for layer, ours in zip(old.layer, new.layer):
        assert (ours.type, ours.python_param.module, ours.python_param.layer) == ("Python", "fastbatch.caffe", "Data")
        read = params.DATA.parse(ours.python_param.param_str, Block(ours))
        assert (read.data_param, read.transform_param) == (layer.data_param, layer.transform_param)
        assert (ours.name, list(ours.top)) == (layer.name, list(layer.top))
    assert conversion.text.count("\r\n") == conversion.text.count("\n") or "\r" not in text
    assert conversion.text.count("#") == text.count("#")


def test_bytes_that_are_no_utf8_survive_in_comments(folder):
    save("# caf\udce9\n" + V2)
    assert main(["convert", "net.prototxt", "-o", "new.prototxt"]) == 0
    assert (folder / "new.prototxt").read_bytes().startswith(b"# caf\xe9\nlayer { ")


def test_nets_of_net_spec():
    net = caffe.NetSpec()
    net.data, net.label = caffe.layers.Data(source="db", backend=caffe.params.Data.LMDB, batch_size=4, ntop=2,
                                            include=dict(phase=caffe.TEST), transform_param=dict(mean_value=[1, 2.5, 3], mirror=True))
    net.ip = caffe.layers.InnerProduct(net.data, num_output=3)
    text = str(net.to_proto())
    conversion = convert(text, param_str=True)
    ours = parse(conversion.text).layer[0]
    assert ours.include[0].phase == caffe.TEST and "mean_value: 2.5" in ours.python_param.param_str
    assert conversion.text[conversion.text.index("layer {", 10):] == text[text.index("layer {", 10):]


def random_text(message, chance):
    """A message as text that a person in many moods might have written."""
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
                written.append(chance.choice([f'"{one}"', f"'{one}'", f"\"{one[:middle]}\"{blank(chance)}'{one[middle:]}'"]))
            elif field.type == field.TYPE_ENUM:
                written.append(chance.choice([field.enum_type.values_by_number[one].name, str(one)]))
            else:
                written.append(str(one).lower() if isinstance(one, bool) else repr(one))
        colon = ":" if field.type != field.TYPE_MESSAGE or chance.random() < 0.3 else ""
        if field.label == field.LABEL_REPEATED and field.type != field.TYPE_MESSAGE and chance.random() < 0.3:
            written = ["[" + f"{blank(chance)},".join(written) + "]"]
        parts += [f"{field.name}{blank(chance)}{colon}{blank(chance)}{one}{chance.choice([' ', ';', ',', ''])}" for one in written]
    if not any(field.label == field.LABEL_REPEATED for field, _ in message.ListFields()):
        chance.shuffle(parts)
    return blank(chance) + "".join(part + (blank(chance) or " ") for part in parts)


def blank(chance):
    return chance.choice(["", "", " ", " ", "\n", "\n    ", "\t", " # a { comment: \"'\n", "\n  # and another }\n  "])


def random_v1(chance):
    """A V1 net with a layer of each type, with all that V1 has of its own and what decides about data."""
    net = caffe_pb2.NetParameter(name="net")
    for value in caffe_pb2.V1LayerParameter.LayerType.values():
        layer = net.layers.add(name=f"layer {value}", type=value)
        layer.top.extend(["a", "b"][:chance.randrange(3)])
        layer.blobs_lr.extend([1, 0.5, 1e-5][:chance.randrange(4)])
        layer.weight_decay.extend([0, 2, 4][:chance.randrange(4)])
        layer.param.extend(["p", "", "q"][:chance.randrange(4)])
        layer.blob_share_mode.extend([0, 1][:chance.randrange(3)])
        layer.loss_weight.extend([1, 0.25][:chance.randrange(3)])
        for name in "data_param", "image_data_param", "window_data_param", "transform_param":
            if chance.random() < 0.7:
                param = getattr(layer, name)
                param.SetInParent()
                for field, setting in [("scale", 0.00390625), ("mean_file", f"{name} #"), ("crop_size", 227), ("mirror", False)]:
                    if chance.random() < 0.5:
                        setattr(param, field, setting)
        if chance.random() < 0.5:
            layer.data_param.batch_size = 3
            layer.include.add(phase=1, stage=["x", "y"])
            layer.convolution_param.weight_filler.type = "xavier"
    return net


def by_the_tool(text, folder):
    save(text, folder / "old.prototxt")
    subprocess.run(["upgrade_net_proto_text", str(folder / "old.prototxt"), str(folder / "new.prototxt")], check=True,
                   stderr=subprocess.DEVNULL)
    return parse((folder / "new.prototxt").read_text())


@needs_tool
@pytest.mark.parametrize("seed", range(12))
def test_v1_is_upgraded_as_by_caffes_own_tool(seed, tmp_path):
    chance = random.Random(seed)
    net = random_v1(chance)
    text = random_text(net, chance)
    assert parse(text) == net  # else the generator is wrong
    new, notes = upgrade.upgraded(text, net)
    found, expected = parse(new), by_the_tool(text, tmp_path)
    for layer in [*found.layer, *expected.layer]:  # the tool leaves an empty message where it looked for something to move
        if layer.type in ("Data", "ImageData", "WindowData"):
            for name in "data_param", "image_data_param", "window_data_param", "transform_param":
                if not getattr(layer, name).ByteSize():
                    layer.ClearField(name)
    assert found == expected and notes == []
    assert text.count("# and") / 2 < new.count("# and") <= text.count("# and")  # those in fields that go are lost


def test_v1_types_are_all_known():
    assert sorted(upgrade._TYPES) == sorted(caffe_pb2.V1LayerParameter.LayerType.keys())


@pytest.mark.parametrize("param_str", [False, True], ids=["block", "param_str"])
@pytest.mark.parametrize("seed", range(12))
def test_v2_nets_of_any_formatting_mean_the_same(seed, param_str):
    chance = random.Random(seed)
    net = caffe_pb2.NetParameter(name="net")
    for number in range(12):
        layer = net.layer.add(name=f"layer {number}", type=chance.choice(["Data", "Data", "Power"]), top=["a", "b"])
        layer.data_param.source = f"db #{number}"
        layer.data_param.backend, layer.data_param.batch_size = caffe_pb2.DataParameter.LMDB, 3
        layer.include.add(phase=chance.randrange(2), stage=["x"])
        for param in layer.data_param, layer.transform_param:
            for field, setting in [("scale", 1e-5), ("mean_file", "}"), ("crop_size", 227), ("mirror", True)]:
                if chance.random() < 0.4:
                    setattr(param, field, setting)
    text = random_text(net, chance)
    conversion = convert(text, param_str)
    new = parse(conversion.text)
    assert len(conversion.layers) == sum(layer.type == "Data" for layer in net.layer)
    for layer, ours in zip(net.layer, new.layer):
        if layer.type == "Power":
            assert ours == layer
            continue
        read = params.DATA.parse(ours.python_param.param_str, Block(ours))
        for field in "scale", "mean_file", "crop_size", "mirror":
            layer.data_param.ClearField(field)
        assert (read.data_param, read.transform_param, ours.include) == (layer.data_param, layer.transform_param, layer.include)
    old_blocks, new_blocks = ([whole[block.start:block.end] for block in prototxt.fields(whole) if block.name == "layer"]
                              for whole in (text, conversion.text))
    assert [new for new, layer in zip(new_blocks, net.layer) if layer.type == "Power"] == [
        old for old, layer in zip(old_blocks, net.layer) if layer.type == "Power"]


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
layers { layer { name: "conv" type: "conv" num_output: 4 kernelsize: 5 blobs_lr: 1. blobs_lr: 2. } bottom: "pad" top: "conv" }
"""


@needs_tool
def test_v0(tmp_path):
    conversion = convert(V0, param_str=True)
    old, new = by_the_tool(V0, tmp_path), parse(conversion.text)
    assert [layer.name for layer in old.layer] == ["input", "data", "conv"]
    assert list(new.input) == ["extra"] and new.layer[1] == old.layer[2]
    read = text_format.Parse(new.layer[0].python_param.param_str, caffe_pb2.LayerParameter())
    old.layer[1].data_param.ClearField("rand_skip")
    assert (read.data_param, read.transform_param) == (old.layer[1].data_param, old.layer[1].transform_param)
    for kept in 'name: "v0"  # zero\ninput: "extra" input_dim: 1', "# the data\n", "# a LevelDB\n", "# a convolution\nlayer {\n":
        assert kept in conversion.text
    assert conversion.notes[0] == "its format is V0: Caffe's upgrade_net_proto_text wrote its layers anew."
    assert convert(conversion.text).text == conversion.text


def test_v0_without_caffes_tool(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="V0, of 2013, which takes Caffe's own upgrade_net_proto_text to read, and that is not on"):
        convert(V0)


def test_the_line_that_is_named_is_the_old_one():
    net = "layers {\n  name: 'x'\n  type: RELU\n  blobs_lr: 1\n  blobs_lr: 2\n}\n" + V1
    conversion = convert(net + "layers { name: 'left' type: DATA top: 'left' }\n")
    assert len(conversion.layers) == 1
    assert conversion.notes[0].startswith('layer "left" (Data, line 24) is left as it is: data_param.source is missing.')


@needs_tool
def test_what_the_tool_says_of_a_v0_net_is_passed_on():
    conversion = convert(V0.replace('type: "data"', 'type: "data" num_output: 3'))
    assert len(conversion.layers) == 1
    assert "Unknown parameter num_output for layer type data" in conversion.notes[0]


# What is left, and what is refused

@pytest.mark.parametrize("layer, why", [
    ('type: "Data" transform_param { mirror: true }', "data_param.source is missing"),
    ('type: "Data" python_param { module: "x" } data_param { source: "db" backend: LMDB }', "it has a python_param already"),
])
def test_what_cannot_be_ours_is_left(layer, why):
    left = f'\nlayer {{ name: "left" {layer} }}\n'
    conversion = convert(left)
    assert (conversion.text, conversion.layers, conversion.notes) == (left, (), (f'layer "left" (Data, line 2) is left as it is: {why}.',))
    conversion = convert(left + V2)
    assert conversion.text.startswith(left) and len(conversion.layers) == 1 and len(conversion.notes) == 1


def test_windows_keep_the_scale_that_caffe_uses():
    text = ('layer { type: "WindowData" window_data_param { source: "x" scale: 2 mirror: true crop_size: 3 batch_size: 4 } data_param { prefetch: 2 } '
            "transform_param { scale: 5 crop_size: 3 force_color: true } }")
    conversion = convert(text, param_str=True)
    assert parse(conversion.text).layer[0].python_param.param_str == (
        "window_data_param { source: \"x\" scale: 2 batch_size: 4 } data_param { prefetch: 2 } transform_param { crop_size: 3 }")
    assert [note.split(": ")[1].split()[0] for note in conversion.notes] == [
        "window_data_param.crop_size", "window_data_param.mirror", "transform_param.force_color", "transform_param.scale"]


def test_what_a_program_has_to_change_is_said():
    text = '\nlayer { name: "in" type: "MemoryData" memory_data_param { batch_size: 3 channels: 1 height: 1 width: 1 } }'
    assert convert(text).notes == (
        'layer "in" (MemoryData, line 2): your program has to give it its arrays by fastbatch.caffe.set_input_arrays(net, data, labels) from '
        "now on, because net.set_input_arrays(data, labels) knows Caffe's own layer only.",)


@pytest.mark.parametrize("text, why", [
    ("layer {\n  nme: 'x'\n}",
     '^Caffe would not read it as a net: line 2, column 6: Message type "caffe.LayerParameter" has no field named "nme"$'),
    ("layer {", "Caffe would not read it as a net: line 1"),
    (V2 + "}", "Caffe would not read it as a net: line 2, column 1"),
    ("layer { data_param { } data_param { } }",
     'Caffe would not read it as a net: line 1, column 35: Non-repeated field "data_param" is specified multiple times$'),
    ("not a net", "Caffe would not read it as a net: line 1, column 5"),
    ('net: "a/train_val.prototxt" base_lr: 0.1', "^it is a solver, not a net; its net is in a/train_val.prototxt$"),
    ('train_net: "a" test_net: "b" test_net: "c"', "^it is a solver, not a net; its net is in a and b and c$"),
    ("base_lr: 0.1", "^it is a solver, not a net$"),
    ("base_lr: 0.1\ntest_net_param { layer { } } net_param { } net_param: { }", r"^it is a solver, with its net in test_net_param { } \(line 2\) "
     r"and net_param { } \(line 2\) and .*: write what stands between the brackets into a file of its own, convert that"),
    ("net: 'x.prototxt' reduced_by: 3 another { fork: 's' }", "^it is a solver, not a net; its net is in x.prototxt$"),
    ("\ufeff" + V2, "^Caffe would not read it as a net: it begins with a byte order mark"),
    (V2 + "# \0", "^it is no text but a binary file, or text in UTF-16"),
    (300 * "x" + "\n", "^Caffe would not read it as a net: line [12], column [01]: .{1,203}$"),
    (V2 + "\u200b", "line 2, column 1: Interpreting non ascii codepoint 226"),
    (V1 + V2, "both `layer` and `layers` blocks, which Caffe refuses"),
    (V1 + V0, r"\(format V0\) and others do not \(V1\)"),
])
def test_what_is_no_net_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        convert(text)


@pytest.mark.parametrize("param_str, edits", [(False, "in_block"), (True, "in_param_str")])
def test_a_wrong_edit_would_be_noticed(param_str, edits, monkeypatch):
    right = getattr(rewrite, edits)
    monkeypatch.setattr(rewrite, edits, lambda text, *more: [
        *((start, end, new.replace("batch_size: 4", "batch_size: 5")) for start, end, new in right(text, *more)),
        *([(text.index("4 }"), text.index("4 }") + 1, "5")] if edits == "in_block" else [])])
    with pytest.raises(RuntimeError, match="another net of this one, which is a bug"):
        convert(V2, param_str)


@pytest.mark.parametrize("text", ['a: "x', "a {", "a: [1", "a: [1 2]", "{}", "a: }", "a {}}", "a:", 5000 * "a {"], ids=lambda text: text[:10])
def test_the_scanner_ends_on_what_is_no_prototxt(text):
    with pytest.raises(ValueError):
        prototxt.fields(text)


def test_a_long_comment_behind_a_string():
    """It once took for ever: each # could have been the first of a comment of its own."""
    comment = 60 * "#" + "\n"
    assert [field.name for field in prototxt.fields(f'a: "x" {comment}{comment} "y" {comment}b {{ c: "z" {comment} }}')] == ["a", "b"]


# The command

def test_to_standard_output(folder):
    save(TRAIN_AND_TEST)
    done = command("net.prototxt")
    assert (done.returncode, done.stdout, done.stderr) == (0, IN_BLOCK, "")
    done = command("net.prototxt", "--param-str")
    assert (done.returncode, done.stdout, done.stderr) == (0, CONVERTED, "")


def test_over_the_old_net(folder, capsys):
    save(TRAIN_AND_TEST)
    (folder / "net.prototxt").chmod(0o640)
    (folder / "link").symlink_to("net.prototxt")
    before = sorted(folder.iterdir())
    assert main(["convert", "net.prototxt", "-o", "link"]) == 0
    assert (folder / "net.prototxt").read_text() == IN_BLOCK and (folder / "link").is_symlink()
    assert (folder / "net.prototxt").stat().st_mode & 0o777 == 0o640 and sorted(folder.iterdir()) == before
    assert capsys.readouterr() == ("", "")
    assert main(["convert", "net.prototxt", "-o", "net.prototxt", "--check"]) == 0
    assert (folder / "net.prototxt").read_text() == IN_BLOCK
    assert capsys.readouterr().err == "net.prototxt: it has no data layer to rewrite, and stays as it is.\n"


def test_what_cannot_be_done_ends_with_2(folder, capsys):
    save('net: "x.prototxt"', "solver.prototxt")
    save(V2)
    with open("large", "wb") as file:
        file.truncate(1 << 40)  # more than there is memory
    for arguments, why in [
        (["missing"], "missing cannot be converted: No such file or directory."),
        (["solver.prototxt"], "solver.prototxt cannot be converted: it is a solver, not a net; its net is in x.prototxt."),
        (["db/data.mdb"], "db/data.mdb cannot be converted: it is no text but a binary file, or text in UTF-16: a net is a prototxt, in UTF-8."),
        (["large"], "large cannot be converted: it is no text but a binary file, or text in UTF-16: a net is a prototxt, in UTF-8."),
        (["net.prototxt", "-o", "no/net"], "no/net cannot be written: No such file or directory."),
        (["net.prototxt", "-o", "."], ". cannot be written: Is a directory."),
    ]:
        assert main(["convert", *arguments]) == 2
        assert capsys.readouterr() == ("", why + "\n")


# The comparison in Caffe, and training

@pytest.mark.parametrize("text", [
    TRAIN_AND_TEST + REST,
    V1 + REST_V1,
    # two layers in one net, one of which draws for itself; names in quotes of both kinds
    V2.replace("} }", "} transform_param { crop_size: 5 } }") +
    "layer { name: 'more' type: 'Data' top: 'more' data_param { source: 'db' backend: LMDB batch_size: 3 } "
    "transform_param { mirror: true } }",
])
def test_the_check_says_that_batches_are_identical(text, folder):
    save(text)
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 0 and done.stdout == "", done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "--check: 20 batches of each data layer in Caffe, random seed 1701"
    assert lines[-1] == "The batches are identical to the last bit."
    assert len(lines) - 2 == (4 if "more" in text else 2) and all(": identical: " in line for line in lines[1:-1]), lines
    assert convert(text).text == (folder / "new.prototxt").read_text()


@pytest.mark.parametrize("text", [TRAIN_AND_TEST + REST, V1 + REST_V1], ids=["V2", "V1"])
def test_the_check_of_parameters_in_param_str(text, folder):
    save(text)
    done = command("net.prototxt", "-o", "new.prototxt", "--check", "--param-str")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": identical: ") == 2 and "param_str: '" in (folder / "new.prototxt").read_text()


def leveldb_of(net):
    """The net on the same records in LevelDB, Caffe's default, of which V0 nets know no other."""
    pictures = images(11, (3, 10, 9), seed=3)
    write_leveldb("leveldb", [datum(picture, label % 5) for label, picture in enumerate(pictures)])
    return net.replace("backend: LMDB", "").replace('"db"', '"leveldb"')


@pytest.mark.parametrize("text", [TRAIN_AND_TEST + REST, V1 + REST_V1, pytest.param(V0, marks=needs_tool)], ids=["V2", "V1", "V0"])
def test_the_check_of_a_leveldb(text, folder):
    """Which can be open once on a machine: one net after the other."""
    save(leveldb_of(text))
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 0, done.stderr
    compared = [line for line in done.stderr.splitlines() if line.startswith("phase ")]
    assert len(compared) == 2 and all(": identical: " in line for line in compared), done.stderr
    assert "LMDB" not in (folder / "new.prototxt").read_text()
    assert os.listdir("leveldb").count("LOCK") == 1


def test_the_check_where_the_leveldb_is_in_use(folder):
    save(leveldb_of(V2))
    with fastbatch.LevelDBSource("leveldb"):
        done = command("net.prototxt", "--check")
    assert done.returncode == 1
    for words in ("phase TRAIN: Caffe cannot run the original net: it ended by SIGABRT. Check failed: status.ok() ",
                  f"phase TRAIN: Caffe cannot run the converted net: fastbatch.errors.SourceError: Failed to open "
                  f"leveldb leveldb: IO error: lock leveldb/LOCK: Resource temporarily unavailable; process {os.getpid()} has it open"):
        assert words in done.stderr


def test_the_check_reports_shapes(folder):
    save(TRAIN_AND_TEST + REST)
    said = []
    save(CONVERTED + REST, "new.prototxt")
    assert compare.check("net.prototxt", "new.prototxt", convert(TRAIN_AND_TEST), said.append)
    assert said[1:3] == ['phase TRAIN, layer "data": identical: data 4x3x7x7, label 4',
                         'phase TEST, layer "data": identical: data 3x3x7x7, label 3']


MEMORY = ('layer { name: "in" type: "MemoryData" top: "data" top: "label" '
          'memory_data_param { batch_size: 4 channels: 2 height: 3 width: 5 } transform_param { scale: 2 } }\n')


def test_the_check_of_arrays_in_memory(folder):
    save(MEMORY)
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[2:] == [
        'phase TRAIN, layer "in": identical: data 4x2x3x5, label 4x1x1x1',
        'phase TEST, layer "in": identical: data 4x2x3x5, label 4x1x1x1',
        "The batches are identical to the last bit."]
    save(convert(MEMORY).text.replace("batch_size: 4", "batch_size: 2"), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(MEMORY), said.append)
    assert "has shape 4x2x3x5 in the original net, 2x2x3x5 in the converted one" in said[1]


def test_the_check_of_arrays_that_pycaffe_cannot_give(folder):
    """To a net's first layer only."""
    more = MEMORY.replace('"in"', '"more"').replace('"data"', '"more"').replace('"label"', '"others"').replace("scale: 2", "mirror: true")
    text = V2.replace('"label"', '"number"') + MEMORY.replace('"data"', '"other"') + more
    save(text)
    save(convert(text).text, "new.prototxt")
    said = []
    assert compare.check("net.prototxt", "new.prototxt", convert(text), said.append)
    assert said[1:] == [*(line for phase in ("TRAIN", "TEST") for line in (
        f'phase {phase}, layer "data": identical: data 4x3x10x9, number 4',
        f'phase {phase}, layer "in": identical: other 4x2x3x5, label 4x1x1x1',
        f'phase {phase}, layer "more": identical: more 4x2x3x5, others 4x1x1x1')), "The batches are identical to the last bit."]


@pytest.mark.parametrize("old, new, difference", [
    ("batch_size: 4", "batch_size: 5", 'phase TRAIN, layer "data": DIFFERENT: top 0 ("data") of batch 0 has shape 4x3x7x7 in the original '
     "net, 5x3x7x7 in the converted one"),
    ("mirror: true", "mirror: false", 'phase TRAIN, layer "data": DIFFERENT: top 0 ("data") of batch 0 differs in '),
    ("mean_value: 2 ", "mean_value: 2.0000005 ", 'phase TEST, layer "data": DIFFERENT: top 0 ("data") of batch 0 differs in 3 of 3 items, '
     "the first of them item 0"),
    ('top: "data"\n  top: "label"\n  include { phase: TEST }', 'top: "data"\n  include { phase: TEST }',
     'phase TEST, layer "data": DIFFERENT: 2 tops in the original net, 1 in the converted one'),
    ("include { phase: TEST }", 'include { phase: TEST stage: "no" }',
     'phase TEST: Caffe cannot run the converted net: RuntimeError: Caffe did not build layer "data" (Python)'),
])
def test_the_check_finds_what_differs(old, new, difference, folder):
    save(TRAIN_AND_TEST)
    save(CONVERTED.replace(old, new), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(TRAIN_AND_TEST), said.append)
    assert [line for line in said if line.startswith(difference)], said
    assert len([line for line in said if "identical: " in line]) == 1
    assert said[-1] == "The batches are not shown to be identical."


def test_a_label_that_differs_is_found_in_its_batch(folder):
    pictures = images(11, (3, 10, 9), seed=3)
    write_lmdb("other", [datum(picture, label % 5 + (label == 9)) for label, picture in enumerate(pictures)])
    save(V2)
    save(convert(V2).text.replace('"db"', '"other"'), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(V2), said.append)
    assert said[1] == 'phase TRAIN, layer "data": DIFFERENT: top 1 ("label") of batch 2 differs in 1 of 4 items, the first of them item 1'


def test_stages_and_levels(folder):
    rules = ['include { stage: "deploy" }', "include { phase: TEST min_level: 2 }", 'exclude { phase: TRAIN }']
    text = "".join(V2.replace('"data"', f'"data{number}"').replace('"label"', f'"label{number}"').replace("} }", f"}} {rule} }}")
                   for number, rule in enumerate(rules))
    save(text)
    said = []
    save(convert(text).text, "new.prototxt")
    assert compare.check("net.prototxt", "new.prototxt", convert(text), said.append)
    assert [line.split(": identical: ")[0] for line in said[1:-1]] == [
        'phase TEST, layer "data2"',
        'phase TRAIN, stage deploy, layer "data0"',
        'phase TEST, stage deploy, layer "data0"',
        'phase TEST, stage deploy, layer "data2"',
        'phase TEST, level 2, layer "data1"',
        'phase TEST, level 2, layer "data2"',
    ]


def test_a_layer_in_no_state_is_no_success(folder):
    text = V2.replace("} }", '} exclude { } }')
    save(text)
    said = []
    assert not compare.check("net.prototxt", "net.prototxt", convert(text), said.append)
    assert len(said) == 3
    assert said[1] == 'layer "data": its include and exclude rules keep it out of every state that was tried, so it was not compared'


def test_where_caffe_aborts_nothing_is_written(folder):
    save(V2.replace('"db"', '"missing"'))
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 1 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[1].startswith("phase TRAIN: Caffe cannot run the original net: it ended by SIGABRT. Check failed: mdb_status == 0 ")
    assert "No such file or directory" in lines[1]
    assert lines[2].startswith("phase TRAIN: Caffe cannot run the converted net: ")
    assert "missing" in lines[2]
    assert lines[5:] == [f"Paths in a net are relative to the folder in which Caffe is started, here {folder}: start the check where you train",
                         "The batches are not shown to be identical.", "The new net is not written."]
    assert not (folder / "new.prototxt").exists()


def test_what_caffe_reads_past_its_end_fails_the_check(folder):
    write_lmdb("short", [datum(images(1, (3, 10, 9))[0], 1), b"\x08\x03\x10\x0a\x18\x09\x22\x04abcd"])
    save(V2.replace('"db"', '"short"'))
    done = command("net.prototxt", "--check")
    assert (done.returncode, done.stdout) == (1, "")
    assert ("phase TRAIN: Caffe cannot run the converted net: "
            "fastbatch.errors.SampleError: short") in done.stderr
    assert "Paths in a net" not in done.stderr and "its include and exclude rules" not in done.stderr


@pytest.mark.parametrize("layer", [
    'type: "Data" data_param { source: "db" backend: LMDB batch_size: 4 } transform_param { mean_file: "missing" }',
    'type: "Data" data_param { source: "missing" backend: LEVELDB batch_size: 4 }',
    'type: "ImageData" image_data_param { source: "missing" batch_size: 4 }',
    'type: "HDF5Data" hdf5_data_param { source: "missing" batch_size: 4 }',
    'type: "WindowData" window_data_param { source: "missing" batch_size: 4 } transform_param { crop_size: 4 }',
])
def test_where_a_file_is_missing_the_check_says_where_it_looks(layer, folder):
    text = f'layer {{ name: "data" top: "data" top: "label" {layer} include {{ phase: TRAIN }} }}'
    save(text)
    save(convert(text).text, "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(text), said.append)
    assert [line.split(" net: ")[0] for line in said[1:3]] == ["phase TRAIN: Caffe cannot run the original",
                                                               "phase TRAIN: Caffe cannot run the converted"]
    assert said[3].startswith("Paths in a net are relative to the folder in which Caffe is started") and len(said) == 5


def losses(net, iterations=25):
    """The losses of a training run, and of a test after it."""
    save(f'net: "{net}" base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" max_iter: 100 random_seed: 7 solver_mode: CPU '
         "test_iter: 3 test_interval: 1000 test_initialization: false snapshot_after_train: false", "solver.prototxt")
    solver = caffe.SGDSolver("solver.prototxt")
    found = []
    for _ in range(iterations):
        solver.step(1)
        found.append(solver.net.blobs["loss"].data.tobytes())
    for _ in range(3):
        solver.test_nets[0].forward()
        found.append(solver.test_nets[0].blobs["loss"].data.tobytes())
    return found


@pytest.mark.parametrize("text", [TRAIN_AND_TEST + REST, V1 + REST_V1])
def test_training_gives_the_same_losses_digit_for_digit(text, folder):
    save(text)
    assert main(["convert", "net.prototxt", "-o", "new.prototxt"]) == 0
    theirs, ours = losses("net.prototxt"), losses("new.prototxt")
    assert ours == theirs and len(set(theirs)) == 28
