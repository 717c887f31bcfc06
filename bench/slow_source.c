/* A source whose samples take DELAY microseconds each, as on a network disk, and whose shapes are not known
 * beforehand. */
#include "fastbatch.h"

#include <unistd.h>

static int locate(void *self, fb_record *record, fb_worker *worker, fb_error *error) {
    (void)self, (void)record, (void)worker, (void)error;
    return 0;
}

static int read_sample(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) {
    static const unsigned char pixels[3 * 32 * 32];
    (void)self, (void)worker, (void)error;
    usleep(DELAY);
    views[0] =
        (fb_view){.data = pixels, .dtype = FB_UINT8, .ndim = 3, .shape = {3, 32, 32}, .strides = {32 * 32, 32, 1}};
    views[1] = (fb_view){.data = &views[1].scalar, .dtype = FB_INT64, .scalar = (int64_t)record->index};
    return 0;
}

fb_source *slow_source(void) {
    static const fb_field fields[] = {{.name = "data", .dtype = FB_UINT8, .ndim = -1},
                                      {.name = "label", .dtype = FB_INT64}};
    static fb_source source = {
        .abi = FB_SOURCE_ABI,
        .size = sizeof(fb_source),
        .field_count = 2,
        .fields = fields,
        .name = "slow",
        .count = 1 << 20,
        .locate = locate,
        .read = read_sample,
    };
    return &source;
}
