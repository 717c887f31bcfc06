"""include/fastbatch.h, the source contract, and fastbatch_image.h, its part about encoded images, for Cython."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "fastbatch.h" nogil:
    enum:
        FB_SOURCE_ABI
        FB_MAX_DIMS
        FB_MAX_KEY
    const char *FB_SOURCE_CAPSULE
    const uint64_t FB_ENDLESS
    const uint64_t FB_UNCOUNTED
    const uint32_t FB_MANY

    ctypedef enum fb_dtype:
        FB_UINT8
        FB_INT32
        FB_INT64
        FB_FLOAT32
        FB_FLOAT64
        FB_INT8
        FB_INT16
        FB_UINT16
        FB_UINT32
        FB_UINT64
        FB_FLOAT16
        FB_BOOL
        FB_ENCODED

    ctypedef struct fb_error:
        int fatal
        char text[512]

    ctypedef struct fb_record:
        uint64_t index
        const void *key
        size_t key_size
        const void *data
        size_t data_size
        uint64_t epoch

    ctypedef struct fb_view:
        const void *data
        fb_dtype dtype
        int ndim
        int64_t shape[8]
        int64_t strides[8]
        int64_t scalar

    ctypedef struct fb_field:
        const char *name
        fb_dtype dtype
        int ndim
        int64_t shape[8]

    ctypedef struct fb_scratch:
        void *data
        size_t size

    ctypedef struct fb_codec
    ctypedef struct fb_decoding

    ctypedef struct fb_source:
        uint32_t abi
        uint32_t field_count
        const fb_field *fields
        const char *name
        uint64_t count
        void *self
        int (*locate)(void *self, fb_record *record, fb_scratch *kept, fb_error *error) noexcept nogil
        int (*read)(void *self, const fb_record *record, fb_scratch *scratch, fb_view *views,
                    fb_error *error) noexcept nogil
        void (*done)(void *self, const fb_record *record) noexcept nogil
        const fb_codec *codec
        const fb_decoding *decoding
        uint32_t at_once

    int fb_fail(fb_error *error, const char *format, ...) noexcept
    void *fb_scratch_reserve(fb_scratch *scratch, size_t size) noexcept
    size_t fb_dtype_size(fb_dtype dtype) noexcept

cdef extern from "fastbatch_image.h" nogil:
    enum:
        FB_CODEC_ABI
    const char *FB_CODEC_CAPSULE

    ctypedef enum fb_color:
        FB_UNCHANGED
        FB_GRAY
        FB_COLOR

    ctypedef struct fb_decoding:
        fb_color color
        int new_height
        int new_width

    ctypedef struct fb_region:
        int64_t top
        int64_t left
        int64_t height
        int64_t width

    ctypedef struct fb_decoder

    ctypedef struct fb_codec:
        uint32_t abi
        fb_decoder *(*open)() noexcept nogil
        void (*close)(fb_decoder *decoder) noexcept nogil
        int (*begin)(fb_decoder *decoder, const void *bytes, size_t size, const fb_decoding *decoding, int64_t shape[3],
                     fb_error *error) noexcept nogil
        int (*finish)(fb_decoder *decoder, const fb_region *region, fb_view *pixels, fb_error *error) noexcept nogil
        int (*finish_resized)(fb_decoder *decoder, const fb_region *region, int new_height, int new_width, fb_view *pixels,
                              fb_error *error) noexcept nogil


cdef inline const fb_codec *image_codec() except? NULL:
    """The codec for JPEG and PNG; NULL in a build without their libraries."""
    from fastbatch import _features

    if _features.problem("jpeg") is not None:
        return NULL
    return <const fb_codec *>PyCapsule_GetPointer(_features.require("jpeg").codec_capsule(), FB_CODEC_CAPSULE)


cdef inline int shape_of_encoded(const fb_codec *codec, const void *bytes, size_t size, const fb_decoding *decoding, int64_t *shape,
                                 fb_error *error) noexcept nogil:
    """Reads an encoded image's header: channels, height and width that the image will have. 0, or -1 with *error."""
    cdef fb_decoder *decoder = codec.open()
    cdef int code
    if decoder == NULL:
        return fb_fail(error, "no memory for a decoder")
    code = codec.begin(decoder, bytes, size, decoding, shape, error)
    codec.close(decoder)
    return code


cdef inline tuple size_of(object size):
    """(height, width) that images are resized to; (0, 0) for None."""
    from operator import index

    from fastbatch._files import quoted

    if size is None:
        return 0, 0
    try:
        if isinstance(size, bool):
            raise TypeError
        if hasattr(size, "__index__"):
            size = (size, size)
        height, width = [index(side) for side in size]
    except (TypeError, ValueError):
        raise TypeError(f"size is {quoted(size)}; it is a height and a width, two integers, or one integer for both") from None
    if not (1 <= height < 2**31 and 1 <= width < 2**31):
        raise ValueError(f"size is {quoted(size)}; it is a height and a width, each at least 1 pixel")
    return height, width


cdef inline fb_color color_of(str name) except *:
    """OpenCV's flag by our name for it."""
    if name == "color":
        return FB_COLOR
    if name == "gray":
        return FB_GRAY
    if name == "unchanged":
        return FB_UNCHANGED
    raise ValueError(f"color is {name!r}; it can be 'color', 'gray' or 'unchanged'")
