/* Reading a scan's data: over the MCUs that nobody needs, and into the planes with the others. jpeg_huffman.h has what
 * takes most of the time. */
#include "jpeg_state.h"

#if FB_JPEG_KERNELS

/* ---- restart markers
 *
 * They divide the data into intervals of so many MCUs, each of which begins with a byte and with predictors of 0. Each
 * must be where it belongs, with its number. The data are copied without them. */

int64_t fb_jpeg_count_intervals(const fb_jpeg_fast *fast) {
    return fast->interval ? fb_ceil_div(fast->mcus_per_row * fast->mcu_rows, fast->interval) : 1;
}

int fb_jpeg_take_ends(fb_jpeg_fast *fast, fb_arena *arena) {
    const size_t count = (size_t)fb_jpeg_count_intervals(fast);
    fast->ends = fast->interval ? fb_arena_take(arena, count * sizeof *fast->ends) : &fast->only_end;
    return fast->ends ? 0 : -1;
}

int fb_jpeg_take_data(fb_jpeg_fast *fast, int64_t mcu, const unsigned char *from, const unsigned char *end,
                      unsigned char *to) {
    int64_t size = 0, restarts = fast->interval ? mcu / fast->interval : 0, count = 0; /* restarts: those before */
    for (const int64_t last = fb_jpeg_count_intervals(fast) - 1;; restarts++) {
        size += fast->kernels->unstuff(&from, end, to + size);
        fast->ends[count++] = 8 * size;
        if (from == end) break;
        if (restarts == last || end - from < 2 || from[1] != JPEG_RST0 + restarts % 8) return -1;
        from += 2;
    }
    memset(to + size, 0, FB_JPEG_ZEROS);
    fast->last_end = &fast->ends[count - 1];
    fast->until_restart = fast->interval ? fast->interval - mcu % fast->interval : INT64_MAX / 2;
    fast->end_of_interval = fast->ends;
    fast->bits = *fast->ends;
    return 0;
}

/* Goes on behind the next restart marker. Returns 0, or -1 if more than the padding of a byte is left before it, or if
 * there is none. */
static int restart(fb_jpeg_fast *fast, fb_jpeg_bits *in) {
    const int64_t end = *fast->end_of_interval;
    if (fast->end_of_interval == fast->last_end || end - fb_jpeg_tell(in) >= 8) return -1;
    fast->bits = *++fast->end_of_interval;
    fast->until_restart = fast->interval;
    memset(fast->predictors, 0, sizeof fast->predictors);
    fb_jpeg_seek(in, end);
    return 0;
}

/* ---- MCUs */

/* As a bit in the data: see end_notes() in jpeg_fast.c. */
static void note_place(fb_jpeg_fast *fast, int64_t bit) {
    fast->place->bit = bit;
    fast->place->restarts = (int32_t)(fast->end_of_interval - fast->ends);
    memcpy(fast->place->predictors, fast->predictors, sizeof fast->predictors);
    fast->place++;
}

/* Has the next part of the output fetched into the caches. Memory has little to do while codes are read, and a core waits
 * for it when the pixels are there: to write a crop of 227 past the caches takes 27 us, of 177 in all. This takes 6 us,
 * and the writing then 9. */
FB_JPEG_INLINE void fetch_output(fb_jpeg_fast *fast) {
    const char *at = fast->fetched;
    if (fast->fetched_end - at <= fast->fetched_at_once) return; /* little is left; of no output, nothing */
    fast->fetched = at + fast->fetched_at_once;
    for (; at < fast->fetched; at += FB_FETCHED) {
        for (int line = 0; line < FB_FETCHED; line += 64) __builtin_prefetch(at + line, 1, 2);
    }
}

/* Reads over `count` MCUs. Returns 0, or -1 to give up. */
FB_JPEG_INLINE int skip_with(fb_jpeg_fast *fast, fb_jpeg_bits *position, int64_t count, const int jumps) {
    const fb_jpeg_layout *l = fast->layout;
    fb_jpeg_bits in = *position;
    for (int64_t mcu = 0; mcu < count; mcu++) {
        for (int i = 0; i < l->blocks; i++) {
            if (fb_jpeg_read_dc(&in, fast->blocks[i].dc, fast->blocks[i].predictor) != 0) return -1;
            if (fb_jpeg_skip_ac(&in, fast->blocks[i].ac, jumps) != 0) return -1;
        }
        if (fb_jpeg_tell(&in) > fast->bits) return -1;
        fetch_output(fast);
    }
    *position = in;
    return 0;
}

/* Reads over a row's MCUs from `mcu` up to `end`. Returns 0, or -1 to give up. */
FB_JPEG_INLINE int skip_mcus_with(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t mcu, int64_t end) {
    while (mcu < end) {
        if (fast->until_restart == 0 && restart(fast, in) != 0) return -1;
        int64_t stop = end - mcu < fast->until_restart ? end : mcu + fast->until_restart;
        if (fast->place) {
            const int64_t next = mcu / fast->every * fast->every + fast->every;
            if (mcu % fast->every == 0) note_place(fast, fb_jpeg_tell(in));
            if (stop > next) stop = next;
        }
        const int code = fast->has_jumps ? skip_with(fast, in, stop - mcu, 1) : skip_with(fast, in, stop - mcu, 0);
        if (code != 0) return -1;
        fast->until_restart -= stop - mcu;
        mcu = stop;
    }
    return 0;
}

/* Transforms the blocks of an MCU, or of two. `column`: in MCUs, in the planes. */
static void transform(fb_jpeg_fast *fast, int64_t row, int64_t column) {
    for (int pair = 0; pair < fast->pairs; pair++) {
        const fb_jpeg_target *to = fast->targets[pair];
        const uint8_t *numbers = fast->layout->pairs[pair];
        fast->kernels->transform(&(fb_jpeg_blocks){.first = fast->coefficients + 64 * numbers[0],
                                                   .second = fast->coefficients + 64 * numbers[1],
                                                   .scale = fast->scales[pair],
                                                   .out1 = to[0].rows[row & 1] + column * to[0].step,
                                                   .out2 = to[1].rows[row & 1] + column * to[1].step,
                                                   .stride1 = to[0].stride,
                                                   .stride2 = to[1].stride});
    }
}

/* Decodes a row's MCUs from `first` up to `end` into the planes. Returns 0, or -1 to give up. */
FB_JPEG_INLINE int decode_mcus_with(fb_jpeg_fast *fast, fb_jpeg_bits *position, int64_t row, int64_t first,
                                    int64_t end) {
    const fb_jpeg_layout *l = fast->layout;
    const int stored = fast->color ? l->blocks : l->h * l->v; /* of an MCU's blocks: Y comes first */
    fb_jpeg_bits in = *position;
    for (int64_t mcu = first; mcu < end; mcu += l->mcus) {
        for (int i = 0; i < l->mcus && mcu + i < end; i++) {
            int16_t *block = fast->coefficients + 64 * i * l->blocks;
            int b = 0;
            if (fast->place && (mcu + i) % fast->every == 0) note_place(fast, fb_jpeg_tell(&in));
            for (; b < stored; b++, block += 64) {
                if (fb_jpeg_read_dc(&in, fast->blocks[b].dc, fast->blocks[b].predictor) != 0) return -1;
                block[0] = (int16_t)*fast->blocks[b].predictor;
                if (fb_jpeg_read_ac(&in, fast->blocks[b].ac, block) != 0) return -1;
            }
            for (; b < l->blocks; b++) {
                if (fb_jpeg_read_dc(&in, fast->blocks[b].dc, fast->blocks[b].predictor) != 0) return -1;
                if (fb_jpeg_skip_ac(&in, fast->blocks[b].ac, 0) != 0) return -1;
            }
            if (fb_jpeg_tell(&in) > fast->bits) return -1;
            fetch_output(fast);
        }
        transform(fast, row, mcu - fast->first_mcu);
    }
    *position = in;
    return 0;
}

/* Both functions, compiled with and without BMI: shifts by any number of bits are then one instruction, not three. */
#if defined(__x86_64__)
#define BOTH(name, parameters, arguments) \
    FB_JPEG_AVX2 static int name##_with_bmi parameters { \
        return name##_with arguments; \
    } \
    static int name##_without_bmi parameters { \
        return name##_with arguments; \
    } \
    static int name parameters { \
        return fast->kernels->with_bmi ? name##_with_bmi arguments : name##_without_bmi arguments; \
    }
#else
#define BOTH(name, parameters, arguments) \
    static int name parameters { \
        return name##_with arguments; \
    }
#endif
BOTH(skip_mcus, (fb_jpeg_fast * fast, fb_jpeg_bits *in, int64_t mcu, int64_t end), (fast, in, mcu, end))
BOTH(decode_mcus, (fb_jpeg_fast * fast, fb_jpeg_bits *in, int64_t row, int64_t first, int64_t end),
     (fast, in, row, first, end))
#undef BOTH

/* Decodes the needed MCUs of a row into the planes. Returns 0, or -1 to give up. */
static int decode_needed(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row) {
    int64_t mcu = fast->first_mcu;
    const int64_t end = fast->end_mcu;
    while (mcu < end) {
        if (fast->until_restart == 0 && restart(fast, in) != 0) return -1;
        const int64_t stop = end - mcu < fast->until_restart ? end : mcu + fast->until_restart;
        if (decode_mcus(fast, in, row, mcu, stop) != 0) return -1;
        fast->until_restart -= stop - mcu;
        mcu = stop;
    }
    return 0;
}

/* A row of 8,192 MCUs cannot overflow a predictor that fits in 16 bits. Returns 0, or -1 to give up. */
static int check_predictors(const fb_jpeg_fast *fast) {
    for (int i = 0; i < 3; i++) {
        if (fast->predictors[i] != (int16_t)fast->predictors[i]) return -1;
    }
    return 0;
}

int fb_jpeg_read_row(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row) {
    if (row >= fast->first_row && row < fast->end_row) {
        if (skip_mcus(fast, in, 0, fast->first_mcu) != 0 || decode_needed(fast, in, row) != 0 ||
            skip_mcus(fast, in, fast->end_mcu, fast->mcus_per_row) != 0)
            return -1;
    } else if (skip_mcus(fast, in, 0, fast->mcus_per_row) != 0) {
        return -1;
    }
    return check_predictors(fast);
}

int fb_jpeg_note_next_row(fb_jpeg_fast *fast, fb_jpeg_bits *in) {
    if (fast->until_restart == 0 && restart(fast, in) != 0) return -1;
    note_place(fast, fb_jpeg_tell(in));
    return 0;
}

int fb_jpeg_read_part(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row, int64_t first) {
    if (skip_mcus(fast, in, first, fast->first_mcu) != 0 || decode_needed(fast, in, row) != 0) return -1;
    return check_predictors(fast);
}

#endif
