"""Nets of a data layer and nothing else: Caffe's own, and ours."""

import tempfile

import pytest

pytest.importorskip("caffe._caffe")
import caffe

TRANSFORM = "crop_size: 227 mirror: true mean_value: 104 mean_value: 117 mean_value: 123"
SHAPE = (3, 227, 227)


def data_layer(
    path, batch_size, prefetch=4, threads=None, zero_copy=True, backend="LMDB", transform=TRANSFORM, more=""
):
    """The text of a TRAIN data layer over a database of images: ours with `threads`, Caffe's own without.

    more: further parameters of ours.
    """
    data = f'source: "{path}" backend: {backend} batch_size: {batch_size} prefetch: {prefetch}'
    if threads is None:
        return (
            f'layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ {data} }} '
            f"transform_param {{ {transform} }} }}"
        )
    options = f"threads: {threads} zero_copy: {str(zero_copy).lower()} {more}"
    return (
        'layer { name: "data" type: "Python" top: "data" top: "label" python_param { module: "fastbatch.caffe" '
        f"layer: \"Data\" param_str: 'data_param {{ {data} }} transform_param {{ {transform} }} {options}' }} }}"
    )


def image_layer(source, folder, batch_size, prefetch=4, threads=None):
    """The text of a TRAIN ImageData layer over a list of files, resized to 256 x 256.

    Ours with `threads`, Caffe's own without.
    """
    kind, python = "ImageData", ""
    if threads is not None:
        kind, python = (
            "Python",
            f'python_param {{ module: "fastbatch.caffe" layer: "ImageData" param_str: "threads: {threads}" }}',
        )
    images = f'source: "{source}" root_folder: "{folder}" batch_size: {batch_size} new_height: 256 new_width: 256'
    return (
        f'layer {{ name: "data" type: "{kind}" top: "data" top: "label" {python} data_param {{ prefetch: {prefetch} }} '
        f"image_data_param {{ {images} }} transform_param {{ {TRANSFORM} }} }}"
    )


def hdf5_layer(source, batch_size, threads=None):
    """The text of an HDF5Data layer over the files in the list `source`: ours with `threads`, Caffe's own without."""
    kind, python = "HDF5Data", ""
    if threads is not None:
        kind, python = (
            "Python",
            f'python_param {{ module: "fastbatch.caffe" layer: "HDF5Data" param_str: "threads: {threads}" }}',
        )
    return (
        f'layer {{ name: "data" type: "{kind}" top: "data" top: "label" {python} '
        f'hdf5_data_param {{ source: "{source}" batch_size: {batch_size} }} }}'
    )


def window_layer(source, folder, batch_size, prefetch, context_pad, threads=None):
    """The text of a TRAIN WindowData layer: ours with `threads`, Caffe's own without."""
    kind, python = "WindowData", ""
    if threads is not None:
        kind, python = (
            "Python",
            f'python_param {{ module: "fastbatch.caffe" layer: "WindowData" param_str: "threads: {threads}" }}',
        )
    windows = f'source: "{source}" root_folder: "{folder}" batch_size: {batch_size} context_pad: {context_pad}'
    return (
        f'layer {{ name: "data" type: "{kind}" top: "data" top: "label" {python} data_param {{ prefetch: {prefetch} }} '
        f"window_data_param {{ {windows} }} transform_param {{ {TRANSFORM} }} }}"
    )


def net(*layers):
    """A net in phase TRAIN, from the text of its layers."""
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write("\n".join(layers))
        file.flush()
        return caffe.Net(file.name, caffe.TRAIN)
