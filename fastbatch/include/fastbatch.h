/* fastbatch's source contract: what a source of samples offers so that native threads can read it.
 *
 * A source is one `fb_source`: a table of functions, and facts that never change while it is open. fastbatch's own sources are built on
 * it, and yours can be. Fill in the struct and hand it over in a PyCapsule named FB_SOURCE_CAPSULE, from a method
 * `__fastbatch_source__(random_access)`; `fastbatch.Loader` then takes your object like one of its own. fastbatch never calls a function
 * of a source with the GIL held, and none may call Python. examples/sources/ has a source in C, one in Cython and one in ctypes.
 *
 * Each sample is the work of one worker thread, which calls, in this order:
 *   locate()  Says where the sample is. One worker at a time, in the order of delivery. May block on I/O. Keep it cheap: it is the one
 *             step that workers cannot share. A source that does not know how many samples it has gives FB_UNCOUNTED as its count.
 *             Asked for a sample behind its last one, it sets record->index to the number of its samples and returns FB_END, and is
 *             asked for another sample then. Only an order that needs no count reads it like this, such as that of Caffe's Data. For any
 *             other, `len()` of the Python object gives the count beforehand.
 *   read()    Points one view per field at the sample's values; fastbatch copies them into the batch, and converts and transforms them on
 *             the way. All workers at once. What the views point at must stay valid until done().
 *   write()   Instead of read(), for a source that puts values into the batch itself: decoders with their own output, other processes,
 *             callbacks. All workers at once. Every shape must be known beforehand, and no Transform can be applied.
 *   done()    Ends the sample, whatever became of it. All workers at once, for every sample that locate() found. May be NULL.
 * There is no close(): the capsule's destructor runs, with the GIL, when no worker runs any more. Each call of `__fastbatch_source__`
 * serves one loader: cursors and the like belong to it alone. `random_access` is false if samples will be asked for in ascending order
 * only (over and over, possibly leaving some out).
 *
 * What can be checked is checked, and an error names the source, the field and the sample: the struct when a loader is made, records and
 * views whenever they come. What cannot be checked: that pointers point at what they should, with strides and sizes that are right.
 *
 * Compatibility: a source is compiled for one FB_SOURCE_ABI. New members come at the end of fb_source, fb_codec and fb_worker without a
 * new ABI: whoever makes such a struct says in `size` how much of it he knows, and the rest counts as zero.
 */
#ifndef FASTBATCH_H
#define FASTBATCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FB_SOURCE_ABI 2
#define FB_SOURCE_CAPSULE "fastbatch.source"
#define FB_MAX_FIELDS 16
#define FB_MAX_DIMS 8
#define FB_MAX_KEY 511          /* bytes of a key that are kept with its batch; LMDB's own limit */
#define FB_MANY UINT32_MAX      /* as at_once of a source that does not mind */
#define FB_UNCOUNTED UINT64_MAX /* as the count of a source that does not know it yet: see locate() */
#define FB_END 1                /* what locate() returns behind the last sample, if the count was FB_UNCOUNTED */

typedef enum fb_dtype {
    FB_UINT8 = 0,
    FB_INT32 = 1,
    FB_INT64 = 2,
    FB_FLOAT32 = 3,
    FB_FLOAT64 = 4,
    FB_INT8 = 5,
    FB_INT16 = 6,
    FB_UINT16 = 7,
    FB_UINT32 = 8,
    FB_UINT64 = 9,
    FB_FLOAT16 = 10,
    FB_BOOL = 11,
    FB_ENCODED = 12 /* in views of uint8 fields only: the bytes of an image file, contiguous, one dimension */
} fb_dtype;

/* Why a sample could not be had. fastbatch adds the source's name and the sample's key and index: `text` says only what is wrong and
 * what to do about it. `fatal` means that the source as a whole is lost, not just this sample. */
typedef struct fb_error {
    int fatal;
    char text[512];
} fb_error;

/* Where a sample is: filled in by locate(), given to the others. */
typedef struct fb_record {
    uint64_t index;  /* set by the caller before locate(): 0 .. count - 1 */
    const void *key; /* its name in the source, not terminated by zero; NULL: its index is its name */
    size_t key_size;
    const void *data; /* for the source's own use from locate() to done() */
    size_t data_size;
    uint64_t epoch; /* set by the caller before locate() */
} fb_record;

/* One field of one sample, where it lies. Strides are in bytes and need not be contiguous or aligned. */
typedef struct fb_view {
    const void *data;
    fb_dtype dtype;
    int ndim;
    int64_t shape[FB_MAX_DIMS];
    int64_t strides[FB_MAX_DIMS];
    int64_t scalar; /* room for a value that lies nowhere else, a decoded label say: data may point here */
} fb_view;

/* One field of one sample, where write() puts it: contiguous, and aligned for its type. Its dtype is the field's, but for an integer
 * field "label", which may have become int64 or float32. */
typedef struct fb_place {
    void *data;
    fb_dtype dtype;
    int ndim;
    int64_t shape[FB_MAX_DIMS];
} fb_place;

/* What is known of a field before any sample is read. A shape that differs from sample to sample has ndim -1. */
typedef struct fb_field {
    const char *name; /* UTF-8; no two fields have the same one */
    fb_dtype dtype;
    int ndim;
    int64_t shape[FB_MAX_DIMS];
} fb_field;

/* Memory that is kept from sample to sample, so that in steady state nothing is allocated. What is far larger than the latest samples
 * needed is given back in the end. */
typedef struct fb_scratch {
    void *data;
    size_t size;
    size_t wanted; /* the most that was reserved since the owner looked last */
} fb_scratch;

typedef struct fb_codec fb_codec; /* these three: fastbatch_image.h */
typedef struct fb_decoding fb_decoding;
typedef struct fb_decoder fb_decoder;

/* What the calling worker lends to a source. */
typedef struct fb_worker {
    uint32_t size;
    fb_scratch *record_buffer; /* the record's, from locate() to done(): nobody else touches it in between */
    fb_scratch *scratch;       /* the worker's: from the beginning of read() or write() to done() */
    fb_decoder **decoders; /* FB_MAX_FIELDS of them, one for each field; see fb_worker_decoder() in fastbatch_image.h */
    const int32_t *stop;   /* see fb_stopping() */
} fb_worker;

typedef struct fb_source {
    uint32_t abi;         /* FB_SOURCE_ABI */
    uint32_t size;        /* sizeof(fb_source) */
    uint32_t field_count; /* 1 .. FB_MAX_FIELDS */
    uint32_t
        at_once; /* samples that a worker may have located before it is done() with the first; 0 is 1. Small samples need
                             several, or the workers queue up for locate() */
    const fb_field *fields;
    const char *name; /* for messages: a path, say. UTF-8 */
    uint64_t count;   /* samples; at least 1 */
    void *self;       /* the first argument of the functions. They return 0, or -1 with *error filled in */
    int (*locate)(void *self, fb_record *record, fb_worker *worker, fb_error *error);
    int (*read)(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error);
    int (*write)(void *self, const fb_record *record, fb_worker *worker, const fb_place *places, fb_error *error);
    void (*done)(void *self, const fb_record *record, fb_worker *worker);
    const fb_codec *codec; /* what decodes views of type FB_ENCODED, and how; both NULL where there are none */
    const fb_decoding *decoding;
} fb_source;

/* For sources' use: `return fb_fail(error, "...", ...)`. */
__attribute__((format(printf, 2, 3))) static inline int fb_fail(fb_error *error, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    __builtin_va_end(arguments);
    return -1;
}

/* At least `size` bytes of scratch memory (and one), 64-byte aligned, or NULL without memory. Its former contents are lost when it has to
 * grow. */
static inline void *fb_scratch_reserve(fb_scratch *scratch, size_t size) {
    if (size == 0) size = 1; /* so that NULL means no memory */
    if (scratch->wanted < size) scratch->wanted = size;
    if (scratch->size < size) {
        void *grown = NULL;
        if (posix_memalign(&grown, 64, size) != 0) return NULL;
        free(scratch->data);
        scratch->data = grown;
        scratch->size = size;
    }
    return scratch->data;
}

/* Whether nobody waits for the sample any more, because the loader is being closed. What takes seconds should look at this now and then,
 * and fail. */
static inline int fb_stopping(const int32_t *stop) {
    return stop != NULL && __atomic_load_n(stop, __ATOMIC_RELAXED) != 0;
}

/* For write(): puts a label into its place, as int64 or float32. 0, or -1 with *error if the place has another type. */
static inline int fb_place_label(const fb_place *place, int64_t value, fb_error *error) {
    switch (place->dtype) {
        case FB_INT64: *(int64_t *)place->data = value; return 0;
        case FB_FLOAT32: *(float *)place->data = (float)value; return 0;
        default: return fb_fail(error, "a label's array is int64 or float32, not of type %d", (int)place->dtype);
    }
}

static inline size_t fb_dtype_size(fb_dtype dtype) {
    switch (dtype) {
        case FB_UINT8:
        case FB_INT8:
        case FB_BOOL:
        case FB_ENCODED: return 1;
        case FB_INT16:
        case FB_UINT16:
        case FB_FLOAT16: return 2;
        case FB_INT32:
        case FB_UINT32:
        case FB_FLOAT32: return 4;
        case FB_INT64:
        case FB_UINT64:
        case FB_FLOAT64: return 8;
    }
    return 0;
}

#endif
