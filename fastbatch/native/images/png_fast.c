/* What is left to libpng: interlaced images, other depths than 8 bits, gray that is computed from colors, a transparent
 * color, huge images, and whatever is not plainly good. All checks are libpng's or stricter, so that no damaged image is
 * decoded here. */
#include "png_fast.h"

#ifndef FB_LIBDEFLATE

int fb_png_fast(void **decompressor, const fb_png_header *header, const unsigned char *bytes, size_t size, size_t at,
                const fb_region *region, fb_arena *arena, fb_rows *rows) {
    (void)decompressor, (void)header, (void)bytes, (void)size, (void)at, (void)region, (void)arena, (void)rows;
    return 0;
}

void fb_png_fast_close(void *decompressor) {
    (void)decompressor;
}

int fb_png_fast_use(int on) {
    (void)on;
    return 0;
}

#else

#include <libdeflate.h>
#include <png.h>

#include "png_rows.h"

/* libpng inflates row by row; this takes the whole image's memory at once, and looks at `stop` only afterwards. */
#define MOST_BYTES ((size_t)64 << 20)
#define CHUNK_BYTES 12     /* of a chunk beside its content: length, kind, checksum */
#define ROWS_AT_ONCE 64    /* between two looks at `stop` */
#define LARGEST_WINDOW 0x7 /* of zlib's header: 32 KB */

static int in_use = 1; /* atomic */

int fb_png_fast_use(int on) {
    __atomic_store_n(&in_use, on, __ATOMIC_RELAXED);
    return on;
}

void fb_png_fast_close(void *decompressor) {
    if (decompressor) libdeflate_free_decompressor(decompressor);
}

/* ---- chunks */

typedef struct chunk {
    const unsigned char *kind, *content;
    size_t length, next; /* `next`: where the next chunk begins */
} chunk;

static uint32_t big_endian(const unsigned char *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* Returns whether a chunk begins at `at`, is as long as the file allows, and has the right checksum. */
static int get_chunk(const unsigned char *bytes, size_t size, size_t at, chunk *found) {
    if (size < CHUNK_BYTES || at > size - CHUNK_BYTES) return 0;
    found->length = big_endian(bytes + at);
    if (found->length > size - CHUNK_BYTES - at) return 0;
    found->kind = bytes + at + 4;
    found->content = found->kind + 4;
    found->next = at + CHUNK_BYTES + found->length;
    return libdeflate_crc32(0, found->kind, 4 + found->length) == big_endian(found->content + found->length);
}

static int is(const chunk *chunk, const char *kind) {
    return memcmp(chunk->kind, kind, 4) == 0;
}

/* Chunks that may stand between the pixels and the end, and that libpng is told to skip. */
static int is_skipped(const chunk *chunk) {
    return is(chunk, "tEXt") || is(chunk, "zTXt") || is(chunk, "iTXt") || is(chunk, "tIME") || is(chunk, "eXIf");
}

/* Finds the compressed pixels: in place if there is one chunk of them, as a copy if there are several. Returns NULL if
 * anything up to the image's end is unusual. */
static const unsigned char *get_pixels(const unsigned char *bytes, size_t size, size_t at, fb_arena *arena,
                                       size_t *length) {
    chunk found;
    const unsigned char *first = NULL;
    size_t end = at; /* of the chunks of pixels, which follow each other */
    *length = 0;
    for (size_t next = at;; next = found.next) {
        if (!get_chunk(bytes, size, next, &found)) return NULL;
        if (is(&found, "IEND")) break;
        if (is(&found, "IDAT") && next == end) {
            if (first == NULL) first = found.content;
            *length += found.length;
            end = found.next;
        } else if (!is_skipped(&found)) {
            return NULL;
        }
    }
    if (first == NULL || found.length != 0) return NULL;
    if (end == at + CHUNK_BYTES + *length) return first;
    unsigned char *const all = fb_arena_take(arena, *length);
    for (size_t next = at, used = 0; all && next < end; used += found.length, next = found.next) {
        get_chunk(bytes, size, next, &found);
        memcpy(all + used, found.content, found.length);
    }
    return all;
}

/* ---- pixels */

static size_t bytes_of_a_pixel(int color_type) {
    switch (color_type) {
        case PNG_COLOR_TYPE_GRAY_ALPHA: return 2;
        case PNG_COLOR_TYPE_RGB: return 3;
        case PNG_COLOR_TYPE_RGB_ALPHA: return 4;
        default: return 1;
    }
}

static fb_png_channels channels_of(const fb_png_header *header) {
    switch (header->color_type) {
        case PNG_COLOR_TYPE_GRAY: return header->channels == 1 ? FB_PNG_GRAY : FB_PNG_GRAY_THRICE;
        case PNG_COLOR_TYPE_GRAY_ALPHA:
            return header->channels == 1   ? FB_PNG_GRAY
                   : header->channels == 3 ? FB_PNG_GRAY_THRICE
                                           : FB_PNG_GRAY_AND_ALPHA;
        case PNG_COLOR_TYPE_RGB: return header->channels == 3 ? FB_PNG_COLOR : FB_PNG_GIVE_UP;
        case PNG_COLOR_TYPE_RGB_ALPHA:
            return header->channels == 1   ? FB_PNG_GIVE_UP
                   : header->channels == 3 ? FB_PNG_COLOR
                                           : FB_PNG_COLOR_AND_ALPHA;
        case PNG_COLOR_TYPE_PALETTE: return header->channels == 3 ? FB_PNG_PALETTE : FB_PNG_GIVE_UP;
        default: return FB_PNG_GIVE_UP;
    }
}

/* Returns whether the data inflate to exactly so many bytes. libdeflate accepts any distance up to 32 KB, and zlib those
 * within the window that the header claims. */
static int inflate_all(void **decompressor, const unsigned char *data, size_t length, unsigned char *out, size_t size) {
    size_t used, made;
    if (length < 2 || (data[0] >> 4 != LARGEST_WINDOW && (size_t)256 << (data[0] >> 4) < size)) return 0;
    if (*decompressor == NULL) *decompressor = libdeflate_alloc_decompressor();
    return *decompressor &&
           libdeflate_zlib_decompress_ex(*decompressor, data, length, out, size, &used, &made) == LIBDEFLATE_SUCCESS &&
           used == length && made == size;
}

int fb_png_fast(void **decompressor, const fb_png_header *header, const unsigned char *bytes, size_t size, size_t at,
                const fb_region *region, fb_arena *arena, fb_rows *rows) {
    const fb_png_channels channels = channels_of(header);
    const size_t pixel = bytes_of_a_pixel(header->color_type), length = (size_t)header->width * pixel;
    const size_t inflated = (size_t)header->height * (1 + length); /* each row begins with its filter */
    if (channels == FB_PNG_GIVE_UP || inflated > MOST_BYTES || !__atomic_load_n(&in_use, __ATOMIC_RELAXED)) return 0;
    size_t packed;
    const unsigned char *const data = get_pixels(bytes, size, at, arena, &packed);
    unsigned char *const first = data ? fb_arena_take(arena, inflated + length + FB_ROW_SLACK) : NULL;
    if (first == NULL || !inflate_all(decompressor, data, packed, first, inflated)) return 0;
    const int64_t bottom = region->top + region->height;
    for (int64_t y = bottom; y < header->height; y++) { /* the rows above follow, and are used as well */
        if (first[(size_t)y * (1 + length)] >= FB_PNG_FILTERS) return 0;
    }

    const int64_t stride = region->width * header->channels;
    unsigned char *const out = fb_arena_take(arena, (size_t)(stride * region->height) + FB_ROW_SLACK);
    if (out == NULL) return 0;
    const unsigned char *above = memset(first + inflated, 0, length);
    unsigned char *row = first;
    for (int64_t y = 0; y < bottom; y++, above = row + 1, row += 1 + length) {
        if (y % ROWS_AT_ONCE == 0 && fb_stopping(arena->stop)) return 0; /* libpng's loop says so */
        if (row[0] >= FB_PNG_FILTERS) return 0;
        fb_png_undo(row[0], row + 1, above, length, pixel);
        if (y < region->top) continue;
        if (!fb_png_convert(channels, row + 1 + (size_t)region->left * pixel, pixel, region->width, header->palette,
                            header->colors, out + (y - region->top) * stride))
            return 0;
    }
    *rows = (fb_rows){out, stride, region->top, region->left, header->channels, 1};
    return 1;
}

#endif
