"""Programs that end, or go on, while a net's layer loads samples: what tests/layers/test_exits_of_nets.py runs."""

import gc
import os

import caffe

import exits
import nets
from fastbatch import SampleError
from fastbatch.caffe import Layer
from planned import wait_until

STATES = {state: rest for state, rest in exits.STATES.items() if state != "every slot leased"}  # a net holds one batch


def collected(happening):
    """The same, and then a garbage collection, by which it is noticed that a net is gone: Caffe destroys no layer."""

    def happen(begin):
        happening(begin)
        gc.collect()

    return happen


SURVIVED = {name: collected(happening) for name, happening in exits.SURVIVED.items()}


class Own(Layer):
    """A layer on worker processes."""

    def source(self, samples, start_method):
        return exits.python(samples, start_method=start_method)


def layer(kind, samples, folder):
    """The layer of a prototxt on samples of this kind: "LMDB", or a start method of worker processes."""
    size, prefetch = 20000 if samples == "slow" else exits.BATCH, exits.SLOTS - 1
    if kind == "LMDB":
        path = exits.database(samples, folder).path
        return nets.ours(nets.params(path, size, more=f"prefetch: {prefetch}") + "threads: 2")
    options = {"samples": samples, "start_method": kind, "batch_size": size, "prefetch": prefetch}
    python = f'python_param {{ module: "net_exits" layer: "Own" param_str: "{options}" }}'
    return f'layer {{ name: "data" type: "Python" top: "data" top: "label" {python} }}'


class Work:
    """A net at work: as exits.Work."""

    def __init__(self, kind, state, folder):
        self.samples, self.next, _ = STATES[state]
        path = os.path.join(folder, "net.prototxt")
        with open(path, "w") as file:
            file.write(layer(kind, self.samples, folder))
        self.net = caffe.Net(path, caffe.TRAIN)
        for _ in range(self.next):
            self.net.forward()
        if self.samples == "slow":
            wait_until(lambda: self.stats()["samples"])
        else:
            wait_until(lambda: self.stats()["ready"] == exits.SLOTS - (self.next > 0))

    def stats(self):
        return self.net.layers[0].stats()

    @property
    def processes(self):
        return self.net.layers[0]._ring.processes

    def go_on(self):
        """Shows what comes next, and looks at it; a batch of slow samples never comes."""
        if self.samples == "slow":
            before = self.stats()["samples"]
            wait_until(lambda: self.stats()["samples"] > before)
            return
        for _ in range(2 * exits.SLOTS):
            labels = [i % exits.COUNT for i in range(self.next * exits.BATCH, (self.next + 1) * exits.BATCH)]
            self.next += 1
            try:
                self.net.forward()
                assert self.net.blobs["label"].data.tolist() == labels
            except SampleError as error:
                assert self.samples == "bad" and error.index == exits.BAD and exits.BAD in labels, error

    def fails_in_a_child(self):
        try:
            self.net.forward()
        except RuntimeError as error:
            assert "built before the process forked" in str(error), error
        else:
            raise AssertionError("a child process used its parent's net")

    def close(self):
        self.net.layers[0].close()
