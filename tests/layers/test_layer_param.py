"""A layer's own layer parameter: how it is found and checked, and that our Data layer obeys it."""

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from databases import image_lmdb
from fastbatch.caffe import Data
from fastbatch.caffe.runtime import layer_param as module
from fastbatch.caffe.runtime._layer_param import serialized
from fastbatch.caffe.runtime.layer_param import LayerParam, ParamLayer
from nets import anonymous_kb, assert_same_bits, caffes, ours, params, run

SHAPE = (3, 12, 10)


class Keeping(ParamLayer):
    """Stores its own layer parameter."""

    layer_params = []

    def __init__(self, layer_param):
        super().__init__(layer_param)
        self.layer_params.append(layer_param)

    def setup(self, bottom, top):
        self.param = self._read_layer_param(top)
        self.second = self._read_layer_param(top)
        top[0].reshape(1)

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        pass


class WithoutItsBase(Keeping):
    def __init__(self, layer_param):
        caffe.Layer.__init__(self, layer_param)


def keeping(more="", layer="Keeping", param_str=""):
    python = f'python_param {{ module: "{__name__}" layer: "{layer}" param_str: "{param_str}" }}'
    return f'layer {{ name: "kept" type: "Python" top: "kept" {python} {more} }}'


@pytest.fixture
def layer_param(build):
    """What pycaffe gave to the __init__ of a Keeping."""
    build(keeping('data_param { source: "x" }'))
    return Keeping.layer_params.pop()


@pytest.fixture
def database(tmp_path):
    return image_lmdb(tmp_path / "db", 9, SHAPE)[0]


# How the layer parameter is found


@pytest.mark.parametrize(
    "more",
    [
        "",
        "transform_param { }",
        (
            'data_param { source: "\\303\\244 b" backend: LMDB batch_size: 4294967295 prefetch: 0 } include { phase: '
            'TEST not_stage: "a" }'
        ),
        'transform_param { mean_value: 104.5 mean_value: -1e30 mirror: true mean_file: "' + "m" * 100_000 + '" }',
        'loss_weight: 0 hdf5_data_param { source: "s" shuffle: true }',
    ],
)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_the_parameter_is_what_stands_in_the_prototxt(build, more, phase):
    text = keeping(more.replace("phase: TEST", f"phase: {phase}"), param_str="threads: 3")
    net = build(text, getattr(caffe, phase))
    expected = text_format.Parse(text, caffe_pb2.NetParameter()).layer[0]
    expected.phase = getattr(caffe_pb2, phase)
    param = net.layers[0].param
    assert param.message == expected and param.reason == "" and str(param) == 'layer "kept"'
    assert param.message.HasField("transform_param") == expected.HasField("transform_param")


def test_the_bytes_are_protobufs_own(layer_param):
    data = serialized(layer_param)
    message = caffe_pb2.LayerParameter.FromString(data)
    assert message.SerializeToString() == data and message.data_param.source == "x"


def test_it_is_read_once_and_not_kept(build):
    layer = build(keeping()).layers[0]
    assert layer._layer_param is None
    assert layer.second.message is None and "only once" in layer.second.reason
    assert str(layer.second) == "this layer"
    Keeping.layer_params.clear()


def test_a_subclass_that_forgets_its_base(build):
    layer = build(keeping(layer="WithoutItsBase")).layers[0]
    assert layer.param.message is None and "__init__ calls that of its base class" in layer.param.reason


def test_20000_calls_leave_no_memory(layer_param):
    def call(times):
        for _ in range(times):
            serialized(layer_param)

    call(1000)
    before = anonymous_kb()
    call(20_000)
    assert anonymous_kb() - before < 512  # 20,000 forgotten strings of these 70 bytes were 2 MB


class WithAttributes:
    pass


class WithSlots:
    __slots__ = ("a", "b", "c")


def test_what_is_something_else_is_refused(build, tmp_path):
    net = build('layer { name: "in" type: "Input" top: "in" input_param { shape { dim: 1 } } }')
    (tmp_path / "solver.prototxt").write_text(f'net: "{tmp_path}/net.prototxt" lr_policy: "fixed" base_lr: 1')
    solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
    holding_other_messages = [solver.param] if hasattr(solver, "param") else []
    others = [
        net,
        net.blobs["in"],
        net.layers[0],
        WithAttributes(),
        WithSlots(),
        object(),
        None,
        3,
        "x",
        [],
        (1, 2, 3),
        np.zeros(3),
        caffe.Layer,
        caffe_pb2.LayerParameter(name="x"),
        *holding_other_messages,
    ]
    for other in others:
        with pytest.raises(LookupError, match="pycaffe's LayerParameter is not laid out as expected"):
            serialized(other)


# What it is checked for


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("type", "Data", "its type should be 'Python' and is 'Data'"),
        ("python_param.layer", "WithoutItsBase", "its class should be"),
        ("python_param.layer", "Nothing", "its class should be"),
        ("python_param.module", "nothing.of.this.name", "its class should be"),
        ("python_param.param_str", "threads: 4", "its param_str should be '' and is 'threads: 4'"),
        ("phase", caffe_pb2.TEST, "its phase should be 0 and is 1"),
        ("top", None, "the number of its tops should be 1 and is 2"),
    ],
)
def test_a_block_of_another_layer_is_not_believed(build, monkeypatch, field, value, words):
    def another(layer_param):
        message = caffe_pb2.LayerParameter.FromString(serialized(layer_param))
        if field == "top":
            message.top.append("another")
        else:
            *outer, name = field.split(".")
            setattr(message.python_param if outer else message, name, value)
        return message.SerializeToString()

    monkeypatch.setattr(module, "serialized", another)
    param = build(keeping('data_param { source: "x" }')).layers[0].param
    assert param.message is None
    assert "what was found is of another layer: " + words in param.reason


def test_bytes_of_something_else(build, monkeypatch):
    monkeypatch.setattr(module, "serialized", lambda _: b"\xff\xff\xff")
    param = build(keeping()).layers[0].param
    assert param.message is None and "not a LayerParameter" in param.reason


# The Data layer


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("param_str", ["", "threads: 3", "{'threads': 1, 'zero_copy': False}"])
def test_a_drop_in(build, database, param_str, phase):
    """Only the type and python_param are new."""
    param = params(database, 4, "crop_size: 7 mirror: true scale: 0.3 mean_value: 12.5", "prefetch: 2")
    results = []
    for text in caffes(param), ours(param_str.replace("'", '\\"'), more=param):
        results.append(run(build, text.replace('\\"', '\\"'), 9, seed=3, phase=getattr(caffe, phase)))
    assert_same_bits(*results)


def test_one_prototxt_for_both_phases(build, database):
    """Two layers of one name, as in users' nets; each reads its own layer parameter."""
    results = []
    for layer in caffes, lambda param, more: ours("", more=param + more):
        text = layer(params(database, 4, "crop_size: 7 mirror: true"), more="include { phase: TRAIN }") + layer(
            params(database, 3, "crop_size: 5"), more="include { phase: TEST }"
        )
        results.append(run(build, text, 5, seed=3) + run(build, text, 5, seed=3, phase=caffe.TEST))
    assert_same_bits(*results)


def test_python_param_without_param_str(build, database):
    text = ours("", more=params(database, 4)).replace("param_str: ''", "")
    assert "param_str" not in text
    assert_same_bits(run(build, text, 3), run(build, caffes(params(database, 4)), 3))


def test_messages_in_both_places_are_used_together(build, database):
    data, transform = (
        f'data_param {{ source: "{database}" backend: LMDB batch_size: 4 }}',
        "transform_param { scale: 0.5 }",
    )
    expected = run(build, caffes(data + transform), 3)
    assert_same_bits(run(build, ours(data, more=transform), 3), expected)
    assert_same_bits(run(build, ours(transform, more=data), 3), expected)


def test_a_net_made_by_net_spec(build, database):
    spec = caffe.NetSpec()
    spec.data, spec.label = caffe.layers.Python(
        module="fastbatch.caffe",
        layer="Data",
        ntop=2,
        transform_param=dict(crop_size=7, mirror=True),
        data_param=dict(source=database, backend=caffe.params.Data.LMDB, batch_size=4),
    )
    expected = run(build, caffes(params(database, 4, "crop_size: 7 mirror: true")), 3, seed=5)
    assert_same_bits(run(build, str(spec.to_proto()), 3, seed=5), expected)


@pytest.mark.parametrize(
    "param_str, more, words",
    [
        (
            "SOURCE",
            "SOURCE",
            ["data_param is both in the layer parameter and in param_str. Leave one of them out."],
        ),
        (
            "SOURCE transform_param { }",
            "transform_param { }",
            ["transform_param is both in the layer parameter and in"],
        ),
        (
            "SOURCE",
            "transform_param { mean_value: inf }",
            ["in its layer parameter, transform_param.mean_value: it is infinite"],
        ),
        (
            "transform_param { mean_value: inf }",
            "SOURCE",
            ["param_str of", "transform_param.mean_value: it is infinite"],
        ),
        (
            "",
            "SOURCE image_data_param { batch_size: 3 }",
            ["in its layer parameter, image_data_param: this layer does not read image_data_param, and would ignore"],
        ),
        ("", "SOURCE hdf5_data_param { }", ["does not read hdf5_data_param"]),
        ("", "SOURCE dummy_data_param { }", ["does not read dummy_data_param"]),
        ("SOURCE", "memory_data_param { }", ["does not read memory_data_param"]),
        ("", "data_param { scale: 2 }", ["in its layer parameter, data_param.scale: Caffe ignores it there."]),
        ("", "data_param { crop_size: 2 }", ["in its layer parameter, data_param.crop_size"]),
        ("", "data_param { rand_skip: 2 }", ["in its layer parameter, data_param.rand_skip"]),
        ("data_param { mirror: true }", "", ["param_str of", "data_param.mirror: Caffe ignores it there."]),
        ("", "", ["data_param.source is missing."]),
        ("threads: 2", "transform_param { }", ["data_param.source is missing."]),
        ("", 'data_param { source: "x" }', ["data_param.batch_size is missing."]),
        ("thread: 2", "SOURCE", ["param_str of", 'param_str has no field "thread". Did you mean threads?']),
    ],
)
def test_what_is_wrong_in_the_block(build, param_str, more, words):
    source = 'data_param { source: "x" batch_size: 1 }'
    with pytest.raises(ValueError) as caught:
        build(ours(param_str.replace("SOURCE", source), more=more.replace("SOURCE", source)))
    for word in ['layer "data" (Data)', " A right one is, for example:\n  ", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "param_str, more, words",
    [
        (
            "",
            "SOURCE",
            (
                "param_str of layer Data: it is empty, and says neither what to read nor how. What is beside "
                "python_param { } in the layer can't be read here, because it is night: write it into param_str. "
                "A right"
            ),
        ),
        (
            "threads: 2",
            "SOURCE",
            "param_str of layer Data: data_param.source is missing. What is beside python_param { }",
        ),
    ],
)
def test_where_the_block_cannot_be_had(build, database, monkeypatch, param_str, more, words):
    """param_str works alone, and what it lacks is asked for there."""

    def unreachable(_):
        raise LookupError("it is night")

    monkeypatch.setattr(module, "serialized", unreachable)
    source = params(database, 4, "mirror: true")
    with pytest.raises(ValueError) as caught:
        build(ours(param_str, more=more.replace("SOURCE", source)))
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith(Data.schema.example)
    assert_same_bits(run(build, ours(source), 3, seed=1), run(build, caffes(source), 3, seed=1))


def test_the_example_of_a_block_is_right(build):
    with pytest.raises(ValueError) as caught:
        build(ours(""))
    example = str(caught.value).split("for example:\n  ")[1]
    message = text_format.Parse(example, caffe_pb2.LayerParameter())
    assert (message.python_param.module, message.python_param.layer) == ("fastbatch.caffe", "Data")
    assert Data.schema.parse(message.python_param.param_str, LayerParam(message)) == Data.schema.parse(
        Data.schema.example
    )
