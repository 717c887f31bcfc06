"""How the samples of a `PythonSource` are loaded, as its workers get it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, Callable, Optional, Union

from fastbatch.sources._iteration import InOrder
from fastbatch.sources._samples import Layout, layout_of, said

__all__ = ["Question", "Recipe", "payload_of", "said_of", "unpacked"]


class Recipe:
    """How samples are loaded: what a worker process gets.

    Parameters
    ----------
    load : callable
        load(index) returns a sample; with `fills`, load(index, out) fills the arrays of `out`.
    names : sequence of str or None
        See `layout_of`.
    fills : bool
    in_order : bool
        Whether one sample must be loaded after the other.
    padded : dict of str to int
    varying : bool or list of str
        See `layout_of`.
    """

    def __init__(
        self,
        load: Callable[..., Any],
        names: Optional[list[str]],
        fills: bool,
        in_order: bool = False,
        padded: Optional[dict[str, int]] = None,
        varying: Union[bool, Sequence[str]] = (),
    ):
        self.load = load
        self.names = names
        self.fills = fills
        self.in_order = in_order
        self.padded = padded or {}
        self.varying = varying

    def own(self) -> Recipe:
        """The same recipe, with an iteration of its own: that of an iterable belongs to one loader."""
        load = InOrder(self.load.iterable) if isinstance(self.load, InOrder) else self.load
        return Recipe(load, self.names, self.fills, self.in_order, self.padded, self.varying)

    def layout_of(self, index: int) -> Layout:
        """The layout of a sample."""
        layout = layout_of(self.load(index), self.names, self.padded, self.varying)
        layout.index = index
        return layout

    def loader(self, layout: Layout) -> Callable[[int, Any], None]:
        """A function of an index and a list of arrays, which loads that sample into them.

        If shapes vary, a function of an index and of a function of the shapes, which gives the arrays.
        """
        load, names = self.load, layout.names
        put: Callable[[Any, Any], None] = layout.put_varying if layout.varying else layout.put
        if self.fills:
            return lambda index, arrays: fill(load, index, dict(zip(names, arrays)))
        return lambda index, arrays: put(load(index), arrays)


def fill(load: Callable[[int, dict[str, Any]], Any], index: int, arrays: dict[str, Any]) -> None:
    """Have load(index, out) fill the arrays, in which it finds zeros: no earlier sample's values.

    Raises ValueError if it leaves values anywhere else than in the arrays.
    """
    for array in arrays.values():
        array.fill(0)
    out = dict(arrays)
    problem = misplaced(load(index, out), out, arrays)
    if problem is not None:
        raise ValueError(f"{said_of(load)}(index, out) {problem}")


def misplaced(result: Any, out: dict[str, Any], arrays: dict[str, Any]) -> Optional[str]:
    """Where load(index, out) has left values other than in the arrays, and what it must do instead. None: nowhere."""
    if result is not None:
        return (
            f"returned {said(result)}, and what counts are the arrays of out: fill them, as in "
            f'out["{next(iter(arrays))}"][...] = value, and return nothing. To return samples, leave fields= out'
        )
    for name, array in arrays.items():
        if out.get(name) is not array:
            did = f'put {said(out[name])} in the place of out["{name}"]' if name in out else f'removed out["{name}"]'
            return f'{did}, an array of the batch, which it must fill: write out["{name}"][...] = value'
    if len(out) > len(arrays):
        more = ", ".join(repr(name) for name in out if name not in arrays)
        return f"added {more} to out, and fields has {', '.join(arrays)}: all arrays need an entry there"
    return None


class Question:
    """Which samples are loaded to see what samples look like.

    Parameters
    ----------
    indices : list of int
        The first one says it, unless it has nothing in a value that is padded.
    tolerant : bool
        Whether those that cannot be loaded are passed over.
    """

    def __init__(self, indices: list[int], tolerant: bool):
        self.indices = indices
        self.tolerant = tolerant


class Sent:
    """A recipe on its way to a worker process, which unpickles it itself, so that an error there is its answer.

    It is pickled anew for each process, while that one is started: locks, shared memory and torch's tensors are sent
    along with one process, and cannot be unpickled by another one.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def __reduce__(self) -> tuple[Callable[[bytes], Arrived], tuple[bytes]]:
        try:
            return Arrived, (bytes(ForkingPickler.dumps(self.recipe)),)
        except Exception as error:
            raise TypeError(
                f"{said_of(self.recipe.load)} cannot be sent to worker processes: {error}. Define it, and what it "
                'refers to, at the top level of a module; or use start_method="fork", or kind="thread"'
            ) from error


class Arrived:
    """What becomes of `Sent` in the worker process."""

    def __init__(self, content: bytes):
        self.content = content


def payload_of(recipe: Recipe, context: Any) -> Union[Recipe, Sent]:
    """What a worker process is given. A forked one has the recipe already."""
    return recipe if context.get_start_method() == "fork" else Sent(recipe)


def unpacked(payload: Union[Recipe, Arrived]) -> Recipe:
    """The recipe, in the worker."""
    return pickle.loads(payload.content) if isinstance(payload, Arrived) else payload


def said_of(load: Any) -> str:
    """A function's or a data set's name, for messages."""
    if isinstance(load, InOrder):
        load = load.iterable
        return getattr(load, "__qualname__", type(load).__name__)
    owner = getattr(load, "__self__", None)
    return type(owner).__name__ if owner is not None else getattr(load, "__qualname__", repr(load))
