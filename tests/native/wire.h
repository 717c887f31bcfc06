/* Writes Protocol Buffers fields, for the tests of datum.c. */
#ifndef WIRE_H
#define WIRE_H

#include "check.h"

typedef struct wire {
    unsigned char bytes[1 << 16];
    size_t size;
} wire;

static inline void put_bytes(wire *out, const void *bytes, size_t size) {
    CHECK(out->size + size <= sizeof out->bytes, "the test's record is too large");
    memcpy(out->bytes + out->size, bytes, size);
    out->size += size;
}

static inline void put_varint(wire *out, uint64_t value) {
    do {
        const unsigned char byte = (unsigned char)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        put_bytes(out, &byte, 1);
        value >>= 7;
    } while (value);
}

static inline void put_int(wire *out, uint32_t field, int64_t value) { /* negative ones take 10 bytes, as in proto2 */
    put_varint(out, field << 3);
    put_varint(out, (uint64_t)value);
}

static inline void put_block(wire *out, uint32_t field, const void *bytes, size_t size) {
    put_varint(out, field << 3 | 2);
    put_varint(out, size);
    put_bytes(out, bytes, size);
}

static inline void put_float(wire *out, uint32_t field, float value) {
    put_varint(out, field << 3 | 5);
    put_bytes(out, &value, sizeof value);
}

static inline void put_fixed64(wire *out, uint32_t field, uint64_t value) {
    put_varint(out, field << 3 | 1);
    put_bytes(out, &value, sizeof value);
}

static inline void put_tag(wire *out, uint32_t field, int wire_type) {
    put_varint(out, field << 3 | (uint32_t)wire_type);
}

#endif
