# cython: language_level=3
"""The orders behind `Linear`, `Permuted`, `Windowed`, `Weighted`, `Endless` and `Sharded`.

They have no stream, so they answer any position directly, in any order.
"""

from fastbatch._text import counted, there_are

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.math cimport nextafter
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

from fastbatch._capsules cimport owning_capsule, take_owner
from fastbatch._random cimport (
    FB_DRAW_TRANSFORM, FB_DRAW_WEIGHTED, FB_DRAW_WINDOW, FB_DRAW_WINDOWS, fb_permute, fb_sample_draws
)
from fastbatch._contract cimport fb_error
from fastbatch.orders._order cimport (
    FB_ORDER_CAPSULE, FB_ORDER_LINEAR, FB_ORDER_PERMUTED, FB_ORDER_SHARDED, FB_ORDER_WEIGHTED, FB_ORDER_WINDOWED,
    begin_head, fb_order, fb_order_kind, fb_pick, fb_state_check, fb_state_head, free_order
)


ctypedef void (*pure_at_function)(const void *self, uint64_t position, fb_pick *pick) noexcept nogil

cdef double TWO_TO_MINUS_53 = 2.0**-53


cdef void free_wrapper(object capsule) noexcept:
    take_owner(capsule)
    free_order(capsule)


# ---- Whole orders ----

cdef struct Plain:
    fb_order order
    uint64_t count
    uint64_t seed
    uint64_t window  # samples in one, of a windowed order
    const double *sums  # of the weights up to each sample, of a weighted order; its owner is the capsule's
    char[64] padding  # workers read the members above while the sequencer writes those below
    fb_state_head head


cdef void linear_pure_at(const void *self, uint64_t position, fb_pick *pick) noexcept nogil:
    cdef const Plain *plain = <const Plain *>self
    pick.epoch = position // plain.count
    pick.index = pick.drawn_by = position - pick.epoch * plain.count


cdef void permuted_pure_at(const void *self, uint64_t position, fb_pick *pick) noexcept nogil:
    cdef const Plain *plain = <const Plain *>self
    linear_pure_at(self, position, pick)
    pick.index = pick.drawn_by = fb_permute(plain.seed, <uint32_t>pick.epoch, plain.count, pick.index)


cdef uint64_t draw64(const Plain *plain, uint64_t epoch, uint64_t number, uint32_t purpose) noexcept nogil:
    cdef uint32_t[4] draws
    fb_sample_draws(plain.seed, <uint32_t>epoch, number, purpose, draws)
    return <uint64_t>draws[1] << 32 | draws[0]


cdef void windowed_pure_at(const void *self, uint64_t position, fb_pick *pick) noexcept nogil:
    """Windows of consecutive samples come in a new order, and so do the samples in each.

    What is left over after the last whole window is the last window of every epoch. So that it is not always the same,
    the first window begins somewhere else in each epoch, and the last sample is followed by the first one.
    """
    cdef const Plain *plain = <const Plain *>self
    cdef uint64_t whole = plain.count // plain.window
    cdef uint64_t size = plain.window
    cdef uint64_t number, begin, offset
    linear_pure_at(self, position, pick)
    number = pick.index // plain.window
    offset = pick.index - number * plain.window
    if number < whole:
        number = fb_permute(plain.seed, <uint32_t>pick.epoch, whole, number)
    else:
        size = plain.count - whole * plain.window
    offset = fb_permute(draw64(plain, pick.epoch, number, FB_DRAW_WINDOW), <uint32_t>pick.epoch, size, offset)
    begin = draw64(plain, pick.epoch, 0, FB_DRAW_WINDOWS) % plain.count
    pick.index = pick.drawn_by = (begin + number * plain.window + offset) % plain.count


cdef void weighted_pure_at(const void *self, uint64_t position, fb_pick *pick) noexcept nogil:
    """Draws a number below the sum of all weights, and takes the first sample up to which they sum up to more."""
    cdef const Plain *plain = <const Plain *>self
    cdef uint64_t low = 0
    cdef uint64_t high = plain.count - 1
    cdef uint64_t middle
    cdef double total = plain.sums[high]
    cdef double drawn
    linear_pure_at(self, position, pick)
    drawn = (draw64(plain, pick.epoch, pick.index, FB_DRAW_WEIGHTED) >> 11) * TWO_TO_MINUS_53 * total
    drawn = min(drawn, nextafter(total, 0))  # tiny products are rounded up
    while low < high:
        middle = low + (high - low) // 2
        if plain.sums[middle] > drawn:
            high = middle
        else:
            low = middle + 1
    pick.index = low


cdef int plain_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    cdef Plain *plain = <Plain *>self
    plain.order.pure_at(plain, position, pick)
    plain.head.next = position + 1
    return 0


cdef void plain_draw(const void *self, fb_pick *pick) noexcept nogil:
    fb_sample_draws((<const Plain *>self).seed, <uint32_t>pick.epoch, pick.drawn_by, FB_DRAW_TRANSFORM, pick.draws)


cdef void plain_save(const void *self, void *state) noexcept nogil:
    memcpy(state, &(<const Plain *>self).head, sizeof(fb_state_head))


cdef int plain_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    cdef Plain *plain = <Plain *>self
    if fb_state_check(state, &plain.head, error) != 0:
        return -1
    memcpy(&plain.head, state, sizeof(fb_state_head))
    next[0] = plain.head.next
    return 0


cdef Plain *plain(fb_order_kind kind, pure_at_function pure_at, uint64_t count, uint64_t seed) except NULL:
    cdef Plain *plain = <Plain *>calloc(1, sizeof(Plain))
    if plain == NULL:
        raise MemoryError()
    plain.count = count
    plain.seed = seed
    begin_head(&plain.head, kind)
    plain.head.settings[0] = count
    plain.head.settings[1] = seed
    plain.order.self = plain
    plain.order.count = plain.order.real = count
    plain.order.at = plain_at
    plain.order.pure_at = pure_at
    plain.order.draw = plain_draw
    plain.order.state_size = sizeof(fb_state_head)
    plain.order.save = plain_save
    plain.order.load = plain_load
    return plain


def linear(count, seed):
    """Returns a capsule of an fb_order (native/order.h): 0, 1, ..., count - 1, repeatedly."""
    return PyCapsule_New(plain(FB_ORDER_LINEAR, linear_pure_at, count, seed), FB_ORDER_CAPSULE, free_order)


def permuted(count, seed):
    """Returns a capsule of an fb_order (native/order.h): a new permutation of 0 .. count - 1 for each epoch."""
    return PyCapsule_New(plain(FB_ORDER_PERMUTED, permuted_pure_at, count, seed), FB_ORDER_CAPSULE, free_order)


def windowed(count, seed, uint64_t window):
    """Returns a capsule of an fb_order (native/order.h): a permutation for each epoch that moves through windows."""
    cdef Plain *order = plain(FB_ORDER_WINDOWED, windowed_pure_at, count, seed)
    order.window = order.head.settings[2] = window
    return PyCapsule_New(order, FB_ORDER_CAPSULE, free_order)


def weighted(sums, seed, uint32_t check):
    """Returns a capsule of an fb_order (native/order.h): samples drawn by their weights.

    `sums[i]`, of a contiguous array of float64, is the sum of the weights of the samples up to i, and `check` a number
    that only these weights have.
    """
    cdef Plain *order = plain(FB_ORDER_WEIGHTED, weighted_pure_at, len(sums), seed)
    order.sums = <const double *><uintptr_t>sums.ctypes.data  # a memoryview would bring functions that take the GIL
    order.head.settings[2] = check
    return owning_capsule(order, FB_ORDER_CAPSULE, free_wrapper, sums)


# ---- Endless ----

def endless(whole):
    """Returns a capsule of an fb_order (native/order.h): the order in the capsule `whole`, without ends of epochs.

    Positions continue across epochs, so only the number of positions in an epoch differs.
    """
    cdef const fb_order *ended = <const fb_order *>PyCapsule_GetPointer(whole, FB_ORDER_CAPSULE)
    cdef fb_order *order
    if ended.count == 0:
        raise TypeError("this order has no ends of epochs already")
    order = <fb_order *>calloc(1, sizeof(fb_order))
    if order == NULL:
        raise MemoryError()
    order[0] = ended[0]
    order.count = order.real = 0
    order.cycle = ended.count
    order.stride = 1
    return owning_capsule(order, FB_ORDER_CAPSULE, free_wrapper, whole)


# ---- Sharded ----

EVEN = [None, "pad", "drop"]  # a state contains the index: never reordered

cdef struct Shard:
    fb_order order
    const fb_order *whole
    uint64_t rank
    uint64_t ranks
    char[64] padding
    fb_state_head head


cdef uint64_t position_in_whole(const Shard *shard, uint64_t position) noexcept nogil:
    cdef uint64_t epoch, offset
    if shard.order.count == 0:
        return shard.rank + position * shard.ranks
    epoch = position // shard.order.count
    offset = shard.rank + (position - epoch * shard.order.count) * shard.ranks
    if offset >= shard.whole.count:  # "pad": repeats a sample from the beginning
        offset %= shard.whole.count
    return epoch * shard.whole.count + offset


cdef int shard_at(void *self, uint64_t position, fb_pick *pick, fb_error *error) noexcept nogil:
    cdef Shard *shard = <Shard *>self
    shard.head.next = position + 1
    return shard.whole.at(shard.whole.self, position_in_whole(shard, position), pick, error)


cdef void shard_pure_at(const void *self, uint64_t position, fb_pick *pick) noexcept nogil:
    cdef const Shard *shard = <const Shard *>self
    shard.whole.pure_at(shard.whole.self, position_in_whole(shard, position), pick)


cdef void shard_draw(const void *self, fb_pick *pick) noexcept nogil:
    cdef const Shard *shard = <const Shard *>self
    shard.whole.draw(shard.whole.self, pick)


cdef void shard_save(const void *self, void *state) noexcept nogil:
    cdef const Shard *shard = <const Shard *>self
    memcpy(state, &shard.head, sizeof(fb_state_head))
    shard.whole.save(shard.whole.self, <char *>state + sizeof(fb_state_head))


cdef int shard_load(void *self, const void *state, uint64_t *next, fb_error *error) noexcept nogil:
    cdef Shard *shard = <Shard *>self
    if fb_state_check(state, &shard.head, error) != 0:
        return -1
    if shard.whole.load(shard.whole.self, <const char *>state + sizeof(fb_state_head), next, error) != 0:
        return -1
    memcpy(&shard.head, state, sizeof(fb_state_head))
    next[0] = shard.head.next
    return 0


def sharded(whole, uint64_t rank, uint64_t ranks, even, uint64_t multiple):
    """Returns a capsule of an fb_order (native/order.h): one shard of the order in the capsule `whole`.

    It has the positions rank, rank + ranks, ... of every epoch. `even` is None, "pad" or "drop"; with the latter two,
    the length is a multiple of `multiple`.
    """
    cdef const fb_order *order = <const fb_order *>PyCapsule_GetPointer(whole, FB_ORDER_CAPSULE)
    cdef Shard *shard
    cdef uint64_t length, mine
    if order.count == 0 and order.cycle == 0:
        raise TypeError("an order without ends of epochs, such as Caffe's, cannot be divided into shards")
    if order.count == 0 and even is not None:
        raise TypeError("shards of an order without ends of epochs are always even")
    mine = (order.count - rank + ranks - 1) // ranks if rank < order.count else 0
    if even is None:
        length = mine
    elif even == "pad":
        length = ((order.count + ranks - 1) // ranks + multiple - 1) // multiple * multiple
    else:
        length = order.count // ranks // multiple * multiple
    if length == 0 and order.count and multiple > 1:
        raise ValueError(f"{there_are(order.count, 'sample')}, too few for a batch of {multiple}"
                         + (f" on each of {counted(ranks, 'rank')}" if ranks > 1 else "") + ': "drop" leaves nothing')
    if length == 0 and order.count:
        raise ValueError(f"{there_are(order.count, 'sample')}, so shard {rank} of {ranks} is empty; use "
                         'fewer shards, or even="pad"')
    mine = (order.real - rank + ranks - 1) // ranks if rank < order.real else 0
    shard = <Shard *>calloc(1, sizeof(Shard))
    if shard == NULL:
        raise MemoryError()
    shard.whole = order
    shard.rank = rank
    shard.ranks = ranks
    begin_head(&shard.head, FB_ORDER_SHARDED)
    shard.head.settings[0] = order.count
    shard.head.settings[1] = rank
    shard.head.settings[2] = ranks
    shard.head.settings[3] = EVEN.index(even)
    shard.head.settings[4] = multiple
    shard.order.self = shard
    shard.order.count = length
    shard.order.real = min(mine, length)
    shard.order.cycle = order.cycle
    shard.order.stride = order.stride * ranks
    shard.order.caffe_draws = order.caffe_draws
    shard.order.at = shard_at
    if order.pure_at != NULL:
        shard.order.pure_at = shard_pure_at
    if order.draw != NULL:
        shard.order.draw = shard_draw
    shard.order.state_size = sizeof(fb_state_head) + order.state_size
    shard.order.save = shard_save
    shard.order.load = shard_load
    return owning_capsule(shard, FB_ORDER_CAPSULE, free_wrapper, whole)
