#include "descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* The number of descriptors to examine if /proc cannot be read. The kernel assigns the lowest free number, so hardly
 * any process uses higher numbers, although its limit may be a thousand times as high. */
enum { MOST_DESCRIPTORS = 1 << 20 };

static fb_file_id id_of(const struct stat *status) {
    return (fb_file_id){.exists = 1, .device = status->st_dev, .inode = status->st_ino};
}

fb_file_id fb_file_id_of(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 ? id_of(&status) : (fb_file_id){0};
}

fb_file_id fb_file_id_of_descriptor(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) == 0 ? id_of(&status) : (fb_file_id){0};
}

/* fb_times_open() without /proc, which some containers and chroots lack, or without a free descriptor to list it. */
static int times_open_by_number(fb_file_id file) {
    struct rlimit limit;
    int end = MOST_DESCRIPTORS;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max < (rlim_t)end) end = (int)limit.rlim_max;
    int count = 0;
    for (int descriptor = 0; descriptor < end; descriptor++) {
        count += fb_same_file(fb_file_id_of_descriptor(descriptor), file);
    }
    return count;
}

int fb_times_open(fb_file_id file) {
    DIR *const listing = opendir("/proc/self/fd");
    if (listing == NULL) return times_open_by_number(file);
    int count = 0, seen = 0;
    for (const struct dirent *entry; (entry = readdir(listing)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        seen++;
        count += fb_same_file(fb_file_id_of_descriptor(atoi(entry->d_name)), file);
    }
    closedir(listing);
    return seen > 0 ? count : times_open_by_number(file);
}
