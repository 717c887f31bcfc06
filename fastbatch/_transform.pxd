"""A `Transform`, as native code reads it."""

from fastbatch._pixels cimport fb_transform

cdef class NativeTransform:
    cdef fb_transform native
    cdef object mean_file
    cdef tuple arrays  # the means that `native` points at
