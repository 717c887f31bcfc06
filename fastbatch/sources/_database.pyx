# cython: language_level=3
"""The code that `LMDBSource` and `LevelDBSource` share: handles and Datum records.

Both libraries forbid a process to open a database twice. Therefore all loaders share one handle per database,
identified by device and inode.
"""

import logging
import os

from fastbatch import _features
from fastbatch.errors import Closed, ForkedError, SampleError, SourceError
from fastbatch.sources._subset import Subset

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_Fetch, PyErr_Restore
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._core cimport process_number

_log = logging.getLogger("fastbatch")


cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident() noexcept
    PyThread_type_lock PyThread_allocate_lock() noexcept
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, int64_t microseconds, int interruptible) noexcept
    void PyThread_release_lock(PyThread_type_lock lock) noexcept
    enum:
        PY_LOCK_ACQUIRED

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*function)(void *) except -1, void *argument) noexcept

cdef enum:
    SLICE = 50000  # microseconds between two checks for signals
    SLICES_BEFORE_FORK = 20  # how many a fork waits for a thread that is opening or closing a database


def directory(path):
    """Returns the path of a database as str.

    An empty path, which LevelDB would take for the root of the file system, is a SourceError.
    """
    path = str(os.fsdecode(path))
    if not path:
        raise SourceError("the path of the database is empty; source must name its directory")
    return path


# ---- Handles ----
#
# One lock guards all handles of a kind, also while a database is opened or closed. The thread that holds it runs no
# Python code and creates no object that the garbage collector tracks. Either could run a finalizer or a signal handler,
# which may open a database or fork, and would then wait for the lock that its own thread holds. Work that needs Python
# is therefore done before the lock is taken or after it is released.

cdef class Handle:
    cdef void identify(self) noexcept:
        """Fills in `identity` and `lock` from the files that the path names now."""
        cdef const char *identity = self.identity_file
        cdef const char *lock = self.lock_file
        with nogil:
            self.identity = fb_file_id_of(identity)
            self.lock = fb_file_id_of(lock)

    cdef bint open(self, Handles handles) noexcept:
        """Opens the database and fills in the handle, except `users`; returns False if it cannot be opened.

        Called under the lock (see above).
        """

    cdef object refusal(self):
        """Returns the exception to raise after open() failed."""

    cdef bint shut(self, Handles handles) noexcept:
        """Closes the database, which has no users; returns False if it must stay open. Called under the lock."""

    cdef void end(self, DatumReader *reader) noexcept:
        """Closes what a reader has opened. In a forked child, all of it is the parent's."""

    cdef str reason_to_stay(self):
        """Returns a sentence for the log if the database must stay open."""


cdef int raise_again(void *argument) except -1:
    """A pending call: Python runs it where it runs signal handlers, outside of os.fork() and its handlers."""
    exception = <object>argument
    Py_DECREF(exception)
    raise exception


cdef class Handles:
    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError()
        os.register_at_fork(before=self.before_fork, after_in_parent=self.after_fork_in_parent,
                            after_in_child=self.after_fork_in_child)

    # ---- the lock

    cdef bint take(self, int64_t microseconds) noexcept:
        """Tries to take the lock for this long; returns whether it did. No signal handler runs meanwhile."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef int answer
        if self.depth and self.holder == me:  # this thread is forking, and another before-fork handler came here
            self.depth += 1
            return True
        with nogil:
            answer = PyThread_acquire_lock_timed(self.lock, microseconds, False)
        if answer != PY_LOCK_ACQUIRED:
            return False
        self.holder = me
        self.depth = 1
        return True

    cdef int enter(self) except -1:
        while not self.take(SLICE):
            PyErr_CheckSignals()
        return 0

    cdef void leave(self) noexcept:
        self.depth -= 1
        if self.depth == 0:
            PyThread_release_lock(self.lock)

    # ---- forks

    def before_fork(self):
        """Takes the lock, so that no other thread is in the middle of something when the process is copied.

        Gives up after a while, because a disk may not answer. Python ignores exceptions raised before a fork and forks
        anyway. Therefore an exception that a signal handler raises here is raised again after the fork.
        """
        for _ in range(SLICES_BEFORE_FORK):
            if self.take(SLICE):
                return
            try:
                PyErr_CheckSignals()
            except BaseException as exception:
                self.raised = exception
                return

    def after_fork_in_parent(self):
        exception, self.raised = self.raised, None
        if exception is not None:
            Py_INCREF(exception)
            if Py_AddPendingCall(raise_again, <void *>exception) != 0:  # too many are pending
                Py_DECREF(exception)
                raise exception
        if self.depth and self.holder == PyThread_get_thread_ident():
            self.leave()
            self.settle()

    def after_fork_in_child(self):
        """Disowns the parent's handles: the child has copies of their descriptors, but not their locks."""
        cdef Handle handle
        if self.depth and self.holder != PyThread_get_thread_ident():
            self.torn = True
            if self.opening is not None:
                self.opening.next = self.known
                self.known = self.opening
        self.opening = None
        self.used_by_parent |= self.used or self.torn
        while self.known is not None:
            handle = self.known
            self.known = handle.next
            handle.next = self.inherited
            self.inherited = handle
        self.left = False
        self.raised = None
        self.lock = PyThread_allocate_lock()  # the old one may be held by a thread that does not exist here
        self.depth = 0

    cdef int times_inherited(self, fb_file_id lock) noexcept:
        """Returns how many of this process's descriptors on the lock file are copies of a parent's."""
        cdef Handle handle = self.inherited
        cdef int count = 0
        while handle is not None:
            count += fb_same_file(handle.lock, lock)
            handle = handle.next
        return count

    # ---- users

    cdef Handle new_handle(self):
        """Returns a new handle of the right class."""

    cdef Handle find(self, fb_file_id identity):
        cdef Handle handle = self.known
        while handle is not None and not fb_same_file(handle.identity, identity):
            handle = handle.next
        return handle

    cdef Handle acquire(self, str path):
        """Returns the handle of a database, opened if necessary, with one more user."""
        cdef Handle handle = self.new_handle()
        cdef Handle twin
        cdef bint opened = True
        handle.path = path
        handle.native = os.fsencode(path)
        handle.identity_file = handle.native + self.identity_name
        handle.lock_file = handle.native + self.lock_name
        handle.owner = process_number()
        self.enter()
        handle.identify()
        twin = self.find(handle.identity)
        if twin is None:
            self.opening = handle
            opened = handle.open(self)
            self.opening = None
            if opened:
                self.used = True
                # A twin exists if the file was replaced since the first look. The new handle stays open: closing it
                # would drop the locks of both.
                twin = self.find(handle.identity)
                if twin is None:
                    twin = handle
                    handle.next = self.known
                    self.known = handle
        if opened:
            twin.users += 1
        self.leave()
        self.settle()
        if not opened:
            raise handle.refusal()
        return twin

    cdef release(self, Handle handle):
        """Removes one user. It never waits, so destructors may call it at any time."""
        if handle.owner == process_number():
            handle.leavers += 1
            self.left = True
            self.settle()

    cdef settle(self):
        """Closes handles without users. If the lock is taken, its holder does this when it releases the lock."""
        cdef Handle handle
        while self.left and self.take(0):
            self.shut_unused()
            self.leave()
        handle = self.known
        while handle is not None:
            if handle.stay_unlogged:
                handle.stay_unlogged = False
                _log.warning("%s", handle.reason_to_stay())  # logging handlers take locks of their own
                handle = self.known  # others may have changed the list meanwhile
            else:
                handle = handle.next

    cdef void shut_unused(self) noexcept:
        """Closes handles without users. Called under the lock."""
        cdef Handle handle
        cdef Handle before
        while self.left:
            self.left = False
            before = None
            handle = self.known
            while handle is not None:
                handle.users -= handle.leavers
                if handle.leavers and handle.users == 0:
                    handle.leavers = 0
                    if handle.shut(self):
                        if before is None:
                            self.known = handle.next
                        else:
                            before.next = handle.next
                    else:
                        handle.stay_unlogged = True  # the handle stays in the list, for later users of the database
                        before = handle
                else:
                    handle.leavers = 0
                    before = handle
                handle = handle.next


# ---- Sources of Datum records ----

cdef void delete_reader(object capsule) noexcept:
    """The capsule's destructor. It may run while an exception is pending, which Python code must not see."""
    cdef PyObject *type
    cdef PyObject *value
    cdef PyObject *traceback
    PyErr_Fetch(&type, &value, &traceback)
    close_reader(capsule)
    PyErr_Restore(type, value, traceback)


cdef void close_reader(object capsule) noexcept:
    cdef DatumReader *reader = <DatumReader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
    owners = take_owner(capsule)
    cdef Handles handles = owners[0]
    cdef Handle handle = owners[1]
    handle.end(reader)
    free(reader)
    handles.release(handle)


@cython.no_gc_clear  # __dealloc__ needs the handle
cdef class DatumSource:
    """A database of Caffe's Datum records; subclasses define how to open it (`open`) and read it (`new_reader`)."""

    # `path`: the directory, as it was given. `encoded`: whether the first record is an encoded image.

    cdef open(self, Handles handles, str path, color, index_bytes, index_file):
        if self.handle is not None:
            raise RuntimeError(f"a {type(self).__name__} cannot be initialized twice")
        self.color = color_of(color)
        self.codec = image_codec()
        self.index = ImageIndex(index_bytes, index_file)
        self.index_options = index_bytes, index_file
        self.path = path
        self.name = os.fsencode(path)
        self.handles = handles
        self.handle = handles.acquire(path)
        try:
            self._look_at_first_record()
            given = "index_file" if index_file is not None else "index_bytes" if index_bytes is not None else None
            if given is not None and not self.encoded and self.first_problem is None:
                raise ValueError(f"{given} has no effect: the first record of {path} is no image file, whose "
                                 "decoding an index makes faster")
        except BaseException:
            self.close()
            raise

    cdef object new_reader(self):
        """Returns a capsule with a new reader of the database's present state.

        The reader's struct begins with a DatumReader. Its count is 0 if the database has no record.
        """

    cdef object begin_reader(self, size_t size):
        """Returns a capsule with a struct of `size` bytes, whose DatumReader is filled in and whose rest is 0.

        The reader uses the database until it is deleted.
        """
        cdef Handle handle = self.handle
        cdef DatumReader *reader = <DatumReader *>calloc(1, size)
        if reader == NULL:
            raise MemoryError()
        handle.users += 1  # the caller's own use may end in another thread meanwhile
        reader.fields[0].name = "data"
        reader.fields[0].dtype = self.dtype
        reader.fields[0].ndim = -1
        reader.fields[1].name = "label"
        reader.fields[1].dtype = FB_INT64
        begin_source(&reader.source, reader, self.name, 0, reader.fields, 2)
        reader.source.read = read_datum
        reader.source.at_once = FB_MANY
        reader.decoding.color = self.color
        reader.source.codec = self.codec
        reader.source.decoding = &reader.decoding
        return source_capsule(&reader.source, delete_reader, (self.handles, handle, self.name, self.index))

    cdef int use_index(self, DatumReader *reader, uint64_t count) except -1:
        """Has the images of a reader decoded by the source's index. count: of records; 0: unknown."""
        reader.indexes[0] = self.index.take(count)
        reader.source.indexes = reader.indexes
        return 0

    def _look_at_first_record(self):
        """Sets `dtype`, `encoded`, and `first_shape` or `first_problem`."""
        cdef fb_record record
        cdef fb_scratch record_buffer
        cdef fb_scratch scratch
        cdef fb_worker worker
        cdef fb_view[2] views
        cdef fb_error error
        cdef DatumReader *reader
        cdef int code
        cdef bint located
        cdef bint encoded
        self.dtype = FB_UINT8
        capsule = self.new_reader()
        reader = <DatumReader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        if reader.source.count == 0:
            raise SourceError(f"the {self.handles.kind} database {self.path} is empty; "
                              "a loader needs at least one record")
        self.records = <Py_ssize_t>reader.source.count
        memset(&record_buffer, 0, sizeof(record_buffer))
        memset(&scratch, 0, sizeof(scratch))
        memset(&worker, 0, sizeof(worker))
        worker.size = sizeof(worker)
        worker.record_buffer = &record_buffer
        worker.scratch = &scratch
        memset(&record, 0, sizeof(record))
        memset(&error, 0, sizeof(error))
        with nogil:
            code = reader.source.locate(reader.source.self, &record, &worker, &error)
            located = code == 0
            if code == 0:
                code = reader.source.read(reader.source.self, &record, &worker, views, &error)
            encoded = code == 0 and views[0].dtype == FB_ENCODED
            if encoded and reader.source.codec != NULL:
                code = shape_of_encoded(reader.source.codec, views[0].data, <size_t>views[0].shape[0], &reader.decoding,
                                        views[0].shape, &error)
            if located and reader.source.done != NULL:
                reader.source.done(reader.source.self, &record, &worker)
        try:
            self.encoded = encoded
            if encoded and reader.source.codec == NULL:
                _features.require("jpeg")
            reason = error.text.decode("utf-8", "replace")
            if code == 0:
                self.dtype = FB_UINT8 if encoded else views[0].dtype
                self.first_shape = (views[0].shape[0], views[0].shape[1], views[0].shape[2])
            elif error.fatal:
                raise SourceError(f"{self.path} cannot be read: {reason}")
            else:
                # As for any other record, reading its batch raises the error. Here it may not matter to anyone.
                key = (<const char *>record.key)[:record.key_size] if located else 0
                self.first_problem = (key, reason)
        finally:
            free(record_buffer.data)
            free(scratch.data)

    @property
    def shape(self):
        """The first record's (channels, height, width); SampleError if it has no readable image."""
        if self.handles is None:
            raise RuntimeError(f"a {type(self).__name__} was made without a path: its __init__ was not called")
        if self.first_shape is None:
            key, reason = self.first_problem
            raise SampleError(self.path, key, 0, "read", reason)
        return self.first_shape

    def __getitem__(self, indices):
        """Return the `Subset` of these samples: of a slice, an array of indices, or a mask."""
        return Subset(self, indices)

    def __repr__(self):
        return f"{type(self).__name__}({self.path!r})"

    def close(self):
        """Release the database, which closes with its last loader. Further calls do nothing."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self.handles.release(handle)

    def __reduce__(self):
        if self.handle is None:
            raise Closed(f"{self!r} is closed, and cannot be pickled")
        return type(self), (self.path, name_of_color(self.color), *self.index_options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __dealloc__(self):
        if self.handle is not None:
            self.handles.release(self.handle)

    cdef check_usable(self, why):
        """Raises Closed or ForkedError if the source cannot be read. `why`: why a forked child cannot use it."""
        if self.handle is None:
            raise Closed(f"{self!r} is closed")
        if self.handle.owner != process_number():
            raise ForkedError(f"{self!r} was opened before a fork; {why}")
