"""What a param_str may contain, how it is read, and the errors for a wrong one."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("caffe._caffe")

from caffe.proto import caffe_pb2

from fastbatch.caffe import LAYERS
from fastbatch.caffe.layers.schema import Message, Option, Schema

DATA, IMAGE_DATA, WINDOW_DATA = (LAYERS[name].schema for name in ("Data", "ImageData", "WindowData"))
TEXT = """
    data_param { source: "train_lmdb" backend: LMDB batch_size: 64 }  # as it stands in a prototxt
    transform_param { crop_size: 227 mirror: true mean_value: 104 mean_value: 117.5 mean_value: [123] }
    threads: 4
"""
VALUES = {
    "data_param": {"source": "train_lmdb", "backend": "LMDB", "batch_size": 64},
    "transform_param": {"crop_size": 227, "mirror": True, "mean_value": [104, 117.5, 123]},
    "threads": 4,
}
SOURCE = 'data_param { source: "x" batch_size: 1 } '


@pytest.mark.parametrize("param_str", [TEXT, json.dumps(VALUES), f" {VALUES!r}\n"], ids=["text", "json", "dict"])
def test_text_json_and_dict_literals_say_the_same(param_str):
    parsed = DATA.parse(param_str)
    data = dict(source="train_lmdb", backend=caffe_pb2.DataParameter.LMDB, batch_size=64)
    transform = dict(crop_size=227, mirror=True, mean_value=[104, 117.5, 123])
    assert parsed.data_param == caffe_pb2.DataParameter(**data)
    assert parsed.transform_param == caffe_pb2.TransformationParameter(**transform)
    assert parsed.threads == 4


def test_the_messages_are_caffes_own():
    parsed = DATA.parse(TEXT)
    assert type(parsed.data_param) is caffe_pb2.DataParameter
    assert type(parsed.transform_param) is caffe_pb2.TransformationParameter


def test_defaults_are_caffes_and_ours_and_presence_shows():
    parsed = DATA.parse(SOURCE)
    assert parsed.data_param.prefetch == 4 and not parsed.data_param.HasField("prefetch")
    assert parsed.data_param.backend == caffe_pb2.DataParameter.LEVELDB
    assert parsed.transform_param.scale == 1 and not parsed.HasField("transform_param")
    assert parsed.zero_copy is True and not parsed.HasField("zero_copy")
    assert parsed.seed == 0 and not parsed.HasField("seed") and not parsed.HasField("threads")
    parsed = DATA.parse(SOURCE + "zero_copy: false seed: 0 transform_param { }")
    assert parsed.zero_copy is False and parsed.HasField("zero_copy")
    assert parsed.HasField("seed") and parsed.HasField("transform_param")


def test_a_single_value_for_a_repeated_field():
    values = {"data_param": {"source": "x", "batch_size": 1}, "transform_param": {"mean_value": 104}}
    assert list(DATA.parse(json.dumps(values)).transform_param.mean_value) == [104]
    values["transform_param"]["mean_value"] = (104, 117)
    assert list(DATA.parse(repr(values)).transform_param.mean_value) == [104, 117]


def test_parsing_one_thing_leaves_nothing_behind_for_the_next():
    assert DATA.parse(SOURCE + "threads: 3").threads == 3
    assert not DATA.parse(SOURCE).HasField("threads")


@pytest.mark.parametrize(
    "param_str, where, what",
    [
        # names
        ('data_param {\n  source: "x" batchsize: 3 }', "line 2, column 15", 'data_param has no field "batchsize".'),
        ("data_param { batchsize: 3 }", "line 1, column 14", "Did you mean batch_size?"),
        ("dataparam { }", "line 1, column 1", 'param_str has no field "dataparam". Did you mean data_param?'),
        ("transform_param { mean_values: 3 }", "line 1, column 19", "Did you mean mean_value?"),
        ("batch_size: 3", "line 1, column 1", 'param_str has no field "batch_size". It belongs in data_param { }.'),
        ("data_param { threads: 3 }", "", "It belongs at the top level, beside Caffe's messages."),
        ("data_param { cropsize: 3 }", "", "Did you mean crop_size, in transform_param { }?"),
        (
            "xyz: 3",
            "",
            "zero_copy, on_error, error_budget, cache_bytes, cache_folder, index_bytes, index_file.",
        ),
        ("data_param { xyz: 3 }", "", "It may hold source, batch_size, backend, prefetch."),
        ('{"dataparam": {}}', "", 'param_str has no field "dataparam". Did you mean data_param?'),
        ('{"data_param": {"batchsize": 3}}', "data_param", 'no field "batchsize". Did you mean batch_size?'),
        ("{1: 2}", "", 'param_str has no field "1".'),
        ("threads: 1 threads: 2", "line 1", "threads is given twice."),
        ('{"threads": 1, "threads": 2}', "", "threads is given twice."),
        ("{'threads': 1, 'threads': 2}", "", "threads is given twice."),
        # values
        ("data_param { backend: LMBD }", "line 1, column 23", "backend cannot be LMBD. Did you mean LMDB?"),
        ("data_param { backend: ROCKSDB }", "", "backend cannot be ROCKSDB. It is one of LEVELDB, LMDB."),
        ('{"data_param": {"backend": "lmdb"}}', "data_param.backend", "backend cannot be 'lmdb'. Did you mean LMDB?"),
        ('{"data_param": {"backend": ["LMDB"]}}', "data_param.backend", "backend cannot be ['LMDB']."),
        ('{"data_param": {"backend": 2}}', "data_param.backend", "backend cannot be 2. It is one of LEVELDB, LMDB."),
        ('{"data_param": {"backend": true}}', "data_param.backend", "backend cannot be True."),
        ("data_param { batch_size: -1 }", "line 1, column 26", "batch_size cannot be -1 (Value out of range)."),
        ('{"data_param": {"batch_size": -1}}', "data_param.batch_size", "it cannot be -1"),
        ("data_param { batch_size: 4294967296 }", "", "batch_size cannot be 4294967296 (Value out of range)."),
        ("data_param { batch_size: 1.5 }", "", "batch_size cannot be 1.5 (Couldn't parse integer)."),
        ('{"data_param": {"batch_size": 64.0}}', "data_param.batch_size", "it takes an integer, not 64.0."),
        ('{"data_param": {"batch_size": "64"}}', "data_param.batch_size", "it takes an integer, not '64'."),
        ('{"data_param": {"batch_size": true}}', "data_param.batch_size", "it takes an integer, not True."),
        ('{"data_param": {"batch_size": null}}', "data_param.batch_size", "it takes an integer, not None."),
        ('{"data_param": {"batch_size": {"a": 1}}}', "data_param.batch_size", "it takes an integer, not {'a': 1}."),
        ("data_param { source: x }", "line 1, column 22", "source: Expected string but found: 'x'"),
        ('{"data_param": {"source": 3}}', "data_param.source", "it takes a string, not 3."),
        ("zero_copy: maybe", "line 1, column 12", 'zero_copy: Expected "true" or "false".'),
        ('{"transform_param": {"mirror": 1}}', "transform_param.mirror", "it takes true or false, not 1."),
        ('{"transform_param": {"mean_value": [104, "117"]}}', "transform_param.mean_value", "a number, not '117'."),
        ('{"transform_param": {"scale": [1]}}', "transform_param.scale", "it takes a number, not [1]."),
        (SOURCE + "transform_param { scale: nan }", "transform_param.scale", "not a number"),
        (SOURCE + "transform_param { mean_value: 104 mean_value: 1e50 }", "transform_param.mean_value", "too large"),
        ('{"data_param": 3}', "data_param", "it takes a dict, not 3."),
        ("threads: -1", "", "threads cannot be -1"),
        (SOURCE + "threads: 0", "threads", "it cannot be 0, the least is 1. It is the number of worker threads"),
        # what Caffe would ignore
        (SOURCE[:-2] + "scale: 2 }", "data_param.scale", "Caffe ignores it there. Write it in transform_param { }"),
        (SOURCE[:-2] + "mirror: true }", "data_param.mirror", "Write it in transform_param { }"),
        (SOURCE[:-2] + "crop_size: 2 }", "data_param.crop_size", "Write it in transform_param { }"),
        (SOURCE[:-2] + 'mean_file: "m" }', "data_param.mean_file", "Write it in transform_param { }"),
        (SOURCE[:-2] + "rand_skip: 2 }", "data_param.rand_skip", "Leave it out."),
        (SOURCE[:-2] + "force_encoded_color: true }", "data_param.force_encoded_color", "Write force_color: true"),
        # what has to be there
        ("", "", "it is empty, and says neither what to read nor how."),
        (" \n", "", "it is empty"),
        ("threads: 2", "", "data_param.source is missing."),
        ('data_param { source: "x" }', "", "data_param.batch_size is missing."),
        # syntax
        ("data_param { batch_size: 64", "line 1", 'Expected "}"'),
        ("{", "", "neither JSON (Expecting property name"),
        ("{'threads': open('x')}", "line 1, column 13", "only names, strings, numbers, True, False, lists"),
        ("{**{}}", "", "only names, strings"),
        ("{'threads', 3}", "", "it takes a dict, not {"),
        ('{"a":' * 100000, "", "neither JSON (maximum recursion depth"),
        ("{'threads':\0 3}", "", "neither JSON"),
        (r'{"data_param\u0000": {}}', "", 'has no field "data_param'),
        (
            r'{"data_param": {"source": "x", "batch_size": 1, "backend": "LMDB\u0000"}}',
            "data_param.backend",
            "Did you mean LMDB?",
        ),
    ],
)
def test_errors_say_where_and_what_and_show_a_right_one(param_str, where, what):
    with pytest.raises(ValueError) as caught:
        DATA.parse(param_str)
    message = str(caught.value)
    assert message.startswith(f"param_str of layer Data{where and ', ' + where}")
    assert what in message
    assert message.endswith(f" A right one is, for example:\n  {DATA.example}")


OF_FORKS = (
    *("expand_param", "noise_param", "resize_param", "distort_param", "emit_constraint", "crop_h", "crop_w"),
    *("short_side", "img_rand_resize_lower", "img_rand_resize_upper"),
)


@pytest.mark.parametrize("layer", [name for name in LAYERS if "transform_param" in LAYERS[name].schema.messages])
def test_steps_of_caffes_forks_are_refused_by_name(layer):
    for name in OF_FORKS:
        value = {"prob": 1} if name.endswith(("_param", "_constraint")) else 3
        text = f"{name} {{ prob: 1 }}" if isinstance(value, dict) else f"{name}: 3"
        for param_str in (
            f"transform_param {{ {text} }}",
            json.dumps({"transform_param": {name: value}}),
            repr({"transform_param": {name: value}}),
            text,
        ):
            words = rf'(transform_param|param_str) has no field "{name}"\. It is a field of (SSD|NVIDIA)\'s Caffe'
            with pytest.raises(ValueError, match=words):
                LAYERS[layer].schema.parse(param_str)


def test_the_documentation_has_them():
    page = (Path(__file__).resolve().parents[2] / "docs/caffe-layer.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\| `.*(SSD|NVIDIA)'s \|", line)]
    assert sorted(re.findall(r"`(\w+)`", "".join(row[1] for row in rows))) == sorted(OF_FORKS)
    for _, names, fork, instead, *_ in rows:
        for name in re.findall(r"`(\w+)`", names):
            with pytest.raises(ValueError) as caught:
                DATA.parse(f"transform_param {{ {name}: 3 }}")
            assert fork.strip() in str(caught.value)
            assert instead.strip().strip("`") in str(caught.value) or instead.strip() == "none"


def test_the_example_is_right():
    assert DATA.parse(DATA.example).data_param.batch_size == 64


def test_another_layers_schema():
    schema = Schema(
        "Images",
        {"image_data_param": Message("ImageDataParameter", ("source", "batch_size"))},
        [Option("name", "string", "a name", default="cat")],
        example='image_data_param { source: "list.txt" }',
    )
    parsed = schema.parse('image_data_param { source: "list.txt" }')
    assert type(parsed.image_data_param) is caffe_pb2.ImageDataParameter
    assert (parsed.image_data_param.batch_size, parsed.name) == (1, "cat")
    with pytest.raises(ValueError, match='has no field "threads". It may hold image_data_param, name.'):
        schema.parse("threads: 3")


def test_a_schema_may_be_made_again():
    again = Schema(
        "Data", DATA.messages, list(DATA.options.values()), DATA.ignored, DATA.refused, DATA.required, DATA.example
    )
    assert again.parse(TEXT).threads == 4


@pytest.mark.parametrize("option", ['on_error: "replace"', "error_budget: 3"])
def test_options_that_make_no_sense_in_a_layer(option):
    with pytest.raises(ValueError, match=r'has no field "\w+"\. MemoryData shows arrays that are in memory: no sample'):
        LAYERS["MemoryData"].schema.parse("memory_data_param { batch_size: 1 } " + option)
    with pytest.raises(ValueError, match=r'has no field "\w+"\. A file that cannot be read does not say how many rows'):
        LAYERS["HDF5Data"].schema.parse('hdf5_data_param { source: "x" batch_size: 1 } ' + option)


@pytest.mark.parametrize(
    "layer, text, words",
    [
        ("MemoryData", "memory_data_param { batch_size: 1 }", "MemoryData shows arrays that are in memory already"),
        ("HDF5Data", 'hdf5_data_param { source: "x" batch_size: 1 }', "HDF5 files have no images to decode"),
        (
            "WindowData",
            'window_data_param { source: "x" batch_size: 1 }',
            "WindowData decodes another part of an image",
        ),
    ],
)
def test_layers_without_a_cache(layer, text, words):
    with pytest.raises(ValueError, match=f'has no field "cache_bytes". {words}.* Leave it out'):
        LAYERS[layer].schema.parse(f"{text} cache_bytes: 3")
    with pytest.raises(ValueError, match="cache_bytes, it cannot be 0, the least is 1|cache_bytes: it cannot be 0"):
        DATA.parse(TEXT + " cache_bytes: 0")


def test_enums_by_number():
    """Caffe's own notebooks write str(dict(data_param=dict(backend=P.Data.LMDB, ...)))."""
    import caffe

    for backend in caffe.params.Data.LMDB, caffe.params.Data.LEVELDB:
        param_str = str(dict(data_param=dict(source="x", batch_size=1, backend=backend)))
        assert DATA.parse(param_str).data_param.backend == backend


def test_what_is_ignored_may_say_nothing():
    """A field with its default value is no more than its absence."""
    assert DATA.parse(SOURCE[:-2] + "rand_skip: 0 mirror: false }").data_param.source == "x"
    windows = 'window_data_param { source: "x" batch_size: 1 } transform_param { crop_size: 3 scale: '
    assert WINDOW_DATA.parse(windows + "1 }").transform_param.crop_size == 3
    with pytest.raises(
        ValueError, match="transform_param.scale: Caffe's WindowData ignores it: write scale in window_data_param"
    ):
        WINDOW_DATA.parse(windows + "2 }")
    assert WINDOW_DATA.ignored_in(WINDOW_DATA.parse(windows + "1 }")) == ["transform_param.scale"]
    with pytest.raises(
        ValueError, match="This layer reads nothing of data_param but prefetch. Write it in image_data_param"
    ):
        IMAGE_DATA.parse('image_data_param { source: "x" } data_param { source: "y" }')
