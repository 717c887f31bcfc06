/* The image codec without Python: any region equals the same part of the whole, one image does not affect the next,
 * bad files are refused, and (with -DCOUNT_ALLOCATIONS) an image like earlier ones allocates nothing. */
#include "fastbatch_image.h"

#include "check.h"
#include "encode_jpeg.h"
#include "images/format.h"
#include "images/image.h"
#include "images/resize.h"

#include <png.h>

enum { CAPACITY = 1 << 20 };

static const int samplings[][8] = {{1, 1, 1, 1, 1, 1, 1, 1}, {2, 1, 1, 1, 1, 1, 2, 1}, {2, 2, 1, 1, 1, 1, 2, 2},
                                   {1, 2, 1, 1, 1, 1, 1, 2}, {4, 1, 1, 1, 1, 1, 4, 1}, {1, 1, 2, 2, 2, 2, 1, 1}};
static unsigned char pixels[256 * 256 * 4], file[CAPACITY], copy[CAPACITY];
static const fb_codec *codec;
static fb_decoder *decoder;
static fb_error error;
static fb_view view;
static int64_t shape[3];

#ifdef COUNT_ALLOCATIONS
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
static long allocations;

void *malloc(size_t size) {
    allocations++;
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    allocations++;
    return __libc_calloc(count, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    allocations++;
    *memory = __libc_memalign(alignment, size);
    return *memory ? 0 : 12;
}
#endif

static void make_pixels(void) {
    for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (unsigned char)(test_random() % 97 + i / 700 % 150);
}

static size_t jpeg(int height, int width, int channels, const int *factors, int flags) {
    const int space = channels == 1 ? SPACE_GRAY : channels == 3 ? SPACE_YCC : SPACE_YCCK;
    const long size = encode_jpeg(pixels, width, height, channels, space, factors, 85, flags, 0, file, CAPACITY);
    CHECK(size > 0, "size %ld", size);
    return (size_t)size;
}

static size_t png(int height, int width) {
    png_image image = {.version = PNG_IMAGE_VERSION,
                       .width = (png_uint_32)width,
                       .height = (png_uint_32)height,
                       .format = PNG_FORMAT_RGBA};
    png_alloc_size_t size = CAPACITY;
    CHECK(png_image_write_to_memory(&image, file, &size, 0, pixels, 0, NULL), "%s", image.message);
    return size;
}

static int decode(const unsigned char *bytes, size_t size, fb_decoding decoding, const fb_region *region) {
    memset(&error, 0, sizeof error);
    if (codec->begin(decoder, bytes, size, &decoding, shape, &error) != 0) return -1;
    const fb_region everything = {0, 0, shape[1], shape[2]};
    return codec->finish(decoder, region ? region : &everything, &view, &error);
}

/* What `view` shows, contiguous, to `to`. */
static void collect(unsigned char *to) {
    for (int64_t y = 0; y < view.shape[1]; y++) {
        for (int64_t x = 0; x < view.shape[2]; x++) {
            for (int64_t c = 0; c < view.shape[0]; c++)
                *to++ =
                    ((const unsigned char *)view.data)[c * view.strides[0] + y * view.strides[1] + x * view.strides[2]];
        }
    }
}

/* A decoder that libjpeg and libpng have never failed in, nor seen another image. */
static void decode_afresh(size_t size, fb_decoding decoding) {
    codec->close(decoder);
    decoder = codec->open(NULL);
    CHECK(decoder && decode(file, size, decoding, NULL) == 0, "%s", error.text);
    collect(copy);
}

static int shows_pixel(int64_t y, int64_t x, const unsigned char *pixel) {
    const unsigned char *shown = (const unsigned char *)view.data + y * view.strides[1] + x * view.strides[2];
    for (int64_t c = 0; c < view.shape[0]; c++) {
        if (shown[c * view.strides[0]] != pixel[c]) return 0;
    }
    return 1;
}

static void check_part(size_t size, fb_decoding decoding, const fb_region *region) {
    CHECK(decode(file, size, decoding, region) == 0, "%s", error.text);
    CHECK(view.shape[1] == region->height && view.shape[2] == region->width, "shape");
    for (int64_t y = 0; y < region->height; y++) {
        for (int64_t x = 0; x < region->width; x++) {
            const unsigned char *same = copy + ((region->top + y) * shape[2] + region->left + x) * shape[0];
            CHECK(shows_pixel(y, x, same), "pixel (%lld, %lld) of the region at (%lld, %lld)", (long long)y,
                  (long long)x, (long long)region->top, (long long)region->left);
        }
    }
}

static void regions_are_parts_of_the_whole(void) {
    for (int sampling = 0; sampling < 6; sampling++) {
        for (int kind = 0; kind < 8; kind++) {
            const int height = (int)test_between(1, 90), width = (int)test_between(1, 120),
                      channels = kind % 4 == 3 ? 4
                                 : kind % 4    ? 3
                                               : 1;
            const size_t size = jpeg(height, width, channels, samplings[sampling], kind == 7 ? PROGRESSIVE : 0);
            const fb_decoding decodings[] = {
                {FB_COLOR, 0, 0}, {FB_GRAY, 0, 0}, {FB_UNCHANGED, 0, 0}, {FB_COLOR, 40, 31}, {FB_GRAY, 150, 9}};
            for (int i = 0; i < 5; i++) {
                decode_afresh(size, decodings[i]);
                for (int64_t first = 0; first < shape[1] || first < shape[2]; first++) {
                    fb_region region = {.top = first % shape[1], .left = first % shape[2]};
                    region.height = test_between(1, shape[1] - region.top);
                    region.width = test_between(1, shape[2] - region.left);
                    check_part(size, decodings[i], &region);
                }
            }
        }
    }
}

/* Offset of the first segment with this marker. */
static size_t find_segment(size_t size, int marker) {
    for (size_t at = 2; at + 4 < size; at += 2 + (size_t)(file[at + 2] << 8 | file[at + 3])) {
        if (file[at + 1] == marker) return at;
    }
    CHECK(0, "no segment %x", (unsigned)marker);
    return 0;
}

static void one_image_does_not_lend_its_tables_to_the_next(void) {
    size_t size = jpeg(40, 50, 3, samplings[2], 0);
    CHECK(decode(file, size, (fb_decoding){FB_COLOR, 0, 0}, NULL) == 0, "%s", error.text);
    const size_t at = find_segment(size, 0xdb), length = 2 + (size_t)(file[at + 2] << 8 | file[at + 3]);
    memmove(file + at, file + at + length, size - at - length);
    size -= length;
    CHECK(decode(file, size, (fb_decoding){FB_COLOR, 0, 0}, NULL) == -1,
          "an image without its quantization table was decoded");
    CHECK(strstr(error.text, "uantization table"), "%s", error.text);
}

static void the_decoder_lives_on_after_errors(void) {
    size_t size = jpeg(40, 50, 3, samplings[2], 0);
    decode_afresh(size, (fb_decoding){FB_COLOR, 0, 0});
    const fb_region region = {3, 5, 20, 30};
    for (size_t cut = 0; cut < size; cut += 7) {
        CHECK(decode(file, cut, (fb_decoding){FB_COLOR, 0, 0}, NULL) == -1 && error.text[0] && !error.fatal,
              "cut at %zu", cut);
        CHECK(decode(file, cut, (fb_decoding){FB_COLOR, 0, 0}, &region) == -1, "a region, cut at %zu", cut);
        check_part(size, (fb_decoding){FB_COLOR, 0, 0}, &region);
    }
    size = png(40, 50);
    decode_afresh(size, (fb_decoding){FB_UNCHANGED, 0, 0});
    for (size_t cut = 0; cut < size; cut += 101) {
        CHECK(decode(file, cut, (fb_decoding){FB_UNCHANGED, 0, 0}, &region) == -1 && error.text[0], "cut at %zu", cut);
        check_part(size, (fb_decoding){FB_UNCHANGED, 0, 0}, &region);
    }
}

static void regions_outside_are_refused(void) {
    const size_t size = jpeg(40, 50, 3, samplings[0], 0);
    const fb_region wrong[] = {{-1, 0, 2, 2},        {0, -1, 2, 2},       {0, 0, 0, 2},   {0, 0, 2, 0},
                               {39, 0, 2, 2},        {0, 49, 2, 2},       {0, 0, 41, 50}, {INT64_MAX, 0, 2, 2},
                               {2, 2, INT64_MAX, 2}, {0, 0, 2, INT64_MIN}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(decode(file, size, (fb_decoding){FB_COLOR, 0, 0}, &wrong[i]) == -1, "region %zu", i);
        CHECK(strstr(error.text, "not inside of the image of 50 x 40"), "%s", error.text);
    }
    CHECK(codec->finish(decoder, &wrong[0], &view, &error) == -1 && strstr(error.text, "begin()"), "%s", error.text);
}

/* The same file once for each orientation: where the stored pixels go. */
static void every_orientation_turns_the_stored_pixels(void) {
    static const unsigned char segment[] = {0xff, 0xe1, 0, 34,   'E', 'x', 'i', 'f', 0, 0, 'M', 'M', 0, 42, 0, 0, 0, 8,
                                            0,    1,    1, 0x12, 0,   3,   0,   0,   0, 1, 0,   0,   0, 0,  0, 0, 0, 0};
    const int64_t height = 21, width = 34;
    const size_t size = jpeg((int)height, (int)width, 3, samplings[2], 0);
    memmove(file + 2 + sizeof segment, file + 2, size - 2);
    memcpy(file + 2, segment, sizeof segment);
    decode_afresh(size + sizeof segment, (fb_decoding){FB_UNCHANGED, 0, 0});
    for (int orientation = 1; orientation <= 8; orientation++) {
        file[2 + 29] = (unsigned char)orientation;
        CHECK(decode(file, size + sizeof segment, (fb_decoding){FB_COLOR, 0, 0}, NULL) == 0, "%s", error.text);
        CHECK(shape[1] == (orientation < 5 ? height : width) && shape[2] == (orientation < 5 ? width : height),
              "shape");
        for (int64_t y = 0; y < shape[1]; y++) {
            for (int64_t x = 0; x < shape[2]; x++) {
                const int64_t places[8][2] = {
                    {y, x}, {y, width - 1 - x},  {height - 1 - y, width - 1 - x}, {height - 1 - y, x},
                    {x, y}, {height - 1 - x, y}, {height - 1 - x, width - 1 - y}, {x, width - 1 - y}};
                const int64_t *place = places[orientation - 1];
                CHECK(shows_pixel(y, x, copy + (place[0] * width + place[1]) * 3), "orientation %d, (%lld, %lld)",
                      orientation, (long long)y, (long long)x);
            }
        }
    }
}

/* A region resized alone: as if it were a file of its own. */
static void a_region_is_resized_alone(void) {
    fb_arena memory = {0};
    for (int i = 0; i < 400; i++) {
        const size_t size =
            i % 2 ? png(40, 50) : jpeg(40, 50, i % 4 ? 3 : 1, samplings[i % 6], i % 3 ? 0 : PROGRESSIVE);
        fb_region region = {.top = test_between(0, 39), .left = test_between(0, 49)};
        region.height = test_between(1, 40 - region.top);
        region.width = test_between(1, 50 - region.left);
        const fb_size from = {region.height, region.width}, to = {test_between(1, i % 5 ? 90 : 3), test_between(1, 90)};
        const fb_region whole = {0, 0, to.height, to.width};
        CHECK(decode(file, size, (fb_decoding){FB_COLOR, 0, 0}, &region) == 0, "%s", error.text);
        collect(copy);
        const fb_rows rows = {copy, region.width * 3, 0, 0, 3, 1};
        fb_rows resized;
        CHECK(fb_resize(&rows, 3, from, to, &whole, &memory, &resized) == 0, "not resized");
        const unsigned char *expected = resized.data;
        CHECK(codec->begin(decoder, file, size, &(fb_decoding){FB_COLOR, 0, 0}, shape, &error) == 0, "%s", error.text);
        CHECK(codec->finish_resized(decoder, &region, (int)to.height, (int)to.width, &view, &error) == 0, "%s",
              error.text);
        CHECK(view.shape[0] == 3 && view.shape[1] == to.height && view.shape[2] == to.width, "shape");
        static unsigned char found[90 * 90 * 3];
        collect(found);
        CHECK(memcmp(found, expected, (size_t)(to.height * to.width * 3)) == 0, "pixels, case %d", i);
        fb_region part = {.top = test_between(0, to.height - 1), .left = test_between(0, to.width - 1)};
        part.height = test_between(1, to.height - part.top);
        part.width = test_between(1, to.width - part.left);
        CHECK(codec->begin(decoder, file, size, &(fb_decoding){FB_COLOR, 0, 0}, shape, &error) == 0, "%s", error.text);
        CHECK(codec->finish_part(decoder, &region, (int)to.height, (int)to.width, &part, &view, &error) == 0, "%s",
              error.text);
        collect(found);
        for (int64_t y = 0; y < part.height; y++) {
            CHECK(memcmp(found + y * part.width * 3, expected + ((part.top + y) * to.width + part.left) * 3,
                         (size_t)part.width * 3) == 0,
                  "a part of the pixels, case %d", i);
        }
        fb_arena_empty(&memory);
    }
    fb_arena_free(&memory);
    const size_t size = png(40, 50);
    const fb_region region = {0, 0, 5, 5};
    CHECK(codec->begin(decoder, file, size, &(fb_decoding){FB_COLOR, 20, 20}, shape, &error) == 0, "%s", error.text);
    CHECK(codec->finish_resized(decoder, &region, 9, 9, &view, &error) == -1 && strstr(error.text, "resized again"),
          "%s", error.text);
    CHECK(codec->begin(decoder, file, size, &(fb_decoding){FB_COLOR, 0, 0}, shape, &error) == 0, "%s", error.text);
    CHECK(codec->finish_resized(decoder, &region, 1 << 20, 1 << 11, &view, &error) == -1 &&
              strstr(error.text, "resized to"),
          "%s", error.text);
    CHECK(codec->finish_resized(decoder, &(fb_region){0, 0, 41, 5}, 9, 9, &view, &error) == -1 &&
              strstr(error.text, "not inside"),
          "%s", error.text);
    CHECK(codec->finish_part(decoder, &region, 9, 9, &(fb_region){0, 5, 9, 5}, &view, &error) == -1 &&
              strstr(error.text, "not inside of the resized region"),
          "%s", error.text);
}

/* What one large image took is kept while such images come now and then, and given back when they don't. */
static void memory_goes_back_after_a_large_image(void) {
    const fb_decoding small = {FB_COLOR, 0, 0}, large = {FB_COLOR, 4000, 4000};
    const size_t size = jpeg(40, 50, 3, samplings[0], 0);
    codec->close(decoder);
    decoder = codec->open(NULL);
    CHECK(decode(file, size, large, NULL) == 0, "%s", error.text);
    const size_t most = fb_decoder_memory(decoder).held;
    CHECK(most > 48000000 && most < 50000000, "%zu bytes", most);
    for (int i = 0; i < 300; i++) {
        CHECK(decode(file, size, i % 10 || i > 150 ? small : large, NULL) == 0, "%s", error.text);
        CHECK(i > 150 || fb_decoder_memory(decoder).held >= 48000000, "%zu bytes", fb_decoder_memory(decoder).held);
    }
    CHECK(fb_decoder_memory(decoder).held < 2 << 20, "%zu bytes", fb_decoder_memory(decoder).held);
}

/* The decoder of those who decode one image is lent to one of them at a time, and not kept with a large image's memory. */
static void a_decoder_is_lent(void) {
    fb_decoder *const first = fb_decoder_borrow(), *const second = fb_decoder_borrow(), *const own = decoder;
    CHECK(first && second && first != second, "one decoder for two");
    fb_decoder_return(first);
    fb_decoder_return(second);
    CHECK(fb_decoder_borrow() == second, "another decoder than the last one");
    decoder = second;
    const size_t size = jpeg(40, 50, 3, samplings[0], 0);
    CHECK(decode(file, size, (fb_decoding){FB_COLOR, 4000, 4000}, NULL) == 0, "%s", error.text);
    fb_decoder_return(second);
    decoder = fb_decoder_borrow();
    CHECK(fb_decoder_memory(decoder).held < 1 << 20, "%zu bytes", fb_decoder_memory(decoder).held);
    codec->close(decoder);
    decoder = own;
    fb_decoder_return(NULL);
}

#ifdef COUNT_ALLOCATIONS
static void nothing_is_allocated_in_steady_state(void) {
    static unsigned char files[5][CAPACITY / 2];
    size_t sizes[5];
    for (int i = 0; i < 5; i++) {
        sizes[i] = i == 4 ? png(90, 80)
                          : jpeg(200, 240, i == 3 ? 4 : 3, samplings[2],
                                 i == 1   ? PROGRESSIVE
                                 : i == 2 ? ARITHMETIC
                                          : 0);
        CHECK(sizes[i] <= sizeof *files, "%zu bytes", sizes[i]);
        memcpy(files[i], file, sizes[i]);
    }
    const fb_region region = {5, 7, 50, 60};
    for (int round = 0; round < 4; round++) {
        const long before = allocations;
        for (int i = 0; i < 5; i++) {
            for (int resize = 0; resize < 2; resize++) {
                const fb_decoding decoding = {FB_COLOR, resize ? 70 : 0, resize ? 90 : 0};
                CHECK(decode(files[i], sizes[i], decoding, &region) == 0, "%s", error.text);
                CHECK(decode(files[i], sizes[i], decoding, NULL) == 0, "%s", error.text);
                CHECK(decode(files[i], sizes[i] / 2, decoding, NULL) == -1, "half of an image was decoded");
            }
            CHECK(codec->begin(decoder, files[i], sizes[i], &(fb_decoding){FB_COLOR, 0, 0}, shape, &error) == 0, "%s",
                  error.text);
            CHECK(codec->finish_resized(decoder, &region, 80, 70, &view, &error) == 0, "%s", error.text);
        }
        CHECK(round < 2 || allocations == before, "%ld allocations in round %d", allocations - before, round);
        CHECK(round > 0 || allocations > before, "allocations are not counted");
    }
}
#endif

static void nothing_is_decoded_when_nobody_waits(void) {
    int32_t stop = 0;
    codec->close(decoder);
    decoder = codec->open(&stop);
    for (int kind = 0; kind < 3; kind++) {
        const size_t size = kind == 2 ? png(40, 50) : jpeg(40, 50, 3, samplings[2], kind == 1 ? PROGRESSIVE : 0);
        stop = 0;
        CHECK(decode(file, size, (fb_decoding){FB_COLOR, 0, 0}, NULL) == 0, "%s", error.text);
        stop = 1;
        CHECK(decode(file, size, (fb_decoding){FB_COLOR, 0, 0}, NULL) == -1,
              "an image was decoded that nobody waits for");
        CHECK(strstr(error.text, "nobody waits"), "%s", error.text);
        /* Nor are all scans read first, at the end of which the missing data would be noticed. */
        CHECK(decode(file, size - 20, (fb_decoding){FB_COLOR, 0, 0}, NULL) == -1 && strstr(error.text, "nobody waits"),
              "%s", error.text);
    }
    codec->close(decoder);
    decoder = codec->open(NULL);
}

static void nothing_is_resized_when_nobody_waits(void) {
    int32_t stop = 0;
    fb_arena memory = {.stop = &stop};
    const fb_size from = {20, 20}, to = {30, 30};
    const fb_region whole = {0, 0, 30, 30};
    const fb_rows rows = {pixels, 60, 0, 0, 3, 1};
    fb_rows resized;
    CHECK(fb_resize(&rows, 3, from, to, &whole, &memory, &resized) == 0, "not resized");
    stop = 1;
    CHECK(fb_resize(&rows, 3, from, to, &whole, &memory, &resized) == -1, "an image was resized that nobody waits for");
    fb_arena_free(&memory);
}

/* A very wide row is resized in steps. `stop` lies where one of the steps writes, so that the next one finds it set. */
static void a_wide_row_is_given_up_halfway(void) {
    enum { WIDTH = 5 << 19, TAPS = 8 * WIDTH, ROW = 2 * (WIDTH + 32), SEAM = 1 << 20 };
    unsigned char *const row = malloc(2 * WIDTH);
    for (int i = 0; i < 2 * WIDTH; i++) row[i] = (unsigned char)(1 + test_random() % 255);
    fb_arena memory = {0}, other = {0};
    const fb_size from = {1, 2 * WIDTH}, to = {1, WIDTH};
    const fb_region whole = {0, 0, 1, WIDTH};
    const fb_rows rows = {row, 2 * WIDTH, 0, 0, 1, 0};
    fb_rows resized, part;
    CHECK(fb_resize(&rows, 1, from, to, &whole, &memory, &resized) == 0, "not resized");
    CHECK(fb_resize(&rows, 1, from, to, &(fb_region){0, SEAM - 100, 1, 200}, &other, &part) == 0, "not resized");
    CHECK(memcmp(resized.data + SEAM - 100, part.data, 200) == 0, "a row and its part differ");
    for (int vectors = 0; vectors < 2; vectors++) {
        fb_resize_use_vectors(vectors);
        memory.stop = NULL;
        fb_arena_empty(&memory);
        CHECK(fb_resize(&rows, 1, from, to, &whole, &memory, &resized) == 0, "not resized");
        unsigned char *const out = resized.data, *const work = out - 2 * ROW - TAPS;
        unsigned char *const steps[3][2] = {{work, work + TAPS}, {out - ROW, out}, {out, out + WIDTH}};
        for (int i = 0; i < 3; i++) {
            memset(work, 0, TAPS + 2 * ROW + WIDTH);
            memory.stop = (const int32_t *)(steps[i][0] + 64);
            fb_arena_empty(&memory);
            CHECK(fb_resize(&rows, 1, from, to, &whole, &memory, &resized) == -1, "step %d went on", i);
            CHECK(*memory.stop != 0 && steps[i][1][-128] == 0, "step %d was written to its end", i);
        }
    }
    fb_arena_free(&memory);
    fb_arena_free(&other);
    free(row);
}

/* Copies `count` bytes, of which each `step`-th is taken, to memory of exactly this size. */
static unsigned char *exact_copy(const unsigned char *from, int64_t count, int64_t step) {
    unsigned char *made = malloc((size_t)count);
    for (int64_t i = 0; i < count; i++) made[i] = from[i * step];
    return made;
}

/* Planes give the bits of interleaved channels, with vectors and without, and nothing beside them is read. */
static void planes_are_resized_as_interleaved_channels_are(void) {
    fb_arena memory = {0}, other = {0};
    for (int i = 0; i < 4000; i++) {
        const fb_size from = {test_between(1, 40), test_between(1, i % 4 ? 40 : 400)};
        const fb_size to = {test_between(1, 60), test_between(1, i % 3 ? 40 : 140)};
        fb_region region = {.top = test_between(0, to.height - 1), .left = test_between(0, to.width - 1)};
        region.height = test_between(1, to.height - region.top);
        region.width = test_between(1, to.width - region.left);
        const fb_region needed = fb_resize_needs(from, to, &region);
        const int64_t stride = needed.width + test_between(0, 3), top = needed.top, left = needed.left;
        const int64_t size = stride * (needed.height - 1) + needed.width;
        const unsigned char *first = pixels + test_between(0, 999);
        unsigned char *planes[3], *together = malloc((size_t)(3 * size));
        for (int c = 0; c < 3; c++) planes[c] = exact_copy(first + c, size, 3);
        for (int64_t at = 0; at < 3 * size; at++) together[at] = planes[at / size][at % size];
        fb_rows expected, found;
        fb_arena_empty(&memory);
        const fb_rows interleaved = {(unsigned char *)first, 3 * stride, top, left, 3, 1};
        CHECK(fb_resize(&interleaved, 3, from, to, &region, &memory, &expected) == 0, "not resized");
        for (int kind = 0; kind < 6; kind++) { /* one of the planes alone, then all of them, with vectors and without */
            const int c = kind / 2, channels = c < 2 ? 1 : 3;
            const fb_rows rows = {c < 2 ? planes[c] : together, stride, top, left, 1, c < 2 ? 0 : size};
            fb_resize_use_vectors(kind % 2);
            fb_arena_empty(&other);
            CHECK(fb_resize(&rows, channels, from, to, &region, &other, &found) == 0, "not resized");
            for (int64_t at = 0; at < region.height * region.width * channels; at++) {
                const int64_t x = at / channels % region.width, y = at / channels / region.width, d = at % channels;
                CHECK(found.data[d * found.channel + y * found.stride + x * found.pixel] ==
                          expected.data[y * expected.stride + 3 * x + (channels == 1 ? c : d)],
                      "case %d, kind %d: channel %d of pixel (%d, %d)", i, kind, (int)d, (int)y, (int)x);
            }
        }
        for (int c = 0; c < 3; c++) free(planes[c]);
        free(together);
    }
    fb_arena_free(&memory);
    fb_arena_free(&other);
}

int main(void) {
    codec = fb_image_codec();
    decoder = codec->open(NULL);
    CHECK(decoder && codec->abi == FB_CODEC_ABI, "no decoder");
    make_pixels();
#ifdef COUNT_ALLOCATIONS
    nothing_is_allocated_in_steady_state();
#endif
    regions_are_parts_of_the_whole();
    one_image_does_not_lend_its_tables_to_the_next();
    the_decoder_lives_on_after_errors();
    nothing_is_decoded_when_nobody_waits();
    nothing_is_resized_when_nobody_waits();
    a_wide_row_is_given_up_halfway();
    planes_are_resized_as_interleaved_channels_are();
    regions_outside_are_refused();
    every_orientation_turns_the_stored_pixels();
    a_region_is_resized_alone();
    memory_goes_back_after_a_large_image();
    a_decoder_is_lent();
    codec->close(decoder);
    return 0;
}
