/* Looks at a LevelDB database's own files before LevelDB opens them.
 *
 * LevelDB takes the place and size of a block for true. Where that stands in a table's footer, which has no checksum,
 * one flipped bit makes it ask for so much memory that std::bad_alloc leaves its C interface and ends the process;
 * where the two overflow, it reads outside of the file. And it waits for ever for a file that is a pipe.
 *
 * Formats: https://github.com/google/leveldb/blob/main/doc/table_format.md, log_format.md and db/version_edit.cc. */
#ifndef FASTBATCH_LEVELDB_FILES_H
#define FASTBATCH_LEVELDB_FILES_H

#include "fastbatch.h"

/* 0, or -1 with *error: what no LevelDB should open. Whatever else is wrong is left to LevelDB, which has words for
 * it. Needs no GIL. */
int fb_leveldb_check(const char *directory, fb_error *error);

#endif
