/* Checks the pages of an LMDB database without LMDB. LMDB trusts the pages' contents: a page of zeros, as an
 * interrupted copy leaves, or one wrong byte in a page's offsets ends the process.
 *
 * The check reads the pages that a cursor reads from the first record to the last: meta, branch and leaf pages, but not
 * the overflow pages that hold large records. Format: MDB_meta, MDB_page and MDB_node of mdb.c in LMDB 0.9, data
 * version 1, 64 bits. */
#ifndef FASTBATCH_LMDB_FILE_H
#define FASTBATCH_LMDB_FILE_H

#include "fastbatch.h"

/* Checks, before LMDB opens the file, that its meta pages do not point outside it. Returns 0 and sets *map_size to the
 * map size that they request, or to 0 if it is unknown; or returns -1 with *error. A file that is not LMDB's passes:
 * LMDB rejects it. */
int fb_lmdb_check_meta(const char *path, uint64_t *map_size, fb_error *error);

/* A walk over all pages that a read transaction reaches. */
typedef struct fb_lmdb_walk fb_lmdb_walk;

/* Returns a walk of the transaction with this number, from the first record on, or NULL if memory runs out. */
fb_lmdb_walk *fb_lmdb_walk_new(int file, uint64_t transaction);
void fb_lmdb_walk_delete(fb_lmdb_walk *walk);

enum { FB_LMDB_DAMAGED = -1, FB_LMDB_DONE = 0, FB_LMDB_MORE = 1, FB_LMDB_UNKNOWN = 2 };

/* Visits up to `pages` more pages. FB_LMDB_UNKNOWN: the file no longer has this transaction, or has another format. */
int fb_lmdb_walk_on(fb_lmdb_walk *walk, uint64_t pages, fb_error *error);

/* The offset of the first record's key in the file, known once the walk has visited its first leaf; and the number of
 * bytes that the transaction uses. */
uint64_t fb_lmdb_first_key(const fb_lmdb_walk *walk);
uint64_t fb_lmdb_used(const fb_lmdb_walk *walk);

#endif
