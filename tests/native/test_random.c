/* random.h against published vectors, golden values of our own formats, and chi-square tests of the shuffle. */
#include "random.h"

#include "check.h"

#include <math.h>

static void mt19937_is_caffes(void) {
    fb_mt19937 generator;
    fb_mt19937_seed(&generator, 1701);
    const uint32_t first[] = {384112814u, 2227967492u, 495543390u};
    for (int i = 0; i < 3; i++) {
        const uint32_t word = fb_mt19937_next(&generator);
        CHECK(word == first[i], "draw %d of seed 1701 is %u", i, word);
    }
    /* The C++ standard (rand.predef) requires this one: the 10,000th draw of the default seed. */
    fb_mt19937_seed(&generator, 5489);
    uint32_t word = 0;
    for (int i = 0; i < 10000; i++) word = fb_mt19937_next(&generator);
    CHECK(word == 4123659995u, "the 10,000th draw is %u", word);
}

static void philox_has_its_published_vectors(void) { /* kat_vectors of Random123, philox4x32 with 10 rounds */
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        uint32_t out[4];
        fb_philox4x32(vectors[i].counter, vectors[i].key, out);
        CHECK(memcmp(out, vectors[i].expected, sizeof out) == 0, "vector %zu: %08x %08x %08x %08x", i, out[0], out[1],
              out[2], out[3]);
    }
}

static void draws_lay_out_counter_and_key_as_written(void) {
    uint32_t out[4], expected[4];
    fb_sample_draws(0x299f31d0a4093822u, 0x13198a2e, 0x85a308d3243f6a88u, 0x03707344, out);
    const uint32_t counter[4] = {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, key[2] = {0xa4093822, 0x299f31d0};
    fb_philox4x32(counter, key, expected);
    CHECK(memcmp(out, expected, sizeof out) == 0, "sample draws are not Philox of sample, epoch and purpose");
    CHECK(FB_DRAW_TRANSFORM == 0 && FB_DRAW_SHUFFLE == 1, "purposes were renumbered");
}

static void scaled_draws_cover_their_range(void) {
    CHECK(fb_scale_draw(0, 30) == 0 && fb_scale_draw(~0u, 30) == 29, "ends of the range");
    CHECK(fb_scale_draw(0x7fffffff, 2) == 0 && fb_scale_draw(0x80000000u, 2) == 1, "halves");
    CHECK(fb_scale_draw(~0u, ~0u) == ~0u - 1 && fb_scale_draw(12345, 1) == 0, "widest and narrowest range");
}

static void shuffle_keeps_its_golden_values(void) { /* a format: these change with the major version only */
    static const struct {
        uint64_t seed;
        uint32_t epoch;
        uint64_t count;
        uint64_t expected[8];
    } golden[] = {
        {0u, 0u, 2u, {1, 0}},
        {0u, 0u, 5u, {1, 4, 2, 0, 3}},
        {1701u, 3u, 50u, {25, 6, 38, 13, 41, 11, 39, 0}},
        {1701u, 4u, 256u, {246, 48, 215, 153, 30, 86, 141, 197}},
        {16045690984503111693u, 0u, 1000u, {832, 154, 146, 281, 888, 162, 914, 961}},
        {42u, 4294967295u, 1281167u, {972949, 805603, 79547, 990647, 543476, 274136, 384414, 1237865}},
        {42u,
         0u,
         1099511627776u,
         {466282310899, 832302567620, 231404193860, 1029294262900, 841561951183, 801608854114, 429753767127,
          679960677323}},
    };
    for (size_t g = 0; g < sizeof golden / sizeof *golden; g++) {
        for (uint64_t i = 0; i < 8 && i < golden[g].count; i++) {
            const uint64_t value = fb_permute(golden[g].seed, golden[g].epoch, golden[g].count, i);
            CHECK(value == golden[g].expected[i], "case %zu, position %d: %llu", g, (int)i, (unsigned long long)value);
        }
    }
}

static void shuffle_is_a_permutation(void) {
    static const uint64_t counts[] = {1, 2, 3, 5, 255, 256, 257, 511, 512, 513, 1000, 4097, 65537, 100003};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        const uint64_t count = counts[c];
        unsigned char *seen = calloc(count, 1);
        for (uint64_t i = 0; i < count; i++) {
            const uint64_t value = fb_permute(42, 7, count, i);
            CHECK(value < count && !seen[value], "count %d: %llu twice or out of range", (int)count,
                  (unsigned long long)value);
            seen[value] = 1;
        }
        free(seen);
    }
    for (uint64_t i = 0; i < 1000; i++) { /* too many to visit all: in range, and the widest halves are handled */
        CHECK(fb_permute(i, 0, UINT64_C(3) << 61, i) < UINT64_C(3) << 61, "a huge count");
        CHECK(fb_permute(i, 0, UINT64_MAX, i) < UINT64_MAX, "the largest count");
    }
}

static void shuffles_of_epochs_and_seeds_differ(void) {
    int same_epoch = 0, same_seed = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        same_epoch += fb_permute(1, 0, 10000, i) == fb_permute(1, 1, 10000, i);
        same_seed += fb_permute(1, 0, 10000, i) == fb_permute(UINT64_C(1) << 32 | 1, 0, 10000, i);
    }
    CHECK(same_epoch < 10 && same_seed < 10, "%d and %d of 10,000 stay in place: 1 is expected", same_epoch, same_seed);
}

/* How many standard deviations chi-square is above what chance gives. */
static double excess(double chi_square, double degrees) {
    return (chi_square - degrees) / sqrt(2 * degrees);
}

/* 5 standard deviations never come by chance, and the seeds are fixed, so these answers never change either. Of the
 * networks that were refused, one of 4 bits fails the orders and one of 4 rounds the neighbors of 255. */
static void shuffle_gives_every_order_equally_often(void) {
    enum { SHUFFLES = 24000 };
    int orders = 1;
    for (int n = 2; n <= 5; n++) {
        orders *= n;
        double counts[120] = {0};
        for (int shuffle = 0; shuffle < SHUFFLES; shuffle++) {
            uint64_t value[5];
            for (int i = 0; i < n; i++) {
                value[i] = fb_permute((uint64_t)shuffle / 4, (uint32_t)shuffle % 4, (uint64_t)n, (uint64_t)i);
            }
            int order = 0; /* its place in the list of all orders */
            for (int i = 0; i < n; i++) {
                int smaller = 0;
                for (int j = i + 1; j < n; j++) smaller += value[j] < value[i];
                order = order * (n - i) + smaller;
            }
            counts[order]++;
        }
        const double expected = (double)SHUFFLES / orders;
        double chi_square = 0;
        for (int i = 0; i < orders; i++) chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
        CHECK(fabs(excess(chi_square, orders - 1)) < 5, "orders of %d: chi-square %.0f", n, chi_square);
    }
}

static void shuffle_prefers_no_place_and_no_neighbour(void) {
    enum { MOST = 257 };
    static const struct {
        int n, shuffles;
    } cases[] = {
        {6, 10000}, {16, 10000}, {50, 10000}, {255, 12000}, {257, 2000},
    };
    static double places[MOST * MOST], neighbors[MOST * MOST];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const int n = cases[c].n, shuffles = cases[c].shuffles;
        memset(places, 0, sizeof places);
        memset(neighbors, 0, sizeof neighbors);
        for (int shuffle = 0; shuffle < shuffles; shuffle++) {
            int before = -1;
            for (int i = 0; i < n; i++) {
                const int value = (int)fb_permute((uint64_t)shuffle, 3, (uint64_t)n, (uint64_t)i);
                places[i * n + value]++;
                if (before >= 0) neighbors[before * n + value]++;
                before = value;
            }
        }
        /* In each cell of the places; of the neighbors as well: (n - 1) pairs on n (n - 1) cells. */
        const double expected = (double)shuffles / n;
        double place = 0, neighbor = 0;
        for (int i = 0; i < n; i++) {
            for (int j = 0; j < n; j++) {
                const double by_place = places[i * n + j] - expected, by_neighbour = neighbors[i * n + j] - expected;
                place += by_place * by_place / expected;
                if (i != j) neighbor += by_neighbour * by_neighbour / expected;
            }
        }
        place *= (n - 1.0) / n; /* each row and each column adds up to the same: (n - 1)^2 degrees of freedom */
        CHECK(fabs(excess(place, (n - 1.0) * (n - 1))) < 5, "places of %d: chi-square %.0f", n, place);
        CHECK(fabs(excess(neighbor, n * (n - 1.0) - 1)) < 5, "neighbors of %d: chi-square %.0f", n, neighbor);
    }
}

int main(void) {
    mt19937_is_caffes();
    philox_has_its_published_vectors();
    draws_lay_out_counter_and_key_as_written();
    scaled_draws_cover_their_range();
    shuffle_keeps_its_golden_values();
    shuffle_is_a_permutation();
    shuffles_of_epochs_and_seeds_differ();
    shuffle_gives_every_order_equally_often();
    shuffle_prefers_no_place_and_no_neighbour();
    return 0;
}
