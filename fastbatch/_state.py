"""The state of a `Loader`: where its consumer is, and of which order."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastbatch._text import counted

_EPOCHS = 2**32  # as many as there are different ones


class OrderKey(NamedTuple):
    """What an order is made from, such that the same position means the same samples with the same draws."""

    samples: int  # in the source
    step: int  # samples in a batch of all ranks
    seed: int
    shuffle: int  # 0: not; 1: all samples; otherwise the samples in a window. A state has to be short
    wrap: int  # 0 or 1: whether batches do not end with epochs
    weights: int = 0  # a number made of the weights; 0: there are none, and a state leaves it out

    def as_list(self) -> list[int]:
        """For a state."""
        return list(self if self.weights else self[:-1])


def check_state(state: Mapping[str, Any], own: OrderKey, ranks: int, any_seed: bool) -> tuple[int, int, int]:
    """The epoch, the number of its batches that were taken, and the seed, if `state` is one of the order `own`.

    Raises ValueError with the first difference otherwise.
    """
    try:
        epoch, batch, *order = map(_integer, (state["epoch"], state["batch"], *state["order"]))
        saved = OrderKey(*order)
        sound = saved.wrap in (0, 1) and saved.shuffle >= 0 and saved.weights >= 0
    except (KeyError, TypeError, IndexError):
        sound = False
    if not sound or not 0 <= epoch < _EPOCHS or not 0 <= batch < 2**64 or not 0 <= saved.seed < 2**64:
        raise ValueError(f"this is not a state of a Loader, as state_dict() returns it: {state!s:.200}")
    problem = None
    if saved.samples != own.samples:
        problem = f"a data set of {counted(saved.samples, 'sample')}, and this one has {own.samples}"
    elif saved.shuffle != own.shuffle:
        problem = f"a loader with {_said_of(saved.shuffle)}, and this one has {_said_of(own.shuffle)}"
    elif saved.weights != own.weights:
        problem = "a loader with other weights"
        if not own.weights:
            problem = "a loader with weights, and this one has none"
        elif not saved.weights:
            problem = "a loader without weights, and this one has weights"
    elif saved.seed != own.seed and not any_seed:
        problem = f"a loader with seed={saved.seed}, and this one has seed={own.seed}: give it that seed"
    elif saved.wrap != own.wrap:
        has = ['another last_batch than "wrap"', 'last_batch="wrap"']
        problem = f"a loader with {has[saved.wrap]}, and this one has {has[own.wrap]}"
    elif saved.step != own.step:
        problem = f"batches of {counted(saved.step, 'sample')} over all ranks, and here it is {own.step}"
        if saved.step % ranks == 0:
            problem += f": make the loader with batch_size={saved.step // ranks}"
    if problem is not None:
        raise ValueError(f"the state belongs to {problem}")
    most = -(-own.samples // own.step)
    if batch > most:
        raise ValueError(f"the state is damaged: it is at batch {batch} of an epoch that has only {most}")
    return epoch, batch, saved.seed


def _said_of(shuffle: int) -> str:
    """How one says it to a loader."""
    return f"shuffle={bool(shuffle)}" + (f", shuffle_window={shuffle}" if shuffle > 1 else "")


def _integer(value: Any) -> int:
    """`value` as an int, also if it is one of NumPy's, as some ways to save a state make them."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)
