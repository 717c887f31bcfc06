/* Huffman decoding of baseline JPEG (ITU-T T.81, annex F.2.2), for jpeg_mcus.c.
 *
 * libjpeg-turbo spends three quarters of the time for a crop here, because every code above and beside the crop has to
 * be read. What makes this reader twice as fast:
 *
 *   - Steps. A table of 10 bits gives one or two coefficients and the end of the block behind them: 8 lookups for a
 *     block of 13 symbols. It holds codes, not values: a table of values would miss those that are longer than its
 *     index. 9, 11 and 12 bits are slower. Shift, load, shift: nothing else lies between one lookup and the next.
 *   - No condition on a value's sign, which a processor would predict wrongly half of the time.
 *   - No stuffed bytes. jpeg_mcus.c removes them from the whole scan beforehand (7 us for 50 KB, 4 % of the time for a
 *     crop), so that refilling is a load, a shift and an OR.
 *   - Jumps. Where no coefficient is needed, a table of 12 bits skips all codes that it contains, with their values.
 *
 * Whatever is not plainly a valid block is reported, not decoded: see jpeg_fast.c. */
#ifndef FASTBATCH_JPEG_HUFFMAN_H
#define FASTBATCH_JPEG_HUFFMAN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FB_JPEG_INLINE static inline __attribute__((always_inline))
#define FB_LIKELY(x) __builtin_expect(!!(x), 1)

#define FB_JPEG_STEP_BITS 10
#define FB_JPEG_DC_BITS 7 /* for a DC coefficient. With 10, its tables drive others out of the cache: 3 % more time */
#define FB_JPEG_JUMP_BITS 12
#define FB_JPEG_MOST_BITS 18 /* that a step or a jump takes, values included */

/* What is added to the position in the block at its end. Positions are at most 64 before, so an end within the block
 * leaves 129 to 191; see fb_jpeg_block_ended(). */
#define FB_JPEG_END 128
/* Added by an index that no entry serves: a code that is too long, or none. It looks like no end. */
#define FB_JPEG_NONE 64

/* What the next bits of a scan mean. A coefficient's value begins `left` bits from here; it is what remains of the
 * 64-bit buffer after a shift by `left` to the left and by `right` to the right. A step with one coefficient has it
 * twice. */
typedef struct fb_jpeg_step {
    uint8_t bits;                 /* that it takes, values included */
    uint8_t next;                 /* how far the position in the block moves; with bits, a jump */
    uint8_t left1, right1, skip1; /* the first coefficient is `skip1` positions from here */
    uint8_t left2, right2, skip2;
} fb_jpeg_step;

/* The same for skipping: bits + 256 * next. A shift by it is one by `bits`: processors take it modulo 64. */
typedef uint16_t fb_jpeg_jump;

/* One Huffman table of a file, DC or AC, prepared for decoding. */
typedef struct fb_jpeg_table {
    uint8_t counts[17]; /* of codes, by length; as in the file */
    uint8_t symbols[256];
    uint32_t limits[17]; /* by length: the first 16 bits that are beyond the codes of this length and shorter ones */
    int32_t offsets[17]; /* by length: the first symbol's index, minus its code */
    uint64_t last_used;  /* the number of the latest image that used it; 0: an empty place */
    unsigned uses;
    int has_jumps;
    /* Two small tables that are always the same. Here, they take no register of their own. 1 - 2^s at index 64 - s:
     * a value of s bits that begins with 0 is negative, and this much higher than it should be. */
    int32_t bias[65];
    /* Row-major positions of the coefficients, in the order of the file. From 64 on, it is the one behind the block. */
    uint8_t order[256];
    _Alignas(64) fb_jpeg_step steps[1 << FB_JPEG_STEP_BITS];
    fb_jpeg_jump jumps[1 << FB_JPEG_JUMP_BITS];
} fb_jpeg_table;

/* Tables are kept from image to image, because most files have the same: preparing a table takes about 2 us, its jumps
 * 6. An image uses at most three of a class. */
#define FB_JPEG_KEPT 6

typedef struct fb_jpeg_tables {
    uint64_t image; /* the current image's number, from 1 on */
    fb_jpeg_table dc[FB_JPEG_KEPT], ac[FB_JPEG_KEPT];
} fb_jpeg_tables;

/* Returns the prepared table with these codes, or NULL if it is one that libjpeg would refuse. Valid until the next
 * image. */
const fb_jpeg_table *fb_jpeg_find_table(fb_jpeg_tables *tables, int is_ac, const uint8_t counts[17],
                                        const uint8_t symbols[256]);

/* Returns the code at the beginning of the buffer as 256 * its length + its symbol, or -1 if there is none. For
 * codes of any length. */
int fb_jpeg_any_code(const fb_jpeg_table *table, uint64_t buffer);

/* ---- reading bits */

/* A position in a scan. The buffer has `left` valid bits, the next one highest; at least 56 after a refill. Only the
 * lowest 6 bits of `left` count, as in a shift: so whole steps and jumps are subtracted, whatever is above their
 * bits. */
typedef struct fb_jpeg_bits {
    uint64_t buffer;
    uint64_t left;
    const unsigned char *at; /* the next byte that is not in the buffer */
    const unsigned char *data;
} fb_jpeg_bits;

FB_JPEG_INLINE uint64_t fb_jpeg_load(const unsigned char *at) {
    uint64_t bytes;
    memcpy(&bytes, at, sizeof bytes);
    return __builtin_bswap64(bytes);
}

FB_JPEG_INLINE void fb_jpeg_refill(fb_jpeg_bits *in) {
    in->buffer |= fb_jpeg_load(in->at) >> in->left % 64;
    in->at += ~in->left / 8 % 8;
    in->left |= 56;
}

/* Where the scan continues, in bits from the data's beginning. */
FB_JPEG_INLINE int64_t fb_jpeg_tell(const fb_jpeg_bits *in) {
    return (in->at - in->data) * 8 - (int64_t)(in->left % 64);
}

FB_JPEG_INLINE void fb_jpeg_seek(fb_jpeg_bits *in, int64_t bit) {
    in->at = in->data + bit / 8;
    in->left = 0;
    in->buffer = 0;
    fb_jpeg_refill(in);
    in->buffer <<= bit % 8;
    in->left -= (uint64_t)(bit % 8);
}

FB_JPEG_INLINE void fb_jpeg_take(fb_jpeg_bits *in, uint64_t bits) {
    in->buffer <<= bits;
    in->left -= bits;
}

/* Returns a step, and all its bytes as *word, of which a shift takes the first one: the number of bits. The next lookup
 * waits for *word. So its load has to come first, and to add up its address itself, which takes no time. The compiler
 * would compute one address for all fields beforehand; the empty statement makes two indices of one, and saves 6 % of
 * the time for a crop. */
FB_JPEG_INLINE const fb_jpeg_step *fb_jpeg_find_step(const fb_jpeg_table *table, uint64_t index, uint64_t *word) {
    memcpy(word, &table->steps[index], sizeof *word);
    __asm__("" : "+r"(index));
    return &table->steps[index];
}

/* The value at the beginning of the buffer, `right` = 64 - its bits: 1 to 15 bits. */
FB_JPEG_INLINE int16_t fb_jpeg_value(const fb_jpeg_table *table, uint64_t buffer, uint64_t right) {
    const int32_t sign = (int32_t)((int64_t)buffer >> 63); /* -1: it begins with 1 */
    return (int16_t)((int32_t)(buffer >> right) + (~sign & table->bias[right]));
}

/* ---- blocks
 *
 * A refill gives 56 bits: enough for a DC coefficient (at most 31) and a step or jump, or for three of them. */

/* Whether the last step or jump ended the block, so that all its coefficients lie within. Without an end of its own, a
 * block that is full may have been followed by codes of the next one. */
FB_JPEG_INLINE int fb_jpeg_block_ended(uint64_t position) {
    return position - (FB_JPEG_END + 1) < 63;
}

/* Decodes or skips the end of a block again, code by code, after a step or jump of `bits` bits that began at `position`
 * and went too far, or as far as the last coefficient. Returns 0, or -1. */
int64_t fb_jpeg_redo(const fb_jpeg_table *ac, const unsigned char *data, int64_t bit, uint64_t position,
                     int16_t *block);

FB_JPEG_INLINE int fb_jpeg_finish_block(fb_jpeg_bits *in, const fb_jpeg_table *ac, uint64_t bits, uint64_t position,
                                        int16_t *block) {
    const int64_t end = fb_jpeg_redo(ac, in->data, fb_jpeg_tell(in) - (int64_t)bits, position, block);
    if (end < 0) return -1;
    fb_jpeg_seek(in, end);
    return 0;
}

/* Adds the block's difference to the predictor. Returns 0, or -1 if there is no such code. Leaves 25 bits. */
FB_JPEG_INLINE int fb_jpeg_read_dc(fb_jpeg_bits *in, const fb_jpeg_table *dc, int32_t *predictor) {
    fb_jpeg_refill(in);
    uint64_t word;
    const fb_jpeg_step *step = fb_jpeg_find_step(dc, in->buffer >> (64 - FB_JPEG_DC_BITS), &word);
    uint64_t bits = word % 256, length = step->left1, right = step->right1;
    if (!FB_LIKELY(bits)) {
        const int code = fb_jpeg_any_code(dc, in->buffer);
        if (code < 0) return -1;
        length = (uint64_t)code / 256;
        right = 63 - (uint64_t)code % 256;
        bits = length + 63 - right;
    }
    /* Two shifts, because the value may have no bits at all. */
    const uint64_t value = in->buffer << length;
    const int32_t sign = (int32_t)((int64_t)value >> 63);
    *predictor += (int32_t)(value >> 1 >> right) + (~sign & dc->bias[right + 1]);
    fb_jpeg_take(in, bits);
    return 0;
}

/* Decodes the code at the beginning of the buffer, which is too long for a step or a jump, and what belongs to it.
 * Moves the position in the block. Returns 1 at the end of the block, 0 within it, or -1 if the block is not valid. */
FB_JPEG_INLINE int fb_jpeg_read_long(fb_jpeg_bits *in, const fb_jpeg_table *ac, uint64_t *position, int16_t *block) {
    fb_jpeg_refill(in);
    const int code = fb_jpeg_any_code(ac, in->buffer);
    if (code < 0) return -1;
    const unsigned size = code % 16, run = code / 16 % 16;
    fb_jpeg_take(in, (unsigned)code / 256);
    if (size == 0 && run != 15) return 1;
    *position += run;
    if (*position > 63) return -1;
    if (size) {
        if (block) block[ac->order[*position]] = fb_jpeg_value(ac, in->buffer, 64 - size);
        fb_jpeg_take(in, size);
    }
    ++*position;
    fb_jpeg_refill(in);
    return *position == 64;
}

/* Decodes a block's 63 other coefficients. All of the block must be zero. What this leaves behind the block does not
 * matter. Returns 0, or -1. */
FB_JPEG_INLINE int fb_jpeg_read_ac(fb_jpeg_bits *in, const fb_jpeg_table *ac, int16_t *block) {
    uint64_t position = 1;
    for (;;) {
        const fb_jpeg_step *step;
        uint64_t word, buffer;
#define STEP \
    step = fb_jpeg_find_step(ac, in->buffer >> (64 - FB_JPEG_STEP_BITS), &word); \
    buffer = in->buffer; \
    in->buffer = buffer << word % 64; \
    in->left -= word; \
    block[ac->order[position + step->skip2]] = fb_jpeg_value(ac, buffer << step->left2, step->right2); \
    block[ac->order[position + step->skip1]] = fb_jpeg_value(ac, buffer << step->left1, step->right1); \
    position += step->next;
        for (;;) {
            STEP;
            if (position >= 64) break;
            fb_jpeg_refill(in);
            STEP;
            if (position >= 64) break;
            STEP;
            if (position >= 64) break;
        }
#undef STEP
        if (FB_LIKELY(fb_jpeg_block_ended(position))) return 0;
        if (step->bits) return fb_jpeg_finish_block(in, ac, step->bits, position - step->next, block);
        position -= FB_JPEG_NONE;
        const int end = fb_jpeg_read_long(in, ac, &position, block);
        if (end) return end < 0 ? -1 : 0;
    }
}

/* Like fb_jpeg_read_ac(), without a block. `jumps`: ac->has_jumps. */
FB_JPEG_INLINE int fb_jpeg_skip_ac(fb_jpeg_bits *in, const fb_jpeg_table *ac, const int jumps) {
    const fb_jpeg_jump *const all = ac->jumps;
    uint64_t moved = 256, jump; /* like a jump: the position, and the bits since the latest refill */
    for (;;) {
#define JUMP \
    if (jumps) { \
        jump = all[in->buffer >> (64 - FB_JPEG_JUMP_BITS)]; \
    } else { \
        uint16_t head; \
        memcpy(&head, &ac->steps[in->buffer >> (64 - FB_JPEG_STEP_BITS)], sizeof head); \
        jump = head; \
    } \
    in->buffer <<= jump % 64; \
    in->left -= jump; \
    moved += jump;
        for (;;) {
            JUMP;
            if (moved >= 64 * 256) break;
            moved -= moved % 256;
            fb_jpeg_refill(in);
            JUMP;
            if (moved >= 64 * 256) break;
            JUMP;
            if (moved >= 64 * 256) break;
        }
#undef JUMP
        uint64_t position = moved / 256;
        if (FB_LIKELY(fb_jpeg_block_ended(position))) return 0;
        const uint64_t bits = jump % 256, next = jump / 256;
        if (bits) return fb_jpeg_finish_block(in, ac, bits, position - next, NULL);
        position -= FB_JPEG_NONE;
        const int end = fb_jpeg_read_long(in, ac, &position, NULL);
        if (end) return end < 0 ? -1 : 0;
        moved = 256 * position;
    }
}

#endif
