"""Nets of the real Caffe with our Data layer or Caffe's own, and checks of a process's resources."""

import os

import caffe
import numpy as np

from children import names_of_native_threads
from databases import datum, images, write_lmdb
from fastbatch.caffe.runtime.lifetime import registry


def params(source, batch_size, transform="", more=""):
    """data_param { } of a database, with `more` inside, and transform_param { } if there is a transform."""
    backend = "" if os.path.exists(os.path.join(source, "CURRENT")) else "backend: LMDB"  # the other is the default
    transform_param = f"transform_param {{ {transform} }} " if transform else ""
    return f'data_param {{ source: "{source}" {backend} batch_size: {batch_size} {more} }} {transform_param}'


def ours(param_str, tops=("data", "label"), more="", module="fastbatch.caffe"):
    """Our Data layer, in a prototxt. `more` goes into the layer; single quotes may not stand in `param_str`."""
    python = f'python_param {{ module: "{module}" layer: "Data" param_str: \'{" ".join(param_str.split())}\' }}'
    return f'layer {{ name: "data" type: "Python" {_tops(tops)} {python} {more} }}\n'


def caffes(param_str, tops=("data", "label"), more=""):
    """Caffe's own Data layer, with what would be our layer's param_str."""
    return f'layer {{ name: "data" type: "Data" {_tops(tops)} {param_str} {more} }}\n'


def _tops(tops):
    return " ".join(f'top: "{top}"' for top in tops)


def shown(net, names=("data", "label")):
    """Copies of what these blobs show now."""
    return [net.blobs[name].data.copy() for name in names]


def assert_same_bits(found, expected):
    """Asserts equal shapes and equal bits; this distinguishes -0 from 0, and NaNs from each other."""
    assert [(array.shape, array.dtype) for array in found] == [(array.shape, array.dtype) for array in expected]
    for array, reference in zip(found, expected):
        np.testing.assert_array_equal(array.view(np.uint32), reference.view(np.uint32))


def run(build, text, forwards, *, seed=None, phase=caffe.TRAIN, names=("data", "label")):
    """Seeds Caffe's stream and builds a net. Returns copies of the blobs `names` after each forward(), in one list."""
    if seed is not None:
        caffe.set_random_seed(seed)
    net = build(text, phase)
    arrays = []
    for _ in range(forwards):
        net.forward()
        arrays += shown(net, names)
    del net
    registry.sweep()  # a LevelDB can be opened again when the layer that reads it is gone
    return arrays


def labels(build, text, forwards, phase=caffe.TRAIN):
    """The labels of the first `forwards` batches, as one list of ints."""
    return [int(label) for batch in run(build, text, forwards, phase=phase, names=["label"]) for label in batch]


def slow_lmdb(path, labels=(0,), megabytes=1):
    """A database of tiny images that take milliseconds to read: each is followed by megabytes of unknown fields.

    A batch of thousands of these is one that does not get ready while a test looks at what happens meanwhile.
    """
    unknown = b"\xf8\x07\x01" * (megabytes * 2**20 // 3)
    return write_lmdb(path, [datum(images(1, (1, 2, 2))[0], label) + unknown for label in labels])


def native_threads():
    """The names of fastbatch's threads in this process."""
    return sorted(names_of_native_threads().values())


def open_files(part=""):
    """The paths that this process has open and that contain `part`."""
    targets = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            pass  # the one that listdir() itself used
    return sorted(target for target in targets if part in target)


def thread_count():
    return len(os.listdir("/proc/self/task"))


def anonymous_kb():
    """RssAnon: the memory of this process that is in RAM and no file's, in KB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
