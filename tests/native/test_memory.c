/* memory.h: growing, populating and freeing a batch's memory, its own and shared. */
#define _GNU_SOURCE
#include "memory.h"

#include <dirent.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define HUGE_PAGE ((size_t)2 << 20)

static int open_files(void) {
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder) != NULL) count++;
    closedir(folder);
    return count;
}

static void grows(int shared) {
    fb_memory memory = {.shared = shared};
    CHECK(fb_memory_reserve(&memory, 100) == 0 && memory.data != NULL, "shared: %d", shared);
    char *const first = memory.data;
    memset(memory.data, 1, 100);
    CHECK(fb_memory_reserve(&memory, 50) == 0 && memory.data == first, "shared: %d", shared);
    CHECK(memory.data[99] == 1, "memory that is large enough keeps its contents");
    CHECK(fb_memory_reserve(&memory, 3 * HUGE_PAGE) == 0, "shared: %d", shared);
    CHECK((size_t)memory.data % HUGE_PAGE == 0, "large memory is aligned to huge pages");
    CHECK(memory.unpopulated == 3, "3 huge pages, not %d", memory.unpopulated);
    fb_memory_populate(&memory, NULL);
    CHECK(memory.unpopulated == 0, "%d", memory.unpopulated);
    memset(memory.data, 1, memory.capacity);
    fb_memory_empty(&memory);
    CHECK(memory.data == NULL && memory.capacity == 0, "shared: %d", shared);
    fb_memory_free(&memory);
}

static void stays_mapped(int shared) {
    fb_memory memory = {.shared = shared, .stays_mapped = 1};
    CHECK(fb_memory_reserve(&memory, 5000) == 0, "shared: %d", shared);
    char *const first = memory.data;
    memset(first, 1, 5000);
    CHECK(fb_memory_reserve(&memory, 50000) == 0 && memory.data != first, "shared: %d", shared);
    CHECK(first[4999] == 0, "the pages are freed, and the addresses are readable");
    memory.data[0] = 1;
    fb_memory_empty(&memory);
    CHECK(memory.data != NULL && memory.data[0] == 0, "shared: %d", shared);
    fb_memory_free(&memory);
    CHECK(memory.data == NULL && memory.retired == NULL, "shared: %d", shared);
}

static void another_process_writes(void) {
    fb_memory memory = {.shared = 1};
    int status;
    CHECK(fb_memory_reserve(&memory, 5000) == 0, "no shared memory: %s", strerror(errno));
    const pid_t child = fork();
    if (child == 0) {
        char *mapped = mmap(NULL, memory.capacity, PROT_READ | PROT_WRITE, MAP_SHARED, memory.file, 0);
        if (mapped == MAP_FAILED) _exit(1);
        memset(mapped + 1000, 7, 3000);
        _exit(ftruncate(memory.file, 0) == 0 ? 2 : errno == EPERM ? 0 : 3);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %d", status);
    CHECK(memory.data[999] == 0 && memory.data[1000] == 7 && memory.data[3999] == 7, "what the child wrote is here");
    fb_memory_free(&memory);
}

static void no_memory(int shared) {
    fb_memory memory = {.shared = shared};
    errno = 0;
    CHECK(fb_memory_reserve(&memory, (size_t)1 << 56) != 0 && errno == ENOMEM, "shared: %d, %s", shared,
          strerror(errno));
    CHECK(memory.data == NULL, "shared: %d", shared);
    CHECK(fb_memory_reserve(&memory, 100) == 0, "shared: %d", shared);
    fb_memory_free(&memory);
}

int main(void) {
    const int before = open_files();
    for (int shared = 0; shared <= 1; shared++) {
        grows(shared);
        stays_mapped(shared);
        no_memory(shared);
    }
    another_process_writes();
    CHECK(open_files() == before, "%d files are open, not %d", open_files(), before);
    return 0;
}
