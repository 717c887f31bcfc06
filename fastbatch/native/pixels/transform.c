/* The geometry: what an image must be, and which part of it goes where. What Caffe's DataTransformer does too
 * (data_transformer.cpp in BVLC Caffe) is refused, cropped and mirrored as there. */
#include "pixels.h"

#include "random.h"

#include <limits.h>
#include <math.h>

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
    if (channels == 1 || channels == 3) return 0;
    if (transform->jitters) {
        return fb_fail(error,
                       "brightness, contrast and saturation are for 3 channels (blue, green, red) or 1 (gray), and "
                       "the image has %lld",
                       (long long)channels);
    }
    if (wanted == FB_SAME_CHANNELS) return 0;
    return fb_fail(
        error,
        "color=\"%s\" is made of 3 channels (blue, green, red) or of 1 (gray), and the image has %lld: leave "
        "color out, or have the source decode it as \"color\"",
        names[wanted], (long long)channels);
}

static int fail_too_large(const size *in, fb_error *error) {
    return fb_fail(error,
                   "the image, %lld x %lld x %lld (channels, height, width), is too large: blob size exceeds INT_MAX",
                   (long long)in->channels, (long long)in->height, (long long)in->width);
}

/* The sizes of an image on its way into the batch, decided before anything is written. `out` has the image's channels.
 */
typedef struct plan {
    size in, resized, out;
} plan;

static int make_plan(const fb_transform *t, const fb_view *image, plan *made, fb_error *error) {
    if (size_of(image, &made->in, error) != 0) return -1;
    const size in = made->in;
    size resized = in, out = in;
    const int64_t most = INT_MAX / 4; /* so that the offset of a value in a row of 4 channels fits an int32_t */
    if ((t->resize_height > 0 || t->random_resized) && (in.height > most || in.width > most)) {
        return fb_fail(error, "the image, %lld x %lld (height, width), is too large to be resized: at most %lld a side",
                       (long long)in.height, (long long)in.width, (long long)most);
    }
    if (t->resize_width > 0) {
        resized.height = t->resize_height;
        resized.width = t->resize_width;
    } else if (t->resize_height > 0) {
        const int tall = in.height > in.width;
        const int64_t shorter = tall ? in.width : in.height, longer = tall ? in.height : in.width;
        int64_t scaled;
        if (__builtin_mul_overflow(t->resize_height, longer, &scaled)) scaled = INT64_MAX;
        resized.height = tall ? scaled / shorter : t->resize_height;
        resized.width = tall ? t->resize_height : scaled / shorter;
    }
    if (resized.height > INT_MAX / 2 || resized.width > INT_MAX / 2) return fail_too_large(&in, error);
    out.height = resized.height + 2 * (int64_t)t->pad_rows;
    out.width = resized.width + 2 * (int64_t)t->pad_columns;
    if (t->crop_height > 0) {
        if (!t->random_resized && (t->crop_height > out.height || t->crop_width > out.width)) {
            const int too_low = t->crop_height > out.height;
            return fb_fail(error,
                           "the image, %lld x %lld x %lld (channels, height, width), is smaller than crop_size %d "
                           "(Check failed: datum_%s >= crop_size (%lld vs. %d)): use larger images or a smaller "
                           "crop_size",
                           (long long)in.channels, (long long)in.height, (long long)in.width,
                           too_low ? t->crop_height : t->crop_width, too_low ? "height" : "width",
                           (long long)(too_low ? out.height : out.width), too_low ? t->crop_height : t->crop_width);
        }
        out.height = t->crop_height;
        out.width = t->crop_width;
    }
    made->resized = resized;
    made->out = out;
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
    if (dtype == FB_FLOAT32 && (transform->resize_height > 0 || transform->random_resized)) {
        return fb_fail(error, "only images of uint8 are resized, and this one is float32");
    }
    if (dtype == FB_FLOAT32 && transform->jitters)
        return fb_fail(error, "brightness, contrast and saturation are for images of uint8, and this one is float32");
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
    plan made = {0};
    if (role == FB_NORMALIZED && fb_check_dtype(transform, image->dtype, error) != 0) return -1;
    if (make_plan(transform, image, &made, error) != 0) return -1;
    if (role == FB_NORMALIZED && output_channels(transform, made.in.channels, &made.out.channels, error) != 0)
        return -1;
    int64_t area, count;
    if (__builtin_mul_overflow(made.out.height, made.out.width, &area) ||
        __builtin_mul_overflow(area, made.out.channels, &count) || count > INT_MAX)
        return fail_too_large(&made.in, error);
    if (role == FB_NORMALIZED &&
        fb_check_means(&transform->arithmetic, made.out.channels, made.in.height, made.in.width, error) != 0)
        return -1;
    const int last = role == FB_NORMALIZED && transform->form.channels_last;
    *ndim = role == FB_NORMALIZED ? 3 : image->ndim;
    if (*ndim == 3 && !last) *shape++ = made.out.channels;
    shape[0] = made.out.height;
    shape[1] = made.out.width;
    if (last) shape[2] = made.out.channels;
    return 0;
}

/* ---- the geometry */

static uint32_t reduce_draw(const fb_transform *transform, uint32_t raw, int64_t n) {
    return transform->caffe_draws ? raw % (uint32_t)n : fb_scale_draw(raw, (uint32_t)n);
}

static double between(double least, double most, uint32_t raw) {
    return least + (most - least) * ((double)raw / 4294967296.0);
}

/* Draws a region by its area and its ratio of width to height. Ten tries, then the largest possible region in the
 * center, as in torchvision's RandomResizedCrop. */
static fb_region random_region(const fb_transform *t, const size *image, const uint32_t draws[4]) {
    const double area = (double)image->height * (double)image->width;
    for (uint32_t i = 0; i < 10; i++) {
        uint32_t raw[4];
        fb_more_draws(draws, FB_DRAW_RESIZED_CROP, i, raw);
        const double target = area * between(t->least_area, t->most_area, raw[0]);
        const double ratio = exp(between(log(t->least_ratio), log(t->most_ratio), raw[1]));
        /* Rounded half to even. They stay doubles until they are known to fit: a ratio can be anything. */
        const double columns = rint(sqrt(target * ratio)), rows = rint(sqrt(target / ratio));
        if (!(columns >= 1 && rows >= 1 && columns <= (double)image->width && rows <= (double)image->height)) continue;
        const int64_t height = (int64_t)rows, width = (int64_t)columns;
        return (fb_region){.top = fb_scale_draw(raw[2], (uint32_t)(image->height - height + 1)),
                           .left = fb_scale_draw(raw[3], (uint32_t)(image->width - width + 1)),
                           .height = height,
                           .width = width};
    }
    int64_t height = image->height, width = image->width;
    const double ratio = (double)width / (double)height;
    if (ratio < t->least_ratio) height = (int64_t)rint((double)width / t->least_ratio); /* less than it was */
    else if (ratio > t->most_ratio) width = (int64_t)rint((double)height * t->most_ratio);
    if (height < 1) height = 1;
    if (width < 1) width = 1;
    return (fb_region){
        .top = (image->height - height) / 2, .left = (image->width - width) / 2, .height = height, .width = width};
}

/* Along one axis: the part of the image, `size` long with `pad` more on each side, that `out` values from `first` on
 * show, and its offset among these. */
static void clip(int64_t size, int64_t pad, int64_t first, int64_t out, int64_t *begin, int64_t *count,
                 int64_t *offset) {
    const int64_t last = first + out < pad + size ? first + out : pad + size;
    const int64_t visible = first > pad ? first : pad;
    *begin = visible - pad;
    *count = last - visible;
    *offset = visible - first;
}

int fb_transform_choose(const fb_transform *transform, const fb_view *image, const uint32_t draws[4],
                        fb_geometry *geometry, fb_error *error) {
    plan made = {0};
    if (make_plan(transform, image, &made, error) != 0) return -1;
    const size in = made.in, resized = made.resized, out = made.out;
    *geometry = (fb_geometry){
        .image_height = in.height,
        .image_width = in.width,
        .region = {.height = in.height, .width = in.width},
        .height = resized.height,
        .width = resized.width,
        .part = {.height = out.height, .width = out.width},
        .out_height = out.height,
        .out_width = out.width,
        .mirror = transform->mirror && reduce_draw(transform, draws[0], 2),
    };
    if (transform->jitters) {
        uint32_t raw[4];
        fb_more_draws(draws, FB_DRAW_COLORS, 0, raw);
        geometry->jitters = 1;
        geometry->brightness = (float)between(transform->brightness[0], transform->brightness[1], raw[0]);
        geometry->contrast = (float)between(transform->contrast[0], transform->contrast[1], raw[1]);
        geometry->saturation = (float)between(transform->saturation[0], transform->saturation[1], raw[2]);
    }
    if (transform->random_resized) {
        geometry->region = random_region(transform, &in, draws);
        geometry->height = out.height;
        geometry->width = out.width;
        return 0;
    }
    const int64_t spare_rows = resized.height + 2 * (int64_t)transform->pad_rows - out.height;
    const int64_t spare_columns = resized.width + 2 * (int64_t)transform->pad_columns - out.width;
    int64_t top = spare_rows / 2, left = spare_columns / 2;
    if (transform->random_crop) {
        top = reduce_draw(transform, draws[1], spare_rows + 1);
        left = reduce_draw(transform, draws[2], spare_columns + 1);
    }
    fb_region *part = &geometry->part;
    clip(resized.height, transform->pad_rows, top, out.height, &part->top, &part->height, &geometry->top);
    clip(resized.width, transform->pad_columns, left, out.width, &part->left, &part->width, &geometry->left);
    if (geometry->mirror) geometry->left = out.width - geometry->left - part->width;
    if (!fb_geometry_resizes(geometry)) {
        geometry->region = *part;
        geometry->height = part->height;
        geometry->width = part->width;
        part->top = part->left = 0;
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

int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[4], void *out,
                       int streaming, fb_error *error) {
    fb_geometry geometry = {0};
    int64_t shape[3];
    fb_view part;
    int ndim;
    if (fb_transform_shape(transform, FB_NORMALIZED, image, shape, &ndim, error) != 0) return -1;
    if (fb_transform_choose(transform, image, draws, &geometry, error) != 0) return -1;
    if (fb_geometry_resizes(&geometry)) return fb_fail(error, "fb_transform_apply() does not resize");
    fb_pixels_part(&geometry, image, &part);
    fb_pixels_write(transform, &geometry, &part, out, streaming, NULL);
    return 0;
}
