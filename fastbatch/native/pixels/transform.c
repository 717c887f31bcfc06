#include "transform.h"

#include "random.h"

#include <limits.h>
#include <stdatomic.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline)) /* so that constants reach the loops */
#define BLOCK 16 /* pixels taken at a time: a cache line of floats */
#define MAX_SPLIT 4096 /* pixels of a row that is taken apart: more than any net's input has */

/* One channel of the crop, with everything that its pixels need. */
typedef struct fb_plane {
    const unsigned char *pixels;       /* the crop's first pixel in the source */
    int64_t row_stride, pixel_stride;  /* bytes */
    int bytes;                         /* uint8; otherwise float32 */
    const float *mean_rows;            /* the mean image at the same place, or NULL */
    int64_t mean_stride;               /* floats from one of its rows to the next */
    float mean, scale;                 /* without a mean `mean` is 0: v - 0 is v, to the bit */
    int64_t height, width;
    int mirror;
} fb_plane;

/* Where streamed output has got to: the cache line that is not complete yet. */
typedef struct fb_edge {
    float *line;     /* its address, 64-byte aligned */
    int64_t used;    /* how many floats of it are known */
    int64_t foreign; /* the first floats of it that are not ours: non-zero only in the first line */
    _Alignas(64) float floats[3 * BLOCK];
} fb_edge;

typedef struct fb_kernel {
    const char *name;
    void (*store)(const fb_plane *plane, float *out);
    void (*stream)(const fb_plane *plane, fb_edge *edge); /* NULL: this kernel always goes through the caches */
    void (*split)(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]);
} fb_kernel;

static int64_t floats_into_line(const float *p) {
    return (int64_t)((uintptr_t)p / sizeof(float) % BLOCK);
}

/* ---- any strides, any width */

INLINE void any_rows(const fb_plane *plane, float *restrict out, const int bytes, const int mirror) {
    const int64_t width = plane->width;
    for (int64_t y = 0; y < plane->height; y++, out += width) {
        const unsigned char *pixel = plane->pixels + y * plane->row_stride;
        const float *mean_row = plane->mean_rows ? plane->mean_rows + y * plane->mean_stride : NULL;
        for (int64_t x = 0; x < width; x++, pixel += plane->pixel_stride) {
            float value;
            if (bytes) value = (float)*pixel;
            else memcpy(&value, pixel, sizeof value);
            out[mirror ? width - 1 - x : x] = (value - (mean_row ? mean_row[x] : plane->mean)) * plane->scale;
        }
    }
}

static void any_plane(const fb_plane *plane, float *out) {
    if (plane->bytes) {
        if (plane->mirror) any_rows(plane, out, 1, 1);
        else any_rows(plane, out, 1, 0);
    } else {
        if (plane->mirror) any_rows(plane, out, 0, 1);
        else any_rows(plane, out, 0, 0);
    }
}

/* ---- pixels side by side: the same loops for each instruction set, by function attribute, so that one build runs
 * everywhere */

/* What a loop is compiled for, as constants, and the choice among the compiled ones. */
#define PICKED const int bytes, const int mirror, const int mean_image
#define PICK_FOR(plane)                                                               \
    switch (plane->bytes << 2 | plane->mirror << 1 | (plane->mean_rows != NULL)) {    \
        case 0: PICK(0, 0, 0); break;                                                 \
        case 1: PICK(0, 0, 1); break;                                                 \
        case 2: PICK(0, 1, 0); break;                                                 \
        case 3: PICK(0, 1, 1); break;                                                 \
        case 4: PICK(1, 0, 0); break;                                                 \
        case 5: PICK(1, 0, 1); break;                                                 \
        case 6: PICK(1, 1, 0); break;                                                 \
        case 7: PICK(1, 1, 1); break;                                                 \
    }
#define PREFETCH_ROWS 4 /* the processor's own prefetching stops at each page: a few rows of an image */

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
    /* Zeros between the bytes, then between the pairs, make 32-bit integers of them: little-endian, as everything
     * here. */
    const short8 low = (short8)PERMUTE(byte16, pixels, zero, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const short8 high = (short8)PERMUTE(byte16, pixels, zero, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                        31);
#define WIDEN(half, ...) __builtin_convertvector((int4)PERMUTE(short8, half, (short8)zero, __VA_ARGS__), float4)
    return (base_block){WIDEN(low, 0, 8, 1, 9, 2, 10, 3, 11), WIDEN(low, 4, 12, 5, 13, 6, 14, 7, 15),
                        WIDEN(high, 0, 8, 1, 9, 2, 10, 3, 11), WIDEN(high, 4, 12, 5, 13, 6, 14, 7, 15)};
#undef WIDEN
}

INLINE base_block base_block_floats(const void *p) {
    const char *at = p;
    base_block v;
    memcpy(&v.a, at, 16); /* part by part: as a whole, it would go through the stack */
    memcpy(&v.b, at + 16, 16);
    memcpy(&v.c, at + 32, 16);
    memcpy(&v.d, at + 48, 16);
    return v;
}

INLINE base_block base_block_shade(base_block v, base_block mean, base_block scale) {
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
#define block_shade base_block_shade
#define block_set base_block_set
#define block_reverse base_block_reverse
#define block_store base_block_store
#include "transform_rows.h"

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

AVX2 INLINE avx2_block avx2_block_shade(avx2_block v, avx2_block mean, avx2_block scale) {
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
#define block_shade avx2_block_shade
#define block_set avx2_block_set
#define block_reverse avx2_block_reverse
#define block_store avx2_block_store
#define block_stream avx2_block_stream
#include "transform_rows.h"

#define AVX512 __attribute__((target("avx512f")))

AVX512 INLINE __m512 avx512_block_bytes(const unsigned char *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

AVX512 INLINE __m512 avx512_block_shade(__m512 v, __m512 mean, __m512 scale) {
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
#define block_shade avx512_block_shade
#define block_set _mm512_set1_ps
#define block_reverse avx512_block_reverse
#define block_store _mm512_storeu_ps
#define block_stream _mm512_stream_ps
#include "transform_rows.h"

#endif

/* ---- three channels that take turns in a row, as decoders write them: taken apart into a row for each, a block at a
 * time; the last block overlaps the one before it */

#if defined(__aarch64__)
#include <arm_neon.h>

static void base_split(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]) {
    for (int64_t x = 0; x < width; x += BLOCK) {
        const int64_t at = x + BLOCK <= width ? x : width - BLOCK;
        const uint8x16x3_t apart = vld3q_u8(pixels + 3 * at);
        for (int channel = 0; channel < 3; channel++) vst1q_u8(channels[channel] + at, apart.val[channel]);
    }
}
#else
static void base_split(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]) {
    for (int64_t x = 0; x < width; x++) {
        for (int channel = 0; channel < 3; channel++) channels[channel][x] = pixels[3 * x + channel];
    }
}
#endif

#if defined(__x86_64__)
AVX2 static void avx2_split(const unsigned char *pixels, int64_t width, unsigned char *const channels[3]) {
    /* Where in the 48 bytes of 16 pixels a channel's values are: three registers, of which each has a part; - is 0. */
#define _ (-1)
    static const signed char places[3][3][16] = {
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
                const __m128i order = _mm_loadu_si128((const __m128i *)places[channel][part]);
                values = _mm_or_si128(values, _mm_shuffle_epi8(parts[part], order));
            }
            _mm_storeu_si128((__m128i *)(channels[channel] + at), values);
        }
    }
}
#endif

/* ---- which of them */

/* The best first. */
static const fb_kernel kernels[] = {
#if defined(__x86_64__)
    {"avx512", avx512_store, avx512_stream, avx2_split},
    {"avx2", avx2_store, avx2_stream, avx2_split},
#endif
#if defined(__aarch64__)
    {"neon", base_store, NULL, base_split},
#else
    {"generic", base_store, NULL, base_split},
#endif
};

static int kernel_runs_here(const fb_kernel *kernel) {
#if defined(__x86_64__)
    __builtin_cpu_init();
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

static const fb_kernel *kernel_in_use(void) {
    const fb_kernel *kernel = atomic_load_explicit(&chosen, memory_order_acquire);
    if (kernel == NULL) { /* two threads may get here at once: both find the same */
        fb_kernel_choose(NULL);
        kernel = atomic_load_explicit(&chosen, memory_order_acquire);
    }
    return kernel;
}

const char *fb_kernel_name(void) {
    return kernel_in_use()->name;
}

/* ---- Caffe's rules */

typedef struct fb_geometry { /* an image as (channels, height, width), with its strides in bytes */
    int64_t channels, height, width;
    int64_t channel_stride, row_stride, pixel_stride;
} fb_geometry;

static int image_geometry(const fb_view *image, fb_geometry *geometry, fb_error *error) {
    if (image->dtype != FB_UINT8 && image->dtype != FB_FLOAT32 && image->dtype != FB_ENCODED) {
        return fb_fail(error, "Image data type must be unsigned byte or float32: convert it, or load it without a "
                              "transform");
    }
    if (image->ndim != 2 && image->ndim != 3) {
        return fb_fail(error, "an image has 3 dimensions (channels, height, width) or 2 (height, width), this one has "
                              "%d", image->ndim);
    }
    const int rows = image->ndim - 2;
    *geometry = (fb_geometry){
        .channels = rows ? image->shape[0] : 1, .height = image->shape[rows], .width = image->shape[rows + 1],
        .channel_stride = rows ? image->strides[0] : 0, .row_stride = image->strides[rows],
        .pixel_stride = image->strides[rows + 1],
    };
    if (geometry->channels <= 0 || geometry->height <= 0 || geometry->width <= 0) {
        return fb_fail(error, "the image has no pixels: its shape is %lld x %lld x %lld (channels, height, width)",
                       (long long)geometry->channels, (long long)geometry->height, (long long)geometry->width);
    }
    return 0;
}

static int check_image(const fb_transform *transform, const fb_view *image, fb_geometry *geometry, int64_t out_shape[3],
                       fb_error *error) {
    if (image_geometry(image, geometry, error) != 0) return -1;
    const long long channels = geometry->channels, height = geometry->height, width = geometry->width;
    const int crop = transform->crop_size;
    if (crop > height || crop > width) {
        const char *side = crop > height ? "height" : "width";
        return fb_fail(error,
                       "the image, %lld x %lld x %lld (channels, height, width), is smaller than crop_size %d "
                       "(Check failed: datum_%s >= crop_size (%lld vs. %d)): use larger images or a smaller crop_size",
                       channels, height, width, crop, side, crop > height ? height : width, crop);
    }
    const int count = transform->mean_value_count;
    if (count > 1 && count != channels) {
        return fb_fail(error, "Specify either 1 mean_value or as many as channels: %lld (there are %d)", channels,
                       count);
    }
    const int64_t *mean = transform->mean_shape;
    if (transform->mean_image && (mean[0] != channels || mean[1] != height || mean[2] != width)) {
        return fb_fail(error,
                       "the mean image is %lld x %lld x %lld (channels, height, width) but the image, before cropping, "
                       "is %lld x %lld x %lld: they must be of one shape; make the mean file from this data",
                       (long long)mean[0], (long long)mean[1], (long long)mean[2], channels, height, width);
    }
    out_shape[0] = channels;
    out_shape[1] = crop > 0 ? crop : height;
    out_shape[2] = crop > 0 ? crop : width;
    int64_t area, size;
    if (__builtin_mul_overflow(out_shape[1], out_shape[2], &area) || __builtin_mul_overflow(area, channels, &size) ||
        size > INT_MAX) {
        return fb_fail(error, "the image, %lld x %lld x %lld (channels, height, width), is too large: blob size "
                              "exceeds INT_MAX", channels, (long long)out_shape[1], (long long)out_shape[2]);
    }
    return 0;
}

int fb_transform_shape(const fb_transform *transform, const fb_view *image, int64_t out_shape[3], fb_error *error) {
    fb_geometry geometry = {0};
    return check_image(transform, image, &geometry, out_shape, error);
}

static uint32_t reduce_draw(const fb_transform *transform, uint32_t raw, int64_t n) {
    return transform->caffe_draws ? raw % (uint32_t)n : fb_scale_draw(raw, (uint32_t)n);
}

int fb_transform_crop(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], fb_crop *crop,
                      fb_error *error) {
    fb_geometry source = {0};
    int64_t shape[3] = {0};
    if (check_image(transform, image, &source, shape, error) != 0) return -1;
    const int64_t spare_rows = source.height - shape[1], spare_columns = source.width - shape[2];
    *crop = (fb_crop){
        .region = {.top = spare_rows / 2, .left = spare_columns / 2, .height = shape[1], .width = shape[2]},
        .image_height = source.height, .image_width = source.width,
        .mirror = transform->mirror && reduce_draw(transform, draws[0], 2),
    };
    if (transform->random_crop) {
        crop->region.top = reduce_draw(transform, draws[1], spare_rows + 1);
        crop->region.left = reduce_draw(transform, draws[2], spare_columns + 1);
    }
    return 0;
}

/* Where a channel's mean values are: those of the plane's first row. */
static void set_mean(fb_plane *plane, const fb_transform *transform, const fb_crop *crop, int64_t channel) {
    if (transform->mean_value_count > 0) {
        plane->mean = transform->mean_values[transform->mean_value_count > 1 ? channel : 0];
    }
    if (transform->mean_image) {
        const int64_t row = channel * crop->image_height + crop->region.top;
        plane->mean_rows = transform->mean_image + row * crop->image_width + crop->region.left;
    }
}

static void begin_stream(fb_edge *edge, float *out) {
    edge->foreign = edge->used = floats_into_line(out);
    edge->line = out - edge->used;
}

/* Writes the line that is not complete, the last of this stream. */
static void end_stream(const fb_edge *edge) {
    const float *last_line = edge->floats + BLOCK;
    memcpy(edge->line + edge->foreign, last_line + edge->foreign, (size_t)(edge->used - edge->foreign) * sizeof(float));
#if defined(__x86_64__)
    _mm_sfence(); /* streamed stores are not ordered with the store that will say "this sample is done" */
#endif
}

/* Channel after channel, each where it lies. */
static void transform_planes(const fb_transform *transform, const fb_crop *crop, const fb_geometry *source,
                             fb_plane plane, const fb_kernel *kernel, float *out, int streaming) {
    const int side_by_side = plane.pixel_stride == (plane.bytes ? 1 : 4) && plane.width >= BLOCK;
    const int stream = streaming && side_by_side && kernel->stream;
    const unsigned char *const first = plane.pixels;
    fb_edge edge; /* one for all channels: each begins where the one before it ends */
    begin_stream(&edge, out);
    for (int64_t channel = 0; channel < source->channels; channel++) {
        plane.pixels = first + channel * source->channel_stride;
        set_mean(&plane, transform, crop, channel);
        if (stream) kernel->stream(&plane, &edge);
        else (side_by_side ? kernel->store : any_plane)(&plane, out + channel * plane.height * plane.width);
    }
    if (stream) end_stream(&edge);
}

/* Row after row, each taken apart into its three channels while it is in the cache. */
static void transform_interleaved(const fb_transform *transform, const fb_crop *crop, fb_plane plane,
                                  const fb_kernel *kernel, float *out, int streaming) {
    unsigned char rows[3][MAX_SPLIT];
    unsigned char *const channels[3] = {rows[0], rows[1], rows[2]};
    const unsigned char *pixels = plane.pixels;
    const int64_t height = plane.height, row_stride = plane.row_stride;
    const int stream = streaming && kernel->stream;
    fb_plane planes[3];
    fb_edge edges[3];
    plane.height = 1;
    plane.row_stride = 0;
    plane.pixel_stride = 1;
    for (int channel = 0; channel < 3; channel++) {
        plane.pixels = rows[channel];
        planes[channel] = plane;
        set_mean(&planes[channel], transform, crop, channel);
        begin_stream(&edges[channel], out + channel * height * plane.width);
    }
    for (int64_t y = 0; y < height; y++, pixels += row_stride, out += plane.width) {
        kernel->split(pixels, plane.width, channels);
        for (int channel = 0; channel < 3; channel++) {
            if (stream) kernel->stream(&planes[channel], &edges[channel]);
            else kernel->store(&planes[channel], out + channel * height * plane.width);
            if (planes[channel].mean_rows) planes[channel].mean_rows += plane.mean_stride;
        }
    }
    if (stream) {
        for (int channel = 0; channel < 3; channel++) end_stream(&edges[channel]);
    }
}

void fb_transform_pixels(const fb_transform *transform, const fb_crop *crop, const fb_view *pixels, float *out,
                         int streaming) {
    fb_geometry source = {0};
    fb_error error;
    if (image_geometry(pixels, &source, &error) != 0) return; /* whoever decided the crop has seen to it */
    const fb_plane plane = {
        .pixels = pixels->data, .row_stride = source.row_stride, .pixel_stride = source.pixel_stride,
        .bytes = pixels->dtype == FB_UINT8, .mean_stride = crop->image_width, .scale = transform->scale,
        .height = source.height, .width = source.width, .mirror = crop->mirror,
    };
    const int interleaved = plane.bytes && source.channels == 3 && source.channel_stride == 1 &&
                            source.pixel_stride == 3 && source.width >= BLOCK && source.width <= MAX_SPLIT;
    const fb_kernel *kernel = kernel_in_use();
    if (interleaved) transform_interleaved(transform, crop, plane, kernel, out, streaming);
    else transform_planes(transform, crop, &source, plane, kernel, out, streaming);
}

int fb_transform_apply(const fb_transform *transform, const fb_view *image, const uint32_t draws[3], float *out,
                       int streaming, fb_error *error) {
    fb_crop crop = {0};
    if (fb_transform_crop(transform, image, draws, &crop, error) != 0) return -1;
    const int rows = image->ndim - 2; /* which axis they are on */
    fb_view pixels = *image;
    pixels.data = (const char *)image->data + crop.region.top * image->strides[rows] +
                  crop.region.left * image->strides[rows + 1];
    pixels.shape[rows] = crop.region.height;
    pixels.shape[rows + 1] = crop.region.width;
    fb_transform_pixels(transform, &crop, &pixels, out, streaming);
    return 0;
}
