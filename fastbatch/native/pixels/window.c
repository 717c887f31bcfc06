#include "window.h"

#include <math.h>

#define CHANNELS FB_WINDOW_CHANNELS

static int as_int(float value) {
    return (int)roundf(value); /* half away from zero */
}

/* One axis of a window with its context: the part of it that lies in the image, and what is missing at both ends. */
typedef struct span {
    int first, last, unclipped, before, after;
} span;

static span span_of(float centre, float half, float context_scale, int image_size) {
    span s = {as_int(centre - half * context_scale), as_int(centre + half * context_scale), 0, 0, 0};
    s.unclipped = s.last - s.first + 1;
    if (s.first < 0) s.before = -s.first;
    if (s.last >= image_size) s.after = s.last - image_size + 1;
    s.first += s.before;
    s.last -= s.after;
    return s;
}

/* In pixels of the square: the size of what lies in the image, and of what is missing. */
static int place(span *s, int crop_size) {
    const float scale = (float)crop_size / (float)s->unclipped;
    const int size = as_int((float)(s->last - s->first + 1) * scale);
    s->before = as_int((float)s->before * scale);
    s->after = as_int((float)s->after * scale);
    return size;
}

int fb_window_cut(const fb_warp *warp, const fb_window *window, int image_height, int image_width, int mirror, fb_cut *cut,
                  fb_error *error) {
    const int crop_size = warp->crop_size;
    *cut = (fb_cut){
        .region = {.top = window->y1, .left = window->x1, .height = window->y2 - window->y1 + 1, .width = window->x2 - window->x1 + 1},
        .height = crop_size, .width = crop_size, .mirror = mirror,
    };
    if (warp->context_pad == 0 && !warp->square) return 0;

    const float context_scale = (float)crop_size / (float)(crop_size - 2 * warp->context_pad);
    float half_height = (float)cut->region.height / 2, half_width = (float)cut->region.width / 2;
    const float centre_x = (float)window->x1 + half_width, centre_y = (float)window->y1 + half_height;
    if (warp->square) half_height = half_width = half_height > half_width ? half_height : half_width;
    if ((half_height > half_width ? half_height : half_width) * context_scale > 1 << 28) {
        return fb_fail(error, "with context_pad %d of crop_size %d, the window would show more than %d pixels a side: use a smaller "
                       "context_pad", warp->context_pad, crop_size, 1 << 29);
    }
    span x = span_of(centre_x, half_width, context_scale, image_width);
    span y = span_of(centre_y, half_height, context_scale, image_height);
    cut->region = (fb_region){.top = y.first, .left = x.first, .height = y.last - y.first + 1, .width = x.last - x.first + 1};
    cut->height = place(&y, crop_size);
    cut->width = place(&x, crop_size);
    cut->top = y.before;
    cut->left = mirror ? x.after : x.before;
    if (cut->top + cut->height > crop_size) cut->height = crop_size - y.before; /* rounded apart, they may not fit */
    if (cut->left + cut->width > crop_size) cut->width = crop_size - (int)cut->left;
    if (cut->height < 1 || cut->width < 1) {
        return fb_fail(error, "of the window with its context, %d x %d pixels wide and high, so little lies in the image that nothing of "
                       "it is left after the resize to %d x %d, where Caffe's own layer ends the process: leave the window out",
                       x.unclipped, y.unclipped, crop_size, crop_size);
    }
    return 0;
}

/* ---- pixels into floats: the same loops for each instruction set, by function attribute, so that one build runs everywhere */

#define INLINE static inline __attribute__((always_inline))
#define PIECE 1024 /* pixels of a row that are taken apart at a time */

/* Some pixels of a row, and where their channels go. */
typedef struct piece {
    const unsigned char *pixels;
    int64_t channel_stride, pixel_stride;
    int64_t count; /* at most PIECE */
    int mirror; /* last one first */
    const float *means[CHANNELS]; /* a mean for each pixel, or one for all */
    int mean_image;
    float scale;
    float *out[CHANNELS];
} piece;

INLINE void take_apart(const unsigned char *restrict pixels, int64_t channel_stride, int64_t pixel_stride, int64_t count,
                       unsigned char channels[CHANNELS][PIECE]) {
    for (int64_t x = 0; x < count; x++) {
        for (int channel = 0; channel < CHANNELS; channel++) channels[channel][x] = pixels[x * pixel_stride + channel * channel_stride];
    }
}

static void reverse(unsigned char *bytes, int64_t count) {
    int64_t first = 0, end = count;
    for (; end - first >= 16; first += 8, end -= 8) {
        uint64_t left, right;
        memcpy(&left, bytes + first, 8);
        memcpy(&right, bytes + end - 8, 8);
        left = __builtin_bswap64(left);
        right = __builtin_bswap64(right);
        memcpy(bytes + first, &right, 8);
        memcpy(bytes + end - 8, &left, 8);
    }
    for (; end - first >= 2; first++, end--) {
        const unsigned char byte = bytes[first];
        bytes[first] = bytes[end - 1];
        bytes[end - 1] = byte;
    }
}

/* (value - mean) * scale, each operation rounded once. */
INLINE void shade(const unsigned char *restrict values, const float *restrict means, int mean_image, float scale, int64_t count,
                  float *restrict out) {
    const float mean = *means;
    if (mean_image) {
        for (int64_t x = 0; x < count; x++) out[x] = ((float)values[x] - means[x]) * scale;
    } else {
        for (int64_t x = 0; x < count; x++) out[x] = ((float)values[x] - mean) * scale;
    }
}

INLINE void put_piece(const piece *p) {
    unsigned char channels[CHANNELS][PIECE];
    if (p->channel_stride == 1 && p->pixel_stride == CHANNELS) take_apart(p->pixels, 1, CHANNELS, p->count, channels);
    else take_apart(p->pixels, p->channel_stride, p->pixel_stride, p->count, channels);
    for (int channel = 0; channel < CHANNELS; channel++) {
        if (p->mirror) reverse(channels[channel], p->count);
        shade(channels[channel], p->means[channel], p->mean_image, p->scale, p->count, p->out[channel]);
    }
}

static void generic_piece(const piece *p) {
    put_piece(p);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void avx2_piece(const piece *p) {
    put_piece(p);
}
#endif

/* Which instruction set is in use, the table in transform.c knows. */
static void (*piece_of(const char *kernel))(const piece *) {
#if defined(__x86_64__)
    if (strcmp(kernel, "generic") != 0) return avx2_piece; /* which a processor with "avx512" has, too */
#endif
    (void)kernel;
    return generic_piece;
}

void fb_window_put(const fb_warp *warp, const fb_cut *cut, const fb_view *pixels, const char *kernel, float *out) {
    const int64_t crop_size = warp->crop_size, area = crop_size * crop_size, width = pixels->shape[2];
    const int64_t offset = fb_mean_offset(warp->mean_width, crop_size);
    void (*const put)(const piece *) = piece_of(kernel);
    piece p = {.channel_stride = pixels->strides[0], .pixel_stride = pixels->strides[2], .mirror = cut->mirror,
               .mean_image = warp->mean_image != NULL, .scale = warp->scale};
    if (cut->height < crop_size || cut->width < crop_size) memset(out, 0, (size_t)(CHANNELS * area) * sizeof(float));
    for (int64_t y = 0; y < pixels->shape[1]; y++) {
        const unsigned char *row = (const unsigned char *)pixels->data + y * pixels->strides[1];
        for (int64_t x = 0; x < width; x += p.count) {
            p.count = width - x < PIECE ? width - x : PIECE;
            p.pixels = row + (cut->mirror ? width - x - p.count : x) * p.pixel_stride;
            for (int64_t channel = 0; channel < CHANNELS; channel++) {
                const int64_t mean_y = channel * warp->mean_height + y + offset + cut->top, mean_x = x + offset + cut->left;
                p.means[channel] = p.mean_image ? warp->mean_image + mean_y * warp->mean_width + mean_x : &warp->mean_values[channel];
                p.out[channel] = out + channel * area + (y + cut->top) * crop_size + cut->left + x;
            }
            put(&p);
        }
    }
}
