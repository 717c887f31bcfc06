"""soak.py: that it runs, and that it would find something."""

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import soak
from children import HANG, environment
from fastbatch import ArraySource


def test_a_short_soak():
    program = Path(soak.__file__)
    run = subprocess.run(
        [sys.executable, program, "--minutes", "0.1", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=HANG,
        env=environment(),
    )
    # On stderr, multiprocessing may say that the start of a process was interrupted.
    assert run.returncode == 0 and run.stdout.endswith("nothing went wrong\n"), run
    assert " batches" in run.stdout


def test_a_batch_that_is_not_what_it_was():
    stand = soak.Stand("numbers", ArraySource(np.arange(8)))
    with stand.loader() as loader:
        first, second = loader
        stand.check(first, (0, 0))
        with pytest.raises(AssertionError, match=r"^batch 1 of epoch 0 is not what it was: "):
            stand.check(first, (0, 1))
        stand.check(second, (0, 1))


def test_a_position_that_an_interrupt_lost():
    stand = soak.Stand("numbers", ArraySource(np.arange(40)))
    with stand.loader() as loader:
        batches = iter(loader)
        next(batches)
        assert stand.from_position(loader, stand.places[1:]) == stand.places[1:]
        next(batches)
        assert stand.from_position(loader, stand.places[1:]) == stand.places[2:]
        next(batches)
        with pytest.raises(AssertionError, match=r"an interrupt before \(0, 1\) led to \(0, 3\)"):
            stand.from_position(loader, stand.places[1:])


def test_something_that_is_left(tmp_path):
    gc.collect()  # what other tests left in cycles
    before = soak.left()
    path = str(tmp_path / "file")
    with open(path, "w"):
        assert soak.left()["file descriptors"] == {**before["file descriptors"], path: 1}
    assert soak.settled(before) == before
