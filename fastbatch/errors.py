"""Every exception that fastbatch raises on its own account.

All of them derive from :class:`FastbatchError` and from the built-in exception that a caller would expect, so
``except ValueError`` and ``except TimeoutError`` work as well.
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
]

_MAX_KEY = 511  # bytes of a key that a message shows, as many as are kept with a batch


class FastbatchError(Exception):
    """The base class of fastbatch's exceptions."""


class Closed(FastbatchError, RuntimeError):
    """The queue, loader or layer was closed; nothing more can be had from it or put into it."""


class SourceError(FastbatchError, OSError):
    """A source as a whole cannot be opened or read: missing, empty, of another format, or lost on the way."""


class SampleError(FastbatchError, ValueError):
    """One sample could not be read or transformed.

    A batch that was to hold it is not delivered; the next call gives the following batch.

    Attributes
    ----------
    source : str
        The name of the source, usually its path.
    key : bytes or int
        The sample's key in the source; its index where the source has no keys.
    index : int
        The sample's place in the source, from 0.
    stage : str
        What was being done: "locate", "read", "decode" or "collate" (which includes the transform).
    reason : str
        What is wrong with the sample, and what to do about it.
    epoch, batch : int or None
        The epoch, and the number in that epoch of the batch that is not delivered; None where there is no batch, as
        with a source's `shape`.
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
        return problem + (
            f"; batch {self.batch} of epoch {self.epoch}, which holds it, is not delivered, and the next call gives "
            "the following batch."
        )


class BatchesHeldError(FastbatchError, RuntimeError):
    """The caller holds every batch of the ring, so that none can be filled: waiting for another one would never end."""


class DataTimeout(FastbatchError, TimeoutError):
    """No batch became ready within the timeout. Nothing is lost: the next call waits for the same batch."""


class ForkedError(FastbatchError, RuntimeError):
    """The object was made before a fork and is used in the child, where its threads do not exist."""


class MissingLibraryError(FastbatchError, ImportError):
    """The installed fastbatch was built without the C library that this needs."""
