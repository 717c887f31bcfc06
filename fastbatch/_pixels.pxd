"""native/pixels/pixels.h, kernels.h and collate.h for Cython: the processing of one sample's pixels."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from fastbatch._contract cimport fb_dtype, fb_error, fb_region, fb_view

cdef extern from "images/arena.h" nogil:
    ctypedef struct fb_arena:
        const int32_t *stop

    void fb_arena_empty(fb_arena *arena) noexcept
    void fb_arena_free(fb_arena *arena) noexcept

cdef extern from "pixels/pixels.h" nogil:
    ctypedef struct fb_geometry:
        int64_t image_height
        int64_t image_width
        fb_region region
        int64_t height
        int64_t width
        fb_region part
        int64_t out_height

    ctypedef struct fb_arithmetic:
        float scale
        int mean_value_count
        const float *mean_values
        const float *scales
        const float *fill
        const fb_arithmetic *for_floats
        const float *mean_image
        int64_t mean_shape[3]
        int mean_lies_on_output

    ctypedef enum fb_role:
        FB_KEPT
        FB_NORMALIZED
        FB_CUT
        FB_BOXES
        FB_POINTS

    ctypedef enum fb_channels:
        FB_SAME_CHANNELS
        FB_TO_BGR
        FB_TO_RGB
        FB_TO_GRAY

    ctypedef enum fb_precision:
        FB_SINGLE
        FB_HALF
        FB_BYTES

    ctypedef struct fb_form:
        fb_channels channels
        fb_precision precision
        int channels_last

    fb_dtype fb_form_dtype(const fb_form *form) noexcept

    ctypedef struct fb_transform:
        int resize_height
        int resize_width
        int pad_rows
        int pad_columns
        int crop_height
        int crop_width
        int mirror
        int random_crop
        int random_resized
        double least_area
        double most_area
        double least_ratio
        double most_ratio
        int jitters
        double brightness[2]
        double contrast[2]
        double saturation[2]
        double cut_fill
        double least_visible
        int caffe_draws
        fb_arithmetic arithmetic
        fb_form form

    int fb_check_means(const fb_arithmetic *arithmetic, int64_t channels, int64_t height, int64_t width,
                       fb_error *error) noexcept
    int fb_check_dtype(const fb_transform *transform, fb_dtype dtype, fb_error *error) noexcept
    int fb_transform_shape(const fb_transform *transform, fb_role role, const fb_view *image, int64_t shape[3],
                           int *ndim, fb_error *error) noexcept
    int fb_transform_choose(const fb_transform *transform, const fb_view *image, const uint32_t draws[4],
                            fb_geometry *geometry, fb_error *error) noexcept
    int fb_geometry_fits(const fb_geometry *geometry, const fb_view *image, fb_error *error) noexcept
    bint fb_geometry_resizes(const fb_geometry *geometry) noexcept
    int fb_pixels_resize(const fb_geometry *geometry, fb_view *region, fb_arena *memory, fb_error *error) noexcept
    void fb_pixels_part(const fb_geometry *geometry, const fb_view *image, fb_view *part) noexcept
    bint fb_pixels_gather(const fb_view *image, bint planar, unsigned char *out, const int32_t *stop) noexcept
    bint fb_pixels_write(const fb_transform *transform, const fb_geometry *geometry, const fb_view *part, void *out,
                         int streaming, const int32_t *stop) noexcept
    bint fb_pixels_normalize(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part,
                             float *out, int streaming, const int32_t *stop) noexcept
    bint fb_pixels_copy(const fb_geometry *geometry, const fb_view *region, char *out, fb_dtype dtype, double fill,
                        const int32_t *stop) noexcept
    bint fb_are_rows(fb_role role) noexcept
    int fb_rows_check(fb_role role, const fb_view *rows, fb_error *error) noexcept
    int fb_rows_move(const fb_transform *transform, fb_role role, const fb_geometry *geometry, const char *name,
                     fb_view *rows, fb_dtype dtype, fb_view *count, fb_arena *memory, fb_error *error) noexcept
    int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[4], void *out,
                           int streaming, fb_error *error) noexcept

cdef extern from "pixels/kernels.h" nogil:
    const char *fb_kernel_name() noexcept
    int fb_kernel_choose(const char *name) noexcept

cdef extern from "collate.h" nogil:
    int fb_can_convert(fb_dtype source, fb_dtype target) noexcept
    bint fb_collate(const fb_view *view, char *to, fb_dtype dtype, const int32_t *stop) noexcept
