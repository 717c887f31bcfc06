/* What the parts of the JPEG decoder share: the state of an image that is being decoded.
 *
 *   jpeg_fast.c     which rows and columns of MCUs a region needs, and where they begin
 *   jpeg_mcus.c     from the file's data to the samples of these MCUs
 *   jpeg_pixels.c   from samples to pixels */
#ifndef FASTBATCH_JPEG_STATE_H
#define FASTBATCH_JPEG_STATE_H

#include "jpeg_fast.h"
#include "jpeg_huffman.h"

#if FB_JPEG_KERNELS

#define FB_FETCHED 256 /* bytes of the output that are fetched at a time: some cache lines */

/* After the data, zeros. An MCU of 6 blocks has at most 6 * 64 codes of 16 bits with values of 15; it is decoded before
 * its end is compared with that of the data. */
#define FB_JPEG_ZEROS 2048
_Static_assert(6 * 64 * (16 + 15) / 8 + 64 < FB_JPEG_ZEROS, "an MCU could end beyond the zeros");

/* How chroma gets to all pixels, as libjpeg does it: it is there, interpolated ("fancy upsampling"), or repeated. */
typedef enum fb_jpeg_spread { FB_FULL, FB_H2V1, FB_H2V2, FB_H1V2, FB_H4V1 } fb_jpeg_spread;

/* How an MCU's blocks follow each other in the file, and which two are transformed together. With an odd number of
 * blocks, two MCUs are decoded before the transforms. */
typedef struct fb_jpeg_layout {
    int components, h, v; /* the sampling factors of Y; those of Cb and Cr are 1 */
    fb_jpeg_spread spread;
    int mcus, blocks;
    struct {
        uint8_t component, x, y; /* x and y in blocks */
    } block[6];
    uint8_t pairs[3][2];
} fb_jpeg_layout;

/* The samples of one component, of the needed MCU columns and the two latest MCU rows. */
typedef struct fb_jpeg_plane {
    unsigned char *samples;
    int64_t stride, rows; /* rows: a power of two */
} fb_jpeg_plane;

/* Where a block's samples go. */
typedef struct fb_jpeg_target {
    unsigned char *rows[2]; /* in the first MCU of a row, for even and odd rows of MCUs */
    int64_t stride, step;   /* step: from MCU to MCU */
} fb_jpeg_target;

struct fb_jpeg_fast {
    void *memory; /* this, and what aligns it */
    int takes_440;
    fb_jpeg_tables tables;
    const fb_jpeg_kernels *kernels;
    /* of the current image */
    const fb_jpeg_layout *layout;
    struct {
        const fb_jpeg_table *dc, *ac;
        int32_t *predictor;
    } blocks[6];   /* of an MCU */
    int has_jumps; /* all AC tables */
    int color;     /* chroma is needed */
    int64_t width, height, chroma_width, chroma_height;
    int64_t mcus_per_row, mcu_rows;
    int64_t first_mcu, end_mcu;                /* the columns of MCUs that are needed */
    int64_t first_row, end_row;                /* the rows of MCUs that are needed */
    int64_t rows_read;                         /* of MCUs, from the first one on: as many as libjpeg reads */
    int64_t interval;                          /* MCUs from restart marker to restart marker; 0: there are none */
    int64_t until_restart;                     /* MCUs */
    int64_t *ends;                             /* of the intervals that the data have, in bits */
    int64_t only_end;                          /* of the data, where there are no restart markers */
    const int64_t *end_of_interval, *last_end; /* the current one's; the last one's */
    int64_t bits;                              /* the current end: no code may go beyond */
    const char *fetched, *fetched_end;         /* of the output: from where on it is not in the caches; its end */
    int64_t fetched_at_once;                   /* bytes for each MCU that is read */
    int32_t predictors[3];
    fb_jpeg_place *place; /* where the next place for the index is noted; NULL: none is */
    int64_t every;        /* MCUs between the places of a row */
    /* of the current region */
    const fb_rows *rows;
    int64_t y, bottom, columns; /* the next row of pixels; the end of rows; columns from rows->left on */
    fb_jpeg_plane planes[3];
    int pairs; /* of blocks that are transformed */
    fb_jpeg_target targets[3][2];
    int16_t *sums[2]; /* of Cb and Cr, for the current row; or their samples */
    /* Blocks are zero before they are decoded. The last one catches what is written behind a block. */
    _Alignas(32) int16_t coefficients[7 * 64];
    _Alignas(32) int16_t scales[3][2 * 64]; /* for fb_jpeg_blocks */
};

static inline int64_t fb_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* ---- jpeg_mcus.c */

/* How many intervals the restart markers make of the image. */
int64_t fb_jpeg_count_intervals(const fb_jpeg_fast *fast);

/* Takes memory for the ends of intervals. Returns 0, or -1 if there is none. */
int fb_jpeg_take_ends(fb_jpeg_fast *fast, fb_arena *arena);

/* Copies a scan's data from MCU `mcu` on, counted through the image, without stuffed bytes and restart markers, and
 * begins with the first interval in it. Returns 0, or -1 if there is any other marker, or a byte FF that ends or
 * repeats. */
int fb_jpeg_take_data(fb_jpeg_fast *fast, int64_t mcu, const unsigned char *from, const unsigned char *end,
                      unsigned char *to);

/* Reads a row of MCUs, and decodes the needed ones into the planes if it is needed. Returns 0, or -1 to give up. */
int fb_jpeg_read_row(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row);

/* The same for a needed row, from MCU `first` on, and no further than the last needed one. */
int fb_jpeg_read_part(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row, int64_t first);

/* Notes where the next row begins. Returns 0, or -1 if there is none. */
int fb_jpeg_note_next_row(fb_jpeg_fast *fast, fb_jpeg_bits *in);

/* ---- jpeg_pixels.c */

/* Writes the region's next rows of pixels, as far as they are complete with this row of MCUs. */
void fb_jpeg_write_rows(fb_jpeg_fast *fast, int64_t row);

#endif
#endif
