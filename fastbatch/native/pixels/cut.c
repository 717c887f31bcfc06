/* The geometry's parts of images: shown, resized, or copied without arithmetic. */
#include "planes.h"

#include "collate.h"
#include "images/resize.h"

#define PIECE 1024        /* pixels of a row */
#define AT_ONCE (1 << 20) /* pixels that are copied between two checks of `stop` */

void fb_pixels_part(const fb_geometry *geometry, const fb_view *image, fb_view *part) {
    const int rows = image->ndim - 2; /* the axis of the rows */
    *part = *image;
    part->data = (const char *)image->data + geometry->region.top * image->strides[rows] +
                 geometry->region.left * image->strides[rows + 1];
    part->shape[rows] = geometry->region.height;
    part->shape[rows + 1] = geometry->region.width;
}

/* ---- resizing images that were not encoded */

static void copy_pixels(const unsigned char *pixel, const fb_axes *source, int channels, int64_t n,
                        unsigned char *out) {
    if (source->pixel_stride == channels && (channels == 1 || source->channel_stride == 1)) {
        memcpy(out, pixel, (size_t)(n * channels));
        return;
    }
    for (; n > 0; n--, pixel += source->pixel_stride, out += channels) {
        for (int c = 0; c < channels; c++) out[c] = pixel[c * source->channel_stride];
    }
}

/* Copies what a resize needs to rows: interleaved, up to 4 channels, which fb_resize() can read past; or planes. Returns 0,
 * or -1 if memory runs out or nobody waits for the image any more. */
static int copy_rows(const unsigned char *pixels, const fb_axes *source, const fb_region *needed, fb_arena *memory,
                     fb_rows *rows) {
    const int channels = source->channels > 4 ? 1 : (int)source->channels; /* that are interleaved */
    const int64_t stride = needed->width * channels, plane = stride * needed->height;
    unsigned char *out = fb_arena_take(memory, (size_t)(plane * (source->channels / channels)) + FB_ROW_SLACK);
    if (out == NULL) return -1;
    *rows = (fb_rows){out, stride, needed->top, needed->left, channels, channels == 1 ? plane : 1};
    pixels += needed->top * source->row_stride + needed->left * source->pixel_stride;
    for (int64_t channel = 0; channel < source->channels; channel += channels) {
        const unsigned char *row = pixels + channel * source->channel_stride;
        for (int64_t y = 0; y < needed->height; y++, row += source->row_stride, out += stride) {
            for (int64_t x = 0; x < needed->width; x += AT_ONCE) {
                if (fb_stopping(memory->stop)) return -1;
                const int64_t n = needed->width - x < AT_ONCE ? needed->width - x : AT_ONCE;
                copy_pixels(row + x * source->pixel_stride, source, channels, n, out + x * channels);
            }
        }
    }
    memset(out, 0, FB_ROW_SLACK);
    return 0;
}

int fb_pixels_resize(const fb_geometry *geometry, fb_view *region, fb_arena *memory, fb_error *error) {
    const fb_axes source = fb_axes_of(region);
    const fb_region *part = &geometry->part;
    const fb_size from = {source.height, source.width}, to = {geometry->height, geometry->width};
    const fb_region needed = fb_resize_needs(from, to, part);
    fb_rows resized,
        rows = {(unsigned char *)(uintptr_t)region->data, source.row_stride, 0, 0, 1, source.channel_stride};
    int done = source.pixel_stride == 1 || copy_rows(region->data, &source, &needed, memory, &rows) == 0;
    if (done) done = fb_resize(&rows, (int)source.channels, from, to, part, memory, &resized) == 0;
    if (!done && fb_stopping(memory->stop)) return fb_fail_stopped(error);
    if (!done) return fb_fail(error, "no memory for resizing an image");
    const int axis = region->ndim - 2; /* of the rows */
    region->data = resized.data;
    if (axis) region->strides[0] = resized.channel;
    region->strides[axis] = resized.stride;
    region->strides[axis + 1] = resized.pixel;
    region->shape[axis] = part->height;
    region->shape[axis + 1] = part->width;
    return 0;
}

int fb_pixels_gather(const fb_view *image, int planar, unsigned char *out, const int32_t *stop) {
    const fb_axes source = fb_axes_of(image);
    const int64_t width = source.width, area = source.height * width;
    const unsigned char *row = image->data;
    const int quickly =
        planar && source.channels == 3 && source.channel_stride == 1 && source.pixel_stride == 3 && width >= FB_BLOCK;
    for (int64_t y = 0; y < source.height; y++, row += source.row_stride) {
        unsigned char *const to = out + y * width * (planar ? 1 : source.channels);
        if (fb_stopping(stop)) return 0;
        if (quickly) fb_kernel_in_use()->deinterleave(row, width, (unsigned char *[]){to, to + area, to + 2 * area});
        else if (!planar) copy_pixels(row, &source, (int)source.channels, width, to);
        for (int64_t channel = 0; planar && !quickly && channel < source.channels; channel++)
            copy_pixels(row + channel * source.channel_stride, &source, 1, width, to + channel * area);
    }
    return 1;
}

/* ---- fields of any type */

static void convert_double(double value, fb_dtype dtype, char *to) {
    const float single = (float)value;
    switch (dtype) {
#define FB_CASE(dtype, type) \
    case dtype: { \
        const type converted = (type)value; \
        memcpy(to, &converted, sizeof converted); \
        return; \
    }
        FB_EACH_DTYPE(FB_CASE)
#undef FB_CASE
        case FB_FLOAT16: fb_kernel_in_use()->halve(&single, 1, (uint16_t *)to); return;
        case FB_ENCODED: return; /* no type of a batch */
    }
}

/* Fills the border of all channels. Returns 0 if it was stopped. */
static int fill_border(const fb_geometry *geometry, int64_t channels, char *out, fb_dtype dtype, double fill,
                       const int32_t *stop) {
    _Alignas(8) char value[8];
    fb_channel channel = {.size = fb_dtype_size(dtype), .step = 1};
    convert_double(fill, dtype, value);
    for (int64_t i = 0; i < channels; i++) {
        channel.out = out + i * geometry->out_height * geometry->out_width * (int64_t)channel.size;
        if (!fb_fill_border(geometry, geometry->part.height, geometry->part.width, &channel, value, stop)) return 0;
    }
    return 1;
}

/* Copies n values of a row from these offsets. */
static void pick(const char *row, const int64_t *offsets, int64_t n, fb_dtype from, char *out, fb_dtype to) {
    const size_t size = fb_dtype_size(to);
#define FB_PICK(bytes) \
    for (int64_t x = 0; x < n; x++) memcpy(out + x * bytes, row + offsets[x], bytes)
    if (from != to) {
        for (int64_t x = 0; x < n; x++) fb_convert_one(row + offsets[x], from, out + (size_t)x * size, to);
    } else if (size == 1) {
        FB_PICK(1);
    } else if (size == 2) {
        FB_PICK(2);
    } else if (size == 4) {
        FB_PICK(4);
    } else {
        FB_PICK(8);
    }
#undef FB_PICK
}

/* The value of `size` nearest to the center of value i of `resized`. */
static int64_t nearest(int64_t i, int64_t size, int64_t resized) {
    return (2 * i + 1) * size / (2 * resized);
}

int fb_pixels_copy(const fb_geometry *geometry, const fb_view *region, char *out, fb_dtype dtype, double fill,
                   const int32_t *stop) {
    const fb_axes source = fb_axes_of(region);
    const fb_region *part = &geometry->part;
    const int64_t size = (int64_t)fb_dtype_size(dtype);
    const int as_it_is =
        region->dtype == dtype && source.pixel_stride == size && !geometry->mirror && geometry->width == source.width;
    int64_t offsets[PIECE];
    if ((part->height < geometry->out_height || part->width < geometry->out_width) &&
        !fill_border(geometry, source.channels, out, dtype, fill, stop))
        return 0;
    for (int64_t first = 0; first < part->width; first += PIECE) {
        const int64_t n = part->width - first < PIECE ? part->width - first : PIECE;
        for (int64_t x = 0; x < n; x++) {
            const int64_t column = geometry->mirror ? part->width - 1 - first - x : first + x;
            offsets[x] = nearest(part->left + column, source.width, geometry->width) * source.pixel_stride;
        }
        for (int64_t i = 0; i < source.channels * part->height; i++) {
            if (fb_stopping(stop)) return 0;
            const int64_t channel = i / part->height, y = i % part->height;
            const char *row = (const char *)region->data + channel * source.channel_stride +
                              nearest(part->top + y, source.height, geometry->height) * source.row_stride;
            char *to = out + ((channel * geometry->out_height + geometry->top + y) * geometry->out_width +
                              geometry->left + first) *
                                 size;
            if (as_it_is) memcpy(to, row + offsets[0], (size_t)(n * size));
            else pick(row, offsets, n, region->dtype, to, dtype);
        }
    }
    return 1;
}
