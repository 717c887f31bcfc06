/* Rows of pixels from the samples of Y, Cb and Cr. jpeg_color.h has the arithmetic. */
#include "jpeg_state.h"

#if FB_JPEG_KERNELS

static const unsigned char *samples_at(const fb_jpeg_plane *from, int64_t row) {
    return from->samples + (row & (from->rows - 1)) * from->stride;
}

/* The other row of chroma of which row `y` has a quarter: the one above for even rows, and below for odd ones. */
static const unsigned char *far_row(const fb_jpeg_fast *fast, const fb_jpeg_plane *from, int64_t y) {
    const int64_t row = y % 2 ? y / 2 + 1 : y / 2 - 1, last = fast->chroma_height - 1;
    return samples_at(from, row < 0 ? 0 : row > last ? last : row);
}

/* Adds up the chroma rows for row `y`, from the sample before `first` to the one behind the last. At the image's edges,
 * samples are repeated. */
static void sum_chroma(fb_jpeg_fast *fast, int64_t y, int64_t first, int64_t count) {
    const int64_t edge = fast->chroma_width - first;
    const int64_t offset = first - 1 - 8 * fast->first_mcu;
    for (int i = 0; i < 2; i++) {
        const fb_jpeg_plane *from = &fast->planes[i + 1];
        const unsigned char *near = samples_at(from, y), *far = NULL;
        if (fast->layout->spread == FB_H2V2) {
            near = samples_at(from, y / 2);
            far = far_row(fast, from, y) + offset;
        }
        int16_t *sums = fast->sums[i];
        fast->kernels->sum_rows(near + offset, far, count + 2, sums - 1);
        if (first == 0) sums[-1] = sums[0];
        if (edge == count) sums[edge] = sums[edge - 1];
    }
}

/* Spreads the chroma of row `y` to `width` columns from `left` on, where libjpeg does not interpolate along rows. Returns
 * the samples of Cb or Cr. */
static const unsigned char *spread_chroma(fb_jpeg_fast *fast, int component, int64_t y, int64_t left, int64_t width) {
    const fb_jpeg_plane *from = &fast->planes[component];
    unsigned char *to = (unsigned char *)fast->sums[component - 1];
    const int64_t column = left / fast->layout->h - 8 * fast->first_mcu;
    if (fast->layout->spread == FB_FULL) return samples_at(from, y) + column;
    if (fast->layout->spread == FB_H1V2) { /* ties are rounded down in even rows and up in odd ones */
        fast->kernels->mix_rows(samples_at(from, y / 2) + column, far_row(fast, from, y) + column, width, y % 2 ? 2 : 1,
                                to);
        return to;
    }
    const unsigned char *samples = samples_at(from, y) + column;
    for (int64_t x = 0; x < left % 4 + width; x += 4) memset(to + x, *samples++, 4);
    return to + left % 4;
}

/* Converts row `y` of the image, from column rows->left on, which is even if chroma is interpolated. */
static void write_row(fb_jpeg_fast *fast, int64_t y) {
    const fb_jpeg_layout *l = fast->layout;
    const fb_rows *rows = fast->rows;
    const int64_t width = fast->columns;
    const int64_t column = rows->left - 8 * l->h * fast->first_mcu, plane = rows->channel;
    const unsigned char *luma = samples_at(&fast->planes[0], y) + column;
    unsigned char *out = rows->data + (y - rows->top) * rows->stride;
    if (!fast->color) {
        memcpy(out, luma, (size_t)width);
    } else if (l->spread == FB_H2V1 || l->spread == FB_H2V2) {
        sum_chroma(fast, y, rows->left / 2, (width + 1) / 2);
        fast->kernels->convert(luma, fast->sums[0], fast->sums[1], width,
                               l->spread == FB_H2V1 ? FB_CHROMA_H2V1 : FB_CHROMA_H2V2, out, plane);
    } else {
        fast->kernels->convert(luma, spread_chroma(fast, 1, y, rows->left, width),
                               spread_chroma(fast, 2, y, rows->left, width), width, FB_CHROMA_FULL, out, plane);
    }
}

void fb_jpeg_write_rows(fb_jpeg_fast *fast, int64_t row) {
    const int context = fast->color && fast->layout->v == 2;
    int64_t complete = row + 1 == fast->mcu_rows ? fast->height : (row + 1) * 8 * fast->layout->v - context;
    if (complete > fast->bottom) complete = fast->bottom;
    for (; fast->y < complete; fast->y++) write_row(fast, fast->y);
}

#endif
