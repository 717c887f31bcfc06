#include "kernels.h"

#include <stdatomic.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline)) /* so that constant arguments specialize the loops */
#define BLOCK FB_BLOCK

static int64_t floats_into_line(const float *p) {
    return (int64_t)((uintptr_t)p / sizeof(float) % BLOCK);
}

/* ---- any strides, any width */

INLINE void any_rows(const fb_plane *plane, float *restrict out, const int bytes, const int mirror) {
    const int64_t width = plane->width;
    const int mean_mirror = mirror && plane->mean_stays;
    for (int64_t y = 0; y < plane->height; y++, out += plane->out_stride) {
        const unsigned char *pixel = plane->pixels + y * plane->row_stride;
        const float *mean_row = plane->mean_rows ? plane->mean_rows + y * plane->mean_stride : NULL;
        for (int64_t x = 0; x < width; x++, pixel += plane->pixel_stride) {
            float value;
            if (bytes) value = (float)*pixel;
            else memcpy(&value, pixel, sizeof value);
            out[mirror ? width - 1 - x : x] =
                (value - (mean_row ? mean_row[mean_mirror ? width - 1 - x : x] : plane->mean)) * plane->scale;
        }
    }
}

void fb_any_plane(const fb_plane *plane, float *out) {
    if (plane->bytes) {
        if (plane->mirror) any_rows(plane, out, 1, 1);
        else any_rows(plane, out, 1, 0);
    } else {
        if (plane->mirror) any_rows(plane, out, 0, 1);
        else any_rows(plane, out, 0, 0);
    }
}

/* ---- contiguous pixels: function attributes compile the same loops for each instruction set, so one build runs
 * everywhere */

/* What a loop is compiled for, as constants, and the choice among the compiled ones. */
#define PICKED const int bytes, const int mirror, const int mean_image
#define PICK_FOR(plane) \
    switch (plane->bytes << 2 | plane->mirror << 1 | (plane->mean_rows != NULL)) { \
        case 0: PICK(0, 0, 0); break; \
        case 1: PICK(0, 0, 1); break; \
        case 2: PICK(0, 1, 0); break; \
        case 3: PICK(0, 1, 1); break; \
        case 4: PICK(1, 0, 0); break; \
        case 5: PICK(1, 0, 1); break; \
        case 6: PICK(1, 1, 0); break; \
        case 7: PICK(1, 1, 1); break; \
    }
#define PREFETCH_ROWS 4 /* hardware prefetching stops at each page boundary, every few rows of an image */

/* Every processor has vectors of 16 bytes: SSE2 on x86-64, NEON on arm64, through the compiler's own vector types. */
typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef int16_t short8 __attribute__((vector_size(16)));
typedef uint8_t byte16 __attribute__((vector_size(16)));

#if defined(__clang__)
#define PERMUTE(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PERMUTE(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif

typedef struct base_block {
    float4 a, b, c, d;
} base_block;

INLINE base_block base_block_bytes(const unsigned char *p) {
    const byte16 zero = {0};
    byte16 pixels;
    memcpy(&pixels, p, sizeof pixels);
    /* Interleaving zeros with the bytes, and then with the pairs, extends them to 32-bit integers. Little-endian, like
     * all code here. */
    const short8 low = (short8)PERMUTE(byte16, pixels, zero, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const short8 high =
        (short8)PERMUTE(byte16, pixels, zero, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#define WIDEN(half, ...) __builtin_convertvector((int4)PERMUTE(short8, half, (short8)zero, __VA_ARGS__), float4)
    return (base_block){WIDEN(low, 0, 8, 1, 9, 2, 10, 3, 11), WIDEN(low, 4, 12, 5, 13, 6, 14, 7, 15),
                        WIDEN(high, 0, 8, 1, 9, 2, 10, 3, 11), WIDEN(high, 4, 12, 5, 13, 6, 14, 7, 15)};
#undef WIDEN
}

INLINE base_block base_block_floats(const void *p) {
    const char *at = p;
    base_block v;
    memcpy(&v.a, at, 16); /* part by part: a single copy would go through the stack */
    memcpy(&v.b, at + 16, 16);
    memcpy(&v.c, at + 32, 16);
    memcpy(&v.d, at + 48, 16);
    return v;
}

INLINE base_block base_block_normalize(base_block v, base_block mean, base_block scale) {
    return (base_block){(v.a - mean.a) * scale.a, (v.b - mean.b) * scale.b, (v.c - mean.c) * scale.c,
                        (v.d - mean.d) * scale.d};
}

INLINE base_block base_block_set(float x) {
    const float4 all = {x, x, x, x};
    return (base_block){all, all, all, all};
}

INLINE base_block base_block_reverse(base_block v) {
#define REVERSE(part) PERMUTE(int4, part, part, 3, 2, 1, 0)
    return (base_block){REVERSE(v.d), REVERSE(v.c), REVERSE(v.b), REVERSE(v.a)};
#undef REVERSE
}

INLINE void base_block_store(float *p, base_block v) {
    memcpy(p, &v.a, 16);
    memcpy(p + 4, &v.b, 16);
    memcpy(p + 8, &v.c, 16);
    memcpy(p + 12, &v.d, 16);
}

#define ROWS(name) base_##name
#define ROWS_TARGET
#define block base_block
#define block_bytes base_block_bytes
#define block_floats base_block_floats
#define block_normalize base_block_normalize
#define block_set base_block_set
#define block_reverse base_block_reverse
#define block_store base_block_store
#include "kernel_rows.h"

#if defined(__x86_64__)

#define AVX2 __attribute__((target("avx2")))

typedef struct avx2_block {
    __m256 low, high;
} avx2_block;

AVX2 INLINE avx2_block avx2_block_bytes(const unsigned char *p) {
    const __m128i pixels = _mm_loadu_si128((const __m128i *)p);
    return (avx2_block){_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(pixels)),
                        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(pixels, pixels)))};
}

AVX2 INLINE avx2_block avx2_block_floats(const void *p) {
    return (avx2_block){_mm256_loadu_ps((const float *)p), _mm256_loadu_ps((const float *)p + 8)};
}

AVX2 INLINE avx2_block avx2_block_normalize(avx2_block v, avx2_block mean, avx2_block scale) {
    return (avx2_block){_mm256_mul_ps(_mm256_sub_ps(v.low, mean.low), scale.low),
                        _mm256_mul_ps(_mm256_sub_ps(v.high, mean.high), scale.high)};
}

AVX2 INLINE avx2_block avx2_block_set(float x) {
    return (avx2_block){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

AVX2 INLINE avx2_block avx2_block_reverse(avx2_block v) {
    const __m256i order = _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    return (avx2_block){_mm256_permutevar8x32_ps(v.high, order), _mm256_permutevar8x32_ps(v.low, order)};
}

AVX2 INLINE void avx2_block_store(float *p, avx2_block v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
}

AVX2 INLINE void avx2_block_stream(float *p, avx2_block v) {
    _mm256_stream_ps(p, v.low);
    _mm256_stream_ps(p + 8, v.high);
}

#define ROWS(name) avx2_##name
#define ROWS_TARGET AVX2
#define block avx2_block
#define block_bytes avx2_block_bytes
#define block_floats avx2_block_floats
#define block_normalize avx2_block_normalize
#define block_set avx2_block_set
#define block_reverse avx2_block_reverse
#define block_store avx2_block_store
#define block_stream avx2_block_stream
#include "kernel_rows.h"

#define AVX512 __attribute__((target("avx512f")))

AVX512 INLINE __m512 avx512_block_bytes(const unsigned char *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

AVX512 INLINE __m512 avx512_block_normalize(__m512 v, __m512 mean, __m512 scale) {
    return _mm512_mul_ps(_mm512_sub_ps(v, mean), scale);
}

AVX512 INLINE __m512 avx512_block_reverse(__m512 v) {
    const __m512i order = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_permutexvar_ps(order, v);
}

#define ROWS(name) avx512_##name
#define ROWS_TARGET AVX512
#define block __m512
#define block_bytes avx512_block_bytes
#define block_floats _mm512_loadu_ps
#define block_normalize avx512_block_normalize
#define block_set _mm512_set1_ps
#define block_reverse avx512_block_reverse
#define block_store _mm512_storeu_ps
#define block_stream _mm512_stream_ps
#include "kernel_rows.h"

#endif

/* ---- deinterleaving: from a row of three interleaved channels, as decoders write it, to one row per channel, block by
 * block; the last block overlaps the one before it */

#if defined(__aarch64__)
#include <arm_neon.h>

static void base_deinterleave(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]) {
    for (int64_t x = 0; x < width; x += BLOCK) {
        const int64_t at = x + BLOCK <= width ? x : width - BLOCK;
        const uint8x16x3_t planar = vld3q_u8(pixels + 3 * at);
        for (int channel = 0; channel < 3; channel++) vst1q_u8(channels[channel] + at, planar.val[channel]);
    }
}
#else
static void base_deinterleave(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]) {
    for (int64_t x = 0; x < width; x++) {
        for (int channel = 0; channel < 3; channel++) channels[channel][x] = pixels[3 * x + channel];
    }
}
#endif

#if defined(__x86_64__)
AVX2 static void avx2_deinterleave(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]) {
    /* 16 pixels take three registers of 16 bytes. For each channel and register: the byte's index in the register for
     * each of the channel's 16 values, or _ where another register has it. */
#define _ (-1)
    static const signed char indices[3][3][16] = {
        {{0, 3, 6, 9, 12, 15, _, _, _, _, _, _, _, _, _, _},
         {_, _, _, _, _, _, 2, 5, 8, 11, 14, _, _, _, _, _},
         {_, _, _, _, _, _, _, _, _, _, _, 1, 4, 7, 10, 13}},
        {{1, 4, 7, 10, 13, _, _, _, _, _, _, _, _, _, _, _},
         {_, _, _, _, _, 0, 3, 6, 9, 12, 15, _, _, _, _, _},
         {_, _, _, _, _, _, _, _, _, _, _, 2, 5, 8, 11, 14}},
        {{2, 5, 8, 11, 14, _, _, _, _, _, _, _, _, _, _, _},
         {_, _, _, _, _, 1, 4, 7, 10, 13, _, _, _, _, _, _},
         {_, _, _, _, _, _, _, _, _, _, 0, 3, 6, 9, 12, 15}},
    };
#undef _
    for (int64_t x = 0; x < width; x += BLOCK) {
        const int64_t at = x + BLOCK <= width ? x : width - BLOCK;
        const __m128i *from = (const __m128i *)(pixels + 3 * at);
        const __m128i parts[3] = {_mm_loadu_si128(from), _mm_loadu_si128(from + 1), _mm_loadu_si128(from + 2)};
        for (int channel = 0; channel < 3; channel++) {
            __m128i values = _mm_setzero_si128();
            for (int part = 0; part < 3; part++) {
                const __m128i order = _mm_loadu_si128((const __m128i *)indices[channel][part]);
                values = _mm_or_si128(values, _mm_shuffle_epi8(parts[part], order));
            }
            _mm_storeu_si128((__m128i *)(channels[channel] + at), values);
        }
    }
}
#endif

/* ---- float16 */

INLINE uint16_t half_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff)); /* NaN, made quiet */
    if (bits >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* from 65520 on, the nearest is infinity */
    if (bits < 0x38800000) { /* below 2^-14: a multiple of 2^-24, which is the spacing of the floats from 0.5 on */
        float shifted;
        memcpy(&shifted, &bits, sizeof shifted);
        shifted += 0.5f;
        memcpy(&bits, &shifted, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
}

static void base_halve(const float *values, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = half_of(values[i]);
}

#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) static void f16c_halve(const float *values, int64_t count, uint16_t *out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(out + i), halves);
    }
    for (; i < count; i++) out[i] = half_of(values[i]);
}
#endif

/* ---- streaming: writes that bypass the caches */

void fb_begin_stream(fb_edge *edge, float *out) {
    edge->foreign = edge->used = floats_into_line(out);
    edge->line = out - edge->used;
}

void fb_end_stream(const fb_edge *edge) {
    const float *last_line = edge->floats + BLOCK;
    memcpy(edge->line + edge->foreign, last_line + edge->foreign, (size_t)(edge->used - edge->foreign) * sizeof(float));
#if defined(__x86_64__)
    _mm_sfence(); /* streamed stores are not ordered before the store that will mark this sample as done */
#endif
}

/* ---- the choice of a kernel */

/* Fastest first. */
static const fb_kernel kernels[] = {
#if defined(__x86_64__)
    {"avx512", avx512_store, avx512_stream, avx2_deinterleave, f16c_halve},
    {"avx2", avx2_store, avx2_stream, avx2_deinterleave, f16c_halve},
#endif
#if defined(__aarch64__)
    {"neon", base_store, NULL, base_deinterleave, base_halve},
#else
    {"generic", base_store, NULL, base_deinterleave, base_halve},
#endif
};

#if defined(__x86_64__)
static int has_f16c(void) { /* gcc 9 and 10 have no name for it; every processor with AVX2 so far has it */
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static int kernel_runs_here(const fb_kernel *kernel) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (strcmp(kernel->name, "generic") != 0 && !has_f16c()) return 0;
    if (strcmp(kernel->name, "avx512") == 0) return __builtin_cpu_supports("avx512f");
    if (strcmp(kernel->name, "avx2") == 0) return __builtin_cpu_supports("avx2");
#endif
    (void)kernel;
    return 1;
}

static _Atomic(const fb_kernel *) chosen;

int fb_kernel_choose(const char *name) {
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        if ((name == NULL || strcmp(kernels[i].name, name) == 0) && kernel_runs_here(&kernels[i])) {
            atomic_store_explicit(&chosen, &kernels[i], memory_order_release);
            return 0;
        }
    }
    return -1;
}

const fb_kernel *fb_kernel_in_use(void) {
    const fb_kernel *kernel = atomic_load_explicit(&chosen, memory_order_acquire);
    if (kernel == NULL) { /* two threads may get here at once; both choose the same */
        fb_kernel_choose(NULL);
        kernel = atomic_load_explicit(&chosen, memory_order_acquire);
    }
    return kernel;
}

const char *fb_kernel_name(void) {
    return fb_kernel_in_use()->name;
}
