/* Random bytes for datum.c: a target of libFuzzer, which tools/fuzz runs.
 *
 * With -DSTANDALONE any compiler will do. The program then mutates a few valid records itself, argv[1] times. With a
 * second argument, it writes argv[1] valid records into that folder instead, as seeds.
 */
#include "files/datum.h"

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* Whatever the bytes are: no read outside of them, no more memory than they deserve, and an answer that holds
 * together. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static fb_scratch scratch;
    static volatile unsigned char sink;
    fb_error error = {0};
    fb_datum datum;
    fb_view image;
    uint8_t *exact = malloc(size ? size : 1); /* of exactly this size, for the address sanitizer */
    if (size) memcpy(exact, bytes, size);

    if (fb_datum_parse(exact, size, &scratch, &datum, &error) != 0) {
        CHECK(error.text[0], "an error without a reason");
    } else {
        CHECK(datum.float_count <= size / sizeof(float), "%zu floats in %zu bytes", datum.float_count, size);
        CHECK(scratch.size <= 65536 + 64, "%zu bytes of scratch memory", scratch.size);
        for (size_t i = 0; i < datum.float_count; i++) {
            const unsigned char *value = (const unsigned char *)datum.floats + (int64_t)i * datum.float_stride;
            for (size_t b = 0; b < sizeof(float); b++) sink = value[b];
        }
        if (fb_datum_image(&datum, &image, &error) != 0) {
            CHECK(error.text[0], "an error without a reason");
        } else if (image.dtype == FB_ENCODED) {
            CHECK(image.ndim == 1 && image.shape[0] > 0 && (size_t)image.shape[0] <= size, "%lld bytes",
                  (long long)image.shape[0]);
            sink = ((const unsigned char *)image.data)[image.shape[0] - 1];
        } else {
            const int64_t count = image.shape[0] * image.shape[1] * image.shape[2];
            CHECK(count > 0 && image.ndim == 3, "%lld pixels", (long long)count);
            CHECK(image.strides[0] == image.shape[1] * image.strides[1], "stride from channel to channel");
            CHECK(image.strides[1] == image.shape[2] * image.strides[2], "stride from row to row");
            const unsigned char *pixels = image.data;
            sink = pixels[0];
            sink = pixels[(count - 1) * image.strides[2] + (int64_t)fb_dtype_size(image.dtype) - 1];
        }
    }
    (void)sink;
    free(exact);
    return 0;
}

#ifdef STANDALONE
static void good_record(wire *out) {
    unsigned char pixels[64];
    float values[16];
    for (size_t i = 0; i < sizeof pixels; i++) pixels[i] = (unsigned char)test_random();
    for (size_t i = 0; i < 16; i++) values[i] = (float)i;
    out->size = 0;
    put_int(out, 1, test_between(1, 3));
    put_int(out, 2, test_between(1, 5));
    put_int(out, 3, test_between(1, 5));
    for (int fields = (int)test_between(1, 5); fields > 0; fields--) {
        switch (test_random() % 6) {
            case 0: put_block(out, 4, pixels, (size_t)test_between(0, sizeof pixels)); break;
            case 1: put_block(out, 6, values, 4 * (size_t)test_between(0, 16)); break;
            case 2:
                for (int i = (int)test_between(1, 30); i > 0; i--) put_float(out, 6, values[i % 16]);
                break;
            case 3: put_int(out, 5, (int32_t)test_random()); break;
            case 4:
                put_tag(out, 9, 3);
                put_fixed64(out, 10, 1);
                put_tag(out, 9, 4);
                break;
            case 5: put_int(out, 7, test_random() % 2); break;
        }
    }
}

static void mutate(wire *record) {
    for (int times = (int)test_between(0, 4); times > 0 && record->size > 0; times--) {
        const size_t at = test_random() % record->size;
        switch (test_random() % 5) {
            case 0: record->bytes[at] = (unsigned char)test_random(); break;
            case 1: record->bytes[at] ^= (unsigned char)(1u << test_random() % 8); break;
            case 2: record->size = at; break;
            case 3: record->bytes[at] |= 0x80; break; /* a varint that goes on */
            case 4:                                   /* a piece moves */
                memmove(record->bytes + at / 2, record->bytes + at, record->size - at);
                record->size -= at - at / 2;
                break;
        }
    }
}

int main(int argc, char **argv) {
    static wire record;
    const long times = argc > 1 ? atol(argv[1]) : 100000;
    for (long i = 0; i < times; i++) {
        good_record(&record);
        if (argc > 2) {
            write_seed(argv[2], i, record.bytes, record.size);
        } else {
            mutate(&record);
            LLVMFuzzerTestOneInput(record.bytes, record.size);
        }
    }
    return 0;
}
#endif
