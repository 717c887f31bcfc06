/* An index of JPEG images as a file: entries by the bytes of their images, wherever these come from.
 *
 *     header        fb_index_header, 64 bytes
 *     entries       fb_jpeg_entry each, at multiples of 8 bytes, one behind the other in the order of the table
 *     table         fb_index_row for each entry, by rising `check`
 *
 * All numbers are little-endian. In a file, an entry's `identity` is the hash of what follows it. A place is the number
 * of bits behind the place before it in its row; of the first one, 0. Bits are those of the image file's scan, with
 * stuffed bytes and restart markers: nothing before a place has to be read.
 *
 * Entries are read into the decoder's memory each time, which takes less than a microsecond and is shared by all
 * processes in the system's page cache. A mapping would end the process if somebody cut the file short, or if its disk
 * failed. Nothing that is read is believed before its hash and its numbers agree. */
#ifndef FASTBATCH_JPEG_INDEX_FILE_H
#define FASTBATCH_JPEG_INDEX_FILE_H

#include "jpeg_index.h"

typedef struct packed_place {
    uint16_t bits; /* since the place before */
    int16_t predictors[3];
} packed_place;

struct fb_jpeg_entry {
    uint64_t identity; /* of the image in its source */
    uint64_t check;
    uint64_t content; /* the hash of all of the image's bytes; 0 if the index has no file */
    uint32_t rows;
    uint16_t mcus_per_row, every, per_row; /* per_row: places */
    uint16_t padding;                      /* 0 */
    _Atomic uint32_t unknown; /* rows, the last ones; with FB_GROWING while their number changes. Files: 0 */
    uint32_t data[];          /* for each row its first bit; then the places */
};

#define FB_GROWING (UINT32_C(1) << 31)

static inline size_t fb_jpeg_size_of_entry(int64_t rows, int64_t places) {
    return sizeof(fb_jpeg_entry) + (size_t)rows * (sizeof(uint32_t) + (size_t)places * sizeof(packed_place));
}

/* Part of the file's format: another one needs another FB_INDEX_VERSION. */
uint64_t fb_jpeg_hash(const void *memory, size_t size);

#define FB_INDEX_MAGIC \
    "\x8a" \
    "fbindex"
#define FB_INDEX_VERSION 1

typedef struct fb_index_header {
    char magic[8];
    uint32_t order; /* FB_INDEX_ORDER, in the byte order of the file */
    uint32_t version;
    uint64_t size;   /* of the file */
    uint64_t images; /* entries */
    uint64_t table;  /* where it begins */
    uint64_t table_hash;
    uint64_t zero;
    uint64_t hash; /* of the header before */
} fb_index_header;

#define FB_INDEX_ORDER UINT32_C(0x01020304)

typedef struct fb_index_row {
    uint64_t check, offset;
} fb_index_row;

typedef struct fb_index_file fb_index_file;

/* Sets *opened to the file, or to NULL if there is none. Returns 0; 1 with *error, and *opened NULL, if it is damaged; or
 * -1 with *error if nothing can be read from there, or nothing should be written there. */
int fb_index_file_open(const char *path, fb_index_file **opened, fb_error *error);
void fb_index_file_close(fb_index_file *file); /* NULL is allowed */

uint64_t fb_index_file_images(const fb_index_file *file); /* of NULL: 0 */
size_t fb_index_file_memory(const fb_index_file *file);

/* Returns the image's entry, which lies in the arena; or NULL. For any number of threads at a time. */
fb_jpeg_entry *fb_index_file_find(fb_index_file *file, const fb_jpeg_name *name, fb_arena *arena);

/* Writes a file with what is in the file now, and with these entries, which are sorted thereby. Replaces the file in one
 * step, when the new one is complete. Returns 0, or -1 with *error. */
int fb_index_file_write(const char *path, const fb_jpeg_entry **entries, size_t count, fb_error *error);

#endif
