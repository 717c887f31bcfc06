/* The pixel loops of kernels.c. There is no include guard: kernels.c includes this file once per instruction set.
 *
 * Set before each inclusion:
 *   ROWS(name)    the function's name for this instruction set
 *   ROWS_TARGET   the attribute that enables the instruction set, or nothing
 *   block         16 floats in registers
 *   block_bytes(p), block_floats(p)   load 16 contiguous pixels, with any alignment
 *   block_normalize(v, mean, scale)   (v - mean) * scale, each rounded once; all three are blocks
 *   block_set(x), block_reverse(v), block_store(p, v)
 *   block_stream(p, v)                a store that bypasses the caches; p is 64-byte aligned. Optional
 */

/* Computes 16 output pixels of a row, from column `column` of the output on. */
ROWS_TARGET INLINE block ROWS(normalize)(const unsigned char *pixels, const float *mean_row, block mean, block scale,
                                         int64_t width, int64_t column, PICKED) {
    const int64_t x = mirror ? width - BLOCK - column : column;
    block value = bytes ? block_bytes(pixels + x) : block_floats(pixels + x * 4);
    value = block_normalize(value, mean_image ? block_floats(mean_row + x) : mean, scale);
    return mirror ? block_reverse(value) : value;
}

/* Prefetches a row that will soon be read once, into all caches. The row may lie past the image: a prefetch never
 * faults. With the non-temporal hint, recent Intel processors process only two thirds as many images per second,
 * presumably because such prefetches and streamed stores compete for the few buffers between a core and its caches. */
ROWS_TARGET INLINE void ROWS(prefetch)(uintptr_t row, int64_t size) {
    for (int64_t x = 0; x < size; x += 64) __builtin_prefetch((const void *)(row + (uintptr_t)x), 0, 3);
}

#define NORMALIZE(column) ROWS(normalize)(pixels, mean_row, mean, scale, width, column, bytes, mirror, mean_image)

/* Writes rows through the caches. The inner blocks of a row are aligned to cache lines. The first and last blocks
 * overlap them, which is cheaper than a loop over the remainder. */
ROWS_TARGET INLINE void ROWS(store_rows)(const fb_plane plane, float *out, PICKED) {
    const block mean = block_set(plane.mean), scale = block_set(plane.scale);
    const int64_t width = plane.width;
    const unsigned char *pixels = plane.pixels;
    const float *mean_row = plane.mean_rows;
    for (int64_t y = 0; y < plane.height; y++) {
        ROWS(prefetch)((uintptr_t)pixels + PREFETCH_ROWS * (uintptr_t)plane.row_stride, bytes ? width : width * 4);
        block_store(out, NORMALIZE(0));
        for (int64_t column = BLOCK - floats_into_line(out); column + BLOCK <= width; column += BLOCK) {
            block_store(out + column, NORMALIZE(column));
        }
        block_store(out + width - BLOCK, NORMALIZE(width - BLOCK));
        out += plane.out_stride;
        pixels += plane.row_stride;
        if (mean_image) mean_row += plane.mean_stride;
    }
}

#ifdef block_stream
/* Writes rows that bypass the caches. It streams only whole, aligned cache lines, because a partial line costs more
 * than it saves. Therefore the line in which one row ends and the next begins is first assembled in `edge`. */
ROWS_TARGET INLINE void ROWS(stream_rows)(const fb_plane plane, fb_edge *edge, PICKED) {
    const block mean = block_set(plane.mean), scale = block_set(plane.scale);
    const int64_t width = plane.width;
    const unsigned char *pixels = plane.pixels;
    const float *mean_row = plane.mean_rows;
    float *const line = edge->floats + BLOCK; /* with room on both sides, because parts are written as whole blocks */
    float *out = edge->line;
    int64_t used = edge->used;
    for (int64_t y = 0; y < plane.height; y++) {
        ROWS(prefetch)((uintptr_t)pixels + PREFETCH_ROWS * (uintptr_t)plane.row_stride, bytes ? width : width * 4);
        int64_t column = 0;
        if (used) {
            block_store(line + used, NORMALIZE(0));
            column = BLOCK - used;
            if (edge->foreign) {
                memcpy(out + edge->foreign, line + edge->foreign, (size_t)(BLOCK - edge->foreign) * sizeof(float));
                edge->foreign = 0;
            } else {
                block_stream(out, block_floats(line));
            }
            out += BLOCK;
        }
        for (; column + BLOCK <= width; column += BLOCK, out += BLOCK) block_stream(out, NORMALIZE(column));
        used = width - column;
        if (used) block_store(line + used - BLOCK, NORMALIZE(width - BLOCK));
        pixels += plane.row_stride;
        if (mean_image) mean_row += plane.mean_stride;
    }
    edge->line = out;
    edge->used = used;
}
#endif

/* Store and stream a plane with contiguous pixels, at least a block wide. Each combination of options has a loop of its
 * own. */
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

#undef NORMALIZE
#undef ROWS
#undef ROWS_TARGET
#undef block
#undef block_bytes
#undef block_floats
#undef block_normalize
#undef block_set
#undef block_reverse
#undef block_store
#undef block_stream
