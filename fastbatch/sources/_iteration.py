"""Iterables as sources: samples that come one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

from fastbatch._text import counted
from fastbatch.sources._current import current_sample

__all__ = ["InOrder"]


class InOrder:
    """Loads the samples of an iterable, or of what a generator function generates, one after the other.

    Parameters
    ----------
    iterable
    """

    def __init__(self, iterable: Any):
        self.iterable = iterable
        self.iterator: Optional[Iterator[Any]] = None
        self.epoch = self.next = 0
        self.asked = -1  # the index that was asked for last in this epoch
        self.broken: Optional[str] = None

    def __call__(self, index: int) -> Any:
        epoch = current_sample().epoch
        if self.iterator is None or epoch != self.epoch or index <= self.asked:
            self.iterator = iter(self.iterable() if callable(self.iterable) else self.iterable)
            self.epoch, self.next, self.broken = epoch, 0, None
        self.asked = index
        while True:
            if self.broken is not None:
                raise RuntimeError(f"the iteration has already ended in this epoch: {self.broken}")
            try:
                sample = next(self.iterator)
            except StopIteration:
                self.broken = f"it gives {counted(self.next, 'sample')}, and the source was made with a count of more"
            except BaseException as error:
                self.broken = f"sample {self.next} raised {type(error).__name__}"
                raise
            else:
                self.next += 1
                if self.next > index:
                    return sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "iterator": None}
