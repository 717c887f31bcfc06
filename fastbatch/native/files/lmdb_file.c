#include "lmdb_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PAGE_HEADER = 16, /* number (8), pad (2), flags (2), lower (2), upper (2) */
    NODE_HEADER = 8,  /* low and high half of a size or page number (2 + 2), flags (2), size of the key (2) */
    META_SIZE = 152,  /* including the page header */
    LEAST_PAGE = 512,
    LARGEST_PAGE = 65536,
    DEEPEST = 32, /* LMDB's cursors go no deeper */
};
enum { BRANCH = 0x01, LEAF = 0x02, OVERFLOW = 0x04, META = 0x08, LEAF2 = 0x20, SUBPAGE = 0x40 }; /* flags of pages */
enum { BIG = 0x01, SUBDATA = 0x02, DUPLICATES = 0x04 };                                          /* flags of nodes */
#define MAGIC 0xbeefc0de
#define NO_PAGE UINT64_MAX

typedef struct meta {
    uint64_t map_size, page_size, root, entries, last_page, transaction;
} meta;

typedef struct level {
    unsigned char *page;
    uint64_t number;
    unsigned count, next; /* number of nodes, and the index of the one to visit next */
} level;

struct fb_lmdb_walk {
    int file;
    uint64_t transaction;
    int begun, finished;
    meta meta;
    uint64_t entries; /* visited so far */
    uint64_t first_key;
    unsigned char *seen; /* a bit for each page */
    int depth, leaf_depth;
    level levels[DEEPEST];
};

static uint16_t get16(const unsigned char *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t get32(const unsigned char *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t get64(const unsigned char *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Returns 0, or -1 if the file ends early (errno is 0) or cannot be read. */
static int read_at(int file, void *memory, size_t size, uint64_t offset) {
    for (size_t done = 0; done < size;) {
        const ssize_t got = pread(file, (char *)memory + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = 0;
        if (got <= 0) return -1;
        done += (size_t)got;
    }
    return 0;
}

/* ---- meta pages ---- */

/* Returns 0, or -1 if this is not a meta page of this format; LMDB reports that itself. */
static int read_meta(int file, uint64_t offset, meta *found) {
    unsigned char page[META_SIZE];
    if (sizeof(size_t) != 8 || read_at(file, page, sizeof page, offset) != 0) return -1;
    const unsigned char *const begin = page + PAGE_HEADER, *const main = begin + 24 + 48;
    if (!(get16(page + 10) & META) || get32(begin) != MAGIC || get32(begin + 4) != 1) return -1;
    *found = (meta){
        .map_size = get64(begin + 16),
        .page_size = get32(begin + 24), /* stored in the `pad` member of the first MDB_db, the free list's */
        .entries = get64(main + 32),
        .root = get64(main + 40),
        .last_page = get64(begin + 24 + 96),
        .transaction = get64(begin + 24 + 104),
    };
    return 0;
}

static int is_page_size(uint64_t size) {
    return size >= LEAST_PAGE && size <= LARGEST_PAGE && (size & (size - 1)) == 0;
}

static int check_metas(int file, uint64_t *map_size, fb_error *error) {
    meta metas[2];
    struct stat status;
    if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || read_meta(file, 0, &metas[0]) != 0) return 0;
    if (!is_page_size(metas[0].page_size)) {
        return fb_fail(error, "data.mdb is damaged: it says that its pages have %llu bytes",
                       (unsigned long long)metas[0].page_size);
    }
    if (read_meta(file, metas[0].page_size, &metas[1]) != 0) return 0;
    for (int i = 0; i < 2; i++) {
        if (metas[i].page_size != metas[0].page_size) {
            return fb_fail(error, "data.mdb is damaged: its two meta pages say that its pages have %llu and %llu bytes",
                           (unsigned long long)metas[0].page_size, (unsigned long long)metas[1].page_size);
        }
        if (metas[i].map_size > *map_size) *map_size = metas[i].map_size;
        const uint64_t present = (uint64_t)status.st_size / metas[i].page_size;
        if (metas[i].last_page >= present) {
            return fb_fail(error,
                           "data.mdb has %lld bytes, but says that it uses %llu pages of %llu: it was cut short, by an "
                           "interrupted copy perhaps, or is damaged",
                           (long long)status.st_size, (unsigned long long)metas[i].last_page + 1,
                           (unsigned long long)metas[i].page_size);
        }
    }
    return 0;
}

int fb_lmdb_check_meta(const char *path, uint64_t *map_size, fb_error *error) {
    *map_size = 0;
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file < 0) return 0;
    const int code = check_metas(file, map_size, error);
    close(file);
    return code;
}

/* ---- the walk ---- */

fb_lmdb_walk *fb_lmdb_walk_new(int file, uint64_t transaction) {
    fb_lmdb_walk *const walk = calloc(1, sizeof *walk);
    if (walk == NULL) return NULL;
    walk->file = file;
    walk->transaction = transaction;
    return walk;
}

void fb_lmdb_walk_delete(fb_lmdb_walk *walk) {
    if (walk == NULL) return;
    for (int i = 0; i < DEEPEST; i++) free(walk->levels[i].page);
    free(walk->seen);
    free(walk);
}

uint64_t fb_lmdb_first_key(const fb_lmdb_walk *walk) {
    return walk->first_key;
}

uint64_t fb_lmdb_used(const fb_lmdb_walk *walk) {
    return (walk->meta.last_page + 1) * walk->meta.page_size;
}

static int damaged(uint64_t page, const char *what, fb_error *error) {
    return fb_fail(error, "data.mdb is damaged: page %llu %s", (unsigned long long)page, what);
}

/* Marks pages as used. Returns 0, or -1 if one is already used or lies past the end. */
static int claim(fb_lmdb_walk *walk, uint64_t page, uint64_t count) {
    if (page < 2 || count > walk->meta.last_page || page > walk->meta.last_page + 1 - count) return -1;
    for (uint64_t each = page; each < page + count; each++) {
        unsigned char *const byte = &walk->seen[each / 8];
        const unsigned char bit = (unsigned char)(1 << each % 8);
        if (*byte & bit) return -1;
        *byte |= bit;
    }
    return 0;
}

static const unsigned char *node_of(const level *at, unsigned index) {
    return at->page + get16(at->page + PAGE_HEADER + 2 * index);
}

static int check_node(fb_lmdb_walk *walk, const level *at, unsigned index, fb_error *error) {
    const uint64_t size = walk->meta.page_size;
    const unsigned offset = get16(at->page + PAGE_HEADER + 2 * index);
    if (offset < get16(at->page + 14) || offset + NODE_HEADER > size) {
        return damaged(at->number, "has a record outside of itself", error);
    }
    const unsigned char *const node = at->page + offset;
    const uint64_t data = offset + NODE_HEADER + (uint64_t)get16(node + 6);
    if (data > size) return damaged(at->number, "has a key that ends outside of it", error);
    if (get16(at->page + 10) & BRANCH) return 0;
    const unsigned flags = get16(node + 4);
    const uint64_t length = (uint64_t)get16(node) | (uint64_t)get16(node + 2) << 16;
    if (flags & ~(BIG | SUBDATA))
        return damaged(at->number, "has a record with flags that Caffe's records do not have", error);
    if (!(flags & BIG)) {
        return data + length > size ? damaged(at->number, "has a record that ends outside of it", error) : 0;
    }
    if (data + 8 > size) return damaged(at->number, "has a record that ends outside of it", error);
    const uint64_t pages = (PAGE_HEADER - 1 + length) / size + 1;
    if (claim(walk, get64(at->page + data), pages) != 0) {
        return damaged(at->number, "has a record on pages that do not exist, or belong to another record", error);
    }
    return 0;
}

/* Reads and checks a page. Descends to a branch page; counts the records of a leaf page. */
static int enter(fb_lmdb_walk *walk, uint64_t number, fb_error *error) {
    const uint64_t size = walk->meta.page_size;
    if (walk->depth == DEEPEST) return damaged(number, "lies deeper than any page of LMDB's", error);
    level *const at = &walk->levels[walk->depth];
    if (claim(walk, number, 1) != 0) return damaged(number, "does not exist, or is used twice", error);
    if (at->page == NULL && (at->page = malloc(size)) == NULL) return fb_fail(error, "no memory to check data.mdb");
    if (read_at(walk->file, at->page, size, number * size) != 0) {
        return fb_fail(error, "page %llu of data.mdb cannot be read: %s", (unsigned long long)number,
                       errno ? strerror(errno) : "the file ends before it");
    }
    at->number = number;
    at->next = 0;
    const unsigned flags = get16(at->page + 10) & (BRANCH | LEAF | OVERFLOW | META | LEAF2 | SUBPAGE);
    const unsigned lower = get16(at->page + 12), upper = get16(at->page + 14);
    if (get64(at->page) != number) return damaged(number, "has another number", error);
    if (flags != BRANCH && flags != LEAF) return damaged(number, "is neither a branch nor a leaf", error);
    if (lower < PAGE_HEADER || lower > upper || upper > size || lower % 2 != 0) {
        return damaged(number, "has a wrong number of records", error);
    }
    at->count = (lower - PAGE_HEADER) / 2;
    const int leftmost = walk->entries == 0;
    if (at->count < (flags == BRANCH && leftmost ? 2 : 1))
        return damaged(number, "has a wrong number of records", error);
    for (unsigned i = 0; i < at->count; i++) {
        if (check_node(walk, at, i, error) != 0) return -1;
    }
    walk->depth++;
    if (flags == BRANCH) return 0;
    if (leftmost) {
        walk->leaf_depth = walk->depth;
        walk->first_key = number * size + get16(at->page + PAGE_HEADER) + NODE_HEADER;
    }
    if (walk->depth != walk->leaf_depth) return damaged(number, "is a leaf at another depth than the first", error);
    walk->entries += at->count;
    walk->depth--;
    return 0;
}

/* Finds the meta page of the transaction. */
static int begin(fb_lmdb_walk *walk, fb_error *error) {
    walk->begun = 1;
    if (read_meta(walk->file, 0, &walk->meta) != 0 || !is_page_size(walk->meta.page_size)) return FB_LMDB_UNKNOWN;
    if (walk->meta.transaction != walk->transaction) {
        if (read_meta(walk->file, walk->meta.page_size, &walk->meta) != 0 || !is_page_size(walk->meta.page_size))
            return FB_LMDB_UNKNOWN;
    }
    struct stat status;
    if (walk->meta.transaction != walk->transaction || fstat(walk->file, &status) != 0) return FB_LMDB_UNKNOWN;
    if (walk->meta.last_page >= (uint64_t)status.st_size / walk->meta.page_size) {
        return fb_fail(error, "data.mdb was cut short");
    }
    walk->seen = calloc(1, walk->meta.last_page / 8 + 1);
    if (walk->seen == NULL) return fb_fail(error, "no memory to check data.mdb");
    if (walk->meta.root != NO_PAGE && enter(walk, walk->meta.root, error) != 0) return FB_LMDB_DAMAGED;
    return FB_LMDB_MORE;
}

int fb_lmdb_walk_on(fb_lmdb_walk *walk, uint64_t pages, fb_error *error) {
    if (!walk->begun) {
        const int code = begin(walk, error);
        if (code != FB_LMDB_MORE) return code;
        if (pages > 0) pages--;
    }
    while (walk->depth > 0) {
        level *const at = &walk->levels[walk->depth - 1];
        if (at->next == at->count) {
            walk->depth--;
            continue;
        }
        if (pages == 0) return FB_LMDB_MORE;
        pages--;
        const unsigned char *const node = node_of(at, at->next++);
        const uint64_t number =
            (uint64_t)get16(node) | (uint64_t)get16(node + 2) << 16 | (uint64_t)get16(node + 4) << 32;
        if (enter(walk, number, error) != 0) return FB_LMDB_DAMAGED;
    }
    if (walk->entries != walk->meta.entries) {
        return fb_fail(error, "data.mdb is damaged: it says that it has %llu records, and has %llu",
                       (unsigned long long)walk->meta.entries, (unsigned long long)walk->entries);
    }
    return FB_LMDB_DONE;
}
