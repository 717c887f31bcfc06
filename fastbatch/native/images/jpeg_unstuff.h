/* A scan's data without stuffed bytes. */
#ifndef FASTBATCH_JPEG_UNSTUFF_H
#define FASTBATCH_JPEG_UNSTUFF_H

#include "jpeg_vectors.h"

FB_TARGET static int64_t fb_unstuff(const unsigned char **from, const unsigned char *end, unsigned char *to) {
    const unsigned char *at = *from;
    unsigned char *const begin = to;
    while (end - at >= FB_WIDTH) {
        const fb_vec bytes = fb_load(at);
        const int before = fb_find_ff(bytes);
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

#endif
