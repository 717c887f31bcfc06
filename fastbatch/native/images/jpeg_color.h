/* From rows of Y, Cb and Cr to rows of blue, green and red, a vector of pixels at a time.
 *
 * Chroma that was stored at half the resolution is interpolated on the way ("fancy upsampling": triangle filters,
 * with the IJG's alternating rounding). Nothing goes through memory in between, except one row of sums. With AVX2, all of
 * it takes 20 us for a crop of 227, a tenth of the time for the crop. */
#ifndef FASTBATCH_JPEG_COLOR_H
#define FASTBATCH_JPEG_COLOR_H

#include "jpeg_vectors.h"

/* Chroma samples across rows, in 16 bits: 3 * near + far; or near, if far is NULL. Writes whole vectors. */
FB_TARGET static void fb_sum_rows(const unsigned char *near, const unsigned char *far, int64_t count, int16_t *sums) {
    for (int64_t i = 0; i < count; i += FB_WIDTH / 2) {
        const fb_vec a = fb_load_bytes(near + i);
        fb_store(sums + i, far ? (a << 1) + a + fb_load_bytes(far + i) : a);
    }
}

/* Chroma minus 128, in 16 bits: of the pixels at even and those at odd columns. */
typedef struct fb_pair {
    fb_vec even, odd;
} fb_pair;

/* From sums and their neighbors on both sides: 3/4 of the nearer, 1/4 of the farther. */
FB_VECTOR fb_pair fb_interpolate(const int16_t *sums, const fb_jpeg_chroma chroma) {
    const int shift = chroma == FB_CHROMA_H2V2 ? 4 : 2, half = 1 << (shift - 1);
    /* Ties are rounded up at even columns and down at odd ones, or the other way around without interpolation across
     * rows. */
    const int even_bias = chroma == FB_CHROMA_H2V2 ? half : half - 1, odd_bias = 2 * half - 1 - even_bias;
    const fb_vec here = fb_load(sums), three = (here << 1) + here;
    const fb_vec even = fb_load(sums - 1) + fb_all(even_bias - (128 << shift));
    const fb_vec odd = fb_load(sums + 1) + fb_all(odd_bias - (128 << shift));
    return (fb_pair){fb_shift_right(three + even, shift), fb_shift_right(three + odd, shift)};
}

FB_VECTOR fb_pair fb_split(fb_vec bytes, int offset) {
    return (fb_pair){(bytes & 0xff) + fb_all(offset), (bytes >> 8) + fb_all(offset)};
}

FB_TARGET static void fb_mix_rows(const unsigned char *near, const unsigned char *far, int64_t count, int bias,
                                  unsigned char *out) {
    for (int64_t i = 0; i < count; i += FB_WIDTH) {
        const fb_pair a = fb_split(fb_load(near + i), 0), b = fb_split(fb_load(far + i), bias);
        fb_store(out + i, fb_join(((a.even << 1) + a.even + b.even) >> 2, ((a.odd << 1) + a.odd + b.odd) >> 2));
    }
}

/* The colors of pixels, in 16 bits, not clamped (JFIF):
 *
 *   red = y + 1.402 cr, green = y - 0.34414 cb - 0.71414 cr, blue = y + 1.772 cb
 *
 * The IJG computes with 16 bits behind the binary point. For the 256 values of a sample, red's and blue's 15 bits
 * round to the same: 13172 / 2^15 is 0.402 and -7471 / 2^15 is -0.228. Green, which depends on two, gets its 16
 * bits. */
typedef struct fb_bgr {
    fb_vec blue, green, red;
} fb_bgr;

FB_VECTOR fb_bgr fb_colors(fb_vec y, fb_vec cb, fb_vec cr) {
    const fb_vec red = cr + fb_multiply(cr, 13172), blue = cb + cb + fb_multiply(cb, -7471);
    const fb_vec green = fb_high_half(fb_rotate(cb, cr, -22554, 65536 - 46802)) - cr;
    return (fb_bgr){y + blue, y + green, y + red};
}

FB_VECTOR void fb_convert_row(const unsigned char *y, const void *cb, const void *cr, int64_t width,
                              const fb_jpeg_chroma chroma, unsigned char *out, int64_t plane) {
    for (int64_t x = 0; x < width; x += FB_WIDTH) {
        const fb_pair luma = fb_split(fb_load(y + x), 0);
        fb_pair blueness, redness;
        if (chroma == FB_CHROMA_FULL) {
            blueness = fb_split(fb_load((const char *)cb + x), -128);
            redness = fb_split(fb_load((const char *)cr + x), -128);
        } else {
            blueness = fb_interpolate((const int16_t *)cb + x / 2, chroma);
            redness = fb_interpolate((const int16_t *)cr + x / 2, chroma);
        }
        const fb_bgr even = fb_colors(luma.even, blueness.even, redness.even);
        const fb_bgr odd = fb_colors(luma.odd, blueness.odd, redness.odd);
        fb_store(out + x, fb_join(even.blue, odd.blue));
        fb_store(out + plane + x, fb_join(even.green, odd.green));
        fb_store(out + 2 * plane + x, fb_join(even.red, odd.red));
    }
}

FB_TARGET static void fb_convert(const unsigned char *y, const void *cb, const void *cr, int64_t width,
                                 fb_jpeg_chroma chroma, unsigned char *out, int64_t plane) {
    switch (chroma) {
        case FB_CHROMA_FULL: fb_convert_row(y, cb, cr, width, FB_CHROMA_FULL, out, plane); break;
        case FB_CHROMA_H2V1: fb_convert_row(y, cb, cr, width, FB_CHROMA_H2V1, out, plane); break;
        case FB_CHROMA_H2V2: fb_convert_row(y, cb, cr, width, FB_CHROMA_H2V2, out, plane); break;
    }
}

#endif
