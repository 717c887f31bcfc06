/* A baseline JPEG decoder: which blocks a region needs.
 *
 * libjpeg reads the headers. This decoder takes images in one scan, Huffman-coded, 8 bits, gray or YCbCr with the usual
 * samplings; their data must end where the file does. It knows no error: whatever is not plainly good is given up, and
 * libjpeg decodes the image from the beginning. So the pixels of a damaged image, or the sentence that refuses it, stay
 * libjpeg's. To notice all damage that libjpeg notices, it reads as far as libjpeg does.
 *
 * jpeg_mcus.c and jpeg_pixels.c do the rest:
 *
 *   jpeg_unstuff.h   the file's data to bits
 *   jpeg_huffman.h   bits to coefficients
 *   jpeg_idct.h      coefficients to samples
 *   jpeg_color.h     samples to pixels
 *
 * All but the second are called through jpeg_kernels.h. */
#include "jpeg_state.h"

#if FB_JPEG_KERNELS

#define READ_AHEAD 16 /* more bytes than libjpeg's decoder has read and not yet used */

/* Planes are read in groups of 32 samples, from one before the first. */
#define MARGIN FB_JPEG_GROUP

// clang-format off
static const fb_jpeg_layout layouts[] = {
    {1, 1, 1, FB_FULL, 2, 1, {{0, 0, 0}}, {{0, 1}}},
    {3, 1, 1, FB_FULL, 2, 3, {{0, 0, 0}, {1, 0, 0}, {2, 0, 0}}, {{0, 3}, {1, 4}, {2, 5}}},
    {3, 2, 1, FB_H2V1, 1, 4, {{0, 0, 0}, {0, 1, 0}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}}},
    {3, 2, 2, FB_H2V2, 1, 6, {{0, 0, 0}, {0, 1, 0}, {0, 0, 1}, {0, 1, 1}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}, {4, 5}}},
    {3, 1, 2, FB_H1V2, 1, 4, {{0, 0, 0}, {0, 0, 1}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}}},
    {3, 4, 1, FB_H4V1, 1, 6, {{0, 0, 0}, {0, 1, 0}, {0, 2, 0}, {0, 3, 0}, {1, 0, 0}, {2, 0, 0}}, {{0, 1}, {2, 3}, {4, 5}}},
};
// clang-format on

/* ---- is the image one for this decoder? */

static const fb_jpeg_layout *layout_of(const fb_jpeg_fast *fast, const struct jpeg_decompress_struct *library) {
    const jpeg_component_info *components = library->comp_info;
    const int count = library->num_components;
    if (library->data_precision != 8 || library->progressive_mode || library->arith_code) return NULL;
    if (!fb_jpeg_has_blocks(library)) return NULL;
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
            return layouts[i].spread != FB_H1V2 || fast->takes_440 ? &layouts[i] : NULL;
    }
    return NULL;
}

/* Takes the header's tables. Returns 0, or -1 where libjpeg might refuse them. */
static int take_tables(fb_jpeg_fast *fast, const struct jpeg_decompress_struct *library) {
    const JQUANT_TBL *quantization[3];
    const fb_jpeg_layout *l = fast->layout;
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

/* ---- regions */

static int64_t round_up(int64_t size, int64_t unit) {
    return fb_ceil_div(size, unit) * unit;
}

static fb_jpeg_target target_of(const fb_jpeg_fast *fast, int number) {
    const fb_jpeg_layout *l = fast->layout;
    const int in_mcu = number % l->blocks, component = l->block[in_mcu].component;
    const int64_t h = component ? 1 : l->h, v = component ? 1 : l->v;
    const fb_jpeg_plane *to = &fast->planes[component];
    const int64_t x = 8 * (number / l->blocks * h + l->block[in_mcu].x), y = 8 * l->block[in_mcu].y;
    unsigned char *const samples = to->samples + y * to->stride + x;
    return (fb_jpeg_target){{samples, samples + 8 * v * to->stride}, to->stride, 8 * h};
}

/* Takes the memory for an image. Returns the beginning of the output, or NULL. */
static unsigned char *take_memory(fb_jpeg_fast *fast, fb_arena *arena, int64_t size) {
    const fb_jpeg_layout *l = fast->layout;
    const int64_t mcus = fast->end_mcu - fast->first_mcu + 1; /* one more: the second of a pair */
    for (int i = 0; i < (fast->color ? 3 : 1); i++) {
        const int64_t h = i ? 1 : l->h, v = i ? 1 : l->v;
        fb_jpeg_plane *to = &fast->planes[i];
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
    const fb_jpeg_layout *l = fast->layout;
    const int halved = fast->color && l->h == 2, context = fast->color && l->v == 2;
    /* Columns: with interpolation, the chroma samples beside. */
    const int64_t first = left / l->h, last = (left + width - 1) / l->h;
    fast->mcus_per_row = fb_ceil_div(fast->width, 8 * l->h);
    fast->mcu_rows = fb_ceil_div(fast->height, 8 * l->v);
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

/* Has the rest of the output fetched evenly while about so many MCUs are read. */
static void spread_fetching(fb_jpeg_fast *fast, int64_t mcus) {
    fast->fetched_at_once = round_up(fb_ceil_div(fast->fetched_end - fast->fetched, mcus), FB_FETCHED);
}

/* ---- with an index */

/* The coded data of a file, and memory for them without stuffed bytes and restart markers. */
typedef struct fb_jpeg_scan {
    const unsigned char *from, *end;
    unsigned char *data;
} fb_jpeg_scan;

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

/* Begins to read at a place, of MCU `mcu`, counted through the image, with the data of the scan up to `end`. Returns 0, or
 * -1 to give up. */
static int begin_at(fb_jpeg_fast *fast, const fb_jpeg_scan *scan, const fb_jpeg_place *place, int64_t mcu,
                    const unsigned char *end, fb_jpeg_bits *in) {
    if (fb_jpeg_take_data(fast, mcu, scan->from + place->bit / 8, end, scan->data) != 0) return -1;
    memcpy(fast->predictors, place->predictors, sizeof fast->predictors);
    *in = (fb_jpeg_bits){.data = scan->data};
    fb_jpeg_seek(in, place->bit % 8);
    return 0;
}

/* Begins to read a needed row's MCUs, with the data from the place before the first one to that behind the last one.
 * *first: the MCU there. Returns 0, or -1 to give up. */
static int begin_row(fb_jpeg_fast *fast, const fb_jpeg_scan *scan, const fb_jpeg_entry *entry, int64_t row,
                     fb_jpeg_bits *in, int64_t *first) {
    fb_jpeg_place place;
    const int64_t size = scan->end - scan->from;
    *first = fb_jpeg_seek_entry(entry, row, fast->first_mcu, &place);
    int64_t stop = fb_jpeg_end_of_entry(entry, row, fast->end_mcu - 1);
    if (stop < 0) stop = 8 * size;
    int64_t last = (stop + 7) / 8;
    if (last > size || stop <= place.bit) return -1;
    if (stop % 8 && scan->from[last - 1] == 0xff) last++; /* with the stuffed byte behind */
    if (last > size) return -1;
    if (begin_at(fast, scan, &place, row * fast->mcus_per_row + *first, scan->from + last, in) != 0) return -1;
    fast->ends[fast->last_end - fast->ends] -= (8 - stop % 8) % 8;
    fast->bits = *fast->ends;
    return 0;
}

/* Takes memory for notes of the rows from `first` up to `end`. Without any, nothing is noted. */
static void begin_notes(fb_jpeg_fast *fast, fb_arena *arena, int64_t first, int64_t end, fb_jpeg_notes *notes) {
    const int64_t per_row = fb_ceil_div(fast->mcus_per_row, fast->every);
    notes->first = first;
    notes->places = fb_arena_take(arena, (size_t)((end - first) * per_row + 1) * sizeof *notes->places);
    fast->place = notes->places;
}

/* Ends notes of data that begin at byte `byte` of the scan, behind row `end`: makes places in the file of those in the
 * data. Returns 0, or -1 if the row below does not begin where it should. */
static int end_notes(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t byte, int64_t end, fb_jpeg_notes *notes) {
    const unsigned char *counted = in->data;
    notes->end = end;
    if (end < fast->mcu_rows && fb_jpeg_note_next_row(fast, in) != 0) return -1;
    for (fb_jpeg_place *place = notes->places; place < fast->place; place++) {
        /* In the file, a stuffed byte follows each byte FF, and a marker of two bytes each interval. */
        const unsigned char *at = in->data + place->bit / 8;
        byte += fast->kernels->count_ff(counted, at);
        counted = at;
        place->bit += 8 * (byte + 2 * (int64_t)place->restarts);
    }
    return 0;
}

/* Reads from row `row` of MCUs on, as far as libjpeg does, and decodes what the region needs. Returns FB_JPEG_DECODED,
 * FB_JPEG_LEFT, or -1 with *error. */
static int read_rows(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row, const int32_t *stop, fb_error *error) {
    for (; row < fast->rows_read; row++) {
        if (fb_stopping(stop)) return fb_fail_stopped(error);
        if (fb_jpeg_read_row(fast, in, row) != 0) return FB_JPEG_LEFT;
        fb_jpeg_write_rows(fast, row);
    }
    /* At the end of the image, nothing may be left but the padding of the last byte. Above, jpeg.c reads on if
     * libjpeg has already seen the end of the data, of which it reads up to 8 bytes ahead. */
    const int64_t rest = *fast->last_end - fb_jpeg_tell(in);
    return (fast->rows_read == fast->mcu_rows ? rest >= 8 : rest < 8 * READ_AHEAD) ? FB_JPEG_LEFT : FB_JPEG_DECODED;
}

/* Decodes the region from the places that are noted, and the rows below these as without an index. Returns
 * FB_JPEG_BY_INDEX; FB_JPEG_LEFT if the image is damaged there, or if the entry is one of another image; or -1 with
 * *error. */
static int read_by_index(fb_jpeg_fast *fast, const fb_jpeg_scan *scan, fb_jpeg_entry *entry, fb_arena *arena,
                         fb_error *error) {
    int64_t row = fast->first_row, first;
    fb_jpeg_bits in;
    fb_jpeg_place place;
    fast->place = NULL;
    if (!fb_jpeg_entry_fits(entry, fast->mcu_rows, fast->mcus_per_row)) return FB_JPEG_LEFT;
    const int64_t known = fb_jpeg_known_rows(entry);
    spread_fetching(fast, (fast->end_row - row) * (fast->end_mcu - fast->first_mcu + fast->every / 2));
    for (; row < fast->end_row && row < known; row++) {
        if (fb_stopping(arena->stop)) return fb_fail_stopped(error);
        if (begin_row(fast, scan, entry, row, &in, &first) != 0 || fb_jpeg_read_part(fast, &in, row, first) != 0)
            return FB_JPEG_LEFT;
        fb_jpeg_write_rows(fast, row);
    }
    if (fast->rows_read <= known) return FB_JPEG_BY_INDEX;

    fb_jpeg_seek_entry(entry, known, 0, &place);
    fb_jpeg_notes notes;
    if (place.bit / 8 > scan->end - scan->from ||
        begin_at(fast, scan, &place, known * fast->mcus_per_row, scan->end, &in) != 0)
        return FB_JPEG_LEFT;
    begin_notes(fast, arena, known, fast->rows_read, &notes);
    const int done = read_rows(fast, &in, known, arena->stop, error);
    if (done != FB_JPEG_DECODED) return done;
    if (fast->place && end_notes(fast, &in, place.bit / 8, fast->rows_read, &notes) == 0)
        fb_jpeg_extend_entry(entry, &notes);
    return FB_JPEG_BY_INDEX;
}

/* Reads from row `row` of MCUs on to the end, where no row is needed any more. Returns 0, or -1 if that is not good. */
static int read_on(fb_jpeg_fast *fast, fb_jpeg_bits *in, int64_t row, const int32_t *stop) {
    fast->end_row = 0;
    for (; row < fast->mcu_rows; row++) {
        if (fb_stopping(stop) || fb_jpeg_read_row(fast, in, row) != 0) return -1;
    }
    return fast->bits - fb_jpeg_tell(in) < 8 ? 0 : -1;
}

/* ---- the decoder */

int fb_jpeg_fast_read(fb_jpeg_fast *fast, const fb_jpeg_kernels *kernels, const struct jpeg_decompress_struct *library,
                      const fb_jpeg_file *file, const fb_region *region, int channels, fb_arena *arena, fb_rows *rows,
                      fb_error *error) {
    const fb_jpeg_layout *l = fast->layout = layout_of(fast, library);
    const unsigned char *from = library->src->next_input_byte, *end = file->end;
    if (l == NULL || end - from < 2 || end[-2] != 0xff || end[-1] != JPEG_EOI) return FB_JPEG_LEFT;
    end -= 2;
    fast->kernels = kernels;
    fast->interval = library->restart_interval;
    fast->color = channels == 3 && l->components == 3;
    const int halved = fast->color && l->h == 2;
    fast->width = library->image_width;
    fast->height = library->image_height;
    fast->chroma_width = fb_ceil_div(fast->width, l->h);
    fast->chroma_height = fb_ceil_div(fast->height, l->v);
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
    fast->rows = rows;
    fast->y = top;
    fast->bottom = bottom;
    fast->columns = width;
    if (end - from < 3 * fb_jpeg_count_intervals(fast) - 2) return FB_JPEG_LEFT; /* a byte each, and the markers */
    unsigned char *data = fb_arena_take(arena, (size_t)(end - from) + FB_JPEG_ZEROS);
    if (data == NULL || fb_jpeg_take_ends(fast, arena) != 0)
        return fb_fail(error, "no memory for decoding a JPEG image (%zu bytes)", (size_t)(end - from));
    memset(fast->coefficients, 0, sizeof fast->coefficients);

    const fb_jpeg_scan scan = {from, end, data};
    fast->fetched = file->output;
    fast->fetched_end = file->output ? file->output + file->output_size : NULL;
    fb_jpeg_name name;
    fb_jpeg_notes notes;
    fast->place = NULL;
    fast->every = fb_jpeg_every(fast->mcus_per_row);
    if (file->index && index_pays(fast)) {
        name = fb_jpeg_name_of(file->identity, file->bytes, (size_t)(file->end - file->bytes),
                               (size_t)(from - file->bytes));
        fb_jpeg_entry *entry = fb_jpeg_find_entry(file->index, &name, arena);
        if (entry) return read_by_index(fast, &scan, entry, arena, error);
        if (fb_jpeg_has_room(file->index))
            begin_notes(fast, arena, 0, fb_jpeg_wants_all(file->index) ? fast->mcu_rows : fast->rows_read, &notes);
    }

    fb_jpeg_bits in;
    spread_fetching(fast, fast->rows_read * fast->mcus_per_row);
    if (begin_at(fast, &scan, &(fb_jpeg_place){0}, 0, end, &in) != 0) return FB_JPEG_LEFT;
    const int done = read_rows(fast, &in, 0, arena->stop, error);
    if (done != FB_JPEG_DECODED || fast->place == NULL) return done;
    int64_t noted = fast->rows_read;
    if (fb_jpeg_wants_all(file->index)) {
        if (read_on(fast, &in, noted, arena->stop) != 0) return done;
        noted = fast->mcu_rows;
    }
    if (end_notes(fast, &in, 0, noted, &notes) == 0)
        fb_jpeg_add_entry(file->index, &name, &notes, fast->mcu_rows, fast->mcus_per_row);
    return done;
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
