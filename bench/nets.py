"""Nets of a data layer and nothing else: Caffe's own, and ours."""

import tempfile

import pytest

pytest.importorskip("caffe._caffe")
import caffe  # noqa: E402

TRANSFORM = "crop_size: 227 mirror: true mean_value: 104 mean_value: 117 mean_value: 123"
SHAPE = (3, 227, 227)


def data_layer(path, batch_size, prefetch=4, threads=None, zero_copy=True):
    """The text of a TRAIN data layer over a database of images: ours with `threads`, Caffe's own without."""
    data = f'source: "{path}" backend: LMDB batch_size: {batch_size} prefetch: {prefetch}'
    if threads is None:
        return (f'layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ {data} }} '
                f"transform_param {{ {TRANSFORM} }} }}")
    options = f"threads: {threads} zero_copy: {str(zero_copy).lower()}"
    return ('layer { name: "data" type: "Python" top: "data" top: "label" python_param { module: "fastbatch.caffe" '
            f"layer: \"Data\" param_str: 'data_param {{ {data} }} transform_param {{ {TRANSFORM} }} {options}' }} }}")


def net(*layers):
    """A net in phase TRAIN, from the text of its layers."""
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write("\n".join(layers))
        file.flush()
        return caffe.Net(file.name, caffe.TRAIN)
