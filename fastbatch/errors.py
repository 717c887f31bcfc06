"""The exceptions that fastbatch defines.

Each derives from :class:`FastbatchError` and from the built-in exception that a caller would expect, so
``except ValueError`` and ``except TimeoutError`` also work.
"""

from __future__ import annotations

from typing import Optional, Union

__all__ = [
    "BatchesHeldError",
    "Closed",
    "DataTimeout",
    "FastbatchError",
    "ForkedError",
    "MissingLibraryError",
    "SampleError",
    "SourceError",
    "TooManyErrors",
]

_MAX_KEY = 511  # bytes of a key that a message shows; a batch keeps as many


class FastbatchError(Exception):
    """The base class of fastbatch's exceptions."""


class Closed(FastbatchError, RuntimeError):
    """The queue, loader or layer was closed. Nothing more can be taken from it or put into it."""


class SourceError(FastbatchError, OSError):
    """A source as a whole cannot be opened or read: it is missing or empty, has another format, or was lost."""


class SampleError(FastbatchError, ValueError):
    """One sample could not be read or transformed.

    By default, the batch that should hold the sample is not delivered, and the next call returns the following batch;
    see `on_error` of `Loader`. If a worker of a
    `PythonSource` raised an exception, it is the `__cause__`.

    Attributes
    ----------
    source : str
        The name of the source, usually its path.
    key : bytes or int
        The sample's key in the source; its index if the source has no keys.
    index : int
        The sample's index in the source, from 0.
    stage : str
        The step that failed: "locate", "read", "decode", "collate" (which includes the transform), or "write" (of a
        source that writes into the batch itself, such as a `PythonSource`).
    reason : str
        What is wrong with the sample, and what to do about it.
    epoch, batch : int or None
        The epoch of the batch that is not delivered, and its number in that epoch. None if there is no batch, as with
        a source's `shape`.
    outcome : str or None
        What became of the sample: "raised" (its batch is not delivered, perhaps because of another sample), "skipped"
        or "replaced". None while a function given as `on_error` decides.
    """

    def __init__(
        self,
        source: str,
        key: Union[bytes, int],
        index: int,
        stage: str,
        reason: str,
        epoch: Optional[int] = None,
        batch: Optional[int] = None,
    ) -> None:
        super().__init__(source, key, index, stage, reason, epoch, batch)
        self.outcome: Optional[str] = "raised"
        self.source = source
        self.key = key
        self.index = index
        self.stage = stage
        self.reason = reason
        self.epoch = epoch
        self.batch = batch

    def __str__(self) -> str:
        key = self.key[:_MAX_KEY].decode("utf-8", "backslashreplace") if isinstance(self.key, bytes) else None
        sample = f"sample {self.index}" if key is None else f"sample {self.index} (key '{key}')"
        problem = f"{self.source}, {sample}: {self.reason}. It failed in stage '{self.stage}'"
        if self.batch is None:
            return problem + "."
        if self.outcome is None:
            return problem + f"; it belongs to batch {self.batch} of epoch {self.epoch}."
        if self.outcome == "skipped":
            return problem + f"; it was left out of batch {self.batch} of epoch {self.epoch}."
        if self.outcome == "replaced":
            return problem + f"; another sample takes its place in batch {self.batch} of epoch {self.epoch}."
        return problem + (
            f"; batch {self.batch} of epoch {self.epoch}, which holds it, is not delivered, and the next call gives "
            "the following batch."
        )


class TooManyErrors(FastbatchError, RuntimeError):
    """More samples could not be loaded than a loader's `error_budget` allows, or none of a whole epoch could be.

    The batch at which this happened is not delivered. The next call returns the following batch, or raises this again
    if that one has bad samples, too.

    Attributes
    ----------
    errors : list of SampleError
        The first errors of the loader.
    count : int
        The number of samples that could not be loaded, except those that `on_error` raised.
    """

    def __init__(self, text: str, errors: list[SampleError], count: int) -> None:
        super().__init__(text, errors, count)
        self.errors = errors
        self.count = count

    def __str__(self) -> str:
        return str(self.args[0])


class BatchesHeldError(FastbatchError, RuntimeError):
    """The caller holds every batch of the ring. None can be filled, so waiting for another would never end."""


class DataTimeout(FastbatchError, TimeoutError):
    """No batch became ready within the timeout. Nothing is lost: the next call waits for the same batch."""


class ForkedError(FastbatchError, RuntimeError):
    """The object was created before a fork and used in the child, where its threads do not exist."""


class MissingLibraryError(FastbatchError, ImportError):
    """The installed fastbatch was built without the C library that this feature needs."""
