/* Copies into a batch: the values, and that long copies check `stop`. */
#include "collate.h"

#include "check.h"

enum { COUNT = 1 << 20 };

static int32_t from[3 * COUNT];
static char to[3 * COUNT * sizeof(int64_t)];

static void all_values_arrive(const int32_t *stop) {
    const fb_view contiguous = {
        .data = from, .dtype = FB_INT32, .ndim = 2, .shape = {3, COUNT}, .strides = {4 * COUNT, 4}};
    const fb_view transposed = {
        .data = from, .dtype = FB_INT32, .ndim = 2, .shape = {COUNT, 3}, .strides = {4, 4 * COUNT}};
    memset(to, 0, sizeof to);
    CHECK(fb_collate(&contiguous, to, FB_INT32, stop), "stopped");
    CHECK(memcmp(to, from, sizeof from) == 0, "other values");
    CHECK(fb_collate(&transposed, to, FB_INT64, stop), "stopped");
    for (int64_t i = 0; i < 3 * COUNT; i++) {
        int64_t value;
        memcpy(&value, to + i * 8, sizeof value);
        CHECK(value == from[i % 3 * COUNT + i / 3], "value %lld is %lld", (long long)i, (long long)value);
    }
}

int main(void) {
    int32_t stop = 0;
    char *large = calloc(1, 2 * FB_COLLATE_BYTES);
    char *copy = malloc(2 * FB_COLLATE_BYTES);
    fb_view view = {
        .data = large, .dtype = FB_UINT8, .ndim = 1, .shape = {2 * (int64_t)FB_COLLATE_BYTES}, .strides = {1}};
    for (int i = 0; i < 3 * COUNT; i++) from[i] = i;
    all_values_arrive(NULL);
    all_values_arrive(&stop);
    CHECK(fb_collate(&view, copy, FB_UINT8, &stop), "stopped");
    stop = 1;
    CHECK(!fb_collate(&view, copy, FB_UINT8, &stop), "a large block was copied to its end");
    view.strides[0] = -1;
    view.data = large + 2 * FB_COLLATE_BYTES - 1;
    CHECK(!fb_collate(&view, copy, FB_UINT8, &stop), "single values were copied to the end");
    view.shape[0] = 0;
    CHECK(fb_collate(&view, copy, FB_UINT8, &stop), "nothing was not copied to its end");
    free(large);
    free(copy);
    return 0;
}
