/* The few operations on vectors that jpeg_idct.h, jpeg_color.h and jpeg_unstuff.h use, for each kind of processor.
 *
 * A vector has 16 bytes (SSE2, which every x86-64 has, or NEON, which every arm64 has) or 32 (AVX2). Those of 32 bytes
 * have two halves, which never mix: the IDCT has a block in each of them. Where one operator of C says it, the kernels
 * use the compiler's own vectors.
 *
 * libjpeg-turbo's SIMD code for x86-64 and for arm64 differs where coefficients overflow, as no encoder writes them:
 * between the passes of the IDCT, the former saturates and the latter drops bits. fb_narrow() does as the library
 * of its processor does. */
#ifndef FASTBATCH_JPEG_VECTORS_H
#define FASTBATCH_JPEG_VECTORS_H

#include "jpeg_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#ifdef FB_JPEG_USE_AVX2
#define FB_WIDTH 32
#define FB_TARGET FB_JPEG_AVX2
#else
#define FB_WIDTH 16
#define FB_TARGET
#endif
#define FB_VECTOR FB_TARGET FB_JPEG_INLINE

/* What is dropped in the passes of the IDCT. */
#define FB_FIRST_SHIFT 11
#define FB_SECOND_SHIFT 18

/* Unsigned, because these wrap around. */
typedef uint16_t fb_vec __attribute__((vector_size(FB_WIDTH)));
typedef int16_t fb_vec_signed __attribute__((vector_size(FB_WIDTH)));
typedef uint32_t fb_vec32 __attribute__((vector_size(FB_WIDTH)));
typedef int32_t fb_vec32_signed __attribute__((vector_size(FB_WIDTH)));

/* 32-bit values for the 16-bit ones of a vector: those of the lower and of the upper half; with AVX2, of each half. */
typedef struct fb_wide {
    fb_vec32 low, high;
} fb_wide;

FB_VECTOR fb_vec fb_load(const void *from) {
    fb_vec vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

FB_VECTOR void fb_store(void *to, fb_vec vector) {
    memcpy(to, &vector, sizeof vector);
}

FB_VECTOR fb_vec fb_all(int value) {
    return (fb_vec){0} + (uint16_t)value;
}

FB_VECTOR fb_vec fb_shift_right(fb_vec x, const int bits) { /* signed values */
    return (fb_vec)((fb_vec_signed)x >> bits);
}

FB_VECTOR fb_wide fb_add(fb_wide a, fb_wide b) {
    return (fb_wide){a.low + b.low, a.high + b.high};
}

FB_VECTOR fb_wide fb_subtract(fb_wide a, fb_wide b) {
    return (fb_wide){a.low - b.low, a.high - b.high};
}

#if defined(__x86_64__)

#ifdef FB_JPEG_USE_AVX2
#define FB_OP(name) _mm256_##name
typedef __m256i fb_raw;
#else
#define FB_OP(name) _mm_##name
typedef __m128i fb_raw;
#endif

/* Interleave the lower or the upper halves of two vectors; each 8, 16 or 32 bits. */
#define FB_ZIP(bits, half, name) \
    FB_VECTOR fb_vec name(fb_vec a, fb_vec b) { \
        return (fb_vec)FB_OP(unpack##half##_epi##bits)((fb_raw)a, (fb_raw)b); \
    }
FB_ZIP(8, lo, fb_zip8_low)
FB_ZIP(8, hi, fb_zip8_high)
FB_ZIP(16, lo, fb_zip16_low)
FB_ZIP(16, hi, fb_zip16_high)
FB_ZIP(32, lo, fb_zip32_low)
FB_ZIP(32, hi, fb_zip32_high)
#undef FB_ZIP

/* a * x + b * y */
FB_VECTOR fb_wide fb_rotate(fb_vec x, fb_vec y, const int a, const int b) {
    const fb_raw weights = FB_OP(set1_epi32)((int)((uint32_t)(a & 0xffff) | (uint32_t)b << 16));
    return (fb_wide){(fb_vec32)FB_OP(madd_epi16)((fb_raw)fb_zip16_low(x, y), weights),
                     (fb_vec32)FB_OP(madd_epi16)((fb_raw)fb_zip16_high(x, y), weights)};
}

/* x * 2^13, to be narrowed by `shift` bits: with half of its last bit, so that it is rounded. */
FB_VECTOR fb_wide fb_widen(fb_vec x, const int shift) {
    const fb_vec32 low = (fb_vec32)fb_zip16_low((fb_vec){0}, x), high = (fb_vec32)fb_zip16_high((fb_vec){0}, x);
    return (fb_wide){(fb_vec32)((fb_vec32_signed)low >> 3) + (1u << (shift - 1)),
                     (fb_vec32)((fb_vec32_signed)high >> 3) + (1u << (shift - 1))};
}

/* x / 2^shift, in 16 bits with saturation; of sums with one fb_widen(). */
FB_VECTOR fb_vec fb_narrow(fb_wide x, const int shift) {
    return (fb_vec)FB_OP(packs_epi32)((fb_raw)((fb_vec32_signed)x.low >> shift),
                                      (fb_raw)((fb_vec32_signed)x.high >> shift));
}

/* x / 2^16, rounded: 15 bits. */
FB_VECTOR fb_vec fb_high_half(fb_wide x) {
    const fb_vec32 low = x.low + (1u << 15), high = x.high + (1u << 15);
    return (fb_vec)FB_OP(packs_epi32)((fb_raw)((fb_vec32_signed)low >> 16), (fb_raw)((fb_vec32_signed)high >> 16));
}

/* Bytes, saturated: of a in the lower half, of b in the upper one. */
FB_VECTOR fb_vec fb_signed_bytes(fb_vec a, fb_vec b) {
    return (fb_vec)FB_OP(packs_epi16)((fb_raw)a, (fb_raw)b);
}

/* Bytes from 0 to 255, saturated: of `even` and `odd` in turn. */
FB_VECTOR fb_vec fb_join(fb_vec even, fb_vec odd) {
    const fb_raw bytes = FB_OP(packus_epi16)((fb_raw)even, (fb_raw)odd);
#ifdef FB_JPEG_USE_AVX2
    const __m256i order = _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 0, 8, 1, 9, 2, 10, 3,
                                           11, 4, 12, 5, 13, 6, 14, 7, 15);
    return (fb_vec)_mm256_shuffle_epi8(bytes, order);
#else
    return (fb_vec)_mm_unpacklo_epi8(bytes, _mm_srli_si128(bytes, 8));
#endif
}

/* x * factor / 2^15, rounded; x: 14 bits. */
FB_VECTOR fb_vec fb_multiply(fb_vec x, const int factor) {
#ifdef FB_JPEG_USE_AVX2
    return (fb_vec)_mm256_mulhrs_epi16((fb_raw)x, _mm256_set1_epi16((short)factor));
#else
    const fb_vec twice = (fb_vec)_mm_mulhi_epi16((fb_raw)(x << 2), _mm_set1_epi16((short)factor));
    return fb_shift_right(twice + 1, 1);
#endif
}

FB_VECTOR int fb_is_zero(fb_vec x) {
#ifdef FB_JPEG_USE_AVX2
    return _mm256_testz_si256((fb_raw)x, (fb_raw)x);
#else
    return _mm_movemask_epi8(_mm_cmpeq_epi8((fb_raw)x, _mm_setzero_si128())) == 0xffff;
#endif
}

/* 16 bits each for half a vector of bytes. */
FB_VECTOR fb_vec fb_load_bytes(const unsigned char *from) {
#ifdef FB_JPEG_USE_AVX2
    return (fb_vec)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)from));
#else
    return (fb_vec)_mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)from), _mm_setzero_si128());
#endif
}

/* FB_FOUND bits for each byte: set where it is FF. */
#define FB_FOUND 1
FB_VECTOR uint64_t fb_find_ff(fb_vec bytes) {
    return (unsigned)FB_OP(movemask_epi8)(FB_OP(cmpeq_epi8)((fb_raw)bytes, FB_OP(set1_epi8)(-1)));
}

/* Stores the two halves of 16 bytes. */
FB_VECTOR void fb_store_halves(unsigned char *lower, unsigned char *upper, __m128i x) {
    _mm_storel_epi64((__m128i *)lower, x);
    _mm_storeh_pd((double *)upper, _mm_castsi128_pd(x));
}

#undef FB_OP

#else /* arm64 */

typedef uint8x16_t fb_raw;

#define FB_ZIP(type, function, name) \
    FB_VECTOR fb_vec name(fb_vec a, fb_vec b) { \
        return (fb_vec)function((type)a, (type)b); \
    }
FB_ZIP(uint8x16_t, vzip1q_u8, fb_zip8_low)
FB_ZIP(uint8x16_t, vzip2q_u8, fb_zip8_high)
FB_ZIP(uint16x8_t, vzip1q_u16, fb_zip16_low)
FB_ZIP(uint16x8_t, vzip2q_u16, fb_zip16_high)
FB_ZIP(uint32x4_t, vzip1q_u32, fb_zip32_low)
FB_ZIP(uint32x4_t, vzip2q_u32, fb_zip32_high)
#undef FB_ZIP

FB_VECTOR fb_wide fb_rotate(fb_vec x, fb_vec y, const int a, const int b) {
    const int16x8_t first = (int16x8_t)x, second = (int16x8_t)y;
    const int32x4_t low = vmull_n_s16(vget_low_s16(first), (int16_t)a);
    const int32x4_t high = vmull_n_s16(vget_high_s16(first), (int16_t)a);
    return (fb_wide){(fb_vec32)vmlal_n_s16(low, vget_low_s16(second), (int16_t)b),
                     (fb_vec32)vmlal_n_s16(high, vget_high_s16(second), (int16_t)b)};
}

/* Here, fb_narrow() rounds. */
FB_VECTOR fb_wide fb_widen(fb_vec x, const int shift) {
    (void)shift;
    return (fb_wide){(fb_vec32)vshll_n_s16(vget_low_s16((int16x8_t)x), 13),
                     (fb_vec32)vshll_n_s16(vget_high_s16((int16x8_t)x), 13)};
}

FB_VECTOR fb_vec fb_narrow(fb_wide x, const int shift) {
    const int32x4_t low = (int32x4_t)x.low, high = (int32x4_t)x.high;
    if (shift == FB_FIRST_SHIFT) /* in the first pass, without saturation */
        return (fb_vec)vcombine_s16(vrshrn_n_s32(low, FB_FIRST_SHIFT), vrshrn_n_s32(high, FB_FIRST_SHIFT));
    return (fb_vec)vrshrq_n_s16(vcombine_s16(vshrn_n_s32(low, 16), vshrn_n_s32(high, 16)), FB_SECOND_SHIFT - 16);
}

FB_VECTOR fb_vec fb_high_half(fb_wide x) {
    return (fb_vec)vcombine_s16(vrshrn_n_s32((int32x4_t)x.low, 16), vrshrn_n_s32((int32x4_t)x.high, 16));
}

FB_VECTOR fb_vec fb_signed_bytes(fb_vec a, fb_vec b) {
    return (fb_vec)vcombine_s8(vqmovn_s16((int16x8_t)a), vqmovn_s16((int16x8_t)b));
}

FB_VECTOR fb_vec fb_join(fb_vec even, fb_vec odd) {
    const uint8x8x2_t zipped = vzip_u8(vqmovun_s16((int16x8_t)even), vqmovun_s16((int16x8_t)odd));
    return (fb_vec)vcombine_u8(zipped.val[0], zipped.val[1]);
}

FB_VECTOR fb_vec fb_multiply(fb_vec x, const int factor) {
    return (fb_vec)vqrdmulhq_n_s16((int16x8_t)x, (int16_t)factor);
}

FB_VECTOR int fb_is_zero(fb_vec x) {
    return vmaxvq_u16((uint16x8_t)x) == 0;
}

FB_VECTOR fb_vec fb_load_bytes(const unsigned char *from) {
    return (fb_vec)vmovl_u8(vld1_u8(from));
}

FB_VECTOR void fb_store_halves(unsigned char *lower, unsigned char *upper, fb_raw x) {
    vst1_u8(lower, vget_low_u8(x));
    vst1_u8(upper, vget_high_u8(x));
}

#define FB_FOUND 4
FB_VECTOR uint64_t fb_find_ff(fb_vec bytes) {
    const uint8x16_t equal = vceqq_u8((uint8x16_t)bytes, vdupq_n_u8(0xff));
    const uint8x8_t nibbles = vshrn_n_u16(vreinterpretq_u16_u8(equal), 4);
    return vget_lane_u64(vreinterpret_u64_u8(nibbles), 0);
}

#endif

#endif
