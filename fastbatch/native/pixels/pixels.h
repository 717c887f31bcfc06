/* Pixels on their way from a sample into its batch, for every layer and the Loader: the geometry is decided once for
 * each sample and applied to every field that is like an image; the arithmetic belongs to the field.
 *
 * All functions are safe from any thread and never call Python. The arithmetic is that of BVLC Caffe
 * (data_transformer.cpp and window_data_layer.cpp): (value - mean) * scale in float32, with one rounding for each
 * operation.
 */
#ifndef FASTBATCH_PIXELS_H
#define FASTBATCH_PIXELS_H

#include "fastbatch.h"
#include "fastbatch_image.h"

/* What of an image goes into the batch, and where. */
typedef struct fb_geometry {
    int64_t image_height, image_width; /* of the whole image, which other fields of the sample must have, too */
    fb_region region;                  /* the part of it that is shown */
    int64_t height, width;             /* that the part is resized to; its own without a resize */
    int64_t top, left;                 /* where it lies in the output */
    int64_t out_height, out_width;     /* what it leaves of the output is 0 */
    int mirror;
} fb_geometry;

/* What becomes of a field's values: float32, (value - mean) * scale. */
typedef struct fb_arithmetic {
    float scale;
    int mean_value_count; /* 0, 1, or as many as channels */
    const float *mean_values;
    const float *mean_image; /* C-contiguous, or NULL */
    int64_t mean_shape[3];   /* channels, height, width of mean_image */
    int mean_lies_on_output; /* in the middle of it and never mirrored, as in WindowData; otherwise each pixel of the image has a mean */
} fb_arithmetic;

/* What becomes of a field. */
typedef enum fb_role {
    FB_KEPT = 0,       /* the geometry does not touch it */
    FB_NORMALIZED = 1, /* geometry and arithmetic: float32, (channels, height, width) */
    FB_CUT = 2         /* the geometry alone, in its own type and dimensions: a mask, say */
} fb_role;

/* Caffe's transform_param: how the geometry of each sample is decided, and the arithmetic. */
typedef struct fb_transform {
    int crop_size;   /* 0: the whole image */
    int mirror;      /* mirror when the draw says so; in TEST too */
    int random_crop; /* TRAIN: the crop is drawn; otherwise it is the centre */
    int caffe_draws; /* draws are reduced as Caffe does it, raw % n (biased: kept for its numbers), and not by raw * n >> 32 */
    fb_arithmetic arithmetic;
} fb_transform;

/* The one check of means: 0, or -1 with *error where they don't fit images of this shape. */
int fb_check_means(const fb_arithmetic *arithmetic, int64_t channels, int64_t height, int64_t width, fb_error *error);

/* Shape of what comes out for this image, and its dimensions; -1 with *error if it cannot be transformed. An image is
 * (channels, height, width), or (height, width) for one channel, with any strides and alignment; uint8 or float32 where
 * it is normalized. It may be encoded still (FB_ENCODED): then its view has the shape that it will have. */
int fb_transform_shape(const fb_transform *transform, fb_role role, const fb_view *image, int64_t shape[3], int *ndim,
                       fb_error *error);

/* Decides a sample's geometry by its first image. draws: 32-bit raw draws for the mirror, the crop's first row and its
 * first column. */
int fb_transform_choose(const fb_transform *transform, const fb_view *image, const uint32_t draws[3],
                        fb_geometry *geometry, fb_error *error);

/* Whether another image of the sample is of the size that the geometry was decided for: 0, or -1 with *error. */
int fb_geometry_fits(const fb_geometry *geometry, const fb_view *image, fb_error *error);

/* The region of an image that is not encoded. */
void fb_pixels_part(const fb_geometry *geometry, const fb_view *image, fb_view *part);

/* Both write the part of an image that the geometry shows, resized if it says so, to `out`: its place in the batch,
 * contiguous. streaming: past the caches, for batches far larger than they are; the writes are ordered before whatever
 * the caller stores next. What is copied is not resized, and must convert to `dtype`. */
void fb_pixels_normalize(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part, float *out,
                         int streaming);
void fb_pixels_copy(const fb_geometry *geometry, const fb_view *part, char *out, fb_dtype dtype);

/* fb_transform_choose() and fb_pixels_normalize() for one image that is not encoded. Nothing is written where -1 is
 * returned. */
int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], float *out,
                       int streaming, fb_error *error);

#endif
