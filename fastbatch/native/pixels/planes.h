/* What the two writers of images share: pixels.c, which writes planes of floats, and forms.c, which writes any form. */
#ifndef FASTBATCH_PLANES_H
#define FASTBATCH_PLANES_H

#include "pixels.h"

#include "kernels.h"

typedef struct fb_axes { /* an image as (channels, height, width), with its strides in bytes */
    int64_t channels, height, width;
    int64_t channel_stride, row_stride, pixel_stride;
} fb_axes;

static inline fb_axes fb_axes_of(const fb_view *image) {
    const int rows = image->ndim - 2;
    return (fb_axes){
        .channels = rows ? image->shape[0] : 1,
        .height = image->shape[rows],
        .width = image->shape[rows + 1],
        .channel_stride = rows ? image->strides[0] : 0,
        .row_stride = image->strides[rows],
        .pixel_stride = image->strides[rows + 1],
    };
}

/* Sets a channel's scale, and its mean values for the plane's first row. */
static inline void fb_set_plane(fb_plane *plane, const fb_arithmetic *arithmetic, const fb_geometry *geometry,
                                int64_t channel) {
    if (arithmetic->mean_value_count > 0) {
        const int64_t i = arithmetic->mean_value_count > 1 ? channel : 0;
        plane->mean = arithmetic->mean_values[i];
        if (arithmetic->scales) plane->scale = arithmetic->scales[i];
    }
    if (arithmetic->mean_image) {
        const int64_t *shape = arithmetic->mean_shape;
        int64_t row = geometry->region.top, column = geometry->region.left;
        if (arithmetic->mean_lies_on_output) { /* the same offset from the top as from the left, as in Caffe */
            const int64_t offset = (shape[2] - geometry->out_width) / 2;
            row = geometry->top + offset;
            column = geometry->left + offset;
        }
        plane->mean_rows = arithmetic->mean_image + (channel * shape[1] + row) * shape[2] + column;
    }
}

/* The value of the pixels around the image. */
static inline float fb_filled(const fb_plane *image, const fb_arithmetic *arithmetic, const fb_geometry *geometry,
                              int64_t channel) {
    float value;
    fb_plane plane = *image;
    fb_set_plane(&plane, arithmetic, geometry, channel);
    plane.pixels = (const unsigned char *)arithmetic->fill;
    plane.bytes = plane.mirror = 0;
    plane.height = plane.width = 1;
    fb_any_plane(&plane, &value);
    return value;
}

/* One channel of an output. */
typedef struct fb_channel {
    void *out;
    size_t size;  /* of a value, in bytes */
    int64_t step; /* from one pixel to the next, in this row or the next one; in values */
} fb_channel;

/* Fills what lies around the image, whose height x width pixels are at the geometry's offset. Returns 0 if it was
 * stopped. */
int fb_fill_border(const fb_geometry *geometry, int64_t height, int64_t width, const fb_channel *channel,
                   const void *value, const int32_t *stop);

/* Copies a row of three channels with any strides, such as those of planes or of an oriented image. */
static inline void fb_gather(const unsigned char *pixels, const fb_axes *source, int64_t width,
                             unsigned char *const channels[3]) {
    for (int channel = 0; channel < 3 && source->pixel_stride == 1; channel++)
        memcpy(channels[channel], pixels + channel * source->channel_stride, (size_t)width);
    if (source->pixel_stride == 1) return;
    for (int64_t x = 0; x < width; x++, pixels += source->pixel_stride) {
        for (int channel = 0; channel < 3; channel++) channels[channel][x] = pixels[channel * source->channel_stride];
    }
}

#endif
