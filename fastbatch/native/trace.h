/* What a thread does, and for how long: times by stage, the latest events, and the key of the sample at hand.
 *
 * One thread writes and any thread reads, without a lock. A writer that is ahead of a reader costs the reader an event
 * or a key, and never the writer anything. */
#ifndef FASTBATCH_TRACE_H
#define FASTBATCH_TRACE_H

#include <stdint.h>
#include <string.h>

#define FB_STAGES 10   /* enum Stage in _stages.pxd */
#define FB_BUCKETS 160 /* four for each power of two of nanoseconds, up to half an hour */
#define FB_EVENTS 4096 /* that are kept; a power of two */
#define FB_NOTED 128   /* bytes of a key that are kept: its end, since paths differ at their ends */

/* Numbers that readers see as a whole have a version, which is odd while they change. All of them are atomic. */
static inline void fb_version_begin(uint32_t *version) {
    __atomic_store_n(version, *version + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

static inline void fb_version_end(uint32_t *version) {
    __atomic_store_n(version, *version + 1, __ATOMIC_RELEASE);
}

static inline uint32_t fb_version_get(const uint32_t *version) {
    return __atomic_load_n(version, __ATOMIC_ACQUIRE);
}

/* Whether what was read since fb_version_get() belongs together. */
static inline int fb_version_kept(const uint32_t *version, uint32_t before) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return before % 2 == 0 && __atomic_load_n(version, __ATOMIC_RELAXED) == before;
}

typedef struct fb_times { /* of one stage */
    int64_t total;        /* nanoseconds; atomic, like the counts */
    uint32_t counts[FB_BUCKETS];
} fb_times;

static inline int fb_bucket(int64_t nanoseconds) {
    if (nanoseconds < 4) return nanoseconds < 0 ? 0 : (int)nanoseconds;
    const int power = 63 - __builtin_clzll((uint64_t)nanoseconds);
    const int bucket = (power - 1) * 4 + (int)(nanoseconds >> (power - 2) & 3);
    return bucket < FB_BUCKETS ? bucket : FB_BUCKETS - 1;
}

/* The middle of a bucket, in nanoseconds. */
static inline double fb_bucket_middle(int bucket) {
    if (bucket < 4) return bucket;
    const double width = (double)(UINT64_C(1) << (bucket / 4 - 1));
    return (4 + bucket % 4 + 0.5) * width;
}

static inline void fb_times_add(fb_times *times, int64_t nanoseconds) {
    uint32_t *count = &times->counts[fb_bucket(nanoseconds)];
    /* One writer: no locked instruction is needed. */
    __atomic_store_n(&times->total, times->total + nanoseconds, __ATOMIC_RELAXED);
    __atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
}

typedef struct fb_event {
    int64_t time;     /* nanoseconds on the monotonic clock */
    uint64_t subject; /* what the thread began: its stage in the lowest byte, and the sample or batch above it */
} fb_event;

typedef struct fb_trace {
    uint64_t count; /* of all events; atomic. The latest ones are kept */
    fb_event events[FB_EVENTS];
} fb_trace;

static inline void fb_trace_add(fb_trace *trace, int64_t time, int stage, uint64_t number) {
    fb_event *event = &trace->events[trace->count % FB_EVENTS];
    __atomic_store_n(&event->time, time, __ATOMIC_RELAXED);
    __atomic_store_n(&event->subject, number << 8 | (uint64_t)stage, __ATOMIC_RELAXED);
    __atomic_store_n(&trace->count, trace->count + 1, __ATOMIC_RELEASE);
}

/* Sets the number of the latest event, which was not known when it began. */
static inline void fb_trace_renumber(fb_trace *trace, int stage, uint64_t number) {
    __atomic_store_n(&trace->events[(trace->count - 1) % FB_EVENTS].subject, number << 8 | (uint64_t)stage,
                     __ATOMIC_RELAXED);
}

/* Copies the latest events, oldest first, into room for FB_EVENTS of them. Returns their number. */
static inline int fb_trace_copy(fb_trace *trace, fb_event *copies) {
    const uint64_t end = __atomic_load_n(&trace->count, __ATOMIC_ACQUIRE);
    uint64_t first = end > FB_EVENTS ? end - FB_EVENTS : 0;
    for (uint64_t i = first; i < end; i++) {
        copies[i - first].time = __atomic_load_n(&trace->events[i % FB_EVENTS].time, __ATOMIC_RELAXED);
        copies[i - first].subject = __atomic_load_n(&trace->events[i % FB_EVENTS].subject, __ATOMIC_RELAXED);
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    /* Those that were overwritten meanwhile, and the one that is being overwritten. */
    const uint64_t now = __atomic_load_n(&trace->count, __ATOMIC_RELAXED) + 1;
    uint64_t lost = now > FB_EVENTS + first ? now - FB_EVENTS - first : 0;
    if (lost > end - first) lost = end - first;
    memmove(copies, copies + lost, (size_t)(end - first - lost) * sizeof *copies);
    return (int)(end - first - lost);
}

typedef struct fb_note { /* the key of the sample at hand */
    uint32_t version;
    uint32_t size; /* of the whole key; atomic */
    uint64_t words[FB_NOTED / 8];
} fb_note;

static inline void fb_note_set(fb_note *note, const void *key, size_t size) {
    uint64_t words[FB_NOTED / 8];
    const size_t kept = key == NULL ? 0 : size < FB_NOTED ? size : FB_NOTED;
    if (kept == 0 && note->size == 0) return;
    if (kept) memcpy(words, (const char *)key + size - kept, kept);
    fb_version_begin(&note->version);
    for (size_t i = 0; i * 8 < kept; i++) __atomic_store_n(&note->words[i], words[i], __ATOMIC_RELAXED);
    __atomic_store_n(&note->size, kept ? (uint32_t)size : 0, __ATOMIC_RELAXED);
    fb_version_end(&note->version);
}

/* Copies the end of the key into room for FB_NOTED bytes. Returns the size of the whole key; 0 if there is none, or if
 * it was changing. */
static inline size_t fb_note_get(const fb_note *note, char *key) {
    uint64_t words[FB_NOTED / 8];
    const uint32_t version = fb_version_get(&note->version);
    for (size_t i = 0; i < FB_NOTED / 8; i++) words[i] = __atomic_load_n(&note->words[i], __ATOMIC_RELAXED);
    const uint32_t size = __atomic_load_n(&note->size, __ATOMIC_RELAXED);
    if (!fb_version_kept(&note->version, version)) return 0;
    memcpy(key, words, FB_NOTED);
    return size;
}

#endif
