"""What a loader says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

__all__ = ["Stats"]


@dataclass(frozen=True)
class Stats:
    """A loader's counters since it was made, all taken without stopping it.

    `waited_for_data` large and `ready` mostly 0: the loader is the bottleneck; give it more threads. `waited_for_space`
    large and `ready` near `slots`: the consumer is the bottleneck, and the loader costs it nothing.
    """

    ready: int
    """Batches that are full and wait for the consumer."""
    held: int
    """Batches in the caller's hands: alive, or with an array of them alive."""
    slots: int
    """Batches in the ring: prefetch + 1."""
    threads: int
    """Worker threads."""
    samples: int
    """Samples written into batches, prefetched ones included."""
    errors: int
    """Batches that failed, whether or not their error has been raised yet."""
    last_error: Optional[str]
    """The latest of those errors, in the words of its `SampleError`, but for the batch; None without one."""
    waited_for_data: float
    """Seconds that the consumer has waited in next()."""
    waited_for_space: float
    """Seconds that the workers have waited for a free batch."""
    seed: int
    """The seed of the shuffle and of the random draws: the same seed gives the same batches."""
