/* fastbatch's own JPEG decoder against libjpeg-turbo, in one thread: random crops of the files of a folder, by the same
 * codec, in turns. A turn is 25 files; the order of the ways changes from turn to turn.
 *
 *   ./jpeg_decoder FOLDER ROUNDS CROP SIDE [base]
 *                                              prints the microseconds of CPU time for a crop, for each turn: with
 *                                              libjpeg-turbo's decoder, with ours, with ours and an index, and with
 *                                              ours while it makes the index. CROP 0: whole images. SIDE: to resize
 *                                              images to squares before the crop, as ImageData does; or 0.
 *                                              base: ours as on processors without AVX2; for libjpeg-turbo, set
 *                                              JSIMD_FORCESSE2=1
 *
 * bench/jpeg_decoder.py compiles and runs it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "images/image.h"
#include "images/jpeg_fast.h"

enum { TURN = 25, MOST_FILES = 100000 };

static struct {
    unsigned char *bytes;
    size_t size;
} files[MOST_FILES];
static size_t file_count;

static void check(int failed, const char *what) {
    if (!failed) return;
    fprintf(stderr, "jpeg_decoder: %s\n", what);
    exit(1);
}

static void read_files(const char *path) {
    DIR *folder = opendir(path);
    check(folder == NULL, "the folder cannot be read");
    for (struct dirent *entry; (entry = readdir(folder)) != NULL && file_count < MOST_FILES;) {
        char name[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        FILE *file = fopen(name, "rb");
        check(file == NULL || fseek(file, 0, SEEK_END) != 0, name);
        const size_t size = (size_t)ftell(file);
        unsigned char *bytes = malloc(size);
        rewind(file);
        check(bytes == NULL || fread(bytes, 1, size, file) != size, name);
        files[file_count].bytes = bytes;
        files[file_count++].size = size;
        fclose(file);
    }
    closedir(folder);
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t mix(uint64_t x) { /* cheap draws that depend on the image's number only */
    x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)(x >> 32);
}

/* Where the crop of image `i` is: in rows and columns of `shape`, less the crop's. */
typedef fb_region place(uint64_t i, int64_t rows, int64_t columns);

static fb_region at_random(uint64_t i, int64_t rows, int64_t columns) {
    return (fb_region){.top = mix(2 * i) % (rows + 1), .left = mix(2 * i + 1) % (columns + 1)};
}

/* So that an index knows all of the image. */
static fb_region at_the_bottom(uint64_t i, int64_t rows, int64_t columns) {
    (void)i, (void)columns;
    return (fb_region){.top = rows};
}

/* Returns the microseconds for an image of a turn, which begins with image `number`. */
static double turn(fb_decoder *decoder, fb_index *index, uint64_t number, int crop, int side, place *place_of) {
    const fb_codec *codec = fb_image_codec();
    const fb_decoding decoding = {FB_COLOR, side, side};
    const double begin = cpu_seconds();
    for (uint64_t i = number; i < number + TURN; i++) {
        int64_t shape[3];
        fb_error error;
        fb_view view;
        check(codec->begin(decoder, files[i % file_count].bytes, files[i % file_count].size, &decoding, shape, &error),
              error.text);
        if (index) codec->use_index(decoder, index, i % file_count + 1);
        fb_region region = {.height = shape[1], .width = shape[2]};
        if (crop > 0) {
            check(crop > shape[1] || crop > shape[2], "an image is smaller than the crop");
            region = place_of(i, shape[1] - crop, shape[2] - crop);
            region.height = region.width = crop;
        }
        check(codec->finish(decoder, &region, &view, &error), error.text);
    }
    return (cpu_seconds() - begin) / TURN * 1e6;
}

int main(int argc, char **argv) {
    check(argc != 5 && argc != 6, "FOLDER ROUNDS CROP SIDE [base]");
    const fb_jpeg_choice ours = argc == 6 ? FB_JPEG_BASE_KERNELS : FB_JPEG_BEST_KERNELS;
    read_files(argv[1]);
    check(file_count == 0, "the folder is empty");
    check(fb_jpeg_fast_use(ours) != 0, "the own decoder is not in use here");
    const fb_codec *codec = fb_image_codec();
    fb_decoder *decoders[4];
    fb_index *index = codec->index_new(file_count, UINT64_MAX / 2);
    for (int way = 0; way < 4; way++) decoders[way] = codec->open(NULL);
    const long turns = atol(argv[2]) * (long)((file_count + TURN - 1) / TURN);
    const int crop = atoi(argv[3]), side = atoi(argv[4]);
    for (size_t i = 0; i < file_count; i += TURN) turn(decoders[2], index, i, crop, side, at_the_bottom);
    for (long t = -4; t < turns; t++) { /* the first ones are not counted: caches, and tables that are kept */
        double times[4];
        for (int i = 0; i < 4; i++) {
            const int way = (int)((i + t + 4) % 4);
            fb_index *fresh = codec->index_new(file_count, UINT64_MAX / 2);
            fb_index *const used[4] = {NULL, NULL, index, fresh};
            fb_jpeg_fast_use(way > 0 ? ours : FB_JPEG_NO_KERNELS);
            times[way] = turn(decoders[way], used[way], (uint64_t)(t + 4) * TURN, crop, side, at_random);
            codec->index_delete(fresh);
        }
        if (t >= 0) printf("%.2f %.2f %.2f %.2f\n", times[0], times[1], times[2], times[3]);
    }
    uint64_t images, bytes;
    codec->index_counts(index, &images, &bytes);
    fprintf(stderr, "index: %.0f bytes an image\n", images ? (double)bytes / (double)images : 0.0);
    return 0;
}
