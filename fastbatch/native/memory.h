/* The memory of one batch. Pages cost nothing before they are written, and the workers that write them are the first to
 * touch them. Large memory is aligned to huge pages and requests them, so filling the first batches takes 512 times
 * fewer page faults. */
#ifndef FASTBATCH_MEMORY_H
#define FASTBATCH_MEMORY_H

#include <stddef.h>
#include <stdint.h>

typedef struct fb_mapping { /* memory that a batch had before */
    char *data;
    size_t size;
    struct fb_mapping *next;
} fb_mapping;

/* All zero, except for the two settings, before the first fb_memory_reserve(). */
typedef struct fb_memory {
    int shared;       /* setting: other processes can map the memory too, by `file` */
    int stays_mapped; /* setting: addresses stay readable until fb_memory_free(), even if the pages are freed before */
    char *data;       /* NULL: no memory yet */
    size_t capacity;
    int file;            /* of shared memory: its file descriptor, in which the memory begins at 0 */
    int32_t unpopulated; /* huge pages that no worker has requested from the kernel yet; atomic */
    fb_mapping *retired;
} fb_memory;

/* A file of `size` bytes that exists in memory only, without a name that could be left behind. Nobody can make it
 * smaller: a process that maps it could otherwise have the others killed. grows: whether it can be made larger. Returns
 * its descriptor, or -1 with errno. */
int fb_memory_file(size_t size, int grows);

/* Ensures that the memory, which nobody is writing, has `size` bytes; its contents may be lost. Returns 0, or -1 with
 * errno. */
int fb_memory_reserve(fb_memory *memory, size_t size);

/* Has new huge pages made by the kernel, each by one of the threads that call this, until none are left. stop: see
 * fb_stopping(). */
void fb_memory_populate(fb_memory *memory, const int32_t *stop);

/* Frees the pages once no further batch will be written. */
void fb_memory_empty(fb_memory *memory);

/* Frees everything, including the addresses. */
void fb_memory_free(fb_memory *memory);

#endif
