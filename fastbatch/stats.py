"""`Stats`: the counters of a loader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

__all__ = ["Stats"]


@dataclass(frozen=True)
class Stats:
    """A loader's counters since it was created, taken without stopping it.

    If `waited_for_data` is large and `ready` mostly 0, the loader is the bottleneck; give it more threads. If
    `waited_for_space` is large and `ready` near `slots`, the consumer is the bottleneck, and the loader costs it
    nothing.
    """

    ready: int
    """Batches that are full and wait for the consumer."""
    held: int
    """Batches that the caller holds: the batch or one of its arrays is alive."""
    slots: int
    """Batches in the ring: prefetch + 1."""
    threads: int
    """Worker threads."""
    samples: int
    """Samples written into batches, prefetched ones included."""
    errors: int
    """Batches with a sample that failed, whether or not its error has been raised yet."""
    last_error: Optional[str]
    """The message of the latest of those errors, without its batch; None if there was none."""
    skipped: int
    """Samples that failed and were left out: see `on_error` of `Loader`. `Loader.errors` says which."""
    replaced: int
    """Samples that failed and whose place another one took. `Loader.errors` says which."""
    waited_for_data: float
    """Seconds that the consumer has waited in next()."""
    waited_for_space: float
    """Seconds that the workers have waited for a free batch."""
    seed: int
    """The seed of the shuffle and of the random draws: the same seed gives the same batches."""
