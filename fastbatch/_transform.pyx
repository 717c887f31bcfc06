# cython: language_level=3
"""`NativeTransform`: a `Transform` for native code, and for single images outside of a loader."""

import numpy

cimport cython
from cpython.buffer cimport PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

from fastbatch._contract cimport FB_FLOAT32, FB_UINT8, fb_error, fb_view
from fastbatch._pixels cimport (
    FB_BYTES, FB_HALF, FB_SAME_CHANNELS, FB_SINGLE, FB_TO_BGR, FB_TO_GRAY, FB_TO_RGB, fb_arithmetic,
    fb_transform
)
from fastbatch._workers cimport choose_kernel, kernel, transform_apply, transform_shape


cdef dict CHANNELS = {None: FB_SAME_CHANNELS, "bgr": FB_TO_BGR, "rgb": FB_TO_RGB, "gray": FB_TO_GRAY}
cdef dict PRECISIONS = {"float32": FB_SINGLE, "float16": FB_HALF, "uint8": FB_BYTES}


cdef object point(fb_arithmetic *arithmetic, means, scales=None):
    """Points an arithmetic at these values, one for each channel, and returns the arrays that hold them."""
    cdef const float[::1] values
    cdef const float[::1] factors
    with numpy.errstate(over="ignore"):  # a mean of float32 images in units of uint8, which images of uint8 refuse
        values = numpy.array(means, dtype=numpy.float32)
    arithmetic.scale = 1
    arithmetic.mean_value_count = <int>values.shape[0]
    if not means:
        return ()
    arithmetic.mean_values = &values[0]
    if scales is None:
        return (values,)
    factors = numpy.array(scales, dtype=numpy.float32)
    arithmetic.scales = &factors[0]
    return values, factors


cdef object pair(value):
    return value if isinstance(value, tuple) else (value, value)


cdef int set_geometry(fb_transform *native, transform) except -1:
    resized = transform.random_resized_crop
    if isinstance(transform.resize, tuple):
        native.resize_height, native.resize_width = transform.resize
    else:
        native.resize_height = transform.resize
    native.crop_height, native.crop_width = pair(resized or transform.crop_size)
    native.pad_rows, native.pad_columns = pair(transform.padding)
    native.random_resized = bool(resized)
    native.random_crop = native.random_resized or (transform.phase == "TRAIN" and native.crop_height != 0)
    native.least_area, native.most_area = transform.crop_area
    native.least_ratio, native.most_ratio = transform.crop_ratio
    native.brightness = transform.brightness
    native.contrast = transform.contrast
    native.saturation = transform.saturation
    native.jitters = any([each != (1, 1) for each in (transform.brightness, transform.contrast, transform.saturation)])
    native.cut_fill = transform.mask_fill
    native.least_visible = transform.least_visible
    return 0


@cython.final
cdef class NativeTransform:
    """The native form of a `Transform`, with the arrays that it reads. None: a transform that changes nothing.

    caffe_draws: whether to reduce raw draws as Caffe does, `raw % n`.

    Thread-safety: immutable; any thread may use it.
    """

    def __init__(self, transform, bint caffe_draws=False):
        cdef const float[:, :, ::1] image
        cdef int axis
        self.mean_file = None if transform is None else transform.mean_file
        self.native.arithmetic.scale = 1
        self.native.caffe_draws = caffe_draws
        if transform is None:
            return
        mean_image = transform.mean_image()
        self.arrays = (mean_image, point(&self.native.arithmetic, transform.mean_value))
        self.native.mirror = transform.mirror
        self.native.arithmetic.scale = transform.scale
        set_geometry(&self.native, transform)
        self.fill = transform.fill
        self.native.arithmetic.fill = self.floats.fill = &self.fill
        self.native.form.channels = CHANNELS[transform.color]
        self.native.form.precision = PRECISIONS[transform.dtype]
        self.native.form.channels_last = transform.layout == "NHWC"
        if transform.mean or transform.std:
            count = max(len(transform.mean), len(transform.std))
            mean = (transform.mean or (0.0,)) * (count if len(transform.mean) < 2 else 1)
            std = (transform.std or (1.0,)) * (count if len(transform.std) < 2 else 1)
            self.native.arithmetic.for_floats = &self.floats
            self.arrays += (
                point(&self.native.arithmetic, [255 * each for each in mean], [1 / (255 * each) for each in std]),
                point(&self.floats, mean, [1 / each for each in std]),
            )
        if mean_image is not None:
            image = mean_image
            self.native.arithmetic.mean_image = &image[0, 0, 0]
            for axis in range(3):
                self.native.arithmetic.mean_shape[axis] = image.shape[axis]

    def check(self, shape):
        """The shape of a transformed image, for an input of uint8 and of shape (channels, height, width).

        Raises ValueError, which says why, if it cannot be transformed.
        """
        cdef fb_view view
        cdef fb_error error
        cdef int64_t[3] out
        memset(&view, 0, sizeof(view))
        view.dtype = FB_UINT8
        view.ndim = 3
        view.shape[0], view.shape[1], view.shape[2] = shape
        if transform_shape(&self.native, &view, out, &error) != 0:
            reason = error.text.decode("utf-8", "replace")
            raise ValueError(f"{reason} (the mean image is in {self.mean_file})" if reason.startswith("the mean image")
                             else reason)
        return out[0], out[1], out[2]

    def apply(self, image, draws, out):
        """Write the transformed image into `out`, as a loader does.

        image: uint8 or float32 in native byte order, (channels, height, width), with any strides. draws: three raw
        draws of 32 bits, for the mirror and for the crop's first row and column. out: C-contiguous, of the shape that
        `check` returns, and of the transform's dtype, which must be float32. Raises ValueError as `check` does.
        """
        cdef float[:, :, ::1] array = out
        cdef float *first
        cdef uint32_t[4] raw
        cdef int64_t[3] shape
        cdef fb_view view
        cdef fb_error error
        cdef Py_buffer buffer
        cdef int axis
        cdef int code
        raw[0], raw[1], raw[2] = draws
        raw[3] = 0
        memset(&view, 0, sizeof(view))
        if image.ndim != 3 or image.dtype not in (numpy.uint8, numpy.float32):
            raise TypeError(f"an image is uint8 or float32 with 3 dimensions, not {image.dtype} with {image.ndim}")
        view.dtype = FB_UINT8 if image.dtype == numpy.uint8 else FB_FLOAT32
        PyObject_GetBuffer(image, &buffer, PyBUF_STRIDED_RO)
        try:
            view.data = buffer.buf
            view.ndim = 3
            for axis in range(3):
                view.shape[axis] = buffer.shape[axis]
                view.strides[axis] = buffer.strides[axis]
            code = transform_shape(&self.native, &view, shape, &error)
            if code == 0 and (shape[0] != array.shape[0] or shape[1] != array.shape[1] or shape[2] != array.shape[2]):
                raise ValueError(f"out has shape {out.shape}, and the image becomes {(shape[0], shape[1], shape[2])}")
            if code == 0:
                first = &array[0, 0, 0]
                with nogil:
                    code = transform_apply(&self.native, &view, raw, first, &error)
            if code != 0:
                raise ValueError(error.text.decode("utf-8", "replace"))
        finally:
            PyBuffer_Release(&buffer)


def kernel_name():
    """The instruction set that transforms use on this processor: "avx512", "avx2", "neon" or "generic"."""
    return kernel().decode()


def use_kernel(name):
    """Sets the instruction set of transforms, for tests and benchmarks.

    ValueError if this processor lacks it.
    """
    cdef bytes native = name.encode()
    if choose_kernel(native) != 0:
        raise ValueError(f"this processor has no {name}")
