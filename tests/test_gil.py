"""Native threads work while another thread holds the GIL, as pycaffe does throughout net.forward()."""

import ctypes
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastbatch
from fastbatch import Loader, Transform, _build_info
from planned import PATIENCE, planned_loader, wait_until

pytestmark = pytest.mark.skipif("debug" in _build_info.MODE, reason="in debug builds workers take the GIL to be traced")


def hold_the_gil(seconds):
    """Sleeps in C without letting go of the GIL."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def test_a_python_thread_makes_no_progress_then():
    """What makes the tests below mean something."""
    steps, stop = [0], threading.Event()

    def step():
        while not stop.is_set():
            steps[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=step)
    interval = sys.getswitchinterval()
    thread.start()
    try:
        sys.setswitchinterval(100)  # nobody is made to give the GIL away between the lines below ...
        begun = steps[0]
        wait_until(lambda: steps[0] > begun)  # ... once the thread has begun a wait for it that knows of this
        before = steps[0]
        hold_the_gil(0.1)
        held = steps[0]
        sys.setswitchinterval(interval)
        wait_until(lambda: steps[0] > held)
        assert held == before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join(PATIENCE)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_sample_of_the_ring_is_read_while_the_gil_is_held(threads):
    """A C function opens the gate, and holds the GIL until the last sample that the ring has room for is read."""
    with planned_loader("w" + "." * 99, batch_size=4, prefetch=5, threads=threads) as (source, loader):
        wait_until(lambda: source.waiting == 1)
        assert loader.stats().ready < 6
        assert source.run_until_read_holding_the_gil(24) == 24
        wait_until(lambda: loader.stats().ready == 6)
        assert [batch.sample_keys for batch in loader] == [list(range(first, first + 4)) for first in range(0, 100, 4)]


def test_the_ring_fills_to_its_last_slot_while_the_gil_is_held():
    """Real work: crops of real arrays. Nothing looks at the ring before the GIL is back."""
    pictures = np.random.RandomState(0).randint(0, 256, (64, 3, 40, 40)).astype(np.uint8)
    with Loader(pictures, Transform(crop_size=32, mirror=True), batch_size=16, prefetch=7, threads=2) as loader:
        hold_the_gil(1)
        assert loader.stats().ready == 8
        assert loader.stats().samples == 8 * 16


def test_a_consumer_lets_go_of_the_gil_while_it_waits():
    with planned_loader("w", threads=1) as (source, loader):

        def open_gate():  # which gets no further than that unless next() lets it
            wait_until(lambda: loader._ring.consuming)
            source.open_gate()

        opener = threading.Thread(target=open_gate)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(100)
        try:
            opener.start()
            assert next(iter(loader)).sample_keys == [0]
        finally:
            sys.setswitchinterval(interval)
            opener.join(PATIENCE)


# Their Python-facing code uses Cython's memoryviews, which may be let go of without the GIL. No worker comes there.
WITH_MEMORYVIEWS = {"_codec", "_transform", "_windows"}
EXTENSIONS = sorted(Path(fastbatch.__file__).parent.rglob("*" + sysconfig.get_config_var("EXT_SUFFIX")))


def asks_for_the_gil(extension):
    """Whether the extension's code can call PyGILState_Ensure().

    Reasons are a check, a traceback or an ignored exception in a function without the GIL.
    """
    if shutil.which("nm") is None:
        pytest.skip("needs nm, of binutils")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(extension)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    assert "Py" in symbols
    return "PyGILState_Ensure" in symbols


@pytest.mark.skipif("sanitizer" in _build_info.MODE, reason="such a build keeps code that is never reached")
@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda path: path.name.partition(".")[0])
def test_no_worker_can_ask_for_the_gil(extension):
    """Workers must make progress while pycaffe holds the GIL; this checks compiled code without running it."""
    assert asks_for_the_gil(extension) == (extension.name.partition(".")[0] in WITH_MEMORYVIEWS)
