"""What workers do, and the pixel pipeline for other extensions."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from fastbatch._contract cimport fb_dtype, fb_error, fb_view
from fastbatch._pixels cimport fb_arithmetic, fb_geometry, fb_transform
from fastbatch._ring cimport Ring, Shape, Worker

cdef void work(Ring *ring, Worker *worker) noexcept nogil
cdef void worker_free(Ring *ring, Worker *worker) noexcept nogil
cdef bint shape_of(Ring *ring, int output, const fb_view *view, Shape *shape, fb_error *error) noexcept nogil
cdef int check_means(const fb_arithmetic *arithmetic, int64_t channels, int64_t height, int64_t width,
                     fb_error *error) noexcept nogil
cdef int check_dtype(const fb_transform *transform, fb_dtype dtype, fb_error *error) noexcept nogil
cdef int transform_shape(const fb_transform *transform, const fb_view *image, int64_t *shape,
                         fb_error *error) noexcept nogil
cdef int transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t *draws, float *out,
                         fb_error *error) noexcept nogil
cdef bint normalize_pixels(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part,
                           float *out, const int32_t *stop) noexcept nogil
cdef const char *kernel() noexcept nogil
cdef int choose_kernel(const char *name) noexcept nogil
