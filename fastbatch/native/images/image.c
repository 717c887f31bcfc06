/* The codec: detects the format, orients and resizes the image, and computes which part of it must be decoded. */
#include "image.h"

#include "format.h"
#include "jpeg_index.h"
#include "resize.h"

#include <stdatomic.h>

static const fb_format *const formats[] = {&fb_jpeg_format, &fb_png_format};

#define FORMATS (sizeof formats / sizeof *formats)

struct fb_decoder {
    void *readers[FORMATS]; /* NULL before the first image of the format */
    int format;             /* index of the current image's format; -1: there is no image */
    fb_arena arena;         /* all memory for the current image */
    fb_header header;
    fb_size oriented, size; /* after orientation; after resize */
    fb_rows rows;
    uint64_t counts[FB_WAYS]; /* of decoded images */
};

static void codec_close(fb_decoder *decoder) {
    if (decoder == NULL) return;
    for (size_t i = 0; i < FORMATS; i++) {
        if (decoder->readers[i]) formats[i]->close(decoder->readers[i]);
    }
    fb_arena_free(&decoder->arena);
    free(decoder);
}

static fb_decoder *codec_open(const int32_t *stop) {
    fb_decoder *decoder = calloc(1, sizeof *decoder);
    if (decoder == NULL) return NULL;
    decoder->format = -1;
    decoder->arena.stop = stop;
    return decoder;
}

fb_memory fb_decoder_memory(const fb_decoder *decoder) {
    return (fb_memory){fb_arena_used(&decoder->arena), fb_arena_held(&decoder->arena)};
}

/* ---- the format */

static int begins_with(const unsigned char *bytes, size_t size, const char *magic, size_t length) {
    return size >= length && memcmp(bytes, magic, length) == 0;
}

static int format_of(const unsigned char *bytes, size_t size) { /* -1: not in the table */
    for (size_t i = 0; i < FORMATS; i++) {
        if (begins_with(bytes, size, formats[i]->magic, formats[i]->magic_size)) return (int)i;
    }
    return -1;
}

/* Lists the formats of the table, such as "JPEG and PNG". */
static void name_formats(const char *between, char *text, size_t room) {
    size_t used = 0;
    for (size_t i = 0; i < FORMATS && used < room; i++) {
        const char *before = i == 0 ? "" : i + 1 < FORMATS ? ", " : between;
        used += (size_t)snprintf(text + used, room - used, "%s%s", before, formats[i]->name);
    }
}

static int fail_with_format(const unsigned char *bytes, size_t size, fb_error *error) {
    static const struct {
        const char *name, *magic;
        size_t length;
    } known[] = {
        {"BMP", "BM", 2},
        {"GIF", "GIF8", 4},
        {"TIFF", "II*\0", 4},
        {"TIFF", "MM\0*", 4},
        {"WebP", "RIFF", 4},
        {"JPEG 2000", "\0\0\0\x0cjP  ", 8},
        {"JPEG 2000", "\xff\x4f\xff\x51", 4},
        {"JPEG XL", "\xff\x0a", 2},
        {"OpenEXR", "v/1\x01", 4},
        {"Radiance HDR", "#?RADIANCE", 10},
        {"Sun raster", "\x59\xa6\x6a\x95", 4},
        {"PBM", "P1", 2},
        {"PGM", "P2", 2},
        {"PPM", "P3", 2},
        {"PBM", "P4", 2},
        {"PGM", "P5", 2},
        {"PPM", "P6", 2},
        {"PAM", "P7", 2},
    };
    const char *name = size >= 12 && memcmp(bytes + 4, "ftyp", 4) == 0 ? "AVIF or HEIF" : NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known && name == NULL; i++) {
        if (begins_with(bytes, size, known[i].magic, known[i].length)) name = known[i].name;
    }
    if (name && strcmp(name, "WebP") == 0 && (size < 12 || memcmp(bytes + 8, "WEBP", 4) != 0)) name = NULL;
    char all[64], any[64], none[64];
    name_formats(" and ", all, sizeof all);
    name_formats(" or ", any, sizeof any);
    name_formats(" nor ", none, sizeof none);
    if (name)
        return fb_fail(error, "the image is a %s image; only %s can be decoded: convert it to one of them", name, all);
    if (size == 0) return fb_fail(error, "the image is empty: 0 bytes where a %s image should be", any);
    char first[3 * 8 + 1] = "";
    for (size_t i = 0; i < 8 && i < size; i++) snprintf(first + 3 * i, 4, "%02x ", bytes[i]);
    return fb_fail(error,
                   "neither %s: its %zu bytes begin with %s(hexadecimal). The file is damaged or not an image; other "
                   "formats have to be converted",
                   none, size, first);
}

/* ---- orientation: where the pixels of the oriented image are stored */

static int is_transposed(int orientation) {
    return orientation >= 5;
}

static int is_upside_down(int orientation) { /* the last stored row comes first */
    return orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
}

static int is_mirrored(int orientation) { /* the last stored column comes first */
    return orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
}

static fb_region stored_region(const fb_header *header, const fb_region *oriented) {
    fb_region stored = *oriented;
    if (is_transposed(header->orientation)) {
        stored = (fb_region){
            .top = oriented->left, .left = oriented->top, .height = oriented->width, .width = oriented->height};
    }
    if (is_upside_down(header->orientation)) stored.top = header->height - stored.top - stored.height;
    if (is_mirrored(header->orientation)) stored.left = header->width - stored.left - stored.width;
    return stored;
}

/* Points a view at the stored region in the decoded rows, oriented. Copies nothing. */
static void show_oriented(const fb_decoder *decoder, const fb_region *stored, fb_view *view) {
    const fb_header *header = &decoder->header;
    int64_t row = stored->top - decoder->rows.top, column = stored->left - decoder->rows.left;
    int64_t along_rows = decoder->rows.pixel, across_rows = decoder->rows.stride;
    if (is_upside_down(header->orientation)) {
        row += stored->height - 1;
        across_rows = -across_rows;
    }
    if (is_mirrored(header->orientation)) {
        column += stored->width - 1;
        along_rows = -along_rows;
    }
    const int transposed = is_transposed(header->orientation);
    view->data = decoder->rows.data + row * decoder->rows.stride + column * decoder->rows.pixel;
    view->shape[1] = transposed ? stored->width : stored->height;
    view->shape[2] = transposed ? stored->height : stored->width;
    view->strides[0] = decoder->rows.channel;
    view->strides[1] = transposed ? along_rows : across_rows;
    view->strides[2] = transposed ? across_rows : along_rows;
}

/* Copies the view's pixels to planes in the oriented order, for fb_resize(). Returns 0, or -1 where fb_resize() would
 * fail. */
static int copy_oriented(fb_decoder *decoder, const fb_view *view, fb_rows *rows) {
    const int64_t stride = view->shape[2], plane = stride * view->shape[1];
    const int64_t planes = rows->channel ? decoder->header.channels : 1;
    unsigned char *out = fb_arena_take(&decoder->arena, (size_t)(plane * planes));
    if (out == NULL) return -1;
    rows->data = out;
    rows->stride = stride;
    rows->pixel = 1;
    rows->channel = planes > 1 ? plane : 0;
    for (int64_t i = 0; i < planes * view->shape[1]; i++) {
        if (fb_stopping(decoder->arena.stop)) return -1;
        const unsigned char *pixel = (const unsigned char *)view->data + i / view->shape[1] * view->strides[0] +
                                     i % view->shape[1] * view->strides[1];
        for (int64_t x = 0; x < view->shape[2]; x++, pixel += view->strides[2]) *out++ = *pixel;
    }
    return 0;
}

/* The view shows the part `shown` of an image of size `from`. Replaces it by `region` of that image resized to `to`. */
static int resize_shown(fb_decoder *decoder, const fb_region *shown, fb_size from, fb_size to, const fb_region *region,
                        fb_view *view, fb_error *error) {
    fb_rows resized, rows = {(unsigned char *)(uintptr_t)view->data,
                             view->strides[1],
                             shown->top,
                             shown->left,
                             view->strides[2],
                             view->strides[0]};
    int failed = decoder->header.orientation != 1 && copy_oriented(decoder, view, &rows) != 0;
    if (!failed) failed = fb_resize(&rows, decoder->header.channels, from, to, region, &decoder->arena, &resized);
    if (failed && fb_stopping(decoder->arena.stop)) return fb_fail_stopped(error);
    if (failed) return fb_fail(error, "no memory for resizing an image");
    view->data = resized.data;
    view->shape[1] = region->height;
    view->shape[2] = region->width;
    view->strides[0] = resized.channel;
    view->strides[1] = resized.stride;
    view->strides[2] = resized.pixel;
    return 0;
}

/* ---- the codec */

static int check_size(int new_height, int new_width, fb_error *error) {
    if (new_height <= FB_MAX_SIDE && new_width <= FB_MAX_SIDE && (int64_t)new_height * new_width <= FB_MAX_PIXELS)
        return 0;
    return fb_fail(
        error,
        "images cannot be resized to %d x %d (wide and high): at most 1048576 a side and 1073741824 pixels in all",
        new_width, new_height);
}

static int codec_begin(fb_decoder *decoder, const void *data, size_t size, const fb_decoding *decoding,
                       int64_t shape[3], fb_error *error) {
    const unsigned char *bytes = data;
    fb_header *header = &decoder->header;
    decoder->format = -1;
    if (check_size(decoding->new_height, decoding->new_width, error) != 0) return -1;
    fb_arena_empty(&decoder->arena);
    const int format = format_of(bytes, size);
    if (format < 0) return fail_with_format(bytes, size, error);
    void **reader = &decoder->readers[format];
    if (*reader == NULL) *reader = formats[format]->open(&decoder->arena);
    if (*reader == NULL) return fb_fail(error, "no memory for decoding a %s image", formats[format]->name);
    if (formats[format]->begin(*reader, bytes, size, decoding->color, header, error) != 0) return -1;
    const int transposed = is_transposed(header->orientation);
    decoder->oriented.height = transposed ? header->width : header->height;
    decoder->oriented.width = transposed ? header->height : header->width;
    decoder->size = decoder->oriented;
    if (decoding->new_height > 0 && decoding->new_width > 0)
        decoder->size = (fb_size){decoding->new_height, decoding->new_width};
    decoder->format = format;
    shape[0] = header->channels;
    shape[1] = decoder->size.height;
    shape[2] = decoder->size.width;
    return 0;
}

static int is_inside(const fb_region *region, int64_t height, int64_t width) {
    return region->top >= 0 && region->left >= 0 && region->height >= 1 && region->width >= 1 &&
           region->height <= height && region->width <= width && region->top <= height - region->height &&
           region->left <= width - region->width;
}

static int fail_outside(const fb_region *region, const char *what, int64_t height, int64_t width, fb_error *error) {
    return fb_fail(error,
                   "the region of %lld x %lld pixels (wide and high) at (%lld, %lld) is not inside of the %s of "
                   "%lld x %lld",
                   (long long)region->width, (long long)region->height, (long long)region->left, (long long)region->top,
                   what, (long long)width, (long long)height);
}

static int codec_finish(fb_decoder *decoder, const fb_region *region, fb_view *view, fb_error *error) {
    const fb_size size = decoder->size, oriented_size = decoder->oriented;
    const int format = decoder->format;
    decoder->format = -1;
    if (format < 0) return fb_fail(error, "finish() needs a begin() that succeeded, one for each call");
    if (!is_inside(region, size.height, size.width))
        return fail_outside(region, "image", size.height, size.width, error);
    const int resized = size.height != oriented_size.height || size.width != oriented_size.width;
    const fb_region oriented = resized ? fb_resize_needs(oriented_size, size, region) : *region;
    const fb_region stored = stored_region(&decoder->header, &oriented);
    const int way = formats[format]->read(decoder->readers[format], &stored, &decoder->rows, error);
    if (way < 0) return -1;
    decoder->counts[way]++;

    *view = (fb_view){.dtype = FB_UINT8, .ndim = 3, .shape = {decoder->header.channels}};
    show_oriented(decoder, &stored, view);
    return resized ? resize_shown(decoder, &oriented, oriented_size, size, region, view, error) : 0;
}

static int codec_finish_part(fb_decoder *decoder, const fb_region *region, int new_height, int new_width,
                             const fb_region *part, fb_view *view, fb_error *error) {
    const fb_size from = {region->height, region->width}, to = {new_height, new_width};
    const fb_size size = decoder->size;
    if (size.height != decoder->oriented.height || size.width != decoder->oriented.width)
        return fb_fail(error, "a part of an image that was resized already cannot be resized again");
    if (check_size(new_height, new_width, error) != 0) return -1;
    if (!is_inside(region, size.height, size.width))
        return fail_outside(region, "image", size.height, size.width, error);
    if (!is_inside(part, new_height, new_width))
        return fail_outside(part, "resized region", new_height, new_width, error);
    const int resizes = from.height != to.height || from.width != to.width;
    const fb_region shown = resizes ? fb_resize_needs(from, to, part) : *part; /* in the region */
    fb_region needed = shown;
    needed.top += region->top;
    needed.left += region->left;
    if (codec_finish(decoder, &needed, view, error) != 0) return -1;
    return resizes ? resize_shown(decoder, &shown, from, to, part, view, error) : 0;
}

static int codec_finish_resized(fb_decoder *decoder, const fb_region *region, int new_height, int new_width,
                                fb_view *view, fb_error *error) {
    const fb_region whole = {0, 0, new_height, new_width};
    return codec_finish_part(decoder, region, new_height, new_width, &whole, view, error);
}

static void codec_use_index(fb_decoder *decoder, fb_index *index, uint64_t identity) {
    const int format = decoder->format;
    if (format >= 0 && formats[format]->use_index)
        formats[format]->use_index(decoder->readers[format], index, identity);
}

static int codec_expect_output(fb_decoder *decoder, const void *memory, size_t size) {
    const int format = decoder->format;
    return format >= 0 && formats[format]->expect_output &&
           formats[format]->expect_output(decoder->readers[format], memory, size);
}

static uint64_t codec_count(const fb_decoder *decoder, int way) {
    return way >= 0 && way < FB_WAYS ? decoder->counts[way] : 0;
}

const fb_codec *fb_image_codec(void) {
    static const fb_codec codec = {
        .abi = FB_CODEC_ABI,
        .size = sizeof(fb_codec),
        .open = codec_open,
        .close = codec_close,
        .begin = codec_begin,
        .finish = codec_finish,
        .finish_resized = codec_finish_resized,
        .finish_part = codec_finish_part,
        .index_new = fb_index_new,
        .index_delete = fb_index_delete,
        .index_counts = fb_index_counts,
        .use_index = codec_use_index,
        .count = codec_count,
        .index_open = fb_index_open,
        .index_save = fb_index_save,
        .expect_output = codec_expect_output,
    };
    return &codec;
}

/* ---- one decoder for those who decode one image */

static fb_decoder *_Atomic spare;

fb_decoder *fb_decoder_borrow(void) {
    fb_decoder *decoder = atomic_exchange(&spare, NULL);
    return decoder ? decoder : codec_open(NULL);
}

void fb_decoder_return(fb_decoder *decoder) {
    enum { MOST = 4 << 20 }; /* bytes: photographs of half a megapixel, and their tables */
    if (decoder && fb_decoder_memory(decoder).held <= MOST) decoder = atomic_exchange(&spare, decoder);
    codec_close(decoder);
}
