/* The two passes of a resize for one plane of bytes, with AVX2. resize.c says what they compute.
 *
 * Half the size of a photograph (500x375 to 256x256, three planes) takes 35 us; the same with interleaved channels, where
 * each pixel is fetched by itself, takes 80 us. */
#ifndef FASTBATCH_RESIZE_PLANES_H
#define FASTBATCH_RESIZE_PLANES_H

#include <stdint.h>
#include <string.h>

#define FB_RESIZE_GROUP 16 /* pixels that are resized along a row at a time; whole groups are written */
#define FB_RESIZE_BLEND 32 /* the same across rows; whole groups are read, too */

/* The taps of an output pixel along a row: two neighbors, or an outermost pixel with a weight of 0 for its neighbor. */
typedef struct fb_tap {
    int32_t first;
    int16_t weights[2];
} fb_tap;

#if defined(__x86_64__)

#include <immintrin.h>

#define FB_RESIZE_AVX2 __attribute__((target("avx2")))

/* The taps of 16 output pixels. Those of four pixels are in one window of 16 bytes. A register takes two windows: that of
 * the pixels 0 to 3 and that of 8 to 11, or the other two, so that packing both registers gives 16 pixels in order. */
typedef struct fb_tap_group {
    int64_t windows[4];                 /* their first bytes */
    _Alignas(32) uint8_t orders[2][32]; /* from the windows to pairs of 16 bits, for a byte shuffle */
    _Alignas(32) int16_t weights[2][16];
} fb_tap_group;

enum { FB_WINDOW = 16 };

/* Makes groups of taps, `count` of them. The bytes from `begin` to `end` of a row can be read. Returns 0 if four pixels
 * have their taps in more than a window: if a row shrinks to less than 2/9, or has fewer bytes than a window. */
static int fb_group_taps(const fb_tap *taps, int64_t count, int64_t begin, int64_t end, fb_tap_group *groups) {
    if (end - begin < FB_WINDOW) return 0;
    for (int64_t i = 0; i < count; i++, taps += FB_RESIZE_GROUP) {
        for (int w = 0; w < 4; w++) {
            const fb_tap *four = taps + 4 * w;
            const int64_t last = end - FB_WINDOW;
            const int64_t window = four[0].first < last ? four[0].first : last;
            uint8_t *order = groups[i].orders[w % 2] + w / 2 * 16;
            groups[i].windows[w] = window;
            for (int x = 0; x < 4; x++) {
                const int64_t at = four[x].first - window;
                if (at > FB_WINDOW - 2) return 0;
                const uint32_t pair = 0x80018000 + 0x10001 * (uint32_t)at; /* at, 0x80 for zero, at + 1, 0x80 */
                memcpy(order + 4 * x, &pair, sizeof pair);
                memcpy(groups[i].weights[w % 2] + w / 2 * 8 + 2 * x, four[x].weights, sizeof four[x].weights);
            }
        }
    }
    return 1;
}

/* (a * w0 + b * w1) >> 4 of eight pairs, in 32 bits. */
FB_RESIZE_AVX2 static inline __m256i fb_weigh(__m256i pairs, __m256i weights) {
    return _mm256_srai_epi32(_mm256_madd_epi16(pairs, weights), 4);
}

/* Along a row: half a group. `windows`: of the first half, and two behind, of the second one. */
FB_RESIZE_AVX2 static inline __m256i fb_weigh_windows(const unsigned char *row, const int64_t *windows, __m256i order,
                                                      __m256i weights) {
    const __m128i low = _mm_loadu_si128((const __m128i *)(row + windows[0]));
    const __m128i high = _mm_loadu_si128((const __m128i *)(row + windows[2]));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    return fb_weigh(_mm256_shuffle_epi8(both, order), weights);
}

/* Along a row, of all planes. They share a group's loads, which take longer than its arithmetic. `plane` and `out_plane`:
 * from plane to plane. */
FB_RESIZE_AVX2 static void fb_shrink_grouped(const unsigned char *row, int64_t plane, int planes,
                                             const fb_tap_group *group, int64_t count, int16_t *out,
                                             int64_t out_plane) {
    for (; count > 0; count -= FB_RESIZE_GROUP, group++, out += FB_RESIZE_GROUP) {
        const __m256i order0 = _mm256_load_si256((const __m256i *)group->orders[0]);
        const __m256i order1 = _mm256_load_si256((const __m256i *)group->orders[1]);
        const __m256i weights0 = _mm256_load_si256((const __m256i *)group->weights[0]);
        const __m256i weights1 = _mm256_load_si256((const __m256i *)group->weights[1]);
        const int64_t windows[4] = {group->windows[0], group->windows[1], group->windows[2], group->windows[3]};
        const unsigned char *from = row;
        int16_t *to = out;
        for (int i = 0; i < planes; i++, from += plane, to += out_plane) {
            const __m256i first = fb_weigh_windows(from, windows, order0, weights0);
            const __m256i second = fb_weigh_windows(from, windows + 1, order1, weights1);
            _mm256_storeu_si256((__m256i *)to, _mm256_packs_epi32(first, second));
        }
    }
}

FB_RESIZE_AVX2 static inline short fb_pair_at(const unsigned char *row, const fb_tap *tap) {
    short pair;
    memcpy(&pair, row + tap->first, sizeof pair);
    return pair;
}

/* Along a row, with taps anywhere: each is fetched by itself. */
FB_RESIZE_AVX2 static void fb_shrink_scattered(const unsigned char *row, const fb_tap *tap, int64_t count,
                                               int16_t *out) {
    for (; count > 0; count -= 8, tap += 8, out += 8) {
        const __m128i pairs = _mm_setr_epi16(
            fb_pair_at(row, tap), fb_pair_at(row, tap + 1), fb_pair_at(row, tap + 2), fb_pair_at(row, tap + 3),
            fb_pair_at(row, tap + 4), fb_pair_at(row, tap + 5), fb_pair_at(row, tap + 6), fb_pair_at(row, tap + 7));
        const __m256 four = _mm256_loadu_ps((const float *)tap), rest = _mm256_loadu_ps((const float *)(tap + 4));
        /* The weights are in every other 32 bits. */
        const __m256i weights = _mm256_castps_si256(_mm256_shuffle_ps(four, rest, 0xdd));
        const __m256i sums = fb_weigh(_mm256_cvtepu8_epi16(pairs), _mm256_permute4x64_epi64(weights, 0xd8));
        const __m128i high = _mm256_extracti128_si256(sums, 1);
        _mm_storeu_si128((__m128i *)out, _mm_packs_epi32(_mm256_castsi256_si128(sums), high));
    }
}

/* Across two rows. */
FB_RESIZE_AVX2 static void fb_blend_planes(const int16_t *above, const int16_t *below, const int16_t weights[2],
                                           int64_t count, unsigned char *out) {
    const __m256i w0 = _mm256_set1_epi16(weights[0]), w1 = _mm256_set1_epi16(weights[1]), two = _mm256_set1_epi16(2);
    for (int64_t x = 0; x < count; x += FB_RESIZE_BLEND) {
        __m256i halves[2];
        for (int h = 0; h < 2; h++) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(above + x + 16 * h));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(below + x + 16 * h));
            const __m256i sum = _mm256_add_epi16(_mm256_mulhi_epi16(a, w0), _mm256_mulhi_epi16(b, w1));
            halves[h] = _mm256_srai_epi16(_mm256_add_epi16(sum, two), 2);
        }
        const __m256i bytes = _mm256_packus_epi16(halves[0], halves[1]);
        _mm256_storeu_si256((__m256i *)(out + x), _mm256_permute4x64_epi64(bytes, 0xd8));
    }
}

#endif

#endif
