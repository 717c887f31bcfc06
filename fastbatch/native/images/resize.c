/* Computes what OpenCV computes (imgproc, resize.cpp): positions in double, fractions in float, weights in units of
 * 1/2048. One pass runs along the rows and one across them, with 16 bits in between. Only the needed rows are read, and
 * each is resized once. Planes are resized one after the other, interleaved channels together. */
#include "resize.h"

#include "resize_planes.h"

#include <math.h>
#include <stdatomic.h>

#define ONE 2048          /* a weight of 1 */
#define AT_ONCE (1 << 20) /* pixels of a row between two checks of `stop`: a row may have half a billion */

/* Along one axis: how far apart in the image two pixels of the resized image are. */
static double scale_of(int64_t from, int64_t to) {
    return 1. / ((double)to / (double)from);
}

/* Returns the tap of pixel i, not clamped to the image. */
static fb_tap tap_of(double scale, int64_t i) {
    const float position = (float)(((double)i + 0.5) * scale - 0.5);
    const float first = floorf(position), fraction = position - first;
    return (fb_tap){(int32_t)first, {(int16_t)lrintf((1.f - fraction) * ONE), (int16_t)lrintf(fraction * ONE)}};
}

static int64_t clamp(int64_t value, int64_t size) {
    return value < 0 ? 0 : value >= size ? size - 1 : value;
}

/* fb_resize_needs() for one axis. */
static void needs(int64_t from, int64_t to, int64_t first, int64_t count, int64_t *needed, int64_t *needed_count) {
    const double scale = scale_of(from, to);
    *needed = clamp(tap_of(scale, first).first, from);
    *needed_count = clamp((int64_t)tap_of(scale, first + count - 1).first + 1, from) + 1 - *needed;
}

fb_region fb_resize_needs(fb_size from, fb_size to, const fb_region *region) {
    fb_region part;
    needs(from.height, to.height, region->top, region->height, &part.top, &part.height);
    needs(from.width, to.width, region->left, region->width, &part.left, &part.width);
    return part;
}

/* What all rows of a resize have in common. */
typedef struct resizing {
    fb_size from, to;
    const fb_region *region;
    int channels;     /* that are interleaved */
    int planes;       /* more than one only if there is one channel in each */
    int64_t second;   /* bytes from the first pixel of a tap to the second one; 0 if there is only one column */
    fb_tap *taps;     /* along a row; `first` counts bytes */
    int16_t *rows[2]; /* of all planes, resized along */
    int64_t row_size; /* values from plane to plane */
    const int32_t *stop;
#if defined(__x86_64__)
    int vectors;          /* AVX2, for planes */
    fb_tap_group *groups; /* NULL: the taps are too far apart */
#endif
} resizing;

/* Resizes along a row: (a * w0 + b * w1) >> 4, which fits in 16 bits. If channels are interleaved, reads up to 8 bytes
 * from each tap's first pixel on. Writes up to 4 values from each output position on. */
static void shrink_row(const resizing *r, const unsigned char *restrict row, const fb_tap *restrict taps, int64_t count,
                       int16_t *restrict out) {
    const int channels = r->channels;
#if defined(__SSE2__)
    if (channels >= 3) {
        const __m128i zero = _mm_setzero_si128();
        for (int64_t x = 0; x < count; x++, out += channels) {
            int32_t pair[2], weights;
            memcpy(&pair[0], row + taps[x].first, 4);
            memcpy(&pair[1], row + taps[x].first + r->second, 4);
            memcpy(&weights, taps[x].weights, 4);
            const __m128i bytes = _mm_unpacklo_epi8(_mm_cvtsi32_si128(pair[0]), _mm_cvtsi32_si128(pair[1]));
            const __m128i sums = _mm_madd_epi16(_mm_unpacklo_epi8(bytes, zero), _mm_set1_epi32(weights));
            _mm_storel_epi64((__m128i *)out, _mm_packs_epi32(_mm_srai_epi32(sums, 4), zero));
        }
        return;
    }
#endif
    for (int64_t x = 0; x < count; x++) {
        const unsigned char *pixel = row + taps[x].first;
        for (int c = 0; c < channels; c++) {
            *out++ = (int16_t)((pixel[c] * taps[x].weights[0] + pixel[c + r->second] * taps[x].weights[1]) >> 4);
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

/* The two passes in steps. They return 0 if they were stopped. */

/* `plane`: bytes from plane to plane. */
static int shrink(const resizing *r, const unsigned char *row, int64_t plane, int16_t *out) {
    const int64_t width = r->region->width;
    for (int64_t x = 0; x < width; x += AT_ONCE) {
        const int64_t count = width - x < AT_ONCE ? width - x : AT_ONCE;
        if (fb_stopping(r->stop)) return 0;
#if defined(__x86_64__)
        if (r->groups) {
            fb_shrink_grouped(row, plane, r->planes, r->groups + x / FB_RESIZE_GROUP, count, out + x, r->row_size);
            continue;
        }
#endif
        for (int i = 0; i < r->planes; i++) {
            const unsigned char *from = row + i * plane;
            int16_t *to = out + i * r->row_size + x * r->channels;
#if defined(__x86_64__)
            if (r->vectors) fb_shrink_scattered(from, r->taps + x, count, to);
            else
#endif
                shrink_row(r, from, r->taps + x, count, to);
        }
    }
    return 1;
}

static int blend(const resizing *r, const int16_t *const pair[2], const int16_t weights[2], unsigned char *out) {
    const int64_t all = r->region->width * r->channels;
    for (int64_t i = 0; i < all; i += AT_ONCE) {
        const int64_t count = all - i < AT_ONCE ? all - i : AT_ONCE;
        if (fb_stopping(r->stop)) return 0;
#if defined(__x86_64__)
        if (r->vectors) fb_blend_planes(pair[0] + i, pair[1] + i, weights, count, out + i);
        else
#endif
            blend_rows(pair[0] + i, pair[1] + i, weights, count, out + i);
    }
    return 1;
}

/* Resizes all rows, of one plane after the other. Returns 0 if it was stopped. */
static int resize_rows(const resizing *r, const fb_rows *rows, const fb_rows *resized) {
    const double scale = scale_of(r->from.height, r->to.height);
    int64_t row_of[2] = {-1, -1}; /* the image's rows that r->rows hold */
    for (int64_t y = 0; y < r->region->height; y++) {
        const fb_tap t = tap_of(scale, r->region->top + y);
        int slots[2];
        for (int i = 0; i < 2; i++) { /* across rows, the outermost row is weighted twice */
            const int64_t row = clamp((int64_t)t.first + i, r->from.height);
            slots[i] = row_of[1] == row;
            if (row_of[slots[i]] == row) continue;
            /* Replaces the earlier row, and never the first row of the current pair. */
            slots[i] = i == 0 ? row_of[0] >= row_of[1] : !slots[0];
            row_of[slots[i]] = row;
            const unsigned char *from = rows->data + (row - rows->top) * rows->stride;
            if (!shrink(r, from, rows->channel, r->rows[slots[i]])) return 0;
        }
        for (int plane = 0; plane < r->planes; plane++) {
            const int16_t *const pair[2] = {r->rows[slots[0]] + plane * r->row_size,
                                            r->rows[slots[1]] + plane * r->row_size};
            unsigned char *const out = resized->data + plane * resized->channel + y * resized->stride;
            if (!blend(r, pair, t.weights, out)) return 0;
        }
    }
    return 1;
}

/* ---- the taps */

/* Sets the taps along a row, whose pixels are at hand from column `left` on. Returns 0 if it was stopped. */
static int set_taps(const resizing *r, int64_t left, int64_t padded) {
    const int64_t width = r->from.width;
    const double scale = scale_of(width, r->to.width);
    for (int64_t x = 0; x < padded; x++) {
        if (x % AT_ONCE == 0 && fb_stopping(r->stop)) return 0;
        const int64_t column = x < r->region->width ? x : r->region->width - 1;
        fb_tap t = tap_of(scale, r->region->left + column);
        /* Along a row, the outermost pixel gets the full weight. Its neighbor is not used, and yet a pixel at hand. */
        if (t.first < 0) t = (fb_tap){0, {ONE, 0}};
        else if (t.first >= width - 1 && r->second) t = (fb_tap){(int32_t)width - 2, {0, ONE}};
        else if (t.first >= width - 1) t = (fb_tap){(int32_t)width - 1, {ONE, 0}};
        r->taps[x] = t;
        r->taps[x].first = (int32_t)((t.first - left) * r->channels);
    }
    return 1;
}

#if defined(__x86_64__)
static _Atomic int no_vectors;

static int has_vectors(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && !atomic_load_explicit(&no_vectors, memory_order_relaxed);
}

int fb_resize_use_vectors(int use) {
    atomic_store_explicit(&no_vectors, !use, memory_order_relaxed);
    return has_vectors();
}
#else
int fb_resize_use_vectors(int use) {
    (void)use;
    return 0;
}
#endif

static int64_t round_up(int64_t size, int64_t unit) {
    return (size + unit - 1) / unit * unit;
}

int fb_resize(const fb_rows *rows, int channels, fb_size from, fb_size to, const fb_region *region, fb_arena *memory,
              fb_rows *resized) {
    const int planar = rows->pixel == 1;
    const fb_region needed = fb_resize_needs(from, to, region);
    resizing r = {
        .from = from,
        .to = to,
        .region = region,
        .channels = planar ? 1 : channels,
        .planes = planar && rows->channel ? channels : 1,
        .stop = memory->stop,
    };
    if (needed.width > 1) r.second = r.channels;
    const int64_t padded = round_up(region->width, FB_RESIZE_GROUP), taps_size = padded * (int64_t)sizeof(fb_tap);
    const int64_t stride = planar ? round_up(region->width, FB_RESIZE_BLEND) : region->width * channels;
    const int64_t plane = stride * region->height;
    r.row_size = round_up(region->width * r.channels, FB_RESIZE_BLEND) + FB_RESIZE_BLEND;
    const int64_t rows_size = r.planes * r.row_size * (int64_t)sizeof(int16_t);
    unsigned char *work = fb_arena_take(memory, (size_t)(taps_size + 2 * rows_size + r.planes * plane));
    if (work == NULL) return -1;
    r.taps = (fb_tap *)work;
    for (int i = 0; i < 2; i++) r.rows[i] = (int16_t *)(work + taps_size + i * rows_size);
    if (!set_taps(&r, rows->left, padded)) return -1;
#if defined(__x86_64__)
    r.vectors = planar && r.second && has_vectors();
    if (r.vectors) {
        const int64_t groups = padded / FB_RESIZE_GROUP, begin = needed.left - rows->left;
        fb_tap_group *grouped = fb_arena_take(memory, (size_t)groups * sizeof *grouped);
        if (grouped == NULL) return -1;
        if (fb_group_taps(r.taps, groups, begin, begin + needed.width, grouped)) r.groups = grouped;
    }
#endif
    *resized = (fb_rows){work + taps_size + 2 * rows_size, stride, region->top, region->left, r.channels, 1};
    if (planar) resized->channel = rows->channel ? plane : 0;
    return resize_rows(&r, rows, resized) ? 0 : -1;
}
