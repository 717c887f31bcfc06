/* Every random number of fastbatch: Caffe's own stream, the counter-based draws of one sample, and the shuffle.
 *
 * What these functions return is a format: the same seed gives the same batches for as long as the major version
 * stays the same. All of it is plain arithmetic on the arguments, safe from any thread (an fb_mt19937 belongs to one
 * thread at a time).
 */
#ifndef FASTBATCH_RANDOM_H
#define FASTBATCH_RANDOM_H

#include <stdint.h>

#define FB_MT19937_WORDS 624

/* MT19937 as Caffe seeds and reads it (boost::mt19937: 32-bit seed, init_genrand). Matsumoto and Nishimura, 1998. */
typedef struct fb_mt19937 {
    uint32_t state[FB_MT19937_WORDS];
    int used; /* words of `state` already given out */
} fb_mt19937;

static inline void fb_mt19937_seed_words(uint32_t state[FB_MT19937_WORDS], uint32_t seed) {
    state[0] = seed;
    for (uint32_t i = 1; i < FB_MT19937_WORDS; i++) {
        state[i] = 1812433253u * (state[i - 1] ^ (state[i - 1] >> 30)) + i;
    }
}

static inline void fb_mt19937_seed(fb_mt19937 *generator, uint32_t seed) {
    fb_mt19937_seed_words(generator->state, seed);
    generator->used = FB_MT19937_WORDS;
}

/* States of several seeds, made together: each word needs the one before it, so that a processor makes four states in
 * the time of one and a half. */
#define FB_MT19937_SEEDS 4

/* As fb_mt19937_seed_words() makes them of the seeds' lower 32 bits. */
static inline void fb_mt19937_seed_together(uint32_t states[FB_MT19937_SEEDS][FB_MT19937_WORDS],
                                            const uint64_t seeds[FB_MT19937_SEEDS]) {
    uint32_t word[FB_MT19937_SEEDS];
    for (int s = 0; s < FB_MT19937_SEEDS; s++) { states[s][0] = word[s] = (uint32_t)seeds[s]; }
    for (uint32_t i = 1; i < FB_MT19937_WORDS; i++) {
        for (int s = 0; s < FB_MT19937_SEEDS; s++) {
            states[s][i] = word[s] = 1812433253u * (word[s] ^ word[s] >> 30) + i;
        }
    }
}

/* As Python's random.seed(seed) makes them (init_by_array of the same authors, 2002, with the one or two words of the
 * seed as the key). start: of fb_mt19937_seed_words(start, FB_MT19937_START), the same for every seed. */
#define FB_MT19937_START 19650218u

static inline void fb_mt19937_seed_as_python(uint32_t states[FB_MT19937_SEEDS][FB_MT19937_WORDS],
                                             const uint32_t start[FB_MT19937_WORDS],
                                             const uint64_t seeds[FB_MT19937_SEEDS]) {
    enum { SEEDS = FB_MT19937_SEEDS, WORDS = FB_MT19937_WORDS };
    uint32_t added[2][SEEDS], word[SEEDS]; /* added: a word of the key and its number, in turns */
    for (int s = 0; s < SEEDS; s++) {
        const uint32_t low = (uint32_t)seeds[s], high = (uint32_t)(seeds[s] >> 32);
        added[0][s] = low;
        added[1][s] = high ? high + 1 : low;
        word[s] = start[0];
    }
    for (uint32_t i = 1; i < WORDS; i++) {
        for (int s = 0; s < SEEDS; s++) {
            states[s][i] = word[s] = (start[i] ^ (word[s] ^ word[s] >> 30) * 1664525u) + added[(i - 1) & 1][s];
        }
    }
    for (int s = 0; s < SEEDS; s++) {
        states[s][1] = word[s] = (states[s][1] ^ (word[s] ^ word[s] >> 30) * 1664525u) + added[(WORDS - 1) & 1][s];
    }
    for (uint32_t i = 2; i < WORDS; i++) {
        for (int s = 0; s < SEEDS; s++) {
            states[s][i] = word[s] = (states[s][i] ^ (word[s] ^ word[s] >> 30) * 1566083941u) - i;
        }
    }
    for (int s = 0; s < SEEDS; s++) {
        states[s][1] = (states[s][1] ^ (word[s] ^ word[s] >> 30) * 1566083941u) - 1;
        states[s][0] = 0x80000000u;
    }
}

/* The next raw 32-bit draw of the stream. Seed 1701 begins 384112814, 2227967492, 495543390. */
static inline uint32_t fb_mt19937_next(fb_mt19937 *generator) {
    uint32_t *state = generator->state;
    if (generator->used == 624) {
        for (int i = 0; i < 624; i++) {
            uint32_t word = (state[i] & 0x80000000u) | (state[(i + 1) % 624] & 0x7fffffffu);
            state[i] = state[(i + 397) % 624] ^ (word >> 1) ^ (word & 1 ? 0x9908b0dfu : 0);
        }
        generator->used = 0;
    }
    uint32_t word = state[generator->used++];
    word ^= word >> 11;
    word ^= (word << 7) & 0x9d2c5680u;
    word ^= (word << 15) & 0xefc60000u;
    return word ^ (word >> 18);
}

/* Philox4x32-10: four random words that are a pure function of counter and key.
 * Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
static inline void fb_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t even = (uint64_t)0xd2511f53u * c0, odd = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(odd >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)odd;
        c2 = (uint32_t)(even >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)even;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* What draws are for: the last word of the counter, so that no purpose sees another's numbers. Never renumbered. */
enum {
    FB_DRAW_TRANSFORM = 0,
    FB_DRAW_SHUFFLE = 1,
    FB_DRAW_REPLACEMENT = 2, /* + 256 * attempt */
    FB_DRAW_WINDOWS = 3,     /* of an order: where they begin */
    FB_DRAW_WINDOW = 4,      /* the seed of the shuffle in one of them */
    FB_DRAW_WEIGHTED = 5
};

/* Four raw draws that belong to one sample in one epoch, whichever thread asks and whenever. */
static inline void fb_sample_draws(uint64_t seed, uint32_t epoch, uint64_t sample, uint32_t purpose, uint32_t out[4]) {
    const uint32_t counter[4] = {(uint32_t)sample, (uint32_t)(sample >> 32), epoch, purpose};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    fb_philox4x32(counter, key, out);
}

/* A seed for a sample's own random numbers, made of its draws. The finalizer of SplitMix64: Steele, Lea, Flood, "Fast
 * splittable pseudorandom number generators", OOPSLA 2014. */
static inline uint64_t fb_mix_draws(const uint32_t draws[4]) {
    uint64_t seed = 0;
    for (int i = 0; i < 4; i += 2) {
        seed += UINT64_C(0x9e3779b97f4a7c15) + ((uint64_t)draws[i + 1] << 32 | draws[i]);
        seed = (seed ^ (seed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        seed = (seed ^ (seed >> 27)) * UINT64_C(0x94d049bb133111eb);
        seed ^= seed >> 31;
    }
    return seed;
}

/* More draws of the same sample, made of its four draws for the transform: the last three of them are the key. `what`
 * says what for, and is never renumbered; `i` counts. */
enum { FB_DRAW_RESIZED_CROP = 0, FB_DRAW_COLORS = 1 };

static inline void fb_more_draws(const uint32_t draws[4], uint32_t what, uint32_t i, uint32_t out[4]) {
    const uint32_t counter[4] = {i, what, draws[3], 0};
    fb_philox4x32(counter, draws + 1, out);
}

/* A raw draw as a number 0 .. n - 1. Its bias is below n / 2^32. */
static inline uint32_t fb_scale_draw(uint32_t raw, uint32_t n) {
    return (uint32_t)(((uint64_t)raw * n) >> 32);
}

#define FB_SHUFFLE_ROUNDS 8
#define FB_SHUFFLE_MIN_BITS 8

/* Where position `position` (< count) of the epoch's shuffle points: a permutation of 0 .. count - 1 that needs no
 * memory.
 *
 * A Feistel network permutes the numbers of the fewest bits that hold `count`, in two halves, each changed in turn by
 * one Philox word that is a function of the other; a result that is not below count is put through again until it is
 * ("cycle walking", Black and Rogaway 2002), less than twice on average except for tiny counts.
 *
 * Rounds and smallest size were found by chi-square tests over all n! orders of n = 2 .. 5 and over the pairs
 * (position, value) and (value, next value) of n up to 1024. With 4 rounds a bias shows within 20,000 shuffles of 255;
 * with 6 and with 8 none did in 1,500,000 shuffles of 2 .. 5, 375,000 of 6 .. 50 and 40,000 of 256. A network of 4
 * bits favors some orders of 5 even after 12 rounds; 6 bits passed. 8 rounds and 8 bits leave a margin to both.
 * tests/native/test_random.c keeps these tests, on fewer shuffles.
 */
static inline uint64_t fb_permute(uint64_t seed, uint32_t epoch, uint64_t count, uint64_t position) {
    if (count < 2) return 0;
    unsigned bits = FB_SHUFFLE_MIN_BITS;
    while (bits < 64 && (count - 1) >> bits) bits++;
    const unsigned low_bits = bits / 2;
    const uint32_t low_mask = (uint32_t)((UINT64_C(1) << low_bits) - 1);
    const uint32_t high_mask = (uint32_t)((UINT64_C(1) << (bits - low_bits)) - 1);
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint64_t value = position;
    do {
        uint32_t high = (uint32_t)(value >> low_bits), low = (uint32_t)value & low_mask;
        for (uint32_t round = 0; round < FB_SHUFFLE_ROUNDS; round += 2) {
            const uint32_t even[4] = {low, round, epoch, FB_DRAW_SHUFFLE};
            uint32_t words[4];
            fb_philox4x32(even, key, words);
            high ^= words[0] & high_mask;
            const uint32_t odd[4] = {high, round + 1, epoch, FB_DRAW_SHUFFLE};
            fb_philox4x32(odd, key, words);
            low ^= words[0] & low_mask;
        }
        value = (uint64_t)high << low_bits | low;
    } while (value >= count);
    return value;
}

#endif
