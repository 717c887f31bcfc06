#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fastbatch.h"

/* Older C libraries do not know these. */
#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1U
#define MFD_ALLOW_SEALING 2U
#endif
#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#endif

#define HUGE_PAGE ((size_t)2 << 20)

static size_t rounded_up(size_t size, size_t unit) {
    return (size + unit - 1) / unit * unit;
}

int fb_memory_file(size_t size, int grows) {
    int file = (int)syscall(SYS_memfd_create, "fastbatch", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0) return -1;
    const int seals = grows ? F_SEAL_SHRINK : F_SEAL_SHRINK | F_SEAL_GROW;
    if (ftruncate(file, (off_t)size) != 0 || fcntl(file, F_ADD_SEALS, seals) != 0) {
        close(file);
        return -1;
    }
    return file;
}

/* Frees the pages and keeps the addresses, which read as zeros from then on. */
static void free_pages(const fb_memory *memory) {
    madvise(memory->data, memory->capacity, memory->shared ? MADV_REMOVE : MADV_DONTNEED);
}

static void forget(fb_memory *memory) {
    if (memory->shared) close(memory->file);
    memory->data = NULL;
    memory->capacity = 0;
    __atomic_store_n(&memory->unpopulated, 0, __ATOMIC_RELEASE);
}

/* Removes the memory, so that it can be replaced. Returns 0, or -1 if there is no memory to record it. */
static int retire(fb_memory *memory) {
    if (memory->data == NULL) return 0;
    if (memory->stays_mapped) {
        fb_mapping *mapping = malloc(sizeof *mapping);
        if (mapping == NULL) return -1;
        free_pages(memory);
        mapping->data = memory->data;
        mapping->size = memory->capacity;
        mapping->next = memory->retired;
        memory->retired = mapping;
    } else {
        munmap(memory->data, memory->capacity);
    }
    forget(memory);
    return 0;
}

int fb_memory_reserve(fb_memory *memory, size_t size) {
    if (memory->data != NULL && size <= memory->capacity) return 0;
    /* From the second allocation on, allocates more than requested: what grows once will grow again. */
    size_t length = size + memory->capacity / 2;
    size_t slack = length >= 2 * HUGE_PAGE ? HUGE_PAGE : 0;
    if (slack) length = rounded_up(length, slack);
    if (retire(memory) != 0) return -1;

    char *data = mmap(NULL, length + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return -1;
    if (slack) {
        char *aligned = (char *)rounded_up((size_t)data, slack);
        if (aligned > data) munmap(data, (size_t)(aligned - data));
        if (data + slack > aligned) munmap(aligned + length, (size_t)(data + slack - aligned));
        data = aligned;
    }
    if (memory->shared) { /* after private memory, as the kernel promises shared memory of any size */
        memory->file = fb_memory_file(length, 0);
        if (memory->file < 0 ||
            mmap(data, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory->file, 0) == MAP_FAILED) {
            int reason = errno;
            if (memory->file >= 0) close(memory->file);
            munmap(data, length);
            errno = reason;
            return -1;
        }
    }
    memory->data = data;
    memory->capacity = length;
    if (slack) {
        size_t pages = rounded_up(size, slack) / slack;
        madvise(data, length, MADV_HUGEPAGE);
        __atomic_store_n(&memory->unpopulated, pages < INT32_MAX ? (int32_t)pages : INT32_MAX, __ATOMIC_RELEASE);
    }
    return 0;
}

/* Neighbouring samples share a huge page. If two workers fault on the same huge page, the kernel zeroes two and
 * discards one, and the first batches take as long as with one thread. A kernel that does not support the request
 * leaves it at that. */
void fb_memory_populate(fb_memory *memory, const int32_t *stop) {
    while (__atomic_load_n(&memory->unpopulated, __ATOMIC_ACQUIRE) > 0 && !fb_stopping(stop)) {
        int32_t page = __atomic_sub_fetch(&memory->unpopulated, 1, __ATOMIC_ACQ_REL);
        if (page >= 0) madvise(memory->data + (size_t)page * HUGE_PAGE, HUGE_PAGE, MADV_POPULATE_WRITE);
    }
}

void fb_memory_empty(fb_memory *memory) {
    if (!memory->stays_mapped) fb_memory_free(memory);
    else if (memory->data != NULL) free_pages(memory);
}

void fb_memory_free(fb_memory *memory) {
    if (memory->data != NULL) {
        munmap(memory->data, memory->capacity);
        forget(memory);
    }
    while (memory->retired != NULL) {
        fb_mapping *mapping = memory->retired;
        memory->retired = mapping->next;
        munmap(mapping->data, mapping->size);
        free(mapping);
    }
}
