"""`python -m fastbatch convert`: the text of a net that it keeps, the layers it leaves, and what it refuses."""

import random
import sys

import pytest

caffe = pytest.importorskip("caffe._caffe") and pytest.importorskip("caffe")

from caffe.proto import caffe_pb2

from fastbatch.caffe import Data
from fastbatch.caffe import convert as converting
from fastbatch.caffe.convert import convert, rewrite
from fastbatch.caffe.convert import text as prototxt
from fastbatch.caffe.runtime.layer_param import LayerParam
from prototxts import (
    CONVERTED,
    DATA,
    IN_PLACE,
    REST,
    TRAIN_AND_TEST,
    V0,
    V1,
    V2,
    parse,
    random_text,
)


def test_every_line_is_kept_but_those_of_the_layer():
    for param_str, converted in (False, IN_PLACE), (True, CONVERTED):
        conversion = convert(TRAIN_AND_TEST, param_str)
        assert conversion.text == converted
        assert conversion.notes == () and [layer.name for layer in conversion.layers] == ["data", "data"]


@pytest.mark.parametrize("net", [IN_PLACE, CONVERTED], ids=["in place", "param_str"])
def test_a_converted_net_converts_to_itself(net):
    conversion = convert(net)
    assert conversion.text == net and conversion.layers == () and conversion.notes == ()


@pytest.mark.parametrize(
    "text, expected",
    [
        # in a line of its own, where type has one
        (
            'layer {\r\n\tname: "x"\r\n\ttype: "Data"; # of "what"\r\n\tDATA\r\n}',
            'layer {\r\n\tname: "x"\r\n\ttype: "Python"; # of "what"\r\n\tOURS\r\n\tDATA\r\n}',
        ),
        ('layer { type: "Data"\n    name: "x" DATA\n}', 'layer { type: "Python"\n    OURS\n    name: "x" DATA\n}'),
        ('  layer { type: "Data" name: "x"\nDATA }', '  layer { type: "Python" name: "x"\nOURS\nDATA }'),
        # after type, where a line of its own would be in the middle of something
        ('layer { name: "x" type: "Data"DATA }', 'layer { name: "x" type: "Python" OURSDATA }'),
        (
            'layer { type: "Data" include {\n phase: TRAIN } DATA }',
            'layer { type: "Python" OURS include {\n phase: TRAIN } DATA }',
        ),
        ('layer { DATA type: "Data" } layer {\n}', 'layer { DATA type: "Python" OURS } layer {\n}'),
    ],
)
def test_where_the_new_line_goes(text, expected):
    conversion = convert(text.replace("DATA", DATA))
    assert conversion.text == expected.replace(
        "OURS", 'python_param { module: "fastbatch.caffe" layer: "Data" }'
    ).replace("DATA", DATA)


def test_where_caffe_hides_the_block_parameters_go_into_param_str(monkeypatch):
    monkeypatch.setattr(converting, "_why_hidden", lambda: "of the moon")
    conversion = convert(TRAIN_AND_TEST)
    assert conversion.text == CONVERTED and conversion.notes == (
        "the parameters go into param_str, because of the moon.",
    )


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
    assert (
        convert(V2 + REST, True).text
        == (
            'layer { name: "data" type: "Python" top: "data" top: "label" python_param { '
            f'module: "fastbatch.caffe" layer: "Data" param_str: \'{DATA}\' }} }}\n'
        )
        + REST
    )
    assert (
        f"param_str: '{DATA} transform_param {{ scale: 2 }}' }} }}"
        in convert(V2.replace("} }", "} transform_param { scale: 2 } }"), True).text
    )


def test_what_caffe_ignores_is_left_out_and_said():
    text = V2.replace(
        "batch_size: 4",
        "scale: 2 batch_size: 4, mean_file: 'x'; rand_skip: 3 crop_size: 5 mirror: true force_encoded_color: true",
    )
    assert convert(text).text == V2.replace(
        '"Data"', '"Python" python_param { module: "fastbatch.caffe" layer: "Data" }'
    ).replace(": 4", ": 4,")
    conversion = convert(text, True)
    param_str = parse(conversion.text).layer[0].python_param.param_str
    assert param_str == 'data_param { source: "db" backend: LMDB batch_size: 4, }'
    place = 'layer "data" (Data, line 1): data_param.'
    assert [note[len(place) :].split()[0] for note in conversion.notes] == [
        "scale",
        "mean_file",
        "crop_size",
        "mirror",
        "rand_skip",
        "force_encoded_color",
    ]
    assert conversion.notes[0] == place + "scale is left out, because Caffe ignores it there."


@pytest.mark.parametrize(
    "text",
    [
        'layer{name:"data"type:"Data"top:"data"top:"label"data_param{source:"db"backend:LMDB batch_size:4}}',
        (
            "layer: { name: 'data'; type: 'Da' \"ta\", top: [\"data\", \"label\"] data_param: <source: 'db' "
            "backend: 1; batch_size: 0x4;>; };"
        ),
        (
            '# {\nlayer # {"\n{ name #:\n: "data" type: "Data" # "\n top: "data" data_param # <\n { source: "d" # '
            '{\n "b" batch_size: 4 backend: LMDB } }'
        ),
        (
            'layer: [{ name: "data" type: "Data" data_param { source: "db" batch_size: 4 backend: LMDB } }, '
            '<name: "n" type: "Data" data_param { source: "db" batch_size: 2 backend: LMDB }>]'
        ),
        (
            r"""layer { type: "Data" data_param { source: "a\"b\\ '\061{#" backend: LMDB batch_size: 1 } """
            """transform_param { mean_file: '"}' } }"""
        ),
        "layer { type: 'Data' data_param { source: 'a#b}' backend: LMDB batch_size: 1 } }",
        (
            'layer {\r\n  type: "Data"\r\n  data_param {\r\n    source: "db"  # x\r\n    backend: LMDB '
            "batch_size:\r\n    3\r\n  }\r\n}\r\n"
        ),
        (
            'layer {\n\ttype: "Data"\n\tdata_param '
            '{\nsource:\n"db"\nbackend:\nLMDB\nbatch_size:\n3\n}\n\ttransform_param {}\n}'
        ),
        'layer { type: "Data" data_param { source: "caf\u00e9 \\303\\251" backend: LMDB batch_size: 1 } } # caf\udce9',
    ],
)
@pytest.mark.parametrize("param_str", [False, True], ids=["in place", "param_str"])
def test_odd_formatting(text, param_str):
    conversion = convert(text, param_str)
    old, new = parse(text), parse(conversion.text)
    assert len(conversion.layers) == len(old.layer)
    for layer, ours in zip(old.layer, new.layer):
        assert (ours.type, ours.python_param.module, ours.python_param.layer) == ("Python", "fastbatch.caffe", "Data")
        read = Data.schema.parse(ours.python_param.param_str, LayerParam(ours))
        assert (read.data_param, read.transform_param) == (layer.data_param, layer.transform_param)
        assert (ours.name, list(ours.top)) == (layer.name, list(layer.top))
    assert conversion.text.count("\r\n") == conversion.text.count("\n") or "\r" not in text
    assert conversion.text.count("#") == text.count("#")


def test_nets_of_net_spec():
    net = caffe.NetSpec()
    net.data, net.label = caffe.layers.Data(
        source="db",
        backend=caffe.params.Data.LMDB,
        batch_size=4,
        ntop=2,
        include=dict(phase=caffe.TEST),
        transform_param=dict(mean_value=[1, 2.5, 3], mirror=True),
    )
    net.ip = caffe.layers.InnerProduct(net.data, num_output=3)
    text = str(net.to_proto())
    conversion = convert(text, param_str=True)
    ours = parse(conversion.text).layer[0]
    assert ours.include[0].phase == caffe.TEST and "mean_value: 2.5" in ours.python_param.param_str
    assert conversion.text[conversion.text.index("layer {", 10) :] == text[text.index("layer {", 10) :]


@pytest.mark.parametrize("param_str", [False, True], ids=["in place", "param_str"])
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
        read = Data.schema.parse(ours.python_param.param_str, LayerParam(ours))
        for field in "scale", "mean_file", "crop_size", "mirror":
            layer.data_param.ClearField(field)
        assert (read.data_param, read.transform_param, ours.include) == (
            layer.data_param,
            layer.transform_param,
            layer.include,
        )
    old_blocks, new_blocks = (
        [whole[block.start : block.end] for block in prototxt.fields(whole) if block.name == "layer"]
        for whole in (text, conversion.text)
    )
    assert [new for new, layer in zip(new_blocks, net.layer) if layer.type == "Power"] == [
        old for old, layer in zip(old_blocks, net.layer) if layer.type == "Power"
    ]


@pytest.mark.parametrize(
    "layer, why",
    [
        ('type: "Data" transform_param { mirror: true }', "data_param.source is missing"),
        (
            'type: "Data" python_param { module: "x" } data_param { source: "db" backend: LMDB }',
            "it has a python_param already",
        ),
    ],
)
def test_what_cannot_be_ours_is_left(layer, why):
    left = f'\nlayer {{ name: "left" {layer} }}\n'
    conversion = convert(left)
    assert (conversion.text, conversion.layers, conversion.notes) == (
        left,
        (),
        (f'layer "left" (Data, line 2) is left unchanged: {why}.',),
    )
    conversion = convert(left + V2)
    assert conversion.text.startswith(left) and len(conversion.layers) == 1 and len(conversion.notes) == 1


def test_windows_keep_the_scale_that_caffe_uses():
    text = (
        'layer { type: "WindowData" window_data_param { source: "x" scale: 2 mirror: true crop_size: 3 batch_size: 4 } '
        "data_param { prefetch: 2 } transform_param { scale: 5 crop_size: 3 force_color: true } }"
    )
    conversion = convert(text, param_str=True)
    assert parse(conversion.text).layer[0].python_param.param_str == (
        'window_data_param { source: "x" scale: 2 batch_size: 4 } data_param { prefetch: 2 } '
        "transform_param { crop_size: 3 }"
    )
    assert [note.split(": ")[1].split()[0] for note in conversion.notes] == [
        "window_data_param.crop_size",
        "window_data_param.mirror",
        "transform_param.scale",
        "transform_param.force_color",
    ]


def test_what_a_program_has_to_change_is_said():
    text = (
        '\nlayer { name: "in" type: "MemoryData" memory_data_param { batch_size: 3 channels: 1 height: 1 width: 1 } }'
    )
    assert convert(text).notes == (
        (
            'layer "in" (MemoryData, line 2): in your program, write fastbatch.caffe.set_input_arrays(net, data, '
            "labels) from now on, because net.set_input_arrays(data, labels) feeds Caffe's own layer only."
        ),
    )


@pytest.mark.parametrize(
    "text, why",
    [
        (
            "layer {\n  nme: 'x'\n}",
            (
                '^Caffe would not read it as a net: line 2, column 6: Message type "caffe.LayerParameter" has '
                'no field named "nme"$'
            ),
        ),
        ("layer {", "Caffe would not read it as a net: line 1"),
        (V2 + "}", "Caffe would not read it as a net: line 2, column 1"),
        (
            "layer { data_param { } data_param { } }",
            (
                'Caffe would not read it as a net: line 1, column 35: Non-repeated field "data_param" is '
                "specified multiple times$"
            ),
        ),
        ("not a net", "Caffe would not read it as a net: line 1, column 5"),
        ('net: "a/train_val.prototxt" base_lr: 0.1', "^it is a solver, not a net; its net is in a/train_val.prototxt$"),
        ('train_net: "a" test_net: "b" test_net: "c"', "^it is a solver, not a net; its net is in a and b and c$"),
        ("base_lr: 0.1", "^it is a solver, not a net$"),
        (
            "base_lr: 0.1\ntest_net_param { layer { } } net_param { } net_param: { }",
            (
                r"^it is a solver, with its net in test_net_param { } \(line 2\) "
                r"and net_param { } \(line 2\) and .*: move what is between the brackets to a separate file"
            ),
        ),
        (
            "net: 'x.prototxt' reduced_by: 3 another { fork: 's' }",
            "^it is a solver, not a net; its net is in x.prototxt$",
        ),
        ("\ufeff" + V2, "^Caffe would not read it as a net: it begins with a byte order mark"),
        (V2 + "# \0", "^it is a binary file or text in UTF-16"),
        (300 * "x" + "\n", "^Caffe would not read it as a net: line [12], column [01]: .{1,203}$"),
        (V2 + "\u200b", "line 2, column 1: Interpreting non ascii codepoint 226"),
        (V1 + V2, "both `layer` and `layers` blocks, which Caffe refuses"),
        (V1 + V0, r"\(format V0\) and others do not \(V1\)"),
    ],
)
def test_what_is_no_net_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        convert(text)


@pytest.mark.parametrize("param_str, edits", [(False, "in_place"), (True, "in_param_str")])
def test_a_wrong_edit_would_be_noticed(param_str, edits, monkeypatch):
    right = getattr(rewrite, edits)
    monkeypatch.setattr(
        rewrite,
        edits,
        lambda text, *more: [
            *((start, end, new.replace("batch_size: 4", "batch_size: 5")) for start, end, new in right(text, *more)),
            *([(text.index("4 }"), text.index("4 }") + 1, "5")] if edits == "in_place" else []),
        ],
    )
    with pytest.raises(RuntimeError, match="changed what this net means, which is a bug"):
        convert(V2, param_str)


@pytest.mark.parametrize(
    "text", ['a: "x', "a {", "a: [1", "a: [1 2]", "{}", "a: }", "a {}}", "a:", 5000 * "a {"], ids=lambda text: text[:10]
)
def test_the_scanner_ends_on_what_is_no_prototxt(text):
    with pytest.raises(ValueError):
        prototxt.fields(text)


def test_a_long_comment_behind_a_string():
    """It once took for ever: each # could have been the first of a comment of its own."""
    comment = 60 * "#" + "\n"
    assert [
        field.name for field in prototxt.fields(f'a: "x" {comment}{comment} "y" {comment}b {{ c: "z" {comment} }}')
    ] == ["a", "b"]
