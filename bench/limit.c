/* The limit: how fast bare C converts raw images to batches on this machine, doing only the loader's work.
 *
 * N threads take the images of a set in order, cut a random 227 x 227 out of each uint8 3 x 256 x 256, mirror one in
 * two, subtract three mean values, scale, and write float32 into a ring of five batches of 64. There is no queue, no
 * waiting and no consumer, and the compiler knows the one shape. Ordinary and streaming stores (which bypass the
 * caches) alternate; the output has both.
 *
 *   gcc -O3 -march=native -ffp-contract=off -pthread bench/limit.c -o limit
 *   gcc -O3 -march=native -ffp-contract=off -pthread -DWITH_LMDB bench/limit.c -o limit -llmdb     accepts --lmdb, too
 *
 *   ./limit [--threads N] [--images N] [--seconds S] [--rounds N] [--lmdb PATH | --raw PATH [--offset N] [--record N]]
 *
 * Images are made in memory, or come from an LMDB of Datum whose addresses are gathered before the clock starts. --raw
 * reads images from a file: the first at --offset, each next one --record bytes further (by default: back to back).
 * The program prints one line of JSON: the median images per second over the rounds, for both kinds of store and for
 * the better one.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef WITH_LMDB
#include <lmdb.h>
#endif

enum { CHANNELS = 3, SIDE = 256, CROP = 227, BATCH = 64, RING = 5 };
enum { IMAGE = CHANNELS * SIDE * SIDE, OUT = CHANNELS * CROP * CROP };

static const float means[CHANNELS] = {104, 117, 123};
static float scale = 1; /* not const, so that the compiler keeps the multiplication, as in Caffe */

static const unsigned char **images; /* pointers to the first pixel of each image */
static size_t image_count;
static float *batches[RING];

static _Atomic uint64_t next_image;
static _Atomic int stop;
static int streaming;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *checked(void *memory, const char *what) {
    if (memory == NULL) die(what);
    return memory;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t mix(uint64_t x) { /* splitmix64: cheap draws that depend on the image's number only */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* One row, into memory that the compiler may assume not to be aliased. */
static inline void convert_row(const unsigned char *restrict pixels, float mean, int mirror, float *restrict out) {
    if (mirror) {
        for (int x = 0; x < CROP; x++) out[x] = ((float)pixels[CROP - 1 - x] - mean) * scale;
    } else {
        for (int x = 0; x < CROP; x++) out[x] = ((float)pixels[x] - mean) * scale;
    }
}

/* Prefetches the row four rows ahead; the processor's own prefetching stops at the end of each page. */
static inline void prefetch_row(const unsigned char *pixels) {
    for (int x = 0; x < CROP + 63; x += 64) __builtin_prefetch(pixels + 4 * SIDE + x, 0, 3);
}

static void convert(const unsigned char *corner, int mirror, float *out) {
    for (int c = 0; c < CHANNELS; c++) {
        for (int y = 0; y < CROP; y++) {
            const unsigned char *row = corner + (c * SIDE + y) * SIDE;
            prefetch_row(row);
            convert_row(row, means[c], mirror, out + (c * CROP + y) * CROP);
        }
    }
}

#if defined(__AVX2__)
enum { LANES = 8 };

static inline __attribute__((always_inline)) __m256 convert_lanes(const unsigned char *row, __m256 mean, int mirror,
                                                                  int column) {
    const int x = mirror ? CROP - LANES - column : column;
    const __m256i pixels = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(row + x)));
    const __m256 value = _mm256_mul_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(pixels), mean), _mm256_set1_ps(scale));
    return mirror ? _mm256_permutevar8x32_ps(value, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0)) : value;
}

/* Only whole, aligned vectors: the vector in which one row ends and the next begins is assembled in `edge`. */
static inline __attribute__((always_inline)) void stream_image(const unsigned char *corner, const int mirror,
                                                               float *out) {
    _Alignas(32) float edge[3 * LANES];
    float *const held = edge + LANES;
    int used = (int)((uintptr_t)out / sizeof(float) % LANES);
    int foreign = used; /* the first floats of the first vector are the previous image's */
    out -= used;
    for (int c = 0; c < CHANNELS; c++) {
        const __m256 mean = _mm256_set1_ps(means[c]);
        for (int y = 0; y < CROP; y++) {
            const unsigned char *row = corner + (c * SIDE + y) * SIDE;
            prefetch_row(row);
            int column = 0;
            if (used) {
                _mm256_storeu_ps(held + used, convert_lanes(row, mean, mirror, 0));
                if (foreign) memcpy(out + foreign, held + foreign, (size_t)(LANES - foreign) * sizeof(float));
                else _mm256_stream_ps(out, _mm256_load_ps(held));
                foreign = 0;
                column = LANES - used;
                out += LANES;
            }
            for (; column + LANES <= CROP; column += LANES, out += LANES) {
                _mm256_stream_ps(out, convert_lanes(row, mean, mirror, column));
            }
            used = CROP - column;
            if (used) _mm256_storeu_ps(held + used - LANES, convert_lanes(row, mean, mirror, CROP - LANES));
        }
    }
    memcpy(out, held, (size_t)used * sizeof(float));
    _mm_sfence();
}

static void convert_streaming(const unsigned char *corner, int mirror, float *out) {
    if (mirror) stream_image(corner, 1, out);
    else stream_image(corner, 0, out);
}
#else
#define convert_streaming convert /* there are no portable streaming stores */
#endif

static void *work(void *unused) {
    (void)unused;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        const uint64_t number = atomic_fetch_add(&next_image, 1), draw = mix(number);
        const int top = (int)((draw & 0xffff) * (SIDE - CROP + 1) >> 16);
        const int left = (int)((draw >> 16 & 0xffff) * (SIDE - CROP + 1) >> 16);
        const unsigned char *corner = images[number % image_count] + top * SIDE + left;
        float *out = batches[number / BATCH % RING] + number % BATCH * OUT;
        (streaming ? convert_streaming : convert)(corner, (int)(draw >> 63), out);
    }
    return NULL;
}

static double images_per_second(int threads, double seconds) {
    pthread_t ids[threads];
    atomic_store(&stop, 0);
    const uint64_t before = atomic_load(&next_image);
    const double start = now();
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, work, NULL) != 0) die("pthread_create");
    }
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&pause, NULL);
    atomic_store(&stop, 1);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    return (double)(atomic_load(&next_image) - before) / (now() - start);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static void make_images(size_t count) {
    unsigned char *pixels = checked(malloc(count * IMAGE), "images");
    for (size_t i = 0; i < count * IMAGE / 8; i++) {
        const uint64_t word = mix(i);
        memcpy(pixels + i * 8, &word, 8);
    }
    images = checked(malloc(count * sizeof *images), "images");
    for (size_t i = 0; i < count; i++) images[i] = pixels + i * IMAGE;
    image_count = count;
}

static void map_images(const char *path, size_t offset, size_t record) {
    struct stat info;
    const int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &info) != 0) die(path);
    const size_t size = (size_t)info.st_size;
    image_count = size < offset + IMAGE ? 0 : 1 + (size - offset - IMAGE) / record;
    const unsigned char *base = mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0);
    if (base == MAP_FAILED) die(path);
    images = checked(malloc((image_count + 1) * sizeof *images), "images");
    for (size_t i = 0; i < image_count; i++) images[i] = base + offset + i * record;
}

#ifdef WITH_LMDB
static void lmdb_check(int status, const char *path) {
    if (status == MDB_SUCCESS) return;
    fprintf(stderr, "%s: %s\n", path, mdb_strerror(status));
    exit(1);
}

/* Returns the pixels of a Datum, which follow tag 0x22 and their length. What Caffe writes has only varints before. */
static const unsigned char *datum_pixels(const MDB_val *value) {
    const unsigned char *at = value->mv_data, *end = at + value->mv_size;
    while (at < end && *at != 0x22) {
        for (at++; at < end && *at & 0x80; at++) {}
        at++;
    }
    for (at++; at < end && *at & 0x80; at++) {}
    at++;
    return at + IMAGE <= end ? at : NULL;
}

static void lmdb_images(const char *path) {
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    MDB_cursor *cursor;
    MDB_stat stat;
    MDB_val key, value;
    lmdb_check(mdb_env_create(&env), path);
    lmdb_check(mdb_env_open(env, path, MDB_RDONLY | MDB_NOTLS, 0664), path);
    lmdb_check(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), path);
    lmdb_check(mdb_dbi_open(txn, NULL, 0, &dbi), path);
    lmdb_check(mdb_stat(txn, dbi, &stat), path);
    lmdb_check(mdb_cursor_open(txn, dbi, &cursor), path);
    images = checked(malloc((stat.ms_entries + 1) * sizeof *images), "images");
    while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == MDB_SUCCESS) {
        images[image_count] = datum_pixels(&value);
        if (images[image_count++] == NULL) {
            fprintf(stderr, "%s: a record is not a Datum of uint8 3 x 256 x 256\n", path);
            exit(1);
        }
    }
}
#endif

int main(int argc, char **argv) {
    int threads = (int)sysconf(_SC_NPROCESSORS_ONLN), rounds = 5;
    size_t count = 3000, offset = 0, record = IMAGE; /* 3,000 images: 590 MB, far beyond any cache */
    double seconds = 1;
    const char *lmdb = NULL, *raw = NULL;
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(name, "--threads") == 0) threads = atoi(value);
        else if (strcmp(name, "--images") == 0) count = (size_t)atoll(value);
        else if (strcmp(name, "--seconds") == 0) seconds = atof(value);
        else if (strcmp(name, "--rounds") == 0) rounds = atoi(value);
        else if (strcmp(name, "--raw") == 0) raw = value;
        else if (strcmp(name, "--offset") == 0) offset = (size_t)atoll(value);
        else if (strcmp(name, "--record") == 0) record = (size_t)atoll(value);
#ifdef WITH_LMDB
        else if (strcmp(name, "--lmdb") == 0) lmdb = value;
#endif
        else {
            fprintf(stderr, "%s: unknown option %s (see the top of bench/limit.c)\n", argv[0], name);
            return 2;
        }
    }
    if (threads < 1 || rounds < 1 || seconds <= 0 || record < 1 || count < 1) {
        fprintf(stderr, "%s: numbers must be positive\n", argv[0]);
        return 2;
    }
    if (raw) map_images(raw, offset, record);
#ifdef WITH_LMDB
    else if (lmdb) lmdb_images(lmdb);
#endif
    else make_images(count);
    if (image_count == 0) {
        fprintf(stderr, "%s: no images\n", raw ? raw : lmdb);
        return 1;
    }
    for (int i = 0; i < RING; i++) {
        const size_t size = (size_t)BATCH * OUT * sizeof(float);
        batches[i] = checked(aligned_alloc(64, (size + 63) / 64 * 64), "batches");
        memset(batches[i], 0, size); /* fault the pages in before the clock starts */
    }

    double normal[rounds], past_caches[rounds];
    images_per_second(threads, seconds); /* warm up: page faults of the input */
    for (int round = 0; round < rounds; round++) {
        streaming = 0;
        normal[round] = images_per_second(threads, seconds);
        streaming = 1;
        past_caches[round] = images_per_second(threads, seconds);
    }
    const double plain = median(normal, rounds), streamed = median(past_caches, rounds);
    printf("{\"images_per_second\": %.0f, \"stores\": \"%s\", \"normal\": %.0f, \"streaming\": %.0f, \"threads\": %d, "
           "\"images\": %zu, \"rounds\": %d, \"seconds\": %g, \"input\": \"%s\"}\n",
           plain > streamed ? plain : streamed, plain > streamed ? "normal" : "streaming", plain, streamed, threads,
           image_count, rounds, seconds,
           raw    ? "raw"
           : lmdb ? "lmdb"
                  : "memory");
    return 0;
}
