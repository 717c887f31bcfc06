/* Caffe's WindowData: which part of an image a window covers, and where in the square that part goes. Computed in
 * float32, as in window_data_layer.cpp of BVLC Caffe. All functions are thread-safe and never call Python.
 */
#ifndef FASTBATCH_WINDOW_H
#define FASTBATCH_WINDOW_H

#include "pixels.h"

#define FB_WINDOW_CHANNELS 3 /* images are always read in color */

typedef struct fb_window {
    int32_t image;          /* from 0, in the order of the list */
    int32_t line;           /* of the list, from 1 */
    int32_t label;          /* 0: background */
    int32_t x1, y1, x2, y2; /* the first and the last column and row, inside the image */
} fb_window;

/* How all windows are warped to squares. */
typedef struct fb_warp {
    int crop_size;   /* side of the square */
    int context_pad; /* less than half of crop_size */
    int square;      /* extend each window to a square with its longer side */
} fb_warp;

/* Decides a window's geometry. Returns 0, or -1 with *error where Caffe's own layer would end the process. */
int fb_window_choose(const fb_warp *warp, const fb_window *window, int image_height, int image_width, int mirror,
                     fb_geometry *geometry, fb_error *error);

#endif
