"""What sources of Caffe's Datum records share: handles, one per open database in a process, and record parsing."""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memset

from fastbatch._contract cimport (
    FB_ENCODED, FB_INT64, FB_MANY, FB_SOURCE_CAPSULE, FB_UINT8, color_of, fb_codec, fb_color, fb_decoding, fb_dtype,
    fb_error, fb_field, fb_index, fb_record, fb_scratch, fb_source, fb_view, fb_worker, image_codec, name_of_color,
    shape_of_encoded
)

from fastbatch.sources._image_index cimport ImageIndex

cdef extern from "files/datum.h" nogil:
    ctypedef struct fb_datum:
        int32_t label
    int fb_datum_parse(const void *bytes, size_t size, fb_scratch *scratch, fb_datum *datum, fb_error *error) noexcept
    int fb_datum_image(const fb_datum *datum, fb_view *image, fb_error *error) noexcept


cdef extern from "files/descriptors.h" nogil:
    ctypedef struct fb_file_id:
        int exists
        uint64_t device
        uint64_t inode
    fb_file_id fb_file_id_of(const char *path) noexcept
    fb_file_id fb_file_id_of_descriptor(int descriptor) noexcept
    int fb_same_file(fb_file_id one, fb_file_id other) noexcept
    int fb_times_open(fb_file_id file) noexcept

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock


# ---- Handles ----

cdef struct DatumReader:  # the first member of every reader's struct
    fb_source source
    fb_field fields[2]
    fb_decoding decoding
    fb_index *indexes[2]
    bint rewritten  # since the source's index was begun: the indices of records no longer identify them


cdef class Handle:
    """An open database, shared and reference-counted; subclasses define how to open and close it."""

    cdef str path
    cdef bytes native  # the path's bytes
    cdef bytes identity_file
    cdef bytes lock_file
    cdef fb_file_id identity  # of a file that stays open with the database, so no other file can get its inode
    cdef fb_file_id lock  # of the file that the library locks, if there is one
    cdef Py_ssize_t users
    cdef Py_ssize_t leavers  # users that have left and are not yet subtracted from `users`
    cdef bint stay_unlogged  # it had to stay open, and the log does not say so yet
    cdef int owner  # the process
    cdef Handle next  # in the list `known` or `inherited`

    cdef void identify(self) noexcept
    cdef bint open(self, Handles handles) noexcept
    cdef object refusal(self)
    cdef bint shut(self, Handles handles) noexcept
    cdef void end(self, DatumReader *reader) noexcept
    cdef str reason_to_stay(self)


cdef class Handles:
    """The open databases of one kind. A subclass implements `new_handle`."""

    cdef str kind  # such as "LMDB"
    cdef bytes identity_name  # of the file that identifies a database, such as b"/data.mdb"
    cdef bytes lock_name
    cdef Handle known  # list of the open databases
    cdef Handle opening  # the one that the holder of the lock is opening
    cdef Handle inherited  # list of those that a parent process had open when it forked
    cdef bint torn  # the process forked while another thread was opening or closing a database
    cdef bint used  # a database was opened
    cdef bint used_by_parent  # a database was opened before a fork
    cdef bint left  # some handle in `known` has leavers
    cdef object raised  # what a signal handler raised before a fork

    cdef PyThread_type_lock lock  # guards all of these
    cdef unsigned long holder
    cdef int depth  # how many times the holder has taken it

    cdef bint take(self, int64_t microseconds) noexcept
    cdef int enter(self) except -1
    cdef void leave(self) noexcept
    cdef Handle find(self, fb_file_id identity)
    cdef int times_inherited(self, fb_file_id lock) noexcept
    cdef Handle new_handle(self)
    cdef Handle acquire(self, str path)
    cdef release(self, Handle handle)
    cdef settle(self)
    cdef void shut_unused(self) noexcept


# ---- Readers of Datum records ----

cdef inline int read_datum(void *self, const fb_record *record, fb_worker *worker, fb_view *views,
                           fb_error *error) noexcept nogil:
    """A source's read(): parses the Datum at `record.data` without copying its pixels."""
    cdef fb_datum datum
    if fb_datum_parse(record.data, record.data_size, worker.scratch, &datum, error) != 0:
        return -1
    if fb_datum_image(&datum, &views[0], error) != 0:
        return -1
    if views[0].dtype == FB_ENCODED:
        views[0].scalar = 0 if (<DatumReader *>self).rewritten else <int64_t>record.index + 1
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
    cdef Py_ssize_t records  # the first reader's count
    cdef tuple first_shape
    cdef tuple first_problem
    cdef ImageIndex index
    cdef tuple index_options  # index_bytes and index_file, as given

    cdef open(self, Handles handles, str path, color, index_bytes, index_file)
    cdef object begin_reader(self, size_t size)
    cdef int use_index(self, DatumReader *reader, uint64_t count) except -1
    cdef check_usable(self, why)
    cdef object new_reader(self)
