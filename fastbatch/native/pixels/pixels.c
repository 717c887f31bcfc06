#include "planes.h"

#define MAX_DEINTERLEAVED 4096 /* pixels per deinterleaved row; wider than any net's input */
#define AT_ONCE (1 << 20)      /* values that are written between two checks of `stop` */

/* ---- the border */

#define PATTERN 16 /* bytes that are filled at once; a multiple of every type's size */

static void fill_values(char *out, size_t size, int64_t step, int64_t n, const void *value) {
#define FB_FILL(type) \
    { \
        type filled; \
        memcpy(&filled, value, sizeof filled); \
        if (step == 1) { \
            for (int64_t i = 0; i < n; i++) ((type *)out)[i] = filled; \
        } else { \
            for (int64_t i = 0; i < n; i++) ((type *)out)[i * step] = filled; \
        } \
    }
    if (size == 1) FB_FILL(uint8_t)
    else if (size == 2) FB_FILL(uint16_t)
    else if (size == 4) FB_FILL(uint32_t)
    else FB_FILL(uint64_t)
#undef FB_FILL
}

/* Fills the values from `begin` to `end`. Returns 0 if it was stopped. */
static int fill_range(const fb_channel *channel, int64_t begin, int64_t end, const void *value, const int32_t *stop) {
    const int64_t step = channel->step * (int64_t)channel->size;
    for (; begin < end; begin += AT_ONCE) {
        if (fb_stopping(stop)) return 0;
        const int64_t n = end - begin < AT_ONCE ? end - begin : AT_ONCE;
        fill_values((char *)channel->out + begin * step, channel->size, channel->step, n, value);
    }
    return 1;
}

/* Fills gaps of at most 2 * PATTERN bytes in the rows of an output. Returns 0 if it was stopped. */
static int fill_narrow(char *out, int64_t rows, int64_t stride, int64_t bytes, size_t size, const void *value,
                       const int32_t *stop) {
    char pattern[PATTERN];
    for (size_t i = 0; i < PATTERN; i += size) memcpy(pattern + i, value, size);
#define FB_FILL(half) /* the gap's beginning and its end, which may overlap */ \
    for (int64_t y = 0; y < rows; y++, out += stride) { \
        if (y % (AT_ONCE / PATTERN) == 0 && fb_stopping(stop)) return 0; \
        memcpy(out, pattern, half); \
        memcpy(out + bytes - half, pattern, half); \
    }
    if (bytes >= 16) FB_FILL(16)
    else if (bytes >= 8) FB_FILL(8)
    else if (bytes >= 4) FB_FILL(4)
    else if (bytes >= 2) FB_FILL(2)
    else if (bytes == 1) FB_FILL(1)
#undef FB_FILL
    return 1;
}

int fb_fill_border(const fb_geometry *geometry, int64_t height, int64_t width, const fb_channel *channel,
                   const void *value, const int32_t *stop) {
    const int64_t out_width = geometry->out_width, size = (int64_t)channel->size;
    const int64_t first = geometry->top * out_width + geometry->left; /* of the image */
    const int64_t last = first + (height - 1) * out_width + width;    /* the next one after it */
    if (!fill_range(channel, 0, first, value, stop)) return 0;
    if (!fill_range(channel, last, geometry->out_height * out_width, value, stop)) return 0;
    const int64_t gap = (out_width - width) * size;
    if (channel->step == 1 && gap <= 2 * PATTERN) { /* most borders */
        char *out = (char *)channel->out + (first + width) * size;
        return fill_narrow(out, height - 1, out_width * size, gap, channel->size, value, stop);
    }
    for (int64_t row = first; row + out_width < last; row += out_width) {
        if (!fill_range(channel, row + width, row + out_width, value, stop)) return 0;
    }
    return 1;
}

/* ---- planes */

typedef void store_plane(const fb_plane *plane, float *out);

/* Streams a plane if there is an edge, or stores it to `out`; in steps, between which it checks `stop`. Returns 0 if it
 * was stopped. */
static int write_plane(const fb_plane *plane, store_plane *store, const fb_kernel *kernel, fb_edge *edge, float *out,
                       const int32_t *stop) {
    if (fb_stopping(stop)) return 0;
    if (plane->height * plane->width <= AT_ONCE) {
        if (edge) kernel->stream(plane, edge);
        else store(plane, out);
        return 1;
    }
    fb_plane part = *plane, rest = *plane;
    int64_t written; /* values from the part's first to the rest's */
    if (plane->height > 1) {
        part.height = plane->height / 2;
        rest.height -= part.height;
        rest.pixels += part.height * plane->row_stride;
        if (plane->mean_rows) rest.mean_rows += part.height * plane->mean_stride;
        written = part.height * plane->out_stride;
    } else { /* a very wide row: the left half of the output, which a mirror takes from the right of the image */
        written = part.width = plane->width / 2;
        rest.width -= part.width;
        if (plane->mirror) part.pixels += rest.width * plane->pixel_stride;
        else rest.pixels += part.width * plane->pixel_stride;
        if (plane->mean_rows && plane->mirror && !plane->mean_stays) part.mean_rows += rest.width;
        else if (plane->mean_rows) rest.mean_rows += part.width;
    }
    return write_plane(&part, store, kernel, edge, out, stop) &&
           write_plane(&rest, store, kernel, edge, out + written, stop);
}

/* Writes one channel after the other, without deinterleaving. Returns 0 if it was stopped. */
static int write_planes(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_axes *source,
                        fb_plane plane, const fb_kernel *kernel, float *out, int streaming, const int32_t *stop) {
    const int side_by_side = plane.pixel_stride == (plane.bytes ? 1 : 4) && plane.width >= FB_BLOCK &&
                             !(plane.mirror && plane.mean_stays && arithmetic->mean_image);
    const int stream = streaming && side_by_side && kernel->stream;
    const unsigned char *const first = plane.pixels;
    const int64_t area = geometry->out_height * geometry->out_width;
    int written = 1;
    fb_edge edge; /* one for all channels: each begins where the previous one ends */
    fb_begin_stream(&edge, out);
    for (int64_t channel = 0; channel < source->channels && written; channel++) {
        plane.pixels = first + channel * source->channel_stride;
        fb_set_plane(&plane, arithmetic, geometry, channel);
        written = write_plane(&plane, side_by_side ? kernel->store : fb_any_plane, kernel, stream ? &edge : NULL,
                              out + channel * area, stop);
    }
    if (stream) fb_end_stream(&edge);
    return written;
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

/* Writes row by row: copies or deinterleaves a row, then writes its three channels while it is in the cache. Returns 0
 * if it was stopped. */
static int write_interleaved(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_axes *source,
                             fb_plane plane, const fb_kernel *kernel, float *out, int streaming, const int32_t *stop) {
    unsigned char rows[3][MAX_DEINTERLEAVED];
    unsigned char *const channels[3] = {rows[0], rows[1], rows[2]};
    const unsigned char *pixels = plane.pixels;
    const int64_t height = plane.height, row_stride = plane.row_stride,
                  area = geometry->out_height * geometry->out_width;
    const int stream = streaming && kernel->stream;
    /* In either order: the first channel may be the last one in memory. */
    const int backward = source->channel_stride == -1;
    const int interleaved = (backward || source->channel_stride == 1) && source->pixel_stride == 3;
    unsigned char *const stored[3] = {rows[backward ? 2 : 0], rows[1], rows[backward ? 0 : 2]};
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
        fb_set_plane(&planes[channel], arithmetic, geometry, channel);
        fb_begin_stream(&edges[channel], out + channel * area);
    }
    int64_t y = 0;
    for (; y < height && !fb_stopping(stop); y++, pixels += row_stride, out += geometry->out_width) {
        if (interleaved) kernel->deinterleave(pixels - 2 * backward, plane.width, stored);
        else fb_gather(pixels, source, source->width, channels);
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
    return y == height;
}

/* Fills the border: with 0, or with what becomes of the fill value. Returns 0 if it was stopped. */
static int fill_planes(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_plane *plane,
                       int64_t channels, float *out, const int32_t *stop) {
    const int64_t area = geometry->out_height * geometry->out_width;
    for (int64_t channel = 0; channel < channels; channel++, out += area) {
        const fb_channel filled = {.out = out, .size = sizeof *out, .step = 1};
        float value = 0;
        if (arithmetic->fill) value = fb_filled(plane, arithmetic, geometry, channel);
        if (!fb_fill_border(geometry, plane->height, plane->width, &filled, &value, stop)) return 0;
    }
    return 1;
}

int fb_pixels_normalize(const fb_arithmetic *arithmetic, const fb_geometry *geometry, const fb_view *part, float *out,
                        int streaming, const int32_t *stop) {
    const fb_axes source = fb_axes_of(part);
    if (part->dtype == FB_FLOAT32 && arithmetic->for_floats) arithmetic = arithmetic->for_floats;
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
        if (!fill_planes(arithmetic, geometry, &plane, source.channels, out, stop)) return 0;
        out += geometry->top * geometry->out_width + geometry->left;
        streaming = 0;
    }
    const int copied = source.pixel_stride != 1 || (plane.mirror && plane.mean_stays && arithmetic->mean_image);
    const int by_row =
        plane.bytes && source.channels == 3 && copied && source.width >= FB_BLOCK && source.width <= MAX_DEINTERLEAVED;
    return (by_row ? write_interleaved : write_planes)(arithmetic, geometry, &source, plane, fb_kernel_in_use(), out,
                                                       streaming, stop);
}
