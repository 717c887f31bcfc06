# cython: language_level=3
"""`LMDBSource`: the Datum records of an LMDB database, read where they lie in the memory map.

LMDB's rule, which Caffe breaks: never have a database open twice in one process, for closing one of the two drops the file locks of
both, after which a writer may reuse pages that are still being read. So all our loaders share one environment for a database (known by
the device and inode of its data file), and it is not closed while somebody else in this process, a Data layer of Caffe's say, has the
lock file open too.
"""

import os

from fastbatch.sources._database import directory
from fastbatch.errors import SourceError

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_Fetch, PyErr_Restore
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EACCES, ENOENT, ENOMEM
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.stat cimport fstat, struct_stat

from fastbatch._core cimport process_number
from fastbatch.sources._database cimport *
from fastbatch.sources.liblmdb cimport *
from fastbatch._contract cimport *

cdef enum:
    SCAN = 65536  # records between two looks at signals


def version():
    """The version of the LMDB library in use, such as "0.9.24"."""
    cdef int major, minor, patch
    mdb_version(&major, &minor, &patch)
    return f"{major}.{minor}.{patch}"


# ---- The environment: one for a database and process ----

cdef int open_environment(const char *path, MDB_env **opened, bint *locked) noexcept nogil:
    """0, or an error of LMDB's or of the system's."""
    cdef MDB_env *env = NULL
    cdef int code = mdb_env_create(&env)
    locked[0] = True
    if code == 0:
        code = mdb_env_open(env, path, MDB_RDONLY | MDB_NOTLS, 0o664)
    if code == EACCES:
        # Somebody else's directory, or a medium that cannot be written: then nobody writes the database either.
        locked[0] = False
        mdb_env_close(env)
        env = NULL
        code = mdb_env_create(&env)
        if code == 0:
            code = mdb_env_open(env, path, MDB_RDONLY | MDB_NOTLS | MDB_NOLOCK, 0o664)
    if code != 0 and env != NULL:
        mdb_env_close(env)
        env = NULL
    opened[0] = env
    return code


@cython.final
cdef class Environment(Handle):
    cdef MDB_env *env
    # Why it could not be opened:
    cdef int code
    cdef uint64_t size  # of data.mdb
    cdef uint64_t used  # of it, as it says itself

    cdef bint open(self, Handles handles) noexcept:
        cdef MDB_envinfo info
        cdef MDB_stat stat
        cdef struct_stat present
        cdef const char *path = self.native
        cdef const char *lock = self.lock_file
        cdef int descriptor
        cdef bint locked
        with nogil:
            self.code = open_environment(path, &self.env, &locked)
            if self.code == 0:
                mdb_env_info(self.env, &info)
                mdb_env_stat(self.env, &stat)
                mdb_env_get_fd(self.env, &descriptor)
                fstat(descriptor, &present)  # after the look at what is used: the database may be growing
                self.size = present.st_size
                self.used = (info.me_last_pgno + 1) * stat.ms_psize
                self.identity = fb_file_id_of_descriptor(descriptor)  # of what was opened: the file may have been replaced since it was looked for
                self.lock = fb_file_id_of(lock)
                self.lock.exists &= locked
                if self.size // stat.ms_psize < info.me_last_pgno + 1:
                    mdb_env_close(self.env)
                    self.env = NULL
        return self.env != NULL

    cdef object refusal(self):
        if self.code == ENOMEM:
            return MemoryError()
        if self.code == 0:
            return SourceError(f"cannot open the LMDB database {self.path}: data.mdb has {self.size} bytes, but says that it uses "
                               f"{self.used}: it was cut short, by an interrupted copy perhaps")
        hint = {MDB_INVALID: "; data.mdb is not an LMDB file", ENOENT: "; source must name the directory that holds data.mdb",
                MDB_VERSION_MISMATCH: "; it was written by another version of LMDB"}.get(self.code, "")
        return SourceError(f"cannot open the LMDB database {self.path}: {mdb_strerror(self.code).decode()}{hint}")

    cdef bint shut(self, Handles handles) noexcept:
        """Not if somebody else's locks would go with it."""
        cdef int others = 0
        if self.lock.exists:
            with nogil:
                others = fb_times_open(self.lock)
            others -= handles.times_inherited(self.lock) + 1
        if others > 0:
            return False
        with nogil:
            mdb_env_close(self.env)
        self.env = NULL
        return True

    cdef str reason_to_stay(self):
        return (f"fastbatch leaves the LMDB database {self.path} open: something else in this process has it open too, and "
                "closing one of the two would drop the locks of both")


@cython.final
cdef class Environments(Handles):
    def __cinit__(self):
        self.kind = "LMDB"
        self.identity_name = b"/data.mdb"
        self.lock_name = b"/lock.mdb"

    cdef Handle new_handle(self):
        return Environment.__new__(Environment)


cdef Environments environments = Environments()


cdef str find(str path):
    """SourceError if there is no database in directory `path`."""
    try:
        status = os.stat(os.path.join(path, "data.mdb"))
    except OSError as problem:
        hint = "source must name the directory that convert_imageset or lmdb.open() made"
        if os.path.exists(os.path.join(path, "CURRENT")):
            hint = "it is a LevelDB database: write backend: LEVELDB, or make a LevelDBSource"
        raise SourceError(f"cannot open the LMDB database {path}: it has no data.mdb ({problem.strerror}); {hint}") from None
    if status.st_size == 0:  # LMDB would begin a database, and fail for want of permission
        raise SourceError(f"cannot open the LMDB database {path}: its data.mdb is empty; write the database again")
    return path


# ---- A reader: one transaction and one cursor, for one loader ----

cdef struct Address:  # of a record in the map: 24 bytes
    const void *key
    const void *data
    uint32_t data_size
    uint16_t key_size

cdef struct Reader:
    DatumReader datum
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


cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
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
    if environment.owner == process_number():  # in a forked child the transaction is the parent's
        with nogil:
            mdb_cursor_close(reader.cursor)
            mdb_txn_abort(reader.txn)
    free(reader.addresses)
    free(reader)
    Py_DECREF(owners)
    environments.release(environment)


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the environment
cdef class LMDBSource(DatumSource):
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

    def __init__(self, path, color="unchanged"):
        self.open(environments, find(directory(path)), color)

    cdef object new_reader(self):
        """Later commits of others stay unseen."""
        cdef Environment environment = <Environment>self.handle
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
            environments.release(environment)
            hint = {MDB_READERS_FULL: "; too many loaders have it open: close() those that are done",
                    MDB_MAP_RESIZED: "; it has grown since it was opened: close() every source and loader of it, then open it again"}.get(
                        code, "")
            raise SourceError(f"cannot read the LMDB database {environment.path}: {mdb_strerror(code).decode()}{hint}")
        self.begin_reader(&reader.datum)
        reader.datum.source.count = stat.ms_entries
        reader.datum.source.locate = locate
        reader.at = -1
        owners = (environment, self.name)
        capsule = PyCapsule_New(reader, FB_SOURCE_CAPSULE, delete_reader)
        PyCapsule_SetContext(capsule, <void *>owners)
        Py_INCREF(owners)
        return capsule

    def __len__(self):
        """Records."""
        return self.records

    def __fastbatch_source__(self, random_access):
        """A PyCapsule of an fb_source (include/fastbatch.h): a reader of its own, at the database's present state."""
        cdef Reader *reader
        cdef fb_error error
        cdef uint64_t count, first, end
        cdef int code = 0
        self.check_usable("LMDB forbids its use in the child: open it there")
        capsule = self.new_reader()
        reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        if random_access:
            count = reader.datum.source.count
            reader.addresses = <Address *>calloc(count, sizeof(Address))  # `count` stands in the file, and may be any number
            if reader.addresses == NULL:
                raise MemoryError(f"no memory for the addresses of {count} records")
            first = 0
            while first < count:
                end = min(first + SCAN, count)
                with nogil:
                    code = find_addresses(reader, first, end, &error)
                if code != 0:
                    raise SourceError(f"{self.path}: {error.text.decode('utf-8', 'replace')}")
                PyErr_CheckSignals()
                first = end
        return capsule
