/* fastbatch's source contract: what a source of samples must offer to be read by native threads.
 *
 * A source is one `fb_source`: a table of function pointers and the facts that never change while it is open. fastbatch's own
 * sources are built on it, and yours can be: fill in the struct, hand it over in a PyCapsule named FB_SOURCE_CAPSULE from a method
 * `__fastbatch_source__(random_access)`, and `fastbatch.Loader` takes your object like one of its own. No function of a source is
 * ever called with the GIL held, and none may call Python.
 *
 * Who calls what, and when, all three for one sample by the same worker:
 *   locate()  by one worker at a time, in the order in which the samples will be delivered. May block on I/O. Keep it cheap: it is
 *             the one step that the workers cannot share. `kept` is memory of the calling worker that nobody else touches before done().
 *   read()    by all workers at once, if locate() succeeded. Fills one view for each field; nothing is copied yet. What the views point
 *             at must stay valid until done().
 *   done()    by all workers at once, for every sample that locate() found, whatever became of it. May be NULL.
 * There is no close(): the capsule's destructor runs, with the GIL, when no worker runs any more. Each call of
 * `__fastbatch_source__` serves one loader: cursors and the like belong to it alone. `random_access` is false when samples will be asked
 * for in ascending order only (over and over, possibly leaving some out).
 */
#ifndef FASTBATCH_H
#define FASTBATCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FB_SOURCE_ABI 1
#define FB_SOURCE_CAPSULE "fastbatch.source"
#define FB_MAX_DIMS 8
#define FB_MAX_KEY 511 /* bytes of a key that are kept with its batch; LMDB's own limit */
#define FB_MANY UINT32_MAX /* as at_once of a source that does not mind */
#define FB_UNCOUNTED UINT64_MAX /* as the count of a source that learns it with its last sample */
#define FB_ENDLESS ((uint64_t)1 << 62) /* as the count of a source that has no end, and epochs of its own */

typedef enum fb_dtype {
    FB_UINT8 = 0, FB_INT32 = 1, FB_INT64 = 2, FB_FLOAT32 = 3, FB_FLOAT64 = 4,
    FB_INT8 = 5, FB_INT16 = 6, FB_UINT16 = 7, FB_UINT32 = 8, FB_UINT64 = 9, FB_FLOAT16 = 10, FB_BOOL = 11,
    FB_ENCODED = 12 /* in views of "data" only: the bytes of an image file, one dimension; the field itself is uint8 */
} fb_dtype;

/* Why a sample could not be had. The source's name, the sample's key and its index are known to the caller: `text` says only what
 * is wrong and what to do about it. `fatal` means that the source as a whole is lost, not just this sample. */
typedef struct fb_error {
    int fatal;
    char text[512];
} fb_error;

/* Where a sample is: filled in by locate(), given to read(). */
typedef struct fb_record {
    uint64_t index;   /* set by the caller before locate(): 0 .. count - 1 */
    const void *key;  /* its name in the source, not terminated by zero; NULL: its index is its name */
    size_t key_size;
    const void *data; /* for the source's own use between locate() and read() */
    size_t data_size;
    uint64_t epoch;   /* set by the caller before locate(); a source without an end sets it to its own */
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

/* What is known of a field before any sample is read. A shape that differs from sample to sample has ndim -1. */
typedef struct fb_field {
    const char *name;
    fb_dtype dtype;
    int ndim;
    int64_t shape[FB_MAX_DIMS];
} fb_field;

/* Memory of one worker, kept from sample to sample, for sources that must decode before they can show a view. */
typedef struct fb_scratch {
    void *data;
    size_t size;
} fb_scratch;

typedef struct fb_codec fb_codec;       /* fastbatch_image.h */
typedef struct fb_decoding fb_decoding;

typedef struct fb_source {
    uint32_t abi;         /* FB_SOURCE_ABI */
    uint32_t field_count;
    const fb_field *fields;
    const char *name;     /* for messages: a path, say. UTF-8 */
    uint64_t count;       /* samples; at least 1 */
    void *self;           /* the first argument of the functions. locate() and read() return 0, or -1 with *error filled in */
    int (*locate)(void *self, fb_record *record, fb_scratch *kept, fb_error *error);
    int (*read)(void *self, const fb_record *record, fb_scratch *scratch, fb_view *views, fb_error *error);
    void (*done)(void *self, const fb_record *record);
    const fb_codec *codec; /* what decodes views of type FB_ENCODED, and how; NULL where there are none */
    const fb_decoding *decoding;
    uint32_t at_once;      /* samples that a worker may have located before it is done() with the first; 0 is 1. Small samples need
                              several, or the workers queue up for locate() */
} fb_source;

/* For sources' use: `return fb_fail(error, "...", ...)`. */
__attribute__((format(printf, 2, 3)))
static inline int fb_fail(fb_error *error, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    __builtin_va_end(arguments);
    return -1;
}

/* At least `size` bytes of scratch memory (and one), 64-byte aligned, or NULL without memory. Its former contents are lost when it has to grow. */
static inline void *fb_scratch_reserve(fb_scratch *scratch, size_t size) {
    if (size == 0) size = 1; /* so that NULL means no memory */
    if (scratch->size < size) {
        void *grown = NULL;
        if (posix_memalign(&grown, 64, size) != 0) return NULL;
        free(scratch->data);
        scratch->data = grown;
        scratch->size = size;
    }
    return scratch->data;
}

static inline size_t fb_dtype_size(fb_dtype dtype) {
    switch (dtype) {
        case FB_UINT8: case FB_INT8: case FB_BOOL: case FB_ENCODED: return 1;
        case FB_INT16: case FB_UINT16: case FB_FLOAT16: return 2;
        case FB_INT32: case FB_UINT32: case FB_FLOAT32: return 4;
        case FB_INT64: case FB_UINT64: case FB_FLOAT64: return 8;
    }
    return 0;
}

#endif
