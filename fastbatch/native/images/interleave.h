/* Interleaves the channels of a decoded image, as OpenCV and most users of NumPy have them. */
#ifndef FASTBATCH_INTERLEAVE_H
#define FASTBATCH_INTERLEAVE_H

#include "fastbatch.h"

/* Writes an image of bytes (channels, height, width), with any strides, as (height, width, channels), contiguous. */
void fb_interleave(const fb_view *image, unsigned char *out);

#endif
