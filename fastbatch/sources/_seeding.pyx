# cython: language_level=3
"""Seeding the global random numbers of a worker process, for each sample anew."""

import _random
import random
import sys

import numpy

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastbatch._random cimport (
    FB_MT19937_SEEDS, FB_MT19937_START, FB_MT19937_WORDS, fb_mt19937_seed_as_python, fb_mt19937_seed_words
)

cdef enum:
    MOST_SEEDS = 16

cdef tuple TRIED = (0, 1, 2**32 - 1, 2**32, 2**64 - 1, 0x9E3779B97F4A7C15)  # seeds of one word, and of two


@cython.final
cdef class Seeder:
    """Seeds the generators of `random`, `numpy.random` and, once it is imported, `torch`.

    random.seed() takes longer than a small sample, half of the time for numbers that are the same for every seed. So
    its generator, an MT19937, is seeded in place, if it is found to be where CPython has it, and to have the state that
    random.seed() gives it. Otherwise, random.seed() is called. States for the samples that follow are made at the same
    time, if their seeds are known.
    """

    cdef object python  # the generator of `random`
    cdef object numpy  # the function that seeds numpy.random
    cdef dict modules
    cdef char *state  # of `python`: its words; NULL: nobody knows where they are
    cdef char *used  # an int32_t: how many of them were given out
    cdef uint32_t[FB_MT19937_WORDS] start
    cdef uint64_t[MOST_SEEDS + FB_MT19937_SEEDS] seeds  # that are expected; some zeros follow
    cdef int expected  # how many
    cdef int next  # which of them
    cdef uint32_t[FB_MT19937_SEEDS][FB_MT19937_WORDS] states  # of the last seeds before `made`
    cdef int made
    cdef readonly bint in_place
    """Whether the generator of `random` is seeded in place."""

    def __init__(self):
        self.numpy = numpy.random.seed  # what users' code draws from
        self.modules = sys.modules
        fb_mt19937_seed_words(self.start, FB_MT19937_START)
        self.python = getattr(random.seed, "__self__", None)
        if type(self.python) is random.Random:
            before = self.python.getstate()
            try:
                self.find_state()
                self.in_place = self.state != NULL and all([self.is_right(seed) for seed in TRIED])
            finally:
                self.python.setstate(before)

    cdef int find_state(self) except -1:
        """Looks for the words of the state in the generator's memory."""
        cdef char *memory = <char *><PyObject *>self.python
        cdef bytes content
        cdef Py_ssize_t place
        cdef int32_t before, after
        self.python.seed(0)
        words = numpy.array(self.python.getstate()[1][:FB_MT19937_WORDS], numpy.uint32).tobytes()
        content = PyBytes_FromStringAndSize(memory, _random.Random.__basicsize__)
        place = content.find(words)
        if place < <Py_ssize_t>(sizeof(PyObject) + sizeof(int32_t)):
            return 0
        memcpy(&before, memory + place - sizeof(before), sizeof(before))
        self.python.random()  # takes two words of the next FB_MT19937_WORDS
        memcpy(&after, memory + place - sizeof(after), sizeof(after))
        if before == FB_MT19937_WORDS and after == 2:
            self.state = memory + place
            self.used = self.state - sizeof(before)
        return 0

    cdef bint is_right(self, uint64_t seed) except -1:
        """Whether the generator has the same state as after random.seed()."""
        self.python.gauss(0, 1)
        self.seed_in_place(seed)
        state = self.python.getstate()
        self.python.seed(seed)
        return state == self.python.getstate()

    cdef int seed_in_place(self, uint64_t seed) except -1:
        cdef int32_t used = FB_MT19937_WORDS
        if self.next >= self.expected or self.seeds[self.next] != seed:
            self.expect([seed])
        if self.next >= self.made:
            fb_mt19937_seed_as_python(self.states, self.start, &self.seeds[self.next])
            self.made = self.next + FB_MT19937_SEEDS
        memcpy(self.state, self.states[self.next - (self.made - FB_MT19937_SEEDS)], sizeof(self.start))
        memcpy(self.used, &used, sizeof(used))
        self.python.gauss_next = None
        self.next += 1
        return 0

    def expect(self, list seeds not None):
        """Says which seeds come next, in this order: at most MOST_SEEDS. Others may come all the same."""
        cdef int i
        self.expected = min(<int>len(seeds), MOST_SEEDS)
        self.next = self.made = 0
        for i in range(self.expected):
            self.seeds[i] = seeds[i]
        for i in range(self.expected, self.expected + FB_MT19937_SEEDS):
            self.seeds[i] = 0

    def seed(self, uint64_t seed):
        """Seeds all of them."""
        if self.in_place:
            self.seed_in_place(seed)
        else:
            random.seed(seed)
        self.numpy(seed & 0xFFFFFFFF)
        generator = getattr(self.modules.get("torch"), "default_generator", None)
        if generator is not None:
            generator.manual_seed(seed)
