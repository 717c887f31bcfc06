#include "interleave.h"

#include "collate.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

enum { PIXELS = 32 }; /* at a time */

/* 16 pixels in each half become 48 bytes of each half. A byte's place in its register is 3 * pixel + channel modulo 16,
 * whatever the register; so one shuffle for each channel puts its bytes there, and blends select among the channels. */
AVX2 static void store_pixels(const unsigned char *blue, const unsigned char *green, const unsigned char *red,
                              unsigned char *out) {
#define LOAD(channel) _mm256_loadu_si256((const __m256i *)(channel))
#define TWICE(...) _mm256_setr_epi8(__VA_ARGS__, __VA_ARGS__)
    const __m256i b = _mm256_shuffle_epi8(LOAD(blue), TWICE(0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10, 5));
    const __m256i g = _mm256_shuffle_epi8(LOAD(green), TWICE(5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15, 10));
    const __m256i r = _mm256_shuffle_epi8(LOAD(red), TWICE(10, 5, 0, 11, 6, 1, 12, 7, 2, 13, 8, 3, 14, 9, 4, 15));
    /* -1 at the places 1, 4, ..., 13; at 2, 5, ..., 14 */
    const __m256i at1 = TWICE(0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0);
    const __m256i at2 = TWICE(0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0);
#undef TWICE
#undef LOAD
    const __m256i part0 = _mm256_blendv_epi8(_mm256_blendv_epi8(b, g, at1), r, at2);
    const __m256i part1 = _mm256_blendv_epi8(_mm256_blendv_epi8(g, r, at1), b, at2);
    const __m256i part2 = _mm256_blendv_epi8(_mm256_blendv_epi8(r, b, at1), g, at2);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(part0, part1, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 32), _mm256_permute2x128_si256(part2, part0, 0x30));
    _mm256_storeu_si256((__m256i *)(out + 64), _mm256_permute2x128_si256(part1, part2, 0x31));
}

AVX2 static void interleave_planes(const fb_view *image, unsigned char *out) {
    const int64_t width = image->shape[2], plane = image->strides[0];
    const unsigned char *row = image->data;
    for (int64_t y = 0; y < image->shape[1]; y++, row += image->strides[1], out += 3 * width) {
        for (int64_t x = 0; x < width; x += PIXELS) {
            const int64_t at = x + PIXELS <= width ? x : width - PIXELS; /* the last group overlaps the one before */
            store_pixels(row + at, row + plane + at, row + 2 * plane + at, out + 3 * at);
        }
    }
}

static int has_vectors(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

#endif

void fb_interleave(const fb_view *image, unsigned char *out) {
    fb_view turned = *image;
    for (int axis = 0; axis < 3; axis++) {
        turned.shape[axis] = image->shape[(axis + 1) % 3];
        turned.strides[axis] = image->strides[(axis + 1) % 3];
    }
#if defined(__x86_64__)
    if (image->shape[0] == 3 && image->strides[2] == 1 && image->shape[2] >= PIXELS && has_vectors()) {
        interleave_planes(image, out);
        return;
    }
#endif
    fb_collate(&turned, (char *)out, FB_UINT8, NULL);
}
