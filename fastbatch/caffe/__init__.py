"""Caffe layers that load batches on fastbatch's threads.

In a prototxt:

    layer {
      name: "data"  type: "Python"  top: "data"  top: "label"
      python_param { module: "fastbatch.caffe"  layer: "Data" }
      data_param { source: "train_lmdb"  backend: LMDB  batch_size: 64 }
      transform_param { crop_size: 227 }
    }

Importing this package requires pycaffe. The `caffe` tool already contains it.
"""

try:
    import caffe
except ImportError as _problem:
    raise type(_problem)(
        f"fastbatch.caffe needs Caffe's own Python interface, and this Python cannot import it ({_problem}). Run it "
        "with a Python that can: Debian's package python3-caffe, or `make pycaffe` in Caffe's folder and that "
        "folder's python/ on the PYTHONPATH",
        name=_problem.name,
        path=_problem.path,
    ) from None
if not hasattr(caffe, "Layer"):
    raise ImportError(
        "fastbatch.caffe needs Caffe's own Python interface, but `import caffe` finds something else here: "
        f"{', '.join(map(str, caffe.__path__)) if hasattr(caffe, '__path__') else caffe.__file__}. Rename that, or "
        "take its folder off the PYTHONPATH (a script's own folder comes first on it)",
        name="caffe",
    )
from fastbatch.caffe.layers.data import Data
from fastbatch.caffe.layers.hdf5_data import HDF5Data
from fastbatch.caffe.layers.image_data import ImageData
from fastbatch.caffe.layers.memory_data import MemoryData, set_input_arrays
from fastbatch.caffe.layers.own import Layer
from fastbatch.caffe.layers.window_data import WindowData
from fastbatch.caffe.runtime.lifetime import registry
from fastbatch.caffe.snapshots import restore, snapshot

__all__ = [
    "Data",
    "HDF5Data",
    "ImageData",
    "Layer",
    "MemoryData",
    "WindowData",
    "close_all",
    "restore",
    "set_input_arrays",
    "snapshot",
]

LAYERS = {layer.__name__: layer for layer in (Data, HDF5Data, ImageData, MemoryData, WindowData)}
"""The layers by name, which is also the type of Caffe's own layer. `python -m fastbatch convert` rewrites to these."""


def close_all() -> None:
    """Stop the threads of all our layers in this process, those of living nets too, at once.

    The batch that a net shows stays readable; the next forward() raises `fastbatch.Closed`. May be called twice. After
    all layers are closed, raises the first error that a layer's close() raised.
    """
    registry.close_all()
