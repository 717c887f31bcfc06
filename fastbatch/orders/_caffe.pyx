# cython: language_level=3, cdivision=True
"""The orders behind `fastbatch.orders.caffe`: Caffe's own, which draw from MT19937 streams.

A stream gives its numbers one after the other, so positions that ascend one by one cost least. Any other is reached by drawing the numbers
before it, from the seed on if it lies behind; a state has the stream in it, and is reached at once.
"""

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

from fastbatch._random cimport fb_mt19937, fb_mt19937_next, fb_mt19937_seed
from fastbatch._contract cimport FB_UNCOUNTED, fb_error, fb_fail
from fastbatch.orders._order cimport (
    FB_ORDER_CAFFE_RECORDS, FB_ORDER_CAPSULE, begin_head, fb_order, fb_pick, fb_state_check, fb_state_head, free_order
)


# ---- Draws ----

cdef struct Draws:  # those that Caffe's DataTransformer makes for each sample
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
    """Goes to where `wanted` numbers have been drawn, from where `drawn` have."""
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
    uint64_t count  # FB_UNCOUNTED before anybody has come to the last record
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
        return fb_fail(error, "this state belongs to a database of %llu records, and this one has %llu", <unsigned long long>saved.count,
                       <unsigned long long>records.count)
    if records.count == FB_UNCOUNTED:
        records.count = saved.count
    records.head = saved.head
    records.draws.stream = saved.stream
    next[0] = saved.head.next
    return 0


def records(count, uint32_t seed, bint mirror, bint crop, uint64_t rank, uint64_t ranks):
    """A capsule of an fb_order (native/order.h): record rank, rank + ranks, ... modulo `count`, which may be None."""
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
