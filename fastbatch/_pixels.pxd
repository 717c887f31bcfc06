"""native/pixels/transform.h and collate.h for Cython: what is done to the pixels of one sample."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastbatch._contract cimport fb_dtype, fb_error, fb_region, fb_view

cdef extern from "../native/pixels/transform.h" nogil:
    ctypedef struct fb_transform:
        int crop_size
        int mirror
        int random_crop
        float scale
        int caffe_draws
        int mean_value_count
        const float *mean_values
        const float *mean_image
        int64_t mean_shape[3]

    int fb_transform_shape(const fb_transform *transform, const fb_view *image, int64_t out[3], fb_error *error) noexcept
    ctypedef struct fb_crop:
        fb_region region

    int fb_transform_crop(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], fb_crop *crop,
                          fb_error *error) noexcept
    void fb_transform_pixels(const fb_transform *transform, const fb_crop *crop, const fb_view *pixels, float *out,
                             int streaming) noexcept
    int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], float *out,
                           int streaming, fb_error *error) noexcept
    const char *fb_kernel_name() noexcept
    int fb_kernel_choose(const char *name) noexcept

cdef extern from "../native/collate.h" nogil:
    int fb_can_convert(fb_dtype source, fb_dtype target) noexcept
    void fb_collate(const fb_view *view, char *to, fb_dtype dtype) noexcept
