"""A source whose samples are computed directly into the batch by functions compiled with numba.

Sample i is "data": 1,000 values of a sine wave with the frequency i + 1; and "index": i. numba's functions run without
the GIL, as long as they raise nothing.
"""

import ctypes
import math

import numba
import numpy as np

import fastbatch

LENGTH = 1000
NAME = b"fastbatch.source"  # FB_SOURCE_CAPSULE
ABI = 2  # FB_SOURCE_ABI
INT64, FLOAT32 = 2, 3  # of fb_dtype


# The structs of fastbatch.h


class Field(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("shape", ctypes.c_int64 * 8),
    ]


class Source(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("field_count", ctypes.c_uint32),
        ("at_once", ctypes.c_uint32),
        ("fields", ctypes.POINTER(Field)),
        ("name", ctypes.c_char_p),
        ("count", ctypes.c_uint64),
        ("self", ctypes.c_void_p),
        ("locate", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("write", ctypes.c_void_p),
        ("done", ctypes.c_void_p),
        ("codec", ctypes.c_void_p),
        ("decoding", ctypes.c_void_p),
    ]


class Place(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("shape", ctypes.c_int64 * 8),
        ("file", ctypes.c_int),
        ("offset", ctypes.c_int64),
    ]


SECOND = ctypes.sizeof(Place) // ctypes.sizeof(ctypes.c_void_p)  # the offset of places[1], in pointers

pointer = numba.types.voidptr
numbers = numba.types.CPointer(numba.types.uint64)  # an fb_record begins with its index
pointers = numba.types.CPointer(pointer)  # an fb_place begins with a pointer


@numba.cfunc(numba.types.int32(pointer, numbers, pointer, pointers, pointer), nopython=True)
def write(self, record, worker, places, error):
    index = record[0]
    data = numba.carray(places[0], (LENGTH,), np.float32)
    number = numba.carray(places[SECOND], (1,), np.int64)
    for i in range(LENGTH):
        data[i] = math.sin(2 * math.pi * (index + 1) * i / LENGTH)
    number[0] = index
    return 0


class WavesSource:
    """`count` waves."""

    def __init__(self, count):
        self.fields = (Field * 2)(Field(b"data", FLOAT32, 1, (LENGTH,)), Field(b"index", INT64, 0))
        self.native = Source(
            abi=ABI,
            size=ctypes.sizeof(Source),
            field_count=2,
            fields=self.fields,
            name=b"waves",
            count=count,
            write=write.address,
        )

    def __len__(self):
        return self.native.count

    def __fastbatch_source__(self, random_access):
        """The struct belongs to this object, which the loader holds: the capsule has nothing to free."""
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.native), NAME, None)


if __name__ == "__main__":
    with fastbatch.Loader(WavesSource(100), batch_size=10, shuffle=True) as loader:
        for batch in loader:
            data, index = batch.values()
            print(index.tolist(), float(np.abs(data).max()))
