/* Caffe's DataTransformer on one image: crop, subtract the mean, scale, mirror, as float32, bit for bit.
 *
 * All functions are safe from any thread and never call Python. The arithmetic is that of data_transformer.cpp
 * in BVLC Caffe: (value - mean) * scale in float32 with one rounding for each operation, the mean image indexed where
 * the pixel was in the source, mirrored or not.
 */
#ifndef FASTBATCH_TRANSFORM_H
#define FASTBATCH_TRANSFORM_H

#include "fastbatch.h"
#include "fastbatch_image.h"

typedef struct fb_transform {
    int crop_size;           /* 0: the whole image */
    int mirror;              /* mirror when the draw says so; in TEST too */
    int random_crop;         /* TRAIN: the crop is drawn; otherwise it is the centre */
    float scale;
    int caffe_draws;         /* draws are reduced as Caffe does it, raw % n (biased: kept for its numbers), and not
                                by raw * n >> 32 */
    int mean_value_count;    /* 0, 1, or as many as channels */
    const float *mean_values;
    const float *mean_image; /* C-contiguous, or NULL */
    int64_t mean_shape[3];   /* channels, height, width of mean_image */
} fb_transform;

/* Channels, height and width of what comes out for this image; -1 with *error if it cannot be transformed. An image
 * is (channels, height, width), or (height, width) for one channel, uint8 or float32, with any strides and alignment.
 * It may be encoded still (FB_ENCODED): then its view has the shape that it will have. */
int fb_transform_shape(const fb_transform *transform, const fb_view *image, int64_t out_shape[3], fb_error *error);

/* What of an image goes into the batch. */
typedef struct fb_crop {
    fb_region region;
    int64_t image_height, image_width; /* of the whole, which is what a mean image has */
    int mirror;
} fb_crop;

/* Decides it. draws: 32-bit raw draws for the mirror, the crop's first row and its first column. */
int fb_transform_crop(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], fb_crop *crop,
                      fb_error *error);

/* Writes the pixels of the region, (channels, height, width), transformed and contiguous, to `out` (aligned as a float).
 * streaming: write past the caches, for batches far larger than they are. The writes are ordered before whatever the
 * caller stores next. */
void fb_transform_pixels(const fb_transform *transform, const fb_crop *crop, const fb_view *pixels, float *out,
                         int streaming);

/* Both for an image that is not encoded. Nothing is written where -1 is returned. */
int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], float *out,
                       int streaming, fb_error *error);

/* The instruction set in use: "avx512", "avx2", "neon" or "generic". Detected once. */
const char *fb_kernel_name(void);

/* For tests and benchmarks: use this one from now on (NULL: what was detected). -1 if the processor lacks it. */
int fb_kernel_choose(const char *name);

#endif
