# cython: language_level=3
"""Windows of a time series: a Cython function that `CallbackSource` calls without the GIL.

A sample is `LENGTH` values in succession, and the value that follows them: what a net for forecasts is trained with.
"""

import numpy

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from fastbatch import CallbackSource

cdef enum:
    LENGTH = 64


cdef api int read_window(uint64_t index, void **arrays, char *error, void *context) noexcept nogil:
    """Writes sample `index` of the series at `context`. `arrays` are those of the sample, in the order of `fields`."""
    cdef const float *values = <const float *>context + index
    memcpy(arrays[0], values, LENGTH * sizeof(float))
    (<float *>arrays[1])[0] = values[LENGTH]
    return 0


def windows(series):
    """Return a source of every window of a one-dimensional array, which it converts to float32."""
    series = numpy.ascontiguousarray(series, numpy.float32)
    fields = {"data": ("float32", (LENGTH,)), "target": ("float32", ())}
    return CallbackSource(
        <size_t>&read_window, fields, len(series) - LENGTH, context=series.ctypes.data, owner=series
    )
