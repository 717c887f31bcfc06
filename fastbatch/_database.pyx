# cython: language_level=3
"""What `LMDBSource` and `LevelDBSource` share. Both libraries forbid a process to open a database twice, so all our loaders share one
handle of it, known by its device and inode; and both hold Caffe's Datum records.
"""

import collections
import logging
import os
import signal
import threading

from fastbatch import _features
from fastbatch.errors import Closed, ForkedError, SampleError, SourceError

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdlib cimport free
from libc.string cimport memset
from posix.stat cimport stat, struct_stat
from posix.unistd cimport getpid

_log = logging.getLogger("fastbatch")


cdef object identity_of(bytes path):
    """(device, inode) of a file; None if there is none. Never runs a signal's handler, which os.stat() does at times."""
    cdef struct_stat status
    cdef const char *name = path
    if stat(name, &status) != 0:
        return None
    return (status.st_dev, status.st_ino)


def times_open(identity):
    """How many descriptors of this process are open on the file with this (device, inode)."""
    return sum(identity_of(b"/proc/self/fd/" + descriptor) == identity for descriptor in os.listdir(b"/proc/self/fd"))


def directory(path):
    """The path of a database as str. SourceError if it is empty, which LevelDB takes for the root of the file system."""
    path = os.fsdecode(path)
    if not path:
        raise SourceError("the path of the database is empty; source must name its directory")
    return path


# ---- Handles ----

cdef class Handle:
    cdef object shut(self):
        """Closes the database, which has no user any more. None, or, if it has to stay open, a sentence for the log that says so."""


cdef class Handles:
    def __cinit__(self):
        self.known = {}
        self.inherited = {}
        self.guard = threading.Lock()
        self.released = collections.deque()
        os.register_at_fork(before=self.before_fork, after_in_parent=self.after_fork_in_parent, after_in_child=self.after_fork_in_child)

    def before_fork(self):
        """So that no other thread is in the middle of something when the process is copied."""
        self.interrupted = False
        while True:
            try:
                self.guard.acquire()
                return
            except KeyboardInterrupt:  # which would be lost here, and the process copied without the lock
                self.interrupted = True

    def after_fork_in_parent(self):
        self.guard.release()
        self.settle()
        if self.interrupted:
            signal.raise_signal(signal.SIGINT)

    def after_fork_in_child(self):
        """The parent's handles are not ours to touch. We have copies of their descriptors, but not their locks."""
        for handle in self.known.values():
            lock = (<Handle>handle).lock
            self.inherited[lock] = self.inherited.get(lock, 0) + 1
        self.known.clear()
        self.released.clear()
        self.guard.release()

    cdef Handle open(self, path, bytes native, identity):
        """Opens the database and fills in the handle, all but `users`. Once it is open, nothing may raise but what closes it again: no
        Python function is called, and no signal's handler runs."""

    cdef Handle acquire(self, path, identity):
        """The handle of a database, opened if need be, with one user more. `identity` is None if it can be known of an open one only."""
        cdef Handle handle
        native = os.fsencode(path)
        try:
            with self.guard:  # no Python function is called under it
                handle = self.known.get(identity)
                if handle is None:
                    handle = self.open(path, native, identity)
                    self.known[handle.identity] = handle
                handle.users += 1
        finally:
            self.settle()
        return handle

    cdef release(self, Handle handle):
        """One user less. Never waits, so destructors may call it at any moment: also when the garbage collector runs under our lock."""
        if handle.owner == getpid():
            self.released.append(handle)
            self.settle()

    cdef settle(self):
        """Looks at what was released, unless the lock is taken: its holder does so when he is done."""
        cdef Handle handle
        left_open = []
        while self.released and self.guard.acquire(False):
            try:
                while self.released:
                    handle = self.released.popleft()
                    handle.users -= 1
                    if handle.users:
                        continue
                    problem = handle.shut()
                    if problem is None:
                        del self.known[handle.identity]
                    else:
                        left_open.append(problem)  # it is used again if the database is
            finally:
                self.guard.release()
        for problem in left_open:  # not under the lock: handlers of logging take locks of their own
            _log.warning("%s", problem)


# ---- Sources of Datum records ----

@cython.no_gc_clear  # __dealloc__ needs the handle
cdef class DatumSource:
    """A database of Caffe's Datum records. Derive from it, and say how it is opened (`open`) and read (`new_reader`)."""

    # `path`: the directory, as it was given. `encoded`: whether the first record is an encoded image.

    cdef open(self, Handles handles, path, identity, color):
        if self.handle is not None:
            raise RuntimeError(f"a {type(self).__name__} cannot be initialised twice")
        self.color = color_of(color)
        self.codec = image_codec()
        self.path = os.fsdecode(path)
        self.name = os.fsencode(path)
        self.handles = handles
        self.handle = handles.acquire(self.path, identity)
        try:
            self._look_at_first_record()
        except BaseException:
            self.close()
            raise

    cdef object new_reader(self):
        """A capsule of a reader, which begins with a DatumReader, at the database's present state; its count is 0 if it has no record."""

    cdef int begin_reader(self, DatumReader *reader) except -1:
        """Fills in what all readers have in common."""
        reader.fields[0].name = "data"
        reader.fields[0].dtype = self.dtype
        reader.fields[0].ndim = -1
        reader.fields[1].name = "label"
        reader.fields[1].dtype = FB_INT64
        reader.source.abi = FB_SOURCE_ABI
        reader.source.field_count = 2
        reader.source.fields = reader.fields
        reader.source.name = self.name
        reader.source.self = reader
        reader.source.read = read_datum
        reader.source.at_once = FB_MANY
        reader.decoding.color = self.color
        reader.source.codec = self.codec
        reader.source.decoding = &reader.decoding
        return 0

    def _look_at_first_record(self):
        """Finds out of which type and shape it is."""
        cdef fb_record record
        cdef fb_scratch kept
        cdef fb_scratch scratch
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
            raise SourceError(f"the {self.handles.kind} database {self.path} is empty; a loader needs at least one record")
        self.records = <Py_ssize_t>reader.source.count
        memset(&kept, 0, sizeof(kept))
        memset(&scratch, 0, sizeof(scratch))
        memset(&record, 0, sizeof(record))
        memset(&error, 0, sizeof(error))
        with nogil:
            code = reader.source.locate(reader.source.self, &record, &kept, &error)
            located = code == 0
            if code == 0:
                code = reader.source.read(reader.source.self, &record, &scratch, views, &error)
            encoded = code == 0 and views[0].dtype == FB_ENCODED
            if encoded and reader.source.codec != NULL:
                code = shape_of_encoded(reader.source.codec, views[0].data, <size_t>views[0].shape[0], &reader.decoding, views[0].shape,
                                        &error)
            if located and reader.source.done != NULL:
                reader.source.done(reader.source.self, &record)
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
                # It is an error of its batch, like any other record that cannot be read; here nobody may be interested in it.
                key = (<const char *>record.key)[:record.key_size] if located else 0
                self.first_problem = (key, reason)
        finally:
            free(kept.data)
            free(scratch.data)

    @property
    def shape(self):
        """(channels, height, width) of the first record's image. SampleError if it has none that can be read."""
        if self.first_shape is None:
            key, reason = self.first_problem
            raise SampleError(self.path, key, 0, "read", reason)
        return self.first_shape

    def __repr__(self):
        return f"{type(self).__name__}({self.path!r})"

    def close(self):
        """Lets go of the database; it is closed when the last loader of it is. May be called twice."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self.handles.release(handle)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __dealloc__(self):
        if self.handle is not None:
            self.handles.release(self.handle)

    cdef check_usable(self, why):
        """Raises Closed or ForkedError if nothing can be read; `why` says why a child cannot use it."""
        if self.handle is None:
            raise Closed(f"{self!r} is closed")
        if self.handle.owner != getpid():
            raise ForkedError(f"{self!r} was opened before a fork; {why}")
