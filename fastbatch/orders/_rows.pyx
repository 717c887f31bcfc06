# cython: language_level=3
"""`CaffeRows`: the rows of files in the order of Caffe's HDF5Data, which shuffles with C's rand().

After each row, Caffe advances to the next row; after the last row of a file, to the next file. It shuffles the files
after the last file, and the rows of each file, in the forward() that has shown the last row. By then this order has
long shuffled, and picked rows, with the numbers that a copy of rand()'s state predicted. So the order records each
shuffle. In the forward() in which Caffe would shuffle, the consumer asks `settle` whether rand() is still in that
state. If nobody else has called rand() since, it is, and `settle` sets rand() to its state after these draws. Otherwise
everything from this batch on is done again.

Positions are those of one solver. Row numbers count the rows of all solvers and all epochs.

`Rows.lock` is a leaf lock. It guards the members below it; the others belong to the sequencer.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastbatch._capsules cimport owning_capsule, take_owner
from fastbatch._contract cimport fb_error, fb_fail
from fastbatch._core cimport process_number
from fastbatch._threads cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
)
from fastbatch.orders._order cimport (
    FB_ORDER_CAFFE_ROWS, FB_ORDER_CAPSULE, begin_head, fb_order, fb_pick, fb_state_check, fb_state_head
)
from fastbatch.orders._rows cimport RowFiles, row_files_capsule

cdef extern from "../native/libc_rand.h" nogil:
    ctypedef struct fb_rand:
        pass

    void fb_rand_get(fb_rand *copy) noexcept
    void fb_rand_set(const fb_rand *copy) noexcept
    int fb_rand_same(const fb_rand *a, const fb_rand *b) noexcept
    void fb_rand_shuffle(uint32_t *order, uint64_t count, fb_rand *copy) noexcept


cdef struct RowsState:  # with shuffle, followed by the order of the files, and of the rows if there is one file
    fb_state_head head
    uint64_t begin
    int64_t file
    int64_t count
    uint64_t epoch
    fb_rand before_rows
    int64_t times
    fb_rand random

cdef struct Noted:  # a record of the shuffles at the end of a file, which Caffe does in one batch's forward()
    uint64_t batch
    fb_rand before
    fb_rand after
    Noted *next
    RowsState state  # before the shuffles; extends past the end of this struct

cdef struct Rows:
    fb_order order
    RowFiles *source
    uint64_t batch_size
    uint64_t rank
    uint64_t ranks
    bint shuffles

    uint32_t *files  # in their current order
    int64_t file  # index in `files` of the current file
    int64_t count  # rows in the current file
    uint32_t *rows  # in their current order; with shuffle only
    int64_t rows_room
    uint64_t begin  # row number of the file's first row
    uint64_t epoch
    fb_rand before_rows  # with several files: the state before this file's rows were shuffled `times` times
    int64_t times
    fb_rand random  # the predicted state of rand()
    bint unshown  # after load(): the current file is not shown yet
    bint lost  # the next row cannot be determined
    fb_error why_lost
    fb_state_head head

    pthread_mutex_t lock
    Noted *ahead  # list of the records that no forward() has reached, oldest first
    Noted *last_ahead  # the newest
    Noted *redo  # the record whose batch must be done again
    fb_rand redo_from


# ---- From row to row -------------------------------------------------------------------------------------------------

cdef bint number_rows(Rows *rows) noexcept nogil:
    """Sets the order of the current file's rows to 0, 1, 2, ... before a shuffle. Returns False if memory runs out."""
    cdef int64_t i
    if not rows.shuffles:
        return True
    if rows.count > rows.rows_room:
        free(rows.rows)
        rows.rows = <uint32_t *>malloc(rows.count * sizeof(uint32_t))
        rows.rows_room = rows.count if rows.rows != NULL else 0
    for i in range(min(rows.count, rows.rows_room)):
        rows.rows[i] = <uint32_t>i
    return rows.count <= rows.rows_room


cdef void shuffle_rows(Rows *rows, int64_t times) noexcept nogil:
    """Shuffles the rows `times` times. Caffe shuffles once in the first file, and twice after a change of files."""
    rows.before_rows = rows.random
    rows.times = times
    while times > 0:
        fb_rand_shuffle(rows.rows, rows.count, &rows.random)
        times -= 1


cdef void want_next(Rows *rows) noexcept nogil:
    """Starts reading the file after the current one."""
    cdef uint32_t *order
    cdef fb_rand random
    cdef uint32_t file
    if rows.source.count == 1:
        return
    if rows.file + 1 < rows.source.count:
        file = rows.files[rows.file + 1]
    elif not rows.shuffles:
        file = rows.files[0]
    else:
        # The files are shuffled next, so shuffling a copy shows which file will be first.
        order = <uint32_t *>malloc(rows.source.count * sizeof(uint32_t))
        if order == NULL:
            return  # the file will be read when it is needed
        memcpy(order, rows.files, rows.source.count * sizeof(uint32_t))
        random = rows.random
        fb_rand_shuffle(order, rows.source.count, &random)
        file = order[0]
        free(order)
    rows.source.want(rows.source.self, file)


cdef void lose(Rows *rows) noexcept nogil:
    rows.lost = True
    fb_fail(&rows.why_lost, "no memory for the order of the rows")


cdef bint show(Rows *rows) noexcept nogil:
    """Shows the current file. Returns False, and sets `lost`, if that fails."""
    rows.count = rows.source.show(rows.source.self, rows.files[rows.file], &rows.why_lost)
    rows.unshown = False
    rows.lost = rows.count < 0
    if not rows.lost and not number_rows(rows):
        lose(rows)
    return not rows.lost


cdef void next_file(Rows *rows, uint64_t batch) noexcept nogil:
    """Advances past the last row of a file, in the forward() of this batch.

    A failure is no error yet; the next row finds `lost` set.
    """
    cdef Noted *noted = NULL
    if rows.shuffles:
        noted = begin_shuffle(rows, batch)
        if noted == NULL:
            lose(rows)
            return
    rows.begin += rows.count
    rows.file += 1
    if rows.file == rows.source.count:
        rows.file = 0
        rows.epoch += 1
        if rows.shuffles and rows.source.count > 1:
            fb_rand_shuffle(rows.files, rows.source.count, &rows.random)
    if rows.source.count > 1:
        show(rows)
    if rows.shuffles and not rows.lost:
        shuffle_rows(rows, 2 if rows.source.count > 1 else 1)  # a single file: from the current order of its rows
    if noted != NULL:
        end_shuffle(rows, noted)
    if not rows.lost:
        want_next(rows)


cdef int rows_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    cdef Rows *rows = <Rows *>self
    cdef uint64_t batch = position // rows.batch_size
    cdef uint64_t number = rows.rank + position * rows.ranks
    cdef uint32_t row
    start_again(rows, position)
    if rows.unshown:
        show_loaded(rows)
    if not rows.lost and number < rows.begin:
        error.fatal = 1
        return fb_fail(error, "this order cannot go back to the rows of earlier files, because how they were shuffled "
                              "is not known any more")
    while not rows.lost and number - rows.begin >= <uint64_t>rows.count:
        next_file(rows, batch)
    if rows.lost:
        error[0] = rows.why_lost
        error.fatal = 1
        return -1
    row = <uint32_t>(number - rows.begin)
    pick.index = <uint64_t>rows.files[rows.file] << 32 | (rows.rows[row] if rows.shuffles else row)
    pick.epoch = rows.epoch
    rows.head.next = position + 1
    if row == rows.count - 1:
        next_file(rows, batch)
    return 0


# ---- States ----------------------------------------------------------------------------------------------------------

cdef void rows_save(const void *self, void *state) noexcept nogil:
    cdef const Rows *rows = <const Rows *>self
    cdef RowsState *saved = <RowsState *>state
    cdef uint32_t *orders = <uint32_t *>(saved + 1)
    memset(state, 0, rows.order.state_size)
    saved.head = rows.head
    saved.begin = rows.begin
    saved.file = rows.file
    saved.count = rows.count
    saved.epoch = rows.epoch
    if rows.shuffles:
        saved.random = rows.random
        saved.before_rows = rows.before_rows
        saved.times = rows.times
        memcpy(orders, rows.files, rows.source.count * sizeof(uint32_t))
        if rows.source.count == 1:
            memcpy(orders + 1, rows.rows, rows.count * sizeof(uint32_t))


cdef void restore(Rows *rows, const RowsState *saved) noexcept nogil:
    """Restores everything except the order of the rows of one of several files, which the next at() does."""
    cdef const uint32_t *orders = <const uint32_t *>(saved + 1)
    rows.head = saved.head
    rows.begin = saved.begin
    rows.file = saved.file
    rows.count = saved.count
    rows.epoch = saved.epoch
    rows.lost = False
    rows.unshown = rows.source.count > 1
    if rows.shuffles:
        rows.random = saved.random
        rows.before_rows = saved.before_rows
        rows.times = saved.times
        memcpy(rows.files, orders, rows.source.count * sizeof(uint32_t))
        if rows.source.count == 1:
            memcpy(rows.rows, orders + 1, rows.count * sizeof(uint32_t))


cdef void show_loaded(Rows *rows) noexcept nogil:
    """Shows the file that a state is in the middle of, with the order of its rows restored."""
    cdef int64_t count = rows.count
    cdef fb_rand random = rows.random
    if not show(rows):
        return
    if rows.count != count and count >= 0:
        rows.lost = True
        fb_fail(&rows.why_lost, "a file of the list has changed while it was in use: it had %lld rows, and has %lld",
                <long long>count, <long long>rows.count)
        return
    if rows.shuffles:
        rows.random = rows.before_rows
        shuffle_rows(rows, rows.times)
        rows.random = random
    want_next(rows)


cdef bint is_sound(const Rows *rows, const RowsState *saved) noexcept nogil:
    """Whether the numbers of files and rows in a state exist."""
    cdef const uint32_t *orders = <const uint32_t *>(saved + 1)
    cdef int64_t i
    if not 0 <= saved.file < rows.source.count:
        return False
    if not rows.shuffles:
        return True
    if not 0 <= saved.times <= 2:
        return False
    for i in range(rows.source.count):
        if orders[i] >= rows.source.count:
            return False
    for i in range(rows.count if rows.source.count == 1 else 0):
        if orders[rows.source.count + i] >= rows.count:
            return False
    return True


cdef int rows_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    """Also sets rand(), from which the state continues."""
    cdef Rows *rows = <Rows *>self
    cdef const RowsState *saved = <const RowsState *>state
    if fb_state_check(state, &rows.head, error) != 0:
        return -1
    if rows.source.count == 1 and saved.count != rows.count:
        return fb_fail(error, "this state belongs to a file of %lld rows, and this one has %lld",
                       <long long>saved.count, <long long>rows.count)
    if not is_sound(rows, saved):
        return fb_fail(error, "this state is damaged: it names files or rows that do not exist")
    pthread_mutex_lock(&rows.lock)
    forget_all(&rows.ahead)
    free(rows.redo)
    rows.redo = NULL
    pthread_mutex_unlock(&rows.lock)
    restore(rows, saved)
    if rows.shuffles:
        fb_rand_set(&rows.random)
    next[0] = saved.head.next
    return 0


# ---- Shuffling ahead -------------------------------------------------------------------------------------------------

cdef void forget_all(Noted **first) noexcept nogil:
    cdef Noted *noted
    while first[0] != NULL:
        noted = first[0]
        first[0] = noted.next
        free(noted)


cdef Noted *begin_shuffle(Rows *rows, uint64_t batch) noexcept nogil:
    """Returns a new record, with the state at the last row of a file; NULL if memory runs out."""
    cdef Noted *noted = <Noted *>malloc(sizeof(Noted) - sizeof(RowsState) + rows.order.state_size)
    if noted != NULL:
        noted.batch = batch
        noted.before = rows.random
        noted.next = NULL
        rows_save(rows, &noted.state)
    return noted


cdef void end_shuffle(Rows *rows, Noted *noted) noexcept nogil:
    noted.after = rows.random
    pthread_mutex_lock(&rows.lock)
    if rows.ahead == NULL:
        rows.ahead = noted
    else:
        rows.last_ahead.next = noted
    rows.last_ahead = noted
    pthread_mutex_unlock(&rows.lock)


cdef void start_again(Rows *rows, uint64_t position) noexcept nogil:
    """Goes back if this is the beginning of the batch to do again.

    Continues from there with the numbers that rand() has now.
    """
    cdef Noted *noted = NULL
    pthread_mutex_lock(&rows.lock)
    if rows.redo != NULL and position == rows.redo.batch * rows.batch_size:
        noted = rows.redo
        rows.redo = NULL
        forget_all(&rows.ahead)
    if noted != NULL:
        restore(rows, &noted.state)
        rows.random = rows.redo_from
    pthread_mutex_unlock(&rows.lock)
    free(noted)


cdef int64_t settle(Rows *rows, uint64_t batch) noexcept nogil:
    """Returns -1, or the number of the batch from which on everything must be done again."""
    cdef Noted *noted
    cdef fb_rand random
    cdef int64_t again = -1
    pthread_mutex_lock(&rows.lock)
    # An older record belongs to a batch that was taken and then lost, by Ctrl-C for example. It counts with this one.
    if rows.redo == NULL and (rows.ahead == NULL or rows.ahead.batch > batch):
        pthread_mutex_unlock(&rows.lock)
        return -1
    fb_rand_get(&random)
    if rows.redo == NULL:
        noted = rows.ahead
        if fb_rand_same(&random, &noted.before):
            while rows.ahead != NULL and rows.ahead.batch <= batch:
                noted = rows.ahead
                rows.ahead = noted.next
                random = noted.after
                free(noted)
            fb_rand_set(&random)
        else:
            rows.ahead = noted.next
            forget_all(&rows.ahead)
            rows.redo = noted
    if rows.redo != NULL:  # perhaps from an earlier call, after which nobody restarted
        rows.redo_from = random
        again = <int64_t>rows.redo.batch
    pthread_mutex_unlock(&rows.lock)
    return again


# ---- The order -------------------------------------------------------------------------------------------------------

cdef void forget_order(object capsule) noexcept:
    take_owner(capsule)


@cython.final
cdef class CaffeRows:
    """HDF5Data's order: the rows of the files of a list, file after file, again and again.

    Serves one loader, whose source must be `source`.

    CaffeRows(source, batch_size, rank=0, ranks=1, shuffle=False)

    source: a `CaffeHDF5`. batch_size: the loader's. rank, ranks: the solver's number, and the number of solvers; a
    solver takes every `ranks`-th row from row `rank` on. shuffle: whether to shuffle rows and files, with the numbers
    of C's rand() in this process. The numbers of the first shuffle are drawn here; `settle` must be called for the
    others.

    The first file is read here. Each shuffle in the batches that are ready takes 4 bytes for every file, and for every
    row if there is only one file. A state takes as many. Loading a state sets rand().

    Raises SourceError if the first file cannot be read. For later files, the loader reports an error of the source as a
    whole.

    Thread-safety: settle() belongs to the loader's consumer.
    """

    random_access = True
    needs_count = False

    cdef Rows rows
    cdef object source
    cdef int owner  # the process
    cdef bint lent

    def __cinit__(self, *args, **kwargs):
        self.owner = process_number()
        pthread_mutex_init(&self.rows.lock, NULL)

    def __init__(self, source, uint64_t batch_size, uint64_t rank=0, uint64_t ranks=1, bint shuffle=False):
        cdef Rows *rows = &self.rows
        cdef int64_t i
        if rows.source != NULL:
            raise RuntimeError("a CaffeRows cannot be initialized twice")
        self.source = source
        rows.source = <RowFiles *>PyCapsule_GetPointer(source.row_files(), row_files_capsule())
        rows.files = <uint32_t *>calloc(rows.source.count, sizeof(uint32_t))
        if rows.files == NULL:
            raise MemoryError()
        for i in range(rows.source.count):
            rows.files[i] = <uint32_t>i
        rows.batch_size, rows.rank, rows.ranks, rows.shuffles = batch_size, rank, ranks, shuffle
        fb_rand_get(&rows.random)
        if shuffle:
            fb_rand_shuffle(rows.files, rows.source.count, &rows.random)
        source.read_first(rows.files[0])
        rows.count = rows.source.show(rows.source.self, rows.files[0], &rows.why_lost)
        if not number_rows(rows):
            raise MemoryError("no memory for the order of the rows")
        if shuffle:
            shuffle_rows(rows, 1)
            fb_rand_set(&rows.random)
        want_next(rows)
        self._fill_in()

    def _fill_in(self):
        cdef Rows *rows = &self.rows
        cdef size_t orders = 0
        if rows.shuffles:
            orders = <size_t>(rows.source.count + (rows.count if rows.source.count == 1 else 0)) * sizeof(uint32_t)
        begin_head(&rows.head, FB_ORDER_CAFFE_ROWS)
        rows.head.settings[0] = <uint64_t>rows.source.count
        rows.head.settings[1] = rows.batch_size
        rows.head.settings[2] = rows.rank
        rows.head.settings[3] = rows.ranks
        rows.head.settings[4] = rows.shuffles
        rows.order.self = rows
        rows.order.caffe_draws = True
        rows.order.at = rows_at
        rows.order.state_size = sizeof(RowsState) + (orders + 7) // 8 * 8
        rows.order.save = rows_save
        rows.order.load = rows_load

    def settle(self, uint64_t batch):
        """Makes the draws from rand() that Caffe makes in the forward() of this batch.

        Must be called for every batch, in the order of delivery.

        Returns None if the batch holds what Caffe would show. Otherwise somebody else has drawn from rand() since, and
        it returns the number of the batch from which on everything must be done again. The caller makes the loader do
        so (BatchRing.start_epoch). Until then, every call returns that number.
        """
        cdef int64_t again
        if self.rows.order.at == NULL:
            raise RuntimeError("this CaffeRows was not initialized, or its initialization failed: make a new one")
        again = settle(&self.rows, batch)
        return None if again < 0 else again

    def __fastbatch_order__(self, count):
        """Return a PyCapsule that holds an fb_order (native/order.h). Works once only."""
        if self.rows.order.at == NULL or self.lent:
            raise RuntimeError("a CaffeRows is the order of one loader")
        self.lent = True
        return owning_capsule(&self.rows.order, FB_ORDER_CAPSULE, forget_order, self)

    def __dealloc__(self):
        cdef Rows *rows = &self.rows
        if self.owner != process_number():
            return  # in a forked child, the lock may be held by a thread that does not exist
        forget_all(&rows.ahead)
        free(rows.redo)
        free(rows.rows)
        free(rows.files)
        pthread_mutex_destroy(&rows.lock)
