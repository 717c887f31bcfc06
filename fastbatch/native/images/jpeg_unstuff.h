/* A scan's data without stuffed bytes, and how many these are. */
#ifndef FASTBATCH_JPEG_UNSTUFF_H
#define FASTBATCH_JPEG_UNSTUFF_H

#include "jpeg_vectors.h"

FB_TARGET static int64_t fb_unstuff(const unsigned char **from, const unsigned char *end, unsigned char *to) {
    const unsigned char *at = *from;
    unsigned char *const begin = to;
    while (end - at >= FB_WIDTH) {
        const fb_vec bytes = fb_load(at);
        const uint64_t found = fb_find_ff(bytes);
        const int before = found ? __builtin_ctzll(found) / FB_FOUND : FB_WIDTH;
        fb_store(to, bytes);
        at += before;
        to += before;
        if (FB_LIKELY(before == FB_WIDTH)) continue;
        if (end - at < 2 || at[1] != 0) break;
        at += 2;
        to++;
    }
    while (at < end) {
        const int is_stuffed = *at == 0xff;
        if (is_stuffed && (end - at < 2 || at[1] != 0)) break;
        *to++ = *at;
        at += 1 + is_stuffed;
    }
    *from = at;
    return to - begin;
}

FB_TARGET static int64_t fb_count_ff(const unsigned char *from, const unsigned char *end) {
    int64_t count = 0;
    for (; from < end; from += FB_WIDTH) {
        uint64_t found = fb_find_ff(fb_load(from));
        if (FB_WIDTH == 16 && FB_LIKELY(found == 0)) continue; /* without AVX2, counting bits takes time */
        if (end - from < FB_WIDTH) found &= (UINT64_C(1) << FB_FOUND * (end - from)) - 1;
        count += __builtin_popcountll(found);
    }
    return count / FB_FOUND;
}

#endif
