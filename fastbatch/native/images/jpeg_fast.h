/* A baseline JPEG decoder with libjpeg-turbo's bits, at twice its speed, for what almost all photographs are. */
#ifndef FASTBATCH_JPEG_FAST_H
#define FASTBATCH_JPEG_FAST_H

#include "format.h"
#include "jpeg_index.h"
#include "jpeg_kernels.h"

#include <jpeglib.h>

/* Whether the image consists of blocks of 8 x 8: from libjpeg-turbo 3 on, it may be lossless. */
static inline int fb_jpeg_has_blocks(const struct jpeg_decompress_struct *library) {
#if JPEG_LIB_VERSION >= 70
    return library->min_DCT_h_scaled_size == DCTSIZE;
#else
    return library->min_DCT_scaled_size == DCTSIZE;
#endif
}

typedef struct fb_jpeg_fast fb_jpeg_fast; /* what is kept from image to image */

/* takes_440: images with 4:4:0 sampling, too. Returns NULL if memory runs out. */
fb_jpeg_fast *fb_jpeg_fast_open(int takes_440);
void fb_jpeg_fast_close(fb_jpeg_fast *fast);

/* A file in memory. */
typedef struct fb_jpeg_file {
    const unsigned char *bytes, *end;
    fb_index *index;    /* NULL: none */
    uint64_t identity;  /* for the index; 0: unknown */
    const char *output; /* what will be written to when the pixels are there; NULL: unknown */
    size_t output_size;
} fb_jpeg_file;

enum { FB_JPEG_LEFT = 0, FB_JPEG_DECODED = 1, FB_JPEG_BY_INDEX = 2 };

/* Decodes the region's rows and columns, and possibly some around them, after jpeg_read_header(). `library` stays as
 * it is. Returns FB_JPEG_DECODED or FB_JPEG_BY_INDEX; FB_JPEG_LEFT if the image is not one for this decoder, or not
 * plainly good, so that libjpeg has to decode it; or -1 with *error. */
int fb_jpeg_fast_read(fb_jpeg_fast *fast, const fb_jpeg_kernels *kernels, const struct jpeg_decompress_struct *library,
                      const fb_jpeg_file *file, const fb_region *region, int channels, fb_arena *arena, fb_rows *rows,
                      fb_error *error);

/* The kernels with which JPEG images are decoded, where possible: they run here, and give the bits of libjpeg. NULL:
 * libjpeg decodes all images. */
const fb_jpeg_kernels *fb_jpeg_fast_in_use(void);

/* Whether this libjpeg interpolates the chroma of 4:4:0 as jpeg_fast.c does: libjpeg-turbo does from 2.0.3 on. */
int fb_jpeg_fast_takes_440(void);

/* Which kernels: none, the best ones for this processor, or those for every processor of its kind. */
typedef enum fb_jpeg_choice { FB_JPEG_NO_KERNELS, FB_JPEG_BEST_KERNELS, FB_JPEG_BASE_KERNELS } fb_jpeg_choice;

/* Sets them. Returns -1 if they cannot be used here. */
int fb_jpeg_fast_use(fb_jpeg_choice choice);

/* For tests: uses indexes wherever that is possible, also where nothing is gained. */
void fb_jpeg_index_always(int always);
int fb_jpeg_index_is_forced(void);

/* For tests: how many images this process has decoded with it. */
uint64_t fb_jpeg_fast_count(void);

#endif
