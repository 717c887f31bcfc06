"""A `Transform`, as native code reads it."""

from fastbatch._pixels cimport fb_arithmetic, fb_transform

cdef class NativeTransform:
    cdef fb_transform native
    cdef float fill
    cdef fb_arithmetic floats  # of float32 images, if mean and std are given
    cdef object mean_file
    cdef tuple arrays  # the numbers that `native` points at
