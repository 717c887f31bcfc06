/* Images in forms that Caffe does not have: other colors, other channels, other types, channels last. Each row is computed in pieces
 * that stay in the first cache, one channel after the other, and copied to where the form wants it. */
#include "planes.h"

#include <math.h>

#define PIECE 1024        /* pixels */
#define AT_ONCE (1 << 16) /* pixels that are counted between two checks of `stop` */

/* OpenCV's COLOR_BGR2GRAY of 8 bits. */
static void gray_of_bytes(unsigned char *const channels[3], int64_t width, unsigned char *gray) {
    for (int64_t x = 0; x < width; x++)
        gray[x] =
            (unsigned char)((channels[0][x] * 3735 + channels[1][x] * 19235 + channels[2][x] * 9798 + 16384) >> 15);
}

static void gray_of_floats(const unsigned char *pixels, const fb_axes *source, int64_t width, float *gray) {
    for (int64_t x = 0; x < width; x++, pixels += source->pixel_stride) {
        float blue, green, red;
        memcpy(&blue, pixels, sizeof blue);
        memcpy(&green, pixels + source->channel_stride, sizeof green);
        memcpy(&red, pixels + 2 * source->channel_stride, sizeof red);
        gray[x] = blue * 0.114f + green * 0.587f + red * 0.299f;
    }
}

/* Stores n values of this size at every stride-th place. */
static void spread(const void *values, int64_t n, size_t size, char *out, int64_t stride) {
#define FB_SPREAD(type) \
    for (int64_t i = 0; i < n; i++) ((type *)out)[i * stride] = ((const type *)values)[i]
    if (stride == 1) memcpy(out, values, (size_t)n * size);
    else if (size == 1) FB_SPREAD(unsigned char);
    else if (size == 2) FB_SPREAD(uint16_t);
    else FB_SPREAD(uint32_t);
#undef FB_SPREAD
}

/* Brightness, contrast and saturation, in float32. The first two are functions of a pixel's own value. */
typedef struct coloring {
    float values[256]; /* after brightness and contrast */
    float saturation;
    int gray; /* the image has one channel, which the output may show three times */
    int red;  /* index of the red channel: 2, or 0 of an image in the order red, green, blue */
} coloring;

static float clamp(float value) {
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

/* The mean of these values over one channel. */
static double mean_of(const float values[256], const unsigned char *pixels, const fb_axes *source,
                      const int32_t *stop) {
    int64_t counts[256] = {0};
    double sum = 0;
    for (int64_t y = 0; y < source->height; y++) {
        const unsigned char *pixel = pixels + y * source->row_stride;
        for (int64_t x = 0; x < source->width && !fb_stopping(stop); x += AT_ONCE) {
            const int64_t n = source->width - x < AT_ONCE ? source->width - x : AT_ONCE;
            for (int64_t i = 0; i < n; i++, pixel += source->pixel_stride) counts[*pixel]++;
        }
    }
    for (int i = 0; i < 256; i++) sum += (double)counts[i] * (double)values[i];
    return sum / ((double)source->height * (double)source->width);
}

static void set_coloring(coloring *colors, const fb_geometry *geometry, const unsigned char *pixels,
                         const fb_axes *source, const int32_t *stop) {
    float *values = colors->values;
    colors->saturation = colors->gray ? 1 : geometry->saturation; /* gray has none */
    for (int i = 0; i < 256; i++) values[i] = clamp((float)i * geometry->brightness);
    if (geometry->contrast == 1) return;
    double mean;
    if (!colors->gray) {
        const unsigned char *blue = pixels + (2 - colors->red) * source->channel_stride;
        const unsigned char *red = pixels + colors->red * source->channel_stride;
        const unsigned char *green = pixels + source->channel_stride;
        mean = 0.114 * mean_of(values, blue, source, stop) + 0.587 * mean_of(values, green, source, stop) +
               0.299 * mean_of(values, red, source, stop);
    } else {
        mean = mean_of(values, pixels, source, stop);
    }
    const float shift = (float)mean * (1.0f - geometry->contrast);
    for (int i = 0; i < 256; i++) values[i] = clamp(values[i] * geometry->contrast + shift);
}

/* Colors a piece of a row. */
static void color_piece(const coloring *colors, int64_t channels, int64_t n, unsigned char *const bytes[3],
                        float (*out)[PIECE]) {
    for (int64_t c = 0; c < channels; c++) {
        for (int64_t x = 0; x < n; x++) out[c][x] = colors->values[bytes[c][x]];
    }
    if (channels == 1 || colors->saturation == 1) return;
    const float *blue = out[2 - colors->red], *green = out[1], *red = out[colors->red];
    for (int64_t x = 0; x < n; x++) {
        const float gray = blue[x] * 0.114f + green[x] * 0.587f + red[x] * 0.299f;
        const float shift = gray * (1.0f - colors->saturation);
        for (int c = 0; c < 3; c++) out[c][x] = clamp(out[c][x] * colors->saturation + shift);
    }
}

/* What all rows of an image have in common. */
typedef struct writing {
    const fb_kernel *kernel;
    const fb_arithmetic *arithmetic;
    const fb_geometry *geometry;
    fb_precision precision;
    size_t size; /* of a value */
    fb_axes source;
    int gray;               /* made of three channels */
    const coloring *colors; /* NULL: as they are */
    fb_plane plane;
    /* In values of the output, from one to the next. */
    int64_t out_channel, out_row, out_pixel;
} writing;

static int is_interleaved(const fb_axes *source) {
    return (source->channel_stride == 1 || source->channel_stride == -1) && source->pixel_stride == 3;
}

/* Writes n pixels of one channel, whose place in the output begins at `out`. */
static void write_channel(const writing *w, const fb_plane *plane, char *out) {
    float values[PIECE];
    uint16_t halves[PIECE];
    const int64_t n = plane->width;
    if (w->precision == FB_BYTES) {
        unsigned char bytes[PIECE];
        const unsigned char *pixel = plane->pixels;
        for (int64_t x = 0; x < n; x++, pixel += plane->pixel_stride) {
            float value;
            if (!plane->bytes) memcpy(&value, pixel, sizeof value); /* colored */
            bytes[plane->mirror ? n - 1 - x : x] = plane->bytes ? *pixel : (unsigned char)rintf(value);
        }
        spread(bytes, n, 1, out, w->out_pixel);
        return;
    }
    const int side_by_side = plane->pixel_stride == (plane->bytes ? 1 : 4) && n >= FB_BLOCK;
    (side_by_side ? w->kernel->store : fb_any_plane)(plane, values);
    if (w->precision == FB_HALF) w->kernel->halve(values, n, halves);
    spread(w->precision == FB_HALF ? (const void *)halves : values, n, w->size, out, w->out_pixel);
}

/* Of colored rows, one after the other. */
static const fb_axes colored_axes = {
    .channels = 3, .channel_stride = PIECE * sizeof(float), .pixel_stride = sizeof(float)};

/* Writes n pixels of row y of the part, from column x on. */
static void write_piece(const writing *w, int64_t y, int64_t x, int64_t n, char *out) {
    unsigned char rows[3][PIECE];
    unsigned char *const channels[3] = {rows[0], rows[1], rows[2]};
    float colored[3][PIECE];
    const fb_axes *source = &w->source;
    const unsigned char *pixels = w->plane.pixels + y * source->row_stride + x * source->pixel_stride;
    const int deinterleaved =
        w->plane.bytes && (w->colors || (source->channels == 3 && (source->pixel_stride != 1 || w->gray)));
    if (deinterleaved && source->channels == 3 && is_interleaved(source) && n >= FB_BLOCK) {
        const int backward = source->channel_stride < 0;
        unsigned char *const stored[3] = {rows[backward ? 2 : 0], rows[1], rows[backward ? 0 : 2]};
        w->kernel->deinterleave(pixels - 2 * backward, n, stored);
    } else if (deinterleaved && source->channels == 3) {
        fb_gather(pixels, source, n, channels);
    } else if (deinterleaved) {
        for (int64_t i = 0; i < n; i++) rows[0][i] = pixels[i * source->pixel_stride];
    }
    if (w->colors) color_piece(w->colors, source->channels, n, channels, colored);
    const int as_floats = w->colors || !w->plane.bytes;
    if (w->gray && w->colors) gray_of_floats((const unsigned char *)colored, &colored_axes, n, colored[0]);
    else if (w->gray && w->plane.bytes) gray_of_bytes(channels, n, rows[0]);
    else if (w->gray) gray_of_floats(pixels, source, n, colored[0]);
    const int64_t column = w->geometry->left + (w->plane.mirror ? source->width - x - n : x);
    out += ((w->geometry->top + y) * w->out_row + column * w->out_pixel) * (int64_t)w->size;
    for (int64_t channel = 0; channel < (w->gray ? 1 : source->channels); channel++) {
        fb_plane plane = w->plane;
        plane.width = n;
        fb_set_plane(&plane, w->arithmetic, w->geometry, channel);
        if (plane.mean_rows) plane.mean_rows += y * plane.mean_stride + x;
        if (deinterleaved || w->gray) {
            plane.pixels = as_floats ? (const unsigned char *)colored[channel] : rows[channel];
            plane.pixel_stride = as_floats ? 4 : 1;
            plane.bytes = !as_floats;
        } else {
            plane.pixels = pixels + channel * source->channel_stride;
        }
        write_channel(w, &plane, out + channel * w->out_channel * (int64_t)w->size);
    }
}

/* Fills the border of all channels. Returns 0 if it was stopped. */
static int fill(const writing *w, int64_t channels, char *out, const int32_t *stop) {
    for (int64_t channel = 0; channel < channels; channel++) {
        const fb_channel filled = {
            .out = out + channel * w->out_channel * (int64_t)w->size, .size = w->size, .step = w->out_pixel};
        const float value = fb_filled(&w->plane, w->arithmetic, w->geometry, channel);
        union {
            float single;
            uint16_t half;
            unsigned char byte;
        } written = {.single = value};
        if (w->precision == FB_HALF) w->kernel->halve(&value, 1, &written.half);
        if (w->precision == FB_BYTES) written.byte = (unsigned char)*w->arithmetic->fill; /* then from 0 to 255 */
        if (!fb_fill_border(w->geometry, w->source.height, w->source.width, &filled, &written, stop)) return 0;
    }
    return 1;
}

/* gray: the image has one channel, also where `part` shows it three times. */
static int write_form(const fb_transform *transform, const fb_geometry *geometry, const fb_view *part, int gray,
                      char *out, const int32_t *stop) {
    const fb_arithmetic *arithmetic = &transform->arithmetic;
    if (part->dtype == FB_FLOAT32 && arithmetic->for_floats) arithmetic = arithmetic->for_floats;
    writing w = {
        .kernel = fb_kernel_in_use(),
        .arithmetic = arithmetic,
        .geometry = geometry,
        .precision = transform->form.precision,
        .size = fb_dtype_size(fb_form_dtype(&transform->form)),
        .source = fb_axes_of(part),
    };
    w.gray = transform->form.channels == FB_TO_GRAY && w.source.channels == 3;
    w.plane = (fb_plane){
        .pixels = part->data,
        .pixel_stride = w.source.pixel_stride,
        .bytes = part->dtype == FB_UINT8,
        .mean_stride = arithmetic->mean_shape[2],
        .scale = arithmetic->scale,
        .height = 1,
        .mirror = geometry->mirror,
    };
    const int64_t channels = w.gray ? 1 : w.source.channels;
    w.out_pixel = transform->form.channels_last ? channels : 1;
    w.out_row = geometry->out_width * w.out_pixel;
    w.out_channel = transform->form.channels_last ? 1 : geometry->out_height * geometry->out_width;
    coloring colors = {.gray = gray, .red = transform->form.channels == FB_TO_RGB ? 0 : 2};
    if (geometry->jitters) {
        set_coloring(&colors, geometry, w.plane.pixels, &w.source, stop);
        w.colors = &colors;
    }
    if ((w.source.height < geometry->out_height || w.source.width < geometry->out_width) &&
        !fill(&w, channels, out, stop))
        return 0;
    for (int64_t y = 0; y < w.source.height; y++) {
        for (int64_t x = 0; x < w.source.width; x += PIECE) {
            if (fb_stopping(stop)) return 0;
            write_piece(&w, y, x, w.source.width - x < PIECE ? w.source.width - x : PIECE, out);
        }
    }
    return 1;
}

/* Sets `ordered` to the image with its channels in the output's order. Copies nothing. */
static void order_channels(fb_channels channels, const fb_view *image, fb_view *ordered) {
    *ordered = *image;
    if (channels == FB_SAME_CHANNELS || channels == FB_TO_GRAY) return;
    if (image->ndim == 2) {
        ordered->ndim = 3;
        ordered->shape[0] = 1;
        for (int axis = 0; axis < 2; axis++) {
            ordered->shape[axis + 1] = image->shape[axis];
            ordered->strides[axis + 1] = image->strides[axis];
        }
    }
    if (ordered->shape[0] == 1) { /* gray: all three are the same */
        ordered->shape[0] = 3;
        ordered->strides[0] = 0;
    } else if (channels == FB_TO_RGB) {
        ordered->data = (const char *)image->data + 2 * image->strides[0];
        ordered->strides[0] = -image->strides[0];
    }
}

int fb_pixels_write(const fb_transform *transform, const fb_geometry *geometry, const fb_view *part, void *out,
                    int streaming, const int32_t *stop) {
    const fb_form *form = &transform->form;
    fb_view ordered;
    order_channels(form->channels, part, &ordered);
    const int made_gray = form->channels == FB_TO_GRAY && part->ndim == 3 && part->shape[0] == 3;
    if (form->precision == FB_SINGLE && !form->channels_last && !made_gray && !geometry->jitters)
        return fb_pixels_normalize(&transform->arithmetic, geometry, &ordered, out, streaming, stop);
    return write_form(transform, geometry, &ordered, fb_axes_of(part).channels == 1, out, stop);
}
