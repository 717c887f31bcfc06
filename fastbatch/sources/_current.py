"""What a worker of a `PythonSource` is loading."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Optional

__all__ = ["CurrentSample", "begin", "current_sample", "end"]


@dataclass(frozen=True)
class CurrentSample:
    """What a worker is loading.

    Attributes
    ----------
    index, epoch : int
        The sample's index, and the epoch that it is loaded for, from 0.
    seed : int
        0 <= seed < 2**64, for the sample's random numbers: a function of the loader's seed, the epoch and the index.
    """

    index: int
    epoch: int
    seed: int


class _Current(threading.local):
    sample: Optional[tuple[int, int, int]] = None


_current = _Current()


def current_sample() -> CurrentSample:
    """The sample that your code is loading in a worker of a `PythonSource`.

    Raises RuntimeError anywhere else. Thread-safe: each worker thread has its own.
    """
    if _current.sample is None:
        raise RuntimeError("no sample is being loaded here: current_sample() is for code that a PythonSource runs")
    return CurrentSample(*_current.sample)


def begin(index: int, epoch: int, seed: int) -> None:
    """Note which sample is loaded next."""
    _current.sample = (index, epoch, seed)


def end() -> None:
    """No sample is being loaded any more."""
    _current.sample = None
