/* Decodes JPEG, as far as possible with jpeg_fast.c, and else with libjpeg-turbo. The calls are OpenCV's, and so are
 * the pixels, but only the requested part of the image is decoded. */
#include "format.h"
#include "jpeg_fast.h"

#include <setjmp.h>
#include <stdatomic.h>

#include <jerror.h>

/* Columns that are decoded to the left and right of the region. libjpeg interpolates chroma from the neighboring
 * sample, and repeats the last sample at the border of a crop. With interpolation (4:2:0, 4:2:2), one chroma sample
 * covers two pixels; where it covers four (4:1:1), samples are repeated instead. Rows need no margin:
 * jpeg_skip_scanlines() keeps the surrounding rows that it needs. */
#define CROP_MARGIN 2
/* The limit of libjpeg-turbo's own fuzzers. Even a scan of a few bytes visits the whole image. */
#define MAX_SCANS 500
#define ROWS_AT_ONCE 16
#define READ_AHEAD 8 /* the most bytes that libjpeg's Huffman decoder has read and not yet used */

typedef struct fb_jpeg {
    struct jpeg_decompress_struct library;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    fb_arena *arena; /* all memory that libjpeg allocates for an image */
    int usable;      /* jpeg_create_decompress() succeeded */
    int reading;     /* the header was read */
    int ran_out;     /* libjpeg requested more bytes than there are, and was given an end-of-image marker */
    int skipped;     /* libjpeg skipped extraneous bytes */
    const unsigned char *data_end; /* how far it has read in the last scan; NULL: to a marker, or to the file's end */
    const unsigned char *bytes;
    size_t size;
    int channels;       /* of the decoded image */
    fb_jpeg_fast *fast; /* NULL before its first image */
    fb_index *index;    /* NULL: none for this image */
    uint64_t identity;  /* for the index */
    const char *output; /* what expect_output() said; NULL: nothing */
    size_t output_size;
    fb_error *error;
    jmp_buf failed; /* errors in libjpeg jump here */
} fb_jpeg;

static fb_jpeg *jpeg_of(void *library) {
    return (fb_jpeg *)library; /* its first member */
}

/* ---- errors: libjpeg's errors become fb_errors, and so do its warnings that pixels were invented */

__attribute__((noreturn)) static void fail_truncated(fb_jpeg *jpeg) {
    fb_fail(jpeg->error, "the JPEG image is truncated: its %zu bytes end before the image does", jpeg->size);
    longjmp(jpeg->failed, 1);
}

__attribute__((noreturn)) static void give_up(j_common_ptr library) {
    if (jpeg_of(library)->ran_out) fail_truncated(jpeg_of(library)); /* whatever libjpeg's own reason is */
    char text[JMSG_LENGTH_MAX];
    (*library->err->format_message)(library, text);
    fb_fail(jpeg_of(library)->error, "not a JPEG image that can be decoded: %s", text);
    longjmp(jpeg_of(library)->failed, 1);
}

static int is_harmless(const struct jpeg_error_mgr *errors) {
    switch (errors->msg_code) {
        case JWRN_ADOBE_XFORM:
        case JWRN_JFIF_MAJOR:
        case JWRN_NOT_SEQUENTIAL: return 1;
#ifdef JWRN_BOGUS_ICC
        case JWRN_BOGUS_ICC: return 1;
#endif
        /* Extra bytes are padding after complete data, unless a restart marker shows that decoding lost sync. */
        case JWRN_EXTRANEOUS_DATA: return errors->msg_parm.i[1] < 0xd0 || errors->msg_parm.i[1] > 0xd7;
        default: return 0;
    }
}

static void emit_message(j_common_ptr library, int level) {
    fb_jpeg *jpeg = jpeg_of(library);
    if (level >= 0) return;
    if (is_harmless(library->err)) {
        jpeg->skipped |= library->err->msg_code == JWRN_EXTRANEOUS_DATA;
        return;
    }
    if (jpeg->ran_out) fail_truncated(jpeg);
    char text[JMSG_LENGTH_MAX];
    (*library->err->format_message)(library, text);
    fb_fail(jpeg->error, "the JPEG image is truncated or damaged (libjpeg: %s)", text);
    longjmp(jpeg->failed, 1);
}

static void output_message(j_common_ptr library) {
    (void)library;
}

static void note_data_end(fb_jpeg *jpeg) {
    jpeg->data_end = jpeg->ran_out || jpeg->library.unread_marker != 0 ? NULL : jpeg->source.next_input_byte;
}

/* Called before each row of blocks of a scan, after each scan, and before rows are output. */
static void watch_progress(j_common_ptr library) {
    fb_jpeg *jpeg = jpeg_of(library);
    if (!jpeg_input_complete(&jpeg->library)) note_data_end(jpeg);
    if (fb_stopping(jpeg->arena->stop)) fb_fail_stopped(jpeg->error);
    else if (jpeg->library.input_scan_number <= MAX_SCANS) return;
    else fb_fail(jpeg->error, "the JPEG image has more than %d scans: such a file is made to waste time", MAX_SCANS);
    longjmp(jpeg->failed, 1);
}

/* ---- the source: all bytes are in memory
 *
 * If libjpeg requests more bytes within the header, the file is too short. After the header, only the end-of-image
 * marker may be missing, so libjpeg is given one. */

static void source_begin(j_decompress_ptr library) {
    (void)library;
}

static boolean source_more(j_decompress_ptr library) {
    static const JOCTET end_of_image[] = {0xff, JPEG_EOI};
    fb_jpeg *jpeg = jpeg_of(library);
    if (!jpeg->reading) fail_truncated(jpeg);
    jpeg->ran_out = 1;
    library->src->next_input_byte = end_of_image;
    library->src->bytes_in_buffer = sizeof end_of_image;
    return TRUE;
}

static void source_skip(j_decompress_ptr library, long count) {
    if (count <= 0) return;
    if ((size_t)count > library->src->bytes_in_buffer) {
        source_more(library);
        return;
    }
    library->src->next_input_byte += count;
    library->src->bytes_in_buffer -= (size_t)count;
}

/* ---- memory: unlike libjpeg's own memory manager, the arena does not allocate again for each image
 *
 * The "permanent" memory that libjpeg takes while it reads an image holds quantization and Huffman tables. It is
 * dropped with the image, because the next image must not be decoded with these tables. */

static void *take(j_common_ptr library, size_t size) {
    void *memory = fb_arena_take(jpeg_of(library)->arena, size);
    if (memory == NULL) {
        fb_fail(jpeg_of(library)->error, "no memory for decoding a JPEG image (%zu bytes)", size);
        longjmp(jpeg_of(library)->failed, 1);
    }
    return memory;
}

static void *alloc(j_common_ptr library, int pool, size_t size) {
    (void)pool;
    return take(library, size);
}

static JSAMPARRAY alloc_sarray(j_common_ptr library, int pool, JDIMENSION samples, JDIMENSION count) {
    (void)pool;
    const size_t stride = ((size_t)samples * sizeof(JSAMPLE) + FB_ARENA_ALIGN - 1) / FB_ARENA_ALIGN * FB_ARENA_ALIGN;
    JSAMPARRAY rows = take(library, count * sizeof *rows);
    JSAMPROW row = take(library, stride * count); /* vector code may write up to the end of the stride */
    for (JDIMENSION i = 0; i < count; i++) rows[i] = (JSAMPROW)((char *)row + stride * i);
    return rows;
}

static JBLOCKARRAY alloc_barray(j_common_ptr library, int pool, JDIMENSION blocks, JDIMENSION count) {
    (void)pool;
    JBLOCKARRAY rows = take(library, count * sizeof *rows);
    JBLOCKROW row = take(library, (size_t)blocks * count * sizeof *row);
    for (JDIMENSION i = 0; i < count; i++) rows[i] = row + (size_t)blocks * i;
    return rows;
}

/* "Virtual" arrays hold the coefficients of images in several scans. libjpeg could swap them out; here they always stay
 * in memory. */
struct jvirt_barray_control {
    JBLOCKARRAY rows;
};

static jvirt_barray_ptr request_virt_barray(j_common_ptr library, int pool, boolean zeros, JDIMENSION blocks,
                                            JDIMENSION count, JDIMENSION at_once) {
    (void)at_once;
    jvirt_barray_ptr array = take(library, sizeof *array);
    array->rows = alloc_barray(library, pool, blocks, count);
    if (zeros) memset(array->rows[0], 0, (size_t)blocks * count * sizeof **array->rows);
    return array;
}

static void realize_virt_arrays(j_common_ptr library) {
    (void)library;
}

static JBLOCKARRAY access_virt_barray(j_common_ptr library, jvirt_barray_ptr array, JDIMENSION start, JDIMENSION count,
                                      boolean write) {
    (void)library, (void)count, (void)write;
    return array->rows + start;
}

static void forget_tables(j_decompress_ptr library) {
    for (int i = 0; i < NUM_QUANT_TBLS; i++) library->quant_tbl_ptrs[i] = NULL;
    for (int i = 0; i < NUM_HUFF_TBLS; i++) library->dc_huff_tbl_ptrs[i] = library->ac_huff_tbl_ptrs[i] = NULL;
}

static int create(fb_jpeg *jpeg) {
    fb_error error;
    j_decompress_ptr library = &jpeg->library;
    jpeg->error = &error;
    library->err = jpeg_std_error(&jpeg->errors);
    jpeg->errors.error_exit = give_up;
    jpeg->errors.emit_message = emit_message;
    jpeg->errors.output_message = output_message;
    if (setjmp(jpeg->failed) != 0) return -1;
    jpeg_create_decompress(library);
    jpeg->usable = 1;
    jpeg->source = (struct jpeg_source_mgr){.init_source = source_begin,
                                            .fill_input_buffer = source_more,
                                            .skip_input_data = source_skip,
                                            .resync_to_restart = jpeg_resync_to_restart,
                                            .term_source = source_begin};
    library->src = &jpeg->source;
    jpeg->progress.progress_monitor = watch_progress;
    library->progress = &jpeg->progress;
    library->mem->alloc_small = library->mem->alloc_large = alloc;
    library->mem->alloc_sarray = alloc_sarray;
    library->mem->alloc_barray = alloc_barray;
    library->mem->request_virt_barray = request_virt_barray;
    library->mem->realize_virt_arrays = realize_virt_arrays;
    library->mem->access_virt_barray = access_virt_barray;
    return 0;
}

static void close_reader(void *reader) {
    fb_jpeg *jpeg = reader;
    if (jpeg->usable) jpeg_destroy_decompress(&jpeg->library);
    fb_jpeg_fast_close(jpeg->fast);
    free(jpeg);
}

static void *open_reader(fb_arena *arena) {
    fb_jpeg *jpeg = calloc(1, sizeof *jpeg);
    if (jpeg == NULL) return NULL;
    jpeg->arena = arena;
    if (create(jpeg) == 0) return jpeg;
    close_reader(jpeg);
    return NULL;
}

/* ---- reading */

/* Returns the least number of bytes of coded data. Each 8 x 8 block of a component takes at least two bits in Huffman
 * coding, or one bit if progressive scans share the second among blocks. Arithmetic coding can take less; with it, up
 * to 16 million pixels are accepted. */
static uint64_t least_bytes(j_decompress_ptr library) {
    uint64_t blocks = 0;
    for (int i = 0; i < library->num_components; i++) {
        const jpeg_component_info *component = &library->comp_info[i];
        const uint64_t own = (uint64_t)component->width_in_blocks * component->height_in_blocks;
        if (own > blocks) blocks = own;
    }
    if (library->arith_code && blocks <= (1 << 24) / DCTSIZE2) return 0;
    return blocks / (library->progressive_mode ? 8 : 4);
}

static int begin(void *reader, const unsigned char *bytes, size_t size, fb_color color, fb_header *header,
                 fb_error *error) {
    fb_jpeg *jpeg = reader;
    j_decompress_ptr library = &jpeg->library;
    jpeg->error = error;
    if (setjmp(jpeg->failed) != 0) return -1;
    jpeg_abort_decompress(library);
    forget_tables(library);
    jpeg->reading = jpeg->ran_out = jpeg->skipped = 0;
    jpeg->index = NULL;
    jpeg->output = NULL;
    jpeg->bytes = bytes;
    jpeg->size = size;
    jpeg->source.next_input_byte = bytes;
    jpeg->source.bytes_in_buffer = size;
    jpeg_read_header(library, TRUE);
    const int64_t height = library->image_height, width = library->image_width;
    if (fb_check_claim(height, width, least_bytes(library), jpeg->source.bytes_in_buffer, error) != 0) return -1;
    if (library->data_precision != 8) {
        return fb_fail(
            error,
            "the JPEG image has %d bits a sample; only 8 can be read, here and by OpenCV: convert it to an 8-bit "
            "JPEG or PNG",
            library->data_precision);
    }
    jpeg->channels = color == FB_COLOR || (color == FB_UNCHANGED && library->num_components > 1) ? 3 : 1;
    *header = (fb_header){.height = height, .width = width, .channels = jpeg->channels};
    header->orientation = color == FB_UNCHANGED ? 1 : fb_exif_orientation(bytes, size);
    return 0;
}

/* OpenCV's conversion of CMYK as Adobe stores it (inverted). */
static void convert_cmyk(const unsigned char *restrict in, unsigned char *restrict out, int64_t width, int channels) {
    for (int64_t x = 0; x < width; x++, in += 4, out += channels) {
        const int k = in[3];
        const int red = k - ((255 - in[0]) * k >> 8);
        const int green = k - ((255 - in[1]) * k >> 8);
        const int blue = k - ((255 - in[2]) * k >> 8);
        if (channels == 1) {
            /* 0.114, 0.587, 0.299 */
            out[0] = (unsigned char)((1868 * blue + 9617 * green + 4899 * red + (1 << 13)) >> 14);
        } else {
            out[0] = (unsigned char)blue;
            out[1] = (unsigned char)green;
            out[2] = (unsigned char)red;
        }
    }
}

/* Returns whether rows and columns can be skipped without changing a bit: if libjpeg decodes all blocks in one pass. */
static int can_crop(j_decompress_ptr library) {
    return fb_jpeg_has_blocks(library) && !library->arith_code && !jpeg_has_multiple_scans(library);
}

/* ---- the end of the data
 *
 * Every pixel must be present; the end-of-image marker need not be. With Huffman coding, libjpeg warns if it needs a
 * bit past the end, and emit_message() turns that warning into an error. */

/* Finds the next marker that ends coded data, or returns NULL. Inside coded data, a byte FF is followed by 00 or
 * belongs to a restart marker. */
static const unsigned char *next_marker(const fb_jpeg *jpeg, const unsigned char *at) {
    const unsigned char *const end = jpeg->bytes + jpeg->size;
    for (; at < end && (at = memchr(at, 0xff, (size_t)(end - at))) != NULL && at + 1 < end; at++) {
        if (at[1] != 0 && at[1] != 0xff && (at[1] < JPEG_RST0 || at[1] > JPEG_RST0 + 7)) return at;
    }
    return NULL;
}

/* Returns whether libjpeg has found an end-of-image marker in the file, or will find it next. */
static int has_end(const fb_jpeg *jpeg) {
    if (jpeg->ran_out) return 0;
    if (jpeg->library.unread_marker != 0) return jpeg->library.unread_marker == JPEG_EOI;
    const unsigned char *marker = next_marker(jpeg, jpeg->source.next_input_byte);
    return marker && marker[1] == JPEG_EOI;
}

/* Returns whether the coded data seem to continue into the file's padding. A truncated copy is zeros after the cut, and
 * zeros are codes, too. libjpeg has read up to READ_AHEAD bytes more than it needed; the last byte that it needed ends
 * in padding of ones. */
static int is_filled_up(const fb_jpeg *jpeg) {
    const unsigned char *at = jpeg->data_end;
    if (at == NULL || at - jpeg->bytes <= READ_AHEAD || jpeg->bytes + jpeg->size - at < 2) return 0;
    for (const unsigned char *p = at - READ_AHEAD - 1; p < at + 2; p++) {
        if (*p != *at) return 0;
    }
    return 1;
}

/* For an image in several scans: returns whether all bits of all coefficients were read. */
static int has_all_scans(const struct jpeg_decompress_struct *library) {
    for (int component = 0; component < library->num_components; component++) {
        if (library->comp_info[component].quant_table == NULL) return 0; /* it was in no scan */
        for (int i = 0; library->progressive_mode && i < DCTSIZE2; i++) {
            if (library->coef_bits[component][i] != 0) return 0;
        }
    }
    return 1;
}

/* Reads the remaining rows below, so that libjpeg notices missing data there. */
static void read_rest(j_decompress_ptr library, JSAMPROW row) {
    const JDIMENSION last = library->output_height - 1;
    if (library->output_scanline < last) jpeg_skip_scanlines(library, last - library->output_scanline);
    if (library->output_scanline == last) jpeg_read_scanlines(library, &row, 1);
}

/* Returns 0 if all pixels are present, or -1 with *error. `row`: memory for a row of the output. */
static int check_end(fb_jpeg *jpeg, JSAMPROW row, fb_error *error) {
    j_decompress_ptr library = &jpeg->library;
    int complete;
    if (jpeg_has_multiple_scans(library)) { /* all of them have been read */
        complete = (!jpeg->ran_out && !jpeg->skipped) ||
                   (has_all_scans(library) && !is_filled_up(jpeg) && !(library->arith_code && jpeg->ran_out));
    } else if (library->arith_code) { /* its decoder reads zeros past the end, without a warning */
        complete = has_end(jpeg);
    } else {
        const unsigned char *marker = NULL;
        /* If libjpeg ran out of bytes, next_input_byte does not point into the file. */
        if (library->output_scanline < library->output_height && !jpeg->ran_out) {
            marker = next_marker(jpeg, jpeg->source.next_input_byte);
        }
        if (marker && marker[1] == JPEG_EOI && marker + 2 == jpeg->bytes + jpeg->size) return 0;
        read_rest(library, row);
        note_data_end(jpeg);
        complete = !is_filled_up(jpeg);
    }
    if (complete) return 0;
    return fb_fail(error, "the JPEG image is truncated: its %zu bytes have no end-of-image marker where its data end",
                   jpeg->size);
}

static _Atomic uint64_t decoded_fast;

/* Returns what fb_jpeg_fast_read() does. */
static int read_fast(fb_jpeg *jpeg, const fb_region *region, fb_rows *rows, fb_error *error) {
    const fb_jpeg_kernels *kernels = fb_jpeg_fast_in_use();
    if (kernels == NULL) return FB_JPEG_LEFT;
    if (jpeg->fast == NULL) jpeg->fast = fb_jpeg_fast_open(fb_jpeg_fast_takes_440());
    if (jpeg->fast == NULL) return fb_fail(error, "no memory for decoding a JPEG image");
    const fb_jpeg_file file = {jpeg->bytes,  jpeg->bytes + jpeg->size, jpeg->index, jpeg->identity,
                               jpeg->output, jpeg->output_size};
    const int done =
        fb_jpeg_fast_read(jpeg->fast, kernels, &jpeg->library, &file, region, jpeg->channels, jpeg->arena, rows, error);
    if (done > 0) atomic_fetch_add_explicit(&decoded_fast, 1, memory_order_relaxed);
    return done;
}

static void use_index(void *reader, fb_index *index, uint64_t identity) {
    fb_jpeg *jpeg = reader;
    jpeg->index = index;
    jpeg->identity = identity;
}

static int expect_output(void *reader, const void *memory, size_t size) {
    fb_jpeg *jpeg = reader;
    jpeg->output = memory;
    jpeg->output_size = size;
    return fb_jpeg_fast_in_use() != NULL;
}

static _Atomic int index_always;

void fb_jpeg_index_always(int always) {
    atomic_store_explicit(&index_always, always, memory_order_relaxed);
}

int fb_jpeg_index_is_forced(void) {
    return atomic_load_explicit(&index_always, memory_order_relaxed);
}

uint64_t fb_jpeg_fast_count(void) {
    return atomic_load_explicit(&decoded_fast, memory_order_relaxed);
}

static int read(void *reader, const fb_region *region, fb_rows *rows, fb_error *error) {
    fb_jpeg *jpeg = reader;
    j_decompress_ptr library = &jpeg->library;
    const int done = read_fast(jpeg, region, rows, error);
    if (done != FB_JPEG_LEFT) return done < 0 ? -1 : done == FB_JPEG_BY_INDEX ? FB_BY_INDEX : FB_BY_OWN_DECODER;
    jpeg->error = error;
    if (setjmp(jpeg->failed) != 0) return -1;

    const int channels = jpeg->channels;
    const int cmyk = library->num_components == 4;
    jpeg->reading = 1;
    library->out_color_space = cmyk ? JCS_CMYK : channels == 3 ? JCS_EXT_BGR : JCS_GRAYSCALE;
    jpeg_start_decompress(library);

    JDIMENSION left = 0, width = library->output_width;
    JDIMENSION first = 0, last = library->output_height; /* of the rows to decode */
    if (can_crop(library)) {
        const JDIMENSION mcu = (JDIMENSION)(DCTSIZE * library->max_h_samp_factor);
        const JDIMENSION from = region->left > CROP_MARGIN ? (JDIMENSION)region->left - CROP_MARGIN : 0;
        JDIMENSION to = (JDIMENSION)(region->left + region->width) + CROP_MARGIN;
        /* At least one MCU: libjpeg interpolates chroma differently if there are two samples or fewer. */
        if (to < from / mcu * mcu + mcu) to = from / mcu * mcu + mcu;
        if (to > library->output_width) to = library->output_width;
        left = from;
        width = to - from;
        if (width < library->output_width) jpeg_crop_scanline(library, &left, &width);
        first = (JDIMENSION)region->top;
        last = (JDIMENSION)(region->top + region->height);
        if (first > 0) jpeg_skip_scanlines(library, first);
    }

    const size_t stride = (size_t)width * (size_t)channels;
    const size_t pixels = stride * (last - first);
    unsigned char *data = fb_arena_take(jpeg->arena, pixels + FB_ROW_SLACK + (size_t)width * 4);
    if (data == NULL) return fb_fail(error, "no memory for decoding a JPEG image (%zu bytes)", pixels);
    JSAMPROW spare = data + pixels + FB_ROW_SLACK; /* room for a row in any color space */
    *rows = (fb_rows){data, (int64_t)stride, first, left, channels, 1};

    while (library->output_scanline < last) {
        const JDIMENSION row = library->output_scanline;
        JSAMPROW targets[ROWS_AT_ONCE];
        JDIMENSION count = last - row < ROWS_AT_ONCE ? last - row : ROWS_AT_ONCE;
        if (cmyk) {
            jpeg_read_scanlines(library, &spare, 1);
            convert_cmyk(spare, data + (row - first) * stride, width, channels);
        } else {
            for (JDIMENSION i = 0; i < count; i++) targets[i] = data + (row - first + i) * stride;
            jpeg_read_scanlines(library, targets, count);
        }
    }
    return check_end(jpeg, spare, error) != 0 ? -1 : FB_BY_LIBJPEG;
}

const fb_format fb_jpeg_format = {
    .name = "JPEG",
    .magic = "\xff\xd8\xff",
    .magic_size = 3,
    .open = open_reader,
    .close = close_reader,
    .begin = begin,
    .read = read,
    .use_index = use_index,
    .expect_output = expect_output,
};
