/* For memory.py: counts a process's calls of malloc and mmap, separately for its main thread and for all others.
 * Used with LD_PRELOAD.
 *
 * glibc's own allocator does the work, under the names that it exports for this purpose (glibc 2.26 or later).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static atomic_long by_main_thread, by_others;

static void count(void) {
    const int error = errno;
    atomic_fetch_add(syscall(SYS_gettid) == getpid() ? &by_main_thread : &by_others, 1);
    errno = error;
}

long allocations_by_main_thread(void) {
    return by_main_thread;
}
long allocations_by_others(void) {
    return by_others;
}

void *malloc(size_t size) {
    count();
    return __libc_malloc(size);
}

void *calloc(size_t items, size_t size) {
    count();
    return __libc_calloc(items, size);
}

void *realloc(void *memory, size_t size) {
    count();
    return __libc_realloc(memory, size);
}

void *memalign(size_t alignment, size_t size) {
    count();
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    count();
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    count();
    *memory = __libc_memalign(alignment, size);
    return *memory == NULL ? ENOMEM : 0;
}

/* Intercepts mmap under both of its names, which mean the same on 64-bit systems. */
void *mmap64(void *address, size_t length, int protection, int flags, int file, off64_t offset) {
    count();
    return (void *)syscall(SYS_mmap, address, length, protection, flags, file, offset);
}

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    return mmap64(address, length, protection, flags, file, offset);
}
