/* Identifies files, and counts how often this process has one open. Nothing here allocates Python objects or needs the
 * GIL. */
#ifndef FASTBATCH_DESCRIPTORS_H
#define FASTBATCH_DESCRIPTORS_H

#include <stdint.h>

/* A file's identity, which no other existing file shares. All zeros: there is no such file. */
typedef struct fb_file_id {
    int exists;
    uint64_t device, inode;
} fb_file_id;

fb_file_id fb_file_id_of(const char *path);
fb_file_id fb_file_id_of_descriptor(int descriptor);

/* Returns whether both are the same existing file. */
static inline int fb_same_file(fb_file_id one, fb_file_id other) {
    return one.exists && other.exists && one.device == other.device && one.inode == other.inode;
}

/* Returns how many descriptors of this process are open on the file. */
int fb_times_open(fb_file_id file);

#endif
