"""The layer parameter: what the prototxt says in the layer, such as `data_param { }` beside `python_param { }`.

pycaffe does not pass it to Python layers. _layer_param.pyx obtains it in a way that might find something else in
another Caffe. It is therefore trusted only if it agrees with all that pycaffe does pass to the layer.
"""

import sys
from typing import NamedTuple

import caffe
from caffe.proto import caffe_pb2
from google.protobuf.message import DecodeError

from fastbatch.caffe.runtime._layer_param import keep, serialized


class LayerParam(NamedTuple):
    """The layer parameter of a layer, or the reason why it is not available.

    message: a caffe_pb2.LayerParameter, or None.
    reason: if message is None, the end of a sentence ("..., because ...").
    """

    message: object = None
    reason: str = ""

    def __str__(self):
        """The name of the layer, for messages."""
        return f'layer "{self.message.name}"' if self.message is not None else "this layer"


class ParamLayer(caffe.Layer):
    """A Python layer that can read its layer parameter, in setup().

    Thread-safety: a layer belongs to the thread that runs its net.
    """

    _layer_param = None

    __init__ = keep

    def _read_layer_param(self, top):
        """Return the LayerParam of this layer, whose tops are `top`. Call it once, in setup()."""
        layer_param, self._layer_param = self._layer_param, None
        if layer_param is None:
            return LayerParam(
                reason="it can be read only once, and only if the layer's __init__ calls that of its base class"
            )
        try:
            message = caffe_pb2.LayerParameter.FromString(serialized(layer_param))
        except LookupError as problem:
            return LayerParam(reason=str(problem))
        except DecodeError as problem:
            return LayerParam(reason=f"what was found is not a LayerParameter of this pycaffe ({problem})")
        python = message.python_param
        found = {
            "its type": (message.type, self.type),
            "its class": (getattr(sys.modules.get(python.module), python.layer, None), type(self)),
            "its param_str": (python.param_str, self.param_str),
            "its phase": (message.phase, self.phase),
            "the number of its tops": (len(message.top), len(top)),
        }
        for what, (there, here) in found.items():
            if there != here:
                return LayerParam(
                    reason=f"what was found is of another layer: {what} should be {here!r} and is {there!r}"
                )
        return LayerParam(message)
