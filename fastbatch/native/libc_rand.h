/* Inspects the state of C's rand(), with which Caffe's HDF5Data shuffles, without drawing from it.
 *
 * rand() has one state per process, and no function returns it. However, glibc's initstate() gives rand() another state
 * and returns the old one, whose first word holds its kind and position. setstate() restores it. (See glibc's manual,
 * "BSD Random", and stdlib/random_r.c.) Between the two calls rand() draws from the other state. A thread that calls
 * rand() at that moment gets a number of the wrong stream; at any other moment its number would be unpredictable, too.
 */
#ifndef FASTBATCH_RAND_H
#define FASTBATCH_RAND_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FB_RAND_WORDS 64 /* of the largest kind of state; rand() begins with one of 32 */

typedef struct fb_rand {
    int32_t words[FB_RAND_WORDS];
    int used; /* of them */
} fb_rand;

static inline int32_t *fb_rand_borrow(char spare[4 * FB_RAND_WORDS]) {
    return (int32_t *)(void *)initstate(1, spare, 4 * FB_RAND_WORDS);
}

/* A copy of the state that rand() has now. */
static inline void fb_rand_get(fb_rand *copy) {
    static const int words_of_kind[5] = {2, 8, 16, 32, 64};
    _Alignas(int32_t) char spare[4 * FB_RAND_WORDS];
    int32_t *state = fb_rand_borrow(spare);
    memset(copy, 0, sizeof *copy);
    copy->used = words_of_kind[state[0] % 5];
    memcpy(copy->words, state, 4 * (size_t)copy->used);
    setstate((char *)state);
}

/* Makes rand() go on from a copy of its state, changed by draws. */
static inline void fb_rand_set(const fb_rand *copy) {
    _Alignas(int32_t) char spare[4 * FB_RAND_WORDS];
    int32_t *state = fb_rand_borrow(spare);
    memcpy(state, copy->words, 4 * (size_t)copy->used);
    setstate((char *)state);
}

static inline int fb_rand_same(const fb_rand *a, const fb_rand *b) {
    return a->used == b->used && memcmp(a->words, b->words, 4 * (size_t)a->used) == 0;
}

/* For drawing from a copy as rand() would: open, next, next, ..., close. */
typedef struct fb_rand_draws {
    struct random_data data;
    _Alignas(int32_t) char spare[4 * FB_RAND_WORDS];
    fb_rand *copy;
} fb_rand_draws;

static inline void fb_rand_open(fb_rand_draws *draws, fb_rand *copy) {
    memset(&draws->data, 0, sizeof draws->data);
    initstate_r(1, draws->spare, sizeof draws->spare, &draws->data);
    setstate_r((char *)copy->words, &draws->data);
    draws->copy = copy;
}

static inline int32_t fb_rand_next(fb_rand_draws *draws) {
    int32_t number;
    random_r(&draws->data, &number);
    return number;
}

/* Only now does the copy hold how far it has got. */
static inline void fb_rand_close(fb_rand_draws *draws) {
    setstate_r(draws->spare, &draws->data);
}

/* libstdc++'s std::random_shuffle(first, last). */
static inline void fb_rand_shuffle(uint32_t *order, uint64_t count, fb_rand *copy) {
    fb_rand_draws draws;
    fb_rand_open(&draws, copy);
    for (uint64_t i = 1; i < count; i++) {
        const uint64_t j = (uint64_t)fb_rand_next(&draws) % (i + 1);
        const uint32_t other = order[j];
        order[j] = order[i];
        order[i] = other;
    }
    fb_rand_close(&draws);
}

#endif
