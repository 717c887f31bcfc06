"""The source contract for Cython.

Declares include/fastbatch.h, and fastbatch_image.h, its part for encoded images. Also declares the functions of
_contract.pyx that sources need, both those of fastbatch and third-party ones.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from "fastbatch.h" nogil:
    enum:
        FB_SOURCE_ABI
        FB_MAX_FIELDS
        FB_MAX_DIMS
        FB_MAX_KEY
        FB_END
        FB_AT_ITS_OWN
        FB_STARTING
        FB_FOR_ANOTHER
    const char *FB_SOURCE_CAPSULE
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
        uint64_t seed

    ctypedef struct fb_view:
        const void *data
        fb_dtype dtype
        int ndim
        int64_t shape[8]
        int64_t strides[8]
        int64_t scalar

    ctypedef struct fb_place:
        void *data
        fb_dtype dtype
        int ndim
        int64_t shape[8]
        int file
        int64_t offset

    ctypedef struct fb_field:
        const char *name
        fb_dtype dtype
        int ndim
        int64_t shape[8]

    ctypedef struct fb_scratch:
        void *data
        size_t size
        size_t wanted

    ctypedef struct fb_codec
    ctypedef struct fb_decoding
    ctypedef struct fb_decoder
    ctypedef struct fb_index

    ctypedef struct fb_progress:
        int64_t index
        int64_t since

    ctypedef struct fb_worker:
        uint32_t size
        fb_scratch *record_buffer
        fb_scratch *scratch
        fb_decoder **decoders
        const int32_t *stop
        int64_t latency
        uint32_t cached
        int64_t cpu_elsewhere
        fb_progress *progress

    ctypedef struct fb_source:
        uint32_t abi
        uint32_t size
        uint32_t field_count
        uint32_t at_once
        const fb_field *fields
        const char *name
        uint64_t count
        void *self
        int (*locate)(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil
        int (*read)(void *self, const fb_record *record, fb_worker *worker, fb_view *views,
                    fb_error *error) noexcept nogil
        int (*write)(void *self, const fb_record *record, fb_worker *worker, const fb_place *places,
                     fb_error *error) noexcept nogil
        void (*done)(void *self, const fb_record *record, fb_worker *worker) noexcept nogil
        const fb_codec *codec
        const fb_decoding *decoding
        bint shared_batches
        bint converts
        void (*announce)(void *self, uint32_t number, const fb_record *record, fb_worker *worker,
                         const fb_place *places) noexcept nogil
        bint seeded
        bint pure_locate
        const fb_decoding *decodings
        void (*expect)(void *self, uint64_t index) noexcept nogil
        fb_index *const *indexes

    int fb_fail(fb_error *error, const char *format, ...) noexcept
    void *fb_scratch_reserve(fb_scratch *scratch, size_t size) noexcept
    bint fb_stopping(const int32_t *stop) noexcept
    void fb_progress_set(fb_progress *progress, int64_t index, int64_t since) noexcept
    int fb_place_label(const fb_place *place, int64_t value, fb_error *error) noexcept
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

    ctypedef enum fb_way:
        FB_BY_INDEX
        FB_BY_OWN_DECODER
        FB_BY_LIBJPEG
        FB_BY_LIBDEFLATE
        FB_BY_LIBPNG
        FB_WAYS

    ctypedef struct fb_region:
        int64_t top
        int64_t left
        int64_t height
        int64_t width

    ctypedef struct fb_codec:
        uint32_t abi
        uint32_t size
        fb_decoder *(*open)(const int32_t *stop) noexcept nogil
        void (*close)(fb_decoder *decoder) noexcept nogil
        int (*begin)(fb_decoder *decoder, const void *bytes, size_t size, const fb_decoding *decoding, int64_t shape[3],
                     fb_error *error) noexcept nogil
        int (*finish)(fb_decoder *decoder, const fb_region *region, fb_view *pixels, fb_error *error) noexcept nogil
        int (*finish_part)(fb_decoder *decoder, const fb_region *region, int new_height, int new_width,
                           const fb_region *part, fb_view *pixels, fb_error *error) noexcept nogil
        int (*finish_resized)(fb_decoder *decoder, const fb_region *region, int new_height, int new_width,
                              fb_view *pixels, fb_error *error) noexcept nogil
        fb_index *(*index_new)(uint64_t count, uint64_t limit) noexcept nogil
        void (*index_delete)(fb_index *index) noexcept nogil
        void (*index_counts)(fb_index *index, uint64_t *images, uint64_t *bytes) noexcept nogil
        void (*use_index)(fb_decoder *decoder, fb_index *index, uint64_t identity) noexcept nogil
        uint64_t (*count)(const fb_decoder *decoder, int way) noexcept nogil
        int (*index_open)(fb_index *index, const char *path, fb_error *error) noexcept nogil
        int (*index_save)(fb_index *index, fb_error *error) noexcept nogil
        int (*expect_output)(fb_decoder *decoder, const void *memory, size_t size) noexcept nogil

    fb_decoder *fb_worker_decoder(fb_worker *worker, int field, const fb_codec *codec) noexcept


cdef int take_source(object owner, object capsule, fb_source *source, fb_codec *codec) except -1
cdef const char *dtype_format(fb_dtype dtype) noexcept nogil
cdef bint check_view(const fb_field *field, const fb_view *view, fb_error *error) noexcept nogil
cdef const fb_codec *image_codec() except? NULL
cdef int shape_of_encoded(const fb_codec *codec, const void *bytes, size_t size, const fb_decoding *decoding,
                          int64_t *shape, fb_error *error) noexcept nogil
cdef fb_color color_of(str name) except *
cdef str name_of_color(fb_color color)
cdef tuple size_of(object size)
