"""How much of a training iteration is lost to loading data.

An iteration is forward and backward through CaffeNet's first layers, which use one core here. The data are JPEG
photographs (500 x 375, encoded records, crop 227, mirror, three mean values) from our Data layer, from Caffe's own, and
from a batch that is already in memory.
"""

import time

import nets
from database import photographs
from fastbatch.caffe import close_all
from interleave import Loop, in_turns

BATCH = 4  # Debian's BLAS takes a tenth of a second for each image
INPUT = (
    f'layer {{ name: "data" type: "Input" top: "data" top: "label" input_param {{ shape {{ dim: {BATCH} dim: 3 dim: '
    f"227 dim: 227 }} shape {{ dim: {BATCH} }} }} }}"
)
CAFFENET = """
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 96 kernel_size: 11 stride: 4 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
layer { name: "fc" type: "InnerProduct" bottom: "norm1" top: "fc"
        inner_product_param { num_output: 10 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""

# The photographs have labels up to 999, more than this net has outputs.
LABEL = (
    f'layer {{ name: "label" type: "DummyData" top: "label" dummy_data_param {{ shape {{ dim: {BATCH} }} }} }}\n'
    'layer { name: "unused" type: "Silence" bottom: "number" }'
)


class Training:
    """A net, and the share of each of its iterations that its data layer took, in percent."""

    def __init__(self, data_layer):
        self.net = nets.net(data_layer.replace('top: "label"', 'top: "number"'), LABEL, CAFFENET)
        self.shares = []

    def step(self):
        begin = time.perf_counter()
        self.net._forward(0, 0)
        data = time.perf_counter() - begin
        self.net._forward(1, len(self.net.layers) - 1)
        self.net.backward()
        self.shares.append(100 * data / (time.perf_counter() - begin))

    def side(self):
        return Loop(self.step, BATCH, 1)


def bench_training(benchmark, report):
    path, _, _ = photographs()
    trainings = {
        name: Training(layer)
        for name, layer in (
            ("ours", nets.data_layer(path, BATCH, threads=1)),
            ("caffe", nets.data_layer(path, BATCH)),
            ("nothing", INPUT),
        )
    }
    # Photographs instead of the initial zeros, for which pow() would take less time.
    trainings["ours"].net.forward()
    trainings["nothing"].net.blobs["data"].data[...] = trainings["ours"].net.blobs["data"].data
    sides = {name: training.side() for name, training in trainings.items()}
    for training in trainings.values():
        training.shares.clear()
    rates = in_turns(benchmark, sides.pop("ours"), sides)
    close_all()

    for name, side, target in ("ours", "ours", {"at_most": 2}), ("Caffe's own", "caffe", {}):
        lost = [100 * (best / rate - 1) for rate, best in zip(rates[side], rates["nothing"])]
        report.values(f"training with data from {name}: time lost", lost, "%", **target)
        report.values(f"training with data from {name}: in the layer's forward()", trainings[side].shares, "%")
    report.values("training without data: an iteration", [BATCH / rate for rate in rates["nothing"]], "s")
