/* Random bytes for fastbatch's own JPEG decoder, without and with an index, compared with libjpeg: a target of
 * libFuzzer, which tools/fuzz runs.
 *
 * With -DSTANDALONE and tests/native/encode_jpeg.c, any compiler will do. The program then makes images and damages
 * them itself, argv[1] times. With a second argument, it writes argv[1] valid images into that folder instead, as
 * seeds.
 */
#include "fastbatch_image.h"

#include "check.h"
#include "images/image.h"
#include "images/jpeg_fast.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

enum { OPTIONS = 5 }; /* bytes behind the image: what to decode */

/* What a decoder answers. */
typedef struct answer {
    int code;
    fb_error error;
    fb_view view;
} answer;

/* Ways to decode; BASE: as on processors without AVX2. Each has a decoder, so that the tables that one keeps are its
 * own. */
enum { LIBJPEG, OWN, BASE, INDEXED, WAYS };

static fb_decoder *decoders[WAYS];
static char output[1 << 14]; /* nothing is written to it */

/* The part of the image that `options` request is returned in *region. */
static answer decode(int way, fb_index *index, const uint8_t *bytes, size_t size, const uint8_t options[OPTIONS],
                     fb_region *region) {
    const fb_codec *codec = fb_image_codec();
    const fb_decoding decoding = {.color = (fb_color)(options[0] % 3 - 1)};
    answer is = {0};
    int64_t shape[3];
    if (decoders[way] == NULL) decoders[way] = codec->open(NULL);
    CHECK(decoders[way] != NULL, "no decoder");
    const int base = way == BASE || (way == INDEXED && options[0] & 64);
    const fb_jpeg_choice choice = way == LIBJPEG ? FB_JPEG_NO_KERNELS
                                  : base         ? FB_JPEG_BASE_KERNELS
                                                 : FB_JPEG_BEST_KERNELS;
    if (fb_jpeg_fast_use(choice) != 0) exit(0); /* a processor that cannot run it */
    is.code = codec->begin(decoders[way], bytes, size, &decoding, shape, &is.error);
    if (is.code != 0) return is;
    if (index) codec->use_index(decoders[way], index, 0);
    if (options[1] % 2) codec->expect_output(decoders[way], output, options[2] % 4 * 5000 + options[3]);
    if (shape[1] * shape[2] > 1 << 16 && options[4] % 64) return is; /* few: they would take nearly all of the time */
    *region = (fb_region){.height = shape[1], .width = shape[2]};
    if (options[0] & 128) {
        region->top = options[1] * shape[1] / 256;
        region->left = options[2] * shape[2] / 256;
        region->height = 1 + options[3] * (shape[1] - region->top) / 256;
        region->width = 1 + options[4] * (shape[2] - region->left) / 256;
    }
    is.code = codec->finish(decoders[way], region, &is.view, &is.error);
    return is;
}

/* The same pixels, or the same sentence. */
static void compare(const answer *own, const answer *libjpeg, const fb_region *region, const char *how) {
    CHECK(own->code == libjpeg->code && strcmp(own->error.text, libjpeg->error.text) == 0, "%s: %d %s; libjpeg: %d %s",
          how, own->code, own->error.text, libjpeg->code, libjpeg->error.text);
    for (int64_t y = 0; y < own->view.shape[1]; y++) {
        const char *ours = (const char *)own->view.data + y * own->view.strides[1];
        const char *theirs = (const char *)libjpeg->view.data + y * libjpeg->view.strides[1];
        for (int64_t x = 0; x < own->view.shape[2]; x++) {
            for (int64_t c = 0; c < own->view.shape[0]; c++) {
                CHECK(ours[x * own->view.strides[2] + c * own->view.strides[0]] ==
                          theirs[x * libjpeg->view.strides[2] + c * libjpeg->view.strides[0]],
                      "%s: channel %d of pixel (%d, %d) of %d x %d at (%d, %d)", how, (int)c, (int)y, (int)x,
                      (int)region->height, (int)region->width, (int)region->top, (int)region->left);
            }
        }
    }
}

/* Decodes parts of the image by one index, which learns rows from some of them, and then the part that `options` request. */
static void use_index(const uint8_t *bytes, size_t size, const uint8_t options[OPTIONS]) {
    /* Of one image: there is room for all places, for one in each row, or for none. */
    const uint64_t limit = options[2] % 8 == 0 ? 0 : options[2] % 8 == 1 ? 1500 : 1 << 20;
    fb_index *index = fb_image_codec()->index_new(1, limit);
    CHECK(index != NULL, "no index");
    uint32_t random = (uint32_t)options[1] << 16 | (uint32_t)options[3] << 8 | options[4];
    for (int part = options[2] / 8 % 6; part >= 0; part--) {
        uint8_t here[OPTIONS] = {options[0], options[1], options[2], options[3], options[4]};
        if (part > 0) {
            here[0] |= 128;
            for (int i = 1; i < OPTIONS; i++) here[i] = (uint8_t)((random = random * 1664525 + 1013904223) >> 24);
            here[3] /= 4; /* rows: few of those below */
        }
        fb_region region = {0};
        const answer libjpeg = decode(LIBJPEG, NULL, bytes, size, here, &region);
        for (int times = 0; times < 2; times++) { /* the second time, it may know more rows */
            const answer indexed = decode(INDEXED, index, bytes, size, here, &region);
            compare(&indexed, &libjpeg, &region, times ? "index, again" : "index");
        }
    }
    fb_image_codec()->index_delete(index);
}

/* Whatever the bytes are. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    fb_region region = {0};
    if (size < OPTIONS) return 0;
    const uint8_t *options = bytes + size - OPTIONS;
    fb_jpeg_index_always(1);
    uint8_t *exact = malloc(size); /* of exactly the image's size, for the address sanitizer */
    size -= OPTIONS;
    memcpy(exact, bytes, size);
    exact = realloc(exact, size ? size : 1);
    const answer libjpeg = decode(LIBJPEG, NULL, exact, size, options, &region);
    const answer own = decode(OWN, NULL, exact, size, options, &region);
    compare(&own, &libjpeg, &region, "own");
    const answer base = decode(BASE, NULL, exact, size, options, &region);
    compare(&base, &libjpeg, &region, "base");
    use_index(exact, size, options);
    free(exact);
    return 0;
}

#ifdef STANDALONE
#include "encode_jpeg.h"

enum { CAPACITY = 1 << 18, SIDE = 80, WIDTH = 200, SEED_SIDE = 24 };

static unsigned char file[CAPACITY];

static long good_jpeg(int side) {
    static const int samplings[][8] = {{2, 2, 1, 1, 1, 1}, {2, 2, 1, 1, 1, 1}, {2, 1, 1, 1, 1, 1},
                                       {1, 1, 1, 1, 1, 1}, {1, 2, 1, 1, 1, 1}, {4, 1, 1, 1, 1, 1}};
    static unsigned char pixels[SIDE * WIDTH * 3];
    const int kind = (int)(test_random() % 4), gray = test_random() % 8 == 0;
    for (size_t i = 0; i < sizeof pixels; i++) { /* smooth, noisy, with edges, and black and white */
        const uint32_t noise = test_random();
        const size_t edges = i / 37 % 2 * 200 + noise % 9;
        pixels[i] = (unsigned char)(kind == 0 ? i / 40 : kind == 1 ? noise : kind == 2 ? edges : noise % 2 * 255);
    }
    const int quality = (int)test_between(1, 100), flags = test_random() % 4 ? 0 : OPTIMIZED;
    const int restart = test_random() % 4 ? 0 : (int)test_between(1, 20),
              width = (int)test_between(1, test_random() % 4 ? side : WIDTH * side / SIDE);
    return encode_jpeg(pixels, width, (int)test_between(1, side), gray ? 1 : 3, gray ? SPACE_GRAY : SPACE_YCC,
                       samplings[gray ? 3 : test_random() % 6], quality, test_random() % 32 ? flags : PROGRESSIVE,
                       restart, file, CAPACITY / 2);
}

/* Where the data of the scan begin, or the header. */
static long scan_of(long size) {
    for (long i = 2; i + 4 < size; i++) {
        if (file[i] == 0xff && file[i + 1] == 0xda && test_random() % 8) return i + 2 + file[i + 3];
    }
    return 2;
}

static long damaged(long size) {
    for (int times = (int)test_between(0, 3); times > 0 && size > 8; times--) {
        const long begin = scan_of(size), at = test_between(begin < size ? begin : 0, size - 1);
        switch (test_random() % 9) {
            case 8: /* a restart marker's number, or one is missing */
                for (long i = at; i + 2 < size; i++) {
                    if (file[i] != 0xff || file[i + 1] < 0xd0 || file[i + 1] > 0xd7) continue;
                    if (test_random() % 2) {
                        file[i + 1] = (unsigned char)(0xd0 + test_random() % 8);
                    } else {
                        memmove(file + i, file + i + 2, (size_t)(size - i - 2));
                        size -= 2;
                    }
                    break;
                }
                break;
            case 0:
            case 1: file[at] ^= (unsigned char)(1u << test_random() % 8); break;
            case 2: file[at] = (unsigned char)test_random(); break;
            case 3: file[at] = test_random() % 2 ? 0xff : 0; break;
            case 4: /* the file is cut, or data are missing before its end */
                memmove(file + at, file + size - 2, 2);
                size = at + 2 <= size ? at + 2 : size;
                if (test_random() % 2) size -= 2;
                break;
            case 5: /* a piece is repeated */
                if (2 * size > CAPACITY / 2) break;
                memmove(file + at + (size - at) / 2, file + at, (size_t)(size - at));
                size += (size - at) / 2;
                break;
            case 6: /* a marker */
                if (at + 1 < size) file[at] = 0xff, file[at + 1] = (unsigned char)(0xc0 + test_random() % 64);
                break;
            case 7: /* a run of one byte, as padding is */
                memset(file + at, test_random() % 2 ? (int)(test_random() % 256) : 0, (size_t)(size - at) / 2);
                break;
        }
    }
    return size;
}

int main(int argc, char **argv) {
    const long times = argc > 1 ? atol(argv[1]) : 10000;
    if (argc > 3) test_random_state += strtoull(argv[3], NULL, 10);
    for (long i = 0; i < times; i++) {
        long size = good_jpeg(argc > 2 && *argv[2] ? SEED_SIDE : SIDE);
        CHECK(size > 0, "size %ld", size);
        if (argc < 3 || !*argv[2]) size = damaged(size);
        for (int option = 0; option < OPTIONS; option++) file[size++] = (unsigned char)test_random();
        if (argc > 2 && *argv[2]) write_seed(argv[2], i, file, (size_t)size);
        else LLVMFuzzerTestOneInput(file, (size_t)size);
    }
    if (argc < 3 || !*argv[2]) {
        const fb_codec *codec = fb_image_codec();
        printf("%llu of %ld images by the own decoder, %llu by an index\n",
               (unsigned long long)codec->count(decoders[OWN], FB_BY_OWN_DECODER), times,
               (unsigned long long)codec->count(decoders[INDEXED], FB_BY_INDEX));
    }
    return 0;
}
#endif
