/* Whether jpeg_fast.c decodes: it must run on this processor, and give the bits of the libjpeg that is loaded.
 *
 * All versions of libjpeg-turbo since 1.2 give the same bits. This is checked nevertheless, once in a process,
 * because the library is not ours: another build of it, such as one without SIMD code, rounds and overflows in its
 * own way. */
#include "jpeg_fast.h"

#include <setjmp.h>
#include <stdatomic.h>

enum { SIDE = 64 }; /* of the images that are compared; a multiple of all MCUs */

typedef struct failure {
    struct jpeg_error_mgr errors;
    jmp_buf to;
} failure;

__attribute__((noreturn)) static void fail(j_common_ptr library) {
    longjmp(((failure *)library->err)->to, 1);
}

static void ignore(j_common_ptr library) {
    (void)library;
}

static struct jpeg_error_mgr *errors_of(failure *failed) {
    jpeg_std_error(&failed->errors);
    failed->errors.error_exit = fail;
    failed->errors.output_message = ignore;
    return &failed->errors;
}

static uint32_t draw(uint32_t *state) { /* xorshift32 */
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* Coefficients such as a photograph's, except that one block in four has some that no photograph has: they overflow all
 * 16-bit steps of the decoder. */
static void fill_block(JCOEF *block, uint32_t *state) {
    const int is_extreme = draw(state) % 4 == 0, count = (int)(draw(state) % 12);
    block[0] = (JCOEF)((int)(draw(state) % 1023) - 511) / (is_extreme ? 1 : 8);
    for (int i = 0; i < count; i++) {
        const int value = (int)(draw(state) % 2047) - 1023;
        block[draw(state) % (draw(state) % 2 ? 8 : 64)] = (JCOEF)(is_extreme ? value : value / 64);
    }
}

/* An image's components; the sampling factors of the first one. Those of the others are 1. */
typedef struct kind {
    int components, h, v;
} kind;

static void write_to(j_compress_ptr library, const kind *of, unsigned char **bytes, unsigned long *size) {
    jvirt_barray_ptr arrays[3];
    uint32_t state = 0x9e3779b9;
    jpeg_create_compress(library);
    jpeg_mem_dest(library, bytes, size);
    library->image_width = library->image_height = SIDE;
    library->input_components = of->components;
    library->in_color_space = of->components == 1 ? JCS_GRAYSCALE : JCS_YCbCr;
    jpeg_set_defaults(library);
    jpeg_set_quality(library, 50, TRUE);
    library->comp_info[0].h_samp_factor = of->h;
    library->comp_info[0].v_samp_factor = of->v;
    for (int i = 0; i < of->components; i++) {
        const JDIMENSION width = (JDIMENSION)(SIDE / 8 / (i ? of->h : 1));
        const JDIMENSION height = (JDIMENSION)(SIDE / 8 / (i ? of->v : 1));
        arrays[i] = library->mem->request_virt_barray((j_common_ptr)library, JPOOL_IMAGE, TRUE, width, height,
                                                      (JDIMENSION)(i ? 1 : of->v));
    }
    jpeg_write_coefficients(library, arrays);
    for (int i = 0; i < of->components; i++) {
        for (JDIMENSION y = 0; y < (JDIMENSION)(SIDE / 8 / (i ? of->v : 1)); y++) {
            JBLOCKARRAY row = library->mem->access_virt_barray((j_common_ptr)library, arrays[i], y, 1, TRUE);
            for (int x = 0; x < SIDE / 8 / (i ? of->h : 1); x++) fill_block(row[0][x], &state);
        }
    }
    jpeg_finish_compress(library);
}

/* Writes an image of random coefficients. Returns 0, or -1; *bytes is to be freed in either case. */
static int write_image(const kind *of, unsigned char **bytes, unsigned long *size) {
    struct jpeg_compress_struct library = {0};
    failure failed;
    library.err = errors_of(&failed);
    const int code = setjmp(failed.to);
    if (code == 0) write_to(&library, of, bytes, size);
    jpeg_destroy_compress(&library);
    return code == 0 ? 0 : -1;
}

/* It begins and ends within MCUs, and misses the image's borders. */
static const fb_region part = {.top = 13, .left = 18, .height = SIDE - 20, .width = SIDE - 26};

static int has_same_pixels(j_decompress_ptr library, const fb_rows *rows, int channels) {
    library->out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_EXT_BGR;
    jpeg_start_decompress(library);
    while (library->output_scanline < library->output_height) {
        unsigned char pixels[3 * SIDE], *target = pixels;
        const int64_t y = library->output_scanline;
        jpeg_read_scanlines(library, &target, 1);
        if (y < part.top || y >= part.top + part.height) continue;
        const unsigned char *ours =
            rows->data + (y - rows->top) * rows->stride + (part.left - rows->left) * rows->pixel;
        const unsigned char *theirs = pixels + part.left * channels;
        for (int64_t x = 0; x < part.width; x++) {
            for (int c = 0; c < channels; c++) {
                if (theirs[x * channels + c] != ours[x * rows->pixel + c * rows->channel]) return 0;
            }
        }
    }
    return 1;
}

/* Decodes a part of the image with both, and returns whether they agree. */
static int agree_on(fb_jpeg_fast *fast, const fb_jpeg_kernels *kernels, fb_arena *arena, unsigned char *bytes,
                    unsigned long size, int channels) {
    struct jpeg_decompress_struct library = {0};
    failure failed;
    fb_error error;
    fb_rows rows;
    volatile int same = 0;
    library.err = errors_of(&failed);
    if (setjmp(failed.to) == 0) {
        jpeg_create_decompress(&library);
        jpeg_mem_src(&library, bytes, size);
        jpeg_read_header(&library, TRUE);
        const fb_jpeg_file file = {.bytes = bytes, .end = bytes + size};
        if (fb_jpeg_fast_read(fast, kernels, &library, &file, &part, channels, arena, &rows, &error) == FB_JPEG_DECODED)
            same = has_same_pixels(&library, &rows, channels);
    }
    jpeg_destroy_decompress(&library);
    return same;
}

typedef enum result { UNKNOWN, DIFFERENT, SAME_WITHOUT_440, SAME } result;

static result compare(const fb_jpeg_kernels *kernels) {
    static const kind kinds[] = {{1, 1, 1}, {3, 1, 1}, {3, 2, 1}, {3, 2, 2}, {3, 4, 1}, {3, 1, 2} /* 4:4:0 */};
    const size_t count = sizeof kinds / sizeof *kinds;
    fb_jpeg_fast *fast = fb_jpeg_fast_open(1);
    fb_arena arena = {0};
    size_t i = 0;
    for (int same = fast != NULL; i < count && same; i += same) {
        unsigned char *bytes = NULL;
        unsigned long size = 0;
        same = write_image(&kinds[i], &bytes, &size) == 0;
        for (int channels = 1; channels <= 3 && same; channels += 2)
            same = agree_on(fast, kernels, &arena, bytes, size, channels);
        free(bytes);
    }
    fb_arena_free(&arena);
    fb_jpeg_fast_close(fast);
    return i == count ? SAME : i == count - 1 ? SAME_WITHOUT_440 : DIFFERENT;
}

/* ---- the choice */

static const fb_jpeg_kernels *kernels_of(fb_jpeg_choice choice) {
    if (choice == FB_JPEG_NO_KERNELS) return NULL;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (choice == FB_JPEG_BEST_KERNELS && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2"))
        return &fb_jpeg_avx2;
#endif
#if FB_JPEG_KERNELS
    return &fb_jpeg_base;
#else
    return NULL;
#endif
}

/* What the comparison of kernels gives. Two threads may compare at once; both find the same. */
static result result_of(fb_jpeg_choice choice) {
    static _Atomic int results[FB_JPEG_BASE_KERNELS + 1];
    int known = atomic_load_explicit(&results[choice], memory_order_relaxed);
    if (known == UNKNOWN) {
        const fb_jpeg_kernels *kernels = kernels_of(choice);
        known = kernels ? compare(kernels) : DIFFERENT;
        atomic_store_explicit(&results[choice], known, memory_order_relaxed);
    }
    return (result)known;
}

static _Atomic int chosen = FB_JPEG_BEST_KERNELS;

static fb_jpeg_choice current(void) {
    return (fb_jpeg_choice)atomic_load_explicit(&chosen, memory_order_relaxed);
}

const fb_jpeg_kernels *fb_jpeg_fast_in_use(void) {
    const fb_jpeg_choice choice = current();
    return result_of(choice) == DIFFERENT ? NULL : kernels_of(choice);
}

int fb_jpeg_fast_takes_440(void) {
    return result_of(current()) == SAME;
}

int fb_jpeg_fast_use(fb_jpeg_choice choice) {
    if (choice != FB_JPEG_NO_KERNELS && result_of(choice) == DIFFERENT) return -1;
    atomic_store_explicit(&chosen, choice, memory_order_relaxed);
    return 0;
}
