/* The limit for encoded images: how fast bare C decodes crops of JPEG files into batches on this machine.
 *
 * N threads take the records of an LMDB of encoded Datum in order. They decode a random 227 x 227 crop of each with
 * libjpeg-turbo, skipping the columns and rows around it as far as the library can. They mirror one in two, subtract
 * three mean values, and write float32 into a ring of five batches of 64. There is no queue, no waiting and no
 * consumer; the conversion uses fastbatch's own kernels. With --full they decode whole images, as a loader that cannot
 * decode regions must.
 *
 *   gcc -O3 -march=native -ffp-contract=off -pthread -I fastbatch/include -I fastbatch/native bench/limit_decode.c
 *       fastbatch/native/pixels/pixels.c fastbatch/native/pixels/kernels.c fastbatch/native/files/datum.c
 *       -o limit_decode -ljpeg -llmdb
 *
 *   ./limit_decode LMDB THREADS SECONDS [--full]      prints images per second
 */
#define _GNU_SOURCE
#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include <jpeglib.h>

#include "files/datum.h"
#include "pixels/pixels.h"

enum { CROP = 227, BATCH = 64, RING = 5, OUT = 3 * CROP * CROP };

static const float means[3] = {104, 117, 123};
static fb_datum *records;
static size_t record_count;
static float *batches[RING];
static int full;
static _Atomic uint64_t next_image;
static _Atomic int stop;

static void check(int failed, const char *what) {
    if (!failed) return;
    fprintf(stderr, "limit_decode: %s\n", what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t mix(uint64_t x) { /* cheap draws that depend on the image's number only */
    x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)(x >> 32);
}

static void read_records(const char *path) {
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_cursor *cursor;
    MDB_stat stat;
    MDB_val key, value;
    fb_scratch scratch = {0};
    fb_error error;
    check(mdb_env_create(&env) || mdb_env_open(env, path, MDB_RDONLY | MDB_NOTLS, 0664) ||
              mdb_txn_begin(env, NULL, MDB_RDONLY, &txn) || mdb_dbi_open(txn, NULL, 0, &dbi) ||
              mdb_stat(txn, dbi, &stat) || mdb_cursor_open(txn, dbi, &cursor),
          "the database cannot be read");
    records = calloc(stat.ms_entries, sizeof *records);
    check(records == NULL, "no memory");
    while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == MDB_SUCCESS) {
        fb_datum *record = &records[record_count++];
        check(fb_datum_parse(value.mv_data, value.mv_size, &scratch, record, &error) || !record->encoded,
              "a record is not an encoded Datum");
    }
}

/* Decodes into `pixels`; *view shows a random crop of it, blue first. */
static void decode(struct jpeg_decompress_struct *jpeg, const fb_datum *record, uint64_t number, unsigned char *pixels,
                   size_t room, fb_view *view) {
    jpeg_mem_src(jpeg, (unsigned char *)record->data, record->data_size);
    jpeg_read_header(jpeg, TRUE);
    jpeg->out_color_space = JCS_EXT_BGR;
    jpeg_start_decompress(jpeg);
    const JDIMENSION top = mix(2 * number) % (jpeg->output_height - CROP + 1);
    const JDIMENSION left = mix(2 * number + 1) % (jpeg->output_width - CROP + 1);
    JDIMENSION first = left, columns = CROP, last = top + CROP;
    if (full) {
        first = 0;
        last = jpeg->output_height;
    } else {
        jpeg_crop_scanline(jpeg, &first, &columns);
        jpeg_skip_scanlines(jpeg, top);
    }
    const size_t stride = (size_t)jpeg->output_width * 3;
    check((last - jpeg->output_scanline) * stride > room, "an image is too large");
    for (unsigned char *row = pixels; jpeg->output_scanline < last; row += stride) jpeg_read_scanlines(jpeg, &row, 1);
    if (full) jpeg_finish_decompress(jpeg);
    else jpeg_abort_decompress(jpeg);
    *view = (fb_view){
        .data = pixels + (full ? top * stride : 0) + 3 * (left - first),
        .dtype = FB_UINT8,
        .ndim = 3,
        .shape = {3, CROP, CROP},
        .strides = {1, (int64_t)stride, 3},
    };
}

static void *work(void *unused) {
    const fb_arithmetic arithmetic = {.scale = 1, .mean_value_count = 3, .mean_values = means};
    const size_t room = 16 << 20;
    unsigned char *pixels = malloc(room);
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    check(pixels == NULL, "no memory");
    jpeg.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&jpeg);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        const uint64_t number = atomic_fetch_add(&next_image, 1);
        fb_view view;
        decode(&jpeg, &records[number % record_count], number, pixels, room, &view);
        const fb_geometry geometry = {.out_height = CROP, .out_width = CROP, .mirror = (int)(mix(number) & 1)};
        fb_pixels_normalize(&arithmetic, &geometry, &view, batches[number / BATCH % RING] + number % BATCH * OUT, 1,
                            NULL);
    }
    jpeg_destroy_decompress(&jpeg);
    free(pixels);
    return unused;
}

int main(int argc, char **argv) {
    check(argc < 4, "LMDB THREADS SECONDS [--full]");
    const int threads = atoi(argv[2]);
    const double seconds = atof(argv[3]);
    full = argc > 4;
    read_records(argv[1]);
    for (int i = 0; i < RING; i++) {
        const size_t size = ((size_t)BATCH * OUT * sizeof(float) + 63) / 64 * 64;
        batches[i] = aligned_alloc(64, size);
        check(batches[i] == NULL, "no memory");
        memset(batches[i], 0, size); /* fault the pages in before the clock starts */
    }
    pthread_t ids[threads];
    const double begin = now();
    for (int i = 0; i < threads; i++) check(pthread_create(&ids[i], NULL, work, NULL), "no thread");
    usleep((useconds_t)(seconds * 1e6));
    atomic_store(&stop, 1);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    printf("%.1f\n", (double)atomic_load(&next_image) / (now() - begin));
    return 0;
}
