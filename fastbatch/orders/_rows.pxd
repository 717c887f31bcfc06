"""What the order of Caffe's HDF5Data must know of its source, which alone can say how many rows a file has."""

from libc.stdint cimport int64_t, uint32_t

from fastbatch._contract cimport fb_error

cdef struct RowFiles:
    int64_t count  # of files
    void *self
    # Waits until this file is read into memory. Its rows stay there until another file is shown. Returns their number,
    # or -1. The rows shown before also stay, until the sample picked last is located.
    int64_t (*show)(void *self, uint32_t file, fb_error *error) noexcept nogil
    void (*want)(void *self, uint32_t file) noexcept nogil  # shown next; starts reading it


cdef inline const char *row_files_capsule() noexcept nogil:
    return b"fastbatch.row_files"
