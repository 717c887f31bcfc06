/* A baseline JPEG decoder: which blocks a region needs, and the way of each from bits to pixels.
 *
 * libjpeg reads the headers. This decoder takes images in one scan, Huffman-coded, 8 bits, gray or YCbCr with the usual
 * samplings; their data must end where the file does. It knows no error: whatever is
 * not plainly good is given up, and libjpeg decodes the image from the beginning. So the pixels of a damaged image,
 * or the sentence that refuses it, stay libjpeg's. To notice all damage that libjpeg notices, it reads as far as
 * libjpeg does.
 *
 *   jpeg_unstuff.h   the file's data to bits
 *   jpeg_huffman.h   bits to coefficients
 *   jpeg_idct.h      coefficients to samples
 *   jpeg_color.h     samples to pixels
 *
 * All but the second are called through jpeg_kernels.h. */
#include "jpeg_fast.h"

#if FB_JPEG_KERNELS

#include <assert.h>

/* After the data, zeros. An MCU of 6 blocks has at most 6 * 64 codes of 16 bits with values of 15; it is decoded before
 * its end is compared with that of the data. */
#define ZEROS 2048
_Static_assert(6 * 64 * (16 + 15) / 8 + 64 < ZEROS, "an MCU could end beyond the zeros");

#define READ_AHEAD 16 /* more bytes than libjpeg's decoder has read and not yet used */

/* Planes are read in groups of 32 samples, from one before the first. */
#define MARGIN FB_JPEG_GROUP

/* How chroma gets to all pixels, as libjpeg does it: it is there, interpolated ("fancy upsampling"), or repeated. */
typedef enum spread { FULL, H2V1, H2V2, H1V2, H4V1 } spread;

/* How an MCU's blocks follow each other in the file, and which two are transformed together. With an odd number of
 * blocks, two MCUs are decoded before the transforms. */
typedef struct layout {
    int components, h, v; /* the sampling factors of Y; those of Cb and Cr are 1 */
    spread spread;
    int mcus, blocks;
    struct {
        uint8_t component, x, y; /* x and y in blocks */
    } block[6];
    uint8_t pairs[3][2];
} layout;

static const layout layouts[] = {
    {1, 1, 1, FULL, 2, 1, {{0, 0, 0}}, {{0, 1}}},
    {3, 1, 1, FULL, 2, 3, {{0, 0, 0}, {1, 0, 0}, {2, 0, 0}}, {{0, 3}, {1, 4}, {2, 5}}},
    {3, 2, 1, H2V1, 1, 4, {{0, 0, 0}, {0, 1, 0}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}}},
    {3, 2, 2, H2V2, 1, 6, {{0, 0, 0}, {0, 1, 0}, {0, 0, 1}, {0, 1, 1}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}, {4, 5}}},
    {3, 1, 2, H1V2, 1, 4, {{0, 0, 0}, {0, 0, 1}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}}},
    {3, 4, 1, H4V1, 1, 6, {{0, 0, 0}, {0, 1, 0}, {0, 2, 0}, {0, 3, 0}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}, {4, 5}}},
};

/* The samples of one component, of the needed MCU columns and the two latest MCU rows. */
typedef struct plane {
    unsigned char *samples;
    int64_t stride, rows; /* rows: a power of two */
} plane;

/* Where a block's samples go. */
typedef struct target {
    unsigned char *rows[2]; /* in the first MCU of a row, for even and odd rows of MCUs */
    int64_t stride, step;   /* step: from MCU to MCU */
} target;

struct fb_jpeg_fast {
    void *memory; /* this, and what aligns it */
    int takes_440;
    fb_jpeg_tables tables;
    const fb_jpeg_kernels *kernels;
    /* of the current image */
    const layout *layout;
    struct {
        const fb_jpeg_table *dc, *ac;
        int32_t *predictor;
    } blocks[6];   /* of an MCU */
    int has_jumps; /* all AC tables */
    int color;     /* chroma is needed */
    int64_t width, height, chroma_width, chroma_height;
    int64_t mcus_per_row, mcu_rows;
    int64_t first_mcu, end_mcu;                /* the columns of MCUs that are needed */
    int64_t first_row, end_row;                /* the rows of MCUs that are needed */
    int64_t rows_read;                         /* of MCUs, from the first one on: as many as libjpeg reads */
    int64_t interval;                          /* MCUs from restart marker to restart marker; 0: there are none */
    int64_t until_restart;                     /* MCUs */
    int64_t *ends;                             /* of the intervals that the data have, in bits */
    int64_t only_end;                          /* of the data, where there are no restart markers */
    const int64_t *end_of_interval, *last_end; /* the current one's; the last one's */
    int64_t bits;                              /* the current end: no code may go beyond */
    int32_t predictors[3];
    fb_jpeg_place *place; /* where the next place for the index is noted; NULL: none is */
    int64_t every;        /* MCUs between the places of a row */
    plane planes[3];
    int pairs; /* of blocks that are transformed */
    target targets[3][2];
    int16_t *sums[2]; /* of Cb and Cr, for the current row; or their samples */
    /* Blocks are zero before they are decoded. The last one catches what is written behind a block. */
    _Alignas(32) int16_t coefficients[7 * 64];
    _Alignas(32) int16_t scales[3][2 * 64]; /* for fb_jpeg_blocks */
};

static int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* ---- is the image one for this decoder? */

static const layout *layout_of(const fb_jpeg_fast *fast, const struct jpeg_decompress_struct *library) {
    const jpeg_component_info *components = library->comp_info;
    const int count = library->num_components;
    if (library->data_precision != 8 || library->progressive_mode || library->arith_code) return NULL;
    if (library->Ss != 0 || library->Se != DCTSIZE2 - 1 || library->Ah != 0 || library->Al != 0) return NULL;
    if (library->jpeg_color_space != (count == 1 ? JCS_GRAYSCALE : JCS_YCbCr) || library->comps_in_scan != count)
        return NULL;
    for (int i = 0; i < count; i++) {
        if (library->cur_comp_info[i] != &components[i]) return NULL;
        if (i > 0 && (components[i].h_samp_factor != 1 || components[i].v_samp_factor != 1)) return NULL;
    }
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        if (layouts[i].components == count && layouts[i].h == components->h_samp_factor &&
            layouts[i].v == components->v_samp_factor)
            return layouts[i].spread != H1V2 || fast->takes_440 ? &layouts[i] : NULL;
    }
    return NULL;
}

/* Takes the header's tables. Returns 0, or -1 where libjpeg might refuse them. */
static int take_tables(fb_jpeg_fast *fast, const struct jpeg_decompress_struct *library) {
    const JQUANT_TBL *quantization[3];
    const layout *l = fast->layout;
    fast->tables.image++;
    fast->has_jumps = 1;
    for (int i = 0; i < fast->layout->components; i++) {
        const jpeg_component_info *component = &library->comp_info[i];
        const int dc = component->dc_tbl_no, ac = component->ac_tbl_no, q = component->quant_tbl_no;
        if (dc < 0 || dc >= NUM_HUFF_TBLS || library->dc_huff_tbl_ptrs[dc] == NULL) return -1;
        if (ac < 0 || ac >= NUM_HUFF_TBLS || library->ac_huff_tbl_ptrs[ac] == NULL) return -1;
        if (q < 0 || q >= NUM_QUANT_TBLS || library->quant_tbl_ptrs[q] == NULL) return -1;
        quantization[i] = library->quant_tbl_ptrs[q];
        const JHUFF_TBL *codes = library->dc_huff_tbl_ptrs[dc];
        const fb_jpeg_table *dc_table = fb_jpeg_find_table(&fast->tables, 0, codes->bits, codes->huffval);
        codes = library->ac_huff_tbl_ptrs[ac];
        const fb_jpeg_table *ac_table = fb_jpeg_find_table(&fast->tables, 1, codes->bits, codes->huffval);
        if (dc_table == NULL || ac_table == NULL) return -1;
        fast->has_jumps &= ac_table->has_jumps;
        for (int b = 0; b < l->blocks; b++) {
            if (l->block[b].component != i) continue;
            fast->blocks[b].dc = dc_table;
            fast->blocks[b].ac = ac_table;
            fast->blocks[b].predictor = &fast->predictors[i];
        }
    }
    for (int pair = 0; pair < l->blocks * l->mcus / 2; pair++) {
        for (int i = 0; i < 2; i++) {
            const JQUANT_TBL *table = quantization[l->block[l->pairs[pair][i] % l->blocks].component];
            for (int k = 0; k < DCTSIZE2; k++)
                fast->scales[pair][k / 8 * 16 + i * 8 + k % 8] = (int16_t)table->quantval[k];
        }
    }
    return 0;
}

/* ---- restart markers
 *
 * They divide the data into intervals of so many MCUs, each of which begins with a byte and with predictors of 0. Each
 * must be where it belongs, with its number. The data are copied without them. */

static int64_t count_intervals(const fb_jpeg_fast *fast) {
    return fast->interval ? ceil_div(fast->mcus_per_row * fast->mcu_rows, fast->interval) : 1;
}

/* Takes memory for the ends of intervals. Returns 0, or -1 if there is none. */
static int take_ends(fb_jpeg_fast *fast, fb_arena *arena) {
    const size_t count = (size_t)count_intervals(fast);
    fast->ends = fast->interval ? fb_arena_take(arena, count * sizeof *fast->ends) : &fast->only_end;
    return fast->ends ? 0 : -1;
}

/* Copies a scan's data from MCU `mcu` on, counted through the image, without stuffed bytes and restart markers, and
 * begins with the first interval in it. Returns 0, or -1 if there is any other marker, or a byte FF that ends or
 * repeats. */
static int take_data(fb_jpeg_fast *fast, int64_t mcu, const unsigned char *from, const unsigned char *end,
                     unsigned char *to) {
    int64_t size = 0, restarts = fast->interval ? mcu / fast->interval : 0, count = 0; /* restarts: those before */
    for (const int64_t last = count_intervals(fast) - 1;; restarts++) {
        size += fast->kernels->unstuff(&from, end, to + size);
        fast->ends[count++] = 8 * size;
        if (from == end) break;
        if (restarts == last || end - from < 2 || from[1] != JPEG_RST0 + restarts % 8) return -1;
        from += 2;
    }
    memset(to + size, 0, ZEROS);
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

static void note_place(fb_jpeg_fast *fast, int64_t bit) {
    fast->place->bit = bit;
    fast->place->restarts = (int32_t)(fast->end_of_interval - fast->ends);
    memcpy(fast->place->predictors, fast->predictors, sizeof fast->predictors);
    fast->place++;
}

/* Reads over `count` MCUs. Returns 0, or -1 to give up. */
FB_JPEG_INLINE int skip_with(fb_jpeg_fast *fast, fb_jpeg_bits *position, int64_t count, const int jumps) {
    const layout *l = fast->layout;
    fb_jpeg_bits in = *position;
    for (int64_t mcu = 0; mcu < count; mcu++) {
        for (int i = 0; i < l->blocks; i++) {
            if (fb_jpeg_read_dc(&in, fast->blocks[i].dc, fast->blocks[i].predictor) != 0) return -1;
            if (fb_jpeg_skip_ac(&in, fast->blocks[i].ac, jumps) != 0) return -1;
        }
        if (fb_jpeg_tell(&in) > fast->bits) return -1;
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
        const target *to = fast->targets[pair];
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
    const layout *l = fast->layout;
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

/* Reads a row of MCUs, and decodes the needed ones into the planes if it is needed. Returns 0, or -1 to give up. */
static int read_row(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row) {
    if (row >= fast->first_row && row < fast->end_row) {
        if (skip_mcus(fast, in, 0, fast->first_mcu) != 0 || decode_needed(fast, in, row) != 0 ||
            skip_mcus(fast, in, fast->end_mcu, fast->mcus_per_row) != 0)
            return -1;
    } else if (skip_mcus(fast, in, 0, fast->mcus_per_row) != 0) {
        return -1;
    }
    return check_predictors(fast);
}

/* ---- pixels */

static const unsigned char *samples_at(const plane *from, int64_t row) {
    return from->samples + (row & (from->rows - 1)) * from->stride;
}

/* The other row of chroma of which row `y` has a quarter: the one above for even rows, and below for odd ones. */
static const unsigned char *far_row(const fb_jpeg_fast *fast, const plane *from, int64_t y) {
    const int64_t row = y % 2 ? y / 2 + 1 : y / 2 - 1, last = fast->chroma_height - 1;
    return samples_at(from, row < 0 ? 0 : row > last ? last : row);
}

/* Adds up the chroma rows for row `y`, from the sample before `first` to the one behind the last. At the image's edges,
 * samples are repeated. */
static void sum_chroma(fb_jpeg_fast *fast, int64_t y, int64_t first, int64_t count) {
    const int64_t edge = fast->chroma_width - first;
    const int64_t offset = first - 1 - 8 * fast->first_mcu;
    for (int i = 0; i < 2; i++) {
        const plane *from = &fast->planes[i + 1];
        const unsigned char *near = samples_at(from, y), *far = NULL;
        if (fast->layout->spread == H2V2) {
            near = samples_at(from, y / 2);
            far = far_row(fast, from, y) + offset;
        }
        int16_t *sums = fast->sums[i];
        fast->kernels->sum_rows(near + offset, far, count + 2, sums - 1);
        if (first == 0) sums[-1] = sums[0];
        if (edge == count) sums[edge] = sums[edge - 1];
    }
}

/* Spreads the chroma of row `y` to `width` columns from `left` on, where libjpeg does not interpolate along rows. Returns
 * the samples of Cb or Cr. */
static const unsigned char *spread_chroma(fb_jpeg_fast *fast, int component, int64_t y, int64_t left, int64_t width) {
    const plane *from = &fast->planes[component];
    unsigned char *to = (unsigned char *)fast->sums[component - 1];
    const int64_t column = left / fast->layout->h - 8 * fast->first_mcu;
    if (fast->layout->spread == FULL) return samples_at(from, y) + column;
    if (fast->layout->spread == H1V2) { /* ties are rounded down in even rows and up in odd ones */
        fast->kernels->mix_rows(samples_at(from, y / 2) + column, far_row(fast, from, y) + column, width, y % 2 ? 2 : 1,
                                to);
        return to;
    }
    const unsigned char *samples = samples_at(from, y) + column;
    for (int64_t x = 0; x < left % 4 + width; x += 4) memset(to + x, *samples++, 4);
    return to + left % 4;
}

/* Converts row `y` of the image, from column rows->left on, which is even if chroma is interpolated. */
static void write_row(fb_jpeg_fast *fast, int64_t y, int64_t width, const fb_rows *rows) {
    const layout *l = fast->layout;
    const int64_t column = rows->left - 8 * l->h * fast->first_mcu, plane = rows->channel;
    const unsigned char *luma = samples_at(&fast->planes[0], y) + column;
    unsigned char *out = rows->data + (y - rows->top) * rows->stride;
    if (!fast->color) {
        memcpy(out, luma, (size_t)width);
    } else if (l->spread == H2V1 || l->spread == H2V2) {
        sum_chroma(fast, y, rows->left / 2, (width + 1) / 2);
        fast->kernels->convert(luma, fast->sums[0], fast->sums[1], width,
                               l->spread == H2V1 ? FB_CHROMA_H2V1 : FB_CHROMA_H2V2, out, plane);
    } else {
        fast->kernels->convert(luma, spread_chroma(fast, 1, y, rows->left, width),
                               spread_chroma(fast, 2, y, rows->left, width), width, FB_CHROMA_FULL, out, plane);
    }
}

/* ---- regions */

static int64_t round_up(int64_t size, int64_t unit) {
    return ceil_div(size, unit) * unit;
}

static target target_of(const fb_jpeg_fast *fast, int number) {
    const layout *l = fast->layout;
    const int in_mcu = number % l->blocks, component = l->block[in_mcu].component;
    const int64_t h = component ? 1 : l->h, v = component ? 1 : l->v;
    const plane *to = &fast->planes[component];
    const int64_t x = 8 * (number / l->blocks * h + l->block[in_mcu].x), y = 8 * l->block[in_mcu].y;
    unsigned char *const samples = to->samples + y * to->stride + x;
    return (target){{samples, samples + 8 * v * to->stride}, to->stride, 8 * h};
}

/* Takes the memory for an image. Returns the beginning of the output, or NULL. */
static unsigned char *take_memory(fb_jpeg_fast *fast, fb_arena *arena, int64_t size) {
    const layout *l = fast->layout;
    const int64_t mcus = fast->end_mcu - fast->first_mcu + 1; /* one more: the second of a pair */
    for (int i = 0; i < (fast->color ? 3 : 1); i++) {
        const int64_t h = i ? 1 : l->h, v = i ? 1 : l->v;
        plane *to = &fast->planes[i];
        to->rows = 16 * v;
        to->stride = round_up(8 * h * mcus + 2 * MARGIN, 32);
        unsigned char *samples = fb_arena_take(arena, (size_t)(to->rows * to->stride + 2 * MARGIN));
        if (samples == NULL) return NULL;
        to->samples = samples + MARGIN;
    }
    fast->pairs = l->mcus * (fast->color ? l->blocks : l->h * l->v) / 2;
    for (int pair = 0; pair < fast->pairs; pair++) {
        for (int i = 0; i < 2; i++) fast->targets[pair][i] = target_of(fast, l->pairs[pair][i]);
    }
    for (int i = 0; i < 2; i++) {
        int16_t *sums = fb_arena_take(arena, (size_t)(16 * mcus + 3 * MARGIN) * sizeof *sums);
        if (sums == NULL) return NULL;
        fast->sums[i] = sums + MARGIN;
    }
    return fb_arena_take(arena, (size_t)size);
}

/* Sets which rows and columns of MCUs a region needs. left, width: of its columns, with those that are decoded beside
 * them. */
static void choose_mcus(fb_jpeg_fast *fast, const fb_region *region, int64_t left, int64_t width) {
    const layout *l = fast->layout;
    const int halved = fast->color && l->h == 2, context = fast->color && l->v == 2;
    /* Columns: with interpolation, the chroma samples beside. */
    const int64_t first = left / l->h, last = (left + width - 1) / l->h;
    fast->mcus_per_row = ceil_div(fast->width, 8 * l->h);
    fast->mcu_rows = ceil_div(fast->height, 8 * l->v);
    fast->first_mcu = (first - (halved && first > 0)) / 8;
    fast->end_mcu = (last + (halved && last + 1 < fast->chroma_width)) / 8 + 1;

    /* Rows: even ones need the chroma row above, odd ones that below. libjpeg reads the next row of MCUs before it
     * gives the last two rows of one. */
    const int64_t mcu_height = 8 * l->v, top = region->top, bottom = top + region->height;
    fast->first_row = top / mcu_height - (context && top > 0 && top % mcu_height == 0);
    fast->rows_read = fast->end_row = (bottom - 1) / mcu_height + 1;
    if (context && fast->rows_read < fast->mcu_rows && (bottom - 1) % mcu_height >= mcu_height - 2) {
        fast->rows_read++;
        fast->end_row += (bottom - 1) % mcu_height == mcu_height - 1;
    }
}

/* Writes the rows of pixels from row *y on, up to `bottom`, that are complete with this row of MCUs. */
static void write_rows(fb_jpeg_fast *fast, int64_t row, int64_t *y, int64_t bottom, int64_t width,
                       const fb_rows *rows) {
    const int context = fast->color && fast->layout->v == 2;
    int64_t complete = row + 1 == fast->mcu_rows ? fast->height : (row + 1) * 8 * fast->layout->v - context;
    if (complete > bottom) complete = bottom;
    for (; *y < complete; ++*y) write_row(fast, *y, width, rows);
}

/* ---- with an index */

/* Whether regions of this size need few enough MCUs. Above and beside them, reading takes a third of the time of
 * decoding, so that there is nothing to gain if an index saves little of it. */
static int index_pays(const fb_jpeg_fast *fast) {
    enum { LEAST = 32 }; /* MCUs that are worth finding an entry: 1 us */
    if (fb_jpeg_index_is_forced()) return 1;
    const int64_t rows = fast->end_row - fast->first_row, columns = fast->end_mcu - fast->first_mcu + fast->every;
    const int64_t without = (fast->mcu_rows + rows) * fast->mcus_per_row / 2; /* on average */
    const int64_t with = rows * (columns < fast->mcus_per_row ? columns : fast->mcus_per_row);
    return 4 * with <= 3 * without && without - with >= LEAST;
}

/* Takes the data of a needed row's MCUs from the file, from the place before the first one to that behind the last one,
 * and begins to read them. *first: the MCU there. Returns 0, or -1 to give up. */
static int begin_row(fb_jpeg_fast *fast, const fb_jpeg_entry *entry, int64_t row, const unsigned char *scan,
                     const unsigned char *end, unsigned char *data, fb_jpeg_bits *in, int64_t *first) {
    fb_jpeg_place place;
    *first = fb_jpeg_seek_entry(entry, row, fast->first_mcu, &place);
    int64_t stop = fb_jpeg_end_of_entry(entry, row, fast->end_mcu - 1);
    if (stop < 0) stop = 8 * (end - scan);
    int64_t last = (stop + 7) / 8;
    if (last > end - scan || stop <= place.bit) return -1;
    if (stop % 8 && scan[last - 1] == 0xff) last++; /* with the stuffed byte behind */
    if (last > end - scan) return -1;
    if (take_data(fast, row * fast->mcus_per_row + *first, scan + place.bit / 8, scan + last, data) != 0) return -1;
    fast->ends[fast->last_end - fast->ends] -= (8 - stop % 8) % 8;
    fast->bits = *fast->ends;
    memcpy(fast->predictors, place.predictors, sizeof fast->predictors);
    *in = (fb_jpeg_bits){.data = data};
    fb_jpeg_seek(in, place.bit % 8);
    return 0;
}

/* Decodes the region from the places that are noted. Returns FB_JPEG_BY_INDEX; 0 if the entry does not fit, which is
 * then one of another image; or -1 with *error. */
static int read_by_index(fb_jpeg_fast *fast, const fb_jpeg_entry *entry, const unsigned char *scan,
                         const unsigned char *end, unsigned char *data, int64_t bottom, int64_t width,
                         const int32_t *stop, const fb_rows *rows, fb_error *error) {
    int64_t y = rows->top, first;
    fb_jpeg_bits in;
    fast->place = NULL;
    if (!fb_jpeg_entry_fits(entry, fast->mcu_rows, fast->mcus_per_row)) return FB_JPEG_LEFT;
    for (int64_t row = fast->first_row; row < fast->end_row; row++) {
        if (fb_stopping(stop)) return fb_fail_stopped(error);
        if (begin_row(fast, entry, row, scan, end, data, &in, &first) != 0 ||
            skip_mcus(fast, &in, first, fast->first_mcu) != 0 || decode_needed(fast, &in, row) != 0 ||
            check_predictors(fast) != 0)
            return FB_JPEG_LEFT;
        write_rows(fast, row, &y, bottom, width, rows);
    }
    return FB_JPEG_BY_INDEX;
}

/* Reads from row `row` of MCUs on to the end, and adds the image to the index if all of it is good. */
static void add_to_index(fb_jpeg_fast *fast, fb_index *index, const fb_jpeg_name *name, const unsigned char *data,
                         const fb_jpeg_place *places, fb_jpeg_bits *in, int64_t row, const int32_t *stop) {
    fast->end_row = 0; /* none is needed */
    for (; row < fast->mcu_rows; row++) {
        if (fb_stopping(stop) || read_row(fast, in, row) != 0) return;
    }
    if (fast->bits - fb_jpeg_tell(in) >= 8) return;
    fb_jpeg_add_entry(index, name, data, places, fast->mcu_rows, fast->mcus_per_row);
}

/* ---- the decoder */

int fb_jpeg_fast_read(fb_jpeg_fast *fast, const fb_jpeg_kernels *kernels, const struct jpeg_decompress_struct *library,
                      const fb_jpeg_file *file, const fb_region *region, int channels, fb_arena *arena, fb_rows *rows,
                      fb_error *error) {
    const layout *l = fast->layout = layout_of(fast, library);
    const unsigned char *from = library->src->next_input_byte, *end = file->end;
    if (l == NULL || end - from < 2 || end[-2] != 0xff || end[-1] != JPEG_EOI) return FB_JPEG_LEFT;
    end -= 2;
    fast->kernels = kernels;
    fast->interval = library->restart_interval;
    fast->color = channels == 3 && l->components == 3;
    const int halved = fast->color && l->h == 2;
    fast->width = library->image_width;
    fast->height = library->image_height;
    fast->chroma_width = ceil_div(fast->width, l->h);
    fast->chroma_height = ceil_div(fast->height, l->v);
    if (halved && fast->chroma_width <= 2) return FB_JPEG_LEFT; /* libjpeg repeats these samples instead */
    if (take_tables(fast, library) != 0) return FB_JPEG_LEFT;

    /* With interpolation, rows begin at an even column. */
    const int64_t left = halved ? region->left & ~INT64_C(1) : region->left;
    const int64_t width = region->left + region->width - left, top = region->top, bottom = top + region->height;
    choose_mcus(fast, region, left, width);

    /* Planes: from there, a transform or a resize takes half of the time. All channels of gray are one plane. */
    const int64_t stride = round_up(width, FB_JPEG_GROUP), plane = stride * region->height;
    const int64_t size_of_planes = fast->color ? 3 * plane : plane;
    unsigned char *out = take_memory(fast, arena, size_of_planes);
    if (out == NULL) return fb_fail(error, "no memory for decoding a JPEG image (%zu bytes)", (size_t)size_of_planes);
    *rows = (fb_rows){out, stride, top, left, 1, fast->color ? plane : 0};
    if (end - from < 3 * count_intervals(fast) - 2) return FB_JPEG_LEFT; /* a byte each, and the markers */
    unsigned char *data = fb_arena_take(arena, (size_t)(end - from) + ZEROS);
    if (data == NULL || take_ends(fast, arena) != 0)
        return fb_fail(error, "no memory for decoding a JPEG image (%zu bytes)", (size_t)(end - from));
    memset(fast->coefficients, 0, sizeof fast->coefficients);

    fb_jpeg_name name;
    fb_jpeg_place *places = NULL;
    fast->every = fb_jpeg_every(fast->mcus_per_row);
    if (file->index && index_pays(fast)) {
        name = fb_jpeg_name_of(file->identity, file->bytes, (size_t)(file->end - file->bytes),
                               (size_t)(from - file->bytes));
        const fb_jpeg_entry *entry = fb_jpeg_find_entry(file->index, &name, arena);
        if (entry) {
            const int done = read_by_index(fast, entry, from, end, data, bottom, width, arena->stop, rows, error);
            if (done != FB_JPEG_LEFT) return done;
            memset(fast->coefficients, 0, sizeof fast->coefficients);
        } else if (fb_jpeg_has_room(file->index)) {
            const int64_t per_row = ceil_div(fast->mcus_per_row, fast->every);
            places = fb_arena_take(arena, (size_t)(fast->mcu_rows * per_row) * sizeof *places); /* NULL: no index */
        }
    }

    if (take_data(fast, 0, from, end, data) != 0) return FB_JPEG_LEFT;
    fast->place = places;
    memset(fast->predictors, 0, sizeof fast->predictors);
    fb_jpeg_bits in = {.data = data};
    fb_jpeg_seek(&in, 0);
    int64_t y = top;
    for (int64_t row = 0; row < fast->rows_read; row++) {
        if (fb_stopping(arena->stop)) return fb_fail_stopped(error);
        if (read_row(fast, &in, row) != 0) return FB_JPEG_LEFT;
        write_rows(fast, row, &y, bottom, width, rows);
    }
    /* At the end of the image, nothing may be left but the padding of the last byte. Above, jpeg.c reads on if
     * libjpeg has already seen the end of the data, of which it reads up to 8 bytes ahead. */
    const int64_t rest = *fast->last_end - fb_jpeg_tell(&in);
    if (fast->rows_read == fast->mcu_rows ? rest >= 8 : rest < 8 * READ_AHEAD) return FB_JPEG_LEFT;
    if (places) add_to_index(fast, file->index, &name, data, places, &in, fast->rows_read, arena->stop);
    return FB_JPEG_DECODED;
}

fb_jpeg_fast *fb_jpeg_fast_open(int takes_440) {
    /* Not posix_memalign() and memset(): most of it is never used, and remains without pages. */
    unsigned char *memory = calloc(1, sizeof(fb_jpeg_fast) + FB_ARENA_ALIGN);
    if (memory == NULL) return NULL;
    fb_jpeg_fast *fast = (fb_jpeg_fast *)(memory + FB_ARENA_ALIGN - (uintptr_t)memory % FB_ARENA_ALIGN);
    fast->memory = memory;
    fast->takes_440 = takes_440;
    return fast;
}

void fb_jpeg_fast_close(fb_jpeg_fast *fast) {
    if (fast) free(fast->memory);
}

#else

/* Other processors: libjpeg-turbo decodes everything. */
fb_jpeg_fast *fb_jpeg_fast_open(int takes_440) {
    (void)takes_440;
    return NULL;
}

void fb_jpeg_fast_close(fb_jpeg_fast *fast) {
    (void)fast;
}

int fb_jpeg_fast_read(fb_jpeg_fast *fast, const fb_jpeg_kernels *kernels, const struct jpeg_decompress_struct *library,
                      const fb_jpeg_file *file, const fb_region *region, int channels, fb_arena *arena, fb_rows *rows,
                      fb_error *error) {
    (void)fast, (void)kernels, (void)library, (void)file, (void)region, (void)channels, (void)arena, (void)rows,
        (void)error;
    return 0;
}

#endif
