# cython: language_level=3, cdivision=True
"""CIFAR-10's binary files as a source: records of one byte, the label, and 3 x 32 x 32 bytes, the image (red first).

Each worker reads its record into memory of its own, with pread(), so that workers read in parallel.
"""

import os

cimport cython
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdlib cimport calloc, free
from libc.string cimport strerror

from fastbatch._contract cimport (
    FB_INT64, FB_MANY, FB_SOURCE_ABI, FB_SOURCE_CAPSULE, FB_UINT8, fb_error, fb_fail, fb_field, fb_record,
    fb_scratch_reserve, fb_source, fb_view, fb_worker
)

cdef extern from "<unistd.h>" nogil:
    int close(int file) noexcept
    ssize_t pread(int file, void *buffer, size_t count, long offset) noexcept

cdef enum:
    SIDE = 32
    RECORD = 1 + 3 * SIDE * SIDE


cdef struct Reader:  # what the capsule points at; it begins with the fb_source
    fb_source source
    fb_field fields[2]
    int file


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef unsigned char *bytes = <unsigned char *>fb_scratch_reserve(worker.scratch, RECORD)
    cdef ssize_t got
    if bytes == NULL:
        return fb_fail(error, "no memory for a record")
    got = pread(reader.file, bytes, RECORD, <long>record.index * RECORD)
    if got < 0:
        return fb_fail(error, "cannot be read: %s", strerror(errno))
    if got < RECORD:
        return fb_fail(error, "the file ends in this record: it was cut short since it was opened")
    if bytes[0] > 9:
        return fb_fail(error, "its label is %d; CIFAR-10 has 0 to 9. Is this another file?", bytes[0])
    views[0].data = bytes + 1
    views[0].dtype = FB_UINT8
    views[0].ndim = 3
    views[0].shape[0], views[0].shape[1], views[0].shape[2] = 3, SIDE, SIDE
    views[0].strides[0], views[0].strides[1], views[0].strides[2] = SIDE * SIDE, SIDE, 1
    views[1].scalar = bytes[0]
    views[1].data = &views[1].scalar
    views[1].dtype = FB_INT64
    views[1].ndim = 0
    return 0


cdef void delete_reader(object capsule) noexcept:
    """The capsule's destructor, called after all workers have stopped."""
    free(PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE))
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


@cython.final
cdef class CifarSource:
    """The images of one of CIFAR-10's binary files: "data" (uint8, 3 x 32 x 32) and "label" (int64)."""

    cdef int file
    cdef bytes name
    cdef Py_ssize_t count

    def __cinit__(self, path):
        self.file = -1
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size = os.fstat(self.file).st_size
        if size == 0 or size % RECORD:
            raise ValueError(f"{path} has {size} bytes, and a file of CIFAR-10 a multiple of {RECORD}")
        self.name = os.fsencode(path)
        self.count = size // RECORD

    def __dealloc__(self):
        if self.file >= 0:
            close(self.file)

    def __len__(self):
        return self.count

    def __repr__(self):
        return f"CifarSource({os.fsdecode(self.name)!r})"

    def __fastbatch_source__(self, random_access):
        cdef Reader *reader = <Reader *>calloc(1, sizeof(Reader))
        if reader == NULL:
            raise MemoryError()
        reader.file = self.file
        reader.fields[0].name = "data"
        reader.fields[0].dtype = FB_UINT8
        reader.fields[0].ndim = 3
        reader.fields[0].shape[0], reader.fields[0].shape[1], reader.fields[0].shape[2] = 3, SIDE, SIDE
        reader.fields[1].name = "label"
        reader.fields[1].dtype = FB_INT64
        reader.source.abi = FB_SOURCE_ABI
        reader.source.size = sizeof(fb_source)
        reader.source.field_count = 2
        reader.source.fields = reader.fields
        reader.source.name = self.name
        reader.source.count = <size_t>self.count
        reader.source.self = reader
        reader.source.read = read
        reader.source.at_once = FB_MANY
        capsule = PyCapsule_New(reader, FB_SOURCE_CAPSULE, delete_reader)
        PyCapsule_SetContext(capsule, <void *>self)  # the file stays open until no worker reads it any more
        Py_INCREF(self)
        return capsule
