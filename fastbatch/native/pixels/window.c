#include "window.h"

#include <math.h>

static int as_int(float value) {
    return (int)roundf(value); /* half away from zero */
}

/* One axis of a window with its context: the part inside the image, and the number of pixels missing at either end. */
typedef struct span {
    int first, last, unclipped, before, after;
} span;

static span span_of(float center, float half, float context_scale, int image_size) {
    span s = {as_int(center - half * context_scale), as_int(center + half * context_scale), 0, 0, 0};
    s.unclipped = s.last - s.first + 1;
    if (s.first < 0) s.before = -s.first;
    if (s.last >= image_size) s.after = s.last - image_size + 1;
    s.first += s.before;
    s.last -= s.after;
    return s;
}

/* Converts the missing parts to pixels of the square. Returns the size of the part inside the image, in the same. */
static int scale_to_square(span *s, int crop_size) {
    const float scale = (float)crop_size / (float)s->unclipped;
    const int size = as_int((float)(s->last - s->first + 1) * scale);
    s->before = as_int((float)s->before * scale);
    s->after = as_int((float)s->after * scale);
    return size;
}

int fb_window_choose(const fb_warp *warp, const fb_window *window, int image_height, int image_width, int mirror,
                     fb_geometry *geometry, fb_error *error) {
    const int crop_size = warp->crop_size;
    *geometry = (fb_geometry){
        .image_height = image_height,
        .image_width = image_width,
        .region = {.top = window->y1,
                   .left = window->x1,
                   .height = window->y2 - window->y1 + 1,
                   .width = window->x2 - window->x1 + 1},
        .height = crop_size,
        .width = crop_size,
        .out_height = crop_size,
        .out_width = crop_size,
        .mirror = mirror,
    };
    if (warp->context_pad == 0 && !warp->square) return 0;

    const float context_scale = (float)crop_size / (float)(crop_size - 2 * warp->context_pad);
    float half_height = (float)geometry->region.height / 2, half_width = (float)geometry->region.width / 2;
    const float center_x = (float)window->x1 + half_width, center_y = (float)window->y1 + half_height;
    if (warp->square) half_height = half_width = half_height > half_width ? half_height : half_width;
    if ((half_height > half_width ? half_height : half_width) * context_scale > 1 << 28) {
        return fb_fail(
            error,
            "with context_pad %d of crop_size %d, the window would show more than %d pixels a side: use a smaller "
            "context_pad",
            warp->context_pad, crop_size, 1 << 29);
    }
    span x = span_of(center_x, half_width, context_scale, image_width);
    span y = span_of(center_y, half_height, context_scale, image_height);
    geometry->region =
        (fb_region){.top = y.first, .left = x.first, .height = y.last - y.first + 1, .width = x.last - x.first + 1};
    geometry->height = scale_to_square(&y, crop_size);
    geometry->width = scale_to_square(&x, crop_size);
    geometry->top = y.before;
    geometry->left = mirror ? x.after : x.before;
    /* Each was rounded on its own, so together they may not fit. */
    if (geometry->top + geometry->height > crop_size) geometry->height = crop_size - geometry->top;
    if (geometry->left + geometry->width > crop_size) geometry->width = crop_size - geometry->left;
    if (geometry->height < 1 || geometry->width < 1) {
        return fb_fail(
            error,
            "of the window with its context, %d x %d pixels wide and high, so little lies in the image that nothing of "
            "it is left after the resize to %d x %d, where Caffe's own layer ends the process: leave the window out",
            x.unclipped, y.unclipped, crop_size, crop_size);
    }
    return 0;
}
