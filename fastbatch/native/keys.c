#include "keys.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_KEYS 64 /* samples whose keys the first block is sized for */

struct fb_keys_block { /* its keys follow the struct */
    fb_keys_block *next;
    size_t size;
    size_t used; /* atomic; exceeds `size` once the block is full */
};

static fb_keys_block *new_block(size_t size, fb_keys_block *next) {
    fb_keys_block *block = malloc(sizeof *block + size);
    if (block == NULL) return NULL;
    block->next = next;
    block->size = size;
    block->used = 0;
    return block;
}

/* Returns memory for `size` bytes until fb_keys_reset(), or NULL if memory runs out. */
static char *reserve(fb_keys *keys, size_t size, uint32_t samples) {
    for (;;) {
        fb_keys_block *block = __atomic_load_n(&keys->newest, __ATOMIC_ACQUIRE);
        size_t wanted = size * (samples < FIRST_KEYS ? samples : FIRST_KEYS);
        if (block != NULL) {
            size_t end = __atomic_add_fetch(&block->used, size, __ATOMIC_RELAXED);
            if (end <= block->size) return (char *)(block + 1) + end - size;
            wanted = 2 * block->size > size ? 2 * block->size : size;
        }
        fb_keys_block *more = new_block(wanted, block);
        if (more == NULL) return NULL;
        if (!__atomic_compare_exchange_n(&keys->newest, &block, more, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            free(more); /* another worker was faster */
    }
}

int fb_keys_store(fb_keys *keys, uint32_t samples, const fb_record *record, fb_sample_key *sample) {
    uint16_t size = (uint16_t)(record->key_size < FB_MAX_KEY ? record->key_size : FB_MAX_KEY);
    sample->index = record->index;
    sample->stored = NULL;
    if (record->key == NULL || size == 0) return 0;
    char *stored = reserve(keys, sizeof size + size, samples);
    if (stored == NULL) return -1;
    memcpy(stored, &size, sizeof size);
    memcpy(stored + sizeof size, record->key, size);
    sample->stored = stored;
    return 0;
}

void fb_keys_reset(fb_keys *keys) {
    fb_keys_block *block = keys->newest;
    size_t size = 0;
    if (block == NULL) return;
    if (block->next == NULL) {
        block->used = 0;
        return;
    }
    for (; block != NULL; block = block->next) size += block->size;
    fb_keys_free(keys);
    keys->newest = new_block(size, NULL); /* if there is none, the first key of the batch asks again */
}

void fb_keys_free(fb_keys *keys) {
    while (keys->newest != NULL) {
        fb_keys_block *block = keys->newest;
        keys->newest = block->next;
        free(block);
    }
}
