/* Preparing Huffman tables, and the rare cases of decoding. jpeg_huffman.h explains the tables. */
#include "jpeg_huffman.h"

// clang-format off
#define BEHIND_16 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64
static const uint8_t order[256] = { /* T.81, figure 5 */
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    BEHIND_16, BEHIND_16, BEHIND_16, BEHIND_16, BEHIND_16, BEHIND_16,
    BEHIND_16, BEHIND_16, BEHIND_16, BEHIND_16, BEHIND_16, BEHIND_16,
};
// clang-format on

/* ---- preparing a table */

/* A code and what it means, for each index whose first bits are the code; length 0: longer than the index, or none. */
typedef struct code {
    uint8_t length, symbol;
} code;

/* Assigns the codes (T.81, annex C). Returns their number, or -1 if they do not fit, or if one consists of ones
 * only. */
static int assign_codes(fb_jpeg_table *table) {
    uint32_t next = 0;
    int count = 0;
    for (int length = 1; length <= 16; length++) {
        table->offsets[length] = count - (int32_t)next;
        next += table->counts[length];
        count += table->counts[length];
        if (count > 256 || next > (1u << length) - (table->counts[length] != 0)) return -1;
        table->limits[length] = next << (16 - length);
        next <<= 1;
    }
    return count;
}

static void list_codes(const fb_jpeg_table *table, int index_bits, code *codes) {
    const code none = {0};
    int at = 0, symbol = 0;
    for (int length = 1; length <= index_bits; length++) {
        for (int i = 0; i < table->counts[length]; i++, symbol++) {
            const code one = {(uint8_t)length, table->symbols[symbol]};
            for (const int end = at + (1 << (index_bits - length)); at < end; at++) codes[at] = one;
        }
    }
    while (at < 1 << index_bits) codes[at++] = none;
}

/* Repeats the first `known` entries, of `size` bytes each, up to `count`. Both are powers of two. */
static void repeat(void *entries, size_t size, unsigned known, unsigned count) {
    for (; known < count; known *= 2) memcpy((char *)entries + known * size, entries, known * size);
}

static void prepare_dc(fb_jpeg_table *table) {
    enum { BITS = FB_JPEG_DC_BITS, SIZE = 1 << BITS };
    const uint8_t *symbol = table->symbols;
    fb_jpeg_step *step = table->steps;
    for (int length = 1; length <= BITS; length++) {
        for (int i = 0; i < table->counts[length]; i++, symbol++, step += SIZE >> length) {
            *step = (fb_jpeg_step){
                .bits = (uint8_t)(length + *symbol), .left1 = (uint8_t)length, .right1 = (uint8_t)(63 - *symbol)};
            repeat(step, sizeof *step, 1, SIZE >> length);
        }
    }
    for (; step < table->steps + SIZE; step++) *step = (fb_jpeg_step){.right1 = 63};
}

static int is_end(code one) { /* libjpeg takes any run without a value for the end, except one of 16 */
    return one.length && one.symbol % 16 == 0 && one.symbol / 16 != 15;
}

/* The code that follows after `bits` bits of index `i`; length 0 if it is not wholly in the index. */
static code code_at(const code *codes, unsigned i, unsigned bits) {
    const code none = {0};
    const code one = bits < FB_JPEG_STEP_BITS ? codes[i << bits & ((1 << FB_JPEG_STEP_BITS) - 1)] : none;
    return bits + one.length > FB_JPEG_STEP_BITS ? none : one;
}

/* The step of index `i`. Its first code must have a coefficient. */
static fb_jpeg_step step_at(const code *codes, unsigned i) {
    const unsigned length = codes[i].length, size = codes[i].symbol % 16, run = codes[i].symbol / 16;
    unsigned bits = length + size, next = run + 1;
    fb_jpeg_step step = {.left1 = (uint8_t)length, .right1 = (uint8_t)(64 - size), .skip1 = (uint8_t)run};
    step.left2 = step.left1;
    step.right2 = step.right1;
    step.skip2 = step.skip1;
    code behind = code_at(codes, i, bits);
    const unsigned second_size = behind.symbol % 16;
    if (behind.length && second_size && bits + behind.length + second_size <= FB_JPEG_MOST_BITS) {
        step.left2 = (uint8_t)(bits + behind.length);
        step.right2 = (uint8_t)(64 - second_size);
        step.skip2 = (uint8_t)(next + behind.symbol / 16);
        next = step.skip2 + 1u;
        bits += behind.length + second_size;
        behind = code_at(codes, i, bits);
    }
    if (is_end(behind)) {
        next += FB_JPEG_END;
        bits += behind.length;
    }
    step.bits = (uint8_t)bits;
    step.next = (uint8_t)next;
    return step;
}

static void prepare_steps(fb_jpeg_table *table) {
    enum { BITS = FB_JPEG_STEP_BITS, SIZE = 1 << BITS };
    code codes[SIZE];
    list_codes(table, BITS, codes);
    for (unsigned i = 0; i < SIZE;) {
        const code first = codes[i];
        const unsigned size = first.symbol % 16, bits = first.length + size;
        const unsigned count =
            first.length ? 1u << (BITS - first.length) : 1; /* of indices that begin with this code */
        unsigned known = 1; /* of them: the bits of the value make no difference to what follows */
        if (size && bits <= FB_JPEG_MOST_BITS) {
            if (bits < BITS) known = 1u << (BITS - bits);
            for (unsigned j = 0; j < known; j++) table->steps[i + j] = step_at(codes, i + j);
        } else { /* no coefficient: both go behind the block */
            const int served = first.length && size == 0;
            table->steps[i] = (fb_jpeg_step){.bits = served ? first.length : 0,
                                             .next = !served         ? FB_JPEG_NONE
                                                     : is_end(first) ? FB_JPEG_END
                                                                     : 16,
                                             .right1 = 63,
                                             .skip1 = 64,
                                             .right2 = 63,
                                             .skip2 = 64};
        }
        repeat(table->steps + i, sizeof *table->steps, known, count);
        i += count;
    }
}

/* What the codes in the next bits take together is what the first one takes, and then those in the bits that remain. So
 * the jumps for 0 bits are made first, then those for 1 bit, and so on. Those for n bits begin at index 2^n. */
static void prepare_jumps(fb_jpeg_table *table) {
    enum { BITS = FB_JPEG_JUMP_BITS, SIZE = 1 << BITS };
    fb_jpeg_jump all[2 * SIZE] = {0}; /* 0: no code fits */
    unsigned farthest[BITS + 1] = {0};
    for (unsigned bits = 1; bits <= BITS; bits++) {
        const uint8_t *symbol = table->symbols;
        fb_jpeg_jump *to = all + (1u << bits);
        for (unsigned length = 1; length <= bits; length++) {
            const unsigned count = 1u << (bits - length);
            for (int i = 0; i < table->counts[length]; i++, symbol++, to += count) {
                const code one = {(uint8_t)length, *symbol};
                const unsigned moved = *symbol / 16 + 1u, taken = length + *symbol % 16;
                const unsigned rest = taken < bits ? bits - taken : 0;
                if (BITS - bits + taken > FB_JPEG_MOST_BITS) continue;
                *to = (fb_jpeg_jump)(taken + 256 * (is_end(one) ? FB_JPEG_END : moved));
                if (is_end(one)) {
                    repeat(to, sizeof *to, 1, count);
                    continue;
                }
                const fb_jpeg_jump first = *to, *const behind = all + (1u << rest);
                for (unsigned j = 0; j < 1u << rest; j++) to[j] = (fb_jpeg_jump)(first + behind[j]);
                repeat(to, sizeof *to, 1u << rest, count);
                if (farthest[bits] < moved + farthest[rest]) farthest[bits] = moved + farthest[rest];
            }
        }
    }
    if (farthest[BITS] > 64) return; /* no table of a photograph: a jump would have no room for it */
    for (unsigned i = 0; i < SIZE; i++) {
        const fb_jpeg_jump jump = all[SIZE + i];
        table->jumps[i] = jump ? jump : 256 * FB_JPEG_NONE;
    }
    table->has_jumps = 1;
}

static int prepare(fb_jpeg_table *table, int is_ac) {
    const int count = assign_codes(table);
    if (count < 0) return -1;
    for (int i = 0; i < count && !is_ac; i++) {
        if (table->symbols[i] > 15) return -1;
    }
    memcpy(table->order, order, sizeof order);
    for (int size = 1; size < 16; size++) table->bias[64 - size] = 1 - (1 << size);
    if (is_ac) prepare_steps(table);
    else prepare_dc(table);
    return 0;
}

/* ---- keeping tables */

const fb_jpeg_table *fb_jpeg_find_table(fb_jpeg_tables *tables, int is_ac, const uint8_t counts[17],
                                        const uint8_t symbols[256]) {
    enum { JUMPS_FROM = 2 }; /* before, the jumps would not pay for their preparation */
    fb_jpeg_table *kept = is_ac ? tables->ac : tables->dc, *oldest = kept;
    for (fb_jpeg_table *table = kept; table < kept + FB_JPEG_KEPT; table++) {
        if (table->last_used && memcmp(table->counts + 1, counts + 1, 16) == 0 &&
            memcmp(table->symbols, symbols, sizeof table->symbols) == 0) {
            if (table->last_used != tables->image && ++table->uses == JUMPS_FROM && is_ac) prepare_jumps(table);
            table->last_used = tables->image;
            return table;
        }
        if (table->last_used < oldest->last_used) oldest = table;
    }
    memcpy(oldest->counts, counts, sizeof oldest->counts);
    memcpy(oldest->symbols, symbols, sizeof oldest->symbols);
    oldest->has_jumps = 0;
    oldest->uses = 1;
    oldest->last_used = 0;
    if (prepare(oldest, is_ac) != 0) return NULL;
    oldest->last_used = tables->image;
    return oldest;
}

/* ---- decoding */

int fb_jpeg_any_code(const fb_jpeg_table *table, uint64_t buffer) {
    const uint32_t ahead = (uint32_t)(buffer >> 48);
    for (int length = 1; length <= 16; length++) {
        if (ahead < table->limits[length])
            return length << 8 | table->symbols[(int32_t)(ahead >> (16 - length)) + table->offsets[length]];
    }
    return -1;
}

int64_t fb_jpeg_redo(const fb_jpeg_table *ac, const unsigned char *data, int64_t bit, uint64_t position,
                     int16_t *block) {
    fb_jpeg_bits in = {.data = data};
    fb_jpeg_seek(&in, bit);
    int end = 0;
    while (end == 0) end = fb_jpeg_read_long(&in, ac, &position, block);
    return end < 0 ? -1 : fb_jpeg_tell(&in);
}
