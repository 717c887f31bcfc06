/* Computes part of the result of cv::resize, bit-identical to OpenCV 4.5.1 with 8 bits and INTER_LINEAR. */
#ifndef FASTBATCH_RESIZE_H
#define FASTBATCH_RESIZE_H

#include "format.h"

typedef struct fb_size {
    int64_t height, width;
} fb_size;

/* Returns the part of an image of size `from` that is needed for `region` of the same image resized to `to`. */
fb_region fb_resize_needs(fb_size from, fb_size to, const fb_region *region);

/* Computes `region` of the resized image, in planes if `rows` are, or else interleaved: *resized, in `memory`. Returns 0, or
 * -1 if memory runs out, or if `memory->stop` is set meanwhile. `rows` must have the pixels that fb_resize_needs()
 * returns. Beyond them, nothing of planes is read. */
int fb_resize(const fb_rows *rows, int channels, fb_size from, fb_size to, const fb_region *region, fb_arena *memory,
              fb_rows *resized);

/* For tests: planes are resized with vector instructions if the processor has them, which is the default, or without.
 * Returns whether they are used. */
int fb_resize_use_vectors(int use);

#endif
