"""native/trace.h, what threads do and for how long, for Cython."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "trace.h" nogil:
    enum:
        FB_STAGES
        FB_BUCKETS
        FB_EVENTS
        FB_NOTED

    ctypedef struct fb_times:
        int64_t total
        uint32_t counts[160]

    ctypedef struct fb_event:
        int64_t time
        uint64_t subject

    ctypedef struct fb_trace:
        uint64_t count

    ctypedef struct fb_note:
        pass

    void fb_version_begin(uint32_t *version) noexcept
    void fb_version_end(uint32_t *version) noexcept
    uint32_t fb_version_get(const uint32_t *version) noexcept
    bint fb_version_kept(const uint32_t *version, uint32_t before) noexcept
    double fb_bucket_middle(int bucket) noexcept
    void fb_times_add(fb_times *times, int64_t nanoseconds) noexcept
    void fb_trace_add(fb_trace *trace, int64_t time, int stage, uint64_t number) noexcept
    void fb_trace_renumber(fb_trace *trace, int stage, uint64_t number) noexcept
    int fb_trace_copy(fb_trace *trace, fb_event *copies) noexcept
    void fb_note_set(fb_note *note, const void *key, size_t size) noexcept
    size_t fb_note_get(const fb_note *note, char *key) noexcept
