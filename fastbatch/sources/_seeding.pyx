# cython: language_level=3
"""Seeding the global random numbers of a worker process, for each sample anew.

Together, random.seed(), numpy.random.seed() and torch.manual_seed() take longer than a small sample: each of them makes
the words of an MT19937, one after the other. Here, the words for several samples are made at a time, and put into the
generators. This is tried out first: a generator that then has another state than after its own seeding is seeded by its
own function.
"""

import _random
import random
import sys

import numpy

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset

from fastbatch._random cimport (
    FB_MT19937_SEEDS, FB_MT19937_START, FB_MT19937_WORDS, fb_mt19937_seed_as_python, fb_mt19937_seed_together,
    fb_mt19937_seed_words
)
from fastbatch.sources._mailbox cimport FB_MAX_QUESTIONS

cdef tuple TRIED = (0, 1, 2**32 - 1, 2**32, 2**64 - 1, 0x9E3779B97F4A7C15)  # seeds of one word, and of two


@cython.final
cdef class Seeder:
    """Seeds the generators of `random`, `numpy.random` and, once it is imported, `torch`."""

    cdef Words words
    cdef PythonGenerator python
    cdef NumPyGenerator numpy
    cdef TorchGenerator torch
    cdef dict modules

    def __init__(self):
        self.words = Words()
        self.python = PythonGenerator(self.words)
        self.numpy = NumPyGenerator(self.words)
        self.torch = TorchGenerator(None, self.words)
        self.modules = sys.modules

    def expect(self, list seeds not None):
        """Says which seeds come next, in this order: at most FB_MAX_QUESTIONS. Others may come all the same."""
        self.words.expect(seeds)

    def seed(self, uint64_t seed):
        """Seeds all of them."""
        generator = getattr(self.modules.get("torch"), "default_generator", None)
        if generator is not self.torch.generator:
            self.torch = TorchGenerator(generator, self.words)
        self.words.make(seed)
        self.python.seed(seed, self.words)
        self.numpy.seed(seed, self.words)
        if generator is not None:
            self.torch.seed(seed, self.words)

    @property
    def by_words(self):
        """The modules whose generators are given the words that are made here, as a set of strings."""
        found = {"random": self.python.state, "numpy": self.numpy.state, "torch": self.torch.state}
        return {module for module, state in found.items() if state is not None}


@cython.final
cdef class Words:
    """The words of the generators for one seed after the other, of which several are made at a time."""

    cdef uint32_t[FB_MT19937_WORDS] start
    cdef uint64_t[FB_MAX_QUESTIONS + FB_MT19937_SEEDS] seeds  # that are expected; some zeros follow
    cdef int expected  # how many
    cdef int next  # which of them
    cdef int made  # those of the last FB_MT19937_SEEDS seeds before this one are there
    cdef uint32_t[FB_MT19937_SEEDS][FB_MT19937_WORDS] all_python
    cdef uint32_t[FB_MT19937_SEEDS][FB_MT19937_WORDS] all_usual
    cdef const uint32_t *python  # of the seed for which make() was called: what `random` makes of it, ...
    cdef const uint32_t *usual  # ... and what the others make of its lower 32 bits

    def __init__(self):
        fb_mt19937_seed_words(self.start, FB_MT19937_START)

    cdef int expect(self, list seeds) except -1:
        cdef int i
        self.expected = min(<int>len(seeds), FB_MAX_QUESTIONS)
        self.next = self.made = 0
        for i in range(self.expected):
            self.seeds[i] = seeds[i]
        for i in range(self.expected, self.expected + FB_MT19937_SEEDS):
            self.seeds[i] = 0

    cdef int make(self, uint64_t seed) except -1:
        cdef int row
        if self.next >= self.expected or self.seeds[self.next] != seed:
            self.expect([seed])
        if self.next >= self.made:
            fb_mt19937_seed_as_python(self.all_python, self.start, &self.seeds[self.next])
            fb_mt19937_seed_together(self.all_usual, &self.seeds[self.next])
            self.made = self.next + FB_MT19937_SEEDS
        row = self.next - (self.made - FB_MT19937_SEEDS)
        self.python = self.all_python[row]
        self.usual = self.all_usual[row]
        self.next += 1


# Each of the following has a `state`: what the words are put into, or None if the generator has to be seeded by itself.

@cython.final
cdef class PythonGenerator:
    """The generator of `random`. Its words are found in its memory."""

    cdef object state  # the generator
    cdef char *words
    cdef char *used  # an int32_t: how many of them were given out

    def __init__(self, Words words not None):
        generator = getattr(random.seed, "__self__", None)
        if type(generator) is not random.Random:
            return
        before = generator.getstate()
        try:
            if self.find_words(generator):
                self.state = generator
                if not all([self.is_right(seed, words) for seed in TRIED]):
                    self.state = None
        finally:
            generator.setstate(before)

    cdef bint find_words(self, generator) except -1:
        cdef char *memory = <char *><PyObject *>generator
        cdef int32_t before, after
        generator.seed(0)
        words = numpy.array(generator.getstate()[1][:FB_MT19937_WORDS], numpy.uint32).tobytes()
        content = PyBytes_FromStringAndSize(memory, _random.Random.__basicsize__)
        self.words = memory + <Py_ssize_t>content.find(words)
        self.used = self.words - sizeof(int32_t)
        if self.used < memory + sizeof(PyObject):
            return False
        memcpy(&before, self.used, sizeof(before))
        generator.random()  # takes two words of the next FB_MT19937_WORDS
        memcpy(&after, self.used, sizeof(after))
        return before == FB_MT19937_WORDS and after == 2

    cdef bint is_right(self, uint64_t seed, Words words) except -1:
        self.state.gauss(0, 1)  # makes two numbers, and keeps one for the next call
        words.make(seed)
        self.seed(seed, words)
        state = self.state.getstate()
        self.state.seed(seed)
        return state == self.state.getstate()

    cdef int seed(self, uint64_t seed, Words words) except -1:
        cdef int32_t used = FB_MT19937_WORDS
        if self.state is None:
            random.seed(seed)
        else:
            memcpy(self.words, words.python, sizeof(words.start))
            memcpy(self.used, &used, sizeof(used))
            self.state.gauss_next = None


@cython.final
cdef class NumPyGenerator:
    """The generator of `numpy.random`, whose words have a public address.

    A normal number that it keeps for the next call has none. So a generator that was used is seeded by itself.
    """

    cdef object generator
    cdef object state  # the part with the words
    cdef uint32_t *words
    cdef int *used  # how many of them were given out
    cdef uint32_t[FB_MT19937_WORDS] left  # the words as they are if nobody has used them

    def __init__(self, Words words not None):
        self.generator = getattr(numpy.random.get_state, "__self__", None)
        state = getattr(self.generator, "_bit_generator", None)
        if type(state) is not numpy.random.MT19937:
            return
        self.words = <uint32_t *><uintptr_t>state.ctypes.state_address
        self.used = <int *>(self.words + FB_MT19937_WORDS)
        before = numpy.random.get_state()
        try:
            self.state = state
            if not all([self.is_right(seed, words) for seed in TRIED]):
                self.state = None
        finally:
            numpy.random.set_state(before)
            memset(self.left, 0, sizeof(self.left))

    cdef bint is_right(self, uint64_t seed, Words words) except -1:
        numpy.random.seed(seed & 0xFFFFFFFF)
        words.make(seed)
        known = numpy.random.get_state()[1].tobytes()
        if memcmp(self.words, words.usual, sizeof(self.left)) or self.used[0] != FB_MT19937_WORDS:
            return False
        return known == PyBytes_FromStringAndSize(<char *>words.usual, sizeof(self.left))

    cdef int seed(self, uint64_t seed, Words words) except -1:
        if self.state is not None and self.is_unused():
            memcpy(self.words, words.usual, sizeof(self.left))
        else:
            numpy.random.seed(seed & 0xFFFFFFFF)
        memcpy(self.left, words.usual, sizeof(self.left))

    cdef bint is_unused(self):
        return (
            self.generator._bit_generator is self.state
            and self.used[0] == FB_MT19937_WORDS
            and memcmp(self.words, self.left, sizeof(self.left)) == 0
        )


@cython.final
cdef class TorchGenerator:
    """The generator of torch, which takes a whole state faster than a seed."""

    cdef object generator
    cdef object state  # a tensor
    cdef object set_state
    cdef uint64_t *content  # of the tensor: the seed, two numbers, the words as 64-bit numbers, and more

    def __init__(self, generator, Words words not None):
        self.generator = generator
        if generator is None:
            return
        before = generator.get_state()
        try:
            generator.manual_seed(0)
            state = generator.get_state()
            try:
                content = state.numpy()
            except RuntimeError:  # this torch was built for another NumPy
                return
            if content.nbytes >= (3 + FB_MT19937_WORDS) * sizeof(uint64_t):
                self.content = <uint64_t *><uintptr_t>content.ctypes.data
                self.set_state = generator.set_state
                self.state = state
                if not all([self.is_right(seed, words) for seed in TRIED]):
                    self.state = None
        finally:
            generator.set_state(before)

    cdef bint is_right(self, uint64_t seed, Words words) except -1:
        words.make(seed)
        self.seed(seed, words)
        found = self.generator.get_state()
        self.generator.manual_seed(seed)
        return found.equal(self.generator.get_state())

    cdef int seed(self, uint64_t seed, Words words) except -1:
        cdef int i
        if self.state is None:
            self.generator.manual_seed(seed)
        else:
            self.content[0] = seed
            for i in range(FB_MT19937_WORDS):
                self.content[3 + i] = words.usual[i]
            self.set_state(self.state)
