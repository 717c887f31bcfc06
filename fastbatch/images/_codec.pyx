# cython: language_level=3
"""Decodes JPEG and PNG images natively, bit-identical to OpenCV.

`decode_image` decodes one image. Workers use the codec of include/fastbatch_image.h, which other extensions get from
`codec()` in C or from `codec_capsule()` in Python.
"""

import operator
import os

from fastbatch._files import quoted

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint64_t

import numpy

from fastbatch._contract cimport (
    FB_CODEC_CAPSULE, color_of, fb_codec, fb_decoder, fb_decoding, fb_error, fb_region, fb_view, size_of
)

cdef extern from "images/image.h" nogil:
    const fb_codec *fb_image_codec() noexcept
    fb_decoder *fb_decoder_borrow() noexcept
    void fb_decoder_return(fb_decoder *decoder) noexcept

cdef extern from "images/interleave.h" nogil:
    void fb_interleave(const fb_view *image, unsigned char *out) noexcept

cdef extern from "images/jpeg_fast.h" nogil:
    ctypedef struct fb_jpeg_kernels:
        const char *name
    ctypedef enum fb_jpeg_choice:
        FB_JPEG_NO_KERNELS
        FB_JPEG_BEST_KERNELS
        FB_JPEG_BASE_KERNELS
    const fb_jpeg_kernels *fb_jpeg_fast_in_use() noexcept
    int fb_jpeg_fast_use(fb_jpeg_choice choice) noexcept
    uint64_t fb_jpeg_fast_count() noexcept

cdef extern from "images/png_fast.h" nogil:
    bint fb_png_fast_use(bint on) noexcept


cdef const fb_codec *codec() noexcept nogil:
    return fb_image_codec()


def codec_capsule():
    """Return a PyCapsule named "fastbatch.codec" that holds a `const fb_codec *` (include/fastbatch_image.h).

    The codec is never freed.
    """
    return PyCapsule_New(<void *>codec(), FB_CODEC_CAPSULE, NULL)


cdef tuple region_of(region):
    """(top, left, height, width) as integers that fit."""
    try:
        numbers = tuple([operator.index(number) for number in region])
        if len(numbers) != 4:
            raise TypeError
    except TypeError:
        raise TypeError(f"region is {quoted(region)}; it is top, left, height and width, four integers") from None
    # A clamped value is still outside every image.
    return tuple([min(max(number, -2**63), 2**63 - 1) for number in numbers])


def decode_image(bytes, color="color", size=None, region=None):
    """Decode a JPEG or PNG image, to the pixels that OpenCV's `imdecode` and `resize` give.

    Parameters
    ----------
    bytes : bytes-like
        The image file's content, not its path.
    color : str
        ``"color"`` returns 3 channels and ``"gray"`` 1, both oriented by a JPEG's EXIF tag. ``"unchanged"`` returns the
        image's own 1, 3 or 4 channels and ignores the orientation. These are OpenCV's flags 1, 0 and -1.
    size : int or (int, int), optional
        Resize to this (height, width), or to a square, as `cv2.resize` does by default, linearly.
    region : (int, int, int, int), optional
        Return only this part, (top, left, height, width), of the oriented and resized image. Where the format allows
        it, the rest of the image is not decoded; the pixels are the same.

    Returns
    -------
    numpy.ndarray of uint8, (height, width, channels)
        The channels are blue, green, red, alpha.

    Raises
    ------
    ValueError
        If the image is damaged, truncated, of another format, has 16 bits per channel with ``"unchanged"``, or claims
        more pixels than its bytes can hold; or if an argument is invalid.
    TypeError
        If `bytes` is a path or does not support the buffer protocol, or if `size` or `region` does not hold integers.

    Notes
    -----
    Any thread may call this function. It releases the GIL while it decodes.

    With a `region`, damage to a JPEG below that region goes unnoticed.
    """
    cdef fb_decoding decoding
    if isinstance(bytes, (str, os.PathLike)):
        raise TypeError("decode_image takes the content of an image file, not its path: "
                        f"give it pathlib.Path({os.fspath(bytes)!r}).read_bytes()")
    decoding.color = color_of(color)
    decoding.new_height, decoding.new_width = size_of(size)
    cdef fb_region part
    if region is not None:
        part.top, part.left, part.height, part.width = region_of(region)

    cdef Py_buffer buffer
    PyObject_GetBuffer(bytes, &buffer, PyBUF_SIMPLE)
    cdef fb_decoder *decoder = fb_decoder_borrow()
    cdef int64_t shape[3]
    cdef fb_error error
    cdef fb_view view
    cdef int failed
    cdef uint8_t[:, :, ::1] pixels
    try:
        if decoder == NULL:
            raise MemoryError("no memory for decoding an image")
        with nogil:
            failed = codec().begin(decoder, buffer.buf, <size_t>buffer.len, &decoding, shape, &error)
        if not failed:
            if region is None:
                part.top = part.left = 0
                part.height, part.width = shape[1], shape[2]
            with nogil:
                failed = codec().finish(decoder, &part, &view, &error)
        if failed:
            raise ValueError(error.text.decode("utf-8", "replace"))
        array = numpy.empty((view.shape[1], view.shape[2], view.shape[0]), numpy.uint8)
        pixels = array
        with nogil, cython.boundscheck(False):  # no image is empty
            fb_interleave(&view, &pixels[0, 0, 0])
        return array
    finally:
        fb_decoder_return(decoder)
        PyBuffer_Release(&buffer)


def jpeg_decoder():
    """What decodes baseline JPEG images: "own", fastbatch's own decoder, or "libjpeg"."""
    return "own" if fb_jpeg_fast_in_use() != NULL else "libjpeg"


def jpeg_kernels():
    """The instructions that the own decoder uses: "AVX2", "SSE2" or "NEON". None: it is not in use."""
    kernels = fb_jpeg_fast_in_use()
    return None if kernels == NULL else kernels.name.decode()


def use_jpeg_decoder(name):
    """Sets what decodes baseline JPEG images, in all threads. The pixels are the same.

    "own" and "libjpeg" are as `jpeg_decoder` says. "base" is the own decoder with what every processor of this kind
    can run, for tests.

    ValueError if the own decoder cannot be used: this is no x86-64 or arm64, or libjpeg gives other bits.
    """
    choices = {"own": FB_JPEG_BEST_KERNELS, "base": FB_JPEG_BASE_KERNELS, "libjpeg": FB_JPEG_NO_KERNELS}
    if name not in choices:
        raise ValueError(f"the JPEG decoder is {quoted(name)}; it is 'own', 'base' or 'libjpeg'")
    if fb_jpeg_fast_use(<fb_jpeg_choice><int>choices[name]) != 0:
        raise ValueError("fastbatch's own JPEG decoder cannot be used: the processor is no x86-64 or arm64, or libjpeg "
                         "gives other bits")


def own_jpeg_count():
    """How many JPEG images this process has decoded with the own decoder, for tests."""
    return fb_jpeg_fast_count()


def use_libdeflate(bint on):
    """Decode PNG images with libdeflate from now on, or with libpng only, for tests and benchmarks.

    Return whether libdeflate is used.
    """
    return bool(fb_png_fast_use(on))


if os.environ.get("FASTBATCH_JPEG_DECODER"):
    if os.environ["FASTBATCH_JPEG_DECODER"] not in ("own", "libjpeg"):
        raise ValueError("the environment variable FASTBATCH_JPEG_DECODER is "
                         f"{os.environ['FASTBATCH_JPEG_DECODER']!r}; it can be 'libjpeg', which turns fastbatch's own "
                         "JPEG decoder off, or 'own', with which it is an error if that cannot be used")
    use_jpeg_decoder(os.environ["FASTBATCH_JPEG_DECODER"])
