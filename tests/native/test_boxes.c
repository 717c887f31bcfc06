/* Boxes and points of random bits: nothing outside of the rows is read, and nothing outside of the output is left.
 * tests/test_boxes.py compares values. */
#include "pixels/pixels.h"

#include "check.h"

#include <math.h>

static const fb_dtype dtypes[] = {FB_FLOAT32, FB_FLOAT64, FB_INT64, FB_INT32, FB_UINT8, FB_UINT64, FB_INT16};
static const double extreme[] = {0, -0.0, 1e-320, 1.7e308, -1.7e308, 3e38, 0.5, NAN, INFINITY};

/* Memory for these rows and not a byte more, with odd strides and any alignment. */
static unsigned char *make_rows(fb_view *rows, int64_t n, int64_t columns) {
    const int64_t size = (int64_t)fb_dtype_size(rows->dtype);
    const int single = n == 1 && test_random() % 2;
    const int64_t step = size + test_between(0, 3), stride = step * columns + test_between(0, 9);
    const size_t bytes = (size_t)(n ? (n - 1) * stride + (columns - 1) * step + size : 0);
    unsigned char *const memory = malloc(bytes + 1);
    rows->ndim = single ? 1 : 2;
    rows->shape[0] = single ? columns : n;
    rows->strides[0] = single ? step : stride;
    rows->shape[1] = columns;
    rows->strides[1] = step;
    rows->data = memory + 1;
    for (size_t i = 0; i < bytes + 1; i++) memory[i] = (unsigned char)test_random();
    for (int64_t i = 0; i < n * columns && test_random() % 4; i++) { /* fewer errors, or none */
        unsigned char *const to = memory + 1 + i / columns * stride + i % columns * step;
        const double some = test_random() % 50 ? (double)test_between(-5, 60) + i % columns / 2 * 20
                                               : extreme[test_random() % (sizeof extreme / sizeof *extreme)];
        const float single_some = (float)some;
        if (rows->dtype == FB_FLOAT64) memcpy(to, &some, sizeof some);
        if (rows->dtype == FB_FLOAT32) memcpy(to, &single_some, sizeof single_some);
    }
    return memory;
}

static double value_at(const fb_view *rows, int64_t i, int64_t column) {
    const char *const at = (const char *)rows->data + (rows->ndim == 2 ? i * rows->strides[0] : 0) +
                           column * rows->strides[rows->ndim - 1];
    double wide;
    float narrow;
    memcpy(&narrow, at, sizeof narrow);
    if (rows->dtype == FB_FLOAT32) return narrow;
    memcpy(&wide, at, sizeof wide);
    return wide;
}

/* Any geometry, along one axis. */
static void make_axis(int64_t *first, int64_t *used, int64_t *size, int64_t *part_first, int64_t *part, int64_t *offset,
                      int64_t *out) {
    *first = test_between(0, 30);
    *used = test_between(1, 50);
    *size = test_random() % 2 ? *used : test_between(1, 50);
    *part_first = test_between(0, *size - 1);
    *part = test_between(1, *size - *part_first);
    *offset = test_random() % 2 ? 0 : test_between(0, 9);
    *out = *offset + *part + (test_random() % 2 ? 0 : test_between(0, 9));
}

static int one_case(int number, fb_arena *memory) {
    const fb_role role = number % 2 ? FB_BOXES : FB_POINTS;
    const int coordinates = role == FB_BOXES ? 4 : 2;
    const fb_transform t = {.least_visible = (double)test_between(0, 4) / 4};
    fb_geometry geometry = {.mirror = (int)test_between(0, 1)};
    make_axis(&geometry.region.left, &geometry.region.width, &geometry.width, &geometry.part.left, &geometry.part.width,
              &geometry.left, &geometry.out_width);
    make_axis(&geometry.region.top, &geometry.region.height, &geometry.height, &geometry.part.top,
              &geometry.part.height, &geometry.top, &geometry.out_height);
    const int64_t n = test_between(0, 5), columns = coordinates + test_between(0, 2);
    int64_t counted = test_between(-1, 6);
    fb_view rows = {.dtype = dtypes[test_random() % (sizeof dtypes / sizeof *dtypes)]};
    fb_view count = {.data = &counted, .dtype = FB_INT64};
    unsigned char *const given = make_rows(&rows, n, columns);
    const fb_dtype dtype = rows.dtype == FB_FLOAT64 && test_random() % 2 ? FB_FLOAT64 : FB_FLOAT32;
    const int counts = test_random() % 2;
    fb_error error;
    CHECK(fb_rows_check(role, &rows, &error) == 0, "%s", error.text);
    fb_arena_empty(memory);
    const int moved =
        fb_rows_move(&t, role, &geometry, "some", &rows, dtype, counts ? &count : NULL, memory, &error) == 0;
    free(given);
    if (!moved) return 0;
    const int64_t left = counts ? count.scalar : n;
    CHECK(rows.dtype == dtype && left >= 0 && left <= n && (!counts || left <= counted), "case %d: count", number);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < columns; j++) {
            const double value = value_at(&rows, i, j);
            const double most = (double)(j % 2 ? geometry.out_height : geometry.out_width);
            if (i >= left) CHECK(value == 0, "case %d: row %d", number, (int)i);
            if (j < coordinates && (counts || role == FB_BOXES))
                CHECK(value >= 0 && value <= most, "case %d: row %d, column %d: %g", number, (int)i, (int)j, value);
        }
    }
    return 1;
}

static void nothing_is_moved_when_nobody_waits(void) {
    const int32_t stop = 1;
    const float box[4] = {0, 0, 1, 1};
    const fb_geometry geometry = {.region = {0, 0, 2, 2}, .height = 2, .width = 2, .out_height = 2, .out_width = 2};
    const fb_transform t = {0};
    fb_view rows = {.data = box, .dtype = FB_FLOAT32, .ndim = 1, .shape = {4}, .strides = {4}};
    fb_arena memory = {.stop = &stop};
    fb_error error;
    CHECK(fb_rows_move(&t, FB_BOXES, &geometry, "box", &rows, FB_FLOAT32, NULL, &memory, &error) == -1, "moved");
    CHECK(strstr(error.text, "nobody waits"), "%s", error.text);
    fb_arena_free(&memory);
}

int main(void) {
    fb_arena memory = {0};
    int moved = 0;
    for (int i = 0; i < 20000; i++) moved += one_case(i, &memory);
    CHECK(moved > 5000 && moved < 19000, "%d cases were moved", moved);
    nothing_is_moved_when_nobody_waits();
    fb_arena_free(&memory);
    return 0;
}
