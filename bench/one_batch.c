/* For first_batch.py: how long one thread takes to write one batch to untouched memory. A plain loop around the
 * functions that fastbatch's workers call, in a fresh process, without other threads, a queue or Python.
 *
 *   ./one_batch LMDB BATCH_SIZE        prints milliseconds
 *
 * The clock runs from the beginning of the read transaction to the last pixel, as in Loader() and next() on an open
 * source. The memory asks for huge pages, as the slots of fastbatch do.
 */
#define _GNU_SOURCE
#include <lmdb.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

#include "files/datum.h"
#include "pixels/pixels.h"

enum { HUGE_PAGE = 2 << 20 };

static const float means[] = {104, 117, 123};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void check(int failed, const char *what) {
    if (!failed) return;
    fprintf(stderr, "one_batch: %s\n", what);
    exit(1);
}

static float *untouched(size_t size) {
    size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *memory = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(memory == MAP_FAILED, "no memory");
    memory = (char *)(((uintptr_t)memory + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    madvise(memory, size, MADV_HUGEPAGE);
    return (float *)memory;
}

int main(int argc, char **argv) {
    const fb_transform transform = {.crop_height = 227,
                                    .crop_width = 227,
                                    .mirror = 1,
                                    .random_crop = 1,
                                    .arithmetic = {.scale = 1, .mean_value_count = 3, .mean_values = means}};
    fb_scratch scratch = {0};
    fb_error error;
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_cursor *cursor;
    MDB_val key, value;
    float *batch = NULL;
    size_t size = 0; /* floats of one image */

    check(argc != 3, "LMDB BATCH_SIZE");
    const int count = atoi(argv[2]);
    check(mdb_env_create(&env) || mdb_env_open(env, argv[1], MDB_RDONLY | MDB_NOTLS, 0664),
          "the database cannot be opened");
    const double begin = now();
    check(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn) || mdb_dbi_open(txn, NULL, 0, &dbi) ||
              mdb_cursor_open(txn, dbi, &cursor),
          "the database cannot be read");
    for (int i = 0; i < count; i++) {
        const uint32_t draws[4] = {(uint32_t)i * 2654435769u, (uint32_t)i * 2246822519u, (uint32_t)i * 3266489917u};
        fb_datum datum;
        fb_view image;
        int64_t shape[3];
        int ndim;
        check(mdb_cursor_get(cursor, &key, &value, MDB_NEXT) != 0, "the database has too few records");
        check(fb_datum_parse(value.mv_data, value.mv_size, &scratch, &datum, &error) ||
                  fb_datum_image(&datum, &image, &error) ||
                  fb_transform_shape(&transform, FB_NORMALIZED, &image, shape, &ndim, &error),
              "a record is not a Datum of an image");
        if (batch == NULL) {
            size = (size_t)(shape[0] * shape[1] * shape[2]);
            batch = untouched((size_t)count * size * sizeof(float));
        }
        check(fb_transform_apply(&transform, &image, draws, batch + (size_t)i * size, 1, &error),
              "an image cannot be transformed");
    }
    printf("%.4f\n", 1e3 * (now() - begin));
    return 0;
}
