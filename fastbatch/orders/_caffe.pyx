# cython: language_level=3
"""The orders behind `fastbatch.orders.caffe`: Caffe's own, which draw from MT19937 streams.

A stream yields its numbers in sequence, so positions that ascend one by one cost least. To reach another position, an
order draws all numbers before it, starting from the seed if it has to go back. A state contains the stream, so loading
one takes no draws.
"""

from fastbatch._text import there_are

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New, PyCapsule_SetDestructor
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from fastbatch._random cimport fb_mt19937, fb_mt19937_next, fb_mt19937_seed
from fastbatch._contract cimport FB_UNCOUNTED, fb_error, fb_fail
from fastbatch.orders._order cimport (
    FB_ORDER_CAFFE_LIST, FB_ORDER_CAFFE_RECORDS, FB_ORDER_CAFFE_WINDOWS, FB_ORDER_CAPSULE, begin_head, fb_order,
    fb_order_kind, fb_pick, fb_state_check, fb_state_head, free_order
)


# ---- What these orders share: a stream of random numbers, and a state that contains it ----

cdef struct Drawing:  # how each of these orders begins
    fb_order order
    fb_state_head head
    fb_mt19937 stream
    uint32_t seed
    uint64_t each  # numbers that a sample takes from the stream
    bint mirror
    bint crop

cdef struct DrawingState:  # how each of their states begins
    fb_state_head head
    fb_mt19937 stream


cdef object new_order(size_t size, fb_order_kind kind, uint32_t seed, bint mirror, bint crop):
    """Returns a capsule with an order of `size` bytes that begins with a Drawing; the rest is 0.

    Its caller adds at(), settings, and whatever else it does differently.
    """
    cdef Drawing *drawing = <Drawing *>calloc(1, size)
    if drawing == NULL:
        raise MemoryError()
    capsule = PyCapsule_New(drawing, FB_ORDER_CAPSULE, free_order)
    drawing.seed = seed
    drawing.each = mirror + 2 * crop
    drawing.mirror = mirror
    drawing.crop = crop
    fb_mt19937_seed(&drawing.stream, seed)
    begin_head(&drawing.head, kind)
    drawing.order.self = drawing
    drawing.order.caffe_draws = True
    drawing.order.state_size = sizeof(DrawingState)
    drawing.order.save = save
    drawing.order.load = load
    return capsule


cdef inline void seek(Drawing *drawing, uint64_t position) noexcept nogil:
    """Advances the stream to the numbers of the sample at a position, which is about to take them."""
    cdef uint64_t drawn = drawing.each * drawing.head.next
    cdef uint64_t wanted = drawing.each * position
    if wanted < drawn:
        fb_mt19937_seed(&drawing.stream, drawing.seed)
        drawn = 0
    while drawn < wanted:
        fb_mt19937_next(&drawing.stream)
        drawn += 1
    drawing.head.next = position + 1


cdef inline void draw(Drawing *drawing, fb_pick *pick) noexcept nogil:
    """Takes the numbers that Caffe's DataTransformer takes for each sample."""
    if drawing.mirror:
        pick.draws[0] = fb_mt19937_next(&drawing.stream)
    if drawing.crop:
        pick.draws[1] = fb_mt19937_next(&drawing.stream)
        pick.draws[2] = fb_mt19937_next(&drawing.stream)


cdef void save(const void *self, void *state) noexcept nogil:
    cdef const Drawing *drawing = <const Drawing *>self
    cdef DrawingState *saved = <DrawingState *>state
    memset(saved, 0, drawing.order.state_size)
    saved.head = drawing.head
    saved.stream = drawing.stream


cdef int load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    cdef Drawing *drawing = <Drawing *>self
    if check_drawing(drawing, state, error) != 0:
        return -1
    next[0] = restore(drawing, state)
    return 0


cdef int check_drawing(const Drawing *drawing, const void *state, fb_error *error) noexcept nogil:
    """Checks that a state belongs to this order, and that restore() can take it over."""
    cdef DrawingState saved
    if fb_state_check(state, &drawing.head, error) != 0:
        return -1
    memcpy(&saved, state, sizeof(DrawingState))
    if not 0 <= saved.stream.used <= 624:
        return fb_fail(error, "this state is damaged: it was changed after it was saved")
    return 0


cdef uint64_t restore(Drawing *drawing, const void *state) noexcept nogil:
    """Takes over a state that was checked; returns the next position."""
    cdef DrawingState saved
    memcpy(&saved, state, sizeof(DrawingState))
    drawing.head = saved.head
    drawing.stream = saved.stream
    return saved.head.next


# ---- Records, as Data reads them ----

cdef struct Records:
    Drawing drawing
    uint64_t rank
    uint64_t ranks
    uint64_t count  # FB_UNCOUNTED until the source has reported its end

cdef struct RecordsState:
    DrawingState drawing
    uint64_t count


cdef int records_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    cdef Records *records = <Records *>self
    cdef uint64_t record = records.rank + position * records.ranks
    seek(&records.drawing, position)
    pick.index = record % records.count
    pick.epoch = record // records.count
    draw(&records.drawing, pick)
    return 0


cdef void records_counted(void *self, uint64_t count, fb_pick *pick) noexcept nogil:
    cdef Records *records = <Records *>self
    records.count = count
    pick.epoch = pick.index // count
    pick.index %= count


cdef void records_save(const void *self, void *state) noexcept nogil:
    save(self, state)
    (<RecordsState *>state).count = (<const Records *>self).count


cdef int records_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    cdef Records *records = <Records *>self
    cdef RecordsState saved
    if check_drawing(&records.drawing, state, error) != 0:
        return -1
    memcpy(&saved, state, sizeof(RecordsState))
    if saved.count == 0:
        return fb_fail(error, "this state is damaged: it is of a database without records")
    if saved.count != records.count and saved.count != FB_UNCOUNTED and records.count != FB_UNCOUNTED:
        return fb_fail(error, "this state belongs to a database of %llu records, and this one has %llu",
                       <unsigned long long>saved.count, <unsigned long long>records.count)
    if records.count == FB_UNCOUNTED:
        records.count = saved.count
    next[0] = restore(&records.drawing, state)
    return 0


def records(count, uint32_t seed, bint mirror, bint crop, uint64_t rank, uint64_t ranks):
    """Returns a capsule of an fb_order (native/order.h): records rank, rank + ranks, ..., modulo `count`.

    `count` is None if it is not known yet.
    """
    capsule = new_order(sizeof(Records), FB_ORDER_CAFFE_RECORDS, seed, mirror, crop)
    cdef Records *records = <Records *>PyCapsule_GetPointer(capsule, FB_ORDER_CAPSULE)
    records.count = FB_UNCOUNTED if count is None else count
    records.rank = rank
    records.ranks = ranks
    records.drawing.head.settings[0] = seed
    records.drawing.head.settings[1] = mirror + 2 * crop
    records.drawing.head.settings[2] = rank
    records.drawing.head.settings[3] = ranks
    records.drawing.order.at = records_at
    records.drawing.order.counted = records_counted
    records.drawing.order.state_size = sizeof(RecordsState)
    records.drawing.order.save = records_save
    records.drawing.order.load = records_load
    return capsule


# ---- The lines of a list, as ImageData reads them ----

cdef struct Lines:
    Drawing drawing
    uint64_t count
    uint64_t skip
    uint64_t *lines  # in the order of `epoch`
    uint64_t epoch
    uint64_t begin  # the line number (see line_at) with which that epoch begins
    bint shuffles
    uint32_t shuffle_seed
    fb_mt19937 shuffling


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
    seek(&lines.drawing, position)
    pick.index = line_at(lines, lines.skip + position)
    pick.epoch = lines.epoch
    draw(&lines.drawing, pick)
    return 0


cdef int lines_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    """Repeats the shuffles, because a state does not contain the order of the lines."""
    cdef Lines *lines = <Lines *>self
    cdef fb_state_head head
    memcpy(&head, state, sizeof(fb_state_head))
    if head.next // lines.count >> 32:  # it would take days to repeat so many shuffles
        return fb_fail(error, "this state is damaged: it is behind the position %llu", <unsigned long long>head.next)
    if load(self, state, next, error) != 0:
        return -1
    line_at(lines, lines.skip + next[0])
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
        raise ValueError(f"{there_are(count, 'sample')}, of which {skip} cannot be left out")
    capsule = new_order(sizeof(Lines), FB_ORDER_CAFFE_LIST, seed, mirror, crop)
    PyCapsule_SetDestructor(capsule, free_lines)
    lines = <Lines *>PyCapsule_GetPointer(capsule, FB_ORDER_CAPSULE)
    lines.lines = <uint64_t *>malloc(count * sizeof(uint64_t))
    if lines.lines == NULL:
        raise MemoryError(f"no memory for the order of {count} lines")
    lines.count = count
    lines.skip = skip
    lines.shuffles = shuffle_seed is not None
    if lines.shuffles:
        lines.shuffle_seed = shuffle_seed
    number_lines(lines)
    lines.drawing.head.settings[0] = count
    lines.drawing.head.settings[1] = seed
    lines.drawing.head.settings[2] = mirror + 2 * crop + 4 * lines.shuffles
    lines.drawing.head.settings[3] = lines.shuffle_seed
    lines.drawing.head.settings[4] = skip
    lines.drawing.order.at = lines_at
    lines.drawing.order.load = lines_load
    return capsule


# ---- Windows, as WindowData samples them ----

cdef struct Sampling:
    Drawing drawing
    uint64_t[2] counts  # of windows: background, foreground
    uint64_t batch_size
    uint64_t foreground_from  # index in the batch of the first foreground window


cdef int sampling_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    """Draws the window and then, if windows are mirrored at all, whether this one is."""
    cdef Sampling *sampling = <Sampling *>self
    cdef fb_mt19937 *stream = &sampling.drawing.stream
    cdef bint foreground = position % sampling.batch_size >= sampling.foreground_from
    cdef uint64_t window
    seek(&sampling.drawing, position)
    window = fb_mt19937_next(stream) % sampling.counts[foreground] + (sampling.counts[0] if foreground else 0)
    pick.index = 2 * window + (fb_mt19937_next(stream) % 2 if sampling.drawing.mirror else 0)
    pick.epoch = 0
    return 0


cdef void sampling_alike(const void *self, uint64_t index, uint64_t *first, uint64_t *step,
                         uint64_t *count) noexcept nogil:
    """Windows of the background for one of the background, mirrored ones for a mirrored one."""
    cdef const Sampling *sampling = <const Sampling *>self
    cdef bint foreground = index // 2 >= sampling.counts[0]
    first[0] = index % 2 + (2 * sampling.counts[0] if foreground else 0)
    step[0] = 2
    count[0] = sampling.counts[foreground]


def sampling(uint64_t count, uint32_t seed, uint64_t background, uint64_t foreground, uint64_t batch_size,
             uint64_t foreground_count, bint mirror):
    """Returns a capsule of an fb_order (native/order.h) over `count` samples, two for each window.

    Odd samples are mirrored.
    """
    cdef Sampling *sampling
    if count != 2 * (background + foreground):
        raise ValueError(f"{background} windows of the background and {foreground} of the foreground are "
                         f"{2 * (background + foreground)} samples, and the source has {count}")
    capsule = new_order(sizeof(Sampling), FB_ORDER_CAFFE_WINDOWS, seed, mirror, False)
    sampling = <Sampling *>PyCapsule_GetPointer(capsule, FB_ORDER_CAPSULE)
    sampling.drawing.each = 1 + mirror
    sampling.counts[0] = background
    sampling.counts[1] = foreground
    sampling.batch_size = batch_size
    sampling.foreground_from = batch_size - foreground_count
    sampling.drawing.head.settings[0] = seed
    sampling.drawing.head.settings[1] = background
    sampling.drawing.head.settings[2] = foreground
    sampling.drawing.head.settings[3] = batch_size
    sampling.drawing.head.settings[4] = 2 * foreground_count + mirror
    sampling.drawing.order.at = sampling_at
    sampling.drawing.order.alike = sampling_alike
    return capsule
