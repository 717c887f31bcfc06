/* Caffe's DataTransformer (data_transformer.cpp in BVLC Caffe): what it refuses, and where it crops and mirrors. */
#include "pixels.h"

#include "random.h"

#include <limits.h>

int fb_check_means(const fb_arithmetic *arithmetic, int64_t channels, int64_t height, int64_t width, fb_error *error) {
    const int count = arithmetic->mean_value_count;
    const int64_t *mean = arithmetic->mean_shape;
    if (count > 1 && count != channels) {
        return fb_fail(error, "Specify either 1 mean_value or as many as channels: %lld (there are %d)",
                       (long long)channels, count);
    }
    if (arithmetic->mean_image == NULL) return 0;
    if (arithmetic->mean_lies_on_output) {
        const int64_t offset = mean[2] > width ? (mean[2] - width) / 2 : 0;
        if (mean[0] == channels && mean[2] >= width && mean[1] >= offset + height) return 0;
        return fb_fail(error,
                       "the mean image is %lld x %lld x %lld (channels, height, width), and a square of %lld with %lld "
                       "channels, %lld from "
                       "its left and from its top, is not inside of it; Caffe would read whatever is around it",
                       (long long)mean[0], (long long)mean[1], (long long)mean[2], (long long)width,
                       (long long)channels, (long long)offset);
    }
    if (mean[0] == channels && mean[1] == height && mean[2] == width) return 0;
    return fb_fail(error,
                   "the mean image is %lld x %lld x %lld (channels, height, width) but the image, before cropping, is "
                   "%lld x %lld x "
                   "%lld: they must be of one shape (in Caffe's words: Check failed: datum_%s == data_mean_.%s()); "
                   "make the mean file from "
                   "this data",
                   (long long)mean[0], (long long)mean[1], (long long)mean[2], (long long)channels, (long long)height,
                   (long long)width,
                   mean[0] != channels ? "channels"
                   : mean[1] != height ? "height"
                                       : "width",
                   mean[0] != channels ? "channels"
                   : mean[1] != height ? "height"
                                       : "width");
}

/* ---- sizes */

typedef struct size {
    int64_t channels, height, width;
} size;

static int size_of(const fb_view *image, size *found, fb_error *error) {
    if (image->ndim != 2 && image->ndim != 3) {
        return fb_fail(error,
                       "an image has 3 dimensions (channels, height, width) or 2 (height, width), this one has %d",
                       image->ndim);
    }
    const int rows = image->ndim - 2;
    *found =
        (size){.channels = rows ? image->shape[0] : 1, .height = image->shape[rows], .width = image->shape[rows + 1]};
    if (found->channels <= 0 || found->height <= 0 || found->width <= 0) {
        return fb_fail(error, "the image has no pixels: its shape is %lld x %lld x %lld (channels, height, width)",
                       (long long)found->channels, (long long)found->height, (long long)found->width);
    }
    return 0;
}

/* The output's channels. Returns 0, or -1 with *error. */
static int output_channels(const fb_transform *transform, int64_t channels, int64_t *out, fb_error *error) {
    static const char *const names[] = {"", "bgr", "rgb", "gray"};
    const fb_channels wanted = transform->form.channels;
    *out = wanted == FB_SAME_CHANNELS ? channels : wanted == FB_TO_GRAY ? 1 : 3;
    if (wanted == FB_SAME_CHANNELS || channels == 1 || channels == 3) return 0;
    return fb_fail(
        error,
        "color=\"%s\" is made of 3 channels (blue, green, red) or of 1 (gray), and the image has %lld: leave "
        "color out, or have the source decode it as \"color\"",
        names[wanted], (long long)channels);
}

/* Computes the output's size before anything is written. */
static int output_size(const fb_transform *transform, fb_role role, const size *image, size *out, fb_error *error) {
    const long long channels = image->channels, height = image->height, width = image->width;
    const int crop = transform->crop_size;
    if (crop > height || crop > width) {
        const char *side = crop > height ? "height" : "width";
        return fb_fail(error,
                       "the image, %lld x %lld x %lld (channels, height, width), is smaller than crop_size %d (Check "
                       "failed: datum_%s >= crop_size (%lld vs. %d)): use larger images or a smaller crop_size",
                       channels, height, width, crop, side, crop > height ? height : width, crop);
    }
    *out = (size){.channels = channels, .height = crop > 0 ? crop : height, .width = crop > 0 ? crop : width};
    if (role == FB_NORMALIZED && output_channels(transform, channels, &out->channels, error) != 0) return -1;
    int64_t area, count;
    if (__builtin_mul_overflow(out->height, out->width, &area) || __builtin_mul_overflow(area, out->channels, &count) ||
        count > INT_MAX) {
        return fb_fail(
            error, "the image, %lld x %lld x %lld (channels, height, width), is too large: blob size exceeds INT_MAX",
            channels, (long long)out->height, (long long)out->width);
    }
    return 0;
}

int fb_check_dtype(const fb_transform *transform, fb_dtype dtype, fb_error *error) {
    if (dtype != FB_UINT8 && dtype != FB_FLOAT32 && dtype != FB_ENCODED) {
        return fb_fail(error,
                       "Image data type must be unsigned byte or float32: convert it, or load it without a transform");
    }
    if (dtype == FB_FLOAT32 && transform->form.precision == FB_BYTES) {
        return fb_fail(error, "the image is float32, of which no dtype=\"uint8\" is made: ask for dtype=\"float32\" or "
                              "\"float16\"");
    }
    const fb_arithmetic *units = transform->arithmetic.for_floats;
    for (int i = 0; units && dtype != FB_FLOAT32 && i < units->mean_value_count; i++) {
        const float mean = units->mean_values[i], scale = units->scales[i];
        if (mean >= -1 && mean <= 1 && scale >= 1) continue;
        return fb_fail(error,
                       "mean and std are those of pixel values from 0 to 1, as in torchvision, but %s has %g: divide "
                       "by 255 what is meant for pixel values from 0 to 255",
                       scale < 1 ? "std" : "mean", (double)(scale < 1 ? 1 / scale : mean));
    }
    return 0;
}

int fb_transform_shape(const fb_transform *transform, fb_role role, const fb_view *image, int64_t shape[3], int *ndim,
                       fb_error *error) {
    size in = {0}, out = {0};
    if (role == FB_NORMALIZED && fb_check_dtype(transform, image->dtype, error) != 0) return -1;
    if (size_of(image, &in, error) != 0 || output_size(transform, role, &in, &out, error) != 0) return -1;
    if (role == FB_NORMALIZED && fb_check_means(&transform->arithmetic, out.channels, in.height, in.width, error) != 0)
        return -1;
    const int last = role == FB_NORMALIZED && transform->form.channels_last;
    *ndim = role == FB_NORMALIZED ? 3 : image->ndim;
    if (*ndim == 3 && !last) *shape++ = out.channels;
    shape[0] = out.height;
    shape[1] = out.width;
    if (last) shape[2] = out.channels;
    return 0;
}

/* ---- the geometry */

static uint32_t reduce_draw(const fb_transform *transform, uint32_t raw, int64_t n) {
    return transform->caffe_draws ? raw % (uint32_t)n : fb_scale_draw(raw, (uint32_t)n);
}

int fb_transform_choose(const fb_transform *transform, const fb_view *image, const uint32_t draws[3],
                        fb_geometry *geometry, fb_error *error) {
    size in = {0}, out = {0};
    if (size_of(image, &in, error) != 0 || output_size(transform, FB_CUT, &in, &out, error) != 0) return -1;
    const int64_t spare_rows = in.height - out.height, spare_columns = in.width - out.width;
    *geometry = (fb_geometry){
        .image_height = in.height,
        .image_width = in.width,
        .region = {.top = spare_rows / 2, .left = spare_columns / 2, .height = out.height, .width = out.width},
        .height = out.height,
        .width = out.width,
        .out_height = out.height,
        .out_width = out.width,
        .mirror = transform->mirror && reduce_draw(transform, draws[0], 2),
    };
    if (transform->random_crop) {
        geometry->region.top = reduce_draw(transform, draws[1], spare_rows + 1);
        geometry->region.left = reduce_draw(transform, draws[2], spare_columns + 1);
    }
    return 0;
}

int fb_geometry_fits(const fb_geometry *geometry, const fb_view *image, fb_error *error) {
    size found = {0};
    if (size_of(image, &found, error) != 0) return -1;
    if (found.height == geometry->image_height && found.width == geometry->image_width) return 0;
    return fb_fail(error,
                   "an array of the sample is %lld x %lld (height, width), but its first image is %lld x %lld: what is "
                   "cropped and "
                   "mirrored together must be of one size",
                   (long long)found.height, (long long)found.width, (long long)geometry->image_height,
                   (long long)geometry->image_width);
}

int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], void *out,
                       int streaming, fb_error *error) {
    fb_geometry geometry = {0};
    int64_t shape[3];
    fb_view part;
    int ndim;
    if (fb_transform_shape(transform, FB_NORMALIZED, image, shape, &ndim, error) != 0) return -1;
    if (fb_transform_choose(transform, image, draws, &geometry, error) != 0) return -1;
    fb_pixels_part(&geometry, image, &part);
    fb_pixels_write(transform, &geometry, &part, out, streaming, NULL);
    return 0;
}
