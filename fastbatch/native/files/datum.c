#include "datum.h"

#include <limits.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "float_data is read in place, as little-endian floats"
#endif

enum { VARINT = 0, FIXED64 = 1, BYTES = 2, GROUP = 3, END_GROUP = 4, FIXED32 = 5 }; /* wire types */
enum { CHANNELS = 1, HEIGHT = 2, WIDTH = 3, DATA = 4, LABEL = 5, FLOAT_DATA = 6, ENCODED = 7 };
enum { MAX_DEPTH = 100 }; /* of groups inside groups: protobuf's own limit */
enum { FLOAT_TAG = FLOAT_DATA << 3 | FIXED32 };

typedef struct reader {
    const unsigned char *at, *end;
} reader;

/* One piece of float_data: a packed field, or a run of unpacked values without other fields between them. */
typedef struct float_run {
    const unsigned char *first;
    size_t count;
    int64_t stride;
} float_run;

static size_t bytes_left(const reader *in) {
    return (size_t)(in->end - in->at);
}

/* Reads a varint of at most 10 bytes. Bits beyond the 64th are dropped, as in protobuf. */
static int read_varint(reader *in, uint64_t *value) {
    uint64_t result = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (in->at == in->end) return -1;
        const unsigned char byte = *in->at++;
        result |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = result;
            return 0;
        }
    }
    return -1;
}

static int read_tag(reader *in, uint32_t *field, int *wire_type) {
    uint64_t tag;
    if (read_varint(in, &tag) != 0 || tag > UINT32_MAX || tag >> 3 == 0) return -1;
    *field = (uint32_t)(tag >> 3);
    *wire_type = (int)(tag & 7);
    return 0;
}

static int skip_bytes(reader *in, uint64_t count) {
    if (count > bytes_left(in)) return -1;
    in->at += count;
    return 0;
}

/* Skips one value of an unknown field, including whole groups. */
static int skip_value(reader *in, uint32_t field, int wire_type) {
    uint32_t open[MAX_DEPTH]; /* the enclosing groups */
    int depth = 0;
    for (;;) {
        uint64_t value;
        switch (wire_type) {
            case VARINT:
                if (read_varint(in, &value) != 0) return -1;
                break;
            case FIXED64:
                if (skip_bytes(in, 8) != 0) return -1;
                break;
            case FIXED32:
                if (skip_bytes(in, 4) != 0) return -1;
                break;
            case BYTES:
                if (read_varint(in, &value) != 0 || skip_bytes(in, value) != 0) return -1;
                break;
            case GROUP:
                if (depth == MAX_DEPTH) return -1;
                open[depth++] = field;
                break;
            case END_GROUP:
                if (depth == 0 || open[--depth] != field) return -1;
                break;
            default: return -1;
        }
        if (depth == 0) return 0;
        if (read_tag(in, &field, &wire_type) != 0) return -1;
    }
}

/* Reads the run of float_data whose first tag was just read. Returns 0 with *run filled in, or -1. */
static int read_float_run(reader *in, int wire_type, float_run *run) {
    if (wire_type == BYTES) {
        uint64_t size;
        if (read_varint(in, &size) != 0 || size > bytes_left(in) || size % sizeof(float) != 0) return -1;
        *run = (float_run){in->at, size / sizeof(float), sizeof(float)};
        in->at += size;
        return 0;
    }
    if (bytes_left(in) < sizeof(float)) return -1;
    *run = (float_run){in->at, 1, 1 + sizeof(float)};
    in->at += sizeof(float);
    while (bytes_left(in) >= 1 + sizeof(float) && *in->at == FLOAT_TAG) {
        in->at += 1 + sizeof(float);
        run->count++;
    }
    return 0;
}

static int malformed(const reader *in, const unsigned char *begin, size_t size, fb_error *error) {
    return fb_fail(error,
                   "the record is not a Datum, or it is truncated or corrupt: it has %zu bytes and stops making sense "
                   "at byte %zu; write the database again with convert_imageset or caffe.io.array_to_datum",
                   size, (size_t)(in->at - begin));
}

/* Returns whether the datum is complete: it has a label, and exactly the values that the shape needs. Trailing bytes
 * that are not a field are then garbage. Caffe does not check whether protobuf could parse the record, and uses such an
 * image. */
static int is_whole(const fb_datum *datum) {
    if (!datum->has_label) return 0;
    if (datum->encoded) return datum->data_size > 0;
    const size_t present = datum->data_size > 0 ? datum->data_size : datum->float_count;
    int64_t area, count;
    if (datum->channels <= 0 || datum->height <= 0 || datum->width <= 0) return 0;
    if (__builtin_mul_overflow((int64_t)datum->height, datum->width, &area)) return 0;
    return !__builtin_mul_overflow(area, datum->channels, &count) && (size_t)count == present;
}

/* Parses the record. If `gathered` is NULL, float_data is only counted: *runs is set to its number of pieces, and the
 * datum points at the last one. Otherwise every value is copied to `gathered`. */
static int scan(const unsigned char *begin, size_t size, fb_datum *datum, size_t *runs, float *gathered,
                fb_error *error) {
    reader in = {begin, begin + size};
    *datum = (fb_datum){0};
    *runs = 0;
    while (in.at < in.end) {
        uint32_t field = UINT32_MAX;
        int wire_type;
        const unsigned char *const tag = in.at;
        int bad = read_tag(&in, &field, &wire_type);
        uint64_t value = 0;
        if (!bad && field == FLOAT_DATA && (wire_type == FIXED32 || wire_type == BYTES)) {
            float_run run;
            bad = read_float_run(&in, wire_type, &run);
            if (!bad && run.count > 0) {
                if (gathered) {
                    for (size_t i = 0; i < run.count; i++) {
                        memcpy(gathered + datum->float_count + i, run.first + (int64_t)i * run.stride, sizeof(float));
                    }
                }
                datum->floats = run.first;
                datum->float_stride = run.stride;
                datum->float_count += run.count;
                ++*runs;
            }
        } else if (!bad && field == DATA && wire_type == BYTES) {
            bad = read_varint(&in, &value) != 0 || value > bytes_left(&in);
            if (!bad) {
                datum->data = in.at;
                datum->data_size = (size_t)value;
                in.at += value;
            }
        } else if (!bad && wire_type == VARINT && (field <= WIDTH || field == LABEL || field == ENCODED)) {
            bad = read_varint(&in, &value);
            switch (field) { /* an int32 is the low half of its varint */
                case CHANNELS: datum->channels = (int32_t)(uint32_t)value; break;
                case HEIGHT: datum->height = (int32_t)(uint32_t)value; break;
                case WIDTH: datum->width = (int32_t)(uint32_t)value; break;
                case LABEL:
                    datum->label = (int32_t)(uint32_t)value;
                    datum->has_label = 1;
                    break;
                case ENCODED: datum->encoded = value != 0; break;
            }
        } else if (!bad) { /* an unknown field, or a known one of another wire type, which protobuf treats as unknown */
            bad = skip_value(&in, field, wire_type);
        }
        if (bad) {
            if (field > ENCODED && is_whole(datum)) break;
            in.at = tag;
            return malformed(&in, begin, size, error);
        }
    }
    return 0;
}

int fb_datum_parse(const void *bytes, size_t size, fb_scratch *scratch, fb_datum *datum, fb_error *error) {
    size_t runs;
    if (size == 0) return fb_fail(error, "the record is not a Datum: it is empty");
    if (scan(bytes, size, datum, &runs, NULL, error) != 0) return -1;
    if (runs > 1) { /* each value takes at least 4 bytes of the record, so the record's size bounds this memory */
        float *gathered = fb_scratch_reserve(scratch, datum->float_count * sizeof(float));
        if (gathered == NULL) {
            return fb_fail(error, "out of memory: %zu bytes for float_data", datum->float_count * sizeof(float));
        }
        if (scan(bytes, size, datum, &runs, gathered, error) != 0) return -1;
        datum->floats = gathered;
        datum->float_stride = sizeof(float);
    }
    return 0;
}

int fb_datum_image(const fb_datum *datum, fb_view *image, fb_error *error) {
    if (datum->encoded) { /* the image itself has its size; like Caffe, this ignores the Datum's */
        if (datum->data_size == 0)
            return fb_fail(error, "the Datum holds an encoded image of no bytes: write it again");
        *image = (fb_view){
            .data = datum->data,
            .dtype = FB_ENCODED,
            .ndim = 1,
            .shape = {(int64_t)datum->data_size},
            .strides = {1},
        };
        return 0;
    }
    const long long channels = datum->channels, height = datum->height, width = datum->width;
    if (channels <= 0 || height <= 0 || width <= 0) {
        return fb_fail(error,
                       "the Datum has no pixels: its shape is %lld x %lld x %lld (channels, height, width; "
                       "Check failed: datum_%s > 0); it was written without them, or it is not a Datum",
                       channels, height, width,
                       channels <= 0 ? "channels"
                       : height <= 0 ? "height"
                                     : "width");
    }
    int64_t area, count;
    if (__builtin_mul_overflow(height, width, &area) || __builtin_mul_overflow(area, channels, &count) ||
        count > INT_MAX) {
        return fb_fail(error,
                       "the Datum says that it is %lld x %lld x %lld (channels, height, width), more than any "
                       "Blob can hold (blob size exceeds INT_MAX): the record is corrupt",
                       channels, height, width);
    }
    const int bytes = datum->data_size > 0;
    const size_t present = bytes ? datum->data_size : datum->float_count;
    if (present < (size_t)count) {
        return fb_fail(error,
                       "the Datum is truncated: its shape, %lld x %lld x %lld (channels, height, width), needs "
                       "%lld values but its %s holds %zu; write it again",
                       channels, height, width, (long long)count, bytes || present == 0 ? "data" : "float_data",
                       present);
    }
    const int64_t step = bytes ? 1 : datum->float_stride;
    *image = (fb_view){
        .data = bytes ? datum->data : datum->floats,
        .dtype = bytes ? FB_UINT8 : FB_FLOAT32,
        .ndim = 3,
        .shape = {channels, height, width},
        .strides = {area * step, width * step, step},
    };
    return 0;
}
