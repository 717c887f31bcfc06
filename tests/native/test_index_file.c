/* jpeg_index_file.h: a damaged file changes no pixel, and one that was forged does nothing worse than that.
 *
 * test_index_file FOLDER TIMES */
#include "images/jpeg_index_file.h"

#include "check.h"
#include "encode_jpeg.h"
#include "images/image.h"
#include "images/jpeg_fast.h"

#include <stddef.h>

enum { IMAGES = 12, WIDTH = 160, HEIGHT = 70, CROP = 24, CAPACITY = 1 << 16, MOST = 1 << 16 };

static struct {
    unsigned char bytes[CAPACITY];
    size_t size;
} images[IMAGES];

static unsigned char expected[IMAGES][3 * CROP * CROP];
static unsigned char good[MOST], bad[MOST + 64];
static size_t size;
static char path[4096];
static const fb_codec *codec;

static void decode(fb_decoder *decoder, fb_index *index, int image, unsigned char *pixels) {
    const fb_decoding decoding = {.color = FB_COLOR};
    const fb_region region = {(image * 7) % (HEIGHT - CROP), (image * 13) % (WIDTH - CROP), CROP, CROP};
    int64_t shape[3];
    fb_error error;
    fb_view view;
    CHECK(codec->begin(decoder, images[image].bytes, images[image].size, &decoding, shape, &error) == 0, "%s",
          error.text);
    if (index) codec->use_index(decoder, index, (uint64_t)image + 1);
    CHECK(codec->finish(decoder, &region, &view, &error) == 0, "%s", error.text);
    for (int y = 0; y < CROP; y++) {
        for (int x = 0; x < CROP; x++) {
            for (int c = 0; c < 3; c++)
                *pixels++ =
                    ((const unsigned char *)view.data)[c * view.strides[0] + y * view.strides[1] + x * view.strides[2]];
        }
    }
}

/* Decodes all images with the file that is there. Returns what index_open() did. */
static int use_file(int forged) {
    unsigned char pixels[3 * CROP * CROP];
    fb_error error;
    fb_index *index = codec->index_new(IMAGES, 1 << 20);
    const int code = codec->index_open(index, path, &error);
    if (code >= 0) {
        fb_decoder *decoder = codec->open(NULL);
        for (int image = 0; image < IMAGES; image++) {
            decode(decoder, index, image, pixels);
            CHECK(forged || memcmp(pixels, expected[image], sizeof pixels) == 0, "image %d", image);
        }
        codec->close(decoder);
        CHECK(codec->index_save(index, &error) == 0, "%s", error.text);
    }
    codec->index_delete(index);
    return code;
}

static void write_file(const unsigned char *bytes, size_t count) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, count, file) == count && fclose(file) == 0, "%s", path);
}

static size_t read_file(unsigned char *bytes) {
    FILE *file = fopen(path, "rb");
    CHECK(file, "%s", path);
    const size_t count = fread(bytes, 1, MOST, file);
    fclose(file);
    return count;
}

/* Sets the hashes of the entries, the table and the header, as far as these can be found. */
static void forge(unsigned char *bytes, size_t count) {
    const size_t hashed = offsetof(fb_jpeg_entry, check);
    fb_index_header header;
    memcpy(&header, bytes, sizeof header);
    if (count < sizeof header || header.table > count || header.images > (count - header.table) / 16) return;
    for (uint64_t i = 0; i < header.images; i++) {
        fb_index_row rows[2] = {{0, 0}, {0, header.table}};
        memcpy(rows, bytes + header.table + 16 * i, i + 1 < header.images ? 32 : 16);
        if (rows[0].offset > rows[1].offset || rows[1].offset > count ||
            rows[1].offset - rows[0].offset < sizeof(fb_jpeg_entry))
            continue;
        const uint64_t hash = fb_jpeg_hash(bytes + rows[0].offset + hashed, rows[1].offset - rows[0].offset - hashed);
        memcpy(bytes + rows[0].offset, &hash, sizeof hash);
    }
    header.table_hash = fb_jpeg_hash(bytes + header.table, 16 * header.images);
    header.hash = fb_jpeg_hash(&header, offsetof(fb_index_header, hash));
    memcpy(bytes, &header, sizeof header);
}

/* Damages a copy of the file, and uses it. */
static void damage(int forged) {
    size_t count = size;
    memcpy(bad, good, size);
    for (int64_t changes = test_between(1, 3); changes > 0; changes--) {
        const int part = (int)test_between(0, 3);
        const int64_t table = (int64_t)size - 16 * IMAGES;
        const int64_t at = part == 0   ? test_between(8, 63)
                           : part == 1 ? test_between(table, (int64_t)size - 1)
                           : part == 2 ? test_between(64, 64 + 47)
                                       : test_between(64, table - 1);
        bad[at] = (unsigned char)(test_random() % 4 ? bad[at] ^ 1u << test_random() % 8 : test_random());
    }
    if (!forged && test_random() % 8 == 0) count = (size_t)test_between(8, (int64_t)size + 64);
    if (forged) forge(bad, count);
    write_file(bad, count);
    if (use_file(forged) >= 0 && !forged)
        CHECK(read_file(bad) == size && memcmp(bad, good, size) == 0, "it was not mended");
}

int main(int count, char **arguments) {
    static const int samplings[][8] = {{2, 2, 1, 1, 1, 1}, {2, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1}};
    static unsigned char pixels[3 * WIDTH * HEIGHT];
    CHECK(count == 3, "FOLDER TIMES");
    if (!fb_jpeg_fast_in_use()) return 0;
    fb_jpeg_index_always(1);
    codec = fb_image_codec();
    snprintf(path, sizeof path, "%s/index", arguments[1]);
    fb_decoder *decoder = codec->open(NULL);
    for (int i = 0; i < IMAGES; i++) {
        for (size_t k = 0; k < sizeof pixels; k++)
            pixels[k] = (unsigned char)(test_random() % 64 + k / 500 + (size_t)i);
        const int restart = i % 4 == 3 ? 7 : 0;
        const long made = encode_jpeg(pixels, WIDTH, HEIGHT, 3, SPACE_YCC, samplings[i % 3], 80, 0, restart,
                                      images[i].bytes, CAPACITY);
        CHECK(made > 0, "size %ld", made);
        images[i].size = (size_t)made;
        decode(decoder, NULL, i, expected[i]);
    }
    codec->close(decoder);
    CHECK(use_file(0) == 0, "no file");
    size = read_file(good);
    CHECK(size > 64 + 40 * IMAGES, "%zu bytes", size);
    for (int64_t i = atol(arguments[2]); i > 0; i--) {
        damage(0);
        damage(1);
    }
    return 0;
}
