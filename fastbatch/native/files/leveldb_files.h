/* Checks a LevelDB database's own files before LevelDB opens them.
 *
 * LevelDB trusts a block's offset and size. A table's footer stores them without a checksum. One flipped bit there
 * makes LevelDB allocate so much memory that std::bad_alloc escapes its C interface and ends the process. If offset and
 * size overflow, LevelDB reads outside the file. If a file is a pipe, LevelDB waits for ever.
 *
 * Formats: https://github.com/google/leveldb/blob/main/doc/table_format.md, log_format.md and db/version_edit.cc. */
#ifndef FASTBATCH_LEVELDB_FILES_H
#define FASTBATCH_LEVELDB_FILES_H

#include "fastbatch.h"

/* Returns 0, or -1 with *error if LevelDB must not open the database. LevelDB itself reports other damage. Needs no
 * GIL. */
int fb_leveldb_check(const char *directory, fb_error *error);

#endif
