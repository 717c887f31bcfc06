/* The loops that convert pixels to floats, one set per instruction set, and the choice among them at run time. One
 * build runs everywhere. */
#ifndef FASTBATCH_KERNELS_H
#define FASTBATCH_KERNELS_H

#include "fastbatch.h"

#define FB_BLOCK 16 /* pixels processed at a time: a cache line of floats */

/* One channel, with everything that its pixels need. */
typedef struct fb_plane {
    const unsigned char *pixels;      /* the first pixel */
    int64_t row_stride, pixel_stride; /* bytes */
    int bytes;                        /* uint8; otherwise float32 */
    const float *mean_rows;           /* the mean image at the same position, or NULL */
    int64_t mean_stride;              /* floats from one of its rows to the next */
    int mean_stays;                   /* `mirror` applies to the pixels, not to the mean image */
    float mean, scale;                /* `mean` is 0 if there is none: v - 0 is v, to the bit */
    int64_t height, width;
    int mirror;
    int64_t out_stride; /* floats from one row of the output to the next; stream() ignores it: rows are contiguous */
} fb_plane;

/* The current end of streamed output: the incomplete cache line. */
typedef struct fb_edge {
    float *line;     /* its address, 64-byte aligned */
    int64_t used;    /* floats of it that are already computed, or foreign */
    int64_t foreign; /* leading floats that belong to what precedes the output; nonzero in the first line only */
    _Alignas(64) float floats[3 * FB_BLOCK];
} fb_edge;

/* store() and stream() require planes with contiguous pixels, at least FB_BLOCK per row, and a mean image that is
 * mirrored with the pixels. A new instruction set is a row of the table in kernels.c. */
typedef struct fb_kernel {
    const char *name;
    void (*store)(const fb_plane *plane, float *out);
    /* Bypasses the caches. NULL: this kernel always writes through them. */
    void (*stream)(const fb_plane *plane, fb_edge *edge);
    /* Deinterleaves a row of three channels, at least FB_BLOCK pixels. */
    void (*deinterleave)(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]);
    /* Converts to float16, rounding half to even. */
    void (*halve)(const float *values, int64_t count, uint16_t *out);
} fb_kernel;

/* The kernel in use, by default the best one that this processor supports. */
const fb_kernel *fb_kernel_in_use(void);

/* Converts any plane, pixel by pixel. */
void fb_any_plane(const fb_plane *plane, float *out);

void fb_begin_stream(fb_edge *edge, float *out);

/* Writes the stream's last, incomplete cache line. The stream's writes are ordered before the caller's next stores. */
void fb_end_stream(const fb_edge *edge);

/* "avx512", "avx2", "neon" or "generic". */
const char *fb_kernel_name(void);

/* For tests and benchmarks: selects a kernel by name, or the best one if `name` is NULL. Returns -1 if the processor
 * does not support it. */
int fb_kernel_choose(const char *name);

#endif
