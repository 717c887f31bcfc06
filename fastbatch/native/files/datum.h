/* Parses Caffe's Datum (caffe.proto) in place: nothing is copied unless float_data is in pieces.
 *
 * Wire format: Protocol Buffers, https://protobuf.dev/programming-guides/encoding/. Fields: 1 channels, 2 height, 3
 * width (int32), 4 data (bytes), 5 label (int32), 6 float_data (repeated float, packed or not), 7 encoded (bool). Any
 * order, the last scalar wins, unknown fields are skipped. Both functions are thread-safe.
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
    int64_t float_stride; /* 5 in an unpacked record (each value follows its tag), 4 in a packed one */
} fb_datum;

/* Parses a record. *datum points into `bytes`, or into `scratch` if float_data had to be gathered (which never takes
 * more than the record's size). It is valid as long as both are. Returns 0, or -1 with *error if the record is not a
 * Datum. Bytes after a complete image and its label are ignored if they are not a field, as in Caffe. */
int fb_datum_parse(const void *bytes, size_t size, fb_scratch *scratch, fb_datum *datum, fb_error *error);

/* Points `image` at the record's image: (channels, height, width), uint8 or float32, or the bytes of an encoded image
 * (FB_ENCODED). Returns 0, or -1 with *error if there is none. As in Caffe, `data` takes precedence over float_data,
 * and surplus values are ignored. */
int fb_datum_image(const fb_datum *datum, fb_view *image, fb_error *error);

#endif
