/* The inverse DCT of two blocks at once, with AVX2: one block in each half of a register.
 *
 * It is the accurate integer IDCT of the IJG ("islow": Loeffler, Ligtenberg and Moschytz, 11 multiplications in
 * 13-bit fixed point), with the widths of libjpeg-turbo's SIMD code: 16-bit dequantization and additions that wrap
 * around, sums of 32 bits, 16 bits with saturation between the passes. Therefore even coefficients that no encoder
 * writes give the same bits. A pass takes 8 x 8 values as 8 registers and works across them. Two blocks take 29 ns,
 * together a tenth of the time for a crop. */
#ifndef FASTBATCH_JPEG_IDCT_H
#define FASTBATCH_JPEG_IDCT_H

#include "jpeg_huffman.h"

#include <immintrin.h>

#define FB_JPEG_AVX2 __attribute__((target("avx2,bmi,bmi2")))

/* Constants with 13 bits behind the binary point. */
#define FB_FIX(x) ((int)((x) * (1 << 13) + 0.5))

/* For _mm256_madd_epi16 of two interleaved registers: a * x + b * y. */
FB_JPEG_AVX2 FB_JPEG_INLINE __m256i fb_jpeg_weights(int a, int b) {
    return _mm256_set1_epi32((int)((uint32_t)(a & 0xffff) | (uint32_t)b << 16));
}

typedef struct fb_jpeg_wide {
    __m256i low, high; /* 32-bit values: columns 0 to 3 and 4 to 7 of both blocks */
} fb_jpeg_wide;

FB_JPEG_AVX2 FB_JPEG_INLINE fb_jpeg_wide fb_jpeg_rotate(__m256i x, __m256i y, __m256i weights) {
    return (fb_jpeg_wide){_mm256_madd_epi16(_mm256_unpacklo_epi16(x, y), weights),
                          _mm256_madd_epi16(_mm256_unpackhi_epi16(x, y), weights)};
}

FB_JPEG_AVX2 FB_JPEG_INLINE fb_jpeg_wide fb_jpeg_add(fb_jpeg_wide a, fb_jpeg_wide b) {
    return (fb_jpeg_wide){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

FB_JPEG_AVX2 FB_JPEG_INLINE fb_jpeg_wide fb_jpeg_subtract(fb_jpeg_wide a, fb_jpeg_wide b) {
    return (fb_jpeg_wide){_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}

/* x * 2^13 + bias */
FB_JPEG_AVX2 FB_JPEG_INLINE fb_jpeg_wide fb_jpeg_widen(__m256i x, __m256i bias) {
    const __m256i zero = _mm256_setzero_si256();
    return (fb_jpeg_wide){_mm256_add_epi32(_mm256_srai_epi32(_mm256_unpacklo_epi16(zero, x), 3), bias),
                          _mm256_add_epi32(_mm256_srai_epi32(_mm256_unpackhi_epi16(zero, x), 3), bias)};
}

FB_JPEG_AVX2 FB_JPEG_INLINE __m256i fb_jpeg_narrow(fb_jpeg_wide x, const int shift) {
    return _mm256_packs_epi32(_mm256_srai_epi32(x.low, shift), _mm256_srai_epi32(x.high, shift));
}

/* Eight registers, by name: gcc keeps arrays in memory. */
typedef struct fb_jpeg_eight {
    __m256i v0, v1, v2, v3, v4, v5, v6, v7;
} fb_jpeg_eight;

/* One pass. `shift`: the bits that are dropped, rounded. */
FB_JPEG_AVX2 FB_JPEG_INLINE fb_jpeg_eight fb_jpeg_idct_pass(fb_jpeg_eight in, const int shift) {
    const __m256i bias = _mm256_set1_epi32(1 << (shift - 1));
    /* the even part */
    const fb_jpeg_wide even2 =
        fb_jpeg_rotate(in.v2, in.v6, fb_jpeg_weights(FB_FIX(0.541196100), FB_FIX(0.541196100) - FB_FIX(1.847759065)));
    const fb_jpeg_wide even3 =
        fb_jpeg_rotate(in.v2, in.v6, fb_jpeg_weights(FB_FIX(0.541196100) + FB_FIX(0.765366865), FB_FIX(0.541196100)));
    const fb_jpeg_wide even0 = fb_jpeg_widen(_mm256_add_epi16(in.v0, in.v4), bias);
    const fb_jpeg_wide even1 = fb_jpeg_widen(_mm256_sub_epi16(in.v0, in.v4), bias);
    const fb_jpeg_wide a0 = fb_jpeg_add(even0, even3), a3 = fb_jpeg_subtract(even0, even3);
    const fb_jpeg_wide a1 = fb_jpeg_add(even1, even2), a2 = fb_jpeg_subtract(even1, even2);
    /* the odd part */
    const __m256i sum73 = _mm256_add_epi16(in.v7, in.v3), sum51 = _mm256_add_epi16(in.v5, in.v1);
    const fb_jpeg_wide z3 =
        fb_jpeg_rotate(sum73, sum51, fb_jpeg_weights(FB_FIX(1.175875602) - FB_FIX(1.961570560), FB_FIX(1.175875602)));
    const fb_jpeg_wide z4 =
        fb_jpeg_rotate(sum73, sum51, fb_jpeg_weights(FB_FIX(1.175875602), FB_FIX(1.175875602) - FB_FIX(0.390180644)));
    const __m256i weights0 = fb_jpeg_weights(FB_FIX(0.298631336) - FB_FIX(0.899976223), -FB_FIX(0.899976223));
    const __m256i weights1 = fb_jpeg_weights(FB_FIX(2.053119869) - FB_FIX(2.562915447), -FB_FIX(2.562915447));
    const __m256i weights2 = fb_jpeg_weights(-FB_FIX(2.562915447), FB_FIX(3.072711026) - FB_FIX(2.562915447));
    const __m256i weights3 = fb_jpeg_weights(-FB_FIX(0.899976223), FB_FIX(1.501321110) - FB_FIX(0.899976223));
    const fb_jpeg_wide b0 = fb_jpeg_add(z3, fb_jpeg_rotate(in.v7, in.v1, weights0));
    const fb_jpeg_wide b1 = fb_jpeg_add(z4, fb_jpeg_rotate(in.v5, in.v3, weights1));
    const fb_jpeg_wide b2 = fb_jpeg_add(z3, fb_jpeg_rotate(in.v5, in.v3, weights2));
    const fb_jpeg_wide b3 = fb_jpeg_add(z4, fb_jpeg_rotate(in.v7, in.v1, weights3));
    return (fb_jpeg_eight){
        fb_jpeg_narrow(fb_jpeg_add(a0, b3), shift),      fb_jpeg_narrow(fb_jpeg_add(a1, b2), shift),
        fb_jpeg_narrow(fb_jpeg_add(a2, b1), shift),      fb_jpeg_narrow(fb_jpeg_add(a3, b0), shift),
        fb_jpeg_narrow(fb_jpeg_subtract(a3, b0), shift), fb_jpeg_narrow(fb_jpeg_subtract(a2, b1), shift),
        fb_jpeg_narrow(fb_jpeg_subtract(a1, b2), shift), fb_jpeg_narrow(fb_jpeg_subtract(a0, b3), shift)};
}

/* A third of a transposition: interleaves the first four registers with the others. */
FB_JPEG_AVX2 FB_JPEG_INLINE fb_jpeg_eight fb_jpeg_interleave(fb_jpeg_eight in) {
    return (fb_jpeg_eight){_mm256_unpacklo_epi16(in.v0, in.v4), _mm256_unpackhi_epi16(in.v0, in.v4),
                           _mm256_unpacklo_epi16(in.v1, in.v5), _mm256_unpackhi_epi16(in.v1, in.v5),
                           _mm256_unpacklo_epi16(in.v2, in.v6), _mm256_unpackhi_epi16(in.v2, in.v6),
                           _mm256_unpacklo_epi16(in.v3, in.v7), _mm256_unpackhi_epi16(in.v3, in.v7)};
}

/* libjpeg-turbo's shortcut for a block with nothing below its first row: the first pass is a shift. It differs where
 * the pass would saturate, in blocks that no encoder writes. `flat`: the shift; `below`: the rows below, or-ed. */
FB_JPEG_AVX2 static __attribute__((noinline)) fb_jpeg_eight fb_jpeg_flatten(fb_jpeg_eight v, __m256i flat,
                                                                            __m256i below) {
    const __m128i low = _mm256_castsi256_si128(below), high = _mm256_extracti128_si256(below, 1);
    const __m256i halves = _mm256_set_m128i(_mm_set1_epi8((char)-_mm_testz_si128(high, high)),
                                            _mm_set1_epi8((char)-_mm_testz_si128(low, low)));
    return (fb_jpeg_eight){_mm256_blendv_epi8(v.v0, flat, halves), _mm256_blendv_epi8(v.v1, flat, halves),
                           _mm256_blendv_epi8(v.v2, flat, halves), _mm256_blendv_epi8(v.v3, flat, halves),
                           _mm256_blendv_epi8(v.v4, flat, halves), _mm256_blendv_epi8(v.v5, flat, halves),
                           _mm256_blendv_epi8(v.v6, flat, halves), _mm256_blendv_epi8(v.v7, flat, halves)};
}

/* A row of the first block, and of the second. */
FB_JPEG_AVX2 FB_JPEG_INLINE __m256i fb_jpeg_load_rows(const int16_t *first, const int16_t *second) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128((const __m128i *)first)),
                                   _mm_load_si128((const __m128i *)second), 1);
}

FB_JPEG_AVX2 FB_JPEG_INLINE __m256i fb_jpeg_scale(__m256i rows, const int16_t *scale) {
    return _mm256_mullo_epi16(rows, _mm256_load_si256((const __m256i *)scale));
}

/* Stores two rows of the first block and two of the second. */
FB_JPEG_AVX2 FB_JPEG_INLINE void fb_jpeg_store_rows(__m256i rows, unsigned char *out1, int64_t stride1,
                                                    unsigned char *out2, int64_t stride2) {
    const __m128i rows1 = _mm256_castsi256_si128(rows), rows2 = _mm256_extracti128_si256(rows, 1);
    _mm_storel_epi64((__m128i *)out1, rows1);
    _mm_storeh_pi((__m64 *)(out1 + stride1), _mm_castsi128_ps(rows1));
    _mm_storel_epi64((__m128i *)out2, rows2);
    _mm_storeh_pi((__m64 *)(out2 + stride2), _mm_castsi128_ps(rows2));
}

/* Transforms two blocks, and clears them. `scale`: the quantization tables, row by row, each row of the first block's
 * before that of the second. */
FB_JPEG_AVX2 static __attribute__((noinline)) void fb_jpeg_idct(int16_t *first, int16_t *second, const int16_t *scale,
                                                                unsigned char *out1, int64_t stride1,
                                                                unsigned char *out2, int64_t stride2) {
    fb_jpeg_eight v = {fb_jpeg_load_rows(first, second),           fb_jpeg_load_rows(first + 8, second + 8),
                       fb_jpeg_load_rows(first + 16, second + 16), fb_jpeg_load_rows(first + 24, second + 24),
                       fb_jpeg_load_rows(first + 32, second + 32), fb_jpeg_load_rows(first + 40, second + 40),
                       fb_jpeg_load_rows(first + 48, second + 48), fb_jpeg_load_rows(first + 56, second + 56)};
#define CLEAR(block) \
    _mm256_store_si256((__m256i *)(block), _mm256_setzero_si256()); \
    _mm256_store_si256((__m256i *)(block) + 1, _mm256_setzero_si256()); \
    _mm256_store_si256((__m256i *)(block) + 2, _mm256_setzero_si256()); \
    _mm256_store_si256((__m256i *)(block) + 3, _mm256_setzero_si256())
    CLEAR(first); /* not in a loop, of which gcc makes a slow `rep stos` */
    CLEAR(second);
#undef CLEAR
    const __m256i below = _mm256_or_si256(_mm256_or_si256(_mm256_or_si256(v.v1, v.v2), _mm256_or_si256(v.v3, v.v4)),
                                          _mm256_or_si256(_mm256_or_si256(v.v5, v.v6), v.v7));
    v.v0 = fb_jpeg_scale(v.v0, scale);
    const __m256i flat = _mm256_slli_epi16(v.v0, 2);
    if (_mm256_testz_si256(below, below)) {
        v = (fb_jpeg_eight){flat, flat, flat, flat, flat, flat, flat, flat};
    } else {
        const __m256i fits = _mm256_cmpeq_epi16(_mm256_srai_epi16(flat, 2), v.v0);
        v = fb_jpeg_idct_pass((fb_jpeg_eight){v.v0, fb_jpeg_scale(v.v1, scale + 16), fb_jpeg_scale(v.v2, scale + 32),
                                              fb_jpeg_scale(v.v3, scale + 48), fb_jpeg_scale(v.v4, scale + 64),
                                              fb_jpeg_scale(v.v5, scale + 80), fb_jpeg_scale(v.v6, scale + 96),
                                              fb_jpeg_scale(v.v7, scale + 112)},
                              11);
        if (!FB_LIKELY(_mm256_movemask_epi8(fits) == -1)) v = fb_jpeg_flatten(v, flat, below);
    }
    v = fb_jpeg_idct_pass(fb_jpeg_interleave(fb_jpeg_interleave(fb_jpeg_interleave(v))), 18);

    /* Now v0 to v7 are columns. To bytes around 128, and back to rows: columns 0 and 1, 4 and 5, 2 and 3, 6 and 7; then
     * four columns, then eight. */
    const __m256i center = _mm256_set1_epi8(-128);
    const __m256i c04 = _mm256_add_epi8(_mm256_packs_epi16(v.v0, v.v4), center);
    const __m256i c15 = _mm256_add_epi8(_mm256_packs_epi16(v.v1, v.v5), center);
    const __m256i c26 = _mm256_add_epi8(_mm256_packs_epi16(v.v2, v.v6), center);
    const __m256i c37 = _mm256_add_epi8(_mm256_packs_epi16(v.v3, v.v7), center);
    const __m256i c01 = _mm256_unpacklo_epi8(c04, c15), c45 = _mm256_unpackhi_epi8(c04, c15);
    const __m256i c23 = _mm256_unpacklo_epi8(c26, c37), c67 = _mm256_unpackhi_epi8(c26, c37);
    const __m256i left0 = _mm256_unpacklo_epi16(c01, c23), left4 = _mm256_unpackhi_epi16(c01, c23);
    const __m256i right0 = _mm256_unpacklo_epi16(c45, c67), right4 = _mm256_unpackhi_epi16(c45, c67);
    fb_jpeg_store_rows(_mm256_unpacklo_epi32(left0, right0), out1, stride1, out2, stride2);
    out1 += 2 * stride1, out2 += 2 * stride2;
    fb_jpeg_store_rows(_mm256_unpackhi_epi32(left0, right0), out1, stride1, out2, stride2);
    out1 += 2 * stride1, out2 += 2 * stride2;
    fb_jpeg_store_rows(_mm256_unpacklo_epi32(left4, right4), out1, stride1, out2, stride2);
    out1 += 2 * stride1, out2 += 2 * stride2;
    fb_jpeg_store_rows(_mm256_unpackhi_epi32(left4, right4), out1, stride1, out2, stride2);
}

#endif
