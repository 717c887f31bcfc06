/* Computes what OpenCV computes (imgproc, resize.cpp): positions in double, fractions in float, weights in units of
 * 1/2048. One pass runs along the rows and one across them, with 16 bits in between. Only the needed rows are read, and
 * each is resized once. */
#include "resize.h"

#include <math.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define ONE 2048          /* a weight of 1 */
#define AT_ONCE (1 << 20) /* pixels of a row between two checks of `stop`: a row may have half a billion */

typedef struct tap {
    int32_t first; /* the first of the two weighted pixels */
    int16_t weights[2];
} tap;

/* Returns the tap of pixel i when `from` pixels are resized to `to`, not clamped to the image. */
static tap tap_of(int64_t from, int64_t to, int64_t i) {
    const double scale = 1. / ((double)to / (double)from);
    const float position = (float)(((double)i + 0.5) * scale - 0.5);
    const float first = floorf(position), fraction = position - first;
    return (tap){(int32_t)first, {(int16_t)lrintf((1.f - fraction) * ONE), (int16_t)lrintf(fraction * ONE)}};
}

static int64_t clamp(int64_t value, int64_t size) {
    return value < 0 ? 0 : value >= size ? size - 1 : value;
}

/* fb_resize_needs() for one axis. */
static void needs(int64_t from, int64_t to, int64_t first, int64_t count, int64_t *needed, int64_t *needed_count) {
    *needed = clamp(tap_of(from, to, first).first, from);
    *needed_count = clamp((int64_t)tap_of(from, to, first + count - 1).first + 1, from) + 1 - *needed;
}

fb_region fb_resize_needs(fb_size from, fb_size to, const fb_region *region) {
    fb_region part;
    needs(from.height, to.height, region->top, region->height, &part.top, &part.height);
    needs(from.width, to.width, region->left, region->width, &part.left, &part.width);
    return part;
}

/* Resizes along a row: (a * w0 + b * w1) >> 4, which fits in 16 bits. A tap's `first` counts bytes here. Reads up to 8
 * bytes from each tap's first pixel on, and writes up to 4 values from each output position on. */
static void shrink_row(const unsigned char *restrict row, const tap *restrict taps, int64_t width, int channels,
                       int16_t *restrict out) {
#if defined(__SSE2__)
    if (channels >= 3) {
        const __m128i zero = _mm_setzero_si128();
        for (int64_t x = 0; x < width; x++, out += channels) {
            int32_t pair[2], weights;
            memcpy(&pair[0], row + taps[x].first, 4);
            memcpy(&pair[1], row + taps[x].first + channels, 4);
            memcpy(&weights, taps[x].weights, 4);
            const __m128i bytes = _mm_unpacklo_epi8(_mm_cvtsi32_si128(pair[0]), _mm_cvtsi32_si128(pair[1]));
            const __m128i sums = _mm_madd_epi16(_mm_unpacklo_epi8(bytes, zero), _mm_set1_epi32(weights));
            _mm_storel_epi64((__m128i *)out, _mm_packs_epi32(_mm_srai_epi32(sums, 4), zero));
        }
        return;
    }
#endif
    for (int64_t x = 0; x < width; x++) {
        const unsigned char *pixel = row + taps[x].first;
        for (int c = 0; c < channels; c++) {
            *out++ = (int16_t)((pixel[c] * taps[x].weights[0] + pixel[c + channels] * taps[x].weights[1]) >> 4);
        }
    }
}

/* Resizes across two rows. Each product is truncated separately, as by _mm_mulhi_epi16. */
static void blend_rows(const int16_t *restrict above, const int16_t *restrict below, const int16_t weights[2],
                       int64_t count, unsigned char *restrict out) {
    int64_t i = 0;
#if defined(__SSE2__)
    const __m128i w0 = _mm_set1_epi16(weights[0]), w1 = _mm_set1_epi16(weights[1]), two = _mm_set1_epi16(2);
    for (; i + 16 <= count; i += 16) {
        __m128i halves[2];
        for (int h = 0; h < 2; h++) {
            const __m128i a = _mm_loadu_si128((const __m128i *)(above + i + 8 * h));
            const __m128i b = _mm_loadu_si128((const __m128i *)(below + i + 8 * h));
            const __m128i sum = _mm_add_epi16(_mm_mulhi_epi16(a, w0), _mm_mulhi_epi16(b, w1));
            halves[h] = _mm_srai_epi16(_mm_add_epi16(sum, two), 2);
        }
        _mm_storeu_si128((__m128i *)(out + i), _mm_packus_epi16(halves[0], halves[1]));
    }
#endif
    for (; i < count; i++)
        out[i] = (unsigned char)(((above[i] * weights[0] >> 16) + (below[i] * weights[1] >> 16) + 2) >> 2);
}

/* shrink_row() and blend_rows() in steps. They return 0 if they were stopped. */

static int shrink(const unsigned char *row, const tap *taps, int64_t width, int channels, int16_t *out,
                  const int32_t *stop) {
    for (int64_t x = 0; x < width; x += AT_ONCE) {
        if (fb_stopping(stop)) return 0;
        shrink_row(row, taps + x, width - x < AT_ONCE ? width - x : AT_ONCE, channels, out + x * channels);
    }
    return 1;
}

static int blend(const int16_t *const pair[2], const int16_t weights[2], int64_t count, unsigned char *out,
                 const int32_t *stop) {
    for (int64_t i = 0; i < count; i += AT_ONCE) {
        if (fb_stopping(stop)) return 0;
        blend_rows(pair[0] + i, pair[1] + i, weights, count - i < AT_ONCE ? count - i : AT_ONCE, out + i);
    }
    return 1;
}

static size_t round_up(size_t size) {
    return (size + 63) / 64 * 64;
}

unsigned char *fb_resize(const fb_rows *rows, int channels, fb_size from, fb_size to, const fb_region *region,
                         fb_arena *memory) {
    const int64_t count = region->width * channels;
    const size_t row_size = round_up(((size_t)count + 4) * sizeof(int16_t)),
                 taps_size = round_up((size_t)region->width * sizeof(tap));
    unsigned char *work = fb_arena_take(memory, taps_size + 2 * row_size + (size_t)(count * region->height));
    if (work == NULL) return NULL;
    tap *taps = (tap *)work;
    int16_t *resized[2] = {(int16_t *)(work + taps_size), (int16_t *)(work + taps_size + row_size)};
    int64_t row_of[2] = {-1, -1}; /* the image's rows that `resized` holds */
    unsigned char *out = work + taps_size + 2 * row_size;

    for (int64_t x = 0; x < region->width; x++) {
        if (x % AT_ONCE == 0 && fb_stopping(memory->stop)) return NULL;
        tap t = tap_of(from.width, to.width, region->left + x);
        if (t.first < 0 || t.first >= from.width - 1) { /* along a row, the outermost pixel gets the full weight */
            t = (tap){(int32_t)clamp(t.first, from.width), {ONE, 0}};
        }
        taps[x] = t;
        taps[x].first = (int32_t)((t.first - rows->left) * channels);
    }
    for (int64_t y = 0; y < region->height; y++) {
        const tap t = tap_of(from.height, to.height, region->top + y);
        const int16_t *pair[2];
        for (int i = 0; i < 2; i++) { /* across rows, the outermost row is weighted twice */
            const int64_t row = clamp((int64_t)t.first + i, from.height);
            if (row_of[0] != row && row_of[1] != row) {
                /* Replaces the earlier row, and never the first row of the current pair. */
                const int slot = i == 0 ? row_of[0] < row_of[1] ? 0 : 1 : row_of[0] == clamp(t.first, from.height);
                if (!shrink(rows->data + (row - rows->top) * rows->stride, taps, region->width, channels, resized[slot],
                            memory->stop))
                    return NULL;
                row_of[slot] = row;
            }
            pair[i] = resized[row_of[1] == row];
        }
        if (!blend(pair, t.weights, count, out + y * count, memory->stop)) return NULL;
    }
    return out;
}
