/* Reads Caffe's Datum (caffe.proto) where it lies: nothing is copied unless float_data is in pieces.
 *
 * Wire format: Protocol Buffers, https://protobuf.dev/programming-guides/encoding/. Fields: 1 channels, 2 height, 3
 * width (int32), 4 data (bytes), 5 label (int32), 6 float_data (repeated float, packed or not), 7 encoded (bool). Any
 * order, the last scalar wins, unknown fields are skipped. Both functions are safe from any thread.
 */
#ifndef FASTBATCH_DATUM_H
#define FASTBATCH_DATUM_H

#include "fastbatch.h"

typedef struct fb_datum {
    int32_t channels, height, width;
    int32_t label; /* 0 if there is none, as in Caffe */
    int has_label;
    int encoded;
    const void *data; /* the bytes field: CHW, uint8 */
    size_t data_size;
    const void *floats; /* float_data: little-endian float32, `float_stride` bytes apart, unaligned */
    size_t float_count;
    int64_t float_stride; /* 5 in an unpacked record (each value behind its tag), 4 in a packed one */
} fb_datum;

/* Takes the record apart. What *datum points at lies in `bytes`, or in `scratch` if float_data had to be gathered
 * (never more than the record's own size); it is valid as long as both are. -1 with *error if the record is not a
 * Datum. Bytes behind a whole image and its label that are no field are ignored, as in Caffe. */
int fb_datum_parse(const void *bytes, size_t size, fb_scratch *scratch, fb_datum *datum, fb_error *error);

/* The record's image as (channels, height, width), uint8 or float32, or as the bytes of an encoded one (FB_ENCODED); -1
 * with *error if it has none. `data` wins over
 * float_data when both are there, and bytes beyond the image are ignored: Caffe's rules. */
int fb_datum_image(const fb_datum *datum, fb_view *image, fb_error *error);

#endif
