"""Data layers in Python over photographs, for python_source.py: the usual one, and one of ours."""

import json

import caffe
import numpy

import fastbatch.caffe
import nets
import own_code
from database import photographs

samples = None  # the queue that QueueLayer takes samples from


class QueueLayer(caffe.Layer):
    """The usual layer: forward() takes a batch's samples out of the queue."""

    def setup(self, bottom, top):
        self.batch_size = json.loads(self.param_str)["batch_size"]

    def reshape(self, bottom, top):
        top[0].reshape(self.batch_size, *own_code.SHAPE)
        top[1].reshape(self.batch_size)

    def forward(self, bottom, top):
        images, labels = zip(*(samples.get() for _ in range(self.batch_size)))
        top[0].data[...] = numpy.stack(images)
        top[1].data[...] = labels

    def backward(self, top, propagate_down, bottom):
        pass


class OurLayer(fastbatch.caffe.Layer):
    """The same samples from worker processes that write into the batch."""

    def source(self):
        return fastbatch.PythonSource(own_code.Photographs(photographs()[2]), workers=2)


def net(layer, batch_size):
    """A net of one of these layers and a convolution."""
    return nets.net(
        f'layer {{ name: "data" type: "Python" top: "data" top: "label" python_param {{ module: "{__name__}" '
        f"""layer: "{layer}" param_str: '{{"batch_size": {batch_size}}}' }} }}""",
        'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" '
        "convolution_param { num_output: 1 kernel_size: 7 stride: 16 } }",  # both cores are the loaders'
    )
