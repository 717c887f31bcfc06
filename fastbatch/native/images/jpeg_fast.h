/* A baseline JPEG decoder with libjpeg-turbo's bits, at twice its speed, for what almost all photographs are. */
#ifndef FASTBATCH_JPEG_FAST_H
#define FASTBATCH_JPEG_FAST_H

#include "format.h"

#include <jpeglib.h>

typedef struct fb_jpeg_fast fb_jpeg_fast; /* what is kept from image to image */

fb_jpeg_fast *fb_jpeg_fast_open(void); /* returns NULL if memory runs out */
void fb_jpeg_fast_close(fb_jpeg_fast *fast);

/* Whether this processor can run it. */
int fb_jpeg_fast_runs_here(void);

/* Decodes the region's rows and columns, and possibly some around them, after jpeg_read_header(). `library` stays as
 * it is. `end`: of the file. Returns 1; 0 if the image is not one for this decoder, or not plainly good, so that
 * libjpeg has to decode it; or -1 with *error. */
int fb_jpeg_fast_read(fb_jpeg_fast *fast, const struct jpeg_decompress_struct *library, const unsigned char *end,
                      const fb_region *region, int channels, fb_arena *arena, fb_rows *rows, fb_error *error);

/* Whether JPEG images are decoded with it, where possible: it runs here, and gives the bits of libjpeg. */
int fb_jpeg_fast_in_use(void);

/* Switches it on or off. Returns -1 if it cannot be used here. */
int fb_jpeg_fast_use(int use);

/* For tests: how many images this process has decoded with it. */
uint64_t fb_jpeg_fast_count(void);

#endif
