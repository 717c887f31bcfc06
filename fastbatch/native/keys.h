/* The keys of a batch's samples. They cost only the memory that they occupy; samples without keys cost nothing.
 *
 * Workers store keys in one block of memory, without a lock. When the block is used up, one of them allocates another.
 * The next batch gets a single block of the total size, so that in the long run no batch allocates. */
#ifndef FASTBATCH_KEYS_H
#define FASTBATCH_KEYS_H

#include <stddef.h>
#include <stdint.h>

#include "fastbatch.h"

typedef struct fb_sample_key {
    uint64_t index;     /* of the sample in its source */
    const char *stored; /* two bytes of size, then the key; NULL: no key, so the index identifies the sample */
} fb_sample_key;

typedef struct fb_keys_block fb_keys_block;

typedef struct fb_keys {   /* all zero at first */
    fb_keys_block *newest; /* atomic */
} fb_keys;

/* Stores the key of one of a batch's `samples` samples. Called by all workers in parallel. Returns 0, or -1 if memory
 * runs out. */
int fb_keys_store(fb_keys *keys, uint32_t samples, const fb_record *record, fb_sample_key *sample);

/* Returns a sample's key, and its size in *size; or NULL. */
static inline const char *fb_keys_get(const fb_sample_key *sample, size_t *size) {
    uint16_t bytes;
    if (sample->stored == NULL) return NULL;
    memcpy(&bytes, sample->stored, sizeof bytes);
    *size = bytes;
    return sample->stored + sizeof bytes;
}

/* Forgets the keys, for the next batch. Nobody else may use them. */
void fb_keys_reset(fb_keys *keys);

void fb_keys_free(fb_keys *keys);

#endif
