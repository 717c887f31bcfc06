/* A baseline JPEG decoder with libjpeg-turbo's bits, at twice its speed, for what almost all photographs are. */
#ifndef FASTBATCH_JPEG_FAST_H
#define FASTBATCH_JPEG_FAST_H

#include "format.h"
#include "jpeg_index.h"

#include <jpeglib.h>

typedef struct fb_jpeg_fast fb_jpeg_fast; /* what is kept from image to image */

fb_jpeg_fast *fb_jpeg_fast_open(void); /* returns NULL if memory runs out */
void fb_jpeg_fast_close(fb_jpeg_fast *fast);

/* Whether this processor can run it. */
int fb_jpeg_fast_runs_here(void);

/* A file in memory. */
typedef struct fb_jpeg_file {
    const unsigned char *bytes, *end;
    fb_index *index;   /* NULL: none */
    uint64_t identity; /* for the index; 0: unknown */
} fb_jpeg_file;

enum { FB_JPEG_LEFT = 0, FB_JPEG_DECODED = 1, FB_JPEG_BY_INDEX = 2 };

/* Decodes the region's rows and columns, and possibly some around them, after jpeg_read_header(). `library` stays as
 * it is. Returns FB_JPEG_DECODED or FB_JPEG_BY_INDEX; FB_JPEG_LEFT if the image is not one for this decoder, or not
 * plainly good, so that libjpeg has to decode it; or -1 with *error. */
int fb_jpeg_fast_read(fb_jpeg_fast *fast, const struct jpeg_decompress_struct *library, const fb_jpeg_file *file,
                      const fb_region *region, int channels, fb_arena *arena, fb_rows *rows, fb_error *error);

/* Whether JPEG images are decoded with it, where possible: it runs here, and gives the bits of libjpeg. */
int fb_jpeg_fast_in_use(void);

/* Switches it on or off. Returns -1 if it cannot be used here. */
int fb_jpeg_fast_use(int use);

/* For tests: uses indexes wherever that is possible, also where nothing is gained. */
void fb_jpeg_index_always(int always);
int fb_jpeg_index_is_forced(void);

/* For tests: how many images this process has decoded with it. */
uint64_t fb_jpeg_fast_count(void);

#endif
