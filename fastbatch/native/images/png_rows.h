/* From the inflated rows of a PNG to pixels: filters and channels (PNG specification, chapters 9 and 11). */
#ifndef FASTBATCH_PNG_ROWS_H
#define FASTBATCH_PNG_ROWS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FB_PNG_NONE, FB_PNG_SUB, FB_PNG_UP, FB_PNG_AVERAGE, FB_PNG_PAETH, FB_PNG_FILTERS };

/* The one of left, above and above left that is nearest to left + above - above left; in doubt, the first of them. */
static inline int fb_png_nearest(int left, int above, int corner) {
    const int to_left = abs(above - corner), to_above = abs(left - corner), to_corner = abs(left + above - 2 * corner);
    if (to_left <= to_above && to_left <= to_corner) return left;
    return to_above <= to_corner ? above : corner;
}

/* The same for the channels of a pixel at once, in the first four elements. Each pixel waits for the one to its left, but
 * its channels need not wait for each other. Vectors of 16 bytes are the ones that processors have: with half as much,
 * gcc 12 takes four times as long. */
typedef int16_t fb_png_pixel __attribute__((vector_size(16)));
typedef unsigned char fb_png_bytes __attribute__((vector_size(8)));

/* Reads four bytes, of which the last one may belong to the next pixel. */
static inline fb_png_pixel fb_png_load(const unsigned char *from) {
    uint64_t bytes = 0;
    memcpy(&bytes, from, 4);
    return __builtin_convertvector((fb_png_bytes)bytes, fb_png_pixel);
}

static inline fb_png_pixel fb_png_absolute(fb_png_pixel value) {
    const fb_png_pixel negative = value < 0;
    return (value ^ negative) - negative;
}

static inline __attribute__((always_inline)) void fb_png_undo_paeth(unsigned char *row, const unsigned char *above,
                                                                    size_t length, size_t size) {
    fb_png_pixel left = {0}, corner = {0};
    for (size_t i = 0; i + size <= length; i += size) {
        const fb_png_pixel up = fb_png_load(above + i), stored = fb_png_load(row + i);
        const fb_png_pixel to_left = fb_png_absolute(up - corner), to_up = fb_png_absolute(left - corner);
        const fb_png_pixel to_corner = fb_png_absolute(left + up - corner - corner);
        const fb_png_pixel takes_left = (to_left <= to_up) & (to_left <= to_corner);
        const fb_png_pixel takes_up = to_up <= to_corner;
        const fb_png_pixel other = (up & takes_up) | (corner & ~takes_up);
        left = (stored + ((left & takes_left) | (other & ~takes_left))) & 255;
        corner = up;
        const fb_png_bytes made = __builtin_convertvector(left, fb_png_bytes);
        memcpy(row + i, &made, size);
    }
}

/* Replaces a filtered row by its bytes. `above`: the row above, or zeros. size: bytes of a pixel. One byte behind each
 * row must be readable. */
static inline void fb_png_undo(int filter, unsigned char *row, const unsigned char *above, size_t length, size_t size) {
    switch (filter) {
        case FB_PNG_SUB:
            for (size_t i = size; i < length; i++) row[i] = (unsigned char)(row[i] + row[i - size]);
            return;
        case FB_PNG_UP:
            for (size_t i = 0; i < length; i++) row[i] = (unsigned char)(row[i] + above[i]);
            return;
        case FB_PNG_AVERAGE:
            for (size_t i = 0; i < size; i++) row[i] = (unsigned char)(row[i] + above[i] / 2);
            for (size_t i = size; i < length; i++) row[i] = (unsigned char)(row[i] + (row[i - size] + above[i]) / 2);
            return;
        case FB_PNG_PAETH:
            if (size == 3) {
                fb_png_undo_paeth(row, above, length, 3);
            } else if (size == 4) {
                fb_png_undo_paeth(row, above, length, 4);
            } else {
                for (size_t i = 0; i < size; i++) row[i] = (unsigned char)(row[i] + above[i]);
                for (size_t i = size; i < length; i++)
                    row[i] = (unsigned char)(row[i] + fb_png_nearest(row[i - size], above[i], above[i - size]));
            }
            return;
        default: return;
    }
}

/* How the bytes of a pixel in the file become channels: gray, or blue, green, red, and alpha. */
typedef enum fb_png_channels {
    FB_PNG_GIVE_UP, /* libpng computes something, such as gray from colors */
    FB_PNG_GRAY,    /* one byte; a second one is left out */
    FB_PNG_GRAY_THRICE,
    FB_PNG_GRAY_AND_ALPHA, /* thrice, and alpha */
    FB_PNG_COLOR,          /* three bytes, red first; a fourth one is left out */
    FB_PNG_COLOR_AND_ALPHA,
    FB_PNG_PALETTE
} fb_png_channels;

/* Writes `count` pixels of `size` bytes each. Returns 0 if the palette has no such color. */
static inline int fb_png_convert(fb_png_channels channels, const unsigned char *in, size_t size, int64_t count,
                                 const unsigned char *palette, int colors, unsigned char *out) {
    switch (channels) {
        case FB_PNG_GRAY:
            if (size == 1) memcpy(out, in, (size_t)count);
            else
                for (int64_t x = 0; x < count; x++, in += size) *out++ = in[0];
            return 1;
        case FB_PNG_GRAY_THRICE:
            for (int64_t x = 0; x < count; x++, in += size, out += 3) out[0] = out[1] = out[2] = in[0];
            return 1;
        case FB_PNG_GRAY_AND_ALPHA:
            for (int64_t x = 0; x < count; x++, in += size, out += 4) {
                out[0] = out[1] = out[2] = in[0];
                out[3] = in[1];
            }
            return 1;
        case FB_PNG_COLOR:
            for (int64_t x = 0; x < count; x++, in += size, out += 3) {
                const unsigned char red = in[0], green = in[1], blue = in[2];
                out[0] = blue;
                out[1] = green;
                out[2] = red;
            }
            return 1;
        case FB_PNG_COLOR_AND_ALPHA:
            for (int64_t x = 0; x < count; x++, in += size, out += 4) {
                const unsigned char red = in[0], green = in[1], blue = in[2], alpha = in[3];
                out[0] = blue;
                out[1] = green;
                out[2] = red;
                out[3] = alpha;
            }
            return 1;
        case FB_PNG_PALETTE:
            for (int64_t x = 0; x < count; x++, out += 3) {
                if (in[x] >= colors) return 0;
                const unsigned char *color = palette + 3 * in[x];
                out[0] = color[2];
                out[1] = color[1];
                out[2] = color[0];
            }
            return 1;
        case FB_PNG_GIVE_UP: break;
    }
    return 0;
}

#endif
