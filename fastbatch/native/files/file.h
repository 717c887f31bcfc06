/* Reads a whole file into a worker's memory, for sources that read one file per sample. */
#ifndef FASTBATCH_FILE_H
#define FASTBATCH_FILE_H

#include "fastbatch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* A number that tells these bytes of this file from all others, by the file's times. 0: the file was written just now,
 * and another change within the times' resolution (two seconds in some file systems) would go unnoticed. A program that
 * writes a file may set the time of writing, so the time of the last change of any kind counts, too. */
static inline uint64_t fb_identity_of_file(const struct stat *status) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec - status->st_mtim.tv_sec <= 2 || now.tv_sec - status->st_ctim.tv_sec <= 2) return 0;
    const uint64_t facts[] = {
        (uint64_t)status->st_dev,          (uint64_t)status->st_ino,          (uint64_t)status->st_size,
        (uint64_t)status->st_mtim.tv_sec,  (uint64_t)status->st_mtim.tv_nsec, (uint64_t)status->st_ctim.tv_sec,
        (uint64_t)status->st_ctim.tv_nsec,
    };
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        hash = (hash ^ facts[i]) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 32;
    }
    return hash;
}

/* What was read of a file. */
typedef struct fb_file_bytes {
    size_t size;
    uint64_t identity; /* for an index: see fb_source */
} fb_file_bytes;

static inline int fb_read_open_file(int file, const char *path, fb_scratch *scratch, fb_file_bytes *bytes,
                                    fb_error *error) {
    struct stat status;
    if (fstat(file, &status) != 0) return fb_fail(error, "cannot read %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode)) return fb_fail(error, "%s is not a file", path);
    if (status.st_size == 0) return fb_fail(error, "the file %s is empty", path);
    if (status.st_size > INT_MAX) {
        return fb_fail(error, "the file %s has %lld bytes, more than any image of use", path,
                       (long long)status.st_size);
    }
    const size_t size = (size_t)status.st_size;
    *bytes = (fb_file_bytes){size, fb_identity_of_file(&status)};
    char *memory = fb_scratch_reserve(scratch, size);
    if (memory == NULL) return fb_fail(error, "no memory for the %zu bytes of %s", size, path);
    for (size_t done = 0; done < size;) {
        const ssize_t got = pread(file, memory + done, size - done, (off_t)done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return fb_fail(error, "cannot read %s: %s", path, strerror(errno));
        if (got == 0) return fb_fail(error, "the file %s became shorter while it was read", path);
        done += (size_t)got;
    }
    return 0;
}

/* Returns whether a path ends in a space and an integer. If a line of a list has several labels, this is what remains
 * of it without the last one. */
static inline int fb_ends_in_a_label(const char *path) {
    size_t end = strlen(path), at = end;
    while (at > 0 && path[at - 1] >= '0' && path[at - 1] <= '9') at--;
    if (at == end) return 0;
    if (at > 0 && (path[at - 1] == '-' || path[at - 1] == '+')) at--;
    return at > 0 && path[at - 1] == ' ';
}

/* Reads the whole file into `scratch`. The first `root` bytes of its path are Caffe's root_folder. Returns 0, or -1
 * with *error, which uses Caffe's words if the file cannot be opened. */
static inline int fb_read_file(const char *path, size_t root, fb_scratch *scratch, fb_file_bytes *bytes,
                               fb_error *error) {
    const int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY;
    int file = open(path, flags | O_NONBLOCK); /* without it, opening a pipe would wait for a writer */
    /* another process holds a lease on the file and is releasing it */
    if (file < 0 && errno == EWOULDBLOCK) file = open(path, flags);
    if (file < 0) {
        const int joined = errno == ENOENT && root > 0 && path[root - 1] != '/';
        const char *hint =
            errno == ENOENT && fb_ends_in_a_label(path) ? "; its line seems to have more labels than are read (one, or "
                                                          "what labels= of ImageListSource says), and "
                                                          "what is before them is its path"
            : joined ? "; root_folder is prepended to each name verbatim, as in Caffe: a folder must end in a slash"
                     : "";
        return fb_fail(error, "Could not open or find file %.300s: %s%s", path, strerror(errno), hint);
    }
    const int code = fb_read_open_file(file, path, scratch, bytes, error);
    close(file);
    return code;
}

/* Has the system fetch a file that will be read soon. */
static inline void fb_expect_file(const char *path) {
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file < 0) return;
    posix_fadvise(file, 0, 0, POSIX_FADV_WILLNEED);
    close(file);
}

#endif
