"""Objects that exist, without keeping them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

__all__ = ["Known"]


class Known:
    """The objects of a kind that exist. They are not kept alive.

    By weak references without callbacks, unlike a WeakSet. A callback would be a Python function, in which a signal
    handler may raise, and such an exception is lost.
    """

    def __init__(self) -> None:
        self.references: dict[int, weakref.ref[Any]] = {}

    def add(self, *objects: Any) -> None:
        """Note objects, and forget those that are gone."""
        for number, reference in list(self.references.items()):
            if reference() is None and self.references.get(number) is reference:
                self.references.pop(number, None)
        for each in objects:
            self.references[id(each)] = weakref.ref(each)

    def __iter__(self) -> Iterator[Any]:
        found = [reference() for reference in list(self.references.values())]
        return iter([each for each in found if each is not None])
