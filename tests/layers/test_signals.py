"""Exceptions from signal handlers are never lost, even while orphaned layers are closed."""

import random
import signal
import subprocess
import time

import pytest

pytest.importorskip("caffe._caffe")

from fastbatch.caffe.runtime._collection import Alone

# Nets come and go, and die in the garbage collector, until a handler raises.
SCRIPT = """
import gc, signal, sys
import caffe
import numpy as np
import databases, nets

class Stop(Exception):
    pass

def handler(number, frame):
    {raises}

signal.signal(signal.SIGTERM, handler)
path = databases.image_lmdb("db", 9)[0]
text = nets.ours(nets.params(path, 2) + "threads: 2")
open("net.prototxt", "w").write(text)
print("begin", flush=True)
kept = None
while True:
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    net.forward()
    kept = net.blobs["data"]
    del net
    gc.collect()
"""
RAISES = {
    "sys.exit": ("sys.exit(7)", 7, ""),
    "Exception": ("raise Stop", 1, "Stop"),
    "BaseException": ("raise KeyboardInterrupt", -signal.SIGINT, ""),
}


def end_of(start, raises, code, words, delay):
    process = start(SCRIPT.format(raises=raises))
    assert process.stdout.readline() == "begin\n"
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        raise AssertionError("the exception was lost") from None
    assert process.returncode == code, errors
    assert words in errors and "Exception ignored" not in errors and "could not be closed" not in errors


@pytest.mark.parametrize("what", RAISES)
def test_a_handlers_exception_ends_the_process(start, what):
    for delay in 0, 0.05:
        end_of(start, *RAISES[what], delay)


@pytest.mark.slow
@pytest.mark.parametrize("what", RAISES)
def test_a_handlers_exception_at_random_moments(start, what):
    draw = random.Random(what)
    for _ in range(8):
        end_of(start, *RAISES[what], draw.uniform(0, 0.3))


class Raised(Exception):
    pass


def test_only_one_at_a_time_and_free_again_after_an_exception():
    alone, calls = Alone(), []

    def function():
        calls.append(len(calls))
        alone(function)
        if len(calls) == 1:
            raise Raised

    with pytest.raises(Raised):
        alone(function)
    alone(function)
    assert calls == [0, 1]
