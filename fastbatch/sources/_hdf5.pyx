# cython: language_level=3
"""`CaffeHDF5`: the rows of HDF5 files, each read ahead by a background thread.

Two files are in memory: the shown file, whose rows are delivered, and the wanted file, which the thread reads next. The
order, `CaffeRows` of `fastbatch.orders`, decides which files these are and which rows come when. It shows a file,
learns its number of rows, and requests the next file.

`Reader.lock` is a leaf lock. State that is not marked as guarded by it belongs to the sequencer (locate) or never
changes.
"""

import os

from fastbatch.sources._list_files import require_text
from fastbatch.errors import Closed, SourceError

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strerror, strlen
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._core cimport process_number
from fastbatch.sources._hdf5 cimport (
    FB_HDF5_MAX_DATASETS, H5_VERS_MAJOR, H5_VERS_MINOR, H5_VERS_RELEASE, fb_hdf5_after_fork, fb_hdf5_before_fork,
    fb_hdf5_begin, fb_hdf5_close, fb_hdf5_enter, fb_hdf5_file, fb_hdf5_free, fb_hdf5_is_thread_safe, fb_hdf5_join,
    fb_hdf5_layout, fb_hdf5_leave, fb_hdf5_open, fb_hdf5_read_some, fb_hdf5_rows
)
from fastbatch._threads cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_t, pthread_cond_timedwait,
    pthread_cond_wait, pthread_condattr_destroy, pthread_condattr_init, pthread_condattr_setclock,
    pthread_condattr_t, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, pthread_t, thread_start, thread_yields
)
from fastbatch._contract cimport (
    FB_FLOAT32, FB_SOURCE_CAPSULE, FB_UNCOUNTED, fb_error, fb_fail, fb_field, fb_record, fb_source,
    fb_view, fb_worker
)
from fastbatch.orders._rows cimport RowFiles, row_files_capsule

cdef extern from "<stdlib.h>" nogil:
    int atexit(void (*function)() noexcept nogil) noexcept

cdef enum:
    LEAVING = 2  # seconds for which the end of the process waits for a step of reading


def version():
    """Returns the version of libhdf5 that fastbatch was built with, such as "1.10.6"."""
    return f"{H5_VERS_MAJOR}.{H5_VERS_MINOR}.{H5_VERS_RELEASE}"


def is_thread_safe():
    """Returns whether several threads may call the loaded libhdf5 at once."""
    cdef int answer
    with nogil:  # this waits for other threads inside libhdf5
        answer = fb_hdf5_is_thread_safe()
    return bool(answer)


cdef struct LoadedFile:  # a file in memory
    int64_t path  # its index in `paths`, or -1; under the lock
    fb_hdf5_rows rows
    int64_t users  # samples that are being copied to a batch; under the lock

cdef struct Reader:
    fb_source source
    fb_field fields[16]
    fb_hdf5_layout layout
    const char **paths
    int64_t paths_count
    RowFiles row_files
    bint threaded  # a thread reads; otherwise the consumer does, by read_ahead()
    int owner  # the process

    pthread_mutex_t lock
    pthread_cond_t changed  # signals a change of any member below
    LoadedFile files[2]
    LoadedFile *shown  # the one whose rows are delivered; files are read into the other one
    LoadedFile *held  # the one shown before, until the sample picked last is located; NULL: that sample is in `shown`
    int64_t wanted  # the path to read next; -1: none
    bint is_there  # it has been read
    bint failed  # it cannot be read
    fb_error failure
    bint stopping
    bint reading  # the thread lives, or read_ahead() is running
    bint lent  # a loader has the capsule

    pthread_t thread
    bint started
    Reader *next  # in the list `readers`


# ---- Files ----

cdef LoadedFile *other_file(Reader *reader) noexcept nogil:
    return &reader.files[1] if reader.shown == &reader.files[0] else &reader.files[0]


cdef bint given_up(Reader *reader, int64_t path) noexcept nogil:
    """Returns whether nobody needs this path's rows any more."""
    cdef bint answer
    pthread_mutex_lock(&reader.lock)
    answer = reader.stopping or reader.wanted != path
    pthread_mutex_unlock(&reader.lock)
    return answer


cdef enum Step:
    OPEN
    READ_SOME
    CLOSE


cdef int step_with_gil(Reader *reader, Step step, int64_t path, fb_hdf5_file *file, LoadedFile *loaded,
                       fb_error *error) noexcept nogil:
    """Runs one step of reading a file; returns whether more steps remain, or -1 on an error.

    It calls libhdf5, so the caller holds the GIL or is step_without_gil().
    """
    if step == OPEN:
        return 1 if fb_hdf5_open(file, reader.paths[path], &reader.layout, &loaded.rows, error) == 0 else -1
    if step == READ_SOME:
        return fb_hdf5_read_some(file, reader.paths[path], &reader.layout, &loaded.rows, error)
    fb_hdf5_close(file)
    return 0


cdef int step_without_gil(Reader *reader, Step step, int64_t path, fb_hdf5_file *file, LoadedFile *loaded,
                          fb_error *error) noexcept nogil:
    """Like step_with_gil(), but without the GIL: only the gate keeps other threads from forking meanwhile."""
    cdef int more
    fb_hdf5_enter()
    more = step_with_gil(reader, step, path, file, loaded, error)
    fb_hdf5_leave()
    return more


cdef void read_wanted(Reader *reader, int64_t path, LoadedFile *loaded) noexcept nogil:
    """Reads a whole file, unless it is given up, and reports the result. Called without the lock."""
    cdef fb_hdf5_file file
    cdef fb_error error
    cdef int more
    memset(&error, 0, sizeof(error))
    more = step_without_gil(reader, OPEN, path, &file, loaded, &error)
    while more > 0 and not given_up(reader, path):
        more = step_without_gil(reader, READ_SOME, path, &file, loaded, &error)
    step_without_gil(reader, CLOSE, path, &file, loaded, &error)
    if more <= 0:
        have_read(reader, path, more, &error)


cdef void have_read(Reader *reader, int64_t path, int code, const fb_error *error) noexcept nogil:
    """Reports that this file is read (code 0), or that it cannot be read."""
    pthread_mutex_lock(&reader.lock)
    if reader.wanted == path:
        reader.is_there = code == 0
        reader.failed = code != 0
        reader.failure = error[0]
        pthread_cond_broadcast(&reader.changed)
    pthread_mutex_unlock(&reader.lock)


cdef bint has_work(Reader *reader) noexcept nogil:
    """Returns whether a file is to be read now. Called under the lock."""
    return (reader.wanted >= 0 and not reader.stopping and not reader.is_there and not reader.failed
            and other_file(reader).users == 0)


cdef void end_reading(Reader *reader) noexcept nogil:
    """Ends reading: the thread or read_ahead() no longer accesses the files' rows. Called under the lock."""
    reader.reading = False
    free_unused(reader)
    pthread_cond_broadcast(&reader.changed)


cdef void free_unused(Reader *reader) noexcept nogil:
    """Frees the files' rows if nobody can access them any more. Called under the lock."""
    cdef int i
    if reader.stopping and not reader.reading and not reader.lent:
        for i in range(2):
            fb_hdf5_free(&reader.files[i].rows)


cdef void *read_files(void *argument) noexcept nogil:
    """The background thread's function."""
    cdef Reader *reader = <Reader *>argument
    cdef int64_t path
    cdef LoadedFile *loaded
    thread_yields()
    pthread_mutex_lock(&reader.lock)
    while not reader.stopping:
        if not has_work(reader):
            pthread_cond_wait(&reader.changed, &reader.lock)
            continue
        path = reader.wanted
        loaded = other_file(reader)
        pthread_mutex_unlock(&reader.lock)
        read_wanted(reader, path, loaded)
        pthread_mutex_lock(&reader.lock)
    end_reading(reader)
    pthread_mutex_unlock(&reader.lock)
    return NULL


cdef void want(Reader *reader, int64_t path) noexcept nogil:
    """Requests that a file be read. Called under the lock."""
    if reader.wanted != path:
        reader.wanted = path
        reader.is_there = False
        reader.failed = False
        pthread_cond_broadcast(&reader.changed)


cdef void release(Reader *reader, LoadedFile *loaded) noexcept nogil:
    """Removes one user of a file. Called under the lock."""
    loaded.users -= 1
    if loaded.users == 0 and loaded != reader.shown:
        pthread_cond_broadcast(&reader.changed)


cdef void let_go(Reader *reader) noexcept nogil:
    """Releases the file shown before, after the last sample picked from it is located. Called under the lock."""
    if reader.held != NULL:
        release(reader, reader.held)
        reader.held = NULL


cdef int64_t show(void *self, uint32_t path, fb_error *error) noexcept nogil:
    """Makes this the shown file, after waiting until it is read; returns its number of rows, or -1 on an error."""
    cdef Reader *reader = <Reader *>self
    cdef int64_t count = -1
    pthread_mutex_lock(&reader.lock)
    let_go(reader)
    want(reader, path)
    while not reader.is_there and not reader.failed and not reader.stopping:
        pthread_cond_wait(&reader.changed, &reader.lock)
    if reader.is_there:
        if reader.shown.path >= 0:
            reader.held = reader.shown
            reader.held.users += 1
        reader.shown = other_file(reader)
        reader.shown.path = path
        reader.wanted = -1
        reader.is_there = False
        count = reader.shown.rows.count
    elif reader.failed:
        error[0] = reader.failure
    else:
        fb_fail(error, "the layer was closed while it read %s", reader.paths[path])
    pthread_mutex_unlock(&reader.lock)
    return count


cdef void want_next(void *self, uint32_t path) noexcept nogil:
    """Requests a file before it is shown."""
    cdef Reader *reader = <Reader *>self
    pthread_mutex_lock(&reader.lock)
    want(reader, path)
    pthread_mutex_unlock(&reader.lock)


# ---- Rows ----

cdef int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) noexcept nogil:
    """Finds sample f * 2^32 + r: row r of file f, which is the shown file or the one shown before it."""
    cdef Reader *reader = <Reader *>self
    cdef uint32_t path = <uint32_t>(record.index >> 32)
    cdef uint32_t row = <uint32_t>record.index
    cdef LoadedFile *loaded
    pthread_mutex_lock(&reader.lock)
    loaded = reader.held if reader.held != NULL and reader.held.path == path else reader.shown
    loaded.users += 1
    let_go(reader)
    if loaded.path != path or row >= loaded.rows.count:
        release(reader, loaded)
        pthread_mutex_unlock(&reader.lock)
        error.fatal = 1
        return fb_fail(error,
                       "row %u of file %u is not in memory: only the order that was made for this source may read it",
                       row, path)
    pthread_mutex_unlock(&reader.lock)
    record.index = row  # errors report it
    record.data_size = row
    record.data = loaded
    record.key = reader.paths[path]
    record.key_size = strlen(<const char *>record.key)
    return 0


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef const LoadedFile *loaded = <const LoadedFile *>record.data
    cdef int i
    for i in range(reader.layout.count):
        views[i].data = loaded.rows.datasets[i] + <int64_t>record.data_size * reader.layout.values[i]
        views[i].dtype = FB_FLOAT32
        views[i].ndim = 1
        views[i].shape[0] = reader.layout.values[i]
        views[i].strides[0] = sizeof(float)
    return 0


cdef void done(void *self, const fb_record *record, fb_worker *worker) noexcept nogil:
    cdef Reader *reader = <Reader *>self
    cdef LoadedFile *loaded = <LoadedFile *>record.data
    pthread_mutex_lock(&reader.lock)
    release(reader, loaded)
    pthread_mutex_unlock(&reader.lock)


# ---- The end of the process ----

cdef pthread_mutex_t readers_lock  # not a leaf: leave() waits under it. No other code takes another lock under it
cdef Reader *readers = NULL  # those with a thread
pthread_mutex_init(&readers_lock, NULL)


cdef void enlist(Reader *reader) noexcept nogil:
    global readers
    pthread_mutex_lock(&readers_lock)
    reader.next = readers
    readers = reader
    pthread_mutex_unlock(&readers_lock)


cdef void strike_off(Reader *reader) noexcept nogil:
    cdef Reader **each = &readers
    pthread_mutex_lock(&readers_lock)
    while each[0] != reader:
        each = &each[0].next
    each[0] = reader.next
    pthread_mutex_unlock(&readers_lock)


cdef void stop(Reader *reader) noexcept nogil:
    """Tells the thread to end, and wakes everyone that waits for a file so that they give up."""
    pthread_mutex_lock(&reader.lock)
    reader.stopping = True
    free_unused(reader)
    pthread_cond_broadcast(&reader.changed)
    pthread_mutex_unlock(&reader.lock)


cdef void leave() noexcept nogil:
    """Stops all threads before libhdf5 shuts down at the end of the process.

    No thread may be inside libhdf5 then. This runs from atexit() because no Python code runs at the end of the `caffe`
    tool.
    """
    cdef Reader *reader
    cdef timespec deadline
    clock_gettime(CLOCK_MONOTONIC, &deadline)
    deadline.tv_sec += LEAVING
    pthread_mutex_lock(&readers_lock)
    reader = readers
    while reader != NULL:
        if reader.owner == process_number():
            stop(reader)
            pthread_mutex_lock(&reader.lock)
            while reader.reading and pthread_cond_timedwait(&reader.changed, &reader.lock, &deadline) == 0:
                pass
            pthread_mutex_unlock(&reader.lock)
        reader = reader.next
    pthread_mutex_unlock(&readers_lock)


cdef int problem
with nogil:
    problem = fb_hdf5_begin()
if problem:
    raise ImportError("libhdf5 cannot be initialized")
atexit(leave)  # registered after libhdf5's own handler, so it runs before that


def before_fork():
    with nogil:
        fb_hdf5_before_fork()


def after_fork():
    with nogil:
        fb_hdf5_after_fork()


# No handler for the child: there, the C library's own fork handler has done the work.
os.register_at_fork(before=before_fork, after_in_parent=after_fork)


# ---- The source ----

def parse_list(bytes content, source):
    """Parses a list file's bytes as Caffe does, to [path, ...].

    Spaces, tabs and line ends separate paths.
    """
    require_text(content, source, "paths of HDF5 files")
    paths = content.split()
    if not paths:
        raise SourceError(f"Must have at least 1 HDF5 filename listed in {source}; it lists none")
    return paths


cdef void forget_source(object capsule) noexcept:
    """The capsule's destructor, called when no worker reads any more. The thread ends with the last reference."""
    cdef Reader *reader = <Reader *>PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE)
    if reader.owner == process_number():  # in a forked child, the lock may be held by a thread that does not exist
        pthread_mutex_lock(&reader.lock)
        reader.lent = False
        free_unused(reader)
        pthread_mutex_unlock(&reader.lock)
    take_owner(capsule)


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the paths
cdef class CaffeHDF5:
    """Rows of HDF5 files: one field per dataset, one-dimensional float32.

    The number of rows is unknown until the files are read. The source serves one loader and one order, a `CaffeRows`,
    which must be made first. Sample f * 2**32 + r is row r of file f.

    Parameters
    ----------
    paths : sequence of bytes
        The paths of the files.
    names : sequence
        The names of the datasets.
    threaded : bool
        Whether a background thread reads each file ahead. Otherwise `read_ahead` does, on the thread that calls it. The
        default is `is_thread_safe()`.
    source : str
        The name of the list, for messages.

    Attributes
    ----------
    shapes
        For each dataset, the shape of a row. Available once the first file is read.
    classes
        For each dataset, its HDF5 class, "H5T_FLOAT" or "H5T_INTEGER". Available once the first file is read.

    Notes
    -----
    Two files at a time are in memory, as float32.

    Only the loader's consumer may call read_ahead(); any thread may call close().
    """

    cdef Reader reader
    cdef tuple names
    cdef tuple paths
    cdef bytes name
    cdef bint usable

    def __cinit__(self, *args, **kwargs):
        cdef pthread_condattr_t monotonic
        self.reader.owner = process_number()
        pthread_mutex_init(&self.reader.lock, NULL)
        pthread_condattr_init(&monotonic)
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
        pthread_cond_init(&self.reader.changed, &monotonic)
        pthread_condattr_destroy(&monotonic)

    def __init__(self, paths, names, threaded=None, source="paths"):
        cdef Reader *reader = &self.reader
        cdef int i
        if reader.paths != NULL:
            raise RuntimeError("a CaffeHDF5 cannot be initialized twice")
        if not 1 <= len(names) <= FB_HDF5_MAX_DATASETS:
            raise ValueError(f"{source}: an HDF5Data layer has 1 to {FB_HDF5_MAX_DATASETS} tops, not {len(names)}")
        if any("\0" in name for name in names):
            raise ValueError(f"{source}: the name of a dataset has a zero byte in it")
        self.paths, self.names = tuple(paths), tuple(name.encode() for name in names)
        self.name = source.encode()
        reader.paths_count = len(paths)
        reader.paths = <const char **>calloc(reader.paths_count, sizeof(char *))
        if reader.paths == NULL:
            raise MemoryError()
        for i in range(reader.paths_count):
            reader.paths[i] = <bytes>self.paths[i]
        reader.layout.count = len(names)
        reader.layout.in_memory = min(reader.paths_count, 2)
        for i in range(reader.layout.count):
            reader.layout.names[i] = <bytes>self.names[i]
        reader.threaded = is_thread_safe() if threaded is None else threaded
        reader.wanted = reader.files[0].path = reader.files[1].path = -1
        reader.shown = &reader.files[0]
        reader.row_files.count = reader.paths_count
        reader.row_files.self = reader
        reader.row_files.show = show
        reader.row_files.want = want_next
        self.usable = True

    def row_files(self):
        """A PyCapsule of the RowFiles (orders/_rows.pxd), valid as long as this object."""
        self.check_ready()
        return PyCapsule_New(&self.reader.row_files, row_files_capsule(), NULL)

    def read_first(self, uint32_t path):
        """Read the first file to show, on this thread; SourceError if it cannot be read."""
        cdef Reader *reader = &self.reader
        cdef fb_error error
        cdef bint failed
        self.check_ready()
        want_next(reader, path)
        self.read_ahead()
        pthread_mutex_lock(&reader.lock)
        failed = reader.failed
        error = reader.failure
        pthread_mutex_unlock(&reader.lock)
        if failed:
            raise SourceError(f"{self.name.decode('utf-8', 'replace')}: {error.text.decode('utf-8', 'replace')}")

    cdef int check_ready(self) except -1:
        """Rejects an object whose __init__ has not run, or has failed."""
        if not self.usable:
            raise RuntimeError("this CaffeHDF5 was not initialized, or its initialization failed: make a new one")
        return 0

    @property
    def shapes(self):
        return tuple(tuple(self.reader.layout.shape[i][axis] for axis in range(self.reader.layout.ndim[i]))
                     for i in range(self.reader.layout.count))

    @property
    def classes(self):
        return tuple("H5T_INTEGER" if self.reader.layout.is_integer[i] else "H5T_FLOAT"
                     for i in range(self.reader.layout.count))

    @property
    def threaded(self):
        """Whether files are read by a thread."""
        return bool(self.reader.threaded)

    def read_ahead(self):
        """Read the wanted file, if any, on this thread. Ctrl-C interrupts it between two steps."""
        cdef Reader *reader = &self.reader
        cdef fb_hdf5_file file
        cdef fb_error error
        cdef LoadedFile *loaded
        cdef int64_t path
        cdef bint there_is_work
        cdef int more
        if reader.shown == NULL:
            self.check_ready()
        pthread_mutex_lock(&reader.lock)
        there_is_work = has_work(reader) and not reader.reading
        if there_is_work:
            reader.reading = True
        path = reader.wanted
        loaded = other_file(reader)
        pthread_mutex_unlock(&reader.lock)
        if not there_is_work:
            return
        memset(&error, 0, sizeof(error))
        try:
            more = self.step(OPEN, path, &file, loaded, &error)
            while more > 0 and not given_up(reader, path):
                PyErr_CheckSignals()  # a handler may call close()
                more = self.step(READ_SOME, path, &file, loaded, &error)
            if more <= 0:
                have_read(reader, path, more, &error)
        finally:
            self.step(CLOSE, path, &file, loaded, &error)
            pthread_mutex_lock(&reader.lock)
            end_reading(reader)
            pthread_mutex_unlock(&reader.lock)

    cdef int step(self, Step step, int64_t path, fb_hdf5_file *file, LoadedFile *loaded, fb_error *error) noexcept:
        """Runs one step on the consumer's thread.

        It releases the GIL, because a thread inside libhdf5 may be waiting for it. Where libhdf5 is not thread-safe, it
        keeps the GIL instead: all other callers of libhdf5 call it from Python.
        """
        cdef int more
        if not self.reader.threaded:
            return step_with_gil(&self.reader, step, path, file, loaded, error)
        with nogil:
            more = step_without_gil(&self.reader, step, path, file, loaded, error)
        return more

    def close(self):
        """End the thread and wake a loader that waits for a file. Call this before closing the loader.

        Further calls do nothing. The rows are freed as soon as neither the thread nor the loader can access them.
        """
        if self.reader.owner == process_number():
            stop(&self.reader)

    def __fastbatch_source__(self, random_access):
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h), and start its thread. Works once only."""
        cdef Reader *reader = &self.reader
        cdef int i
        self.check_ready()
        if reader.source.self != NULL:
            raise RuntimeError("a CaffeHDF5 is read by one loader")
        if reader.stopping:
            raise Closed(f"{self.name.decode('utf-8', 'replace')} is closed")
        if reader.shown.path < 0:
            raise RuntimeError("nothing is known of the rows of a CaffeHDF5 before the first file is read: "
                               "make its order, a CaffeRows, first")
        for i in range(reader.layout.count):
            reader.fields[i].name = reader.layout.names[i]
            reader.fields[i].dtype = FB_FLOAT32
            reader.fields[i].ndim = 1
            reader.fields[i].shape[0] = reader.layout.values[i]
        begin_source(&reader.source, reader, self.name, FB_UNCOUNTED, reader.fields, reader.layout.count)
        reader.source.locate = locate
        reader.source.read = read
        reader.source.done = done
        if reader.threaded:
            self._start()
        capsule = source_capsule(&reader.source, forget_source, self)
        reader.lent = True
        return capsule

    def _start(self):
        cdef Reader *reader = &self.reader
        cdef int problem
        reader.reading = True
        problem = thread_start(&reader.thread, read_files, reader, b"fastbatch-hdf5")
        if problem:
            reader.reading = False
            raise RuntimeError(f"the thread that reads HDF5 files could not be started: {strerror(problem).decode()}; "
                               "raise the limit of processes (ulimit -u)")
        reader.started = True
        enlist(reader)

    def __dealloc__(self):
        cdef Reader *reader = &self.reader
        if reader.started:
            strike_off(reader)
        if reader.owner != process_number():
            return  # a forked child does not have the thread, which may hold the lock
        if reader.started:
            with nogil:
                stop(reader)
                fb_hdf5_join(reader.thread)
        fb_hdf5_free(&reader.files[0].rows)
        fb_hdf5_free(&reader.files[1].rows)
        free(reader.paths)
        pthread_cond_destroy(&reader.changed)
        pthread_mutex_destroy(&reader.lock)
