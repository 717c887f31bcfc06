"""Caffe's mean file: one serialized BlobProto, read without Caffe and without protobuf.

The format is caffe.proto's BlobProto on the Protocol Buffers wire
(https://protobuf.dev/programming-guides/encoding/). Caffe adds its own rules: the legacy fields num, channels, height
and width determine the shape if any of them is present, ``double_data`` takes precedence over ``data``, and the blob
must be (1, C, H, W).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, Union

import numpy as np

from fastbatch._files import quoted, read_file

# Field numbers of BlobProto, and of BlobShape inside it.
_NUM, _CHANNELS, _HEIGHT, _WIDTH, _DATA, _DIFF, _SHAPE, _DOUBLE_DATA, _DOUBLE_DIFF = 1, 2, 3, 4, 5, 6, 7, 8, 9
_LEGACY_SHAPE = (_NUM, _CHANNELS, _HEIGHT, _WIDTH)
_DIM = 1

# Wire types.
_VARINT, _FIXED64, _BYTES, _GROUP, _END_OF_GROUP, _FIXED32 = 0, 1, 2, 3, 4, 5
_INT_MAX = 2**31 - 1


class _Malformed(ValueError):
    """Describes what is wrong with the bytes; read_mean_file() adds the file."""


def read_mean_file(
    path: Union[str, bytes, os.PathLike[str], os.PathLike[bytes]],
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The mean image of a ``.binaryproto`` file, as ``compute_image_mean`` writes it.

    Returns a C-contiguous float32 array (channels, height, width), in the file's own units (pixel values).
    Raises FileNotFoundError if there is no such file, and ValueError, naming the file, if it is not a BlobProto of
    shape (1, channels, height, width) or if its values do not match its shape.
    """
    path = os.fsdecode(path)
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"File not found: {path}; mean_file names what compute_image_mean wrote") from None
    except IsADirectoryError:
        raise ValueError(f"mean_file {path}: it is a directory, not a binaryproto file") from None
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
        raise ValueError(f"mean_file {path}: {problem.strerror}") from None
    try:
        return _mean_of_blob(memoryview(content))
    except _Malformed as reason:
        raise ValueError(f"mean_file {path}: {reason}") from None


def _mean_of_blob(content: memoryview) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The float32 (channels, height, width) array in a serialized BlobProto."""
    if not content:
        raise _Malformed("the file is empty; make it again with compute_image_mean")
    legacy: dict[int, int] = {}
    dims: list[int] = []
    floats: list[np.ndarray[Any, Any]] = []
    doubles: list[np.ndarray[Any, Any]] = []
    for field, wire_type, value in _fields(content):
        if field in _LEGACY_SHAPE and wire_type == _VARINT:
            legacy[field] = _signed(value, 32)
        elif field == _SHAPE and wire_type == _BYTES:
            dims += _dims(value)
        elif field == _DATA and wire_type in (_FIXED32, _BYTES):
            floats.append(_numbers(value, "<f4"))
        elif field == _DOUBLE_DATA and wire_type in (_FIXED64, _BYTES):
            doubles.append(_numbers(value, "<f8"))
        elif field in (_DIFF, _DOUBLE_DIFF) and wire_type == _BYTES:
            _numbers(value, "<f4" if field == _DIFF else "<f8")  # unused, but Caffe rejects it if it is damaged

    shape = tuple(legacy.get(field, 0) for field in _LEGACY_SHAPE) if legacy else tuple(dims)
    if len(shape) != 4 or shape[0] != 1:
        raise _Malformed(
            f"the blob in it is {quoted(shape)}, expected (1, C, H, W); write it with compute_image_mean, or with "
            "caffe.io.array_to_blobproto(mean[numpy.newaxis])"
        )
    count = shape[1] * shape[2] * shape[3]
    if min(shape) <= 0 or count > _INT_MAX:
        raise _Malformed(f"the blob in it has an impossible shape, {shape}")
    parts = doubles if any(len(part) for part in doubles) else floats
    values = np.concatenate(parts) if parts else np.empty(0, "<f4")
    if len(values) != count:
        raise _Malformed(f"its shape, {shape}, needs {count} values but it holds {len(values)}: truncated or corrupt")
    return np.ascontiguousarray(values.astype(np.float32).reshape(shape[1:]))


def _fields(content: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yields (field number, wire type, value): an int for a varint, a memoryview for everything else.

    Skips groups; a BlobProto has none.
    """
    at = 0
    groups: list[int] = []  # open groups
    while at < len(content):
        tag, at = _varint(content, at)
        field, wire_type = tag >> 3, tag & 7
        if not 0 < field < 2**29:
            raise _not_a_blob(at)
        if wire_type == _VARINT:
            value, at = _varint(content, at)
            if not groups:
                yield field, wire_type, value
            continue
        if wire_type == _GROUP:
            groups.append(field)
            continue
        if wire_type == _END_OF_GROUP:
            if not groups or groups.pop() != field:
                raise _not_a_blob(at)
            continue
        if wire_type == _BYTES:
            size, at = _varint(content, at)
        elif wire_type in (_FIXED32, _FIXED64):
            size = 4 if wire_type == _FIXED32 else 8
        else:
            raise _not_a_blob(at)
        if size > len(content) - at:
            raise _not_a_blob(at)
        if not groups:
            yield field, wire_type, content[at : at + size]
        at += size
    if groups:
        raise _not_a_blob(at)


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """The varint at this offset, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise _not_a_blob(at)
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
    raise _not_a_blob(at)


def _not_a_blob(at: int) -> _Malformed:
    return _Malformed(f"it is not a binaryproto file (a BlobProto), or it is truncated or corrupt, at byte {at}")


def _signed(value: int, bits: int) -> int:
    value &= 2**bits - 1
    return value - 2**bits if value >> (bits - 1) else value


def _dims(content: memoryview) -> list[int]:
    """The dimensions in a serialized BlobShape, packed or not."""
    dims = []
    for field, wire_type, value in _fields(content):
        if field == _DIM and wire_type == _VARINT:
            dims.append(_signed(value, 64))
        elif field == _DIM and wire_type == _BYTES:
            at = 0
            while at < len(value):
                dim, at = _varint(value, at)
                dims.append(_signed(dim, 64))
    return dims


def _numbers(content: memoryview, dtype: str) -> np.ndarray[Any, Any]:
    if len(content) % np.dtype(dtype).itemsize:
        raise _Malformed(f"a list of {len(content)} bytes in it is no list of numbers: it is truncated or corrupt")
    return np.frombuffer(content, dtype)
