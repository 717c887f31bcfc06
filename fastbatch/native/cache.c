#define _GNU_SOURCE
#include "cache.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define ALIGN 64 /* of images and of their pixels */

/* What the table says of an image that is not there. Of another one, it has the offset. */
#define EMPTY 0
#define CLAIMED 1 /* a thread is writing it */

struct fb_cache {
    char *memory;
    size_t size;
    size_t used; /* atomic */
    uint64_t images;
};

static size_t rounded_up(size_t size) {
    return (size + ALIGN - 1) / ALIGN * ALIGN;
}

size_t fb_cache_table(uint64_t images) {
    return images < SIZE_MAX / 16 ? rounded_up((size_t)images * sizeof(uint64_t)) : SIZE_MAX;
}

/* Has the file system reserve room. Returns 0, or -1 with errno. */
static int reserve(int file, size_t size) {
    struct statvfs status;
    if (fstatvfs(file, &status) != 0) return -1;
    if (status.f_bavail < size / status.f_frsize) { /* some would fill the disk before they give up */
        errno = ENOSPC;
        return -1;
    }
    /* Not posix_fallocate(), which writes to each block where the system cannot reserve it. */
    while (fallocate(file, 0, 0, (off_t)size) != 0) {
        if (errno != EINTR) return -1;
    }
    return 0;
}

/* Maps a new file in a folder, which is gone with the mapping. Returns MAP_FAILED with errno if that is impossible. */
static void *map_file(const char *folder, size_t size) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/fastbatch-cache-XXXXXX", folder) >= (int)sizeof path) {
        errno = ENAMETOOLONG;
        return MAP_FAILED;
    }
    const int file = mkostemp(path, O_CLOEXEC);
    if (file < 0) return MAP_FAILED;
    unlink(path);
    void *memory = MAP_FAILED;
    if (reserve(file, size) == 0) memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    const int problem = errno;
    close(file);
    errno = problem;
    return memory;
}

static void *map_memory(size_t size) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory != MAP_FAILED) madvise(memory, size, MADV_HUGEPAGE);
    return memory;
}

fb_cache *fb_cache_new(size_t size, uint64_t images, const char *folder) {
    const size_t table = fb_cache_table(images);
    size -= size % (size_t)sysconf(_SC_PAGESIZE);
    if (size <= table) {
        errno = EINVAL;
        return NULL;
    }
    fb_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL) return NULL;
    cache->memory = folder ? map_file(folder, size) : map_memory(size);
    if (cache->memory == MAP_FAILED) {
        const int problem = errno;
        free(cache);
        errno = problem;
        return NULL;
    }
    madvise(cache->memory, size, MADV_DONTFORK);
    cache->size = size;
    cache->used = table;
    cache->images = images;
    return cache;
}

void fb_cache_empty(fb_cache *cache) {
    if (cache == NULL || cache->memory == NULL) return;
    munmap(cache->memory, cache->size);
    cache->memory = NULL;
}

void fb_cache_free(fb_cache *cache) {
    fb_cache_empty(cache);
    free(cache);
}

size_t fb_cache_used(const fb_cache *cache) {
    return __atomic_load_n(&cache->used, __ATOMIC_RELAXED);
}

static uint64_t *entry_of(const fb_cache *cache, uint64_t number) {
    return number < cache->images ? (uint64_t *)cache->memory + number : NULL;
}

const fb_cached *fb_cache_get(const fb_cache *cache, uint64_t number) {
    const uint64_t *entry = entry_of(cache, number);
    const uint64_t offset = entry ? __atomic_load_n(entry, __ATOMIC_ACQUIRE) : EMPTY;
    return offset > CLAIMED ? (const fb_cached *)(cache->memory + offset) : NULL;
}

/* The bytes that an image takes; more than there can be, if it is too large. */
static size_t bytes_of(int64_t channels, int64_t height, int64_t width) {
    size_t bytes;
    if (__builtin_mul_overflow(channels * height, width, &bytes) || bytes > SIZE_MAX / 2) return SIZE_MAX;
    return rounded_up(sizeof(fb_cached)) + rounded_up(bytes);
}

static int is_room(const fb_cache *cache, size_t bytes) {
    return bytes <= cache->size - fb_cache_used(cache);
}

int fb_cache_wants(const fb_cache *cache, uint64_t number, int64_t channels, int64_t height, int64_t width) {
    const uint64_t *entry = entry_of(cache, number);
    return entry && __atomic_load_n(entry, __ATOMIC_RELAXED) == EMPTY &&
           is_room(cache, bytes_of(channels, height, width));
}

/* Takes memory from the end of what is used. Returns its offset, or EMPTY if there is too little. */
static uint64_t take(fb_cache *cache, size_t bytes) {
    size_t used = fb_cache_used(cache);
    do {
        if (bytes > cache->size - used) return EMPTY;
    } while (!__atomic_compare_exchange_n(&cache->used, &used, used + bytes, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return used;
}

fb_cached *fb_cache_claim(fb_cache *cache, uint64_t number, int64_t channels, int64_t height, int64_t width,
                          int planar) {
    uint64_t *entry = entry_of(cache, number), empty = EMPTY;
    if (entry == NULL) return NULL;
    if (!__atomic_compare_exchange_n(entry, &empty, CLAIMED, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return NULL;
    const uint64_t offset = take(cache, bytes_of(channels, height, width));
    if (offset == EMPTY) {
        __atomic_store_n(entry, EMPTY, __ATOMIC_RELAXED);
        return NULL;
    }
    fb_cached *image = (fb_cached *)(cache->memory + offset);
    *image = (fb_cached){.channels = channels, .height = height, .width = width, .planar = planar};
    return image;
}

void fb_cache_publish(fb_cache *cache, uint64_t number, const fb_cached *image) {
    __atomic_store_n(entry_of(cache, number), (uint64_t)((const char *)image - cache->memory), __ATOMIC_RELEASE);
}

unsigned char *fb_cached_pixels(const fb_cached *image) {
    return (unsigned char *)(uintptr_t)image + rounded_up(sizeof *image);
}

void fb_cached_show(const fb_cached *image, fb_view *view) {
    const int64_t step = image->planar ? 1 : image->channels;
    *view = (fb_view){
        .data = fb_cached_pixels(image),
        .dtype = FB_UINT8,
        .ndim = 3,
        .shape = {image->channels, image->height, image->width},
        .strides = {image->planar ? image->height * image->width : 1, image->width * step, step},
    };
}
