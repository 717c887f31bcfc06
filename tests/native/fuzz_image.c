/* Random bytes for the image decoder: a target of libFuzzer, which tools/fuzz runs.
 *
 * With -DSTANDALONE and tests/native/encode_jpeg.c, any compiler will do. The program then makes images and damages
 * them itself, argv[1] times. With a second argument, it writes argv[1] valid images into that folder instead, as
 * seeds.
 */
#include "fastbatch_image.h"

#include "check.h"
#include "images/format.h"
#include "images/image.h"
#include "images/png_fast.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

typedef struct options {
    fb_decoding decoding;
    uint32_t region[4];
} options;

/* From the last bytes: what follows the image is ignored by the decoder, so that plain image files are good inputs. */
static options options_of(const uint8_t *bytes, size_t size) {
    options chosen = {.decoding = {.color = FB_COLOR}};
    uint8_t last[8] = {0};
    if (size >= sizeof last) memcpy(last, bytes + size - sizeof last, sizeof last);
    chosen.decoding.color = (fb_color)(last[0] % 3 - 1);
    if (last[1] & 1) {
        chosen.decoding.new_height = last[2] % 64 + 1;
        chosen.decoding.new_width = last[3] % 64 + 1;
    }
    for (int i = 0; i < 4; i++) chosen.region[i] = last[4 + i];
    return chosen;
}

static unsigned char value_at(const fb_view *view, int64_t y, int64_t x, int64_t channel) {
    return (
        (const unsigned char *)view->data)[channel * view->strides[0] + y * view->strides[1] + x * view->strides[2]];
}

static int same_pixel(const fb_view *view, int64_t y, int64_t x, const fb_view *other, int64_t other_y,
                      int64_t other_x) {
    for (int64_t channel = 0; channel < view->shape[0]; channel++) {
        if (value_at(view, y, x, channel) != value_at(other, other_y, other_x, channel)) return 0;
    }
    return 1;
}

static int shows(const fb_view *view, const int64_t shape[3], const fb_region *region) {
    return view->ndim == 3 && view->dtype == FB_UINT8 && view->shape[0] == shape[0] &&
           view->shape[1] == region->height && view->shape[2] == region->width;
}

/* The decoder uses no more memory than the image justifies: its bytes, its pixels (rounded up to whole JPEG blocks)
 * with coefficients, copies and some rows, the resized image, and what the libraries need for any image. */
static void check_memory(const fb_decoder *decoder, size_t size, const int64_t stored[3], const fb_decoding *decoding) {
    const size_t pixels = (size_t)((stored[1] + 63) * (stored[2] + 63));
    const size_t resized = (size_t)(decoding->new_height + 8) * (size_t)(decoding->new_width + 8) * 8;
    const size_t limit = (1 << 20) + 2 * size + 16 * pixels + resized, used = fb_decoder_memory(decoder).used;
    CHECK(used <= limit, "%zu bytes of memory for %zu bytes that claim %lld x %lld pixels", used, size,
          (long long)stored[1], (long long)stored[2]);
}

/* one for parts and one for whole images: what one remembers does not change what it decodes */
static fb_decoder *decoders[2];

static void reopen(void) {
    for (int i = 0; i < 2; i++) {
        fb_image_codec()->close(decoders[i]);
        decoders[i] = fb_image_codec()->open(NULL);
        CHECK(decoders[i] != NULL, "no decoder");
    }
}

/* A part that can be decoded has the pixels of the whole. */
static void compare_with_whole(const uint8_t *bytes, size_t size, const fb_decoding *decoding, const int64_t stored[3],
                               const int64_t shape[3], const fb_region *region, const fb_view *part) {
    const fb_codec *codec = fb_image_codec();
    const fb_region everything = {0, 0, shape[1], shape[2]};
    int64_t whole_shape[3];
    fb_error error = {0};
    fb_view whole;
    CHECK(codec->begin(decoders[1], bytes, size, decoding, whole_shape, &error) == 0, "%s", error.text);
    CHECK(memcmp(shape, whole_shape, sizeof whole_shape) == 0, "another shape");
    const int code = codec->finish(decoders[1], &everything, &whole, &error);
    check_memory(decoders[1], size, stored, decoding);
    if (code != 0) return;
    CHECK(shows(&whole, shape, &everything), "another view");
    for (int64_t y = 0; y < region->height; y++) {
        for (int64_t x = 0; x < region->width; x++) {
            CHECK(same_pixel(part, y, x, &whole, region->top + y, region->left + x), "pixel (%lld, %lld) of a part",
                  (long long)y, (long long)x);
        }
    }
}

/* A part of a resized region has the pixels of the whole resized region. */
static void compare_resized(const uint8_t *bytes, size_t size, const options *chosen, const fb_region *region) {
    const fb_codec *codec = fb_image_codec();
    const fb_decoding plain = {.color = chosen->decoding.color};
    const int height = (int)(1 + chosen->region[2] % 97), width = (int)(1 + chosen->region[3] % 89);
    fb_region part = {.top = chosen->region[0] % height, .left = chosen->region[1] % width};
    part.height = 1 + chosen->region[1] % (height - part.top);
    part.width = 1 + chosen->region[0] % (width - part.left);
    int64_t shape[3];
    fb_error error = {0};
    fb_view whole, some;
    CHECK(codec->begin(decoders[0], bytes, size, &plain, shape, &error) == 0, "%s", error.text);
    CHECK(codec->begin(decoders[1], bytes, size, &plain, shape, &error) == 0, "%s", error.text);
    if (codec->finish_part(decoders[0], region, height, width, &part, &some, &error) != 0) {
        CHECK(error.text[0], "an error without a reason");
        return;
    }
    CHECK(shows(&some, shape, &part), "another view");
    if (codec->finish_resized(decoders[1], region, height, width, &whole, &error) != 0) return;
    for (int64_t y = 0; y < part.height; y++) {
        for (int64_t x = 0; x < part.width; x++) {
            CHECK(same_pixel(&some, y, x, &whole, part.top + y, part.left + x), "pixel (%lld, %lld) of a resized part",
                  (long long)y, (long long)x);
        }
    }
}

/* libdeflate makes no difference: neither to the pixels, nor to what is said of a damaged image. */
static void compare_with_libpng(const uint8_t *bytes, size_t size, const fb_decoding *decoding, const fb_region *region,
                                int code, const fb_view *part, const char *reason) {
    const fb_codec *codec = fb_image_codec();
    int64_t shape[3];
    fb_error error = {0};
    fb_view view;
    fb_png_fast_use(0);
    CHECK(codec->begin(decoders[1], bytes, size, decoding, shape, &error) == 0, "%s", error.text);
    const int theirs = codec->finish(decoders[1], region, &view, &error);
    fb_png_fast_use(1);
    CHECK(code == theirs && (code == 0 || strcmp(reason, error.text) == 0), "%d: %s, but libpng %d: %s", code, reason,
          theirs, error.text);
    for (int64_t y = 0; code == 0 && y < region->height; y++) {
        for (int64_t x = 0; x < region->width; x++) {
            CHECK(same_pixel(part, y, x, &view, y, x), "pixel (%lld, %lld), compared with libpng's", (long long)y,
                  (long long)x);
        }
    }
}

static void decode(const uint8_t *bytes, size_t size, const options *chosen) {
    static volatile unsigned char sink;
    const fb_codec *codec = fb_image_codec();
    const fb_decoding plain = {.color = chosen->decoding.color};
    int64_t shape[3], stored[3] = {0};
    fb_error error = {0};
    fb_view part, again;
    int code = codec->begin(decoders[0], bytes, size, &plain, shape, &error);
    if (code == 0) memcpy(stored, shape, sizeof stored);
    check_memory(decoders[0], size, stored, &plain);
    const int is_large = code == 0 && shape[1] * shape[2] > 1 << 14;
    if (is_large && chosen->region[0] % 64) return; /* one in 64 is decoded: they would take nearly all of the time */
    if (code == 0) code = codec->begin(decoders[0], bytes, size, &chosen->decoding, shape, &error);
    if (code != 0) {
        CHECK(error.text[0], "an error without a reason");
        return;
    }
    CHECK(shape[0] >= 1 && shape[0] <= 4 && shape[1] >= 1 && shape[2] >= 1, "shape");
    fb_region region = {.top = chosen->region[0] % shape[1], .left = chosen->region[1] % shape[2]};
    region.height = 1 + chosen->region[2] % (shape[1] - region.top);
    region.width = 1 + chosen->region[3] % (shape[2] - region.left);
    code = codec->finish(decoders[0], &region, &part, &error);
    check_memory(decoders[0], size, stored, &chosen->decoding);
    if (size > 8 && memcmp(bytes, fb_png_format.magic, 8) == 0)
        compare_with_libpng(bytes, size, &chosen->decoding, &region, code, &part, error.text);
    if (code != 0) {
        CHECK(error.text[0], "an error without a reason");
    } else {
        CHECK(shows(&part, shape, &region), "another view");
        for (int64_t y = 0; y < region.height; y++) {
            for (int64_t x = 0; x < region.width; x++) sink = value_at(&part, y, x, shape[0] - 1);
        }
        CHECK(codec->finish(decoders[0], &region, &again, &error) != 0, "the same image twice");
        if (shape[1] * shape[2] <= 1 << 22)
            compare_with_whole(bytes, size, &chosen->decoding, stored, shape, &region, &part);
        if (chosen->decoding.new_height == 0 && shape[1] * shape[2] <= 1 << 14)
            compare_resized(bytes, size, chosen, &region);
    }
    (void)sink;
    if (is_large) reopen(); /* so that its memory does not hide a leak */
}

/* Whatever the bytes are: no access outside of them, no more memory than they justify, and a consistent answer. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    const options chosen = options_of(bytes, size);
    uint8_t *exact = malloc(size ? size : 1); /* of exactly this size, for the address sanitizer */
    if (size) memcpy(exact, bytes, size);
    if (decoders[0] == NULL) reopen();
    decode(exact, size, &chosen);
    free(exact);
    return 0;
}

/* ---- damage that gets as far as the pixels */

#include <zlib.h>

static uint32_t get32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void put32(uint8_t *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* Gives the chunks of a PNG the right checksums. */
static void correct_checksums(uint8_t *bytes, size_t size) {
    if (size < 8 || memcmp(bytes, fb_png_format.magic, 8) != 0) return;
    for (size_t at = 8; at + 12 <= size; at += 12 + get32(bytes + at)) {
        const size_t length = get32(bytes + at);
        if (length > size - at - 12) return;
        put32(bytes + at + 8 + length, (uint32_t)crc32(crc32(0, NULL, 0), bytes + at + 4, (uInt)length + 4));
    }
}

size_t LLVMFuzzerMutate(uint8_t *bytes, size_t size, size_t most); /* libFuzzer's own */
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t most, unsigned seed);

#ifndef STANDALONE
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t size, size_t most, unsigned seed) {
    size = LLVMFuzzerMutate(bytes, size, most);
    if (seed % 4) correct_checksums(bytes, size);
    return size;
}
#else
#include "encode_jpeg.h"

#include <png.h>

enum { CAPACITY = 1 << 18, SIDE = 70, SEED_SIDE = 16 };

static unsigned char file[CAPACITY];

/* Inserts bytes; the new size, or the old one where they don't fit. */
static long insert(long size, long at, const void *bytes, size_t count) {
    if (size + (long)count + 8 > CAPACITY) return size;
    memmove(file + at + count, file + at, (size_t)(size - at));
    memcpy(file + at, bytes, count);
    return size + (long)count;
}

/* Optional PNG chunks, sometimes a hundred of them: a name with text or a profile that inflates to a thousand times
 * its size, or random content. */
static long with_chunks(long size) {
    static const char kinds[][5] = {"zTXt", "iTXt", "tEXt", "iCCP", "sPLT", "eXIf", "pCAL", "sCAL", "hIST",
                                    "bKGD", "gAMA", "cHRM", "sRGB", "sBIT", "tIME", "tRNS", "PLTE", "orNt"};
    static const unsigned char zeros[1 << 16];
    static unsigned char chunk[1 << 12];
    const char *kind = kinds[test_random() % 18];
    size_t length = 0;
    if (test_random() % 2) {
        uLongf packed = sizeof chunk - 64;
        memcpy(chunk + 8, "name\0", 6);
        if (strcmp(kind, "iTXt") == 0) memcpy(chunk + 8, "name\0\1\0\0", 9);
        const size_t before = strcmp(kind, "iTXt") == 0 ? 9 : 6;
        CHECK(compress2(chunk + 8 + before, &packed, zeros, test_random() % sizeof zeros, 9) == Z_OK, "compress2");
        length = before + packed;
    } else {
        length = test_random() % 200;
        for (size_t i = 0; i < length; i++) chunk[8 + i] = (unsigned char)(test_random() % 3 ? test_random() : 0);
    }
    put32(chunk, (uint32_t)length);
    memcpy(chunk + 4, kind, 4);
    put32(chunk + 8 + length, (uint32_t)crc32(crc32(0, NULL, 0), chunk + 4, (uInt)length + 4));
    const long at = test_random() % 4 ? 33 : size - 12; /* after IHDR, or before IEND */
    for (int times = test_random() % 8 ? 1 : 100; times > 0; times--) size = insert(size, at, chunk, length + 12);
    return size;
}

/* Segments that are skipped, or looked at. */
static long with_segments(long size) {
    static unsigned char segment[600] = {0xff};
    for (int times = test_random() % 8 ? 1 : 100; times > 0; times--) {
        const size_t length = test_random() % 500 + 2;
        segment[1] = test_random() % 4 ? (unsigned char)(0xe0 + test_random() % 16) : 0xfe;
        segment[2] = (unsigned char)(length >> 8);
        segment[3] = (unsigned char)length;
        for (size_t i = 4; i < length + 2; i++) segment[i] = (unsigned char)test_random();
        size = insert(size, 2, segment, length + 2);
    }
    return size;
}

static long good_jpeg(const unsigned char *pixels, int height, int width) {
    static const int samplings[][8] = {{1, 1, 1, 1, 1, 1, 1, 1},
                                       {2, 1, 1, 1, 1, 1, 2, 1},
                                       {2, 2, 1, 1, 1, 1, 2, 2},
                                       {1, 2, 1, 1, 1, 1, 1, 2},
                                       {4, 1, 1, 1, 1, 1, 4, 1}};
    static const int spaces[][2] = {{1, SPACE_GRAY}, {3, SPACE_YCC},  {3, SPACE_YCC}, {3, SPACE_YCC},
                                    {3, SPACE_RGB},  {4, SPACE_CMYK}, {4, SPACE_YCCK}};
    static const int flags[] = {
        0, 0, 0, 0, OPTIMIZED, PROGRESSIVE, ARITHMETIC, SEPARATE_SCANS, PROGRESSIVE | ARITHMETIC, NO_ADOBE};
    const int *kind = spaces[test_random() % 7];
    return encode_jpeg(pixels, width, height, kind[0], kind[1], samplings[test_random() % 5], (int)test_between(10, 95),
                       flags[test_random() % 10], test_random() % 2 ? (int)test_between(1, 9) : 0, file, CAPACITY);
}

static long good_png(const unsigned char *pixels, int height, int width) {
    static const png_uint_32 formats[] = {PNG_FORMAT_GRAY, PNG_FORMAT_GA, PNG_FORMAT_RGB, PNG_FORMAT_RGBA,
                                          PNG_FORMAT_RGB_COLORMAP};
    png_image image = {.version = PNG_IMAGE_VERSION, .width = (png_uint_32)width, .height = (png_uint_32)height};
    image.format = formats[test_random() % 5];
    image.colormap_entries = 200;
    static unsigned char indices[SIDE * SIDE], colormap[3 * 256];
    for (size_t i = 0; i < sizeof indices; i++) indices[i] = pixels[i] % 200;
    png_alloc_size_t size = CAPACITY;
    CHECK(png_image_write_to_memory(&image, file, &size, 0, image.format & PNG_FORMAT_FLAG_COLORMAP ? indices : pixels,
                                    0, colormap),
          "%s", image.message);
    return (long)size;
}

static long good_image(int side) {
    static unsigned char pixels[SIDE * SIDE * 4];
    const int smooth = test_random() % 2;
    for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (unsigned char)(smooth ? i / 40 : test_random());
    const int height = (int)test_between(1, side), width = (int)test_between(1, side);
    const int is_jpeg = test_random() % 3 != 0;
    long size = is_jpeg ? good_jpeg(pixels, height, width) : good_png(pixels, height, width);
    if (size > 0 && test_random() % 4 == 0) size = is_jpeg ? with_segments(size) : with_chunks(size);
    CHECK(size > 0 && size + 8 <= CAPACITY, "size %ld", size);
    for (int i = 0; i < 8; i++) file[size++] = (unsigned char)test_random(); /* the options */
    return size;
}

static long damaged(long size) {
    for (int times = (int)test_between(0, 3); times > 0 && size > 16; times--) {
        const size_t at = test_random() % (test_random() % 2 ? (size_t)size : 700 < size ? 700 : (size_t)size);
        switch (test_random() % 5) {
            case 0: file[at] = (unsigned char)test_random(); break;
            case 1: file[at] ^= (unsigned char)(1u << test_random() % 8); break;
            case 2:
                if (test_random() % 4 == 0) size = (long)at + 1;
                break;
            case 3: file[at] = 0xff; break;
            case 4: /* a piece moves */
                memmove(file + at / 2 + at / 4, file + at, (size_t)size - at);
                size -= (long)(at - at / 2 - at / 4);
                break;
        }
    }
    if (test_random() % 2) correct_checksums(file, (size_t)size);
    return size;
}

int main(int argc, char **argv) {
    const long times = argc > 1 ? atol(argv[1]) : 10000;
    for (long i = 0; i < times; i++) {
        const long size = good_image(argc > 2 ? SEED_SIDE : SIDE);
        if (argc > 2) {
            write_seed(argv[2], i, file, (size_t)size);
        } else {
            LLVMFuzzerTestOneInput(file, (size_t)damaged(size));
        }
    }
    return 0;
}
#endif
