/* Computes part of the result of cv::resize, bit-identical to OpenCV 4.5.1 with 8 bits and INTER_LINEAR. */
#ifndef FASTBATCH_RESIZE_H
#define FASTBATCH_RESIZE_H

#include "format.h"

typedef struct fb_size {
    int64_t height, width;
} fb_size;

/* Returns the part of an image of size `from` that is needed for `region` of the same image resized to `to`. */
fb_region fb_resize_needs(fb_size from, fb_size to, const fb_region *region);

/* Returns `region` of the resized image, contiguous and interleaved, in `memory`; NULL if memory runs out, or if
 * `memory->stop` is set meanwhile. `rows` must have the pixels that fb_resize_needs() returns. */
unsigned char *fb_resize(const fb_rows *rows, int channels, fb_size from, fb_size to, const fb_region *region,
                         fb_arena *memory);

#endif
