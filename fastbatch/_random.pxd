"""native/random.h for Cython: random streams, keyed draws and the keyed permutation."""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "random.h" nogil:
    ctypedef struct fb_mt19937:
        int used
    enum:
        FB_MT19937_WORDS
        FB_MT19937_START
        FB_MT19937_SEEDS
        FB_DRAW_TRANSFORM
        FB_DRAW_SHUFFLE
        FB_DRAW_REPLACEMENT
        FB_DRAW_WINDOWS
        FB_DRAW_WINDOW
        FB_DRAW_WEIGHTED
    void fb_mt19937_seed(fb_mt19937 *stream, uint32_t seed) noexcept
    void fb_mt19937_seed_words(uint32_t *state, uint32_t seed) noexcept
    void fb_mt19937_seed_together(uint32_t (*states)[FB_MT19937_WORDS], const uint64_t *seeds) noexcept
    void fb_mt19937_seed_as_python(uint32_t (*states)[FB_MT19937_WORDS], const uint32_t *start,
                                   const uint64_t *seeds) noexcept
    uint32_t fb_mt19937_next(fb_mt19937 *stream) noexcept
    void fb_sample_draws(uint64_t seed, uint32_t epoch, uint64_t sample, uint32_t purpose, uint32_t out[4]) noexcept
    uint64_t fb_mix_draws(const uint32_t draws[4]) noexcept
    uint64_t fb_permute(uint64_t seed, uint32_t epoch, uint64_t count, uint64_t position) noexcept
