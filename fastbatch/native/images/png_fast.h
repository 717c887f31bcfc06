/* Decodes PNG images of the usual kinds with libdeflate, several times as fast as libpng. */
#ifndef FASTBATCH_PNG_FAST_H
#define FASTBATCH_PNG_FAST_H

#include "format.h"

/* What libpng has read of the image, up to its first chunk of pixels. */
typedef struct fb_png_header {
    int64_t height, width;
    int color_type;               /* as in the file */
    const unsigned char *palette; /* red, green, blue of each color; or NULL */
    int colors;
    int channels; /* of the decoded image */
} fb_png_header;

/* Decodes the region of an image of 8 bits per channel that is not interlaced. `at`: where its first chunk of pixels
 * begins in the file. *decompressor: kept from image to image; NULL at first.
 *
 * Returns 1, or 0 if the image is not plainly good: then libpng decodes it, or says what is wrong with it. */
int fb_png_fast(void **decompressor, const fb_png_header *header, const unsigned char *bytes, size_t size, size_t at,
                const fb_region *region, fb_arena *arena, fb_rows *rows);
void fb_png_fast_close(void *decompressor);

/* For tests and benchmarks. Turns the fast way on or off, and returns whether it is on: never without libdeflate. */
int fb_png_fast_use(int on);

#endif
