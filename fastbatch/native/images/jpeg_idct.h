/* The inverse DCT of a block, or with AVX2 of two at once: one in each half of a vector.
 *
 * It is the accurate integer IDCT of the IJG ("islow": Loeffler, Ligtenberg and Moschytz, 11 multiplications in
 * 13-bit fixed point), with the widths of libjpeg-turbo's SIMD code: 16-bit dequantization and additions that wrap
 * around, sums of 32 bits, 16 bits between the passes. Therefore even coefficients that no encoder writes give the same
 * bits. A pass takes 8 x 8 values as 8 vectors and works across them. With AVX2, two blocks take 29 ns, together a
 * tenth of the time for a crop. */
#ifndef FASTBATCH_JPEG_IDCT_H
#define FASTBATCH_JPEG_IDCT_H

#include "jpeg_vectors.h"

/* Constants with 13 bits behind the binary point. */
#define FB_FIX(x) ((int)((x) * (1 << 13) + 0.5))

/* Eight vectors, by name: gcc keeps arrays in memory. */
typedef struct fb_eight {
    fb_vec v0, v1, v2, v3, v4, v5, v6, v7;
} fb_eight;

/* One pass. `shift`: the bits that are dropped, rounded. */
FB_VECTOR fb_eight fb_idct_pass(fb_eight in, const int shift) {
    /* the even part */
    const fb_wide even2 = fb_rotate(in.v2, in.v6, FB_FIX(0.541196100), FB_FIX(0.541196100) - FB_FIX(1.847759065));
    const fb_wide even3 = fb_rotate(in.v2, in.v6, FB_FIX(0.541196100) + FB_FIX(0.765366865), FB_FIX(0.541196100));
    const fb_wide even0 = fb_widen(in.v0 + in.v4, shift), even1 = fb_widen(in.v0 - in.v4, shift);
    const fb_wide a0 = fb_add(even0, even3), a3 = fb_subtract(even0, even3);
    const fb_wide a1 = fb_add(even1, even2), a2 = fb_subtract(even1, even2);
    /* the odd part */
    const fb_vec sum73 = in.v7 + in.v3, sum51 = in.v5 + in.v1;
    const fb_wide z3 = fb_rotate(sum73, sum51, FB_FIX(1.175875602) - FB_FIX(1.961570560), FB_FIX(1.175875602));
    const fb_wide z4 = fb_rotate(sum73, sum51, FB_FIX(1.175875602), FB_FIX(1.175875602) - FB_FIX(0.390180644));
    const fb_wide b0 =
        fb_add(z3, fb_rotate(in.v7, in.v1, FB_FIX(0.298631336) - FB_FIX(0.899976223), -FB_FIX(0.899976223)));
    const fb_wide b1 =
        fb_add(z4, fb_rotate(in.v5, in.v3, FB_FIX(2.053119869) - FB_FIX(2.562915447), -FB_FIX(2.562915447)));
    const fb_wide b2 =
        fb_add(z3, fb_rotate(in.v5, in.v3, -FB_FIX(2.562915447), FB_FIX(3.072711026) - FB_FIX(2.562915447)));
    const fb_wide b3 =
        fb_add(z4, fb_rotate(in.v7, in.v1, -FB_FIX(0.899976223), FB_FIX(1.501321110) - FB_FIX(0.899976223)));
    return (fb_eight){fb_narrow(fb_add(a0, b3), shift),      fb_narrow(fb_add(a1, b2), shift),
                      fb_narrow(fb_add(a2, b1), shift),      fb_narrow(fb_add(a3, b0), shift),
                      fb_narrow(fb_subtract(a3, b0), shift), fb_narrow(fb_subtract(a2, b1), shift),
                      fb_narrow(fb_subtract(a1, b2), shift), fb_narrow(fb_subtract(a0, b3), shift)};
}

/* A third of a transposition: interleaves the first four vectors with the others. */
FB_VECTOR fb_eight fb_interleave_eight(fb_eight in) {
    return (fb_eight){fb_zip16_low(in.v0, in.v4),  fb_zip16_high(in.v0, in.v4), fb_zip16_low(in.v1, in.v5),
                      fb_zip16_high(in.v1, in.v5), fb_zip16_low(in.v2, in.v6),  fb_zip16_high(in.v2, in.v6),
                      fb_zip16_low(in.v3, in.v7),  fb_zip16_high(in.v3, in.v7)};
}

/* Row `row` of the coefficients. */
FB_VECTOR fb_vec fb_load_row(const fb_jpeg_blocks *blocks, const int row) {
#ifdef FB_JPEG_USE_AVX2
    return (fb_vec)_mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_load_si128((const __m128i *)(blocks->first + 8 * row))),
        _mm_load_si128((const __m128i *)(blocks->second + 8 * row)), 1);
#else
    return fb_load(blocks->first + 8 * row);
#endif
}

FB_VECTOR void fb_clear(int16_t *block) {
    enum { COUNT = FB_WIDTH / sizeof *block };
    fb_store(block, (fb_vec){0}); /* not in a loop, of which gcc makes a slow `rep stos` */
    fb_store(block + COUNT, (fb_vec){0});
    fb_store(block + 2 * COUNT, (fb_vec){0});
    fb_store(block + 3 * COUNT, (fb_vec){0});
    if (FB_WIDTH == 32) return;
    fb_store(block + 4 * COUNT, (fb_vec){0});
    fb_store(block + 5 * COUNT, (fb_vec){0});
    fb_store(block + 6 * COUNT, (fb_vec){0});
    fb_store(block + 7 * COUNT, (fb_vec){0});
}

FB_VECTOR fb_vec fb_scale_row(const fb_jpeg_blocks *blocks, fb_vec rows, const int row) {
    return rows * fb_load(blocks->scale + 16 * row);
}

/* Stores rows `row` and `row` + 1 of each block. */
FB_VECTOR void fb_store_rows(const fb_jpeg_blocks *blocks, fb_vec rows, const int row) {
    unsigned char *out = blocks->out1 + row * blocks->stride1;
#ifdef FB_JPEG_USE_AVX2
    fb_store_halves(out, out + blocks->stride1, _mm256_castsi256_si128((__m256i)rows));
    out = blocks->out2 + row * blocks->stride2;
    fb_store_halves(out, out + blocks->stride2, _mm256_extracti128_si256((__m256i)rows, 1));
#else
    fb_store_halves(out, out + blocks->stride1, (fb_raw)rows);
#endif
}

#ifdef FB_JPEG_USE_AVX2
/* libjpeg-turbo's shortcut for a block with nothing below its first row: the first pass is a shift. It differs where
 * the pass would saturate, in blocks that no encoder writes. `flat`: the shift; `below`: the rows below, or-ed. */
FB_TARGET static __attribute__((noinline)) fb_eight fb_flatten(fb_eight v, fb_vec flat, fb_vec below) {
    const __m128i low = _mm256_castsi256_si128((__m256i)below), high = _mm256_extracti128_si256((__m256i)below, 1);
    const fb_vec halves = (fb_vec)_mm256_set_m128i(_mm_set1_epi8((char)-_mm_testz_si128(high, high)),
                                                   _mm_set1_epi8((char)-_mm_testz_si128(low, low)));
#define FLATTEN(v) ((flat & halves) | (v & ~halves))
    return (fb_eight){FLATTEN(v.v0), FLATTEN(v.v1), FLATTEN(v.v2), FLATTEN(v.v3),
                      FLATTEN(v.v4), FLATTEN(v.v5), FLATTEN(v.v6), FLATTEN(v.v7)};
#undef FLATTEN
}
#endif

/* Transforms the blocks of a vector, and clears them. */
FB_TARGET static void fb_transform(const fb_jpeg_blocks *blocks) {
    fb_eight v = {fb_load_row(blocks, 0), fb_load_row(blocks, 1), fb_load_row(blocks, 2), fb_load_row(blocks, 3),
                  fb_load_row(blocks, 4), fb_load_row(blocks, 5), fb_load_row(blocks, 6), fb_load_row(blocks, 7)};
    fb_clear(blocks->first);
    if (FB_WIDTH == 32) fb_clear(blocks->second);
    const fb_vec below = v.v1 | v.v2 | v.v3 | v.v4 | v.v5 | v.v6 | v.v7;
    v.v0 = fb_scale_row(blocks, v.v0, 0);
    const fb_vec flat = v.v0 << 2;
    if (fb_is_zero(below)) {
        v = (fb_eight){flat, flat, flat, flat, flat, flat, flat, flat};
    } else {
#ifdef FB_JPEG_USE_AVX2
        const int fits = fb_is_zero(fb_shift_right(flat, 2) ^ v.v0);
#endif
        v = fb_idct_pass((fb_eight){v.v0, fb_scale_row(blocks, v.v1, 1), fb_scale_row(blocks, v.v2, 2),
                                    fb_scale_row(blocks, v.v3, 3), fb_scale_row(blocks, v.v4, 4),
                                    fb_scale_row(blocks, v.v5, 5), fb_scale_row(blocks, v.v6, 6),
                                    fb_scale_row(blocks, v.v7, 7)},
                         FB_FIRST_SHIFT);
#ifdef FB_JPEG_USE_AVX2
        if (!FB_LIKELY(fits)) v = fb_flatten(v, flat, below);
#endif
    }
    v = fb_idct_pass(fb_interleave_eight(fb_interleave_eight(fb_interleave_eight(v))), FB_SECOND_SHIFT);

    /* Now v0 to v7 are columns. To bytes around 128, and back to rows: columns 0 and 1, 4 and 5, 2 and 3, 6 and 7; then
     * four columns, then eight. */
    const fb_vec center = fb_all(0x8080);
    const fb_vec c04 = fb_signed_bytes(v.v0, v.v4) ^ center, c15 = fb_signed_bytes(v.v1, v.v5) ^ center;
    const fb_vec c26 = fb_signed_bytes(v.v2, v.v6) ^ center, c37 = fb_signed_bytes(v.v3, v.v7) ^ center;
    const fb_vec c01 = fb_zip8_low(c04, c15), c45 = fb_zip8_high(c04, c15);
    const fb_vec c23 = fb_zip8_low(c26, c37), c67 = fb_zip8_high(c26, c37);
    const fb_vec left0 = fb_zip16_low(c01, c23), left4 = fb_zip16_high(c01, c23);
    const fb_vec right0 = fb_zip16_low(c45, c67), right4 = fb_zip16_high(c45, c67);
    fb_store_rows(blocks, fb_zip32_low(left0, right0), 0);
    fb_store_rows(blocks, fb_zip32_high(left0, right0), 2);
    fb_store_rows(blocks, fb_zip32_low(left4, right4), 4);
    fb_store_rows(blocks, fb_zip32_high(left4, right4), 6);
}

/* Transforms two blocks, and clears them. */
FB_TARGET static void fb_idct(const fb_jpeg_blocks *blocks) {
    fb_transform(blocks);
#ifndef FB_JPEG_USE_AVX2
    const fb_jpeg_blocks second = {
        .first = blocks->second, .scale = blocks->scale + 8, .out1 = blocks->out2, .stride1 = blocks->stride2};
    fb_transform(&second);
#endif
}

#endif
