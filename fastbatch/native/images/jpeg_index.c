/* The entries of an index, and the table that finds them. */
#include "jpeg_index_file.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- entries */

static packed_place *places_of(const fb_jpeg_entry *entry, int64_t row) {
    return (packed_place *)(uintptr_t)(entry->data + entry->rows) + row * entry->per_row;
}

static int64_t per_row(int64_t mcus_per_row, int64_t every) {
    return (mcus_per_row + every - 1) / every;
}

/* Packs the notes into an entry with room for them. Returns 0, or -1 if two places are too far from each other, as in no
 * photograph. */
static int pack(fb_jpeg_entry *entry, const fb_jpeg_notes *notes) {
    const int64_t noted_per_row = per_row(entry->mcus_per_row, fb_jpeg_every(entry->mcus_per_row));
    int64_t before = 0;
    for (int64_t row = notes->first; row <= notes->end && row < entry->rows; row++) {
        packed_place *packed = places_of(entry, row);
        const int64_t count = row < notes->end ? entry->per_row : 1;
        for (int64_t i = 0; i < count; i++, packed++) {
            const fb_jpeg_place *place = &notes->places[(row - notes->first) * noted_per_row + i];
            const int64_t bit = place->bit, bits = i == 0 ? 0 : bit - before;
            before = bit;
            if (row == notes->first && row > 0 && i == 0) continue; /* it is known, and may be being read */
            if (i == 0) entry->data[row] = (uint32_t)bit;
            int fits = bit <= UINT32_MAX && bits <= UINT16_MAX;
            packed->bits = (uint16_t)bits;
            for (int c = 0; c < 3; c++) {
                packed->predictors[c] = (int16_t)place->predictors[c];
                fits &= packed->predictors[c] == place->predictors[c];
            }
            if (!fits) return -1;
        }
    }
    return 0;
}

/* Returns an entry with the places of `every` MCUs, of which some or all were noted. NULL: there is no memory, or it
 * cannot be packed. */
static fb_jpeg_entry *entry_new(const fb_jpeg_name *name, uint64_t content, const fb_jpeg_notes *notes, int64_t rows,
                                int64_t mcus_per_row, int64_t every) {
    const int64_t count = per_row(mcus_per_row, every);
    fb_jpeg_entry *entry = malloc(fb_jpeg_size_of_entry(rows, count));
    if (entry == NULL) return NULL;
    *entry = (fb_jpeg_entry){
        .identity = name->identity,
        .check = name->check,
        .content = content,
        .rows = (uint32_t)rows,
        .mcus_per_row = (uint16_t)mcus_per_row,
        .every = (uint16_t)every,
        .per_row = (uint16_t)count,
    };
    atomic_init(&entry->unknown, (uint32_t)(rows - notes->end));
    if (pack(entry, notes) == 0) return entry;
    free(entry);
    return NULL;
}

int64_t fb_jpeg_known_rows(const fb_jpeg_entry *entry) {
    return entry->rows - (atomic_load_explicit(&entry->unknown, memory_order_acquire) & ~FB_GROWING);
}

void fb_jpeg_extend_entry(fb_jpeg_entry *entry, const fb_jpeg_notes *notes) {
    uint32_t unknown = entry->rows - (uint32_t)notes->first;
    const uint32_t growing = unknown | FB_GROWING;
    if (!atomic_compare_exchange_strong_explicit(&entry->unknown, &unknown, growing, memory_order_acquire,
                                                 memory_order_relaxed))
        return;
    if (pack(entry, notes) == 0) unknown = entry->rows - (uint32_t)notes->end;
    atomic_store_explicit(&entry->unknown, unknown, memory_order_release);
}

int fb_jpeg_entry_fits(const fb_jpeg_entry *entry, int64_t rows, int64_t mcus_per_row) {
    return entry->rows == rows && entry->mcus_per_row == mcus_per_row;
}

int64_t fb_jpeg_seek_entry(const fb_jpeg_entry *entry, int64_t row, int64_t first, fb_jpeg_place *place) {
    const packed_place *packed = places_of(entry, row);
    const int64_t number = first / entry->every;
    place->bit = entry->data[row];
    for (int64_t i = 1; i <= number; i++) place->bit += packed[i].bits;
    for (int c = 0; c < 3; c++) place->predictors[c] = packed[number].predictors[c];
    return number * entry->every;
}

int64_t fb_jpeg_end_of_entry(const fb_jpeg_entry *entry, int64_t row, int64_t last) {
    const int64_t number = last / entry->every + 1;
    fb_jpeg_place place;
    if (number < entry->per_row) {
        fb_jpeg_seek_entry(entry, row, number * entry->every, &place);
        return place.bit;
    }
    return row + 1 < entry->rows ? (int64_t)entry->data[row + 1] : -1;
}

/* ---- names */

#define MIX UINT64_C(0x9e3779b97f4a7c15)

static uint64_t word_at(const unsigned char *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

static uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * MIX;
    return hash ^ hash >> 32;
}

/* Four words at a time: a multiplication takes longer than the next one has to wait for it. */
uint64_t fb_jpeg_hash(const void *memory, size_t size) {
    const unsigned char *bytes = memory;
    uint64_t lanes[4] = {1, 2, 3, 4}, hash = size;
    size_t i = 0;
    for (; i + 32 <= size; i += 32) {
        for (int lane = 0; lane < 4; lane++) lanes[lane] = mix(lanes[lane], word_at(bytes + i + 8 * lane));
    }
    for (int lane = 0; lane < 4; lane++) hash = mix(hash, lanes[lane]);
    for (; i + 8 <= size; i += 8) hash = mix(hash, word_at(bytes + i));
    for (; i < size; i++) hash = mix(hash, bytes[i]);
    return hash;
}

fb_jpeg_name fb_jpeg_name_of(uint64_t identity, const unsigned char *bytes, size_t size, size_t scan) {
    enum { SAMPLES = 16 };
    fb_jpeg_name name = {identity, fb_jpeg_hash(bytes, scan), bytes, size};
    name.check = mix(name.check, size);
    if (size - scan >= 8) {
        for (size_t i = 0; i < SAMPLES; i++)
            name.check = mix(name.check, word_at(bytes + scan + (size - scan - 8) / (SAMPLES - 1) * i));
    }
    if (name.identity == 0) name.identity = fb_jpeg_hash(bytes, size);
    name.identity += name.identity == 0;
    return name;
}

/* ---- the table: open addressing, at most half full
 *
 * Readers take no lock. A writer stores a complete entry in one step. Where the table is to grow, it makes a larger one,
 * and keeps the old one for those who are reading it; all old tables together are as large as the new one. */

typedef struct table {
    struct table *older;
    size_t mask; /* the number of its places, a power of two, minus 1 */
    _Atomic(fb_jpeg_entry *) entries[];
} table;

enum { FIRST_TABLE = 64 };

struct fb_index {
    _Atomic(table *) table;
    atomic_int full;      /* there is no room for another image */
    pthread_mutex_t lock; /* guards what follows, and writing. A leaf. */
    uint64_t expected;    /* images; 0: nobody knows */
    uint64_t limit, used; /* bytes */
    uint64_t images;
    double sum; /* of the sizes that these images' entries would have with all places */

    fb_index_file *file;    /* what it knew at first; NULL: nothing */
    char *path;             /* of the file to save it in; NULL: none */
    pthread_mutex_t saving; /* guards what follows; taken before `lock` */
    uint64_t saved;         /* of `images` */
    int unsavable;
};

static size_t size_of_table(size_t places) {
    return sizeof(table) + places * sizeof(fb_jpeg_entry *);
}

static table *table_new(size_t places) {
    table *made = calloc(1, size_of_table(places));
    if (made) made->mask = places - 1;
    return made;
}

fb_index *fb_index_new(uint64_t count, uint64_t limit) {
    fb_index *index = calloc(1, sizeof *index);
    table *first = table_new(FIRST_TABLE);
    if (index == NULL || first == NULL) {
        free(index);
        free(first);
        return NULL;
    }
    atomic_init(&index->table, first);
    pthread_mutex_init(&index->lock, NULL);
    pthread_mutex_init(&index->saving, NULL);
    index->expected = count;
    index->limit = limit;
    index->used = sizeof *index + size_of_table(FIRST_TABLE);
    return index;
}

void fb_index_delete(fb_index *index) {
    if (index == NULL) return;
    table *now = atomic_load_explicit(&index->table, memory_order_acquire);
    for (size_t i = 0; i <= now->mask; i++) free(atomic_load_explicit(&now->entries[i], memory_order_relaxed));
    while (now) {
        table *older = now->older;
        free(now);
        now = older;
    }
    pthread_mutex_destroy(&index->lock);
    pthread_mutex_destroy(&index->saving);
    fb_index_file_close(index->file);
    free(index->path);
    free(index);
}

void fb_index_counts(fb_index *index, uint64_t *images, uint64_t *bytes) {
    pthread_mutex_lock(&index->lock);
    *images = index->images + fb_index_file_images(index->file);
    *bytes = index->used;
    pthread_mutex_unlock(&index->lock);
}

/* Where the entry of this identity is, or belongs. */
static size_t slot_of(const table *in, uint64_t identity, fb_jpeg_entry **found) {
    size_t slot = (size_t)mix(identity, 0) & in->mask;
    for (;; slot = (slot + 1) & in->mask) {
        *found = atomic_load_explicit(&in->entries[slot], memory_order_acquire);
        if (*found == NULL || (*found)->identity == identity) return slot;
    }
}

fb_jpeg_entry *fb_jpeg_find_entry(fb_index *index, const fb_jpeg_name *name, fb_arena *arena) {
    fb_jpeg_entry *found;
    slot_of(atomic_load_explicit(&index->table, memory_order_acquire), name->identity, &found);
    if (found && found->check == name->check) return found;
    return index->file ? fb_index_file_find(index->file, name, arena) : NULL;
}

int fb_jpeg_has_room(fb_index *index) {
    return !atomic_load_explicit(&index->full, memory_order_relaxed);
}

/* Doubles the table, if there is room. The caller holds the lock. Returns 0, or -1. */
static int grow(fb_index *index) {
    table *old = atomic_load_explicit(&index->table, memory_order_relaxed);
    const size_t places = 2 * (old->mask + 1), size = size_of_table(places);
    if (size > index->limit || index->used > index->limit - size) return -1;
    table *grown = table_new(places);
    if (grown == NULL) return -1;
    grown->older = old;
    for (size_t i = 0; i <= old->mask; i++) {
        fb_jpeg_entry *entry = atomic_load_explicit(&old->entries[i], memory_order_relaxed), *none;
        if (entry == NULL) continue;
        const size_t slot = slot_of(grown, entry->identity, &none);
        atomic_store_explicit(&grown->entries[slot], entry, memory_order_relaxed);
    }
    atomic_store_explicit(&index->table, grown, memory_order_release);
    index->used += size;
    return 0;
}

/* Reserves the room for an image, whose places would take `all` bytes, and one for each row `rows` bytes. Returns what
 * was reserved, or 0. The caller holds the lock. */
static size_t reserve(fb_index *index, size_t all, size_t rows) {
    enum { IN_TABLES = 4 * sizeof(void *) }; /* of an image: in a table that is half full, and in those before it */
    const double images = (double)index->images + 1, sum = index->sum + (double)all;
    /* Without a number of images, room for as many again. */
    const double expected = (double)index->expected > images ? (double)index->expected
                            : index->expected                ? images
                                                             : 2 * images;
    const double left = (double)index->limit - (double)index->used;
    const int fit = expected * (sum / images + IN_TABLES) <= (double)index->limit;
    const size_t size = fit && (double)all <= left ? all : rows;
    if ((double)size > left) return 0;
    index->used += size;
    return size;
}

/* Adds the entry to the table. Returns -1 if another worker was faster, or the table cannot grow. The caller holds the
 * lock. */
static int insert(fb_index *index, fb_jpeg_entry *entry) {
    fb_jpeg_entry *found;
    table *now = atomic_load_explicit(&index->table, memory_order_relaxed);
    if (2 * (index->images + 1) > now->mask && grow(index) != 0) {
        atomic_store_explicit(&index->full, 1, memory_order_relaxed);
        return -1;
    }
    now = atomic_load_explicit(&index->table, memory_order_relaxed);
    const size_t slot = slot_of(now, entry->identity, &found);
    if (found) return -1;
    atomic_store_explicit(&now->entries[slot], entry, memory_order_release);
    return 0;
}

int fb_jpeg_wants_all(const fb_index *index) {
    return index->path != NULL;
}

void fb_jpeg_add_entry(fb_index *index, const fb_jpeg_name *name, const fb_jpeg_notes *notes, int64_t rows,
                       int64_t mcus_per_row) {
    const int64_t every = fb_jpeg_every(mcus_per_row);
    const size_t all = fb_jpeg_size_of_entry(rows, per_row(mcus_per_row, every));
    if (mcus_per_row > UINT16_MAX) return;
    pthread_mutex_lock(&index->lock);
    const size_t size = reserve(index, all, fb_jpeg_size_of_entry(rows, 1));
    if (size == 0) atomic_store_explicit(&index->full, 1, memory_order_relaxed);
    pthread_mutex_unlock(&index->lock);
    if (size == 0) return;
    const uint64_t content = index->path ? fb_jpeg_hash(name->bytes, name->size) : 0;
    fb_jpeg_entry *entry = entry_new(name, content, notes, rows, mcus_per_row, size == all ? every : mcus_per_row);
    pthread_mutex_lock(&index->lock);
    const int added = entry && insert(index, entry) == 0;
    if (added) {
        index->images++;
        index->sum += (double)all;
    } else {
        index->used -= size;
    }
    pthread_mutex_unlock(&index->lock);
    if (!added) free(entry);
}

/* ---- the file */

int fb_index_open(fb_index *index, const char *path, fb_error *error) {
    index->path = strdup(path);
    if (index->path == NULL) return fb_fail(error, "no memory for the index of JPEG files");
    const int code = fb_index_file_open(path, &index->file, error);
    if (index->file == NULL) return code;
    const uint64_t images = fb_index_file_images(index->file), bytes = fb_index_file_memory(index->file);
    if (bytes > index->limit || index->used > index->limit - bytes) {
        return fb_fail(error, "of %.300s, %llu bytes have to be in memory, and index_bytes allows %llu", path,
                       (unsigned long long)bytes, (unsigned long long)index->limit);
    }
    index->used += bytes;
    if (index->expected) index->expected = index->expected > images ? index->expected - images : 1;
    return code;
}

/* Sets *entries to all that are in memory, and returns how many; -1 if there is no memory. */
static int64_t list_entries(fb_index *index, const fb_jpeg_entry ***entries) {
    table *now = atomic_load_explicit(&index->table, memory_order_acquire);
    int64_t count = 0;
    *entries = malloc((now->mask + 1) * sizeof **entries);
    if (*entries == NULL) return -1;
    for (size_t i = 0; i <= now->mask; i++) {
        const fb_jpeg_entry *entry = atomic_load_explicit(&now->entries[i], memory_order_acquire);
        if (entry) (*entries)[count++] = entry;
    }
    return count;
}

static int save(fb_index *index, fb_error *error) {
    const fb_jpeg_entry **entries;
    pthread_mutex_lock(&index->lock);
    const uint64_t images = index->images;
    pthread_mutex_unlock(&index->lock);
    if (images == index->saved) return 0;
    const int64_t count = list_entries(index, &entries);
    if (count < 0) return fb_fail(error, "no memory for writing the index of JPEG files %.300s", index->path);
    const int code = fb_index_file_write(index->path, entries, (size_t)count, error);
    free(entries);
    if (code == 0) index->saved = images;
    return code;
}

int fb_index_save(fb_index *index, fb_error *error) {
    if (index == NULL || index->path == NULL) return 0;
    pthread_mutex_lock(&index->saving);
    const int code = index->unsavable ? 0 : save(index, error);
    index->unsavable |= code != 0; /* one sentence about it is enough */
    pthread_mutex_unlock(&index->saving);
    return code;
}
