/* Boxes and points: coordinates of the image's pixels, which the geometry moves as it moves the pixels. */
#include "pixels.h"

#include "collate.h"
#include "images/resize.h"

#include <math.h>

#define COUNTED_ROWS 4096 /* between two looks at `stop` */

int fb_rows_check(fb_role role, const fb_view *rows, fb_error *error) {
    const int least = role == FB_BOXES ? 4 : 2;
    if ((rows->ndim == 1 || rows->ndim == 2) && rows->shape[rows->ndim - 1] >= least) return 0;
    if (role == FB_BOXES) {
        return fb_fail(error,
                       "boxes have shape (n, 4), or (4,) for one box: x1, y1, x2, y2; further columns may follow");
    }
    return fb_fail(error, "points have shape (n, 2), or (2,) for one point: x, y; further columns may follow. Reshape "
                          "groups of points, such as (n, 17, 2), to (n * 17, 2)");
}

/* ---- one coordinate */

/* How coordinates along one axis move. */
typedef struct axis {
    double first, from, to; /* the part of the image that is used, and what its size becomes */
    double shift;           /* added to what is resized */
    double out;             /* the output's size */
    int mirror;
} axis;

static axis axis_of(int64_t first, int64_t from, int64_t to, int64_t shift, int64_t out, int mirror) {
    if (from == to) { /* one sum, and so one rounding */
        shift -= first;
        first = 0;
    }
    return (axis){(double)first, (double)from, (double)to, (double)shift, (double)out, mirror};
}

static double move(const axis *along, double value) {
    if (along->from != along->to) value = (value - along->first) * along->to / along->from;
    value += along->shift;
    return along->mirror ? along->out - value : value;
}

static double clip(const axis *along, double value) {
    return value < 0 ? 0 : value > along->out ? along->out : value;
}

static double get(const char *from, fb_dtype dtype) {
    switch (dtype) {
#define FB_CASE(dtype, type) \
    case dtype: { \
        type value; \
        memcpy(&value, from, sizeof value); \
        return (double)value; \
    }
        FB_EACH_DTYPE(FB_CASE)
#undef FB_CASE
        case FB_FLOAT16:
        case FB_ENCODED: break; /* fb_can_convert says no */
    }
    return NAN;
}

static void put(double value, char *to, fb_dtype dtype) {
    const float single = (float)value;
    if (dtype == FB_FLOAT32) memcpy(to, &single, sizeof single);
    else memcpy(to, &value, sizeof value);
}

/* ---- one row */

typedef struct mover {
    axis x, y;
    double least_visible;
    fb_dtype dtype; /* of the output */
} mover;

/* Each of these functions moves a row's coordinates, and returns whether the output shows something of it; or -1 with
 * *error, which lacks the name of the row. */

static int move_box(const mover *mover, double box[4], fb_error *error) {
    for (int i = 0; i < 4; i++) {
        if (!isfinite(box[i])) return fb_fail(error, "has a coordinate that is not a finite number");
    }
    if (box[2] < box[0] || box[3] < box[1]) {
        return fb_fail(error,
                       "is (%g, %g, %g, %g), whose second corner is left of the first one, or above it: a box is "
                       "x1, y1, x2, y2, not x, y, width, height",
                       box[0], box[1], box[2], box[3]);
    }
    const int left = mover->x.mirror ? 2 : 0;
    const double moved[4] = {move(&mover->x, box[left]), move(&mover->y, box[1]), move(&mover->x, box[2 - left]),
                             move(&mover->y, box[3])};
    for (int i = 0; i < 4; i++) box[i] = clip(i % 2 ? &mover->y : &mover->x, moved[i]);
    const double visible = (box[2] - box[0]) * (box[3] - box[1]);
    return visible > 0 && visible / ((moved[2] - moved[0]) * (moved[3] - moved[1])) >= mover->least_visible;
}

static int move_point(const mover *mover, int counted, double point[2], fb_error *error) {
    for (int i = 0; i < 2; i++) {
        if (isnan(point[i]) && counted) return fb_fail(error, "has a coordinate that is not a number");
        if (isinf(point[i])) return fb_fail(error, "has an infinite coordinate");
        point[i] = move(i ? &mover->y : &mover->x, point[i]);
        if (isinf(mover->dtype == FB_FLOAT32 ? (float)point[i] : point[i]))
            return fb_fail(error, "has a coordinate that is too large");
    }
    return point[0] >= 0 && point[0] <= mover->x.out && point[1] >= 0 && point[1] <= mover->y.out;
}

/* ---- all rows */

/* Reads a count. Returns 0, or -1 with *error. */
static int get_count(const fb_view *count, const char *name, int64_t rows, int64_t *found, fb_error *error) {
    int64_t values = 1;
    for (int i = 0; i < count->ndim; i++) values *= count->shape[i];
    if (values != 1) return fb_fail(error, "its %s_count is not one number, that of the rows of %s", name, name);
    fb_convert_one(count->data, count->dtype, (char *)found, FB_INT64);
    if (*found >= 0 && *found <= rows) return 0;
    return fb_fail(error, "its %s_count is %lld, and its %s has %lld row%s", name, (long long)*found, name,
                   (long long)rows, rows == 1 ? "" : "s");
}

static void put_count(int64_t value, fb_view *count) {
    switch (count->dtype) {
#define FB_CASE(dtype, type) \
    case dtype: { \
        const type converted = (type)value; \
        memcpy(&count->scalar, &converted, sizeof converted); \
        break; \
    }
        FB_EACH_DTYPE(FB_CASE)
#undef FB_CASE
        case FB_FLOAT16:
        case FB_ENCODED: return; /* no types of counts */
    }
    count->data = &count->scalar;
}

int fb_rows_move(const fb_transform *transform, fb_role role, const fb_geometry *geometry, const char *name,
                 fb_view *rows, fb_dtype dtype, fb_view *count, fb_arena *memory, fb_error *error) {
    const fb_region *region = &geometry->region, *part = &geometry->part;
    const int64_t left = geometry->mirror ? geometry->out_width - geometry->left - part->width : geometry->left;
    const mover mover = {
        axis_of(region->left, region->width, geometry->width, left - part->left, geometry->out_width, geometry->mirror),
        axis_of(region->top, region->height, geometry->height, geometry->top - part->top, geometry->out_height, 0),
        transform->least_visible,
        dtype,
    };
    const int last = rows->ndim - 1, coordinates = role == FB_BOXES ? 4 : 2;
    const int64_t n = last ? rows->shape[0] : 1, columns = rows->shape[last];
    const int64_t size = (int64_t)fb_dtype_size(dtype);
    int64_t bytes, given = n, kept = 0;
    if (!fb_can_convert(rows->dtype, dtype)) {
        return fb_fail(error, "its %s is of another type than the first sample's, from which the batch has its type",
                       name);
    }
    if (count && get_count(count, name, n, &given, error) != 0) return -1;
    char *moved = NULL;
    if (!__builtin_mul_overflow(n, columns, &bytes) && !__builtin_mul_overflow(bytes, size, &bytes))
        moved = fb_arena_take(memory, (size_t)bytes);
    if (moved == NULL) return fb_fail(error, "no memory for its %s", name);
    memset(moved, 0, (size_t)bytes);
    fb_error reason;
    for (int64_t i = 0; i < given; i++) {
        if (i % COUNTED_ROWS == 0 && fb_stopping(memory->stop)) return fb_fail_stopped(error);
        const char *row = (const char *)rows->data + (last ? i * rows->strides[0] : 0);
        double found[4];
        for (int j = 0; j < coordinates; j++) found[j] = get(row + j * rows->strides[last], rows->dtype);
        const int shown =
            role == FB_BOXES ? move_box(&mover, found, &reason) : move_point(&mover, count != NULL, found, &reason);
        if (shown < 0) return fb_fail(error, "row %lld of its %s %s", (long long)i, name, reason.text);
        if (!shown && (count || role == FB_BOXES)) continue; /* dropped, or left as a row of zeros */
        char *out = moved + (count ? kept : i) * columns * size;
        for (int j = 0; j < coordinates; j++) put(found[j], out + j * size, dtype);
        for (int64_t j = coordinates; j < columns; j++) {
            const char *value = row + j * rows->strides[last];
            if (rows->dtype == dtype) memcpy(out + j * size, value, (size_t)size);
            else fb_convert_one(value, rows->dtype, out + j * size, dtype);
        }
        kept++;
    }
    rows->data = moved;
    rows->dtype = dtype;
    rows->strides[last] = size;
    if (last) rows->strides[0] = columns * size;
    if (count) put_count(kept, count);
    return 0;
}
