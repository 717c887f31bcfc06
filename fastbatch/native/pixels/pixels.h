/* Transforms pixels from a sample into its batch, for every layer and the Loader. The geometry is decided once per
 * sample and applied to all of its image-like fields. The arithmetic is set per field.
 *
 * All functions are thread-safe and never call Python. The arithmetic is that of BVLC Caffe (data_transformer.cpp and
 * window_data_layer.cpp): (value - mean) * scale in float32, with one rounding per operation.
 */
#ifndef FASTBATCH_PIXELS_H
#define FASTBATCH_PIXELS_H

#include "fastbatch.h"
#include "fastbatch_image.h"

#include "images/arena.h"

/* Which part of an image goes into the batch, and where; and the rest of what is drawn for it. */
typedef struct fb_geometry {
    int64_t image_height, image_width; /* of the whole image; the sample's other image fields must have the same */
    fb_region region;                  /* the part of the image that is used */
    int64_t height, width;             /* the size that the region is resized to; its own without a resize */
    fb_region part;                    /* of the resized region: what goes into the output */
    int64_t top, left;                 /* its offset in the output */
    int64_t out_height, out_width;     /* the output's size; the rest of the output is filled */
    int mirror;
    int jitters; /* the next three are factors of the image's colors */
    float brightness, contrast, saturation;
} fb_geometry;

/* How a field's values are computed: (value - mean) * scale, in float32. */
typedef struct fb_arithmetic {
    float scale;
    int mean_value_count; /* 0, 1, or the number of channels */
    const float *mean_values;
    const float *scales; /* one for each of mean_values, instead of `scale`; or NULL */
    const float *fill;   /* the pixel value around the image; NULL: the output is 0 there, as in WindowData */
    /* For float32 images, if theirs differs: of uint8 images, mean and std count in units of 255. NULL: the same. */
    const struct fb_arithmetic *for_floats;
    const float *mean_image; /* C-contiguous, or NULL */
    int64_t mean_shape[3];   /* channels, height, width of mean_image */
    /* The mean image is centered on the output and never mirrored, as in WindowData. Otherwise it covers the image. */
    int mean_lies_on_output;
} fb_arithmetic;

/* How a field is processed. */
typedef enum fb_role {
    FB_KEPT = 0,       /* not affected by the geometry */
    FB_NORMALIZED = 1, /* geometry, arithmetic and form */
    FB_CUT = 2,        /* geometry only, with the field's own type and dimensions; for example a mask */
    FB_BOXES = 3,      /* no pixels, but coordinates of the image's pixels, which move with it */
    FB_POINTS = 4      /* likewise */
} fb_role;

/* Whether a field of this role holds coordinates, in rows. */
static inline int fb_are_rows(fb_role role) {
    return role == FB_BOXES || role == FB_POINTS;
}

/* The channels of the output. Other than FB_SAME_CHANNELS, they are made of one gray channel, or of blue, green, red. */
typedef enum fb_channels { FB_SAME_CHANNELS = 0, FB_TO_BGR = 1, FB_TO_RGB = 2, FB_TO_GRAY = 3 } fb_channels;

/* The type of the output's values. FB_BYTES are the image's own uint8: there is no arithmetic. */
typedef enum fb_precision { FB_SINGLE = 0, FB_HALF = 1, FB_BYTES = 2 } fb_precision;

/* The form of an image in the batch. All zero, as in Caffe: float32, (channels, height, width), all channels. */
typedef struct fb_form {
    fb_channels channels;
    fb_precision precision;
    int channels_last; /* (height, width, channels); otherwise (channels, height, width) */
} fb_form;

static inline fb_dtype fb_form_dtype(const fb_form *form) {
    return form->precision == FB_HALF ? FB_FLOAT16 : form->precision == FB_BYTES ? FB_UINT8 : FB_FLOAT32;
}

/* How to decide each sample's geometry, the arithmetic and the form. Zero, with scale 1: nothing changes. */
typedef struct fb_transform {
    int resize_height, resize_width; /* 0: no resize; a width of 0: resize_height is for the shorter side */
    int pad_rows, pad_columns;       /* around the resized image, on each side */
    int crop_height, crop_width;     /* 0: the whole image */
    int mirror;                      /* mirror if the draw says so; in TEST too */
    int random_crop;                 /* the crop is drawn, as in TRAIN; otherwise it is the center */
    /* The region is drawn, by its share of the image's area and its width / height, and resized to the crop's size. */
    int random_resized;
    double least_area, most_area, least_ratio, most_ratio;
    int jitters; /* the factors for these are drawn, between two bounds */
    double brightness[2], contrast[2], saturation[2];
    double cut_fill;      /* the value around fields that are only cut; it must convert to their dtype */
    double least_visible; /* the share of a box's area that the output must show, or the box is dropped */
    int caffe_draws;      /* reduce draws as raw % n, which is biased but gives Caffe's result; else as raw * n >> 32 */
    fb_arithmetic arithmetic;
    fb_form form;
} fb_transform;

/* Checks that the means fit images of this shape. Returns 0, or -1 with *error. */
int fb_check_means(const fb_arithmetic *arithmetic, int64_t channels, int64_t height, int64_t width, fb_error *error);

/* Checks that an image of this dtype can have the arithmetic and the form. Returns 0, or -1 with *error. */
int fb_check_dtype(const fb_transform *transform, fb_dtype dtype, fb_error *error);

/* Computes the output's shape and number of dimensions for this image. Returns 0, or -1 with *error if the image cannot
 * be transformed. An image is (channels, height, width), or (height, width) for one channel, with any strides and
 * alignment. It must be uint8 or float32 to be normalized. It may still be encoded (FB_ENCODED); its view then has the
 * shape of the decoded image. */
int fb_transform_shape(const fb_transform *transform, fb_role role, const fb_view *image, int64_t shape[3], int *ndim,
                       fb_error *error);

/* Decides a sample's geometry from its first image, which fb_transform_shape() has accepted. draws: raw 32-bit draws for the mirror, for the crop's first row
 * and first column, and one more. */
int fb_transform_choose(const fb_transform *transform, const fb_view *image, const uint32_t draws[4],
                        fb_geometry *geometry, fb_error *error);

/* Checks that another image of the sample has the size that the geometry was decided for. Returns 0, or -1 with
 * *error. */
int fb_geometry_fits(const fb_geometry *geometry, const fb_view *image, fb_error *error);

static inline int fb_geometry_resizes(const fb_geometry *geometry) {
    return geometry->height != geometry->region.height || geometry->width != geometry->region.width;
}

/* Sets `part` to the geometry's region of an image that is not encoded, before any resize. */
void fb_pixels_part(const fb_geometry *geometry, const fb_view *image, fb_view *part);

/* Replaces the geometry's region of an uint8 image by its part of the resized region, which lies in `memory`. Returns 0,
 * or -1 with *error. */
int fb_pixels_resize(const fb_geometry *geometry, fb_view *region, fb_arena *memory, fb_error *error);

/* Copies an uint8 image to `out`, contiguous: one plane for each channel, or interleaved channels. Returns 1, or 0 if it
 * was stopped. */
int fb_pixels_gather(const fb_view *image, int planar, unsigned char *out, const int32_t *stop);

/* These functions write `part` to `out`, which is contiguous memory in the batch, and return 1. They return 0 if they
 * were stopped on the way: an image may have a billion pixels. stop: see fb_stopping().
 *
 * streaming: the writes bypass the caches, for batches far larger than the caches; they are ordered before the caller's
 * next stores. */
int fb_pixels_write(const fb_transform *transform, const fb_geometry *geometry, const fb_view *part, void *out,
                    int streaming, const int32_t *stop);
/* Like fb_pixels_write(), with the form that Caffe's images have. */
int fb_pixels_normalize(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part, float *out,
                        int streaming, const int32_t *stop);
/* For fields that are only cut: takes the geometry's region of the field, and the nearest value where the geometry
 * resizes. The values must convert to `dtype`. `fill`: the value around the image. */
int fb_pixels_copy(const fb_geometry *geometry, const fb_view *region, char *out, fb_dtype dtype, double fill,
                   const int32_t *stop);

/* Checks the shape of boxes or points: rows, or a single one, of 4 or 2 coordinates and any number of further columns.
 * Returns 0, or -1 with *error. */
int fb_rows_check(fb_role role, const fb_view *rows, fb_error *error);

/* Replaces boxes or points by where they are in the output, which then lie in `memory` as float32 or float64.
 * docs/transforms.md says what becomes of those that the output does not show. count: the field's number of rows, an
 * integer, which is replaced by the number of those that are left; or NULL. Returns 0, or -1 with *error. */
int fb_rows_move(const fb_transform *transform, fb_role role, const fb_geometry *geometry, const char *name,
                 fb_view *rows, fb_dtype dtype, fb_view *count, fb_arena *memory, fb_error *error);

/* Runs fb_transform_choose() and fb_pixels_write() for one image that is not encoded and not resized. Writes nothing if
 * it returns -1. */
int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[4], void *out,
                       int streaming, fb_error *error);

#endif
