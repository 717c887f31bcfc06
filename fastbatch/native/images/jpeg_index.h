/* An index of JPEG images: where in their data decoding can begin.
 *
 * Huffman codes can only be read from the beginning, except where somebody noted the bit at which an MCU begins and the
 * three predictors there. The first decode of an image notes such places; later ones read only what the region needs.
 *
 * A decode notes the rows that it reads, down to the region's end. One whose region lies lower goes on from there, and
 * notes the rows in between. So no decode reads more than it would without an index.
 *
 * A source has one index, which all its workers and loaders use at the same time. Entries are added and never removed,
 * and what one says does not change, so that finding one takes no lock. */
#ifndef FASTBATCH_JPEG_INDEX_H
#define FASTBATCH_JPEG_INDEX_H

#include "fastbatch_image.h"

#include "arena.h"

/* A place in a file's scan. */
typedef struct fb_jpeg_place {
    int64_t bit;
    int32_t restarts; /* restart markers before it, while it is being noted */
    int32_t predictors[3];
} fb_jpeg_place;

/* The MCUs between two places of a row. With 8, an index of 500 x 375 pixels takes 0.8 KB and a crop of 227 a third of
 * the time that libjpeg-turbo takes; with 4, twice the memory for 5 % less time. */
#define FB_JPEG_EVERY 8

typedef struct fb_jpeg_entry fb_jpeg_entry; /* of one image */

/* What a decode has noted: all places of some rows, row by row, and the first one of the row below, if there is one. */
typedef struct fb_jpeg_notes {
    int64_t first, end; /* the rows of MCUs */
    fb_jpeg_place *places;
} fb_jpeg_notes;

/* The image: what tells its bytes from those of others. */
typedef struct fb_jpeg_name {
    uint64_t identity; /* from its source, or made of all its bytes; not 0 */
    uint64_t check;    /* made of its size, its header and some of its bytes */
    const unsigned char *bytes;
    size_t size;
} fb_jpeg_name;

/* `scan`: where the coded data begin. identity: the source's; 0: there is none. */
fb_jpeg_name fb_jpeg_name_of(uint64_t identity, const unsigned char *bytes, size_t size, size_t scan);

/* Returns the image's entry, or NULL. Valid as long as the index and the arena's memory. */
fb_jpeg_entry *fb_jpeg_find_entry(fb_index *index, const fb_jpeg_name *name, fb_arena *arena);

/* Whether an image's entry may find room; without a lock, so that it may have found none when it comes. */
int fb_jpeg_has_room(fb_index *index);

/* Whether an image's first entry must have all rows: for a file, in which it stays as it is. */
int fb_jpeg_wants_all(const fb_index *index);

/* The MCUs between the places of a row that are to be noted. */
static inline int64_t fb_jpeg_every(int64_t mcus_per_row) {
    return mcus_per_row < 2 * FB_JPEG_EVERY ? mcus_per_row : FB_JPEG_EVERY;
}

/* Adds an image whose noted rows, from the first one on, are good. Does nothing if there is no room, or if the image
 * cannot be described. */
void fb_jpeg_add_entry(fb_index *index, const fb_jpeg_name *name, const fb_jpeg_notes *notes, int64_t rows,
                       int64_t mcus_per_row);

/* Adds rows to an entry that knows those above. Does nothing if another worker was faster. */
void fb_jpeg_extend_entry(fb_jpeg_entry *entry, const fb_jpeg_notes *notes);

/* How many rows the entry knows, from the first one on; and the first place of the next one. */
int64_t fb_jpeg_known_rows(const fb_jpeg_entry *entry);

/* Whether the entry is one of an image with this many MCUs. */
int fb_jpeg_entry_fits(const fb_jpeg_entry *entry, int64_t rows, int64_t mcus_per_row);

/* The data of a row's MCUs from `first` on: *place is the last place before it, as a bit in the file's scan. Returns
 * which MCU that is. */
int64_t fb_jpeg_seek_entry(const fb_jpeg_entry *entry, int64_t row, int64_t first, fb_jpeg_place *place);

/* The bit in the file's scan where the first place behind the row's MCU `last` is. -1: at the end of the scan. */
int64_t fb_jpeg_end_of_entry(const fb_jpeg_entry *entry, int64_t row, int64_t last);

/* The codec's functions: see fastbatch_image.h. */
fb_index *fb_index_new(uint64_t count, uint64_t limit);
void fb_index_delete(fb_index *index);
void fb_index_counts(fb_index *index, uint64_t *images, uint64_t *bytes);
int fb_index_open(fb_index *index, const char *path, fb_error *error);
int fb_index_save(fb_index *index, fb_error *error);

#endif
