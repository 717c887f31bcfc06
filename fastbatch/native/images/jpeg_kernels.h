/* What the JPEG decoder does with vectors: all but the Huffman codes. For each kind of processor compiled from the same
 * lines. */
#ifndef FASTBATCH_JPEG_KERNELS_H
#define FASTBATCH_JPEG_KERNELS_H

#include "jpeg_huffman.h"

/* Processors that have kernels: x86-64, and arm64 in its usual byte order. */
#if defined(__x86_64__) || (defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#define FB_JPEG_KERNELS 1
#else
#define FB_JPEG_KERNELS 0
#endif

#define FB_JPEG_AVX2 __attribute__((target("avx2,bmi,bmi2")))

#define FB_JPEG_GROUP 32 /* the most samples or pixels that are read or written together */

/* Where a row's chroma comes from: its own samples, or interpolation along the row, or along and across rows. */
typedef enum fb_jpeg_chroma { FB_CHROMA_FULL, FB_CHROMA_H2V1, FB_CHROMA_H2V2 } fb_jpeg_chroma;

/* Two blocks of coefficients; where their samples go; the quantization tables row by row, each row of the first block's
 * before that of the second. */
typedef struct fb_jpeg_blocks {
    int16_t *first, *second;
    const int16_t *scale;
    unsigned char *out1, *out2;
    int64_t stride1, stride2;
} fb_jpeg_blocks;

typedef struct fb_jpeg_kernels {
    const char *name;
    int with_bmi; /* the processor shifts by any number of bits in one instruction */

    /* Copies a scan's data without the zeros that are stuffed behind bytes FF, up to a byte FF with anything else
     * behind it, or to the end. *from: where it stopped. Returns the number of bytes. Writes up to FB_JPEG_GROUP bytes
     * behind, and never more than it reads. */
    int64_t (*unstuff)(const unsigned char **from, const unsigned char *end, unsigned char *to);

    /* Counts the bytes FF. Reads up to FB_JPEG_GROUP bytes behind. */
    int64_t (*count_ff)(const unsigned char *from, const unsigned char *end);

    /* Transforms two blocks, and clears them. */
    void (*transform)(const fb_jpeg_blocks *blocks);

    /* Chroma samples across rows, in 16 bits: 3 * near + far; or near, if far is NULL. Writes whole groups. */
    void (*sum_rows)(const unsigned char *near, const unsigned char *far, int64_t count, int16_t *sums);

    /* Interpolates samples across rows: 3/4 of near, 1/4 of far. `bias`: 1 or 2 quarters, for rounding. Reads and writes
     * whole groups. */
    void (*mix_rows)(const unsigned char *near, const unsigned char *far, int64_t count, int bias, unsigned char *out);

    /* Converts a row from an even column on. `cb`, `cr`: sums, of which the neighbors on both sides count, too; for
     * FB_CHROMA_FULL the samples themselves. `plane`: bytes from a row of blue to one of green, and from there to
     * red. Reads and writes whole groups. */
    void (*convert)(const unsigned char *y, const void *cb, const void *cr, int64_t width, fb_jpeg_chroma chroma,
                    unsigned char *out, int64_t plane);
} fb_jpeg_kernels;

extern const fb_jpeg_kernels fb_jpeg_avx2; /* for processors with AVX2, BMI1 and BMI2 */
extern const fb_jpeg_kernels fb_jpeg_base; /* for every processor of this kind */

#endif
