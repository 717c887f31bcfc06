"""What sources of Caffe's Datum records share: handles, of which a process has one for each open database, and the reading of a record."""

from libc.stdint cimport int32_t
from libc.string cimport memset

from fastbatch._source cimport *

cdef extern from "datum.h" nogil:
    ctypedef struct fb_datum:
        int32_t label
    int fb_datum_parse(const void *bytes, size_t size, fb_scratch *scratch, fb_datum *datum, fb_error *error) noexcept
    int fb_datum_image(const fb_datum *datum, fb_view *image, fb_error *error) noexcept


cdef object identity_of(bytes path)


# ---- Handles ----

cdef class Handle:
    """An open database, shared and counted. Derive from it, and say how it is closed."""

    cdef object identity  # (device, inode) of a file of the database that stays open as long as it is: nobody else's file gets that number
    cdef object lock  # the same of the file that its library locks, or None where it works without one
    cdef object path
    cdef int users
    cdef int owner  # the process

    cdef object shut(self)


cdef class Handles:
    """The open databases of one kind. Derive from it, and say how one is opened."""

    cdef str kind  # such as "LMDB"
    cdef dict known  # (device, inode) -> Handle
    cdef dict inherited  # (device, inode) of a lock file -> how often a parent process had it open when it forked
    cdef bint interrupted  # while before_fork waited
    cdef object guard  # a lock, of these two
    cdef object released  # Handles with a user less, to be looked at by whoever gets the lock

    cdef Handle open(self, path, bytes native, identity)
    cdef Handle acquire(self, path, identity)
    cdef release(self, Handle handle)
    cdef settle(self)


# ---- Readers of Datum records ----

cdef struct DatumReader:  # how every reader of them begins
    fb_source source
    fb_field fields[2]
    fb_decoding decoding


cdef inline int read_datum(void *self, const fb_record *record, fb_scratch *scratch, fb_view *views, fb_error *error) noexcept nogil:
    """A source's read(): takes the Datum at `record.data` apart; its pixels stay where they are."""
    cdef fb_datum datum
    if fb_datum_parse(record.data, record.data_size, scratch, &datum, error) != 0:
        return -1
    if fb_datum_image(&datum, &views[0], error) != 0:
        return -1
    views[1].ndim = 0
    views[1].dtype = FB_INT64
    views[1].scalar = datum.label
    views[1].data = &views[1].scalar
    return 0


cdef class DatumSource:
    cdef Handles handles
    cdef Handle handle
    cdef bytes name
    cdef fb_dtype dtype
    cdef const fb_codec *codec
    cdef fb_color color
    cdef readonly bint encoded
    cdef readonly str path
    cdef Py_ssize_t records  # as the first reader counted them
    cdef tuple first_shape
    cdef tuple first_problem

    cdef open(self, Handles handles, path, identity, color)
    cdef int begin_reader(self, DatumReader *reader) except -1
    cdef check_usable(self, why)
    cdef object new_reader(self)
