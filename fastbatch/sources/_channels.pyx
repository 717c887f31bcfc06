# cython: language_level=3
"""The loader's side of `PythonSource`: how its worker threads ask for samples. _mailbox.pyx is the side that answers.

A worker, a process or a Python thread, has a channel: a file in memory with a mailbox (native/mailbox.h) and room for
one sample, and a socket, which passes files. The kernel tells when the worker ends. A worker thread of a loader takes a
channel, asks for a sample and waits without the GIL. The worker writes the sample into the batch itself, whose memory
it maps too; or, if the sample's pixels are still to be transformed, into the channel. So it does if shapes vary: then
it enlarges the file if it must, and says the shapes in the mailbox.
"""

import os

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, timespec

from fastbatch._capsules cimport begin_source, source_capsule, take_owner
from fastbatch._contract import DTYPES
from fastbatch._contract cimport (
    FB_AT_ITS_OWN, FB_FOR_ANOTHER, FB_MANY, FB_MAX_DIMS, FB_MAX_FIELDS, fb_dtype, fb_dtype_size, fb_error, fb_fail,
    fb_field, fb_place, fb_progress_set, fb_record, fb_scratch_reserve, fb_source, fb_stopping, fb_view, fb_worker
)
from fastbatch._core cimport process_number
from fastbatch._threads cimport (
    atomic_get, atomic_get64, atomic_set, deadline_after, now, pthread_cond_destroy, pthread_cond_init,
    pthread_cond_signal, pthread_cond_t, pthread_cond_timedwait, pthread_condattr_destroy, pthread_condattr_init,
    pthread_condattr_setclock, pthread_condattr_t, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_t, pthread_mutex_unlock
)
from fastbatch.sources._causes cimport (
    Cause, Causes, causes_add, causes_forget, causes_free, causes_init, causes_take
)
from fastbatch.sources._mailbox cimport (
    FB_ANSWER_ABSENT, FB_ANSWER_FAILED, FB_ANSWER_LATE, FB_ANSWER_MADE, FB_ANSWER_STOPPED, FB_FIELD_ALIGNMENT,
    FB_MAILBOX_ROOM, FB_MAX_CAUSE, FB_MAX_QUESTIONS, FB_START_SECONDS, fb_answer, fb_mailbox, fb_mailbox_ask,
    fb_mailbox_quit, fb_peer, fb_process_file, fb_question, fb_send_file, fb_wait_for_end
)
from fastbatch.sources._sample_file cimport (
    SampleFile, sample_file_close, sample_file_has, sample_file_map, sample_file_set, sample_file_trim,
    sample_file_unmap
)

cdef extern from "memory.h" nogil:
    int fb_memory_file(size_t size, bint grows) noexcept

cdef extern from "<signal.h>" nogil:
    int kill(int process, int signal) noexcept
    enum:
        SIGKILL

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int file, int command, ...) noexcept
    enum:
        F_DUPFD_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    int close(int file) noexcept

cdef int64_t MOST_BYTES = <int64_t>1 << 48  # any address space is smaller
cdef double PATIENCE = 5.0  # seconds that workers may take to leave, ...
cdef double START_PATIENCE = 1.0  # ... and those that have not begun yet, and so have no sample to finish
# The reason of a sample's error, with a process's id, and how it ended. Only multiprocessing knows the latter, if the
# process is a child of its forkserver; so ask() says "ended".
cdef const char *ENDED = b"the worker process %d, which was to load it, %s; another one takes its place"


def said_of_ended(int process, str how="ended"):
    """The reason of the error of a sample whose process ended, as ask() gives it; or with `how` in place of "ended"."""
    return ENDED.decode() % (process, how)


cdef struct Channel:
    fb_mailbox *mailbox
    size_t size  # of the mapped file
    fb_peer worker  # its socket is -1 if there is none yet
    int process  # the worker's process id; 0: a thread
    SampleFile sample  # if shapes vary: the channel's file, mapped once more
    bint taken
    int32_t lost  # atomic: the worker ended, or was ended; it is to be replaced
    int *files  # that the worker was sent, by number - 1
    int file_count
    int file_room

cdef struct Reader:
    fb_source source
    fb_field fields[FB_MAX_FIELDS]
    bint varies  # some of the shapes
    int dimensions[FB_MAX_FIELDS]  # of each field, also of those whose shapes vary
    int64_t offsets[FB_MAX_FIELDS]  # of each field in a channel's file
    int row_field  # the first field that is not empty: its offsets differ from row to row
    int64_t timeout
    Channel *channels
    int channel_count
    pthread_mutex_t lock  # guards `taken`; a leaf
    pthread_mutex_t ending  # guards what the channels have of their workers, which several threads may end at a time
    pthread_cond_t freed
    Causes causes


cdef struct Asking:  # what a worker thread of the loader keeps: the samples that it asks for, in turn
    Channel *taken  # by read(), until done()
    int file  # of the batch that they are written into
    uint32_t count
    uint32_t next  # the one that write() is called for
    uint32_t made
    bint failed  # the one after those that were made, for the reason in `error`
    fb_error error
    fb_question questions[FB_MAX_QUESTIONS]


cdef Channel *take_channel(Reader *reader, const fb_worker *worker) noexcept nogil:
    """A channel that nobody else uses, whose worker lives; waits for one. NULL: stopped."""
    cdef Channel *channel = NULL
    cdef bint waits = False
    cdef timespec deadline
    cdef int i
    pthread_mutex_lock(&reader.lock)
    while True:
        for i in range(reader.channel_count):
            if not reader.channels[i].taken and not atomic_get(&reader.channels[i].lost):
                channel = &reader.channels[i]
                channel.taken = True
                break
        if channel != NULL or fb_stopping(worker.stop):
            break
        if not waits:
            waits = True
            fb_progress_set(worker.progress, FB_FOR_ANOTHER, now())
        deadline = deadline_after(0.02)  # `stop` wakes nobody here
        pthread_cond_timedwait(&reader.freed, &reader.lock, &deadline)
    pthread_mutex_unlock(&reader.lock)
    if waits:
        fb_progress_set(worker.progress, FB_AT_ITS_OWN, 0)
    return channel


cdef void give_channel(Reader *reader, Channel *channel) noexcept nogil:
    pthread_mutex_lock(&reader.lock)
    channel.taken = False
    pthread_cond_signal(&reader.freed)
    pthread_mutex_unlock(&reader.lock)


cdef void forget_worker(Channel *channel) noexcept nogil:
    """Closes what the channel has of its worker."""
    if channel.worker.socket >= 0:
        close(channel.worker.socket)
    if channel.worker.process_file >= 0:
        close(channel.worker.process_file)
    sample_file_close(&channel.sample)
    channel.worker.socket = channel.worker.process_file = -1
    channel.process = 0  # its number may soon be another program's


cdef double patience_with(const Channel *channel, double patience) noexcept nogil:
    """Seconds that a worker may take to leave."""
    cdef bint begun = channel.mailbox != NULL and atomic_get(<const int32_t *>&channel.mailbox.ready)
    return patience if begun else min(patience, START_PATIENCE)


cdef uint32_t number_of(Channel *channel, int file) noexcept nogil:
    """The number by which the worker knows a file. It is sent the file first if it must be. 0: that failed."""
    cdef int i
    cdef int *more
    for i in range(channel.file_count):
        if channel.files[i] == file:
            return i + 1
    if channel.file_count == channel.file_room:
        more = <int *>realloc(channel.files, (2 * channel.file_room + 8) * sizeof(int))
        if more == NULL:
            return 0
        channel.files = more
        channel.file_room = 2 * channel.file_room + 8
    if fb_send_file(channel.worker.socket, file) != 0:
        return 0
    channel.files[channel.file_count] = file
    channel.file_count += 1
    return channel.file_count


cdef int ask(Reader *reader, Channel *channel, fb_worker *worker, uint32_t *made, fb_error *error) noexcept nogil:
    """Has the channel's worker make the samples that its mailbox asks for.

    Sets *made to how many it has made. Returns 0 if that is all; -1 with *error for the next one; 1 if the worker had
    ended before: ask another one.
    """
    cdef fb_mailbox *mailbox = channel.mailbox
    cdef const fb_question *question
    cdef int64_t begin = now()
    cdef fb_answer answer = fb_mailbox_ask(mailbox, &channel.worker, worker.stop, reader.timeout, made,
                                           worker.progress)
    if answer <= FB_ANSWER_FAILED:  # otherwise the other side may still write to the mailbox
        worker.latency += max(<int64_t>0, now() - begin - mailbox.busy)
        worker.cpu_elsewhere += mailbox.cpu
    if answer == FB_ANSWER_MADE:
        return 0
    if answer == FB_ANSWER_FAILED:
        question = &mailbox.questions[made[0]]
        causes_add(&reader.causes, question.index, question.epoch, mailbox.cause,
                   min(mailbox.cause_size, <uint32_t>FB_MAX_CAUSE))
        mailbox.text[sizeof(mailbox.text) - 1] = 0
        return fb_fail(error, "%s", mailbox.text)
    atomic_set(&channel.lost, 1)  # it ended, or may still be at the sample: nobody may ask it for another one
    if answer == FB_ANSWER_STOPPED:
        return fb_fail(error, "the loader was closed")
    if answer == FB_ANSWER_ABSENT:
        return 1
    if answer == FB_ANSWER_LATE:
        kill(channel.process, SIGKILL)
        while not fb_wait_for_end(&channel.worker, 20) and not fb_stopping(worker.stop):
            pass  # until it cannot write into the batch any more
        if not atomic_get(<int32_t *>&mailbox.ready):
            return fb_fail(error, "the worker process %d, which was to load it, has not begun within %.3g s; it was "
                                  "ended, and another one takes its place", channel.process,
                           reader.timeout * 1e-9 + FB_START_SECONDS)
        return fb_fail(error, "the worker process %d has not loaded it within %.3g s; it was ended, and another one "
                              "takes its place", channel.process, reader.timeout * 1e-9)
    if channel.process:
        question = &mailbox.questions[min(made[0], <uint32_t>FB_MAX_QUESTIONS - 1)]
        causes_add(&reader.causes, question.index, question.epoch, <const char *>&channel.process, sizeof(int))
        return fb_fail(error, ENDED, channel.process, b"ended")
    return fb_fail(error, "the worker thread that was to load it ended, see above; another one takes its place")


cdef Asking *asking_of(fb_worker *worker) noexcept nogil:
    """What a worker thread of the loader keeps between calls. NULL: no memory."""
    cdef bint new = worker.scratch.size < sizeof(Asking)
    cdef Asking *asking = <Asking *>fb_scratch_reserve(worker.scratch, sizeof(Asking))
    if new and asking != NULL:
        memset(asking, 0, sizeof(Asking))
    return asking


cdef void add_question(Reader *reader, Asking *asking, const fb_record *record, const fb_place *places) noexcept nogil:
    cdef fb_question *question = &asking.questions[asking.count]
    cdef uint32_t i
    question.index = record.index
    question.epoch = record.epoch
    question.seed = record.seed
    question.row = places[reader.row_field].offset
    for i in range(reader.source.field_count):
        question.offsets[i] = places[i].offset
        question.dtypes[i] = places[i].dtype
    asking.file = places[0].file
    asking.count += 1


cdef void forget_questions(Asking *asking) noexcept nogil:
    asking.count = asking.next = asking.made = 0
    asking.failed = False


cdef void announce(void *self, uint32_t number, const fb_record *record, fb_worker *worker,
                   const fb_place *places) noexcept nogil:
    """Notes a sample, so that write() of the first one asks for all of them."""
    cdef Asking *asking = asking_of(worker)
    if asking == NULL:
        return  # write() says so
    if number == 0:
        forget_questions(asking)
    if asking.count < FB_MAX_QUESTIONS:
        add_question(<Reader *>self, asking, record, places)


cdef int write(void *self, const fb_record *record, fb_worker *worker, const fb_place *places,
               fb_error *error) noexcept nogil:
    """Has the sample written into the batch, and with it those that were announced after it."""
    cdef Reader *reader = <Reader *>self
    cdef Asking *asking = asking_of(worker)
    cdef int code = 0
    if asking == NULL:
        return fb_fail(error, "no memory to load it")
    while asking.next < asking.count and asking.questions[asking.next].row != places[reader.row_field].offset:
        pass_question(asking)  # it was announced, but the batch had no use for it
    if asking.next == asking.count:  # it was not announced
        forget_questions(asking)
        add_question(reader, asking, record, places)
    if asking.made == asking.next and not asking.failed:
        ask_for_rest(reader, asking, worker)
    if asking.made == asking.next:
        error[0] = asking.error
        code = -1
    pass_question(asking)
    return code


cdef void pass_question(Asking *asking) noexcept nogil:
    """Goes on to the next question. What became of this one is of no interest any more."""
    if asking.made == asking.next:
        asking.failed = False
        asking.made += 1
    asking.next += 1


cdef void ask_for_rest(Reader *reader, Asking *asking, fb_worker *worker) noexcept nogil:
    """Asks for the samples from `made` on. Afterwards, at least one more was made, or the next one failed."""
    cdef Channel *channel
    cdef uint32_t number, i
    cdef uint32_t made = 0
    cdef int code = 1
    while code == 1 and made == 0:
        channel = take_channel(reader, worker)
        if channel == NULL:
            code = fb_fail(&asking.error, "the loader was closed")
            break
        number = number_of(channel, asking.file)
        if number == 0 and not fb_wait_for_end(&channel.worker, 0):
            code = fb_fail(&asking.error, "no memory, or no file descriptor, to share a batch with a worker")
        elif number == 0:
            atomic_set(&channel.lost, 1)
        else:
            channel.mailbox.asked = asking.count - asking.made
            for i in range(channel.mailbox.asked):
                channel.mailbox.questions[i] = asking.questions[asking.made + i]
                channel.mailbox.questions[i].file = number
            code = ask(reader, channel, worker, &made, &asking.error)
            asking.made += made
        give_channel(reader, channel)
    asking.failed = code == -1


cdef void done(void *self, const fb_record *record, fb_worker *worker) noexcept nogil:
    cdef Asking *asking = asking_of(worker)
    if asking != NULL and asking.taken != NULL:
        give_channel(<Reader *>self, asking.taken)
        asking.taken = NULL


cdef int read(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) noexcept nogil:
    """Has the sample written into the channel's file. The channel is taken until done()."""
    cdef Reader *reader = <Reader *>self
    cdef Asking *asking = asking_of(worker)
    cdef uint32_t made
    cdef int code = 1
    if asking == NULL:
        return fb_fail(error, "no memory to load it")
    while code == 1:
        done(self, record, worker)  # with the channel of a worker that had ended
        asking.taken = take_channel(reader, worker)
        if asking.taken == NULL:
            return fb_fail(error, "the loader was closed")
        asking.taken.mailbox.asked = 1
        question_of(reader, asking.taken, record)
        if reader.varies:
            sample_file_trim(&asking.taken.sample, FB_MAILBOX_ROOM)
        code = ask(reader, asking.taken, worker, &made, error)
    if code == 0 and reader.varies:
        return show_varying(reader, asking.taken, views, error)
    if code == 0:
        show(reader, asking.taken, views)
    return code


cdef void question_of(const Reader *reader, Channel *channel, const fb_record *record) noexcept nogil:
    """Asks for the sample in the channel's file."""
    cdef fb_question *question = &channel.mailbox.questions[0]
    cdef uint32_t i
    question.index = record.index
    question.epoch = record.epoch
    question.seed = record.seed
    question.file = 0
    question.row = 0
    for i in range(reader.source.field_count):
        question.offsets[i] = reader.offsets[i]
        question.dtypes[i] = reader.fields[i].dtype


cdef void show(const Reader *reader, Channel *channel, fb_view *views) noexcept nogil:
    """Shows the sample in the channel's file."""
    cdef uint32_t i
    cdef int axis
    cdef int64_t stride
    for i in range(reader.source.field_count):
        views[i].data = <char *>channel.mailbox + reader.offsets[i]
        views[i].dtype = reader.fields[i].dtype
        views[i].ndim = reader.fields[i].ndim
        stride = <int64_t>fb_dtype_size(reader.fields[i].dtype)
        for axis in range(views[i].ndim - 1, -1, -1):
            views[i].shape[axis] = reader.fields[i].shape[axis]
            views[i].strides[axis] = stride
            stride *= views[i].shape[axis]


cdef int show_varying(const Reader *reader, Channel *channel, fb_view *views, fb_error *error) noexcept nogil:
    """Shows the sample in the channel's file, with the shapes that the worker says.

    The worker is another process, which may be damaged: no shape is believed before it was compared with the file.
    """
    cdef size_t[FB_MAX_FIELDS] offsets
    cdef size_t end = FB_MAILBOX_ROOM
    cdef int64_t size
    cdef uint32_t i
    for i in range(reader.source.field_count):
        size = take_shape(reader, channel, i, &views[i])
        if size < 0:
            return fail_shape(reader, channel, i, error)
        offsets[i] = end
        end += (<size_t>size + FB_FIELD_ALIGNMENT - 1) // FB_FIELD_ALIGNMENT * FB_FIELD_ALIGNMENT
        if end > channel.sample.size and not sample_file_has(&channel.sample, end):
            return fail_shape(reader, channel, i, error)
    if not sample_file_map(&channel.sample, end):
        return fb_fail(error, "no memory to share it")
    for i in range(reader.source.field_count):
        views[i].data = channel.sample.data + offsets[i]
    return 0


cdef int64_t take_shape(const Reader *reader, const Channel *channel, uint32_t number, fb_view *view) noexcept nogil:
    """Gives a view the shape of a field. Returns its bytes, or -1 if no field has so many."""
    cdef const fb_field *field = &reader.fields[number]
    cdef int64_t stride = <int64_t>fb_dtype_size(field.dtype)
    cdef bint empty = False
    cdef int64_t size
    cdef int axis
    view.dtype = field.dtype
    view.ndim = reader.dimensions[number]
    for axis in range(view.ndim - 1, -1, -1):
        size = field.shape[axis] if field.ndim >= 0 else atomic_get64(&channel.mailbox.shapes[number][axis])
        if size < 0 or size > MOST_BYTES // stride:
            return -1
        view.shape[axis] = size
        view.strides[axis] = stride
        empty |= size == 0
        stride *= max(size, 1)
    return 0 if empty else stride


cdef int fail_shape(const Reader *reader, const Channel *channel, uint32_t number, fb_error *error) noexcept nogil:
    if channel.process:
        return fb_fail(error, "the worker process %d says a shape of its %s that the shared memory has no room for: "
                              "its memory is damaged", channel.process, reader.fields[number].name)
    return fb_fail(error, "the worker thread says a shape of its %s that the shared memory has no room for: the memory "
                          "of this process is damaged", reader.fields[number].name)


cdef void delete(object capsule) noexcept:
    """The capsule's destructor: no thread of the loader is left. Ends the workers, if that has not happened yet.

    Runs no Python code, in which the exception of a signal handler would be lost.
    """
    (<Channels>take_owner(capsule)).end_all(False)


@cython.final
cdef class Channels:
    """The channels of one loader to its workers, and the reader that asks through them.

    Parameters
    ----------
    name : str
        The source's, for messages.
    count : int
        Samples.
    fields : list of (str, numpy.dtype, tuple of int)
        The names, types and shapes of a sample's values.
    workers : int
    timeout : float or None
        Seconds that a process may take for a sample.
    varying : sequence of str
        The fields whose shapes vary. Their shapes in `fields` are those of one sample.
    """

    cdef Reader *reader
    cdef int owner  # the process whose workers these are
    cdef object kept  # the bytes that the reader points at
    cdef readonly size_t size
    """Bytes of a channel's file."""

    def __init__(self, name, count, fields, int workers, timeout, varying=()):
        cdef Reader *reader = <Reader *>calloc(1, sizeof(Reader))
        cdef pthread_condattr_t monotonic
        cdef size_t offset = FB_MAILBOX_ROOM
        cdef size_t size
        cdef int i, axis
        if reader == NULL:
            raise MemoryError()
        self.reader = reader
        self.owner = process_number()
        if not 1 <= len(fields) <= FB_MAX_FIELDS or any([len(shape) > FB_MAX_DIMS for _, _, shape in fields]):
            raise ValueError(f"a sample has 1 to {FB_MAX_FIELDS} values of at most {FB_MAX_DIMS} dimensions")
        causes_init(&reader.causes)
        pthread_mutex_init(&reader.lock, NULL)
        pthread_mutex_init(&reader.ending, NULL)
        pthread_condattr_init(&monotonic)
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC)
        pthread_cond_init(&reader.freed, &monotonic)
        pthread_condattr_destroy(&monotonic)
        reader.channels = <Channel *>calloc(workers, sizeof(Channel))
        if reader.channels == NULL:
            raise MemoryError()
        for i in range(workers):
            reader.channels[i].lost = 1  # not open yet
            reader.channels[i].worker.socket = reader.channels[i].worker.process_file = -1
            reader.channels[i].sample.file = -1
        reader.channel_count = workers
        reader.timeout = 0 if timeout is None else max(1, <int64_t>(timeout * 1e9))
        reader.row_field = -1
        names = [each.encode() for each, _, _ in fields]
        self.kept = (name.encode("utf-8", "replace"), names)
        reader.varies = len(varying) > 0
        for i, (field, dtype, shape) in enumerate(fields):
            size = dtype.itemsize
            reader.fields[i].name = <const char *>names[i]
            reader.fields[i].dtype = <fb_dtype><int>DTYPES.index(dtype)
            reader.fields[i].ndim = -1 if field in varying else len(shape)
            reader.dimensions[i] = len(shape)
            for axis in range(len(shape)):
                reader.fields[i].shape[axis] = shape[axis]
                size *= shape[axis]
            if size and reader.row_field < 0:
                reader.row_field = i
            reader.offsets[i] = offset
            offset += (size + FB_FIELD_ALIGNMENT - 1) // FB_FIELD_ALIGNMENT * FB_FIELD_ALIGNMENT
        self.size = offset
        reader.row_field = max(reader.row_field, 0)
        begin_source(&reader.source, reader, <const char *>self.kept[0], count, reader.fields, len(fields))
        reader.source.read = read
        reader.source.done = done
        reader.source.seeded = True
        reader.source.at_once = FB_MANY
        if not reader.varies:  # otherwise the batch is laid out when the first sample is there
            reader.source.write = write
            reader.source.announce = announce
            reader.source.shared_batches = 1
            reader.source.converts = 1

    def capsule(self):
        """A PyCapsule of the fb_source. When it is deleted, the workers end."""
        return source_capsule(&self.reader.source, delete, self)

    def open(self, int number, int file, int socket, int process):
        """Opens a channel to a worker.

        Both descriptors may be closed afterwards. A signal handler can so raise at any moment, and none is lost.
        """
        cdef Channel *channel = &self.reader.channels[number]
        cdef void *memory
        cdef int own = fcntl(socket, F_DUPFD_CLOEXEC, 0)
        cdef int own_file = fcntl(file, F_DUPFD_CLOEXEC, 0) if self.reader.varies else -1
        if own < 0 or self.reader.varies and own_file < 0:
            problem = errno
            close(own)
            raise OSError(problem, os.strerror(problem))
        memory = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
        if memory == MAP_FAILED:
            close(own)
            close(own_file)
            raise MemoryError("no memory to share with a worker")
        with nogil:  # another thread may be ending the workers
            pthread_mutex_lock(&self.reader.ending)
        pthread_mutex_lock(&self.reader.lock)
        if channel.mailbox != NULL:
            munmap(channel.mailbox, channel.size)
        sample_file_set(&channel.sample, own_file)
        channel.mailbox = <fb_mailbox *>memory
        channel.size = self.size
        channel.worker.socket = own
        channel.worker.process_file = fb_process_file(process) if process else -1
        channel.process = process
        channel.file_count = 0
        atomic_set(&channel.lost, 0)
        pthread_cond_signal(&self.reader.freed)
        pthread_mutex_unlock(&self.reader.lock)
        pthread_mutex_unlock(&self.reader.ending)

    @property
    def lost(self):
        """The numbers of the channels whose workers are to be replaced, as far as nobody uses them."""
        cdef Channel *channel
        cdef int i
        cdef bint lost
        found = []
        for i in range(self.reader.channel_count):
            channel = &self.reader.channels[i]
            pthread_mutex_lock(&self.reader.lock)
            lost = atomic_get(&channel.lost) and not channel.taken
            pthread_mutex_unlock(&self.reader.lock)
            if lost:
                found.append(i)
        return found

    def has_begun(self, int number):
        """Whether the worker that a channel has, or had last, got as far as to wait for its first sample."""
        cdef fb_mailbox *mailbox = self.reader.channels[number].mailbox
        return mailbox != NULL and atomic_get(<int32_t *>&mailbox.ready) != 0

    def cause(self, uint64_t index, uint64_t epoch):
        """The oldest exception that kept sample `index` from being loaded, pickled; None if there is none. Only once.

        If it was the end of a process, the process's id, an int in the bytes of this machine.

        If several epochs have one, that of `epoch` counts; a batch that goes across epochs has the first one's number.
        """
        cdef Cause *cause = causes_take(&self.reader.causes, index, epoch)
        if cause == NULL:
            return None
        try:
            return cause.bytes[:cause.size]
        finally:
            free(cause)

    def forget_causes(self):
        """Drops the exceptions that wait: nobody will ask."""
        causes_forget(&self.reader.causes)

    def end(self, double patience):
        """Ends the workers: tells them to leave, and kills the processes that have not left after `patience` seconds.

        One that has not begun is killed sooner: it may hang in an import, and would never hear that it is to leave.

        Returns whether all have ended; threads may not have. Handles signals meanwhile. May be called again.
        """
        return self.end_all(True, patience)

    cdef bint end_all(self, bint interruptible, double patience=PATIENCE) except? False:
        cdef Reader *reader = self.reader
        cdef Channel *channel
        cdef int64_t begin = now()
        cdef double waited = 0
        cdef bint ended
        cdef int i
        if process_number() != self.owner:  # the workers are the parent's
            return True
        for i in range(reader.channel_count):
            if reader.channels[i].mailbox != NULL:
                fb_mailbox_quit(reader.channels[i].mailbox)
        while True:
            ended = True
            with nogil:
                pthread_mutex_lock(&reader.ending)
                for i in range(reader.channel_count):
                    channel = &reader.channels[i]
                    # Nobody waits for threads where no Python code may run: this may be one of them. They write into
                    # memory of their own mapping.
                    if channel.worker.socket >= 0 and (channel.process or interruptible):
                        ended = ended and fb_wait_for_end(&channel.worker, 20)
                    if (waited > patience_with(channel, patience) and channel.process
                            and not fb_wait_for_end(&channel.worker, 0)):
                        kill(channel.process, SIGKILL)
                pthread_mutex_unlock(&reader.ending)
            waited = (now() - begin) * 1e-9
            if ended or waited > 2 * patience:
                return ended
            if interruptible:
                PyErr_CheckSignals()

    def shut(self, int number):
        """Closes a channel whose worker has ended, or is left behind."""
        cdef Channel *channel = &self.reader.channels[number]
        cdef bint owned = process_number() == self.owner  # in a forked child, the lock's holder may not exist
        atomic_set(&channel.lost, 1)
        with nogil:
            if owned:
                pthread_mutex_lock(&self.reader.ending)
            forget_worker(channel)
            if owned:
                pthread_mutex_unlock(&self.reader.ending)

    def __dealloc__(self):
        cdef Reader *reader = self.reader
        cdef int i
        if reader == NULL:
            return
        if reader.channels != NULL:
            self.end_all(False)
        for i in range(reader.channel_count):
            if reader.channels[i].mailbox != NULL:
                munmap(reader.channels[i].mailbox, reader.channels[i].size)
            sample_file_unmap(&reader.channels[i].sample)
            forget_worker(&reader.channels[i])
            free(reader.channels[i].files)
        causes_free(&reader.causes, process_number() != self.owner)
        if process_number() == self.owner:  # otherwise threads that do not exist here may wait for the condition
            pthread_cond_destroy(&reader.freed)
            pthread_mutex_destroy(&reader.lock)
            pthread_mutex_destroy(&reader.ending)
        free(reader.channels)
        free(reader)


@cython.final
@cython.auto_pickle(False)
cdef class MemoryFile:
    """A new file, which exists in memory only. It is closed by `with`, or when it is collected.

    A bare descriptor would be lost by an interrupt between the call that returns it and the next statement.

    Parameters
    ----------
    size : int
        Bytes.
    grows : bool
        It can be made larger.
    """

    cdef int file
    cdef bint is_open

    def __init__(self, size_t size, bint grows):
        self.close()
        self.file = fb_memory_file(size, grows)
        if self.file < 0:
            raise OSError(errno, os.strerror(errno))
        self.is_open = True

    def fileno(self):
        return self.file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        if self.is_open:
            self.is_open = False
            close(self.file)
