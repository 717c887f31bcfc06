# cython: language_level=3
"""`LMDBSource`: the Datum records of an LMDB database, read where they lie in the memory map.

LMDB's rule, which Caffe breaks: never have a database open twice in one process, for closing one of the two drops the file locks of
both, after which a writer may reuse pages that are still being read. So all our loaders share one environment for a database (known by
the device and inode of its data file), and it is not closed while somebody else in this process, a Data layer of Caffe's say, has the
lock file open too.
"""

import collections
import logging
import os
import threading

from fastbatch import _features
from fastbatch.errors import Closed, ForkedError, SampleError, SourceError

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_Fetch, PyErr_Restore
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EACCES, ENOENT
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from posix.unistd cimport getpid

from fastbatch._lmdb cimport *
from fastbatch._source cimport *

cdef extern from "datum.h" nogil:
    ctypedef struct fb_datum:
        int32_t label
        int encoded
        size_t data_size
    int fb_datum_parse(const void *bytes, size_t size, fb_scratch *scratch, fb_datum *datum, fb_error *error) noexcept
    int fb_datum_image(const fb_datum *datum, fb_view *image, fb_error *error) noexcept

cdef enum:
    SCAN = 65536  # records between two looks at signals


def version():
    """The version of the LMDB library in use, such as "0.9.24"."""
    cdef int major, minor, patch
    mdb_version(&major, &minor, &patch)
    return f"{major}.{minor}.{patch}"


# ---- The environment: one for a database and process ----

_environments = {}  # (device, inode) of data.mdb -> Environment
_inherited = collections.Counter()  # (device, inode) of lock.mdb -> how often a parent process had it open when it forked
_environments_lock = threading.Lock()  # guards these two
_released = collections.deque()  # Environments with a user less, to be looked at by whoever gets the lock
_log = logging.getLogger("fastbatch")


@cython.final
cdef class Environment:
    """An open database, shared and counted."""

    cdef MDB_env *env
    cdef object identity  # of data.mdb: (device, inode)
    cdef object lock  # the same of lock.mdb, or None where LMDB works without one
    cdef object path
    cdef int users
    cdef int owner

    def __repr__(self):
        return f"<LMDB environment of {self.path}, {self.users} users>"


def before_fork():
    """So that no other thread is in the middle of something when the process is copied."""
    _environments_lock.acquire()


def after_fork_in_parent():
    _environments_lock.release()
    settle()


def after_fork_in_child():
    """The parent's environments are not ours to touch. We have copies of their descriptors, but not their locks."""
    for environment in _environments.values():
        _inherited[(<Environment>environment).lock] += 1
    _environments.clear()
    _released.clear()
    _environments_lock.release()


os.register_at_fork(before=before_fork, after_in_parent=after_fork_in_parent, after_in_child=after_fork_in_child)


def identify(path_or_descriptor):
    """(device, inode) of an open or an existing file; None if there is none."""
    try:
        status = os.stat(path_or_descriptor)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def times_open(identity):
    """How many descriptors of this process are open on the file with this (device, inode)."""
    return sum(identify(f"/proc/self/fd/{descriptor}") == identity for descriptor in os.listdir("/proc/self/fd"))


cdef Environment acquire(path):
    """The environment of the database in directory `path`, opened if need be, with one user more."""
    cdef Environment environment
    try:
        status = os.stat(os.path.join(path, "data.mdb"))
    except OSError as problem:
        raise SourceError(f"cannot open the LMDB database {path}: it has no data.mdb ({problem.strerror}); source must name the "
                          "directory that convert_imageset or lmdb.open() made") from None
    if status.st_size == 0:  # LMDB would begin a database, and fail for want of permission
        raise SourceError(f"cannot open the LMDB database {path}: its data.mdb is empty; write the database again")
    identity = (status.st_dev, status.st_ino)
    lock_path = os.path.join(path, "lock.mdb")
    native = os.fsencode(path)
    try:
        with _environments_lock:  # no Python function is called under it, so no signal handler either
            environment = _environments.get(identity)
            if environment is None:
                environment = open_environment(path, native, lock_path)
                environment.identity = identity
                _environments[identity] = environment
            environment.users += 1
    finally:
        settle()
    return environment


cdef Environment open_environment(path, bytes native, lock_path):
    cdef Environment environment = Environment.__new__(Environment)
    cdef MDB_env *env = NULL
    cdef MDB_envinfo info
    cdef MDB_stat stat
    cdef const char *name = native
    cdef int descriptor
    cdef bint locked = True
    cdef int code = mdb_env_create(&env)
    if code != 0:
        raise MemoryError()
    with nogil:
        code = mdb_env_open(env, name, MDB_RDONLY | MDB_NOTLS, 0o664)
    if code == EACCES:
        # Somebody else's directory, or a medium that cannot be written: then nobody writes the database either.
        locked = False
        mdb_env_close(env)
        if mdb_env_create(&env) != 0:
            raise MemoryError()
        with nogil:
            code = mdb_env_open(env, name, MDB_RDONLY | MDB_NOTLS | MDB_NOLOCK, 0o664)
    if code != 0:
        mdb_env_close(env)
        hint = {MDB_INVALID: "; data.mdb is not an LMDB file", ENOENT: "; source must name the directory that holds data.mdb",
                MDB_VERSION_MISMATCH: "; it was written by another version of LMDB"}.get(code, "")
        raise SourceError(f"cannot open the LMDB database {path}: {mdb_strerror(code).decode()}{hint}")
    mdb_env_info(env, &info)
    mdb_env_stat(env, &stat)
    mdb_env_get_fd(env, &descriptor)
    present = os.stat(descriptor).st_size  # after the look at what is used: the database may be growing
    if (<object>info.me_last_pgno + 1) * stat.ms_psize > present:
        mdb_env_close(env)
        raise SourceError(f"cannot open the LMDB database {path}: data.mdb has {present} bytes, but says that it uses "
                          f"{(<object>info.me_last_pgno + 1) * stat.ms_psize}: it was cut short, by an interrupted copy perhaps")
    environment.env = env
    environment.path = path
    environment.lock = identify(lock_path) if locked else None
    environment.owner = getpid()
    return environment


cdef release(Environment environment):
    """One user less. Never waits, so destructors may call it at any moment: also when the garbage collector runs under our lock."""
    if environment.owner == getpid():
        _released.append(environment)
        settle()


cdef settle():
    """Looks at what was released, unless the lock is taken: its holder does so when he is done."""
    left_open = []
    while _released and _environments_lock.acquire(False):
        try:
            while _released:
                environment = _released.popleft()
                if not close_unused(environment):
                    left_open.append((<Environment>environment).path)
        finally:
            _environments_lock.release()
    for path in left_open:  # not under the lock: handlers of logging take locks of their own
        _log.warning("fastbatch leaves the LMDB database %s open: something else in this process has it open too, and closing one of the "
                     "two would drop the locks of both", path)


cdef bint close_unused(Environment environment) except -1:
    """Takes a user away, the lock held, and closes the environment with the last one. False if somebody else's locks would go with it:
    then it stays in _environments, and is used again if the database is.
    """
    environment.users -= 1
    if environment.users:
        return True
    if environment.lock is not None:
        try:
            others = times_open(environment.lock) - _inherited[environment.lock] - 1
        except OSError:
            return False  # /proc cannot be read, so nobody knows
        if others > 0:
            return False
    del _environments[environment.identity]
    with nogil:
        mdb_env_close(environment.env)
    environment.env = NULL
    return True


# ---- A reader: one transaction and one cursor, for one loader ----

cdef struct Address:  # of a record in the map: 24 bytes
    const void *key
    const void *data
    uint32_t data_size
    uint16_t key_size

cdef struct Reader:
    fb_source source
    fb_field fields[2]
    fb_decoding decoding
    MDB_txn *txn
    MDB_cursor *cursor
    int64_t at  # the record under the cursor; -1: none yet
    MDB_val key
    MDB_val data
    Address *addresses  # of all records, for random access; otherwise NULL


cdef int step(Reader *reader, MDB_cursor_op operation, fb_error *error) noexcept nogil:
    cdef int code = mdb_cursor_get(reader.cursor, &reader.key, &reader.data, operation)
    if code != 0:
        error.fatal = 1
        return fb_fail(error, "LMDB says: %s", mdb_strerror(code))
    reader.at = 0 if operation == MDB_FIRST else reader.at + 1
    return 0


cdef int locate(void *self, fb_record *record, fb_scratch *kept, fb_error *error) noexcept nogil:
    """Steps the cursor to the record, or looks its address up."""
    cdef Reader *reader = <Reader *>self
    cdef int64_t index = <int64_t>record.index
    cdef Address *address
    if reader.addresses != NULL:
        address = &reader.addresses[index]
        record.key = address.key
        record.key_size = address.key_size
        record.data = address.data
        record.data_size = address.data_size
        return 0
    if (reader.at < 0 or index < reader.at) and step(reader, MDB_FIRST, error) != 0:
        return -1
    while reader.at < index:
        if step(reader, MDB_NEXT, error) != 0:
            return -1
    record.key = reader.key.mv_data
    record.key_size = reader.key.mv_size
    record.data = reader.data.mv_data
    record.data_size = reader.data.mv_size
    return 0


cdef int read(void *self, const fb_record *record, fb_scratch *scratch, fb_view *views, fb_error *error) noexcept nogil:
    """Takes the Datum apart; its pixels stay where they are."""
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


cdef int read_header(const Reader *reader, fb_view *image, fb_error *error) noexcept nogil:
    """Gives the view of an encoded image the shape that the image will have."""
    cdef fb_decoder *decoder = reader.source.codec.open()
    cdef int code
    if decoder == NULL:
        return fb_fail(error, "no memory for a decoder")
    code = reader.source.codec.begin(decoder, image.data, <size_t>image.shape[0], &reader.decoding, image.shape, error)
    reader.source.codec.close(decoder)
    return code


cdef int find_addresses(Reader *reader, uint64_t first, uint64_t end, fb_error *error) noexcept nogil:
    cdef uint64_t index
    cdef Address *address
    for index in range(first, end):
        if step(reader, MDB_FIRST if index == 0 else MDB_NEXT, error) != 0:
            return -1
        address = &reader.addresses[index]
        address.key = reader.key.mv_data
        address.key_size = <uint16_t>reader.key.mv_size
        address.data = reader.data.mv_data
        address.data_size = <uint32_t>reader.data.mv_size
    return 0


cdef void delete_reader(object capsule) noexcept:
    """The capsule's destructor. It may run while an exception is on its way, which Python code must not see."""
    cdef PyObject *type
    cdef PyObject *value
    cdef PyObject *traceback
    PyErr_Fetch(&type, &value, &traceback)
    close_reader(capsule)
    PyErr_Restore(type, value, traceback)


cdef void close_reader(object capsule) noexcept:
    cdef Reader *reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
    owners = <object>PyCapsule_GetContext(capsule)
    cdef Environment environment = owners[0]
    if environment.owner == getpid():  # in a forked child the transaction is the parent's
        with nogil:
            mdb_cursor_close(reader.cursor)
            mdb_txn_abort(reader.txn)
        release(environment)
    free(reader.addresses)
    free(reader)
    Py_DECREF(owners)


cdef object new_reader(Environment environment, bytes name, fb_dtype dtype, const fb_codec *codec, fb_color color):
    """A capsule of a reader at the state that the database has now: later commits of others stay unseen."""
    cdef Reader *reader = <Reader *>calloc(1, sizeof(Reader))
    cdef MDB_dbi dbi
    cdef MDB_stat stat
    cdef int dead, code
    if reader == NULL:
        raise MemoryError()
    environment.users += 1  # its caller's user may leave in another thread meanwhile
    with nogil:
        code = mdb_txn_begin(environment.env, NULL, MDB_RDONLY, &reader.txn)
        if code == MDB_READERS_FULL:
            mdb_reader_check(environment.env, &dead)  # frees the places of processes that died
            code = mdb_txn_begin(environment.env, NULL, MDB_RDONLY, &reader.txn)
        if code == 0:
            code = mdb_dbi_open(reader.txn, NULL, 0, &dbi)
            if code == 0:
                code = mdb_stat(reader.txn, dbi, &stat)
            if code == 0:
                code = mdb_cursor_open(reader.txn, dbi, &reader.cursor)
            if code != 0:
                mdb_txn_abort(reader.txn)
    if code != 0:
        free(reader)
        release(environment)
        hint = {MDB_READERS_FULL: "; too many loaders have it open: close() those that are done",
                MDB_MAP_RESIZED: "; it has grown since it was opened: close() every source and loader of it, then open it again"}.get(
                    code, "")
        raise SourceError(f"cannot read the LMDB database {environment.path}: {mdb_strerror(code).decode()}{hint}")
    reader.at = -1
    reader.fields[0].name = "data"
    reader.fields[0].dtype = dtype
    reader.fields[0].ndim = -1
    reader.fields[1].name = "label"
    reader.fields[1].dtype = FB_INT64
    reader.source.abi = FB_SOURCE_ABI
    reader.source.field_count = 2
    reader.source.fields = reader.fields
    reader.source.name = name
    reader.source.count = stat.ms_entries
    reader.source.self = reader
    reader.source.locate = locate
    reader.source.read = read
    reader.decoding.color = color
    reader.source.codec = codec
    reader.source.decoding = &reader.decoding
    owners = (environment, name)
    capsule = PyCapsule_New(reader, FB_SOURCE_CAPSULE, delete_reader)
    PyCapsule_SetContext(capsule, <void *>owners)
    Py_INCREF(owners)
    return capsule


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the environment
cdef class LMDBSource:
    """Caffe's Datum records in an LMDB database, in the order of their keys: "data" (uint8 or float32, channels x height x width) and
    "label" (int64). Records that hold a JPEG or PNG file are decoded by the loader's threads.

    Parameters
    ----------
    path : str or path-like
        The directory that holds data.mdb.
    color : str
        For encoded records (JPEG, PNG): ``"color"`` gives 3 channels and ``"gray"`` 1, both turned as their EXIF orientation says;
        ``"unchanged"`` the channels that the image has, not turned. Caffe's force_color, force_gray, and neither. Blue comes first.

    The database is opened as Caffe opens it, for reading only, with LMDB's locks where the directory can be written and without them
    where it cannot. A loader sees the database as it was when the loader was made. Nothing is scanned at opening; a loader that shuffles
    scans the keys once and keeps 24 bytes a record.

    Raises
    ------
    SourceError
        No such database, not an LMDB database, cut short, empty, or no place among its readers.
    MissingLibraryError
        The first record is an encoded image, and this fastbatch was built without libjpeg-turbo or libpng.
    Closed, ForkedError
        When a closed source, or a parent process's, is given to a loader.

    Thread-safety: any number of loaders may read one source, in any threads.
    """

    cdef Environment environment
    cdef bytes name
    cdef fb_dtype dtype
    cdef const fb_codec *codec
    cdef fb_color color
    cdef readonly bint encoded
    """Whether the first record is an encoded image."""
    cdef readonly str path
    """The directory, as it was given."""
    cdef Py_ssize_t records
    cdef tuple first_shape
    cdef tuple first_problem

    def __init__(self, path, color="unchanged"):
        if self.environment is not None:
            raise RuntimeError("an LMDBSource cannot be initialised twice")
        self.color = color_of(color)
        self.codec = image_codec()
        self.path = os.fsdecode(path)
        self.name = os.fsencode(path)
        self.environment = acquire(self.path)
        try:
            self._look_at_first_record()
        except BaseException:
            self.close()
            raise

    def _look_at_first_record(self):
        """Finds out how many records there are, and of which type and shape the first one is."""
        cdef fb_record record
        cdef fb_scratch scratch
        cdef fb_view[2] views
        cdef fb_error error
        cdef Reader *reader
        cdef int code
        cdef bint encoded
        capsule = new_reader(self.environment, self.name, FB_UINT8, self.codec, self.color)
        reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        self.records = <Py_ssize_t>reader.source.count
        if self.records == 0:
            raise SourceError(f"the LMDB database {self.path} is empty; a loader needs at least one record")
        scratch.data = NULL
        scratch.size = 0
        memset(&record, 0, sizeof(record))
        memset(&error, 0, sizeof(error))
        with nogil:
            code = locate(reader, &record, NULL, &error)
            if code == 0:
                code = read(reader, &record, &scratch, views, &error)
            encoded = code == 0 and views[0].dtype == FB_ENCODED
            if encoded and reader.source.codec != NULL:
                code = read_header(reader, &views[0], &error)
        free(scratch.data)
        self.encoded = encoded
        if encoded and reader.source.codec == NULL:
            _features.require("jpeg")
        if code == 0:
            self.dtype = FB_UINT8 if encoded else views[0].dtype
            self.first_shape = (views[0].shape[0], views[0].shape[1], views[0].shape[2])
        else:
            # It is an error of its batch, like any other record that cannot be read; here nobody may be interested in it.
            self.dtype = FB_UINT8
            key = (<const char *>record.key)[:record.key_size] if record.key != NULL else 0
            self.first_problem = (key, error.text.decode("utf-8", "replace"))

    @property
    def shape(self):
        """(channels, height, width) of the first record's image. SampleError if it has none that can be read."""
        if self.first_shape is None:
            key, reason = self.first_problem
            raise SampleError(self.path, key, 0, "read", reason, 0, 0)
        return self.first_shape

    def __len__(self):
        """Records."""
        return self.records

    def __repr__(self):
        return f"LMDBSource({self.path!r})"

    def close(self):
        """Lets go of the database; it is closed when the last loader of it is. May be called twice."""
        environment, self.environment = self.environment, None
        if environment is not None:
            release(environment)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __dealloc__(self):
        if self.environment is not None:
            release(self.environment)

    def __fastbatch_source__(self, random_access):
        """A PyCapsule of an fb_source (native/fastbatch.h): a reader of its own, at the database's present state."""
        cdef Reader *reader
        cdef fb_error error
        cdef uint64_t first, end
        cdef int code = 0
        if self.environment is None:
            raise Closed(f"{self!r} is closed")
        if self.environment.owner != getpid():
            raise ForkedError(f"{self!r} was opened before a fork; LMDB forbids its use in the child: open it there")
        capsule = new_reader(self.environment, self.name, self.dtype, self.codec, self.color)
        reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        if random_access:
            reader.addresses = <Address *>malloc(reader.source.count * sizeof(Address))
            if reader.addresses == NULL:
                raise MemoryError(f"no memory for the addresses of {reader.source.count} records")
            first = 0
            while first < reader.source.count:
                end = min(first + SCAN, reader.source.count)
                with nogil:
                    code = find_addresses(reader, first, end, &error)
                if code != 0:
                    raise SourceError(f"{self.path}: {error.text.decode('utf-8', 'replace')}")
                PyErr_CheckSignals()
                first = end
        return capsule
