"""`python -m fastbatch convert` on nets in Caffe's old formats."""

import random
import subprocess

import pytest

caffe = pytest.importorskip("caffe._caffe") and pytest.importorskip("caffe")

from caffe.proto import caffe_pb2
from google.protobuf import text_format

from fastbatch.caffe.convert import convert, upgrade
from prototxts import (
    REST_V1,
    V0,
    V1,
    needs_tool,
    parse,
    random_text,
    save,
)


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
    assert (
        conversion.text
        == """\
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
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" param { lr_mult: 1 decay_mult: 1 } \
param { lr_mult: 2 decay_mult: 0 }
         inner_product_param { num_output: 5 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
    )


def random_v1(chance):
    """A V1 net with a layer of each type, all fields that only V1 has, and those that affect data."""
    net = caffe_pb2.NetParameter(name="net")
    for value in caffe_pb2.V1LayerParameter.LayerType.values():
        layer = net.layers.add(name=f"layer {value}", type=value)
        layer.top.extend(["a", "b"][: chance.randrange(3)])
        layer.blobs_lr.extend([1, 0.5, 1e-5][: chance.randrange(4)])
        layer.weight_decay.extend([0, 2, 4][: chance.randrange(4)])
        layer.param.extend(["p", "", "q"][: chance.randrange(4)])
        layer.blob_share_mode.extend([0, 1][: chance.randrange(3)])
        layer.loss_weight.extend([1, 0.25][: chance.randrange(3)])
        for name in "data_param", "image_data_param", "window_data_param", "transform_param":
            if chance.random() < 0.7:
                param = getattr(layer, name)
                param.SetInParent()
                for field, setting in [
                    ("scale", 0.00390625),
                    ("mean_file", f"{name} #"),
                    ("crop_size", 227),
                    ("mirror", False),
                ]:
                    if chance.random() < 0.5:
                        setattr(param, field, setting)
        if chance.random() < 0.5:
            layer.data_param.batch_size = 3
            layer.include.add(phase=1, stage=["x", "y"])
            layer.convolution_param.weight_filler.type = "xavier"
    return net


def by_the_tool(text, folder):
    save(text, folder / "old.prototxt")
    subprocess.run(
        ["upgrade_net_proto_text", str(folder / "old.prototxt"), str(folder / "new.prototxt")],
        check=True,
        stderr=subprocess.DEVNULL,
    )
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
    for layer in [
        *found.layer,
        *expected.layer,
    ]:  # the tool leaves an empty message where it looked for something to move
        if layer.type in ("Data", "ImageData", "WindowData"):
            for name in "data_param", "image_data_param", "window_data_param", "transform_param":
                if not getattr(layer, name).ByteSize():
                    layer.ClearField(name)
    assert found == expected and notes == []
    assert text.count("# and") / 2 < new.count("# and") <= text.count("# and")  # those in fields that go are lost


def test_v1_types_are_all_known():
    assert sorted(upgrade._TYPES) == sorted(caffe_pb2.V1LayerParameter.LayerType.keys())


@needs_tool
def test_v0(tmp_path):
    conversion = convert(V0, param_str=True)
    old, new = by_the_tool(V0, tmp_path), parse(conversion.text)
    assert [layer.name for layer in old.layer] == ["input", "data", "conv"]
    assert list(new.input) == ["extra"] and new.layer[1] == old.layer[2]
    read = text_format.Parse(new.layer[0].python_param.param_str, caffe_pb2.LayerParameter())
    old.layer[1].data_param.ClearField("rand_skip")
    assert (read.data_param, read.transform_param) == (old.layer[1].data_param, old.layer[1].transform_param)
    for kept in (
        'name: "v0"  # zero\ninput: "extra" input_dim: 1',
        "# the data\n",
        "# a LevelDB\n",
        "# a convolution\nlayer {\n",
    ):
        assert kept in conversion.text
    assert conversion.notes[0] == "its format is V0: Caffe's upgrade_net_proto_text wrote its layers anew."
    assert convert(conversion.text).text == conversion.text


def test_v0_without_caffes_tool(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ValueError, match="V0, of 2013, which only Caffe's own upgrade_net_proto_text can upgrade, and that is not on"
    ):
        convert(V0)


def test_the_line_that_is_named_is_the_old_one():
    net = "layers {\n  name: 'x'\n  type: RELU\n  blobs_lr: 1\n  blobs_lr: 2\n}\n" + V1
    conversion = convert(net + "layers { name: 'left' type: DATA top: 'left' }\n")
    assert len(conversion.layers) == 1
    assert conversion.notes[0].startswith(
        'layer "left" (Data, line 24) is left unchanged: data_param.source is missing.'
    )


@needs_tool
def test_what_the_tool_says_of_a_v0_net_is_passed_on(tmp_path, monkeypatch):
    """Without what glog puts before it, and without files of its log."""
    monkeypatch.setenv("GLOG_log_dir", str(tmp_path))
    conversion = convert(V0.replace('type: "data"', 'type: "data" num_output: 3'))
    assert len(conversion.layers) == 1
    assert conversion.notes[0] == "upgrade_net_proto_text: Unknown parameter num_output for layer type data."
    assert list(tmp_path.iterdir()) == []
