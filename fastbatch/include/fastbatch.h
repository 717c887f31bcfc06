/* fastbatch's source contract: what a source of samples provides so that native threads can read it.
 *
 * A source is one `fb_source`: a table of functions, plus properties that never change while it is open. fastbatch's
 * own sources use this contract, and yours can too. Fill in the struct and return it in a PyCapsule named
 * FB_SOURCE_CAPSULE from a method `__fastbatch_source__(random_access)`. `fastbatch.Loader` then accepts your object
 * like a source of its own. fastbatch calls a source's functions without the GIL, and they must not call Python.
 * examples/sources/ holds sources in C, in Cython and in ctypes.
 *
 * One worker thread processes a sample. It calls these functions in order:
 *   locate()  Finds the sample. Called by one worker at a time, in delivery order. It may block on I/O. Keep it cheap:
 *             it is the one step that workers cannot run in parallel. NULL if a sample is found by its index alone. A
 *             source that does not know its number of samples sets its count to FB_UNCOUNTED. When asked for a sample
 *             past its last one, locate() sets record->index to its number of samples and returns FB_END; it is then
 *             asked for another sample. Only an order that needs no count, such as that of Caffe's Data, reads a source
 *             this way. For other orders, `len()` of the Python object supplies the count beforehand. If it depends on
 *             the index alone, a source can set `pure_locate`: all workers then call it in parallel.
 *   read()    Points one view per field at the sample's values. fastbatch copies them into the batch, and converts and
 *             transforms them on the way. Called by all workers in parallel. The data must stay valid until done().
 *   write()   Writes the values into the batch itself, for a decoder with its own output, another process, or a
 *             callback. Called by all workers in parallel. Every shape must be known beforehand. A source may have
 *             read() as well, which is then called where a Transform is applied; without read(), none can be.
 *   announce() Says which samples the worker is going to write(): all those that it takes at a time, before the first
 *             one. A source that has another process write them can ask for all of them at once. May be NULL, and is
 *             not called where fastbatch calls read().
 *   done()    Ends the sample, whether or not it succeeded. Called by all workers in parallel, once for every sample
 *             that was found. May be NULL.
 * There is no close(): the capsule's destructor runs, with the GIL, after the last worker has ended. Each call of
 * `__fastbatch_source__` serves one loader, so the reader owns its cursors and similar state. `random_access` is false
 * if the loader reads samples in ascending order only. It may then read them repeatedly, and may skip some.
 *
 * fastbatch checks what it can: the struct when a loader is made, records and views on every call. Errors name the
 * source, the field and the sample. fastbatch cannot check that pointers, strides and sizes describe valid memory.
 *
 * Compatibility: a source is compiled for one FB_SOURCE_ABI. New members are appended to fb_source, fb_codec, fb_worker
 * and fb_record without a new ABI. The creator of such a struct sets `size` to the part that it knows; the rest counts as
 * zero.
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
#define FB_MAX_KEY 511          /* bytes of a key that a batch keeps; LMDB's own limit */
#define FB_MANY UINT32_MAX      /* at_once of a source without a limit */
#define FB_UNCOUNTED UINT64_MAX /* count of a source that does not know it yet; see locate() */
#define FB_END 1                /* locate() returns it past the last sample if the count was FB_UNCOUNTED */

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

/* Why a sample could not be read. fastbatch adds the source's name and the sample's key and index, so `text` says only
 * what is wrong and what to do about it. `fatal` means that the whole source has failed, not just this sample. */
typedef struct fb_error {
    int fatal;
    char text[512];
} fb_error;

/* Where a sample is. locate() fills it in; the other functions receive it. */
typedef struct fb_record {
    uint64_t index;  /* set by the caller before locate(): 0 .. count - 1 */
    const void *key; /* the sample's key, not zero-terminated; NULL: the index is the key */
    size_t key_size;
    const void *data; /* for the source's own use from locate() to done() */
    size_t data_size;
    uint64_t epoch; /* set by the caller before locate() */
    uint64_t seed;  /* likewise, for a source that is `seeded` */
} fb_record;

/* One field of one sample in the source's memory. Strides are in bytes; the data need not be contiguous or aligned. */
typedef struct fb_view {
    const void *data;
    fb_dtype dtype;
    int ndim;
    int64_t shape[FB_MAX_DIMS];
    int64_t strides[FB_MAX_DIMS];
    int64_t scalar; /* storage for a value that exists nowhere else, such as a decoded label; data may point here. Of
                       FB_ENCODED: a number for the index, see fb_source; 0 before read() */
} fb_view;

/* One field of one sample in the batch, for write(): contiguous and aligned for its type. It has the field's dtype,
 * except that an integer field "label" may have become int64 or float32. */
typedef struct fb_place {
    void *data;
    fb_dtype dtype;
    int ndim;
    int64_t shape[FB_MAX_DIMS];
    int file;       /* of a source with shared_batches: the shared memory that holds data; otherwise -1 */
    int64_t offset; /* of data in that file */
} fb_place;

/* What is known about a field before any sample is read. If the shape varies between samples, ndim is -1. */
typedef struct fb_field {
    const char *name; /* UTF-8; no two fields have the same one */
    fb_dtype dtype;
    int ndim;
    int64_t shape[FB_MAX_DIMS];
} fb_field;

/* Memory that is reused from sample to sample, so that nothing is allocated in steady state. A buffer that is far
 * larger than recent samples needed is eventually freed. */
typedef struct fb_scratch {
    void *data;
    size_t size;
    size_t wanted; /* the most that was reserved since the owner last checked */
} fb_scratch;

typedef struct fb_codec fb_codec; /* these four are defined in fastbatch_image.h */
typedef struct fb_decoding fb_decoding;
typedef struct fb_decoder fb_decoder;
typedef struct fb_index fb_index;

/* Where a source is that a worker waits for, for messages about a loader that does not get on. Other threads read both
 * members at any time, so they are set by fb_progress_set(). */
typedef struct fb_progress {
    int64_t index; /* the sample that is being loaded, or one of the following */
    int64_t since; /* nanoseconds of CLOCK_MONOTONIC */
} fb_progress;

enum {
    FB_AT_ITS_OWN = -1,  /* the one that the source's function was called for */
    FB_STARTING = -2,    /* none yet: the thread or process that is to load it is starting */
    FB_FOR_ANOTHER = -3, /* none yet: whatever could load it is busy with the samples of other workers */
};

/* What the calling worker lends to a source. */
typedef struct fb_worker {
    uint32_t size;
    fb_scratch *record_buffer; /* the record's own, from locate() to done() */
    fb_scratch *scratch;       /* the worker's, from the beginning of announce(), read() or write() to done() */
    fb_decoder **decoders;     /* FB_MAX_FIELDS decoders, one per field; see fb_worker_decoder() in fastbatch_image.h */
    const int32_t *stop;       /* see fb_stopping() */
    /* Nanoseconds: a source adds how long it waited for another thread or process to wake up. This does not count as
     * time for samples, by which fastbatch decides how many of them a worker takes at a time. */
    int64_t latency;
    /* In read(), bit i says that fastbatch still has the image of field i, from an earlier read(). views[i] may then be
     * left as it is. */
    uint32_t cached;
    /* Nanoseconds: a source adds the processor time that other threads or processes have used for its samples. It
     * counts in Stats.cpu, by which a report says what limits a loader. */
    int64_t cpu_elsewhere;
    /* Where a source says what it is at while it is called for a sample, if it loads several at once or waits for others.
     * It leaves FB_AT_ITS_OWN behind. */
    fb_progress *progress;
} fb_worker;

typedef struct fb_source {
    uint32_t abi;         /* FB_SOURCE_ABI */
    uint32_t size;        /* sizeof(fb_source) */
    uint32_t field_count; /* 1 .. FB_MAX_FIELDS */
    /* Samples that a worker may locate before it calls done() for the first of them; 0 means 1. Small samples need
     * several, or the workers queue up for locate(). */
    uint32_t at_once;
    const fb_field *fields;
    const char *name; /* for messages, such as a path; UTF-8 */
    uint64_t count;   /* samples; at least 1 */
    void *self;       /* the functions' first argument; they return 0, or -1 with *error filled in */
    int (*locate)(void *self, fb_record *record, fb_worker *worker, fb_error *error);
    int (*read)(void *self, const fb_record *record, fb_worker *worker, fb_view *views, fb_error *error);
    int (*write)(void *self, const fb_record *record, fb_worker *worker, const fb_place *places, fb_error *error);
    void (*done)(void *self, const fb_record *record, fb_worker *worker);
    const fb_codec *codec; /* decodes views of type FB_ENCODED, as `decoding` says; both NULL if there are none */
    const fb_decoding *decoding;
    /* 1: batches lie in shared memory, so that write() can have another process write the values. fb_place names the
     * file descriptor, which a process can map or pwrite() to. There is one for each batch of the ring. They stay open
     * until the loader is gone, and cannot be resized. 0: batches lie in this process's own memory. */
    int shared_batches;
    /* 1: write() stores every field as the dtype of its place, whichever of the numeric types that is. Caffe's layers
     * need all fields as float32. 0: only an integer "label" can be asked for as another type. */
    int converts;
    /* number: 0 for the first of the samples that are announced together. */
    void (*announce)(void *self, uint32_t number, const fb_record *record, fb_worker *worker, const fb_place *places);
    /* 1: records have a seed for the sample's own random numbers: a function of the loader's seed, the epoch and the
     * index. 0: it stays 0. */
    int seeded;
    /* 1: locate() depends on the index alone, and may be called by all workers in parallel, in any order. The count is
     * known then. 0: one worker at a time calls it, in delivery order. */
    int pure_locate;
    /* How to decode each field, field_count of them, if not all as `decoding` says. NULL otherwise. */
    const fb_decoding *decodings;
    /* Says that read() will come for the sample of this index before long, so that the source can have the system fetch
     * it meanwhile. Called by all workers in parallel, and without locate(). It must not wait, and may do nothing; and it
     * may turn out that the sample is not read. May be NULL. */
    void (*expect)(void *self, uint64_t index);
    /* For each field the index of its images, or NULL; field_count of them. NULL: there is none. The source makes it by
     * the codec's index_new(), and deletes it when no loader uses it any more. read() can set the scalar of an
     * FB_ENCODED view to a number that tells these bytes from all others that were ever read with this index. If it
     * leaves 0, fastbatch makes such a number of all bytes. */
    fb_index *const *indexes;
} fb_source;

/* For use in sources: `return fb_fail(error, "...", ...)`. */
__attribute__((format(printf, 2, 3))) static inline int fb_fail(fb_error *error, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    __builtin_va_end(arguments);
    return -1;
}

/* Returns at least `size` bytes of scratch memory (at least one), 64-byte aligned, or NULL if memory runs out. Growing
 * the memory loses its contents. */
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

/* Returns whether the loader is being closed, so that nobody waits for the sample any more. Work that takes seconds
 * should check this now and then, and fail. */
static inline int fb_stopping(const int32_t *stop) {
    return stop != NULL && __atomic_load_n(stop, __ATOMIC_RELAXED) != 0;
}

static inline void fb_progress_set(fb_progress *progress, int64_t index, int64_t since) {
    __atomic_store_n(&progress->since, since, __ATOMIC_RELAXED);
    __atomic_store_n(&progress->index, index, __ATOMIC_RELEASE); /* whoever reads it finds its time, or a later one */
}

/* For write(): stores a label as int64 or float32. Returns 0, or -1 with *error if `place` has another type. */
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
