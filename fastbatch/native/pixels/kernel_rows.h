/* The pixel loops of kernels.c, once for every instruction set: no include guard, kernels.c includes this several
 * times.
 *
 * Set before each inclusion:
 *   ROWS(name)    the function's name for this instruction set
 *   ROWS_TARGET   the attribute that lets the compiler use it, or nothing
 *   block         16 floats in registers
 *   block_bytes(p), block_floats(p)   load 16 pixels that lie side by side, with any alignment
 *   block_shade(v, mean, scale)       (v - mean) * scale, each rounded once; all three are blocks
 *   block_set(x), block_reverse(v), block_store(p, v)
 *   block_stream(p, v)                past the caches; p is 64-byte aligned. Optional
 */

/* 16 output pixels of a row, the first of them at column `column` of the output. */
ROWS_TARGET INLINE block ROWS(shade)(const unsigned char *pixels, const float *mean_row, block mean, block scale,
                                     int64_t width, int64_t column, PICKED) {
    const int64_t x = mirror ? width - BLOCK - column : column;
    block value = bytes ? block_bytes(pixels + x) : block_floats(pixels + x * 4);
    value = block_shade(value, mean_image ? block_floats(mean_row + x) : mean, scale);
    return mirror ? block_reverse(value) : value;
}

/* Prefetches a row that will soon be read once. The row may lie past the image: a prefetch never faults. It goes into
 * all caches. With the non-temporal hint, recent Intel processors reach only two thirds of the images per second,
 * presumably because such prefetches and streamed stores share the few buffers between a core and its caches. */
ROWS_TARGET INLINE void ROWS(prefetch)(uintptr_t row, int64_t size) {
    for (int64_t x = 0; x < size; x += 64) __builtin_prefetch((const void *)(row + (uintptr_t)x), 0, 3);
}

#define SHADE(column) ROWS(shade)(pixels, mean_row, mean, scale, width, column, bytes, mirror, mean_image)

/* Writes rows through the caches. The inner blocks of a row are aligned to cache lines. The first and last blocks
 * overlap them, which is cheaper than a loop over the remainder. */
ROWS_TARGET INLINE void ROWS(store_rows)(const fb_plane plane, float *out, PICKED) {
    const block mean = block_set(plane.mean), scale = block_set(plane.scale);
    const int64_t width = plane.width;
    const unsigned char *pixels = plane.pixels;
    const float *mean_row = plane.mean_rows;
    for (int64_t y = 0; y < plane.height; y++) {
        ROWS(prefetch)((uintptr_t)pixels + PREFETCH_ROWS * (uintptr_t)plane.row_stride, bytes ? width : width * 4);
        block_store(out, SHADE(0));
        for (int64_t column = BLOCK - floats_into_line(out); column + BLOCK <= width; column += BLOCK) {
            block_store(out + column, SHADE(column));
        }
        block_store(out + width - BLOCK, SHADE(width - BLOCK));
        out += plane.out_stride;
        pixels += plane.row_stride;
        if (mean_image) mean_row += plane.mean_stride;
    }
}

#ifdef block_stream
/* Writes rows past the caches. It streams only whole, aligned cache lines, because a partial line costs more than it
 * saves. Therefore the line in which one row ends and the next begins is first assembled in `edge`. */
ROWS_TARGET INLINE void ROWS(stream_rows)(const fb_plane plane, fb_edge *edge, PICKED) {
    const block mean = block_set(plane.mean), scale = block_set(plane.scale);
    const int64_t width = plane.width;
    const unsigned char *pixels = plane.pixels;
    const float *mean_row = plane.mean_rows;
    float *const line = edge->floats + BLOCK; /* with room on both sides: parts are written as whole blocks */
    float *out = edge->line;
    int64_t used = edge->used;
    for (int64_t y = 0; y < plane.height; y++) {
        ROWS(prefetch)((uintptr_t)pixels + PREFETCH_ROWS * (uintptr_t)plane.row_stride, bytes ? width : width * 4);
        int64_t column = 0;
        if (used) {
            block_store(line + used, SHADE(0));
            column = BLOCK - used;
            if (edge->foreign) {
                memcpy(out + edge->foreign, line + edge->foreign, (size_t)(BLOCK - edge->foreign) * sizeof(float));
                edge->foreign = 0;
            } else {
                block_stream(out, block_floats(line));
            }
            out += BLOCK;
        }
        for (; column + BLOCK <= width; column += BLOCK, out += BLOCK) block_stream(out, SHADE(column));
        used = width - column;
        if (used) block_store(line + used - BLOCK, SHADE(width - BLOCK));
        pixels += plane.row_stride;
        if (mean_image) mean_row += plane.mean_stride;
    }
    edge->line = out;
    edge->used = used;
}
#endif

/* One plane whose pixels lie side by side and that is at least a block wide: a loop of its own for every kind. */
ROWS_TARGET static void ROWS(store)(const fb_plane *plane, float *out){
#define PICK(...) ROWS(store_rows)(*plane, out, __VA_ARGS__)
    PICK_FOR(plane)
#undef PICK
}

#ifdef block_stream
ROWS_TARGET static void ROWS(stream)(const fb_plane *plane, fb_edge *edge) {
#define PICK(...) ROWS(stream_rows)(*plane, edge, __VA_ARGS__)
    PICK_FOR(plane)
#undef PICK
}
#endif

#undef SHADE
#undef ROWS
#undef ROWS_TARGET
#undef block
#undef block_bytes
#undef block_floats
#undef block_shade
#undef block_set
#undef block_reverse
#undef block_store
#undef block_stream
