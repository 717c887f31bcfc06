#include "leveldb_files.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    FOOTER = 48,       /* bytes at the end of a table: two block handles and a magic number */
    TRAILER = 5,       /* bytes after each block: its compression and a checksum */
    LOG_BLOCK = 32768, /* bytes of each block of MANIFEST */
    LOG_HEADER = 7,    /* bytes before each piece of a record: a checksum, the piece's length and type */
    LONGEST_CURRENT = 4096,
};
#define MAGIC UINT64_C(0xdb4775248b80fb57)

typedef struct bytes {
    const unsigned char *at, *end;
} bytes;

static int varint(bytes *in, int most_bits, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < most_bits && in->at < in->end; shift += 7) {
        const unsigned char byte = *in->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return 0;
    }
    return -1;
}

static int varint32(bytes *in, uint64_t *value) {
    return varint(in, 32, value);
}

static int varint64(bytes *in, uint64_t *value) {
    return varint(in, 64, value);
}

static uint32_t fixed32(const unsigned char *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static int skip_string(bytes *in) {
    uint64_t size;
    if (varint32(in, &size) != 0 || size > (uint64_t)(in->end - in->at)) return -1;
    in->at += size;
    return 0;
}

/* Returns the number of bytes read, which is less than `size` at the end of the file, or -1 with errno. */
static ssize_t read_at(int file, void *memory, size_t size, uint64_t offset) {
    size_t done = 0;
    while (done < size) {
        const ssize_t got = pread(file, (char *)memory + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

/* Opens a file without blocking, even if it is a pipe. */
static int open_to_read(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    /* another process holds a lease on the file and is releasing it */
    if (file < 0 && errno == EWOULDBLOCK) file = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    return file;
}

/* ---- names ---- */

static int is_number(const char *name, const char *suffix) {
    const size_t digits = strspn(name, "0123456789");
    return digits > 0 && strcmp(name + digits, suffix) == 0;
}

static int is_leveldbs(const char *name) {
    return strcmp(name, "CURRENT") == 0 || strcmp(name, "LOCK") == 0 || strncmp(name, "MANIFEST-", 9) == 0 ||
           is_number(name, ".log") || is_number(name, ".ldb") || is_number(name, ".sst");
}

static const char *kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
        case S_IFIFO: return "a pipe";
        case S_IFSOCK: return "a socket";
        case S_IFDIR: return "a directory";
        default: return "a device";
    }
}

static int check_regular(const char *directory, const char *name, fb_error *error) {
    char path[PATH_MAX];
    struct stat status;
    if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path || stat(path, &status) != 0) return 0;
    if (S_ISREG(status.st_mode)) return 0;
    return fb_fail(error, "its %s is not a file but %s", name, kind_of(status.st_mode));
}

static int check_names(const char *directory, fb_error *error) {
    DIR *const listing = opendir(directory);
    if (listing == NULL) return 0;
    int code = 0;
    for (const struct dirent *entry; code == 0 && (entry = readdir(listing)) != NULL;) {
        if (is_leveldbs(entry->d_name)) code = check_regular(directory, entry->d_name, error);
    }
    closedir(listing);
    return code;
}

/* ---- tables ---- */

typedef struct table {
    uint64_t number;
    uint64_t size;  /* as MANIFEST says; LevelDB expects the footer before this offset */
    uint64_t event; /* counts MANIFEST's entries: of several for one number, the last one counts */
    int live;
} table;

static int bad_block(const char *name, const char *what, uint64_t offset, uint64_t size, uint64_t present,
                     fb_error *error) {
    return fb_fail(
        error,
        "its table %s is damaged: %s says that a block of %llu bytes lies at byte %llu, but the table has %llu bytes",
        name, what, (unsigned long long)size, (unsigned long long)offset, (unsigned long long)present);
}

static int fits(uint64_t offset, uint64_t size, uint64_t present) {
    return size <= present && present - size >= TRAILER && offset <= present - size - TRAILER;
}

/* Decompresses with the Snappy library that LevelDB has loaded. *plain stays NULL if there is none, or if the data are
 * damaged, which LevelDB reports. Returns 0, or -1 with *error if LevelDB would allocate too much. */
static int uncompress(const unsigned char *data, size_t size, unsigned char **plain, size_t *plain_size,
                      const char *name, fb_error *error) {
    static const int is_loaded = RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD;
    void *const library = dlopen("libsnappy.so.1", is_loaded);
    if (library == NULL) return 0;
    int (*const length)(const char *, size_t, size_t *) =
        (int (*)(const char *, size_t, size_t *))dlsym(library, "snappy_uncompressed_length");
    int (*const snappy)(const char *, size_t, char *, size_t *) =
        (int (*)(const char *, size_t, char *, size_t *))dlsym(library, "snappy_uncompress");
    int code = 0;
    if (length != NULL && snappy != NULL && length((const char *)data, size, plain_size) == 0) {
        if (*plain_size / 22 > size) { /* Snappy writes at least 3 bytes for every 64 */
            code =
                fb_fail(error, "its table %s is damaged: its index of %zu bytes says that it is %zu bytes uncompressed",
                        name, size, *plain_size);
        } else if ((*plain = malloc(*plain_size + 1)) == NULL) {
            code = fb_fail(error, "no memory for the %zu bytes of the index of its table %s", *plain_size, name);
        } else if (snappy((const char *)data, size, (char *)*plain, plain_size) != 0) {
            free(*plain);
            *plain = NULL;
        }
    }
    dlclose(library);
    return code;
}

/* Checks the block handles in an index. Garbage is left to LevelDB, because it cannot match LevelDB's checksum. */
static int check_entries(const unsigned char *block, size_t size, uint64_t present, const char *name, fb_error *error) {
    if (size < 4) return 0;
    const uint64_t restarts = fixed32(block + size - 4);
    if (restarts > (size - 4) / 4) return 0;
    bytes in = {block, block + size - 4 - 4 * restarts};
    while (in.at < in.end) {
        uint64_t shared, own, value_size, offset, block_size;
        if (varint32(&in, &shared) != 0 || varint32(&in, &own) != 0 || varint32(&in, &value_size) != 0) return 0;
        if (own > (uint64_t)(in.end - in.at) || value_size > (uint64_t)(in.end - in.at) - own) return 0;
        in.at += own;
        bytes value = {in.at, in.at + value_size};
        in.at += value_size;
        if (varint64(&value, &offset) != 0 || varint64(&value, &block_size) != 0) return 0;
        if (!fits(offset, block_size, present)) return bad_block(name, "its index", offset, block_size, present, error);
    }
    return 0;
}

static int check_index(int file, uint64_t offset, uint64_t size, uint64_t present, const char *name, fb_error *error) {
    unsigned char *const block = malloc(size + TRAILER);
    if (block == NULL) {
        return fb_fail(error, "no memory for the %llu bytes of the index of its table %s", (unsigned long long)size,
                       name);
    }
    int code = 0;
    unsigned char *plain = NULL;
    size_t plain_size = 0;
    if (read_at(file, block, size + TRAILER, offset) == (ssize_t)(size + TRAILER)) {
        if (block[size] == 0) code = check_entries(block, size, present, name, error);
        if (block[size] == 1) code = uncompress(block, size, &plain, &plain_size, name, error);
        if (plain != NULL) code = check_entries(plain, plain_size, present, name, error);
    }
    free(plain);
    free(block);
    return code;
}

static int check_open_table(int file, const table *listed, const char *name, fb_error *error) {
    unsigned char footer[FOOTER];
    struct stat status;
    if (fstat(file, &status) != 0 || listed->size < FOOTER) return 0;
    const uint64_t present = (uint64_t)status.st_size;
    if (present < listed->size) {
        return fb_fail(error, "its table %s was cut short: it has %llu bytes of %llu", name,
                       (unsigned long long)present, (unsigned long long)listed->size);
    }
    if (read_at(file, footer, FOOTER, listed->size - FOOTER) != FOOTER) return 0;
    if ((fixed32(footer + FOOTER - 8) | (uint64_t)fixed32(footer + FOOTER - 4) << 32) != MAGIC) return 0;
    bytes in = {footer, footer + FOOTER - 8};
    uint64_t offset, size;
    for (int i = 0; i < 2; i++) { /* the handles of the meta index, which Caffe's tables do not use, and of the index */
        if (varint64(&in, &offset) != 0 || varint64(&in, &size) != 0) return 0;
    }
    if (!fits(offset, size, present)) return bad_block(name, "its footer", offset, size, present, error);
    return check_index(file, offset, size, present, name, error);
}

static int check_table(const char *directory, const table *listed, fb_error *error) {
    static const char *const suffixes[] = {"ldb", "sst"};
    for (int i = 0; i < 2; i++) {
        char path[PATH_MAX];
        const int length =
            snprintf(path, sizeof path, "%s/%06llu.%s", directory, (unsigned long long)listed->number, suffixes[i]);
        if (length >= (int)sizeof path) return 0;
        const char *const name = strrchr(path, '/') + 1;
        const int file = open_to_read(path);
        if (file < 0 && errno == ENOENT) continue;
        if (file < 0) return fb_fail(error, "its table %s cannot be opened: %s", name, strerror(errno));
        const int code = check_open_table(file, listed, name, error);
        close(file);
        return code;
    }
    return 0;
}

/* ---- MANIFEST: which tables there are ---- */

typedef struct tables {
    table *all;
    size_t count, room;
} tables;

/* Returns 0, or -1 if memory runs out. */
static int add_table(tables *known, uint64_t number, uint64_t size, int live) {
    if (known->count == known->room) {
        const size_t room = known->room ? 2 * known->room : 256;
        table *const grown = realloc(known->all, room * sizeof *grown);
        if (grown == NULL) return -1;
        known->all = grown;
        known->room = room;
    }
    known->all[known->count] = (table){.number = number, .size = size, .event = known->count, .live = live};
    known->count++;
    return 0;
}

/* Reads one record, a VersionEdit. Returns 0, or -1 if memory runs out. */
static int read_edit(bytes in, tables *known) {
    enum {
        COMPARATOR = 1,
        LOG = 2,
        NEXT_FILE = 3,
        LAST_SEQUENCE = 4,
        COMPACT_POINTER = 5,
        DELETED = 6,
        NEW = 7,
        PREVIOUS_LOG = 9
    };
    while (in.at < in.end) {
        uint64_t tag, level, number, size;
        if (varint32(&in, &tag) != 0) return 0;
        switch (tag) {
            case COMPARATOR:
                if (skip_string(&in) != 0) return 0;
                break;
            case LOG:
            case NEXT_FILE:
            case LAST_SEQUENCE:
            case PREVIOUS_LOG:
                if (varint64(&in, &number) != 0) return 0;
                break;
            case COMPACT_POINTER:
                if (varint32(&in, &level) != 0 || skip_string(&in) != 0) return 0;
                break;
            case DELETED:
                if (varint32(&in, &level) != 0 || varint64(&in, &number) != 0) return 0;
                if (add_table(known, number, 0, 0) != 0) return -1;
                break;
            case NEW:
                if (varint32(&in, &level) != 0 || varint64(&in, &number) != 0 || varint64(&in, &size) != 0) return 0;
                if (skip_string(&in) != 0 || skip_string(&in) != 0) return 0;
                if (add_table(known, number, size, 1) != 0) return -1;
                break;
            default: return 0;
        }
    }
    return 0;
}

/* Returns 0, or -1 if memory runs out. */
static int read_manifest(int file, tables *known) {
    enum { FULL = 1, FIRST = 2, MIDDLE = 3, LAST = 4 };
    unsigned char block[LOG_BLOCK];
    unsigned char *record = NULL;
    size_t size = 0, room = 0;
    int code = 0;
    ssize_t got = LOG_BLOCK;
    for (uint64_t offset = 0; code == 0 && got == LOG_BLOCK; offset += LOG_BLOCK) {
        got = read_at(file, block, LOG_BLOCK, offset);
        for (ssize_t at = 0; code == 0 && at + LOG_HEADER <= got;) {
            const size_t length = (size_t)block[at + 4] | (size_t)block[at + 5] << 8;
            const int type = block[at + 6];
            at += LOG_HEADER;
            if (length > (size_t)(got - at)) break;
            if (type == FULL || type == FIRST) size = 0;
            if (size + length > room) {
                room = 2 * (size + length);
                unsigned char *const grown = realloc(record, room);
                if (grown == NULL) {
                    code = -1;
                    break;
                }
                record = grown;
            }
            if (length > 0) memcpy(record + size, block + at, length);
            size += length;
            at += (ssize_t)length;
            if (size > 0 && (type == FULL || type == LAST)) code = read_edit((bytes){record, record + size}, known);
        }
    }
    free(record);
    return code;
}

/* Builds the path of the MANIFEST that CURRENT names. Returns 0, 1 if there is none, or -1 with *error. */
static int find_manifest(const char *directory, char *path, size_t room, fb_error *error) {
    char name[LONGEST_CURRENT + 1];
    if (snprintf(path, room, "%s/CURRENT", directory) >= (int)room) return 1;
    const int file = open_to_read(path);
    if (file < 0) return errno == ENOENT ? 1 : fb_fail(error, "its CURRENT cannot be opened: %s", strerror(errno));
    const ssize_t size = read_at(file, name, sizeof name, 0);
    close(file);
    if (size > LONGEST_CURRENT) {
        return fb_fail(error, "its CURRENT has more than %d bytes, and not the name of a file", LONGEST_CURRENT);
    }
    if (size < 1 || name[size - 1] != '\n') return 1;
    name[size - 1] = 0;
    if (check_regular(directory, name, error) != 0) return -1;
    return snprintf(path, room, "%s/%s", directory, name) >= (int)room;
}

static int by_number(const void *one, const void *other) {
    const table *const a = one, *const b = other;
    if (a->number != b->number) return a->number < b->number ? -1 : 1;
    return a->event < b->event ? -1 : 1;
}

int fb_leveldb_check(const char *directory, fb_error *error) {
    char manifest[PATH_MAX];
    if (check_names(directory, error) != 0) return -1;
    int code = find_manifest(directory, manifest, sizeof manifest, error);
    if (code != 0) return code < 0 ? -1 : 0;
    const int file = open_to_read(manifest);
    if (file < 0) return errno == ENOENT ? 0 : fb_fail(error, "its MANIFEST cannot be opened: %s", strerror(errno));
    tables known = {0};
    code = read_manifest(file, &known);
    close(file);
    if (code != 0) fb_fail(error, "no memory for its list of tables");
    if (known.count > 0) qsort(known.all, known.count, sizeof *known.all, by_number);
    for (size_t i = 0; code == 0 && i < known.count; i++) {
        const int last = i + 1 == known.count || known.all[i + 1].number != known.all[i].number;
        if (last && known.all[i].live) code = check_table(directory, &known.all[i], error);
    }
    free(known.all);
    return code;
}
