/* Copies one field of one sample into the batch: a strided copy, with the few conversions that labels need. */
#ifndef FASTBATCH_COLLATE_H
#define FASTBATCH_COLLATE_H

#include "fastbatch.h"

/* Converts one value of any numeric type except float16 to int64 or float32, with one C conversion and so one rounding.
 * The source may be unaligned. */
/* clang-format off */
#define FB_EACH_DTYPE(X) \
    X(FB_UINT8, uint8_t) X(FB_INT8, int8_t) X(FB_BOOL, uint8_t) X(FB_INT16, int16_t) X(FB_UINT16, uint16_t) \
    X(FB_INT32, int32_t) X(FB_UINT32, uint32_t) X(FB_INT64, int64_t) X(FB_UINT64, uint64_t) \
    X(FB_FLOAT32, float) X(FB_FLOAT64, double)
/* clang-format on */

static inline void fb_convert_one(const char *from, fb_dtype from_dtype, char *to, fb_dtype to_dtype) {
    switch (from_dtype) {
#define FB_CASE(dtype, type) \
    case dtype: { \
        type value; \
        memcpy(&value, from, sizeof value); \
        if (to_dtype == FB_INT64) { \
            int64_t wide = (int64_t)value; \
            memcpy(to, &wide, sizeof wide); \
        } else { \
            float single = (float)value; \
            memcpy(to, &single, sizeof single); \
        } \
        return; \
    }
        FB_EACH_DTYPE(FB_CASE)
#undef FB_CASE
        case FB_FLOAT16:
        case FB_ENCODED: return; /* fb_can_convert says no */
    }
}

/* Whether fb_collate() can turn `from` into `to`. */
static inline int fb_can_convert(fb_dtype from, fb_dtype to) {
    if (from == to) return 1;
    if (from == FB_FLOAT16 || from == FB_ENCODED) return 0;
    if (to == FB_FLOAT32) return 1;
    return to == FB_INT64 && from != FB_FLOAT32 && from != FB_FLOAT64;
}

static inline int fb_is_contiguous(const fb_view *view) {
    int64_t expected = (int64_t)fb_dtype_size(view->dtype);
    for (int axis = view->ndim - 1; axis >= 0; axis--) {
        if (view->shape[axis] != 1 && view->strides[axis] != expected) return 0;
        expected *= view->shape[axis];
    }
    return 1;
}

#define FB_COLLATE_VALUES 4096 /* between two looks at `stop` */
#define FB_COLLATE_BYTES ((size_t)16 << 20)

/* Copies contiguous bytes. Returns what follows in `to`, or NULL if it was stopped. */
static inline char *fb_collate_row(const char *from, size_t bytes, char *to, const int32_t *stop) {
    for (; bytes > FB_COLLATE_BYTES; bytes -= FB_COLLATE_BYTES, from += FB_COLLATE_BYTES, to += FB_COLLATE_BYTES) {
        memcpy(to, from, FB_COLLATE_BYTES);
        if (fb_stopping(stop)) return NULL;
    }
    memcpy(to, from, bytes);
    return to + bytes;
}

static inline char *fb_collate_axis(const fb_view *view, int axis, const char *from, char *to, fb_dtype dtype,
                                    const int32_t *stop) {
    size_t size = fb_dtype_size(dtype);
    if (axis == view->ndim) {
        if (view->dtype == dtype) memcpy(to, from, size);
        else fb_convert_one(from, view->dtype, to, dtype);
        return to + size;
    }
    if (axis == view->ndim - 1 && view->dtype == dtype && view->strides[axis] == (int64_t)size) {
        if (fb_stopping(stop)) return NULL;
        return fb_collate_row(from, (size_t)view->shape[axis] * size, to, stop);
    }
    for (int64_t i = 0; i < view->shape[axis]; i++) {
        if (axis == view->ndim - 1 && i % FB_COLLATE_VALUES == 0 && fb_stopping(stop)) return NULL;
        to = fb_collate_axis(view, axis + 1, from + i * view->strides[axis], to, dtype, stop);
        if (to == NULL) return NULL;
    }
    return to;
}

/* Writes the view's elements to `to`, contiguous and of type `dtype`. fb_can_convert(view->dtype, dtype) must hold. 0
 * if it was stopped on the way: a sample may have gigabytes. stop: see fb_stopping(). */
static inline int fb_collate(const fb_view *view, char *to, fb_dtype dtype, const int32_t *stop) {
    if (view->dtype == dtype && fb_is_contiguous(view)) {
        size_t bytes = fb_dtype_size(dtype);
        for (int axis = 0; axis < view->ndim; axis++) bytes *= (size_t)view->shape[axis];
        return fb_collate_row((const char *)view->data, bytes, to, stop) != NULL;
    }
    return fb_collate_axis(view, 0, (const char *)view->data, to, dtype, stop) != NULL;
}

#endif
