/* jpeg_index.h: threads that decode the same images by one index at the same time; and what an index takes.
 *
 * test_jpeg_index FOLDER */
#include "images/jpeg_index.h"

#include <pthread.h>

#include "check.h"
#include "encode_jpeg.h"
#include "images/image.h"
#include "images/jpeg_fast.h"

/* The last row of MCUs is not complete. */
enum { IMAGES = 36, THREADS = 4, CROPS = 4, WIDTH = 280, HEIGHT = 203, CROP = 24, CAPACITY = 1 << 18 };

static struct {
    unsigned char *bytes;
    size_t size;
} images[IMAGES];

/* The pixels of crop number `number` of each image. */
static unsigned char expected[IMAGES][CROPS][3 * CROP * CROP];

static const fb_codec *codec;
static fb_index *shared;
static pthread_barrier_t step;

/* Each crop lies below the one before; the last one ends where the image does. */
static fb_region region_of(int image, int number) {
    return (fb_region){number * (HEIGHT - CROP) / (CROPS - 1), (image * 13 + number * 101) % (WIDTH - CROP), CROP,
                       CROP};
}

static uint64_t identity_of(int image) {
    return image % 2 ? (uint64_t)image : 0;
}

/* Decodes a crop, and copies its pixels. */
static void decode(fb_decoder *decoder, fb_index *index, int image, int number, unsigned char *pixels) {
    const fb_decoding decoding = {.color = FB_COLOR};
    const fb_region region = region_of(image, number);
    int64_t shape[3];
    fb_error error;
    fb_view view;
    CHECK(codec->begin(decoder, images[image].bytes, images[image].size, &decoding, shape, &error) == 0, "%s",
          error.text);
    if (index) codec->use_index(decoder, index, identity_of(image));
    CHECK(codec->finish(decoder, &region, &view, &error) == 0, "%s", error.text);
    for (int y = 0; y < CROP; y++) {
        for (int x = 0; x < CROP; x++) {
            for (int c = 0; c < 3; c++)
                *pixels++ =
                    ((const unsigned char *)view.data)[c * view.strides[0] + y * view.strides[1] + x * view.strides[2]];
        }
    }
}

static void decode_and_compare(fb_decoder *decoder, int image, int number) {
    unsigned char pixels[3 * CROP * CROP];
    decode(decoder, shared, image, number, pixels);
    CHECK(memcmp(pixels, expected[image][number], sizeof pixels) == 0, "crop %d of image %d", number, image);
}

/* Decodes all images: at first at the same time as the other threads, so that several of them add an image, and rows to
 * an entry that others read; then in an order of its own. */
static void *work(void *argument) {
    const int first = (int)(size_t)argument;
    fb_decoder *decoder = codec->open(NULL);
    for (int image = 0; image < IMAGES; image++) {
        for (int lowest = 0; lowest < CROPS; lowest++) {
            pthread_barrier_wait(&step);
            decode_and_compare(decoder, image, first % 2 && lowest ? lowest - 1 : lowest);
            decode_and_compare(decoder, image, lowest);
        }
    }
    for (int i = 0; i < 2 * IMAGES; i++) {
        const int image = first % 2 ? (first * 40 + i) % IMAGES : IMAGES - 1 - (first * 40 + i) % IMAGES;
        decode_and_compare(decoder, image, (i + first) % CROPS);
    }
    CHECK(codec->count(decoder, FB_BY_INDEX) + codec->count(decoder, FB_BY_OWN_DECODER) == (2 * CROPS + 2) * IMAGES,
          "images");
    codec->close(decoder);
    return NULL;
}

/* Checks that the images' entries in memory know all rows, down to the lowest crop. Returns how many there are. */
static uint64_t count_entries(void) {
    uint64_t count = 0;
    for (int i = 0; i < IMAGES; i++) {
        size_t scan = 2;
        while (images[i].bytes[scan + 1] != 0xda) /* SOS */
            scan += 2 + images[i].bytes[scan + 2] * 256u + images[i].bytes[scan + 3];
        scan += 2 + images[i].bytes[scan + 3];
        fb_arena arena = {0};
        const fb_jpeg_name name = fb_jpeg_name_of(identity_of(i), images[i].bytes, images[i].size, scan);
        const fb_jpeg_entry *entry = fb_jpeg_find_entry(shared, &name, &arena);
        if (entry) {
            const int64_t height = i % 4 == 0 ? 16 : 8;
            CHECK(fb_jpeg_known_rows(entry) == (HEIGHT + height - 1) / height, "%d rows of image %d",
                  (int)fb_jpeg_known_rows(entry), i);
            count++;
        }
        fb_arena_free(&arena);
    }
    return count;
}

/* Has threads decode everything by one index, which is saved meanwhile if there is a path. Returns how many images it
 * knows. */
static uint64_t share(uint64_t count, uint64_t limit, const char *path) {
    uint64_t known = 0, bytes = 0;
    pthread_t threads[THREADS];
    fb_error error;
    shared = codec->index_new(count, limit);
    CHECK(shared != NULL, "no index");
    if (path) CHECK(codec->index_open(shared, path, &error) == 0, "%s", error.text);
    pthread_barrier_init(&step, NULL, THREADS);
    for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    CHECK(codec->index_save(shared, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&step);
    CHECK(codec->index_save(shared, &error) == 0, "%s", error.text);
    codec->index_counts(shared, &known, &bytes);
    CHECK(bytes <= limit || known == 0, "%llu bytes of %llu", (unsigned long long)bytes, (unsigned long long)limit);
    CHECK(count_entries() == known, "not the %llu entries", (unsigned long long)known);
    codec->index_delete(shared);
    return known;
}

static void make_images(fb_decoder *decoder) {
    static const int samplings[][8] = {{2, 2, 1, 1, 1, 1}, {2, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}, {4, 1, 1, 1, 1, 1}};
    static unsigned char pixels[3 * WIDTH * HEIGHT], file[CAPACITY];
    for (int i = 0; i < IMAGES; i++) {
        for (size_t k = 0; k < sizeof pixels; k++)
            pixels[k] = (unsigned char)(test_random() % 64 + k / 500 + (size_t)i);
        const long size = encode_jpeg(pixels, WIDTH, HEIGHT, 3, SPACE_YCC, samplings[i % 4], 80, 0, i % 3 == 2 ? 5 : 0,
                                      file, CAPACITY);
        CHECK(size > 0, "size %ld", size);
        images[i].size = (size_t)size;
        images[i].bytes = malloc((size_t)size);
        memcpy(images[i].bytes, file, (size_t)size);
        for (int number = 0; number < CROPS; number++) decode(decoder, NULL, i, number, expected[i][number]);
    }
}

int main(int count, char **arguments) {
    char path[4096];
    CHECK(count == 2, "FOLDER");
    snprintf(path, sizeof path, "%s/index", arguments[1]);
    if (!fb_jpeg_fast_in_use()) return 0;
    fb_jpeg_index_always(1);
    codec = fb_image_codec();
    fb_decoder *decoder = codec->open(NULL);
    make_images(decoder);
    CHECK(share(IMAGES, 1 << 20, NULL) == IMAGES, "not all images");
    CHECK(share(0, 1 << 20, NULL) == IMAGES, "not all images, of an unknown number");
    CHECK(share(IMAGES, 15000, NULL) == IMAGES, "rows of all images do not fit");
    const uint64_t some = share(IMAGES, 7000, NULL);
    CHECK(some > 10 && some < IMAGES, "%llu images", (unsigned long long)some);
    CHECK(share(IMAGES, 0, NULL) == 0, "images in no memory");
    CHECK(share(IMAGES, 1 << 20, path) == IMAGES, "not all images, for a file");
    CHECK(share(IMAGES, 4000, path) == IMAGES, "not all images, from a file"); /* of which little is in memory */
    codec->close(decoder);
    for (int i = 0; i < IMAGES; i++) free(images[i].bytes);
    return 0;
}
