/* The smallest source: sample i has "data", a 4 x 4 square of the value i, and "label", i. See squares.py. */
#include "fastbatch.h"

typedef struct squares {
    fb_source source;
    fb_field fields[2];
    float *values; /* one per sample, because all elements of a square are equal */
} squares;

/* Called by all workers at once, to point a view at the values of each field. Strides of 0 repeat a single value. */
static int read_sample(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) {
    squares *all = self;
    (void)worker, (void)error;
    views[0] = (fb_view){.data = &all->values[record->index], .dtype = FB_FLOAT32, .ndim = 3, .shape = {1, 4, 4}};
    views[1] = (fb_view){.data = &views[1].scalar, .dtype = FB_INT64, .scalar = (int64_t)record->index};
    return 0;
}

/* Returns an fb_source of `count` squares, or NULL if memory runs out. */
fb_source *squares_open(uint64_t count) {
    squares *all = calloc(1, sizeof *all);
    if (all == NULL) return NULL;
    all->values = malloc((size_t)count * sizeof(float));
    if (all->values == NULL) {
        free(all);
        return NULL;
    }
    for (uint64_t i = 0; i < count; i++) all->values[i] = (float)i;
    all->fields[0] = (fb_field){.name = "data", .dtype = FB_FLOAT32, .ndim = 3, .shape = {1, 4, 4}};
    all->fields[1] = (fb_field){.name = "label", .dtype = FB_INT64};
    all->source = (fb_source){
        .abi = FB_SOURCE_ABI,
        .size = sizeof(fb_source),
        .field_count = 2,
        .fields = all->fields,
        .name = "squares",
        .count = count,
        .self = all,
        .read = read_sample,
        .at_once = FB_MANY, /* the samples are small */
    };
    return &all->source;
}

void squares_close(fb_source *source) {
    squares *all = source->self;
    free(all->values);
    free(all);
}
