/* Decodes PNG with libpng; the usual kinds with libdeflate, where it is there. The transformations are OpenCV's, and so
 * are the pixels. */
#include "png_fast.h"

#include <setjmp.h>

#include <png.h>

#define DEFLATE_RATIO 1032 /* the most bytes that one byte of deflate inflates to: https://zlib.net/zlib_tech.html */

typedef struct fb_png {
    png_structp library; /* of the current image; in the arena, like all of libpng's memory */
    png_infop info, end_info;
    fb_arena *arena;
    const unsigned char *bytes;
    size_t size, used;
    int channels;       /* of the decoded image */
    void *decompressor; /* of png_fast.c */
    fb_error *error;
    jmp_buf failed;
} fb_png;

__attribute__((noreturn)) static void give_up(png_structp library, png_const_charp text) {
    fb_png *png = png_get_error_ptr(library);
    fb_fail(png->error, "not a PNG image that can be decoded, or damaged: %s", text);
    longjmp(png->failed, 1);
}

/* Most warnings concern text and color profiles. Two kinds count as errors: warnings about the pixels' data, unless it
 * is only longer than needed; and warnings about a chunk that claims to be longer than the file, because libpng would
 * allocate memory for it next. */
static void warn(png_structp library, png_const_charp text) {
    if (strstr(text, "chunk data is too large")) give_up(library, text);
    if (strncmp(text, "IDAT: ", 6) == 0 && strstr(text, "Extra") == NULL && strstr(text, "Too much") == NULL)
        give_up(library, text);
}

static void *alloc(png_structp library, png_alloc_size_t size) {
    return fb_arena_take(((fb_png *)png_get_mem_ptr(library))->arena, size);
}

static void keep(png_structp library, void *memory) {
    (void)library, (void)memory; /* emptying the arena frees it */
}

static void read_bytes(png_structp library, png_bytep to, size_t count) {
    fb_png *png = png_get_io_ptr(library);
    if (count > png->size - png->used) {
        fb_fail(png->error, "the PNG image is truncated: its %zu bytes end before the image does", png->size);
        longjmp(png->failed, 1);
    }
    memcpy(to, png->bytes + png->used, count);
    png->used += count;
}

static void *open_reader(fb_arena *arena) {
    fb_png *png = calloc(1, sizeof *png);
    if (png) png->arena = arena;
    return png;
}

static void close_reader(void *reader) {
    fb_png_fast_close(((fb_png *)reader)->decompressor);
    free(reader);
}

/* Skips chunks that do not affect pixels, such as text, a suggested palette or a time. libpng would inflate and keep
 * the text, in memory that grows with the square of the number of such chunks. */
static void leave_out(png_structp library) {
#ifdef PNG_HANDLE_AS_UNKNOWN_SUPPORTED
    static const png_byte chunks[] = "bKGD\0eXIf\0hIST\0iTXt\0oFFs\0pCAL\0pHYs\0sCAL\0sPLT\0tEXt\0tIME\0zTXt";
    png_set_keep_unknown_chunks(library, PNG_HANDLE_CHUNK_NEVER, chunks, sizeof chunks / 5);
#else
    png_set_chunk_cache_max(library, 1);
#endif
}

static int unchanged_channels(fb_png *png, int color_type) {
    switch (color_type) {
        case PNG_COLOR_TYPE_RGB:
        case PNG_COLOR_TYPE_PALETTE: return png_get_valid(png->library, png->info, PNG_INFO_tRNS) ? 4 : 3;
        case PNG_COLOR_TYPE_GRAY_ALPHA:
        case PNG_COLOR_TYPE_RGB_ALPHA: return 4;
        default: return 1; /* gray; a transparent gray value is ignored */
    }
}

static int begin(void *reader, const unsigned char *bytes, size_t size, fb_color color, fb_header *header,
                 fb_error *error) {
    fb_png *png = reader;
    png->bytes = bytes;
    png->size = size;
    png->used = 0;
    png->error = error;
    if (setjmp(png->failed) != 0) return -1;
    png->library = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, png, give_up, warn, png, alloc, keep);
    png->info = png->library ? png_create_info_struct(png->library) : NULL;
    png->end_info = png->info ? png_create_info_struct(png->library) : NULL;
    if (png->end_info == NULL) return fb_fail(error, "no memory for decoding a PNG image");
    png_set_read_fn(png->library, png, read_bytes);
    png_set_chunk_malloc_max(png->library, size); /* has libpng warn of chunks longer than the file */
    leave_out(png->library);
    png_read_info(png->library, png->info);

    png_uint_32 width, height;
    int depth, color_type;
    png_get_IHDR(png->library, png->info, &width, &height, &depth, &color_type, NULL, NULL, NULL);
    const uint64_t bits = (uint64_t)depth * png_get_channels(png->library, png->info);
    if (fb_check_claim(height, width, (uint64_t)width * height * bits / 8 / DEFLATE_RATIO, size, error) != 0) return -1;
    if (color == FB_UNCHANGED && depth == 16) {
        return fb_fail(
            error,
            "the PNG image has 16 bits per channel, and keeps them unless color or gray is requested. Caffe: "
            "Image data type must be unsigned byte. Ask for color or gray (force_color, force_gray), or convert it to "
            "8 bits");
    }
    png->channels = color == FB_COLOR ? 3 : color == FB_GRAY ? 1 : unchanged_channels(png, color_type);
    *header = (fb_header){.height = height, .width = width, .channels = png->channels, .orientation = 1};
    return 0;
}

/* OpenCV's requests to libpng, which executes them in an order of its own. */
static int ask_for_channels(fb_png *png) {
    png_structp library = png->library;
    const int color_type = png_get_color_type(library, png->info), depth = png_get_bit_depth(library, png->info);
    const int has_color = color_type & PNG_COLOR_MASK_COLOR;
    if (depth == 16) png_set_strip_16(library);
    if (png->channels < 4) png_set_strip_alpha(library);
    else png_set_tRNS_to_alpha(library);
    if (color_type == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(library);
    if (!has_color && depth < 8) png_set_expand_gray_1_2_4_to_8(library);
    if (has_color && png->channels > 1) png_set_bgr(library);
    else if (png->channels > 1) png_set_gray_to_rgb(library);
    else png_set_rgb_to_gray(library, PNG_ERROR_ACTION_NONE, 0.299, 0.587);
    const int passes = png_set_interlace_handling(library);
    png_read_update_info(library, png->info);
    return passes;
}

/* Whether the image was decoded without libpng. */
static int read_fast(fb_png *png, const fb_region *region, fb_rows *rows) {
    png_structp library = png->library;
    png_colorp colors = NULL;
    fb_png_header header = {
        .height = png_get_image_height(library, png->info),
        .width = png_get_image_width(library, png->info),
        .color_type = png_get_color_type(library, png->info),
        .channels = png->channels,
    };
    if (png_get_bit_depth(library, png->info) != 8 || png_get_interlace_type(library, png->info) != PNG_INTERLACE_NONE)
        return 0;
    if (png_get_PLTE(library, png->info, &colors, &header.colors)) header.palette = &colors->red;
    /* libpng has read the length and the kind of the first chunk of pixels. */
    return fb_png_fast(&png->decompressor, &header, png->bytes, png->size, png->used - 8, region, png->arena, rows);
}

static int read(void *reader, const fb_region *region, fb_rows *rows, fb_error *error) {
    fb_png *png = reader;
    png->error = error;
    if (setjmp(png->failed) != 0) return -1;
    if (read_fast(png, region, rows)) return FB_BY_LIBDEFLATE;
    const int passes = ask_for_channels(png);
    const int64_t height = png_get_image_height(png->library, png->info);
    const int64_t width = png_get_image_width(png->library, png->info);
    const int64_t stride = width * png->channels;
    if ((int64_t)png_get_rowbytes(png->library, png->info) != stride) {
        return fb_fail(error, "libpng gives rows of %zu bytes where %lld were expected",
                       png_get_rowbytes(png->library, png->info), (long long)stride);
    }

    /* All rows are decoded, because the checksum comes last. Unless the image is interlaced, only the region's rows are
     * kept. */
    const int64_t first = passes > 1 ? 0 : region->top;
    const int64_t last = passes > 1 ? height : region->top + region->height;
    const size_t size = (size_t)(stride * (last - first)) + FB_ROW_SLACK;
    unsigned char *data = fb_arena_take(png->arena, size);
    if (data == NULL) return fb_fail(error, "no memory for decoding a PNG image (%zu bytes)", size);
    *rows = (fb_rows){data, stride, first, 0, png->channels, 1};
    for (int pass = 0; pass < passes; pass++) {
        for (int64_t y = 0; y < height; y++) {
            if (fb_stopping(png->arena->stop)) return fb_fail_stopped(error);
            png_read_row(png->library, y >= first && y < last ? data + (y - first) * stride : NULL, NULL);
        }
    }
    png_read_end(png->library, png->end_info);
    return FB_BY_LIBPNG;
}

const fb_format fb_png_format = {
    .name = "PNG",
    .magic = "\x89PNG\r\n\x1a\n",
    .magic_size = 8,
    .open = open_reader,
    .close = close_reader,
    .begin = begin,
    .read = read,
};
