# cython: language_level=3
"""`LMDBSource`: the Datum records of an LMDB database, read in place from the memory map.

LMDB forbids opening a database twice in one process: closing either environment drops the file locks of both, after
which a writer may reuse pages that are still being read. Caffe breaks this rule. Therefore all loaders share one
environment per database, identified by the device and inode of its data file. The environment stays open while
something else in this process, such as Caffe's Data layer, has the lock file open.
"""

import os
import time

from fastbatch.sources._database import directory
from fastbatch.errors import SourceError

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EACCES, ENOENT, ENOMEM, ESTALE
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.fcntl cimport F_SETFD, FD_CLOEXEC, fcntl
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_NONE, mmap, munmap
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport usleep

from fastbatch._core cimport process_number
from fastbatch.sources._database cimport (
    DatumReader, DatumSource, fb_file_id_of, fb_file_id_of_descriptor, fb_times_open, Handle, Handles
)
from fastbatch.sources.liblmdb cimport (
    MDB_FIRST, MDB_INVALID, MDB_MAP_RESIZED, MDB_NEXT, MDB_NOLOCK, MDB_NOTLS, MDB_RDONLY, MDB_READERS_FULL,
    MDB_VERSION_MISMATCH, MDB_cursor, mdb_cursor_close, mdb_cursor_get, MDB_cursor_op, mdb_cursor_open, MDB_dbi,
    mdb_dbi_open, MDB_env, mdb_env_close, mdb_env_create, mdb_env_get_fd, mdb_env_info, mdb_env_open,
    mdb_env_set_mapsize, mdb_env_stat, MDB_envinfo, mdb_reader_check, mdb_stat, MDB_stat, mdb_strerror, MDB_txn,
    mdb_txn_abort, mdb_txn_begin, mdb_txn_id, MDB_val, mdb_version
)
from fastbatch._contract cimport FB_SOURCE_CAPSULE, fb_error, fb_fail, fb_record, fb_worker

cdef extern from "../native/files/lmdb_file.h" nogil:
    ctypedef struct fb_lmdb_walk:
        pass
    enum:
        FB_LMDB_DAMAGED
        FB_LMDB_DONE
        FB_LMDB_MORE
        FB_LMDB_UNKNOWN
    int fb_lmdb_check_meta(const char *path, uint64_t *map_size, fb_error *error) noexcept
    fb_lmdb_walk *fb_lmdb_walk_new(int file, uint64_t transaction) noexcept
    void fb_lmdb_walk_delete(fb_lmdb_walk *walk) noexcept
    int fb_lmdb_walk_on(fb_lmdb_walk *walk, uint64_t pages, fb_error *error) noexcept
    uint64_t fb_lmdb_first_key(const fb_lmdb_walk *walk) noexcept
    uint64_t fb_lmdb_used(const fb_lmdb_walk *walk) noexcept

cdef enum:
    SCAN = 65536  # records between two checks for signals
    WALK = 64  # pages between two checks for signals; pages may be on a slow disk
    LOOK = 64  # records between two checks of the file's size
    TRIES = 100  # looks at the lock file, 10 ms apart, until it has the number of a transaction

cdef double CHECK_SECONDS = 1  # the time limit of a check that nobody asked for


def version():
    """Returns the version of the LMDB library in use, such as "0.9.24"."""
    cdef int major, minor, patch
    mdb_version(&major, &minor, &patch)
    return f"{major}.{minor}.{patch}"


# ---- The environment: one per database and process ----

# The least map size, in bytes: room for other processes to enlarge the database meanwhile. Caffe's own LMDB_MAP_SIZE.
cdef size_t AHEAD = <size_t>1 << 40


cdef int create_and_open(const char *path, unsigned int flags, size_t map_size, MDB_env **opened) noexcept nogil:
    """Returns 0, or an error code of LMDB or the system. A map_size of 0 means the database's own."""
    cdef MDB_env *env = NULL
    cdef int file = -1
    cdef int code = mdb_env_create(&env)
    if code == 0 and map_size != 0:
        code = mdb_env_set_mapsize(env, map_size)
    if code == 0:
        code = mdb_env_open(env, path, flags, 0o664)
    if code == 0 and mdb_env_get_fd(env, &file) == 0:
        # LMDB sees to its lock file only. Programs that this process starts would keep the database open.
        fcntl(file, F_SETFD, FD_CLOEXEC)
    if code != 0 and env != NULL:
        mdb_env_close(env)
        env = NULL
    opened[0] = env
    return code


cdef bint has_room_for(size_t size) noexcept nogil:
    """Whether the address space has room for so large a map: `ulimit -v`, for example, limits it."""
    cdef void *memory
    if size == 0:
        return True
    memory = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if memory != MAP_FAILED:
        munmap(memory, size)
    return memory != MAP_FAILED


cdef int open_environment(const char *path, size_t own_size, MDB_env **opened, bint *locked) noexcept nogil:
    """own_size: the database's own map size."""
    cdef unsigned int flags = MDB_RDONLY | MDB_NOTLS
    cdef size_t map_size = max(AHEAD, own_size)
    cdef int code
    locked[0] = True
    # If LMDB itself found that there is no room, it would leave a lock file without the number of the last transaction,
    # if it is the first to open the database: processes that open it at the same time would then take it for empty.
    if not has_room_for(map_size):
        map_size = 0
        if not has_room_for(own_size):
            return ENOMEM
    code = create_and_open(path, flags, map_size, opened)
    if code == EACCES:
        # The directory cannot be written, for example on read-only media. The database probably does not change either.
        locked[0] = False
        flags |= MDB_NOLOCK
        code = create_and_open(path, flags, map_size, opened)
    if code == ENOMEM:  # another thread has taken the room
        code = create_and_open(path, flags, 0, opened)
    return code


@cython.final
cdef class Environment(Handle):
    cdef MDB_env *env
    cdef int file  # data.mdb, as LMDB opened it
    # Numbers of read transactions, guarded by the GIL:
    cdef int beginning
    cdef int begun
    cdef bint lost  # remapping failed, so there is no map
    # Why it could not be opened:
    cdef int code
    cdef fb_error damage

    cdef bint open(self, Handles handles) noexcept:
        cdef MDB_envinfo info
        cdef MDB_stat stat
        cdef struct_stat present
        cdef const char *path = self.native
        cdef const char *data = self.identity_file
        cdef const char *lock = self.lock_file
        cdef uint64_t map_size
        cdef bint locked = False
        with nogil:
            if fb_lmdb_check_meta(data, &map_size, &self.damage) == 0:
                self.code = open_environment(path, map_size, &self.env, &locked)
            if self.env != NULL:
                mdb_env_info(self.env, &info)
                mdb_env_stat(self.env, &stat)
                mdb_env_get_fd(self.env, &self.file)
                fstat(self.file, &present)  # after mdb_env_info(), because the database may be growing
                # Of the opened file, which may have replaced the one that was found.
                self.identity = fb_file_id_of_descriptor(self.file)
                self.lock = fb_file_id_of(lock)
                self.lock.exists &= locked
                if <uint64_t>present.st_size // stat.ms_psize < info.me_last_pgno + 1:
                    fb_fail(&self.damage,
                            "data.mdb has %lld bytes, but says that it uses %zu pages of %u: it was cut short, by an "
                            "interrupted copy perhaps",
                            <long long>present.st_size, info.me_last_pgno + 1, stat.ms_psize)
                    mdb_env_close(self.env)
                    self.env = NULL
        return self.env != NULL

    cdef int remap(self) noexcept:
        """Enlarges the map of a database that has outgrown it.

        No reader may exist, and none may begin meanwhile. Therefore this keeps the GIL.
        """
        cdef int code = mdb_env_set_mapsize(self.env, 0)
        self.lost = code != 0
        return code

    cdef object refusal(self):
        if self.code == ENOMEM:
            return MemoryError()
        if self.code == 0:
            reason = self.damage.text.decode("utf-8", "replace")
            return SourceError(f"cannot open the LMDB database {self.path}: {reason}; {ADVICE}")
        hint = {
            MDB_INVALID: "; data.mdb is not an LMDB file",
            ENOENT: "; source must name the directory that holds data.mdb",
            MDB_VERSION_MISMATCH: "; it was written by another version of LMDB",
        }.get(self.code, "")
        return SourceError(f"cannot open the LMDB database {self.path}: {mdb_strerror(self.code).decode()}{hint}")

    cdef bint shut(self, Handles handles) noexcept:
        """Closes the environment, unless that would drop the locks of others in this process."""
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

    cdef void end(self, DatumReader *reader) noexcept:
        cdef Reader *own = <Reader *>reader
        if own.txn != NULL and self.owner == process_number():
            with nogil:
                mdb_cursor_close(own.cursor)
                mdb_txn_abort(own.txn)
            self.begun -= 1
        fb_lmdb_walk_delete(own.walk)
        free(own.addresses)

    cdef str reason_to_stay(self):
        return (f"fastbatch leaves the LMDB database {self.path} open: something else in this process has it open too, "
                "and closing one of the two would drop the locks of both")


@cython.final
cdef class Environments(Handles):
    def __cinit__(self):
        self.kind = "LMDB"
        self.identity_name = b"/data.mdb"
        self.lock_name = b"/lock.mdb"

    cdef Handle new_handle(self):
        return Environment.__new__(Environment)


cdef Environments environments = Environments()
cdef str ADVICE = "make it again, or copy it again"


cdef str find(str path):
    """Returns the path. Raises SourceError if there is no database in it."""
    try:
        status = os.stat(os.path.join(path, "data.mdb"))
    except OSError as problem:
        hint = "source must name the directory that convert_imageset or lmdb.open() made"
        if os.path.exists(os.path.join(path, "CURRENT")):
            hint = "it is a LevelDB database: write backend: LEVELDB, or make a LevelDBSource"
        raise SourceError(f"cannot open the LMDB database {path}: "
                          f"it has no data.mdb ({problem.strerror}); {hint}") from None
    if status.st_size == 0:  # LMDB would try to create a database, and report that it may not write
        raise SourceError(f"cannot open the LMDB database {path}: its data.mdb is empty; write the database again")
    return path


# ---- A reader: one transaction and one cursor, for one loader ----

cdef struct Address:  # of a record in the map; 24 bytes
    const void *key
    const void *data
    uint32_t data_size
    uint16_t key_size

cdef struct Reader:
    DatumReader datum
    MDB_txn *txn
    MDB_cursor *cursor
    int file
    fb_lmdb_walk *walk  # checks the pages that the reader will read
    const char *map  # the address of the mapped file, of which `used` bytes are in use; NULL if unknown
    uint64_t used
    uint32_t looked  # records since the last check of the file's size
    int64_t at  # the index of the record under the cursor; -1: none yet
    MDB_val key
    MDB_val data
    Address *addresses  # of all records, for random access; otherwise NULL


cdef int step(Reader *reader, MDB_cursor_op operation, fb_error *error) noexcept nogil:
    cdef int code = mdb_cursor_get(reader.cursor, &reader.key, &reader.data, operation)
    if code != 0:
        error.fatal = 1
        return fb_fail(error, "LMDB says: %s", mdb_strerror(code))
    if not lies_in_map(reader, &reader.key) or not lies_in_map(reader, &reader.data):
        error.fatal = 1
        return fb_fail(error, "data.mdb is damaged: LMDB shows a record outside of it; make it again, or copy it again")
    reader.at = 0 if operation == MDB_FIRST else reader.at + 1
    return 0


cdef inline bint lies_in_map(const Reader *reader, const MDB_val *value) noexcept nogil:
    cdef uint64_t begins = <const char *>value.mv_data - reader.map
    return reader.map == NULL or begins <= reader.used and value.mv_size <= reader.used - begins


cdef int look_at_size(Reader *reader, fb_error *error) noexcept nogil:
    """Checks that the file still holds every page in use: reading a lost page ends the process with SIGBUS.

    The check costs a system call, so it runs once every few records.
    """
    cdef struct_stat status
    reader.looked = 0
    if fstat(reader.file, &status) == 0 and <uint64_t>status.st_size < reader.used:
        error.fatal = 1
        return fb_fail(error,
                       "data.mdb was cut short while it was read: it has %lld bytes, and uses %llu; make it again, or "
                       "copy it again", <long long>status.st_size, <unsigned long long>reader.used)
    return 0


cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    """Steps the cursor to the record, or looks up its address."""
    cdef Reader *reader = <Reader *>self
    cdef int64_t index = <int64_t>record.index
    cdef Address *address
    reader.looked += 1
    if reader.looked >= LOOK and look_at_size(reader, error) != 0:
        return -1
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


cdef int begin_to_read(Environment environment, Reader *reader, MDB_stat *stat) except? -1:
    """Opens a transaction and a cursor. Returns 0 or LMDB's error code, or ESTALE if the lock file knows of none."""
    cdef MDB_dbi dbi
    cdef MDB_envinfo info
    cdef int freed, code
    cdef int tries = 0
    while not environment.lost:
        environment.beginning += 1
        with nogil:
            mdb_env_info(environment.env, &info)
            code = mdb_txn_begin(environment.env, NULL, MDB_RDONLY, &reader.txn)
            if code == MDB_READERS_FULL:
                mdb_reader_check(environment.env, &freed)  # frees the reader slots of processes that died
                code = mdb_txn_begin(environment.env, NULL, MDB_RDONLY, &reader.txn)
            if code == 0:
                # A reader takes the number of the last transaction from the lock file, and 0 for an empty database.
                code = ESTALE if mdb_txn_id(reader.txn) == 0 and info.me_last_txnid > 0 else 0
                if code == 0:
                    code = mdb_dbi_open(reader.txn, NULL, 0, &dbi)
                if code == 0:
                    code = mdb_stat(reader.txn, dbi, stat)
                if code == 0:
                    code = mdb_cursor_open(reader.txn, dbi, &reader.cursor)
                if code != 0:
                    mdb_txn_abort(reader.txn)
                    reader.txn = NULL
        environment.beginning -= 1
        environment.begun += code == 0
        if code == ESTALE and tries < TRIES:  # perhaps the first transaction is just about to end
            tries += 1
            with nogil:
                usleep(10000)
            PyErr_CheckSignals()
            continue
        if code != MDB_MAP_RESIZED or environment.begun:
            return code
        if environment.beginning:  # in other threads; the last of them will remap
            with nogil:
                usleep(1000)
            PyErr_CheckSignals()
        elif environment.remap() != 0:
            break
    return ENOMEM


cdef dict _checked = {}  # (device, inode) -> ((size, time), whether all pages were checked)


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the environment
cdef class LMDBSource(DatumSource):
    """Caffe's Datum records in an LMDB database, in the order of their keys.

    A sample has "data" (uint8 or float32, channels x height x width) and "label" (int64). The loader's threads decode
    records that hold a JPEG or PNG file.

    Parameters
    ----------
    path : str or path-like
        The directory that holds data.mdb.
    color : str
        Applies to encoded records (JPEG, PNG), whose channels come blue first. ``"color"`` gives 3 channels and
        ``"gray"`` 1, both oriented by the EXIF tag. ``"unchanged"`` gives the image's own channels and ignores the
        orientation. These correspond to Caffe's force_color, force_gray, and neither.
    check : bool or None
        Whether to check the pages that lead to the records; LMDB itself ends the process if they are damaged. None
        checks for at most one second when a source or loader is made, and not again while the file's size and
        modification time stay the same. True checks all of these pages, however long it takes. False checks only the
        first ones. No setting reads the records.
    index_bytes : int, optional
        The most memory that the index of JPEG files may take, which makes the decoding of crops faster from the second
        epoch on (docs/jpeg.md). By default 512 MiB; 0: no index; otherwise at least 1024.
    index_file : str or path-like, optional
        The file that keeps this index from run to run: read if it exists, and written with what was noted at the end
        of each epoch and when a loader is closed.

    Raises
    ------
    SourceError
        The database is missing, cut short, damaged, empty or not an LMDB database, or its reader table is full.
    MissingLibraryError
        The first record is an encoded image, and this fastbatch was built without libjpeg-turbo or libpng.
    Closed, ForkedError
        A loader is given a source that is closed or that belongs to a parent process.

    Notes
    -----
    The database is opened read-only, as in Caffe, with LMDB's locks if the directory is writable and without them
    otherwise. A loader sees the database as it was when the loader was made. A loader that shuffles scans the keys once
    and keeps 24 bytes per record.

    Any number of loaders may read one source, in any threads.
    """

    cdef object check
    cdef size_t first_transaction  # that a reader has seen; 0: none yet

    def __init__(self, path, color="unchanged", check=None, index_bytes=None, index_file=None):
        if check is not None and not isinstance(check, bool):
            raise TypeError(f"check is {check!r}; it can be None, True or False")
        self.check = check
        self.open(environments, find(directory(path)), color, index_bytes, index_file)

    def __reduce__(self):
        make, (path, color, *index) = DatumSource.__reduce__(self)
        return make, (path, color, self.check, *index)

    cdef object new_reader(self):
        """Returns a reader that does not see later commits."""
        cdef Environment environment = <Environment>self.handle
        cdef MDB_stat stat
        cdef int code
        capsule = self.begin_reader(sizeof(Reader))
        cdef Reader *reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        code = begin_to_read(environment, reader, &stat)
        if code == ESTALE:
            raise SourceError(f"cannot read the LMDB database {environment.path}: its lock.mdb says that nothing was "
                              "ever written to data.mdb, which is wrong: a program could not open the database and "
                              "left lock.mdb unfinished, or one wrote without locks (MDB_NOLOCK) while another one "
                              "had it open. Close all programs that use the database, then open it again")
        if code != 0:
            hint = {
                MDB_READERS_FULL: "; too many loaders have it open: close() those that are done",
                MDB_MAP_RESIZED: "; it has grown since it was opened: close() every loader of it, then make new ones",
            }.get(code, "")
            raise SourceError(f"cannot read the LMDB database {environment.path}: {mdb_strerror(code).decode()}{hint}")
        reader.datum.source.count = stat.ms_entries
        reader.datum.source.locate = locate
        if self.first_transaction == 0:
            self.first_transaction = mdb_txn_id(reader.txn)
        # Each transaction that wrote may have changed any record. Then the images' bytes identify them, which takes
        # longer, but those that are as before stay in the index.
        reader.datum.rewritten = mdb_txn_id(reader.txn) != self.first_transaction
        reader.file = environment.file
        reader.at = -1
        self.check_pages(reader)
        return capsule

    cdef int check_pages(self, Reader *reader) except -1:
        """Checks the pages that will be read; at least the first ones, from which the address of the map follows."""
        cdef MDB_val key
        cdef MDB_val data
        cdef fb_error error
        cdef struct_stat status
        cdef int code
        cdef bint found
        fstat(reader.file, &status)
        file = (status.st_dev, status.st_ino)
        state = (status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec)
        known, complete = _checked.get(file, (None, False))
        wanted = self.check is not False and not (known == state and (complete or self.check is None))
        reader.walk = fb_lmdb_walk_new(reader.file, mdb_txn_id(reader.txn))
        if reader.walk == NULL:
            raise MemoryError()
        end = time.monotonic() + CHECK_SECONDS
        code = FB_LMDB_MORE
        while code == FB_LMDB_MORE:
            with nogil:
                code = fb_lmdb_walk_on(reader.walk, WALK, &error)
            PyErr_CheckSignals()
            if not wanted or self.check is None and time.monotonic() > end:
                break
        if code == FB_LMDB_DAMAGED:
            reason = error.text.decode("utf-8", "replace")
            raise SourceError(f"cannot read the LMDB database {self.path}: {reason}; {ADVICE}")
        if code == FB_LMDB_DONE or wanted:
            _checked[file] = (state, code == FB_LMDB_DONE)
        if code != FB_LMDB_UNKNOWN and reader.datum.source.count > 0:
            with nogil:
                found = mdb_cursor_get(reader.cursor, &key, &data, MDB_FIRST) == 0
            if found:
                reader.map = <const char *>key.mv_data - fb_lmdb_first_key(reader.walk)
                reader.used = fb_lmdb_used(reader.walk)
        fb_lmdb_walk_delete(reader.walk)
        reader.walk = NULL
        return 0

    def __len__(self):
        """Return the number of records."""
        return self.records

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h) of the database's present state."""
        cdef Reader *reader
        cdef fb_error error
        cdef uint64_t count, first, end
        cdef int code = 0
        self.check_usable("LMDB forbids its use in the child: open it there")
        capsule = self.new_reader()
        reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        self.use_index(&reader.datum, reader.datum.source.count)
        if random_access:
            count = reader.datum.source.count
            # calloc() checks the product for overflow: a damaged file may claim any count.
            reader.addresses = <Address *>calloc(count, sizeof(Address))
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
