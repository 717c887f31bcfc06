/* An arena: memory for one image, allocated piece by piece, freed all at once, and reused for the next image.
 *
 * libjpeg and libpng allocate memory for every image. Through an arena, the second image of a size allocates nothing.
 * An arena holds as much as its largest image took. About twenty images later, it shrinks if its memory exceeds four
 * times what the latest images took.
 */
#ifndef FASTBATCH_ARENA_H
#define FASTBATCH_ARENA_H

#include "fastbatch.h"

#include <stdint.h>
#include <stdlib.h>

#define FB_ARENA_ALIGN 64 /* enough for any vector instruction and cache line */
#define FB_ARENA_BLOCK 65536
#define FB_ARENA_SPARE ((size_t)1 << 20) /* an excess of this many bytes is not worth freeing */

typedef struct fb_arena_block {
    struct fb_arena_block *next;
    size_t size, used; /* in bytes, without this header, which takes FB_ARENA_ALIGN */
} fb_arena_block;

typedef struct fb_arena {
    fb_arena_block *blocks; /* the block that is being filled comes first */
    size_t wanted;          /* the most that an image took, reduced by a sixteenth for each later image */
    const int32_t *stop;    /* for the code that uses this arena: see fb_stopping() */
} fb_arena;

static inline fb_arena_block *fb_arena_add(fb_arena *arena, size_t size) {
    void *memory = NULL;
    if (size > SIZE_MAX / 2 || posix_memalign(&memory, FB_ARENA_ALIGN, FB_ARENA_ALIGN + size) != 0) return NULL;
    fb_arena_block *block = memory;
    *block = (fb_arena_block){arena->blocks, size, 0};
    arena->blocks = block;
    return block;
}

static inline void fb_arena_drop(fb_arena *arena) { /* drops the block that is being filled */
    fb_arena_block *next = arena->blocks->next;
    free(arena->blocks);
    arena->blocks = next;
}

/* Returns `size` bytes, aligned and valid until the arena is emptied, or NULL if memory runs out. */
static inline void *fb_arena_take(fb_arena *arena, size_t size) {
    if (size > SIZE_MAX / 4) return NULL;
    size = (size + FB_ARENA_ALIGN - 1) / FB_ARENA_ALIGN * FB_ARENA_ALIGN;
    fb_arena_block *block = arena->blocks;
    if (block == NULL || block->size - block->used < size) {
        if (block != NULL && block->used == 0) fb_arena_drop(arena); /* too small for the first piece */
        block = fb_arena_add(arena, size > FB_ARENA_BLOCK ? size : FB_ARENA_BLOCK);
        if (block == NULL) return NULL;
    }
    void *memory = (char *)block + FB_ARENA_ALIGN + block->used;
    block->used += size;
    return memory;
}

static inline size_t fb_arena_used(const fb_arena *arena) {
    size_t used = 0;
    for (const fb_arena_block *block = arena->blocks; block; block = block->next) used += block->used;
    return used;
}

static inline size_t fb_arena_held(const fb_arena *arena) {
    size_t held = 0;
    for (const fb_arena_block *block = arena->blocks; block; block = block->next) held += block->size;
    return held;
}

static inline void fb_arena_free(fb_arena *arena) {
    while (arena->blocks) fb_arena_drop(arena);
}

/* Takes back all memory. If it was in several blocks, they are replaced by one that is large enough for all. */
static inline void fb_arena_empty(fb_arena *arena) {
    if (arena->blocks == NULL) return;
    const size_t used = fb_arena_used(arena);
    arena->wanted -= arena->wanted / 16;
    if (arena->wanted < used) arena->wanted = used;
    if (arena->blocks->next || fb_arena_held(arena) > FB_ARENA_SPARE + 4 * arena->wanted) {
        fb_arena_free(arena);
        fb_arena_add(arena, arena->wanted); /* if this fails, the next image tries again */
    }
    if (arena->blocks) arena->blocks->used = 0;
}

#endif
