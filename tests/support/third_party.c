/* A source and a codec for tests, as a third party would write them. Python fills in their struct: see third_party.py.
 *
 * read() returns the views that Python gave; a bit of `left_alone` keeps it from touching one. write() fills the memory
 * of each sample with its index; with shared_batches, by way of the file. announce() notes where samples will belong.
 * The codec's images are two bytes, height and width, and a byte for each pixel. Each open decoder is counted.
 */
#include <unistd.h>

#include "fastbatch.h"
#include "fastbatch_image.h"

extern void *PyCapsule_GetPointer(void *capsule, const char *name); /* of the Python that loads this */

typedef struct party {
    fb_source source; /* first: the capsule's pointer */
    fb_codec codec;
    fb_decoding decoding;
    fb_field fields[FB_MAX_FIELDS + 1];
    fb_view views[FB_MAX_FIELDS + 1];
    uint32_t left_alone;
    int32_t silent; /* fails, and gives no reason */
    int32_t deleted;
    size_t scratch; /* bytes that read() reserves for a sample of index 0, and a hundredth of it for others */
    uint64_t end;   /* the index from which on locate() says that there are `said` samples; 0: it never does */
    uint64_t said;
    void (*count_done)(void *self, const fb_record *record, fb_worker *worker);
    void (*note)(void *self, uint32_t number, const fb_record *record, fb_worker *worker, const fb_place *places);
    void **noted;     /* what note() was told: where the samples belong, by index */
    int64_t together; /* the most samples that were announced together */
    int64_t begun;    /* calls of write() and of count_done() */
    int64_t ended;
    int64_t twice; /* calls of count_done() for a sample that had ended before */
    unsigned char *over;
    void (*note_expected)(void *self, uint64_t index);
    int64_t expected_count; /* calls of note_expected() */
    uint64_t *expected;     /* and their indices: the first 1000 */
} party;

struct fb_decoder {
    const unsigned char *bytes;
};

static int decoders;        /* that are open */
static party *alive;        /* the last one that was made, as long as it is not deleted */
static int closed_too_late; /* decoders that were closed when their source was gone */

int decoders_open(void) {
    return __atomic_load_n(&decoders, __ATOMIC_SEQ_CST);
}
int decoders_closed_too_late(void) {
    return closed_too_late;
}

static fb_decoder *codec_open(const int32_t *stop) {
    (void)stop;
    __atomic_add_fetch(&decoders, 1, __ATOMIC_SEQ_CST);
    return calloc(1, sizeof(fb_decoder));
}

static void codec_close(fb_decoder *decoder) {
    if (decoder == NULL) return;
    __atomic_add_fetch(&decoders, -1, __ATOMIC_SEQ_CST);
    if (alive == NULL) closed_too_late++;
    free(decoder);
}

static int codec_begin(fb_decoder *decoder, const void *bytes, size_t size, const fb_decoding *decoding,
                       int64_t shape[3], fb_error *error) {
    const unsigned char *at = bytes;
    (void)decoding;
    if (size < 2 || size != 2 + (size_t)at[0] * at[1]) return fb_fail(error, "no image of ours: %zu bytes", size);
    decoder->bytes = at;
    shape[0] = 1;
    shape[1] = at[0];
    shape[2] = at[1];
    return 0;
}

static int codec_finish(fb_decoder *decoder, const fb_region *region, fb_view *pixels, fb_error *error) {
    const int64_t width = decoder->bytes[1];
    (void)error;
    *pixels = (fb_view){
        .data = decoder->bytes + 2 + region->top * width + region->left,
        .dtype = FB_UINT8,
        .ndim = 3,
        .shape = {1, region->height, region->width},
        .strides = {0, width, 1},
    };
    return 0;
}

static int locate(void *argument, fb_record *record, fb_worker *worker, fb_error *error) {
    party *self = argument;
    (void)error;
    if (self->scratch) memset(fb_scratch_reserve(worker->record_buffer, self->scratch / 100), 1, self->scratch / 100);
    if (self->end && record->index >= self->end) {
        record->index = self->said;
        return FB_END;
    }
    return 0;
}

static int read_sample(void *argument, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error) {
    party *self = argument;
    (void)error;
    if (self->silent) return -1;
    if (self->scratch) {
        const size_t size = record->index == 0 ? self->scratch : self->scratch / 100;
        memset(fb_scratch_reserve(worker->scratch, size), 1, size);
    }
    for (uint32_t i = 0; i < self->source.field_count; i++) {
        if (!(self->left_alone >> i & 1)) views[i] = self->views[i];
    }
    return 0;
}

static int write_sample(void *argument, const fb_record *record, fb_worker *worker, const fb_place *places,
                        fb_error *error) {
    party *self = argument;
    char values[1024];
    (void)worker;
    __atomic_add_fetch(&self->begun, 1, __ATOMIC_SEQ_CST);
    if (self->silent) return -1;
    if (self->source.announce && self->noted[record->index] != places[0].data)
        return fb_fail(error, "it was not announced at this place");
    for (uint32_t i = 0; i < self->source.field_count; i++) {
        fb_place place = places[i];
        size_t count = 1;
        for (int axis = 0; axis < place.ndim; axis++) count *= (size_t)place.shape[axis];
        const size_t size = count * fb_dtype_size(place.dtype);
        if (self->source.shared_batches) {
            if (size > sizeof values) return fb_fail(error, "%zu bytes", size);
            place.data = values;
        } else if (place.file != -1) {
            return fb_fail(error, "nobody asked for a file");
        }
        if (strcmp(self->fields[i].name, "label") == 0) {
            if (fb_place_label(&place, (int64_t)record->index, error) != 0) return -1;
        } else if (place.dtype == FB_FLOAT32) {
            for (size_t k = 0; k < count; k++) ((float *)place.data)[k] = (float)record->index;
        } else {
            memset(place.data, (int)record->index, size);
        }
        if (self->source.shared_batches && pwrite(place.file, values, size, place.offset) != (ssize_t)size)
            return fb_fail(error, "pwrite failed");
    }
    return 0;
}

static void count_done(void *argument, const fb_record *record, fb_worker *worker) {
    party *self = argument;
    (void)worker;
    __atomic_add_fetch(&self->ended, 1, __ATOMIC_SEQ_CST);
    if (record->index >= self->source.count || __atomic_exchange_n(&self->over[record->index], 1, __ATOMIC_SEQ_CST))
        __atomic_add_fetch(&self->twice, 1, __ATOMIC_SEQ_CST);
}

static void note(void *argument, uint32_t number, const fb_record *record, fb_worker *worker, const fb_place *places) {
    party *self = argument;
    int64_t together = number + 1;
    int64_t most = __atomic_load_n(&self->together, __ATOMIC_SEQ_CST);
    (void)worker;
    self->noted[record->index] = places[0].data;
    while (most < together &&
           !__atomic_compare_exchange_n(&self->together, &most, together, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        continue;
}

static void note_expected(void *argument, uint64_t index) {
    party *self = argument;
    const int64_t number = __atomic_fetch_add(&self->expected_count, 1, __ATOMIC_SEQ_CST);
    if (number < 1000) self->expected[number] = index;
}

size_t party_size(void) {
    return sizeof(party);
}

/* A source of `count` samples with the fields "data" (uint8, 3 x 4 x 5) and "label" (int64), both zero. */
party *party_new(uint64_t count, int writes) {
    static const unsigned char zeros[64];
    party *self = calloc(1, sizeof *self);
    self->fields[0] = (fb_field){.name = "data", .dtype = FB_UINT8, .ndim = 3, .shape = {3, 4, 5}};
    self->fields[1] = (fb_field){.name = "label", .dtype = FB_INT64};
    self->views[0] = (fb_view){.data = zeros, .dtype = FB_UINT8, .ndim = 3, .shape = {3, 4, 5}, .strides = {20, 5, 1}};
    self->views[1] = (fb_view){.data = zeros, .dtype = FB_INT64};
    self->codec = (fb_codec){
        .abi = FB_CODEC_ABI,
        .size = sizeof(fb_codec),
        .open = codec_open,
        .close = codec_close,
        .begin = codec_begin,
        .finish = codec_finish,
    };
    self->source = (fb_source){
        .abi = FB_SOURCE_ABI,
        .size = sizeof(fb_source),
        .field_count = 2,
        .fields = self->fields,
        .name = "third party",
        .count = count,
        .self = self,
        .locate = locate,
        .read = writes ? NULL : read_sample,
        .write = writes ? write_sample : NULL,
        .decoding = &self->decoding,
        .at_once = FB_MANY,
    };
    self->count_done = count_done;
    self->note = note;
    self->note_expected = note_expected;
    self->expected = calloc(1000, sizeof *self->expected);
    self->noted = calloc((size_t)count, sizeof(void *));
    self->over = calloc(1, (size_t)count);
    alive = self;
    return self;
}

/* The capsule's destructor. The memory stays, for tests to look at. */
void party_delete(void *capsule) {
    party *self = PyCapsule_GetPointer(capsule, FB_SOURCE_CAPSULE);
    self->deleted++;
    alive = NULL;
}
