"""The index of a source's JPEG files, which its workers and loaders share."""

from libc.stdint cimport uint64_t

from fastbatch._contract cimport fb_codec, fb_index


cdef class ImageIndex:
    cdef uint64_t limit  # bytes
    cdef bytes path  # of the file; None: there is none
    cdef const fb_codec *codec
    cdef fb_index *native  # NULL: not needed so far
    cdef int owner  # the process

    cdef fb_index *take(self, uint64_t count) except? NULL
    cdef int _open(self, fb_index *made) except -1
