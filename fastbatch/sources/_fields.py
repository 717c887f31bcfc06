"""What users give beside their images: arrays with a row for each image, and lists of arrays of different lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from fastbatch._text import counted, there_are
from fastbatch.sources._arrays import check_array

__all__ = ["check_fields"]


def check_fields(given: Mapping[str, Any], count: int, taken: Sequence[str]) -> dict[str, Any]:
    """The arrays of `given`, each with a row for each of `count` images.

    A list of arrays becomes one array, filled up with zeros to the longest, and "..._count", the lengths.

    Raises TypeError or ValueError if batches cannot hold them. `taken` are the names of the fields before them.
    """
    found: dict[str, Any] = {}
    for name, values in given.items():
        if _is_list_of_arrays(values):
            if f"{name}_count" in given:
                raise ValueError(
                    f"{name} is a list of arrays, whose lengths are the field {name}_count: leave {name}_count out"
                )
            found[name], found[f"{name}_count"] = _padded(name, values)
        else:
            found[name] = check_array(name, values)
        if len(found[name]) != count:
            raise ValueError(f"{name} has {counted(len(found[name]), 'row')}, and {there_are(count, 'image')}")
    for name in taken:
        if name in found:
            raise ValueError(f"{name} is given twice: the images have it already")
    if len(found) + len(taken) > 16:
        raise ValueError(f"{len(found) + len(taken)} fields; a batch has 1 to 16")
    return found


def _is_list_of_arrays(values: Any) -> bool:
    """Whether `values` is a list of arrays with a first axis, which may have different lengths.

    The type decides, and not whether the lengths do differ: the fields must not depend on the values.
    """
    if isinstance(values, numpy.ndarray):
        if values.dtype != object or values.ndim != 1:
            return False
    elif not isinstance(values, (list, tuple)):
        return False
    return len(values) > 0 and all(isinstance(each, numpy.ndarray) and each.ndim > 0 for each in values)


def _padded(name: str, arrays: Sequence[Any]) -> tuple[Any, Any]:
    """One array of all, filled up with zeros, and the lengths."""
    filled = [number for number, each in enumerate(arrays) if each.size]
    first = filled[0] if filled else 0
    dtype, shape = arrays[first].dtype, arrays[first].shape[1:]
    for number in filled:
        each = check_array(name, arrays[number])
        if each.dtype != dtype or each.shape[1:] != shape:
            raise ValueError(
                f"{name} of image {number} has dtype {each.dtype} and shape {each.shape}, and that of image {first} "
                f"has {dtype} and {arrays[first].shape}; only the first size may differ"
            )
    counts = numpy.array([len(each) if each.size else 0 for each in arrays], numpy.int64)
    together = check_array(name, numpy.zeros((len(arrays), int(counts.max()), *shape), dtype))
    for number in filled:
        together[number, : counts[number]] = arrays[number]
    return together, counts
