"""Forks of Caffe, whose messages have other fields.

What we do not implement is refused. A missing field has Caffe's default.

No such Caffe runs here. Each fork's caffe.proto is made of this Caffe's, with the fields of Intel's, NVIDIA's, SSD's
and of old versions.
"""

import types

import pytest

pytest.importorskip("caffe._caffe")

from caffe.proto import caffe_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from fastbatch.caffe import LAYERS
from fastbatch.caffe.layers import schema as schema_module
from fastbatch.caffe.layers.params import prefetch_of
from fastbatch.caffe.layers.schema import Schema
from fastbatch.caffe.layers.transform_param import color_of, transform_of
from fastbatch.caffe.runtime.layer_param import LayerParam

Field = descriptor_pb2.FieldDescriptorProto
DATA = 'data_param { source: "x" batch_size: 1 MORE } '


class Fork:
    """A Caffe whose caffe.proto is changed by change({name: message})."""

    def __init__(self, monkeypatch, change):
        file = descriptor_pb2.FileDescriptorProto()
        caffe_pb2.DESCRIPTOR.CopyToProto(file)
        change({message.name: message for message in file.message_type})
        self.pool = descriptor_pool.DescriptorPool()
        self.pool.AddSerializedFile(file.SerializeToString())
        monkeypatch.setattr(
            schema_module, "caffe_pb2", types.SimpleNamespace(DESCRIPTOR=self.pool.FindFileByName(file.name))
        )

    def schema(self, layer):
        """The layer's schema, in this Caffe."""
        here = LAYERS[layer].schema
        return Schema(
            layer, here.messages, here.options.values(), here.ignored, here.refused, here.required, here.example
        )

    def parse(self, layer, param_str):
        return self.schema(layer).parse(param_str)

    def layer_param(self, text):
        """A layer's own layer parameter."""
        from google.protobuf import text_format

        descriptor = self.pool.FindMessageTypeByName("caffe.LayerParameter")
        if hasattr(message_factory, "GetMessageClass"):
            kind = message_factory.GetMessageClass(descriptor)
        else:
            kind = message_factory.MessageFactory(self.pool).GetPrototype(descriptor)
        return LayerParam(text_format.Parse(text, kind()))


def add(message, name, kind, number, **more):
    message.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL, type=kind, **more)


def remove(message, *names):
    kept = [field for field in message.field if field.name not in names]
    del message.field[:]
    message.field.extend(kept)


@pytest.fixture
def intels(monkeypatch):
    def change(messages):
        add(messages["DataParameter"], "shuffle", Field.TYPE_BOOL, 11, default_value="false")
        transform = messages["TransformationParameter"]
        add(transform, "crop_h", Field.TYPE_UINT32, 11, default_value="0")
        add(transform, "img_rand_resize_lower", Field.TYPE_UINT32, 12)
        add(transform, "resize_param", Field.TYPE_MESSAGE, 13, type_name=".caffe.BlobShape")
        transform.field.add(name="noise", number=14, label=Field.LABEL_REPEATED, type=Field.TYPE_FLOAT)
        add(messages["ImageDataParameter"], "label_dim", Field.TYPE_UINT32, 20)
        add(messages["MemoryDataParameter"], "labels_only", Field.TYPE_BOOL, 20)
        add(messages["HDF5DataParameter"], "cache", Field.TYPE_BOOL, 20)

    return Fork(monkeypatch, change)


UNKNOWN = [
    ("Data", DATA.replace("MORE", "shuffle: true"), "data_param.shuffle"),
    ("Data", DATA.replace("MORE", "shuffle: false"), "data_param.shuffle"),  # set, so it is meant to say something
    ("Data", DATA.replace("MORE", "") + "transform_param { mirror: true crop_h: 3 }", "transform_param.crop_h"),
    (
        "Data",
        DATA.replace("MORE", "") + "transform_param { img_rand_resize_lower: 256 }",
        "transform_param.img_rand_resize_lower",
    ),
    ("Data", DATA.replace("MORE", "") + "transform_param { resize_param { } }", "transform_param.resize_param"),
    ("Data", DATA.replace("MORE", "") + "transform_param { noise: 1 }", "transform_param.noise"),
    ("ImageData", 'image_data_param { source: "x" label_dim: 3 }', "image_data_param.label_dim"),
    ("ImageData", 'image_data_param { source: "x" } data_param { shuffle: true }', "data_param.shuffle"),
    (
        "WindowData",
        'window_data_param { source: "x" batch_size: 1 } transform_param { crop_h: 1 }',
        "transform_param.crop_h",
    ),
    ("HDF5Data", 'hdf5_data_param { source: "x" batch_size: 1 cache: true }', "hdf5_data_param.cache"),
    ("MemoryData", "memory_data_param { batch_size: 1 labels_only: true }", "memory_data_param.labels_only"),
]


@pytest.mark.parametrize("layer, text, path", UNKNOWN)
def test_what_is_not_implemented_is_refused(intels, layer, text, path):
    schema = intels.schema(layer)
    with pytest.raises(ValueError) as caught:
        schema.parse(text)
    assert str(caught.value).startswith(
        f"param_str of layer {layer}, {path}: this Caffe knows it, but fastbatch does not implement it"
    )
    layer_param = intels.layer_param(f'name: "data" type: "Python" python_param {{ }} {text}')
    with pytest.raises(
        ValueError, match=f'layer "data" .{layer}., in its layer parameter, {path}: this Caffe knows it'
    ):
        schema.parse("", layer_param)
    assert schema.unimplemented(layer_param.message) == [path]


def test_what_is_not_implemented_is_not_suggested(intels):
    with pytest.raises(ValueError) as caught:
        intels.parse("Data", DATA.replace("MORE", "shufle: true"))
    assert "Did you mean" not in str(caught.value) and "It may hold source, batch_size, backend, prefetch." in str(
        caught.value
    )


def test_what_is_implemented_reads_as_everywhere(intels):
    parsed = intels.parse("Data", DATA.replace("MORE", "prefetch: 3") + "transform_param { mirror: true }")
    assert (prefetch_of(parsed.data_param), parsed.transform_param.mirror) == (3, True)
    assert intels.schema("Data").unimplemented(parsed) == []


@pytest.mark.parametrize("more, prefetch", [("", 4), ("prefetch: 0", 4), ("prefetch: 7", 7)])
def test_nvidias_prefetch_of_0_leaves_it_to_the_layer(monkeypatch, more, prefetch):
    def change(messages):
        field = next(field for field in messages["DataParameter"].field if field.name == "prefetch")
        field.default_value = "0"

    assert prefetch_of(Fork(monkeypatch, change).parse("Data", DATA.replace("MORE", more)).data_param) == prefetch


def test_elsewhere_0_stays_what_was_written():
    assert prefetch_of(caffe_pb2.DataParameter(prefetch=0)) == 0


def test_an_old_caffe_without_prefetch_and_colors(monkeypatch):
    def change(messages):
        remove(messages["DataParameter"], "prefetch", "force_encoded_color")
        remove(messages["TransformationParameter"], "force_color", "force_gray")

    old = Fork(monkeypatch, change)
    parsed = old.parse("Data", DATA.replace("MORE", "") + "transform_param { scale: 2 }")
    assert prefetch_of(parsed.data_param) == 4
    assert color_of(parsed.transform_param) == "unchanged" and transform_of(parsed.transform_param, 1).scale == 2
    assert old.parse("ImageData", 'image_data_param { source: "x" }').image_data_param.source == "x"
