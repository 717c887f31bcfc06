"""The orders of Caffe's layers, with their random numbers from Caffe's streams.

Their batches continue across the ends of epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from fastbatch.orders import _caffe
from fastbatch.orders._rows import CaffeRows
from fastbatch.transforms import Transform

__all__ = ["CaffeLines", "CaffeRecords", "CaffeRows", "CaffeSampling"]


@dataclass(frozen=True)
class CaffeRecords:
    """Data's order: every `ranks`-th record from record `rank` on, again and again.

    seed : int
        Of the MT19937 stream that the transform draws from, 0 <= seed < 2**32.
    transform : Transform, optional
        The loader's transform. It determines the draws for each record: one for mirror, two for a random crop.
    rank, ranks : int
        The solver's number, and the number of solvers.
    """

    seed: int
    transform: Optional[Transform] = None
    rank: int = 0
    ranks: int = 1
    random_access: ClassVar[bool] = False
    needs_count: ClassVar[bool] = False

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        return _caffe.records(count, self.seed, *_draws(self.transform), self.rank, self.ranks)


@dataclass(frozen=True)
class CaffeLines:
    """ImageData's order: the lines of a list, again and again, reshuffled for each epoch.

    seed : int
        Of the MT19937 stream that the transform draws from, 0 <= seed < 2**32.
    transform : Transform, optional
        The loader's transform. It determines the draws for each line: one for mirror, two for a random crop.
    shuffle_seed : int, optional
        Of the MT19937 stream that shuffles the lines before each epoch, each time from their current order. None: no
        shuffling.
    skip : int
        Number of lines to leave out, once, at the beginning; less than the number of lines.

    A state is as small as that of `CaffeRecords`. Loading one shuffles the lines once for every epoch that has begun.
    """

    seed: int
    transform: Optional[Transform] = None
    shuffle_seed: Optional[int] = None
    skip: int = 0
    needs_count: ClassVar[bool] = True

    @property
    def random_access(self) -> bool:
        """Whether the lines are shuffled."""
        return self.shuffle_seed is not None

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        assert count is not None  # needs_count
        return _caffe.lines(count, self.seed, *_draws(self.transform), self.shuffle_seed, self.skip)


@dataclass(frozen=True)
class CaffeSampling:
    """WindowData's order: windows drawn at random.

    The first windows of each batch are from the background, the others from the foreground. The source must have two
    samples for each window, the second one mirrored, with the windows of the background first; `CaffeWindows` does.

    seed : int
        Of the MT19937 stream that windows are drawn with, 0 <= seed < 2**32.
    background, foreground : int
        Number of windows, at least one of each.
    batch_size, foreground_count : int
        Of each `batch_size` samples, the last `foreground_count` are windows of the foreground.
    mirror : bool
        Whether windows are mirrored at random.
    """

    seed: int
    background: int
    foreground: int
    batch_size: int
    foreground_count: int
    mirror: bool = False
    random_access: ClassVar[bool] = True
    needs_count: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.foreground_count <= self.batch_size or self.batch_size < 1:
            raise ValueError(f"of {self.batch_size} windows {self.foreground_count} cannot be foreground")
        if self.background < 1 or self.foreground < 1:
            raise ValueError(
                f"there must be windows of the background and of the foreground, not {self.background} and "
                f"{self.foreground}"
            )

    def __fastbatch_order__(self, count: Optional[int]) -> Any:
        assert count is not None  # needs_count
        return _caffe.sampling(
            count, self.seed, self.background, self.foreground, self.batch_size, self.foreground_count, self.mirror
        )


def _draws(transform: Optional[Transform]) -> tuple[bool, bool]:
    """Whether the transform draws for mirror, and for a crop."""
    if transform is None:
        return False, False
    return transform.mirror, transform.phase == "TRAIN" and transform.crop_size != 0
