/* file.h: which files their times identify. */
#include "files/file.h"

#include "check.h"

static struct stat status_of(int64_t written, int64_t changed) { /* seconds ago */
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct stat status = {.st_dev = 1, .st_ino = 2, .st_size = 3};
    status.st_mtim.tv_sec = now.tv_sec - written;
    status.st_ctim.tv_sec = now.tv_sec - changed;
    return status;
}

int main(void) {
    const struct {
        int64_t written, changed;
        int known;
    } cases[] = {
        {100, 100, 1}, {100, 10, 1},   {0, 0, 0},
        {1, 1, 0},     {100, 0, 0},                    /* it was moved there, or its time was set, just now */
        {0, 100, 0},   {-100, 100, 0}, {100, -100, 0}, /* of another clock */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct stat status = status_of(cases[i].written, cases[i].changed);
        CHECK((fb_identity_of_file(&status) != 0) == cases[i].known, "case %zu", i);
    }
    struct stat status = status_of(100, 100);
    uint64_t seen[6], count = 0;
    for (int change = 0; change < 6; change++) {
        if (change == 1) status.st_ino++;
        if (change == 2) status.st_size++;
        if (change == 3) status.st_mtim.tv_nsec++;
        if (change == 4) status.st_ctim.tv_nsec++;
        if (change == 5) status.st_dev++;
        seen[count] = fb_identity_of_file(&status);
        for (uint64_t i = 0; i < count; i++) CHECK(seen[i] != seen[count], "change %d", change);
        count++;
    }
    return 0;
}
