"""How the order of Caffe's HDF5Data learns the number of rows in a file, which only its source knows."""

from libc.stdint cimport int64_t, uint32_t

from fastbatch._contract cimport fb_error

cdef struct RowFiles:
    int64_t count  # of files
    void *self
    # Waits until this file is in memory. Returns its number of rows, or -1 with *error. The rows stay in memory until
    # another file is shown and the sample picked last is located.
    int64_t (*show)(void *self, uint32_t file, fb_error *error) noexcept nogil
    # Starts reading the file that will be shown next.
    void (*want)(void *self, uint32_t file) noexcept nogil


cdef inline const char *row_files_capsule() noexcept nogil:
    return b"fastbatch.row_files"
