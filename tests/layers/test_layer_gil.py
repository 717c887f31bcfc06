"""Caffe holds the GIL while it computes: Python threads make no progress then, but fastbatch's threads do."""

import threading
import time

import pytest

pytest.importorskip("caffe._caffe")

from nets import ours, params, slow_lmdb

pytestmark = pytest.mark.usefixtures("leaves_nothing")

CONVOLUTION = """
    layer { name: "image" type: "Input" top: "image" input_param { shape { dim: 1 dim: 32 dim: 96 dim: 96 } } }
    layer { name: "convolution" type: "Convolution" bottom: "image" top: "convolution"
            convolution_param { num_output: 96 kernel_size: 5 weight_filler { type: "xavier" } } }
"""
SLOTS = 4


def seconds(function, *arguments, **keywords):
    start = time.monotonic()
    function(*arguments, **keywords)
    return time.monotonic() - start


def wait_until_full(layer):
    while layer.stats()["ready"] < SLOTS:
        time.sleep(0.001)


def test_the_ring_fills_while_caffe_computes(build, tmp_path):
    """During one long forward(), every slot fills, while a Python thread that tries to count makes no progress."""
    slow = slow_lmdb(tmp_path / "slow", [3])
    text = ours(params(slow, 8, more=f"prefetch: {SLOTS - 1}") + "threads: 1") + CONVOLUTION
    net = build(text)
    filling = seconds(wait_until_full, net.layers[0])
    images = 1 + int(8 * filling / seconds(net.forward, start="convolution"))  # enough to do for Caffe on any machine

    net = build(text.replace("dim: 1 ", f"dim: {images} "))
    layer = net.layers[0]
    counted, stop = 0, threading.Event()

    def count():
        nonlocal counted
        while not stop.is_set():
            counted += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    while counted == 0:
        time.sleep(0.001)
    try:
        before, counted_before = layer.stats()["ready"], counted
        net.forward(start="convolution")
        counted_after, after = counted, layer.stats()["ready"]
        time.sleep(0.05)
        assert counted > counted_after  # it does count when it may
    finally:
        stop.set()
        counter.join()
    assert before < SLOTS and after == SLOTS
    # A few while forward() begins and ends on a busy machine; a thread that could run meanwhile would count hundreds.
    assert counted_after - counted_before <= 20
    net.forward(end="data")
    assert net.blobs["label"].data.tolist() == 8 * [3]
    del layer
