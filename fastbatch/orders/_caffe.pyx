# cython: language_level=3
"""The orders behind `fastbatch.orders.caffe`: Caffe's own, which draw from MT19937 streams.

A stream yields its numbers in sequence, so positions that ascend one by one cost least. To reach another position, an
order draws all numbers before it, starting from the seed if it has to go back. A state contains the stream, so loading
one takes no draws.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastbatch._random cimport fb_mt19937, fb_mt19937_next, fb_mt19937_seed
from fastbatch._contract cimport FB_UNCOUNTED, fb_error, fb_fail
from fastbatch.orders._order cimport (
    FB_ORDER_CAFFE_LIST, FB_ORDER_CAFFE_RECORDS, FB_ORDER_CAFFE_WINDOWS, FB_ORDER_CAPSULE, begin_head, fb_order,
    fb_pick, fb_state_check, fb_state_head, free_order
)


# ---- Draws ----

cdef struct Draws:  # made by Caffe's DataTransformer for each sample
    fb_mt19937 stream
    uint32_t seed
    bint mirror
    bint crop


cdef void begin_draws(Draws *draws, uint32_t seed, bint mirror, bint crop) noexcept nogil:
    draws.seed = seed
    draws.mirror = mirror
    draws.crop = crop
    fb_mt19937_seed(&draws.stream, seed)


cdef void seek_stream(fb_mt19937 *stream, uint32_t seed, uint64_t drawn, uint64_t wanted) noexcept nogil:
    """Moves the stream, of which `drawn` numbers have been drawn, to where `wanted` have been drawn."""
    if wanted < drawn:
        fb_mt19937_seed(stream, seed)
        drawn = 0
    while drawn < wanted:
        fb_mt19937_next(stream)
        drawn += 1


cdef void seek_draws(Draws *draws, uint64_t from_position, uint64_t position) noexcept nogil:
    cdef uint64_t each = draws.mirror + 2 * draws.crop
    seek_stream(&draws.stream, draws.seed, each * from_position, each * position)


cdef inline void make_draws(Draws *draws, fb_pick *pick) noexcept nogil:
    if draws.mirror:
        pick.draws[0] = fb_mt19937_next(&draws.stream)
    if draws.crop:
        pick.draws[1] = fb_mt19937_next(&draws.stream)
        pick.draws[2] = fb_mt19937_next(&draws.stream)


# ---- Records, as Data reads them ----

cdef struct Records:
    fb_order order
    uint64_t rank
    uint64_t ranks
    uint64_t count  # FB_UNCOUNTED until the source has reported its end
    Draws draws
    fb_state_head head

cdef struct RecordsState:
    fb_state_head head
    uint64_t count
    fb_mt19937 stream


cdef int records_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    cdef Records *records = <Records *>self
    cdef uint64_t record = records.rank + position * records.ranks
    if position != records.head.next:
        seek_draws(&records.draws, records.head.next, position)
    pick.index = record % records.count
    pick.epoch = record // records.count
    make_draws(&records.draws, pick)
    records.head.next = position + 1
    return 0


cdef void records_counted(void *self, uint64_t count, fb_pick *pick) noexcept nogil:
    cdef Records *records = <Records *>self
    records.count = count
    pick.epoch = pick.index // count
    pick.index %= count


cdef void records_save(const void *self, void *state) noexcept nogil:
    cdef const Records *records = <const Records *>self
    cdef RecordsState *saved = <RecordsState *>state
    memset(saved, 0, sizeof(RecordsState))
    saved.head = records.head
    saved.count = records.count
    saved.stream = records.draws.stream


cdef int records_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    cdef Records *records = <Records *>self
    cdef RecordsState saved
    if fb_state_check(state, &records.head, error) != 0:
        return -1
    memcpy(&saved, state, sizeof(RecordsState))
    if saved.count != records.count and saved.count != FB_UNCOUNTED and records.count != FB_UNCOUNTED:
        return fb_fail(error, "this state belongs to a database of %llu records, and this one has %llu",
                       <unsigned long long>saved.count, <unsigned long long>records.count)
    if records.count == FB_UNCOUNTED:
        records.count = saved.count
    records.head = saved.head
    records.draws.stream = saved.stream
    next[0] = saved.head.next
    return 0


def records(count, uint32_t seed, bint mirror, bint crop, uint64_t rank, uint64_t ranks):
    """Returns a capsule of an fb_order (native/order.h): records rank, rank + ranks, ..., modulo `count`.

    `count` is None if it is not known yet.
    """
    cdef Records *records = <Records *>calloc(1, sizeof(Records))
    if records == NULL:
        raise MemoryError()
    capsule = PyCapsule_New(records, FB_ORDER_CAPSULE, free_order)
    records.count = FB_UNCOUNTED if count is None else count
    records.rank = rank
    records.ranks = ranks
    begin_draws(&records.draws, seed, mirror, crop)
    begin_head(&records.head, FB_ORDER_CAFFE_RECORDS)
    records.head.settings[0] = seed
    records.head.settings[1] = mirror + 2 * crop
    records.head.settings[2] = rank
    records.head.settings[3] = ranks
    records.order.self = records
    records.order.caffe_draws = True
    records.order.at = records_at
    records.order.counted = records_counted
    records.order.state_size = sizeof(RecordsState)
    records.order.save = records_save
    records.order.load = records_load
    return capsule


# ---- The lines of a list, as ImageData reads them ----

cdef struct Lines:
    fb_order order
    uint64_t count
    uint64_t skip
    uint64_t *lines  # in the order of `epoch`
    uint64_t epoch
    uint64_t begin  # the line number (see line_at) with which that epoch begins
    bint shuffles
    uint32_t shuffle_seed
    fb_mt19937 shuffling
    Draws draws
    fb_state_head head

cdef struct LinesState:
    fb_state_head head
    fb_mt19937 stream


cdef void shuffle(uint64_t *order, uint64_t count, fb_mt19937 *stream) noexcept nogil:
    """Caffe's shuffle: Fisher-Yates from the end, with Boost's uniform_int.

    uniform_int divides the range of the raw draws into equal buckets, and draws again if a draw is in none of them.
    """
    cdef uint64_t i, j, bucket
    for i in range(count - 1, 0, -1):
        # The size of each of i + 1 equal buckets of the 2^32 raw draws.
        bucket = ((<uint64_t>1 << 32) // (i + 1)) if (i + 1) < (<uint64_t>1 << 32) else 1
        while True:
            j = fb_mt19937_next(stream) // bucket
            if j <= i:
                break
        order[i], order[j] = order[j], order[i]


cdef void number_lines(Lines *lines) noexcept nogil:
    """Sets the order of the lines in the first epoch."""
    cdef uint64_t i
    for i in range(lines.count):
        lines.lines[i] = i
    lines.epoch = lines.begin = 0
    if lines.shuffles:
        fb_mt19937_seed(&lines.shuffling, lines.shuffle_seed)
        shuffle(lines.lines, lines.count, &lines.shuffling)


cdef uint64_t line_at(Lines *lines, uint64_t number) noexcept nogil:
    """Returns line `number` of all epochs in sequence, including the lines that are skipped at the beginning.

    Each epoch shuffles the lines from the order in which the previous one left them.
    """
    if number < lines.begin:
        number_lines(lines)
    while number - lines.begin >= lines.count:
        lines.epoch += 1
        lines.begin += lines.count
        if lines.shuffles:
            shuffle(lines.lines, lines.count, &lines.shuffling)
    return lines.lines[number - lines.begin]


cdef int lines_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    cdef Lines *lines = <Lines *>self
    if position != lines.head.next:
        seek_draws(&lines.draws, lines.head.next, position)
    pick.index = line_at(lines, lines.skip + position)
    pick.epoch = lines.epoch
    make_draws(&lines.draws, pick)
    lines.head.next = position + 1
    return 0


cdef void lines_save(const void *self, void *state) noexcept nogil:
    """Does not save the order of the lines, because load() repeats the shuffles."""
    cdef const Lines *lines = <const Lines *>self
    cdef LinesState *saved = <LinesState *>state
    memset(saved, 0, sizeof(LinesState))
    saved.head = lines.head
    saved.stream = lines.draws.stream


cdef int lines_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    cdef Lines *lines = <Lines *>self
    cdef LinesState saved
    if fb_state_check(state, &lines.head, error) != 0:
        return -1
    memcpy(&saved, state, sizeof(LinesState))
    lines.head = saved.head
    lines.draws.stream = saved.stream
    line_at(lines, lines.skip + saved.head.next)
    next[0] = saved.head.next
    return 0


cdef void free_lines(object capsule) noexcept:
    free((<Lines *>PyCapsule_GetPointer(capsule, FB_ORDER_CAPSULE)).lines)
    free_order(capsule)


def lines(uint64_t count, uint32_t seed, bint mirror, bint crop, shuffle_seed, uint64_t skip):
    """Returns a capsule of an fb_order (native/order.h): the lines of a list, repeatedly, at first from `skip` on.

    The lines are shuffled if `shuffle_seed` is not None.
    """
    cdef Lines *lines
    if skip >= count:
        raise ValueError(f"there are {count} samples, of which {skip} cannot be left out")
    lines = <Lines *>calloc(1, sizeof(Lines))
    if lines == NULL:
        raise MemoryError()
    capsule = PyCapsule_New(lines, FB_ORDER_CAPSULE, free_lines)
    lines.lines = <uint64_t *>malloc(count * sizeof(uint64_t))
    if lines.lines == NULL:
        raise MemoryError(f"no memory for the order of {count} lines")
    lines.count = count
    lines.skip = skip
    lines.shuffles = shuffle_seed is not None
    if lines.shuffles:
        lines.shuffle_seed = shuffle_seed
    number_lines(lines)
    begin_draws(&lines.draws, seed, mirror, crop)
    begin_head(&lines.head, FB_ORDER_CAFFE_LIST)
    lines.head.settings[0] = count
    lines.head.settings[1] = seed
    lines.head.settings[2] = mirror + 2 * crop + 4 * lines.shuffles
    lines.head.settings[3] = lines.shuffle_seed
    lines.head.settings[4] = skip
    lines.order.self = lines
    lines.order.caffe_draws = True
    lines.order.at = lines_at
    lines.order.state_size = sizeof(LinesState)
    lines.order.save = lines_save
    lines.order.load = lines_load
    return capsule


# ---- Windows, as WindowData samples them ----

cdef struct Sampling:
    fb_order order
    uint64_t[2] counts  # of windows: background, foreground
    uint64_t batch_size
    uint64_t foreground_from  # index in the batch of the first foreground window
    bint mirror
    uint32_t seed
    fb_mt19937 stream
    fb_state_head head

cdef struct SamplingState:
    fb_state_head head
    fb_mt19937 stream


cdef int sampling_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    """Draws the window and then, if windows are mirrored at all, whether this one is."""
    cdef Sampling *sampling = <Sampling *>self
    cdef uint64_t each = 1 + sampling.mirror
    cdef bint foreground = position % sampling.batch_size >= sampling.foreground_from
    cdef uint64_t window
    if position != sampling.head.next:
        seek_stream(&sampling.stream, sampling.seed, each * sampling.head.next, each * position)
    window = fb_mt19937_next(&sampling.stream) % sampling.counts[foreground] + (sampling.counts[0] if foreground else 0)
    pick.index = 2 * window + (fb_mt19937_next(&sampling.stream) % 2 if sampling.mirror else 0)
    pick.epoch = 0
    sampling.head.next = position + 1
    return 0


cdef void sampling_save(const void *self, void *state) noexcept nogil:
    cdef const Sampling *sampling = <const Sampling *>self
    cdef SamplingState *saved = <SamplingState *>state
    memset(saved, 0, sizeof(SamplingState))
    saved.head = sampling.head
    saved.stream = sampling.stream


cdef int sampling_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    cdef Sampling *sampling = <Sampling *>self
    cdef SamplingState saved
    if fb_state_check(state, &sampling.head, error) != 0:
        return -1
    memcpy(&saved, state, sizeof(SamplingState))
    sampling.head = saved.head
    sampling.stream = saved.stream
    next[0] = saved.head.next
    return 0


def sampling(uint64_t count, uint32_t seed, uint64_t background, uint64_t foreground, uint64_t batch_size,
             uint64_t foreground_count, bint mirror):
    """Returns a capsule of an fb_order (native/order.h) over `count` samples, two for each window.

    Odd samples are mirrored.
    """
    cdef Sampling *sampling
    if count != 2 * (background + foreground):
        raise ValueError(f"{background} windows of the background and {foreground} of the foreground are "
                         f"{2 * (background + foreground)} samples, and the source has {count}")
    sampling = <Sampling *>calloc(1, sizeof(Sampling))
    if sampling == NULL:
        raise MemoryError()
    capsule = PyCapsule_New(sampling, FB_ORDER_CAPSULE, free_order)
    sampling.counts[0] = background
    sampling.counts[1] = foreground
    sampling.batch_size = batch_size
    sampling.foreground_from = batch_size - foreground_count
    sampling.mirror = mirror
    sampling.seed = seed
    fb_mt19937_seed(&sampling.stream, seed)
    begin_head(&sampling.head, FB_ORDER_CAFFE_WINDOWS)
    sampling.head.settings[0] = seed
    sampling.head.settings[1] = background
    sampling.head.settings[2] = foreground
    sampling.head.settings[3] = batch_size
    sampling.head.settings[4] = 2 * foreground_count + mirror
    sampling.order.self = sampling
    sampling.order.caffe_draws = True
    sampling.order.at = sampling_at
    sampling.order.state_size = sizeof(SamplingState)
    sampling.order.save = sampling_save
    sampling.order.load = sampling_load
    return capsule
