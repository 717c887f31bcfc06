"""Orders of samples, for any source.

An order maps every position, counted from 0 over all epochs, to the index of a sample, the epoch, and four random
numbers for that sample. A `Loader` uses `Linear`, `Permuted`, `Windowed` and `Weighted`. `Sharded` divides one of them
among processes.
`fastbatch.orders.caffe` has the orders of Caffe's layers. The native contract is native/order.h.

An order has a few parameters and no state: `__fastbatch_order__(count)` gives each loader a running order. `Positions`
runs an order without a loader, and saves and loads its state.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Optional, Protocol

import numpy

from fastbatch.orders import _plain
from fastbatch.orders._positions import Positions

__all__ = ["Endless", "Linear", "Order", "Permuted", "Positions", "Sharded", "Weighted", "Windowed", "in_batches"]


class Order(Protocol):
    """What a loader needs from an order. For type checkers; an order need not derive from it."""

    @property
    def random_access(self) -> bool:
        """Whether samples are requested in a different order than the source's."""

    @property
    def needs_count(self) -> bool:
        """Whether the number of samples must be known before the first one is read."""

    def __fastbatch_order__(self, count: Optional[int], /) -> Any:
        """Return a PyCapsule named "fastbatch.order" that holds an fb_order over `count` samples.

        `count` is None if the number is not known yet; only without `needs_count`.
        """


@dataclass(frozen=True)
class Linear:
    """Sample 0, 1, 2, ... in every epoch.

    seed : int
        0 <= seed < 2**64, for the samples' random numbers, which are a function of (seed, epoch, index).
    """

    seed: int = 0
    random_access: ClassVar[bool] = False
    needs_count: ClassVar[bool] = True

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        assert count is not None  # needs_count
        return _plain.linear(count, self.seed)


@dataclass(frozen=True)
class Permuted:
    """Every sample once per epoch, in a new order each time: a keyed permutation, which takes no memory.

    seed : int
        0 <= seed < 2**64, for the permutations and for the samples' random numbers, which are those of `Linear`.
    """

    seed: int = 0
    random_access: ClassVar[bool] = True
    needs_count: ClassVar[bool] = True

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        assert count is not None  # needs_count
        return _plain.permuted(count, self.seed)


@dataclass(frozen=True)
class Windowed:
    """Every sample once per epoch, in a new order each time that reads one region of the data after the other.

    The samples are divided into windows of consecutive samples. The windows come in a new order in each epoch, and so
    do the samples in each window. What is left over, less than a window, is the last window of an epoch. Where the
    first window begins is drawn for each epoch, and the first sample follows the last one.

    seed : int
        0 <= seed < 2**64, as of `Permuted`.
    window : int
        Samples in a window, at least 2.
    """

    seed: int
    window: int
    random_access: ClassVar[bool] = True
    needs_count: ClassVar[bool] = True

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        assert count is not None  # needs_count
        return _plain.windowed(count, self.seed, self.window)


class Weighted:
    """Samples drawn at random, each with a probability in proportion to its weight, whatever was drawn before.

    An epoch has as many positions as there are samples. The random numbers of a sample are a function of (seed, epoch,
    position), so that they differ where a sample occurs again.

    seed : int
        0 <= seed < 2**64, for the samples and for their random numbers.
    weights : array of float
        One for each sample: finite, at least 0, and not all 0.

    Raises ValueError or TypeError if they are no weights.
    """

    random_access: ClassVar[bool] = True
    needs_count: ClassVar[bool] = True

    def __init__(self, seed: int, weights: Any):
        self.seed = seed
        try:
            self.weights = numpy.array(weights, numpy.float64)
        except (TypeError, ValueError):
            raise TypeError(f"weights must be numbers, one for each sample, not {weights!r:.100}") from None
        if self.weights.ndim != 1 or self.weights.size == 0:
            raise ValueError(
                f"weights must be a list of numbers, one for each sample, and has shape {self.weights.shape}"
            )
        wrong = ~(numpy.isfinite(self.weights) & (self.weights >= 0))
        if wrong.any():
            index = int(wrong.argmax())
            raise ValueError(f"weights must be finite and at least 0, and weights[{index}] is {self.weights[index]}")
        with numpy.errstate(over="ignore"):
            self._sums = numpy.cumsum(self.weights)
        if not 0 < self._sums[-1] < numpy.inf:
            raise ValueError(f"weights must have a sum above 0 that is finite, and theirs is {self._sums[-1]}")
        self.weights.flags.writeable = False
        self.check = zlib.crc32(self.weights.tobytes()) or 1
        """A number from 1 to 2**32 - 1 that other weights hardly have."""

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Weighted) and self.seed == other.seed
        return same and numpy.array_equal(self.weights, other.weights)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((self.seed, self.check))

    def with_seed(self, seed: int) -> Weighted:
        """The same weights with another seed."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        if count != len(self.weights):
            raise ValueError(
                f"weights has {len(self.weights)} numbers, and there are {count} samples: it needs one for each"
            )
        return _plain.weighted(self._sums, self.seed, self.check)


@dataclass(frozen=True)
class Endless:
    """Another order whose batches do not stop at the end of an epoch: the next epoch begins in the same batch.

    order : Order
        An order with epochs: `Linear`, `Permuted`, `Windowed`, `Weighted`, or a shard.
    """

    order: Order

    @property
    def random_access(self) -> bool:
        """Whether the order requests samples in a different order than the source's."""
        return self.order.random_access

    needs_count: ClassVar[bool] = True

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        return _plain.endless(self.order.__fastbatch_order__(count))


@dataclass(frozen=True)
class Sharded:
    """One process's share of another order: every `ranks`-th position of its epochs, from `rank` on.

    In every epoch each position is in exactly one shard. If `ranks` does not divide the number of samples, the lengths
    of the shards differ by one, unless `even` makes them equal. All shards must be created from the same order, with
    the same seed.

    order : Order
        An order with epochs: `Linear`, `Permuted`, `Windowed`, `Weighted`, or a shard; or one of these as `Endless`. Of
        that, positions are taken as if all epochs were one, so that the ranks never drift apart.
    rank, ranks : int
        0 <= rank < ranks.
    even : None, "pad" or "drop"
        "pad" makes all shards as long as the longest: the missing samples are those from the beginning of the epoch,
        which then occur twice. "drop" makes them as short as the shortest: the last samples of the epoch, fewer than
        `ranks`, are in no shard.
    multiple : int
        With `even`, the lengths are a multiple of this, such as the size of a batch: as many samples more are repeated
        or left out.
    """

    order: Order
    rank: int
    ranks: int
    even: Optional[Literal["pad", "drop"]] = None
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank must be at least 0 and less than ranks; it is {self.rank} of {self.ranks}")
        if self.even not in _plain.EVEN:
            raise ValueError(f'even must be "pad", "drop" or None, not {self.even!r}')
        if self.multiple < 1 or (self.multiple > 1 and self.even is None):
            raise ValueError(f"multiple must be at least 1, and 1 without even; it is {self.multiple}")

    @property
    def random_access(self) -> bool:
        """Whether the divided order requests samples in a different order than the source's."""
        return self.order.random_access

    needs_count: ClassVar[bool] = True

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        return _plain.sharded(self.order.__fastbatch_order__(count), self.rank, self.ranks, self.even, self.multiple)


def in_batches(
    order: Order,
    batch_size: int,
    last_batch: Literal["partial", "drop", "pad", "wrap"],
    *,
    rank: int = 0,
    ranks: int = 1,
    even: Optional[Literal["pad", "drop"]] = None,
) -> Order:
    """A rank's share of an order with epochs, such that its batches end as `last_batch` says; see `Loader`."""
    if last_batch == "wrap":
        return Endless(order) if ranks == 1 else Sharded(Endless(order), rank, ranks)
    if last_batch == "partial":
        return order if ranks == 1 else Sharded(order, rank, ranks, even)
    if even is None or even == last_batch:
        return Sharded(order, rank, ranks, last_batch, batch_size)
    return Sharded(Sharded(order, rank, ranks, even), 0, 1, last_batch, batch_size)
