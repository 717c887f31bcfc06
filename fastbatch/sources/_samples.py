"""What a sample of the user's own code is: the names, types and shapes of its values, and how they get into arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy

from fastbatch._contract import DTYPES

__all__ = ["Layout", "layout_of"]

_SCALARS = {bool: numpy.dtype(bool), int: numpy.dtype(numpy.int64), float: numpy.dtype(numpy.float64)}
_NAMES = ("data", "label")
_MOST = 16  # values of a sample, and one more than the dimensions of each


class Layout:
    """The names, types and shapes of a sample's values.

    Parameters
    ----------
    fields : list of (str, numpy.dtype, tuple of int)
    keyed : bool
        Whether samples are dicts.
    single : bool
        Whether a sample is its only value, and not a tuple.
    """

    def __init__(self, fields: list[tuple[str, Any, tuple[int, ...]]], keyed: bool = False, single: bool = False):
        self.fields = fields
        self.keyed = keyed
        self.single = single
        self.names = [name for name, _, _ in fields]

    def put(self, sample: Any, arrays: Sequence[Any]) -> None:
        """Write a sample's values into arrays.

        Raises TypeError or ValueError if it is not like the sample that the layout was made of.
        """
        for field, array, value in zip(self.fields, arrays, self._values(sample)):
            if type(value) is not numpy.ndarray:
                value = as_value(value)
            dtype, shape = _type_of(value)
            if shape != field[2]:
                raise ValueError(_differs(field, f"has shape {shape}"))
            if dtype != field[1] and not _fits(value, dtype, field[1]):
                what = f"is {value!r}" if type(value) is int else f"has dtype {dtype}"
                raise TypeError(_differs(field, what))
            array[...] = value

    def _values(self, sample: Any) -> Sequence[Any]:
        if self.single:
            return (sample,)
        if self.keyed:
            if not isinstance(sample, Mapping) or len(sample) != len(self.names):
                raise ValueError(f"it is {said(sample)}, but the first sample is a dict of {', '.join(self.names)}")
            try:
                return [sample[name] for name in self.names]
            except KeyError as error:
                raise ValueError(f"it is {said(sample)}, and has no {error.args[0]!r}") from None
        if not isinstance(sample, (tuple, list)) or len(sample) != len(self.names):
            raise ValueError(
                f"it is {said(sample)}, but the first sample has {len(self.names)} values: {', '.join(self.names)}"
            )
        return sample


def layout_of(sample: Any, names: Optional[Sequence[str]] = None) -> Layout:
    """The layout of a sample, which all others must have too.

    `names` replaces the names of a tuple's values, which are otherwise "data", "label", "field2", "field3", ..., or
    those of a namedtuple.
    """
    keyed = single = False
    if isinstance(sample, Mapping):
        keyed = True
        found, values = list(sample), list(sample.values())
        if names is not None:
            raise ValueError(
                f"samples are dicts, whose keys are the names: {', '.join(map(str, found))}; leave names out"
            )
        for name in found:
            if not isinstance(name, str) or not name.isprintable() or not name:
                raise ValueError(f"a sample has the key {name!r}; a batch's arrays need printable strings for names")
    elif isinstance(sample, tuple) or (isinstance(sample, list) and not _is_array(sample)):
        values = list(sample)
        found = list(getattr(sample, "_fields", _NAMES[: len(values)]))
        found += [f"field{number}" for number in range(len(found), len(values))]
    else:
        single, values, found = True, [sample], ["data"]
    if names is not None:
        if len(names) != len(values):
            raise ValueError(f"names has {len(names)} names, and a sample has {len(values)} values")
        found = list(names)
    if not 1 <= len(values) <= _MOST:
        raise ValueError(f"a sample has {len(values)} values; a batch has 1 to {_MOST} arrays")
    fields = []
    for name, value in zip(found, values):
        try:
            value = as_value(value)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        dtype, shape = _type_of(value)
        if dtype not in DTYPES:
            raise TypeError(f"{name} has elements of type {dtype}; batches hold {', '.join(map(str, DTYPES))}")
        if len(shape) > 8:
            raise ValueError(f"{name} has shape {shape}; a sample's values have at most 8 dimensions")
        if name == "label" and dtype.kind in "iu" and dtype != numpy.uint64:
            dtype = numpy.dtype(numpy.int64)  # what a batch makes of it
        fields.append((name, DTYPES[DTYPES.index(dtype)], tuple(shape)))
    return Layout(fields, keyed, single)


def _type_of(value: Any) -> tuple[Any, tuple[int, ...]]:
    return (_SCALARS[type(value)], ()) if type(value) in _SCALARS else (value.dtype, value.shape)


def _fits(value: Any, given: Any, wanted: Any) -> bool:
    """Whether a value of one type can be stored as another without a loss. The types differ."""
    if type(value) is not int or wanted.kind == "b":
        return bool(numpy.can_cast(given, wanted, "safe"))
    if wanted.kind in "iu":
        limits = numpy.iinfo(wanted)
        return bool(limits.min <= value <= limits.max)
    return bool(abs(value) <= numpy.finfo(wanted).max)


def _differs(field: tuple[str, Any, tuple[int, ...]], what: str) -> str:
    name, dtype, shape = field
    return f"its {name} {what}, but the first sample's has dtype {dtype} and shape {shape}; all samples need the same"


def as_value(value: Any) -> Any:
    """A bool, int or float as it is, and anything else as a NumPy array: tensors, PIL images, lists of numbers.

    Raises TypeError if it is nothing of the kind.
    """
    if type(value) in _SCALARS or isinstance(value, numpy.ndarray):
        return value
    if isinstance(value, numpy.generic):
        return numpy.asarray(value)
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor
        try:
            return value.detach().cpu().numpy()
        except TypeError as error:  # NumPy has no bfloat16, and no sparse arrays
            raise TypeError(f"a value is a tensor that cannot become an array: {error}") from None
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__") or _is_array(value):
        return numpy.asarray(value)
    raise TypeError(
        f"a value is {said(value)}, and batches hold numbers: give an array, a tensor, an image, a number, or a list "
        "of numbers"
    )


def _is_array(value: Any) -> bool:
    """Whether a list is one of numbers, however nested."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (bool, int, float, numpy.generic))


def said(value: Any) -> str:
    """A value's type, for messages."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
