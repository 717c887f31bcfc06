/* fastbatch's order contract: which sample comes at which position, and with which random draws.
 *
 * A source finds samples by index and does not define the order in which they are read. An order does. An order is one
 * `fb_order`: a table of functions for one loader. A Python object's method `__fastbatch_order__(count)` makes it and
 * returns it in a PyCapsule named FB_ORDER_CAPSULE.
 *
 * Positions count from 0 and continue across epochs: epoch e of an order with `count` positions begins at position
 * e * count. The result of at() depends only on the position and on the order's settings, not on earlier calls.
 *
 * All functions are called without the GIL, and none may call Python.
 *   at()       Called by one worker at a time, under the sequencer's lock. Positions usually ascend one by one, which
 *              is fast. Any other position is allowed, but an order that draws from a stream may have to restart it.
 *   pure_at()  The same answer, by arithmetic on the position alone: called by all workers in parallel, without a lock.
 *              It must not change the order, so save() does not hear of it.
 *   counted()  Called under the same lock, right after at(), if a source of unknown size (FB_UNCOUNTED) has no such
 *              sample.
 *   draw(), alike()  Called by all workers in parallel. They must not change the order.
 *   save(), load()  Called by one thread, while no other function runs.
 *
 * This header is not installed: only fastbatch defines orders so far.
 */
#ifndef FASTBATCH_ORDER_H
#define FASTBATCH_ORDER_H

#include "fastbatch.h"

#define FB_ORDER_CAPSULE "fastbatch.order"

/* What an order answers. */
typedef struct fb_pick {
    uint64_t index;    /* of the sample in the source */
    uint64_t epoch;    /* the number of epochs completed before */
    uint64_t drawn_by; /* for draw(): the index; or the place in the epoch, if a sample may occur twice in one */
    uint32_t draws[4]; /* raw random numbers for the transform: mirror, height offset, width offset, and one more */
} fb_pick;

typedef struct fb_order {
    void *self;      /* the first argument of the functions */
    uint64_t count;  /* positions in an epoch; 0: a batch never stops at the end of an epoch */
    uint64_t real;   /* of these, the first ones, before samples of the epoch are repeated; 0 if count is 0 */
    uint64_t cycle;  /* if count is 0: positions in an epoch of the order of all ranks; 0 if nobody counts them */
    uint64_t stride; /* if cycle is not 0: how many of these one position takes, which is the number of ranks */
    int caffe_draws; /* draws are reduced modulo n, as in Caffe; otherwise they are scaled */
    /* 0, or -1 with *error filled in */
    int (*at)(void *self, uint64_t position, fb_pick *pick, fb_error *error);
    void (*pure_at)(const void *self, uint64_t position, fb_pick *pick); /* NULL: the order draws from a stream */
    /* Corrects the last pick of at(), because the source has only `count` samples and no sample at its index. NULL if
     * the order must know the number of samples beforehand. */
    void (*counted)(void *self, uint64_t count, fb_pick *pick);
    /* Fills in the draws for what a pick is drawn by, and its epoch. NULL if at() does so. */
    void (*draw)(const void *self, fb_pick *pick);
    /* Narrows down which samples may replace one that cannot be loaded: *count of them, from *first on, *step apart. They
     * include the failed one, `index`. NULL: any sample of the source. Only asked of orders without pure_at(). */
    void (*alike)(const void *self, uint64_t index, uint64_t *first, uint64_t *step, uint64_t *count);
    size_t state_size; /* bytes that save() writes: constant, and a multiple of 8 */
    void (*save)(const void *self, void *state);
    /* Returns 0 and sets *next to the next position; or returns -1, fills in *error and leaves the order unchanged. */
    int (*load)(void *self, const void *state, uint64_t *next, fb_error *error);
} fb_order;

/* The beginning of every state. A state fits only an order of the same kind with the same settings, in any process on a
 * machine with the same byte order. */
#define FB_STATE_MAGIC 0x4f424601u /* "FBO" and a version; another number on a machine of the other byte order */
#define FB_STATE_SETTINGS 5

/* Saved states contain these numbers: never renumber them. */
typedef enum fb_order_kind {
    FB_ORDER_LINEAR = 1,
    FB_ORDER_PERMUTED = 2,
    FB_ORDER_SHARDED = 3,
    FB_ORDER_CAFFE_RECORDS = 4,
    FB_ORDER_CAFFE_LIST = 5,
    FB_ORDER_CAFFE_WINDOWS = 6,
    FB_ORDER_CAFFE_ROWS = 7,
    FB_ORDER_WINDOWED = 8,
    FB_ORDER_WEIGHTED = 9
} fb_order_kind;

typedef struct fb_state_head {
    uint32_t magic;
    uint32_t kind;
    uint64_t next;                        /* the position after the one that at() was asked for last */
    uint64_t settings[FB_STATE_SETTINGS]; /* what the order was made from */
} fb_state_head;

static inline const char *fb_order_kind_name(uint32_t kind) {
    switch (kind) {
        case FB_ORDER_LINEAR: return "the order of the source";
        case FB_ORDER_PERMUTED: return "a shuffled order";
        case FB_ORDER_SHARDED: return "a shard of an order";
        case FB_ORDER_CAFFE_RECORDS: return "the order of Caffe's Data";
        case FB_ORDER_CAFFE_LIST: return "the order of Caffe's ImageData";
        case FB_ORDER_CAFFE_WINDOWS: return "the order of Caffe's WindowData";
        case FB_ORDER_CAFFE_ROWS: return "the order of Caffe's HDF5Data";
        case FB_ORDER_WINDOWED: return "an order shuffled in windows";
        case FB_ORDER_WEIGHTED: return "a weighted order";
    }
    return "an unknown order";
}

/* Checks that a state belongs to the order with this head. Returns 0, or -1 with *error. */
static inline int fb_state_check(const void *state, const fb_state_head *own, fb_error *error) {
    fb_state_head saved;
    memcpy(&saved, state, sizeof saved);
    if (saved.magic != own->magic)
        return fb_fail(
            error,
            "this is not the state of an order, or one of another version of fastbatch or another kind of machine");
    if (saved.kind != own->kind)
        return fb_fail(error, "this is a state of %s, and cannot be loaded into %s", fb_order_kind_name(saved.kind),
                       fb_order_kind_name(own->kind));
    if (memcmp(saved.settings, own->settings, sizeof saved.settings) != 0)
        return fb_fail(error, "this state belongs to an order with other settings: the number of samples, the seed, "
                              "the shard, and whatever else the order was made from must be the same");
    return 0;
}

#endif
