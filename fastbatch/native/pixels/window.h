/* Caffe's WindowData: which part of an image a window shows, and how it gets into the batch. Bit for bit as window_data_layer.cpp of
 * BVLC Caffe computes it, in float32. All functions are safe from any thread and never call Python.
 */
#ifndef FASTBATCH_WINDOW_H
#define FASTBATCH_WINDOW_H

#include "fastbatch.h"
#include "fastbatch_image.h"

#define FB_WINDOW_CHANNELS 3 /* images are always read in colour */

typedef struct fb_window {
    int32_t image;          /* from 0, in the order of the list */
    int32_t line;           /* of the list, from 1 */
    int32_t label;          /* 0: background */
    int32_t x1, y1, x2, y2; /* the first and the last column and row, inside of the image */
} fb_window;

/* What becomes of every window. */
typedef struct fb_warp {
    int crop_size;           /* side of the square that comes out */
    int context_pad;         /* less than half of it */
    int square;              /* a window's longer side counts for both */
    float scale;
    float mean_values[FB_WINDOW_CHANNELS]; /* 0 without: v - 0 is v, to the bit */
    /* (3, mean_height, mean_width), contiguous, or NULL. The square lies in it where Caffe has it */
    const float *mean_image;
    int64_t mean_height, mean_width;
} fb_warp;

/* Where the pixels of one window come from, and where they go. What is around them stays 0. */
typedef struct fb_cut {
    fb_region region;  /* of the image */
    int height, width; /* that it is resized to */
    int64_t top, left; /* where this goes in the square */
    int mirror;
} fb_cut;

/* How far the mean image is larger than the square, on the left and, as Caffe does it, at the top. */
static inline int64_t fb_mean_offset(int64_t mean_width, int64_t crop_size) {
    return (mean_width - crop_size) / 2;
}

/* 0, or -1 with *error where Caffe's own layer would end the process. */
int fb_window_cut(const fb_warp *warp, const fb_window *window, int image_height, int image_width, int mirror, fb_cut *cut,
                  fb_error *error);

/* Writes (3, crop_size, crop_size) floats to `out`, contiguous. pixels: the cut's region, resized to its size, as a codec shows
 * it: (3, height, width) uint8 with any strides. kernel: the instruction set in use, as fb_kernel_name() has it. */
void fb_window_put(const fb_warp *warp, const fb_cut *cut, const fb_view *pixels, const char *kernel, float *out);

#endif
