"""What a sample of the user's own code is: the names, types and shapes of its values, and how they get into arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Union

import numpy

from fastbatch._contract import DTYPES
from fastbatch._text import counted

__all__ = ["Layout", "are_names", "declared_fields", "layout_of", "sample_count"]

_SCALARS = {bool: numpy.dtype(bool), int: numpy.dtype(numpy.int64), float: numpy.dtype(numpy.float64)}
_NAMES = ("data", "label")
_MOST = 16  # values of a sample
_HELD = ", ".join(map(str, DTYPES))
_NOTHING = 'it is None: to leave a sample out, raise an exception, and give the loader on_error="skip" or "replace"'
_EXACT = 2**53  # up to which a float64 holds every integer

Field = tuple[str, Any, tuple[int, ...]]  # a name, a numpy.dtype and a shape


class Layout:
    """The names, types and shapes of a sample's values, and of the arrays that they go into.

    Parameters
    ----------
    fields : list of (str, numpy.dtype, tuple of int)
        The arrays. A padded value has two, of which the second one is "..._count".
    keyed : bool
        Whether samples are dicts.
    single : bool
        Whether a sample is its only value, and not a tuple.
    padded : dict of str to int
        For each value that is padded, how many rows its array has.
    varying : sequence of str
        The fields whose shapes vary. Their shapes in `fields` are those of one sample.

    Attributes
    ----------
    names : list of str
        The names of the values.
    settled : bool
        Whether the layout was made of rows, wherever a value is padded, and not of an empty array.
    index : int
        The sample that the layout was made of.
    """

    def __init__(
        self,
        fields: list[Field],
        keyed: bool = False,
        single: bool = False,
        padded: Optional[Mapping[str, int]] = None,
        varying: Sequence[str] = (),
    ):
        self.fields = fields
        self.keyed = keyed
        self.single = single
        self.padded = dict(padded or {})
        self.varying = tuple(varying)
        counts = [f"{name}_count" for name in self.padded]
        self.names = [name for name, _, _ in fields if name not in counts]
        self.settled = True
        self.index = 0

    def put(self, sample: Any, arrays: Sequence[Any]) -> None:
        """Write a sample's values into arrays.

        Raises TypeError or ValueError if it is not like the sample that the layout was made of.
        """
        values = self._values(sample)
        if self.padded:
            values = self._with_counts(values)
        for field, array, value in zip(self.fields, arrays, values):
            _, wanted, wanted_shape = field
            dtype, shape = _SCALARS.get(type(value)), ()
            if dtype is None:
                value = as_value(value)
                dtype, shape = value.dtype, value.shape
            if shape != wanted_shape or (dtype is not wanted and dtype != wanted):
                self._check(field, value, dtype, shape)
            array[...] = value

    def put_varying(self, sample: Any, arrays_of: Callable[[list[tuple[int, ...]]], Sequence[Any]]) -> None:
        """As `put`, into the arrays that arrays_of(shapes) gives."""
        values = [as_value(value) for value in self._with_counts(self._values(sample))]
        shapes = []
        for field, value in zip(self.fields, values):
            dtype, shape = _type_of(value)
            self._check(field, value, dtype, shape)
            shapes.append(shape)
        for array, value in zip(arrays_of(shapes), values):
            array[...] = value

    def _check(self, field: Field, value: Any, dtype: Any, shape: tuple[int, ...]) -> None:
        """Raise TypeError or ValueError if a value does not fit its field."""
        if field[0] in self.varying:
            if len(shape) != len(field[2]):
                raise ValueError(
                    f"its {field[0]} has shape {shape}, and the first sample's has "
                    f"{counted(len(field[2]), 'dimension')}; sizes may vary, and the number of dimensions may not"
                )
        elif shape != field[2]:
            what = _differs(field, f"has shape {shape}")
            if len(shape) == len(field[2]) and field[0] not in self.padded:
                what += f'. If shapes vary, say PythonSource(..., varying=("{field[0]}",))'
                if shape[1:] == field[2][1:]:
                    what += f', or padded={{"{field[0]}": ...}} to have rows of zeros behind each'
            raise ValueError(what)
        if dtype != field[1] and not _fits(value, dtype, field[1]):
            what = f"is {value!r}" if type(value) is int else f"has dtype {dtype}"
            if type(value) is not int and numpy.can_cast(dtype, field[1], "safe"):
                what += f" and integers that no {field[1]} holds exactly"
            raise TypeError(_differs(field, what))

    def _values(self, sample: Any) -> Sequence[Any]:
        if sample is None:
            raise TypeError(_NOTHING)
        if self.single:
            return (sample,)
        if self.keyed:
            wanted = f"the first sample is a dict of {', '.join(self.names)}"
            if not isinstance(sample, Mapping):
                raise ValueError(f"it is {said(sample)}, but {wanted}")
            lacks = [f"no {name!r}" for name in self.names if name not in sample]
            has = [repr(name) for name in sample if name not in self.names]
            if lacks or has:
                raise ValueError(f"it has {' and '.join(has + lacks)}, but {wanted}; all samples need the same keys")
            return [sample[name] for name in self.names]
        if not isinstance(sample, (tuple, list)) or len(sample) != len(self.names):
            raise ValueError(
                f"it is {said(sample)}, but the first sample has {counted(len(self.names), 'value')}: "
                + ", ".join(self.names)
            )
        return sample

    def _with_counts(self, values: Sequence[Any]) -> list[Any]:
        """The values of the fields: those that are padded, filled up with zeros and followed by their count."""
        fields = iter(self.fields)
        found: list[Any] = []
        for value in values:
            field = next(fields)
            if field[0] in self.padded:
                found += _padded(field, value, self.settled)
                next(fields)
            else:
                found.append(value)
        return found


def _padded(field: Field, value: Any, settled: bool) -> tuple[Any, int]:
    """A value with rows of zeros behind it, and its own number of rows. settled: as of a layout."""
    name, dtype, (most, *row) = field
    rows = rows_of(name, value)
    if rows.size == 0:
        return numpy.zeros((most, *row), dtype), 0
    if list(rows.shape[1:]) != row and not row and not settled:
        raise ValueError(
            f"its {name} has shape {rows.shape}, and the samples that were looked at first have none, and do not say "
            f"what shape a row has: for a sample without rows, return numpy.zeros({(0, *rows.shape[1:])}, "
            f'"{rows.dtype}"), and not []'
        )
    if list(rows.shape[1:]) != row:
        raise ValueError(
            f"its {name} has shape {rows.shape}, but each row of the first sample's has shape {tuple(row)}; only the "
            "number of rows may differ"
        )
    if len(rows) > most:
        raise ValueError(
            f'its {name} has {counted(len(rows), "row")}, and padded={{"{name}": {most}}} has room for {most}: give a '
            "larger number, or leave out some rows in the data set"
        )
    filled = numpy.zeros((most, *row), rows.dtype)
    filled[: len(rows)] = rows
    return filled, len(rows)


def rows_of(name: str, value: Any) -> Any:
    """A value that is padded, as an array with a first axis."""
    value = numpy.zeros(0) if _is_empty(value) else as_value(value)
    if getattr(value, "ndim", 0) == 0:
        raise ValueError(f"its {name} is {said(value)}, and padded= is for arrays, whose first axis is padded")
    return value


def _is_empty(value: Any) -> bool:
    """Whether it is an empty list, which says neither type nor shape."""
    return isinstance(value, (list, tuple)) and not value


def layout_of(
    sample: Any,
    names: Optional[Sequence[str]] = None,
    padded: Optional[Mapping[str, int]] = None,
    varying: Union[bool, Sequence[str]] = (),
) -> Layout:
    """The layout of a sample, which all others must have too.

    `names` replaces the names of a tuple's values, which are otherwise "data", "label", "field2", "field3", ..., or
    those of a namedtuple. `padded` says how many rows the arrays of some values have. `varying` has the names of values
    whose shapes vary; True: of all arrays that are not padded.
    """
    if sample is None:
        raise TypeError(_NOTHING)
    padded = padded or {}
    settled = True
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
            raise ValueError(
                f"names has {counted(len(names), 'name')}, and a sample has {counted(len(values), 'value')}"
            )
        found = list(names)
    if not 1 <= len(values) <= _MOST:
        raise ValueError(f"a sample has {counted(len(values), 'value')}; a batch has 1 to {_MOST} arrays")
    fields = []
    has_rows = []  # the values that are padded; a number cannot be
    for name, value in zip(found, values):
        try:
            value = numpy.zeros(0) if name in padded and _is_empty(value) else as_value(value)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        dtype, shape = _type_of(value)
        if name in padded and shape:
            has_rows.append(name)
            settled = settled and value.size > 0
            shape = (padded[name], *shape[1:])
            if dtype.itemsize * math.prod(shape) >> 48:  # beyond any address space
                raise ValueError(f"{name} cannot have shape {shape}: padded= gives it {counted(padded[name], 'row')}")
        if dtype not in DTYPES:
            raise TypeError(f"{name} has elements of type {dtype}; batches hold {', '.join(map(str, DTYPES))}")
        if len(shape) > 8:
            raise ValueError(f"{name} has shape {shape}; a sample's values have at most 8 dimensions")
        if name == "label" and dtype.kind in "iu" and dtype != numpy.uint64:
            dtype = numpy.dtype(numpy.int64)  # what a batch makes of it
        fields.append((name, DTYPES[DTYPES.index(dtype)], tuple(shape)))
        if name in has_rows:
            if f"{name}_count" in found:
                raise ValueError(
                    f"padded makes a field {name}_count of the number of rows, and samples have a value of that name: "
                    "give it another name"
                )
            fields.append((f"{name}_count", _SCALARS[int], ()))
    if len(fields) > _MOST:
        raise ValueError(f"a sample has {len(fields)} fields, with the counts of padded=; a batch has 1 to {_MOST}")
    named = [name for name in found if name not in padded] if varying is True else varying or ()
    can_vary = [name for name, _, shape in fields if name in named and shape]
    layout = Layout(fields, keyed, single, {name: padded[name] for name in has_rows}, can_vary)
    layout.settled = settled
    return layout


def _type_of(value: Any) -> tuple[Any, tuple[int, ...]]:
    return (_SCALARS[type(value)], ()) if type(value) in _SCALARS else (value.dtype, value.shape)


def _fits(value: Any, given: Any, wanted: Any) -> bool:
    """Whether a value of one type can be stored as another without a loss. The types differ."""
    if type(value) is int and wanted.kind in "iu":
        limits = numpy.iinfo(wanted)
        return bool(limits.min <= value <= limits.max)
    if type(value) is int and wanted.kind == "f":
        return abs(value) <= float(numpy.finfo(wanted).max) and int(wanted.type(value)) == value
    if not numpy.can_cast(given, wanted, "safe"):
        return False
    if given.kind in "iu" and given.itemsize == 8 and wanted.kind == "f":  # which NumPy calls safe
        large = value[(value > _EXACT) | (value < -_EXACT)] if given.kind == "i" else value[value > _EXACT]
        return bool((large.astype(wanted).astype(object) == large.astype(object)).all())
    return True


def _differs(field: Field, what: str) -> str:
    name, dtype, shape = field
    return f"its {name} {what}, but the first sample's has dtype {dtype} and shape {shape}; all samples need the same"


def as_value(value: Any) -> Any:
    """A bool, int or float as it is, and anything else as a NumPy array: tensors, PIL images, lists of numbers.

    Raises TypeError if it is nothing of the kind, or masked.
    """
    if isinstance(value, numpy.ndarray):
        if isinstance(value, numpy.ma.MaskedArray):
            raise TypeError(
                "a value is a masked array, and batches have no mask: say what to put where values are masked, with "
                ".filled(...)"
            )
        return value
    if type(value) in _SCALARS:
        return value
    if isinstance(value, numpy.generic):
        return numpy.asarray(value)
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor
        try:
            return value.numpy()  # what most tensors can, without a copy of the tensor
        except (RuntimeError, TypeError):  # it has a gradient, or is elsewhere
            pass
        try:
            return value.detach().cpu().numpy()
        except TypeError as error:  # NumPy has no bfloat16, and no sparse arrays
            raise TypeError(f"a value is a tensor that cannot become an array: {error}") from None
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__") or _is_array(value):
        return numpy.asarray(value)
    if isinstance(value, Mapping):
        raise TypeError(
            f"a value is {said(value)}, and a sample's values are arrays and numbers: return one flat dict, such as "
            '{"image": ..., "boxes": ..., "labels": ...}'
        )
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
    return f"{'an' if name[:1].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def are_names(names: Any) -> bool:
    """Whether these are several strings, and not one."""
    return (
        not isinstance(names, (str, bytes))
        and hasattr(names, "__iter__")
        and hasattr(names, "__len__")
        and all(isinstance(name, str) for name in names)
    )


def declared_fields(fields: Any) -> list[Field]:
    """The fields that a dict of names, types and shapes describes.

    Raises TypeError or ValueError if it is none, or batches cannot hold them.
    """
    if not isinstance(fields, Mapping) or not are_names(fields):
        raise TypeError(
            'fields must be a dict of names, types and shapes, such as {"data": ("uint8", (3, 32, 32))}, not '
            f"{fields!r}"
        )
    if not 1 <= len(fields) <= _MOST:
        raise ValueError(f"{len(fields)} fields; a sample has 1 to {_MOST}")
    return [_declared(name, given) for name, given in fields.items()]


def _declared(name: str, given: Any) -> Field:
    if not name or not name.isprintable():
        raise ValueError(f"fields has the name {name!r}, and a batch's arrays need printable strings for names")
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(f'fields gives {name} {given!r}: say its type and its shape, such as ("uint8", (3, 32, 32))')
    try:
        dtype = numpy.dtype(given[0])
    except TypeError:
        dtype = None
    if dtype is None or given[0] is None:
        raise TypeError(f"fields gives {name} the type {given[0]!r}, which is none; batches hold {_HELD}")
    if dtype not in DTYPES:
        raise TypeError(f"{name} has elements of type {dtype}; batches hold {_HELD}")
    try:
        shape = tuple(map(operator.index, given[1]))
    except TypeError:
        raise TypeError(
            f"fields gives {name} the shape {given[1]!r}, and a shape is a tuple of integers, such as (3, 32, 32), or "
            "() for a number"
        ) from None
    if len(shape) > 8:
        raise ValueError(f"{name} has shape {shape}; a sample's arrays have at most 8 dimensions")
    if min(shape, default=0) < 0 or dtype.itemsize * math.prod(shape) >> 48:  # beyond any address space
        raise ValueError(f"{name} cannot have shape {shape}")
    return name, DTYPES[DTYPES.index(dtype)], shape


def sample_count(count: Any) -> int:
    """`count` as an int. Raises TypeError or ValueError if it can be no number of samples, large or small."""
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"count must be the number of samples, an integer, not {count!r}")
    number = operator.index(count)
    if number >= 2**63:
        raise ValueError(f"count must be less than 2**63, not {number}")
    return number
