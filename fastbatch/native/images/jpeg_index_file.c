#define _GNU_SOURCE
#include "jpeg_index_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(fb_index_header) == 64, "the header of an index file");
_Static_assert(sizeof(fb_jpeg_entry) == 40, "an entry of an index file");

/* ---- reading */

struct fb_index_file {
    int file;
    uint64_t images, end; /* end: of the entries */
    fb_index_row *rows;
    _Atomic uint64_t
        *verified; /* by row: the identity in its source of an image whose bytes have been compared; or 0 */
};

static int read_at(int file, void *memory, size_t size, uint64_t offset) {
    for (size_t done = 0; done < size;) {
        const ssize_t got = pread(file, (char *)memory + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return -1;
        done += (size_t)got;
    }
    return 0;
}

static size_t size_of_row(const fb_index_file *file, uint64_t row) {
    const uint64_t end = row + 1 < file->images ? file->rows[row + 1].offset : file->end;
    return (size_t)(end - file->rows[row].offset);
}

/* Reads the table, which is known to lie in the file. Returns 0; 1 if it is damaged; or -1 if there is no memory. */
static int read_table(fb_index_file *opened, const fb_index_header *header) {
    const size_t size = (size_t)header->images * sizeof(fb_index_row);
    opened->images = header->images;
    opened->end = header->table;
    opened->rows = malloc(size + 1);
    opened->verified = calloc((size_t)header->images + 1, sizeof *opened->verified);
    if (opened->rows == NULL || opened->verified == NULL) return -1;
    if (read_at(opened->file, opened->rows, size, header->table) != 0 ||
        fb_jpeg_hash(opened->rows, size) != header->table_hash)
        return 1;
    uint64_t check = 0, end = sizeof *header;
    for (uint64_t row = 0; row < opened->images; row++) {
        const fb_index_row *here = &opened->rows[row];
        if (here->check < check || here->offset != end || opened->end - end < sizeof(fb_jpeg_entry)) return 1;
        check = here->check;
        const uint64_t next = row + 1 < opened->images ? here[1].offset : opened->end;
        if (next > opened->end || next < end + sizeof(fb_jpeg_entry) || next % 8) return 1;
        end = next;
    }
    return end != opened->end;
}

/* Fills in the file of which *opened has the descriptor. Returns as fb_index_file_open(). */
static int read_file(const char *path, fb_index_file *opened, fb_error *error) {
    struct stat status;
    fb_index_header header;
    if (fstat(opened->file, &status) != 0) return fb_fail(error, "cannot read %.300s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode) || (size_t)status.st_size < sizeof header.magic ||
        read_at(opened->file, &header, sizeof header.magic, 0) != 0 ||
        memcmp(header.magic, FB_INDEX_MAGIC, sizeof header.magic) != 0) {
        return fb_fail(error,
                       "%.300s is not an index of JPEG files: index_file is the file where fastbatch keeps one, and "
                       "which it makes if there is none",
                       path);
    }
    const char *damage = "it is damaged";
    int code = 1;
    if ((size_t)status.st_size < sizeof header || read_at(opened->file, &header, sizeof header, 0) != 0) {
        damage = "it was cut short";
    } else if (header.order == __builtin_bswap32(FB_INDEX_ORDER) ||
               (header.order == FB_INDEX_ORDER && header.version != FB_INDEX_VERSION)) {
        return fb_fail(error,
                       "the index of JPEG files %.300s was made by another version of fastbatch, or on a machine "
                       "with another byte order: delete it, or choose another index_file",
                       path);
    } else if (fb_jpeg_hash(&header, offsetof(fb_index_header, hash)) == header.hash) {
        const uint64_t size = (uint64_t)status.st_size;
        if (header.size > size) {
            damage = "it was cut short";
        } else if (header.size == size && header.images <= (size - sizeof header) / sizeof(fb_index_row) &&
                   header.table == size - header.images * sizeof(fb_index_row)) {
            code = read_table(opened, &header);
        }
    }
    if (code < 0) return fb_fail(error, "no memory for the index of JPEG files %.300s", path);
    if (code > 0) fb_fail(error, "the index of JPEG files %.300s is of no use, and is made anew: %s", path, damage);
    return code;
}

/* Whether a file could be made there. Returns 0, or -1 with *error. */
static int check_folder(const char *path, fb_error *error) {
    struct stat status;
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    if (stat(folder, &status) == 0 && S_ISDIR(status.st_mode)) return 0;
    return fb_fail(error, "index_file is %.300s, and there is no folder %.300s", path, folder);
}

int fb_index_file_open(const char *path, fb_index_file **opened, fb_error *error) {
    *opened = NULL;
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file < 0 && errno == ENOENT) return check_folder(path, error);
    if (file < 0) return fb_fail(error, "cannot read the index of JPEG files %.300s: %s", path, strerror(errno));
    fb_index_file *found = calloc(1, sizeof *found);
    if (found == NULL) {
        close(file);
        return fb_fail(error, "no memory for the index of JPEG files %.300s", path);
    }
    found->file = file;
    const int code = read_file(path, found, error);
    if (code == 0) {
        posix_fadvise(file, 0, 0, POSIX_FADV_WILLNEED); /* it is small beside the images, which come in any order */
        *opened = found;
    } else {
        fb_index_file_close(found);
    }
    return code;
}

void fb_index_file_close(fb_index_file *file) {
    if (file == NULL) return;
    close(file->file);
    free(file->rows);
    free((void *)file->verified);
    free(file);
}

uint64_t fb_index_file_images(const fb_index_file *file) {
    return file ? file->images : 0;
}

size_t fb_index_file_memory(const fb_index_file *file) {
    return sizeof *file + (size_t)file->images * (sizeof *file->rows + sizeof *file->verified);
}

/* Reads an entry into `memory`, of size_of_row() bytes. Returns whether it is one. */
static int read_entry(const fb_index_file *file, uint64_t row, fb_jpeg_entry *entry) {
    const size_t size = size_of_row(file, row), hashed = offsetof(fb_jpeg_entry, check);
    if (read_at(file->file, entry, size, file->rows[row].offset) != 0) return 0;
    return entry->identity == fb_jpeg_hash((const char *)entry + hashed, size - hashed) &&
           entry->check == file->rows[row].check && entry->every > 0 && entry->unknown == 0 &&
           entry->per_row == (entry->mcus_per_row + entry->every - 1) / entry->every &&
           (fb_jpeg_size_of_entry(entry->rows, entry->per_row) + 7) / 8 * 8 == size;
}

/* Whether the entry is that of the image. Its bytes are compared once for each image of a source: from then on, its
 * identity says that they are the same. */
static int is_entry_of(fb_index_file *file, uint64_t row, const fb_jpeg_entry *entry, const fb_jpeg_name *name) {
    if (atomic_load_explicit(&file->verified[row], memory_order_relaxed) == name->identity) return 1;
    if (entry->content != fb_jpeg_hash(name->bytes, name->size)) return 0;
    atomic_store_explicit(&file->verified[row], name->identity, memory_order_relaxed);
    return 1;
}

fb_jpeg_entry *fb_index_file_find(fb_index_file *file, const fb_jpeg_name *name, fb_arena *arena) {
    uint64_t row = 0, end = file->images;
    while (row < end) {
        const uint64_t middle = row + (end - row) / 2;
        if (file->rows[middle].check < name->check) {
            row = middle + 1;
        } else {
            end = middle;
        }
    }
    for (; row < file->images && file->rows[row].check == name->check; row++) {
        fb_jpeg_entry *entry = fb_arena_take(arena, size_of_row(file, row));
        if (entry && read_entry(file, row, entry) && is_entry_of(file, row, entry, name)) return entry;
    }
    return NULL;
}

/* ---- writing */

typedef struct writer {
    FILE *file;
    fb_index_header header;
    fb_index_row *rows; /* of what was written */
    uint64_t at;
    fb_jpeg_entry *entry; /* memory for one */
    size_t capacity;
    int problem; /* errno, or 0 */
} writer;

static void put(writer *to, const void *bytes, size_t size) {
    if (to->problem == 0 && fwrite(bytes, 1, size, to->file) != size) to->problem = errno ? errno : EIO;
    to->at += size;
}

/* Writes the entry in memory, of `size` bytes. */
static void put_entry(writer *to, size_t size) {
    to->rows[to->header.images++] = (fb_index_row){to->entry->check, to->at};
    put(to, to->entry, size);
}

static int reserve(writer *to, size_t size) {
    if (to->capacity >= size) return 0;
    free(to->entry);
    to->entry = malloc(size);
    to->capacity = to->entry ? size : 0;
    return to->entry ? 0 : -1;
}

static void put_new(writer *to, const fb_jpeg_entry *entry) {
    const size_t size = fb_jpeg_size_of_entry(entry->rows, entry->per_row), padded = (size + 7) / 8 * 8;
    const size_t hashed = offsetof(fb_jpeg_entry, check);
    if (reserve(to, padded) != 0) {
        to->problem = ENOMEM;
        return;
    }
    memcpy(to->entry, entry, size);
    memset((char *)to->entry + size, 0, padded - size);
    to->entry->identity = fb_jpeg_hash((const char *)to->entry + hashed, padded - hashed);
    put_entry(to, padded);
}

static int is_same(const fb_jpeg_entry *one, const fb_jpeg_entry *other) {
    return one->check == other->check && one->content == other->content;
}

/* Copies an entry of the old file, and takes it out of the new ones, which are sorted. */
static void put_old(writer *to, const fb_index_file *old, uint64_t row, const fb_jpeg_entry **entries, size_t count) {
    const size_t size = size_of_row(old, row);
    if (reserve(to, size) != 0 || !read_entry(old, row, to->entry)) return; /* it is damaged */
    put_entry(to, size);
    for (size_t i = 0; i < count; i++) {
        if (entries[i] == NULL) continue;
        if (entries[i]->check != to->entry->check) break;
        if (is_same(entries[i], to->entry)) entries[i] = NULL;
    }
}

static int compare(const void *a, const void *b) {
    const fb_jpeg_entry *const one = *(const fb_jpeg_entry *const *)a, *const other = *(const fb_jpeg_entry *const *)b;
    if (one->check != other->check) return one->check < other->check ? -1 : 1;
    return one->content < other->content ? -1 : one->content > other->content;
}

/* Writes the entries of the old file, and the new ones. */
static void merge(writer *to, const fb_index_file *old, const fb_jpeg_entry **entries, size_t count) {
    const fb_jpeg_entry *before = NULL;
    const uint64_t rows = fb_index_file_images(old);
    uint64_t row = 0;
    qsort(entries, count, sizeof *entries, compare);
    for (size_t i = 0; to->problem == 0 && (i < count || row < rows);) {
        if (i < count && entries[i] == NULL) {
            i++;
        } else if (i == count || (row < rows && old->rows[row].check <= entries[i]->check)) {
            put_old(to, old, row++, entries + i, count - i);
        } else {
            if (before == NULL || !is_same(before, entries[i])) put_new(to, entries[i]);
            before = entries[i++];
        }
    }
}

/* Writes all of the file, down to the disk. Returns 0, or errno. */
static int write_file(int file, const fb_index_file *old, const fb_jpeg_entry **entries, size_t count) {
    writer to = {.header = {.magic = FB_INDEX_MAGIC, .order = FB_INDEX_ORDER, .version = FB_INDEX_VERSION}};
    const int copy = fcntl(file, F_DUPFD_CLOEXEC, 0); /* that fclose() closes */
    to.file = copy < 0 ? NULL : fdopen(copy, "wb");
    to.rows = malloc((fb_index_file_images(old) + count) * sizeof *to.rows + 1);
    if (to.file == NULL || to.rows == NULL) {
        to.problem = to.file ? ENOMEM : errno;
        if (to.file) fclose(to.file);
        else if (copy >= 0) close(copy);
        free(to.rows);
        return to.problem;
    }
    setvbuf(to.file, NULL, _IOFBF, 1 << 18);
    errno = 0;
    put(&to, &to.header, sizeof to.header);
    merge(&to, old, entries, count);
    const size_t size = (size_t)to.header.images * sizeof *to.rows;
    to.header.table = to.at;
    to.header.table_hash = fb_jpeg_hash(to.rows, size);
    put(&to, to.rows, size);
    to.header.size = to.at;
    to.header.hash = fb_jpeg_hash(&to.header, offsetof(fb_index_header, hash));
    if (to.problem == 0 && fseek(to.file, 0, SEEK_SET) != 0) to.problem = errno;
    put(&to, &to.header, sizeof to.header);
    if (fclose(to.file) != 0 && to.problem == 0) to.problem = errno;
    if (to.problem == 0 && fsync(file) != 0) to.problem = errno;
    free(to.rows);
    free(to.entry);
    return to.problem;
}

/* Has other processes that write a file in this folder wait, so that each of them keeps what the others have written.
 * Returns the folder's descriptor, or -1: not all file systems can do that, and then an entry may be lost. */
static int lock_folder(const char *path) {
    enum { TRIES = 600 }; /* 100 ms apart */
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash) slash[1] = 0;
    const int locked = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; locked >= 0 && i < TRIES && flock(locked, LOCK_EX | LOCK_NB) != 0; i++) {
        if (errno != EWOULDBLOCK && errno != EINTR) break;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return locked;
}

/* Creates a file beside `path`. Returns its descriptor, or -1 with errno. */
static int create_beside(const char *path, char *name, size_t size) {
    struct stat status;
    const int exists = stat(path, &status) == 0;
    for (unsigned i = 0;; i++) {
        if (snprintf(name, size, "%s.%ld.%u.part", path, (long)getpid(), i) >= (int)size) {
            errno = ENAMETOOLONG;
            return -1;
        }
        const int file = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file < 0 && errno == EEXIST) continue; /* of another thread, or left behind */
        if (file >= 0 && exists) {
            const int kept = fchmod(file, status.st_mode & 0777); /* otherwise, it has the mode of a new file */
            (void)kept;
        }
        return file;
    }
}

static int replace(const char *path, const fb_index_file *old, const fb_jpeg_entry **entries, size_t count,
                   fb_error *error) {
    char name[PATH_MAX];
    const int file = create_beside(path, name, sizeof name);
    int problem = file < 0 ? errno : write_file(file, old, entries, count);
    if (file >= 0) {
        close(file);
        if (problem == 0 && rename(name, path) != 0) problem = errno;
        if (problem != 0) unlink(name);
    }
    if (problem == 0) return 0;
    return fb_fail(error,
                   "cannot write the index of JPEG files %.300s: %s; the index stays in memory, and the file as it was",
                   path, strerror(problem));
}

int fb_index_file_write(const char *path, const fb_jpeg_entry **entries, size_t count, fb_error *error) {
    fb_index_file *old;
    char *target = realpath(path, NULL); /* a symbolic link to a file stays one */
    if (target) path = target;
    const int folder = lock_folder(path);
    int code = fb_index_file_open(path, &old, error);
    if (code >= 0) code = replace(path, old, entries, count, error);
    fb_index_file_close(old);
    if (folder >= 0) {
        if (code == 0) fsync(folder);
        close(folder);
    }
    free(target);
    return code;
}
