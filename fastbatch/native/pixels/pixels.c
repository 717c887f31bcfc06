#include "pixels.h"

#include "collate.h"
#include "kernels.h"

#define MAX_DEINTERLEAVED 4096 /* pixels per deinterleaved row; wider than any net's input */

typedef struct axes { /* an image as (channels, height, width), with its strides in bytes */
    int64_t channels, height, width;
    int64_t channel_stride, row_stride, pixel_stride;
} axes;

static axes axes_of(const fb_view *image) {
    const int rows = image->ndim - 2;
    return (axes){
        .channels = rows ? image->shape[0] : 1,
        .height = image->shape[rows],
        .width = image->shape[rows + 1],
        .channel_stride = rows ? image->strides[0] : 0,
        .row_stride = image->strides[rows],
        .pixel_stride = image->strides[rows + 1],
    };
}

/* Finds a channel's mean values for the plane's first row. */
static void set_mean(fb_plane *plane, const fb_arithmetic *arithmetic, const fb_geometry *geometry, int64_t channel) {
    if (arithmetic->mean_value_count > 0)
        plane->mean = arithmetic->mean_values[arithmetic->mean_value_count > 1 ? channel : 0];
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

/* Writes one channel after the other, without deinterleaving. */
static void write_planes(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const axes *source,
                         fb_plane plane, const fb_kernel *kernel, float *out, int streaming) {
    const int side_by_side = plane.pixel_stride == (plane.bytes ? 1 : 4) && plane.width >= FB_BLOCK &&
                             !(plane.mirror && plane.mean_stays && arithmetic->mean_image);
    const int stream = streaming && side_by_side && kernel->stream;
    const unsigned char *const first = plane.pixels;
    fb_edge edge; /* one for all channels: each begins where the previous one ends */
    fb_begin_stream(&edge, out);
    for (int64_t channel = 0; channel < source->channels; channel++) {
        plane.pixels = first + channel * source->channel_stride;
        set_mean(&plane, arithmetic, geometry, channel);
        if (stream) kernel->stream(&plane, &edge);
        else
            (side_by_side ? kernel->store : fb_any_plane)(&plane,
                                                          out + channel * geometry->out_height * geometry->out_width);
    }
    if (stream) fb_end_stream(&edge);
}

/* Deinterleaves a row with any strides, such as those of an oriented image. */
static void gather(const unsigned char *pixels, const axes *source, unsigned char *const channels[3]) {
    for (int64_t x = 0; x < source->width; x++, pixels += source->pixel_stride) {
        for (int channel = 0; channel < 3; channel++) channels[channel][x] = pixels[channel * source->channel_stride];
    }
}

static void reverse(unsigned char *bytes, int64_t count) {
    int64_t first = 0, end = count;
    for (; end - first >= 16; first += 8, end -= 8) {
        uint64_t left, right;
        memcpy(&left, bytes + first, 8);
        memcpy(&right, bytes + end - 8, 8);
        left = __builtin_bswap64(left);
        right = __builtin_bswap64(right);
        memcpy(bytes + first, &right, 8);
        memcpy(bytes + end - 8, &left, 8);
    }
    for (; end - first >= 2; first++, end--) {
        const unsigned char byte = bytes[first];
        bytes[first] = bytes[end - 1];
        bytes[end - 1] = byte;
    }
}

/* Writes row by row: deinterleaves a row, then writes its three channels while it is in the cache. */
static void write_interleaved(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const axes *source,
                              fb_plane plane, const fb_kernel *kernel, float *out, int streaming) {
    unsigned char rows[3][MAX_DEINTERLEAVED];
    unsigned char *const channels[3] = {rows[0], rows[1], rows[2]};
    const unsigned char *pixels = plane.pixels;
    const int64_t height = plane.height, row_stride = plane.row_stride,
                  area = geometry->out_height * geometry->out_width;
    const int stream = streaming && kernel->stream;
    const int interleaved = source->channel_stride == 1 && source->pixel_stride == 3;
    const int reversed = plane.mirror && plane.mean_stays && arithmetic->mean_image;
    fb_plane planes[3];
    fb_edge edges[3];
    plane.height = 1;
    plane.row_stride = 0;
    plane.pixel_stride = 1;
    if (reversed) plane.mirror = 0;
    for (int channel = 0; channel < 3; channel++) {
        plane.pixels = rows[channel];
        planes[channel] = plane;
        set_mean(&planes[channel], arithmetic, geometry, channel);
        fb_begin_stream(&edges[channel], out + channel * area);
    }
    for (int64_t y = 0; y < height; y++, pixels += row_stride, out += geometry->out_width) {
        if (interleaved) kernel->deinterleave(pixels, plane.width, channels);
        else gather(pixels, source, channels);
        for (int channel = 0; channel < 3; channel++) {
            if (reversed) reverse(rows[channel], plane.width);
            if (stream) kernel->stream(&planes[channel], &edges[channel]);
            else kernel->store(&planes[channel], out + channel * area);
            if (planes[channel].mean_rows) planes[channel].mean_rows += plane.mean_stride;
        }
    }
    if (stream) {
        for (int channel = 0; channel < 3; channel++) fb_end_stream(&edges[channel]);
    }
}

void fb_pixels_normalize(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part, float *out,
                         int streaming) {
    const axes source = axes_of(part);
    const fb_plane plane = {
        .pixels = part->data,
        .row_stride = source.row_stride,
        .pixel_stride = source.pixel_stride,
        .bytes = part->dtype == FB_UINT8,
        .mean_stride = arithmetic->mean_shape[2],
        .mean_stays = arithmetic->mean_lies_on_output,
        .scale = arithmetic->scale,
        .height = source.height,
        .width = source.width,
        .mirror = geometry->mirror,
        .out_stride = geometry->out_width,
    };
    if (source.height < geometry->out_height || source.width < geometry->out_width) {
        memset(out, 0, (size_t)(source.channels * geometry->out_height * geometry->out_width) * sizeof(float));
        out += geometry->top * geometry->out_width + geometry->left;
        streaming = 0;
    }
    const int by_row = plane.bytes && source.channels == 3 && source.pixel_stride != 1 && source.width >= FB_BLOCK &&
                       source.width <= MAX_DEINTERLEAVED;
    (by_row ? write_interleaved : write_planes)(arithmetic, geometry, &source, plane, fb_kernel_in_use(), out,
                                                streaming);
}

void fb_pixels_part(const fb_geometry *geometry, const fb_view *image, fb_view *part) {
    const int rows = image->ndim - 2; /* the axis of the rows */
    *part = *image;
    part->data = (const char *)image->data + geometry->region.top * image->strides[rows] +
                 geometry->region.left * image->strides[rows + 1];
    part->shape[rows] = geometry->region.height;
    part->shape[rows + 1] = geometry->region.width;
}

void fb_pixels_copy(const fb_geometry *geometry, const fb_view *part, char *out, fb_dtype dtype) {
    fb_view shown = *part;
    if (geometry->mirror) {
        const int columns = part->ndim - 1;
        shown.data = (const char *)part->data + (part->shape[columns] - 1) * part->strides[columns];
        shown.strides[columns] = -part->strides[columns];
    }
    fb_collate(&shown, out, dtype, NULL);
}
