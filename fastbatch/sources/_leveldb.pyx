# cython: language_level=3
"""`LevelDBSource`: the Datum records of a LevelDB database.

LevelDB allows a database to be open in one process at a time, and once in that process. It enforces the second rule by
the database's path only. Through another path, such as a link, it would open the database again, and the two handles
would delete each other's files. Therefore all loaders share one handle per database, identified by the device and inode
of its file LOCK. No handle is opened while something else in this process, such as Caffe's Data layer, has that file
open.

While the database is open here nobody can write to it. Every reader sees the same records without a snapshot.
"""

import fcntl
import os
import struct

from fastbatch.sources._database import directory
from fastbatch.errors import SourceError

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, strncmp

from fastbatch._core cimport process_number
from fastbatch.sources._database cimport (
    DatumReader, DatumSource, fb_times_open, Handle, Handles, read_datum
)
from fastbatch.sources.libleveldb cimport (
    leveldb_close, leveldb_create_iterator, leveldb_free, leveldb_get, leveldb_iter_destroy, leveldb_iter_get_error,
    leveldb_iter_key, leveldb_iter_next, leveldb_iter_seek_to_first, leveldb_iter_valid, leveldb_iter_value,
    leveldb_iterator_t, leveldb_major_version, leveldb_minor_version, leveldb_open, leveldb_options_create,
    leveldb_options_destroy, leveldb_options_set_block_size, leveldb_options_set_create_if_missing,
    leveldb_options_set_max_open_files, leveldb_options_set_paranoid_checks, leveldb_options_set_write_buffer_size,
    leveldb_options_t, leveldb_readoptions_create, leveldb_readoptions_destroy, leveldb_readoptions_set_fill_cache,
    leveldb_readoptions_set_verify_checksums, leveldb_readoptions_t, leveldb_t
)
from fastbatch._threads cimport (
    atomic_get, atomic_set, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock
)
from fastbatch._contract cimport (
    FB_END, FB_SOURCE_CAPSULE, FB_UNCOUNTED, fb_error, fb_fail, fb_record, fb_scratch_reserve, fb_view, fb_worker
)

cdef extern from "../native/files/leveldb_files.h" nogil:
    int fb_leveldb_check(const char *directory, fb_error *error) noexcept

cdef enum:
    SCAN = 256  # records between two checks for signals; records may be large and on a slow disk


def version():
    """Returns the version of the LevelDB library in use, such as "1.22"."""
    return f"{leveldb_major_version()}.{leveldb_minor_version()}"


# ---- The keys: for counting, and for finding records in any order or on several threads ----

# The keys of the database's first records, in order. Once `complete`, it holds all keys and never changes again.
cdef struct Keys:
    pthread_mutex_t guard
    int32_t complete
    uint64_t *ends  # where each key ends, and the next begins
    char *bytes
    uint64_t count
    uint64_t values  # the total size of their values, in bytes
    uint64_t room  # in `ends`
    uint64_t bytes_room


cdef bint make_room(Keys *keys, size_t size) noexcept nogil:
    """Makes room for one more key; returns False if memory runs out."""
    cdef uint64_t end = keys.ends[keys.count - 1] if keys.count else 0
    cdef uint64_t room
    cdef void *grown
    if keys.count == keys.room:
        room = max(<uint64_t>1024, 2 * keys.room)
        grown = realloc(keys.ends, room * sizeof(uint64_t))
        if grown == NULL:
            return False
        keys.ends = <uint64_t *>grown
        keys.room = room
    if keys.bytes == NULL or end + size > keys.bytes_room:  # the first key may be empty
        room = max(<uint64_t>16384, 2 * (end + size))
        grown = realloc(keys.bytes, room)
        if grown == NULL:
            return False
        keys.bytes = <char *>grown
        keys.bytes_room = room
    return True


cdef void learn_key(Keys *keys, uint64_t at, const char *key, size_t size, size_t value_size) noexcept nogil:
    """Adds the key of record `at`, unless another reader has added it already.

    If memory runs out, the keys stay incomplete.
    """
    cdef uint64_t end
    pthread_mutex_lock(&keys.guard)
    if at == keys.count and not atomic_get(&keys.complete) and make_room(keys, size):
        end = keys.ends[at - 1] if at else 0
        memcpy(keys.bytes + end, key, size)
        keys.ends[at] = end + size
        keys.values += value_size
        keys.count += 1
    pthread_mutex_unlock(&keys.guard)


cdef void learn_end(Keys *keys, uint64_t at) noexcept nogil:
    pthread_mutex_lock(&keys.guard)
    if at == keys.count:
        atomic_set(&keys.complete, True)
    pthread_mutex_unlock(&keys.guard)


# ---- The database: one handle for a process ----

cdef enum Hindrance:  # what prevents opening a database
    NOTHING
    TORN
    INHERITED
    ELSEWHERE
    DAMAGED


@cython.final
cdef class Database(Handle):
    cdef leveldb_t *database
    cdef leveldb_options_t *options  # must live as long as `database`
    cdef Keys keys
    # Why it could not be opened:
    cdef Hindrance hindrance
    cdef char *problem
    cdef fb_error damage

    def __cinit__(self):
        pthread_mutex_init(&self.keys.guard, NULL)

    def __dealloc__(self):
        if self.owner != process_number():  # at the fork, another thread may have been adding a key
            return
        pthread_mutex_destroy(&self.keys.guard)
        free(self.keys.ends)
        free(self.keys.bytes)

    cdef bint open(self, Handles handles) noexcept:
        cdef const char *path = self.native
        if handles.torn:
            self.hindrance = TORN
        elif handles.times_inherited(self.lock):
            self.hindrance = INHERITED
        else:
            with nogil:
                if self.lock.exists and fb_times_open(self.lock):
                    self.hindrance = ELSEWHERE
                elif fb_leveldb_check(path, &self.damage) != 0:
                    self.hindrance = DAMAGED
                else:
                    self.hindrance = NOTHING
        if self.hindrance != NOTHING:
            return False
        with nogil:
            self.options = leveldb_options_create()
            leveldb_options_set_create_if_missing(self.options, 0)
            # Report records that cannot be read, instead of skipping them.
            leveldb_options_set_paranoid_checks(self.options, 1)
            # Caffe's options. LevelDB may rearrange files even if they are only read; this way it does so as for Caffe.
            leveldb_options_set_write_buffer_size(self.options, 268435456)
            leveldb_options_set_max_open_files(self.options, 100)
            leveldb_options_set_block_size(self.options, 65536)
            self.database = leveldb_open(self.options, path, &self.problem)
            if self.database == NULL:
                leveldb_options_destroy(self.options)
        if self.database == NULL:
            return False
        self.identify()
        return True

    cdef object refusal(self):
        failed = f"Failed to open leveldb {self.path}"
        if self.hindrance == TORN:
            return SourceError(f"{failed}: the process that this one was forked from was opening or closing a LevelDB "
                               "database in another thread, so LevelDB cannot be used here: fork before, or open it in "
                               "a process of its own (multiprocessing's spawn)")
        if self.hindrance == INHERITED:
            return SourceError(f"{failed}: the process that this one was forked from had it open, and LevelDB cannot "
                               "open it in both: close it before the fork, or open it in a process of its own "
                               "(multiprocessing's spawn)")
        if self.hindrance == ELSEWHERE:
            return SourceError(f"{failed}: something else in this process has it open, a Data layer of Caffe's "
                               "perhaps, and LevelDB opens a database once: close that first, let fastbatch read for "
                               "both, or read a copy of the database")
        if self.hindrance == DAMAGED:
            reason = self.damage.text.decode("utf-8", "replace")
            if lock_holder(f"{self.path}/LOCK"):  # the holder may be rearranging the files right now
                reason = f"IO error: lock {self.path}/LOCK: Resource temporarily unavailable"
        else:
            reason = self.problem.decode("utf-8", "replace")
            leveldb_free(self.problem)
            self.problem = NULL
        return SourceError(f"{failed}: {reason}{hint(reason, self.path)}")

    cdef bint shut(self, Handles handles) noexcept:
        """Closes the database, except in a forked child of a process that used LevelDB.

        Closing waits for LevelDB's background thread, which does not exist in the child.
        """
        if handles.used_by_parent:
            return False
        with nogil:
            leveldb_close(self.database)  # waits for LevelDB's own thread if that is compacting
            leveldb_options_destroy(self.options)
        self.database = NULL
        return True

    cdef void end(self, DatumReader *reader) noexcept:
        cdef Reader *own = <Reader *>reader
        if self.owner == process_number():
            with nogil:
                if own.iterator != NULL:
                    leveldb_iter_destroy(own.iterator)
                if own.options != NULL:
                    leveldb_readoptions_destroy(own.options)

    cdef str reason_to_stay(self):
        return (f"fastbatch leaves the LevelDB database {self.path} open until this process ends: it was forked from "
                "one that used LevelDB, whose own thread a fork does not copy, and closing might wait for that "
                "for ever")


@cython.final
cdef class Databases(Handles):
    def __cinit__(self):
        self.kind = "LevelDB"
        self.identity_name = self.lock_name = b"/LOCK"

    cdef Handle new_handle(self):
        return Database.__new__(Database)


cdef Databases databases = Databases()


cdef str hint(str reason, path):
    """Returns what to append to LevelDB's reason: what it means, and what to do about it."""
    if "already held by process" in reason:
        return ("; this process has an earlier database of that name open, whose files were deleted since: close the "
                "sources and loaders of that first")
    if "/LOCK: Resource temporarily unavailable" in reason:
        holder = lock_holder(f"{path}/LOCK")
        return (f"; {f'process {holder}' if holder else 'another process'} has it open, and LevelDB allows one at a "
                "time: end that, or read a copy of the database")
    if "Permission denied" in reason or "Read-only" in reason:
        return ("; LevelDB writes to every database that it opens, if only to lock it: copy this one to where you may "
                "write, or make an LMDB of it, which can be read anywhere")
    if "comparator" in reason:
        return "; its keys are sorted in another order than Caffe's: it was not made by Caffe"
    if "Corruption" in reason or "No such file" in reason or "damaged" in reason or "cut short" in reason:
        return "; it is damaged: make it again, or copy it again"
    return ""


cdef object lock_holder(path):
    """Returns the ID of the process that holds a lock on a file, or 0 if it is unknown.

    Nothing in this process may have the file open.
    """
    layout = "hhqqi0q"  # struct flock
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(layout, fcntl.F_WRLCK, 0, 0, 0, 0))
        finally:
            os.close(descriptor)
    except OSError:
        return 0
    return struct.unpack(layout, answer)[4]


cdef str find(str path):
    """Returns the path. Raises SourceError if there is no database in it, because LevelDB would leave files there."""
    try:
        os.stat(os.path.join(path, "CURRENT"))
    except OSError as problem:
        advice = "source must name the directory that convert_imageset made"
        if os.path.exists(os.path.join(path, "data.mdb")):
            advice = ("it is an LMDB database: write backend: LMDB, because LEVELDB is Caffe's default, "
                      "or make an LMDBSource")
        raise SourceError(f"Failed to open leveldb {path}: "
                          f"it has no file CURRENT ({problem.strerror}); {advice}") from None
    return path


# ---- A reader, for one loader ----
#
# A reader steps through the records in order. Only one thread at a time can step, so the worker that holds the
# sequencer reads, verifies and copies each record. Once the keys are known, from the second epoch on, records at least
# as large as one of LevelDB's blocks can be read faster: each worker asks LevelDB for its own record. Smaller records
# share a block, which LevelDB would read and verify again for each of them.

cdef enum:
    LARGE = 65536  # bytes: a block, with Caffe's options

cdef size_t BY_KEY = <size_t>-1  # the data_size of a record that read() is to look up by its key

cdef struct Reader:
    DatumReader datum
    leveldb_t *database
    leveldb_readoptions_t *options
    Keys *keys
    bint by_key  # records are looked up by their keys from now on
    # For sequential reading:
    leveldb_iterator_t *iterator
    bint learns  # adds the keys that it passes to `keys`
    bint broken  # LevelDB failed to read something; stepping the iterator again may fail an assertion in LevelDB
    uint64_t at  # the index of the record under the iterator
    bint taken  # a worker has taken that record


cdef int fail(fb_error *error, char *problem, const char *fate) noexcept nogil:
    if strncmp(problem, "Corruption", 10) == 0:
        fb_fail(error, "LevelDB says: %s; the database is damaged: %s", problem, fate)
    else:
        fb_fail(error, "LevelDB says: %s", problem)
    leveldb_free(problem)
    return -1


cdef int check(Reader *reader, fb_error *error) noexcept nogil:
    """Checks for a read error: LevelDB's iterators skip what they cannot read, and report it only here."""
    cdef char *problem = NULL
    leveldb_iter_get_error(reader.iterator, &problem)
    if problem == NULL:
        return 0
    reader.broken = True
    error.fatal = 1
    return fail(error, problem,
                "make it again, or copy it again (LevelDB's RepairDB would leave out what cannot be read)")


cdef int begin(Reader *reader, fb_error *error) noexcept nogil:
    """Moves to the first record with a new iterator.

    The old iterator would not read and verify the block that it is in again.
    """
    if reader.iterator != NULL:
        leveldb_iter_destroy(reader.iterator)
    reader.iterator = leveldb_create_iterator(reader.database, reader.options)
    reader.taken = False
    leveldb_iter_seek_to_first(reader.iterator)
    return check(reader, error)


cdef int step(Reader *reader, fb_error *error) noexcept nogil:
    cdef size_t size = 0
    cdef size_t value_size = 0
    cdef const char *key
    if reader.learns:
        key = leveldb_iter_key(reader.iterator, &size)
        leveldb_iter_value(reader.iterator, &value_size)
        learn_key(reader.keys, reader.at, key, size, value_size)
    leveldb_iter_next(reader.iterator)
    if check(reader, error) != 0:
        return -1
    reader.at += 1
    reader.taken = False
    if reader.learns and not leveldb_iter_valid(reader.iterator):
        learn_end(reader.keys, reader.at)
    return 0


cdef int locate_next(Reader *reader, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    """Steps the iterator to the record and copies it: LevelDB's memory is valid only until the next step."""
    cdef size_t key_size = 0
    cdef size_t size = 0
    cdef const char *key
    cdef const char *value
    cdef char *memory
    if record.index < reader.at or record.index == reader.at and reader.taken:
        reader.at = 0
        if begin(reader, error) != 0:
            return -1
    while reader.at < record.index and leveldb_iter_valid(reader.iterator):
        if step(reader, error) != 0:
            return -1
    if not leveldb_iter_valid(reader.iterator):
        if reader.datum.source.count == FB_UNCOUNTED:
            record.index = reader.at
            return FB_END
        error.fatal = 1
        return fb_fail(error, "the database ends here, which it did not when its records were counted")
    reader.taken = True
    key = leveldb_iter_key(reader.iterator, &key_size)
    value = leveldb_iter_value(reader.iterator, &size)
    memory = <char *>fb_scratch_reserve(worker.record_buffer, size + key_size)
    if memory == NULL:
        return fb_fail(error, "no memory for the %zu bytes of the record", size)
    memcpy(memory, value, size)
    memcpy(memory + size, key, key_size)
    record.data = memory
    record.data_size = size
    record.key = memory + size
    record.key_size = key_size
    return 0


cdef int locate_key(Reader *reader, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    """Looks up the record's key; the worker asks LevelDB for the record in read()."""
    cdef const Keys *keys = reader.keys
    cdef uint64_t begins
    cdef char **value = <char **>fb_scratch_reserve(worker.record_buffer, sizeof(char *))
    if record.index >= keys.count:
        record.index = keys.count
        return FB_END
    if value == NULL:
        return fb_fail(error, "no memory for a record")
    value[0] = NULL
    begins = keys.ends[record.index - 1] if record.index else 0
    record.data = value
    record.data_size = BY_KEY
    record.key = keys.bytes + begins
    record.key_size = keys.ends[record.index] - begins
    return 0


cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    if reader.broken:  # an earlier sample's error has the reason
        error.fatal = 1
        return fb_fail(error, "something before it cannot be read")
    if not reader.by_key and atomic_get(&reader.keys.complete) and reader.keys.values // reader.keys.count >= LARGE:
        find_by_key(reader)
    if reader.by_key:
        return locate_key(reader, record, worker, error)
    return locate_next(reader, record, worker, error)


cdef void find_by_key(Reader *reader) noexcept nogil:
    reader.by_key = True
    leveldb_iter_destroy(reader.iterator)
    reader.iterator = NULL


cdef int read_record(void *self, const fb_record *record, fb_worker *worker, fb_view *views,
                     fb_error *error) noexcept nogil:
    """Reads a record that was copied, or gets one from LevelDB by its key.

    LevelDB verifies the record on every read and returns it in memory of its own, which done() frees.
    """
    cdef Reader *reader = <Reader *>self
    cdef fb_record found = record[0]
    cdef char *problem = NULL
    cdef char *value
    if record.data_size != BY_KEY:
        return read_datum(self, record, worker, views, error)
    value = leveldb_get(reader.database, reader.options, <const char *>record.key, record.key_size, &found.data_size,
                        &problem)
    (<char **>record.data)[0] = value
    if problem != NULL:
        return fail(error, problem, "make it again, or copy it again")
    if value == NULL:
        return fb_fail(error, "LevelDB does not find it any more: the database is damaged")
    found.data = value
    return read_datum(self, &found, worker, views, error)


cdef void done_with_record(void *self, const fb_record *record, fb_worker *worker) noexcept nogil:
    if record.data_size == BY_KEY:
        leveldb_free((<char **>record.data)[0])


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the database
cdef class LevelDBSource(DatumSource):
    """Caffe's Datum records in a LevelDB database, in the order of their keys.

    A sample has "data" (uint8 or float32, channels x height x width) and "label" (int64). The loader's threads decode
    records that hold a JPEG or PNG file.

    Parameters
    ----------
    path : str or path-like
        The directory that holds the database's file CURRENT.
    color : str
        Applies to encoded records (JPEG, PNG), whose channels come blue first. ``"color"`` gives 3 channels and
        ``"gray"`` 1, both oriented by the EXIF tag. ``"unchanged"`` gives the image's own channels and ignores the
        orientation. These correspond to Caffe's force_color, force_gray, and neither.
    index_bytes : int, optional
        The most memory that the index of JPEG files may take, which makes the decoding of crops faster from the second
        epoch on (docs/jpeg.md). By default 512 MiB; 0: no index; otherwise at least 1024.
    index_file : str or path-like, optional
        The file that keeps this index from run to run: read if it exists, and written with what was noted at the end
        of each epoch and when a loader is closed.

    Raises
    ------
    SourceError
        The database is missing, damaged, empty, open elsewhere, not a LevelDB database, or in a directory that cannot
        be written.
    MissingLibraryError
        The first record is an encoded image, and this fastbatch was built without libjpeg-turbo or libpng.
    Closed, ForkedError
        A loader is given a source that is closed or that belongs to a parent process.

    Notes
    -----
    LevelDB allows one process at a time to open a database. It writes to the database's directory when it opens it, and
    possibly while it reads. All sources and loaders of this process share one handle, which closes with the last of
    them.

    LevelDB does not store the number of records. The first loader, or len(), that needs it reads the whole database
    once and keeps the keys, plus 8 bytes per record. LevelDB verifies checksums whenever it reads a block of records.
    If the records average 64 KB or more, all of the loader's threads read them at once; otherwise they do only if the
    loader shuffles.

    Thread-safety: any number of loaders may read one source, in any threads.
    """

    def __init__(self, path, color="unchanged", index_bytes=None, index_file=None):
        self.open(databases, find(directory(path)), color, index_bytes, index_file)

    cdef object new_reader(self):
        """Returns a reader at the first record. Its count only says whether there is one."""
        cdef Database database = <Database>self.handle
        cdef fb_error error
        cdef int code
        capsule = self.begin_reader(sizeof(Reader))
        cdef Reader *reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        reader.database = database.database
        reader.keys = &database.keys
        with nogil:
            reader.options = leveldb_readoptions_create()
            leveldb_readoptions_set_verify_checksums(reader.options, 1)
            leveldb_readoptions_set_fill_cache(reader.options, 0)  # sequential reading returns to a block much later
            code = begin(reader, &error)
        if code != 0:
            raise SourceError(f"{self.path} cannot be read: {error.text.decode('utf-8', 'replace')}")
        reader.datum.source.count = leveldb_iter_valid(reader.iterator)
        reader.datum.source.locate = locate
        reader.datum.source.read = read_record
        reader.datum.source.done = done_with_record
        return capsule

    cdef uint64_t count(self) except 0:
        """Returns the number of records. All their keys are known from then on."""
        cdef Database database = <Database>self.handle
        cdef Reader *reader
        cdef fb_error error
        cdef bint more
        cdef int code = 0
        cdef int _
        if atomic_get(&database.keys.complete):
            return database.keys.count
        capsule = self.new_reader()
        reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        reader.learns = True
        more = reader.datum.source.count > 0
        while more:
            with nogil:
                for _ in range(SCAN):
                    code = step(reader, &error)
                    more = code == 0 and leveldb_iter_valid(reader.iterator)
                    if not more:
                        break
            if code != 0:
                raise SourceError(f"{self.path} cannot be read: "
                                  f"{error.text.decode('utf-8', 'replace')} (at sample {reader.at})")
            PyErr_CheckSignals()
        if not atomic_get(&database.keys.complete):
            raise MemoryError(f"no memory for the keys of {self.path}")
        return database.keys.count

    def __len__(self):
        """Return the number of records. The first call reads the whole database."""
        self.check_usable(IN_A_CHILD)
        return self.count()

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h) with a reader of its own.

        Sequential access does not count the records first.
        """
        cdef Reader *reader
        cdef uint64_t count = FB_UNCOUNTED
        cdef size_t size = 0
        self.check_usable(IN_A_CHILD)
        if random_access:
            self.count()
            self.check_usable(IN_A_CHILD)  # again: signal handlers and other threads have run meanwhile
        if atomic_get(&(<Database>self.handle).keys.complete):
            count = (<Database>self.handle).keys.count
        capsule = self.new_reader()
        reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
        if reader.datum.source.count == 0:
            return capsule
        reader.datum.source.count = count
        self.use_index(&reader.datum, 0 if count == FB_UNCOUNTED else count)
        if random_access:
            find_by_key(reader)
            leveldb_readoptions_set_fill_cache(reader.options, 1)
        else:
            leveldb_iter_value(reader.iterator, &size)
            reader.learns = size >= LARGE  # smaller records are never looked up by key
        return capsule


cdef str IN_A_CHILD = "LevelDB forbids its use in the child"
