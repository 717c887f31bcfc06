"""native/files/hdf5_file.h for Cython: the rows of an HDF5 file."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastbatch._threads cimport pthread_t
from fastbatch._contract cimport fb_error

cdef extern from "files/hdf5_file.h" nogil:
    enum:
        FB_HDF5_MAX_DATASETS
        FB_HDF5_MAX_DIMS
        H5_VERS_MAJOR
        H5_VERS_MINOR
        H5_VERS_RELEASE

    ctypedef struct fb_hdf5_layout:
        int count
        int known
        int in_memory
        const char *names[16]
        int ndim[16]
        int64_t shape[16][32]
        int64_t values[16]
        int is_integer[16]

    ctypedef struct fb_hdf5_rows:
        int64_t count
        float *datasets[16]

    ctypedef struct fb_hdf5_file:
        pass

    int fb_hdf5_begin() noexcept
    void fb_hdf5_before_fork() noexcept
    void fb_hdf5_after_fork() noexcept
    void fb_hdf5_enter() noexcept
    void fb_hdf5_leave() noexcept
    void fb_hdf5_join(pthread_t thread) noexcept
    int fb_hdf5_is_thread_safe() noexcept
    int fb_hdf5_open(fb_hdf5_file *file, const char *path, fb_hdf5_layout *layout, fb_hdf5_rows *rows,
                     fb_error *error) noexcept
    int fb_hdf5_read_some(fb_hdf5_file *file, const char *path, const fb_hdf5_layout *layout, const fb_hdf5_rows *rows,
                          fb_error *error) noexcept
    void fb_hdf5_close(fb_hdf5_file *file) noexcept
    void fb_hdf5_free(fb_hdf5_rows *rows) noexcept
