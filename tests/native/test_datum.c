/* datum.c: what Caffe writes, what protobuf allows, and what neither allows. */
#include "files/datum.h"

#include "wire.h"

enum { CHANNELS = 1, HEIGHT = 2, WIDTH = 3, DATA = 4, LABEL = 5, FLOAT_DATA = 6, ENCODED = 7 };
enum { START_GROUP = 3, END_GROUP = 4 };

static wire record;
static fb_scratch scratch;
static fb_datum datum;
static fb_error error;
/* The record in memory of exactly its size: reading past it is found by the address sanitizer. */
static unsigned char *exact;

static int parse(void) {
    free(exact);
    exact = malloc(record.size ? record.size : 1);
    memcpy(exact, record.bytes, record.size);
    memset(&error, 0, sizeof error);
    return fb_datum_parse(exact, record.size, &scratch, &datum, &error);
}

static void begin(int channels, int height, int width) {
    record.size = 0;
    put_int(&record, CHANNELS, channels);
    put_int(&record, HEIGHT, height);
    put_int(&record, WIDTH, width);
}

static void parsed(void) {
    CHECK(parse() == 0, "%s", error.text);
}

static void not_a_datum(const char *what) {
    CHECK(parse() == -1 && strstr(error.text, "not a Datum"), "%s: \"%s\"", what, error.text);
    CHECK(!error.fatal, "%s: one bad record is not the end of its source", what);
}

static void no_image(const char *words) {
    fb_view image;
    parsed();
    CHECK(fb_datum_image(&datum, &image, &error) == -1, "no error with \"%s\"", words);
    CHECK(strstr(error.text, words), "\"%s\" has no \"%s\"", error.text, words);
}

static float float_at(const fb_view *image, int64_t index) {
    float value;
    memcpy(&value, (const char *)image->data + index * image->strides[2], sizeof value);
    return value;
}

static void bytes_are_shown_in_place(void) {
    unsigned char pixels[24];
    for (int i = 0; i < 24; i++) pixels[i] = (unsigned char)(i * 10);
    begin(2, 3, 4);
    put_block(&record, DATA, pixels, sizeof pixels);
    put_int(&record, LABEL, -7);
    parsed();
    CHECK(datum.label == -7 && datum.has_label && !datum.encoded, "label %d", datum.label);
    fb_view image;
    CHECK(fb_datum_image(&datum, &image, &error) == 0, "%s", error.text);
    CHECK(image.dtype == FB_UINT8 && image.ndim == 3, "dtype %d, ndim %d", image.dtype, image.ndim);
    CHECK(image.shape[0] == 2 && image.shape[1] == 3 && image.shape[2] == 4, "shape");
    CHECK(image.strides[0] == 12 && image.strides[1] == 4 && image.strides[2] == 1, "strides");
    const unsigned char *first = image.data;
    CHECK(first > exact && first < exact + record.size, "not in place");
    CHECK(memcmp(image.data, pixels, sizeof pixels) == 0, "pixels");
    CHECK(scratch.size == 0, "scratch memory was taken for a record that needs none");
}

/* 12 floats as unpacked, packed, or any mixture: bit i of `packed` tells how the i-th pair of values is written. */
static void floats_are_found(unsigned packed, int unknown_between, int64_t stride) {
    float values[12];
    for (int i = 0; i < 12; i++) values[i] = (float)i / 3 - 2;
    begin(1, 3, 4);
    for (int pair = 0; pair < 6; pair++) {
        if (unknown_between) put_int(&record, 99, pair);
        if (packed == 0x3f) {
            put_block(&record, FLOAT_DATA, values, sizeof values);
            break;
        }
        if (packed >> pair & 1) {
            put_block(&record, FLOAT_DATA, values + 2 * pair, 2 * sizeof *values);
        } else {
            put_float(&record, FLOAT_DATA, values[2 * pair]);
            put_float(&record, FLOAT_DATA, values[2 * pair + 1]);
        }
    }
    put_int(&record, LABEL, 3);
    parsed();
    CHECK(datum.float_count == 12 && datum.label == 3, "%zu floats", datum.float_count);
    fb_view image;
    CHECK(fb_datum_image(&datum, &image, &error) == 0, "%s", error.text);
    CHECK(image.dtype == FB_FLOAT32 && image.shape[1] == 3 && image.shape[2] == 4, "dtype or shape");
    CHECK(image.strides[2] == stride && image.strides[1] == 4 * stride && image.strides[0] == 12 * stride, "strides");
    for (int i = 0; i < 12; i++) {
        CHECK(float_at(&image, i) == values[i], "value %d is %g", i, (double)float_at(&image, i));
    }
}

static void protobufs_rules_hold(void) {
    const unsigned char first[2] = {1, 2}, last[2] = {3, 4};
    const float value = 0.5f;
    fb_view image;

    record.size = 0; /* any order, the last scalar wins, unknown fields of every type are passed over */
    put_block(&record, DATA, first, 2);
    put_int(&record, LABEL, 1);
    put_int(&record, 1000, 5);
    put_block(&record, 1001, "unknown", 7);
    put_float(&record, 1002, value);
    put_fixed64(&record, 1003, 12345);
    put_tag(&record, 1004, START_GROUP);
    put_int(&record, CHANNELS, 77); /* inside a group it is another field */
    put_tag(&record, 8, START_GROUP);
    put_float(&record, FLOAT_DATA, value);
    put_tag(&record, 8, END_GROUP);
    put_tag(&record, 1004, END_GROUP);
    put_int(&record, WIDTH, 2);
    put_int(&record, HEIGHT, 9);
    put_int(&record, HEIGHT, 1);
    put_int(&record, CHANNELS, 1);
    put_block(&record, DATA, last, 2);
    put_int(&record, LABEL, 2);
    parsed();
    CHECK(datum.label == 2 && datum.float_count == 0, "label %d, %zu floats", datum.label, datum.float_count);
    CHECK(fb_datum_image(&datum, &image, &error) == 0 && memcmp(image.data, last, 2) == 0, "%s", error.text);

    begin(1, 1, 2); /* a known number with another type is an unknown field */
    put_block(&record, CHANNELS, "x", 1);
    put_int(&record, DATA, 5);
    put_float(&record, LABEL, value);
    put_fixed64(&record, FLOAT_DATA, 1);
    put_int(&record, FLOAT_DATA, 1);
    put_block(&record, DATA, last, 2);
    parsed();
    CHECK(datum.channels == 1 && !datum.has_label && datum.label == 0, "another type was believed");
    CHECK(datum.float_count == 0, "another type was believed");
    CHECK(fb_datum_image(&datum, &image, &error) == 0, "%s", error.text);

    begin(1, 1, 2); /* `data` wins over float_data when it is not empty, and only then */
    put_float(&record, FLOAT_DATA, value);
    put_float(&record, FLOAT_DATA, value);
    put_block(&record, DATA, last, 2);
    parsed();
    CHECK(fb_datum_image(&datum, &image, &error) == 0 && image.dtype == FB_UINT8, "float_data won");
    put_block(&record, DATA, "", 0);
    parsed();
    CHECK(fb_datum_image(&datum, &image, &error) == 0 && image.dtype == FB_FLOAT32, "an empty data won");
    put_block(&record, FLOAT_DATA, "", 0);
    parsed();
    CHECK(datum.float_count == 2, "an empty packed field counts as %zu", datum.float_count);

    begin(1, 1, 2); /* longer than its shape: Caffe ignores the rest */
    put_block(&record, DATA, "abcdef", 6);
    parsed();
    CHECK(fb_datum_image(&datum, &image, &error) == 0 && image.shape[2] == 2, "%s", error.text);

    begin(1, 1, 2); /* an int32 is the low half of its varint; a tag may be written longer than need be */
    put_int(&record, LABEL, INT64_C(0x500000003));
    put_bytes(&record, "\xa8\x80\x00\x04", 4);
    parsed();
    CHECK(datum.label == 4, "label %d", datum.label);
    begin(1, 1, 2);
    put_int(&record, LABEL, INT64_C(0x500000003));
    parsed();
    CHECK(datum.label == 3, "label %d", datum.label);
}

static void bad_records_are_refused(void) {
    record.size = 0;
    not_a_datum("empty");
    put_bytes(&record, "\x89PNG\r\n\x1a\n", 8);
    not_a_datum("a PNG file");
    record.size = 0;
    put_bytes(&record, "\0\0\0\0", 4);
    not_a_datum("field 0");
    begin(1, 1, 2);
    put_tag(&record, LABEL, END_GROUP);
    not_a_datum("the end of a group that never began");
    begin(1, 1, 2);
    put_tag(&record, 20, START_GROUP);
    not_a_datum("a group without end");
    put_tag(&record, 21, END_GROUP);
    not_a_datum("the end of another group");
    begin(1, 1, 2);
    for (int i = 0; i < 101; i++) put_tag(&record, 20, START_GROUP);
    for (int i = 0; i < 101; i++) put_tag(&record, 20, END_GROUP);
    not_a_datum("groups nested deeper than protobuf allows");
    begin(1, 1, 2);
    put_tag(&record, 20, 6);
    not_a_datum("a wire type that does not exist");
    begin(1, 1, 2);
    put_bytes(&record, "\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 12);
    not_a_datum("a varint of 11 bytes");
    begin(1, 1, 2);
    put_tag(&record, DATA, 2);
    put_varint(&record, UINT64_MAX);
    not_a_datum("a length that no memory has");
    begin(1, 1, 2);
    put_block(&record, FLOAT_DATA, "abcdef", 6);
    not_a_datum("packed floats that end inside a value");

    begin(3, 8, 8); /* cut off anywhere but between two fields, a record is refused */
    unsigned char pixels[192] = {0};
    const size_t before_data = record.size;
    put_block(&record, DATA, pixels, sizeof pixels);
    const size_t before_label = record.size;
    put_int(&record, LABEL, 300);
    const size_t whole = record.size;
    for (size_t size = 1; size < whole; size++) {
        record.size = size;
        if (size == 2 || size == 4 || size == before_data || size == before_label) parsed();
        else not_a_datum("truncated");
    }
}

static void dirt_behind_a_whole_record_is_ignored(void) {
    static const char *const dirt[] = {"\0",       "\xff", "\x07",
                                       "\x7a\x7f", "\x7b", "\x7c"}; /* no field, or an unknown one that is cut off */
    static const char *const fields[] = {"\x08",
                                         "\x28",
                                         "\x38",
                                         "\x22\x7f",
                                         "\x35"
                                         "ab",
                                         "\x2c"};
    unsigned char pixels[24] = {0};
    for (size_t i = 0; i < sizeof dirt / sizeof *dirt; i++) {
        for (int labelled = 0; labelled < 2; labelled++) {
            for (int present = 23; present <= 24; present++) {
                begin(2, 3, 4);
                put_block(&record, DATA, pixels, (size_t)present);
                if (labelled) put_int(&record, LABEL, 7);
                const size_t whole = record.size;
                put_bytes(&record, fields[i], strlen(fields[i]));
                not_a_datum("a field that is cut off");
                record.size = whole;
                put_bytes(&record, dirt[i], dirt[i][0] ? strlen(dirt[i]) : 1);
                if (!labelled || present < 24) {
                    not_a_datum("the label, or a pixel, may be in what cannot be read");
                    continue;
                }
                parsed();
                CHECK(datum.label == 7 && datum.data_size == 24, "label %d, %zu bytes", datum.label, datum.data_size);
            }
        }
    }
    begin(0, 0, 0);
    put_block(&record, DATA, pixels, 24);
    put_int(&record, LABEL, 7);
    put_bytes(&record, "", 1);
    not_a_datum("encoded, which the dirt may say");
    record.size--;
    put_int(&record, ENCODED, 1);
    put_bytes(&record, "", 1);
    parsed();
    CHECK(datum.encoded && datum.data_size == 24, "%zu bytes", datum.data_size);
    begin(1, 1, 3);
    put_int(&record, LABEL, 7);
    for (int i = 0; i < 3; i++) {
        put_bytes(&record, "\x35", 1);
        not_a_datum("a float that is not there");
        record.size--;
        put_float(&record, FLOAT_DATA, (float)i);
    }
    put_bytes(&record, "", 1);
    parsed();
    CHECK(datum.float_count == 3, "%zu floats", datum.float_count);
}

static void records_without_an_image_are_refused(void) {
    unsigned char pixels[100] = {0};
    begin(0, 1, 2);
    no_image("0 x 1 x 2");
    begin(3, -1, 2);
    no_image("datum_height > 0");
    record.size = 0;
    put_int(&record, LABEL, 1);
    no_image("0 x 0 x 0");
    begin(3, 2000000000, 2000000000);
    put_block(&record, DATA, pixels, sizeof pixels);
    no_image("blob size exceeds INT_MAX");
    begin(INT32_MAX, INT32_MAX, INT32_MAX);
    no_image("blob size exceeds INT_MAX");
    begin(1, 10, 11);
    put_block(&record, DATA, pixels, sizeof pixels);
    no_image("needs 110 values but its data holds 100");
    begin(1, 2, 2);
    no_image("holds 0");
    for (int i = 0; i < 3; i++) put_float(&record, FLOAT_DATA, 1);
    no_image("needs 4 values but its float_data holds 3");
    begin(1, 2, 2);
    put_block(&record, DATA, "\xff\xd8\xff\xe0", 4);
    put_int(&record, ENCODED, 1);
    fb_view image;
    fb_datum datum;
    fb_error error;
    CHECK(fb_datum_parse(record.bytes, record.size, &scratch, &datum, &error) == 0, "%s", error.text);
    CHECK(fb_datum_image(&datum, &image, &error) == 0, "%s", error.text);
    CHECK(image.dtype == FB_ENCODED && image.ndim == 1 && image.shape[0] == 4 && image.data == datum.data,
          "not the bytes");
    put_block(&record, DATA, "", 0);
    no_image("an encoded image of no bytes");
}

int main(void) {
    bytes_are_shown_in_place();
    floats_are_found(0, 0, 5);    /* as Caffe writes them: each after a tag */
    floats_are_found(0x3f, 0, 4); /* one packed field */
    CHECK(scratch.size == 0, "scratch memory was taken for floats in one piece");
    floats_are_found(0, 1, 4); /* in pieces: gathered */
    for (unsigned packed = 1; packed < 0x3f; packed++) floats_are_found(packed, packed & 1, 4);
    protobufs_rules_hold();
    bad_records_are_refused();
    dirt_behind_a_whole_record_is_ignored();
    records_without_an_image_are_refused();
    free(scratch.data);
    free(exact);
    return 0;
}
