/* The pixel pipeline against a reference that computes one pixel at a time: bit for bit, for every kernel that this
 * processor supports. */
#include "pixels/kernels.h"
#include "pixels/pixels.h"

#include "check.h"

static const char *const kernel_names[] = {"avx512", "avx2", "neon", "generic"};

/* ---- the reference: Caffe's rules, as plainly as they can be written */

static float pixel_at(const fb_view *image, int64_t c, int64_t y, int64_t x) {
    const unsigned char *p = image->data;
    if (image->ndim == 3) p += c * image->strides[0];
    p += y * image->strides[image->ndim - 2] + x * image->strides[image->ndim - 1];
    if (image->dtype == FB_UINT8) return (float)*p;
    float value;
    memcpy(&value, p, sizeof value);
    return value;
}

static void reference(const fb_transform *t, const fb_view *image, const uint32_t draws[4], float *out) {
    const int64_t channels = image->ndim == 3 ? image->shape[0] : 1;
    const int64_t height = image->shape[image->ndim - 2], width = image->shape[image->ndim - 1];
    const int64_t padded_height = height + 2 * t->pad_rows, padded_width = width + 2 * t->pad_columns;
    const int64_t out_height = t->crop_height ? t->crop_height : padded_height;
    const int64_t out_width = t->crop_width ? t->crop_width : padded_width;
    int64_t top = 0, left = 0;
    int flip = 0;
    if (t->mirror) flip = t->caffe_draws ? draws[0] % 2 == 1 : draws[0] >= 0x80000000u;
    if (t->crop_height && t->random_crop) {
        const uint64_t rows = (uint64_t)(padded_height - out_height + 1),
                       columns = (uint64_t)(padded_width - out_width + 1);
        top = (int64_t)(t->caffe_draws ? draws[1] % rows : draws[1] * rows / 4294967296u);
        left = (int64_t)(t->caffe_draws ? draws[2] % columns : draws[2] * columns / 4294967296u);
    } else if (t->crop_height) {
        top = (padded_height - out_height) / 2;
        left = (padded_width - out_width) / 2;
    }
    for (int64_t c = 0; c < channels; c++) {
        for (int64_t i = 0; i < out_height; i++) {
            for (int64_t j = 0; j < out_width; j++) {
                const int64_t y = top + i - t->pad_rows, x = left + j - t->pad_columns;
                const int inside = y >= 0 && y < height && x >= 0 && x < width;
                /* Volatile, so that every step is rounded to float32. */
                volatile float value = inside ? pixel_at(image, c, y, x) : *t->arithmetic.fill;
                if (t->arithmetic.mean_image) value = value - t->arithmetic.mean_image[(c * height + y) * width + x];
                else if (t->arithmetic.mean_value_count)
                    value = value - t->arithmetic.mean_values[t->arithmetic.mean_value_count == 1 ? 0 : c];
                value = value * t->arithmetic.scale;
                out[(c * out_height + i) * out_width + (flip ? out_width - 1 - j : j)] = value;
            }
        }
    }
}

/* ---- random images, in every layout that a source may show */

enum { PLANAR, PADDED, INTERLEAVED, TAGGED, FLIPPED, LAYOUTS };

typedef struct test_image {
    fb_view view;
    unsigned char *memory; /* exactly what the image spans: a read outside of it is found by the address sanitizer */
} test_image;

static test_image make_image(fb_dtype dtype, int layout, int64_t channels, int64_t height, int64_t width) {
    const int64_t size = dtype == FB_UINT8 ? 1 : 4;
    int64_t pixel = size, row, channel;
    if (layout == INTERLEAVED) pixel = size * channels;
    if (layout == TAGGED) pixel = size + 1; /* as unpacked float_data lies in a Datum */
    row = pixel * width + (layout == PADDED ? test_between(1, 70) : 0);
    channel = layout == INTERLEAVED ? size : row * height + (layout == PADDED ? test_between(0, 100) : 0);
    if (layout == FLIPPED) {
        row = -row;
        if (test_random() % 2) pixel = -pixel;
    }
    const int64_t last = (channels - 1) * channel, bottom = (height - 1) * row, right = (width - 1) * pixel;
    const int64_t lowest = (last < 0 ? last : 0) + (bottom < 0 ? bottom : 0) + (right < 0 ? right : 0);
    const int64_t highest = (last > 0 ? last : 0) + (bottom > 0 ? bottom : 0) + (right > 0 ? right : 0) + size;
    const int64_t shift = test_random() % 4; /* any alignment */
    test_image image = {.memory = malloc((size_t)(highest - lowest + shift))};
    for (int64_t i = 0; i < highest - lowest + shift; i++) image.memory[i] = (unsigned char)test_random();
    unsigned char *first = image.memory + shift - lowest;
    image.view = (fb_view){
        .data = first,
        .dtype = dtype,
        .ndim = 3,
        .shape = {channels, height, width},
        .strides = {channel, row, pixel},
    };
    if (dtype == FB_FLOAT32) {
        static const float special[] = {0.0f, -0.0f, 1e-42f, 3e38f, -3e38f, 1.0f / 3};
        for (int64_t i = 0; i < channels * height * width; i++) {
            const int64_t c = i / width / height, y = i / width % height, x = i % width;
            const uint32_t draw = test_random();
            const float value = draw % 16 == 0 ? special[draw / 16 % 6] : (float)(int32_t)test_random() / 65536.0f;
            memcpy(first + c * channel + y * row + x * pixel, &value, sizeof value);
        }
    }
    if (channels == 1 && test_random() % 2) {
        image.view.ndim = 2;
        for (int i = 0; i < 2; i++) {
            image.view.shape[i] = image.view.shape[i + 1];
            image.view.strides[i] = image.view.strides[i + 1];
        }
    }
    return image;
}

static void same_as_reference(const fb_transform *t, const test_image *image, const uint32_t draws[4]) {
    enum { GUARD = 32 };
    static const uint32_t untouched = 0x7fc0dead;
    fb_error error;
    int64_t shape[3];
    int ndim;
    CHECK(fb_transform_shape(t, FB_NORMALIZED, &image->view, shape, &ndim, &error) == 0 && ndim == 3, "%s", error.text);
    const size_t count = (size_t)(shape[0] * shape[1] * shape[2]);
    float *expected = malloc(count * sizeof *expected);
    float *memory = aligned_alloc(64, (count + 3 * GUARD) / 16 * 16 * sizeof *memory);
    reference(t, &image->view, draws, expected);
    for (size_t k = 0; k < sizeof kernel_names / sizeof *kernel_names; k++) {
        if (fb_kernel_choose(kernel_names[k]) != 0) continue;
        for (int streaming = 0; streaming < 2; streaming++) {
            float *const out = memory + GUARD / 2 + test_between(0, 16); /* any place in a cache line */
            for (float *p = memory; p < out + count + GUARD / 2; p++) memcpy(p, &untouched, sizeof untouched);
            CHECK(fb_transform_apply(t, &image->view, draws, out, streaming, &error) == 0, "%s", error.text);
            for (size_t i = 0; i < count; i++) {
                CHECK(memcmp(out + i, expected + i, sizeof *out) == 0,
                      "%s, streaming %d, element %zu of %d x %d x %d: %.9g instead of %.9g", kernel_names[k], streaming,
                      i, (int)shape[0], (int)shape[1], (int)shape[2], (double)out[i], (double)expected[i]);
            }
            for (float *p = memory; p < out + count + GUARD / 2; p++) {
                CHECK((p >= out && p < out + count) || memcmp(p, &untouched, sizeof untouched) == 0,
                      "%s, streaming %d: wrote outside of its place, at %td", kernel_names[k], streaming, p - out);
            }
        }
    }
    fb_kernel_choose(NULL);
    free(memory);
    free(expected);
}

static void one_random_case(void) {
    const fb_dtype dtype = test_random() % 2 ? FB_UINT8 : FB_FLOAT32;
    const int64_t channels = test_between(1, 4), height = test_between(1, 40);
    const int64_t width = test_between(1, test_random() % 4 ? 70 : 300);
    const test_image image = make_image(dtype, (int)(test_random() % LAYOUTS), channels, height, width);
    static const float scales[] = {1, 0.00390625f, 1.0f / 3, -2};
    fb_transform t = {
        .mirror = test_random() % 2,
        .random_crop = test_random() % 2,
        .caffe_draws = test_random() % 2,
        .arithmetic.scale = scales[test_random() % 4],
    };
    if (test_random() % 3) {
        t.crop_height = (int)test_between(1, height);
        t.crop_width = (int)test_between(1, width);
    }
    const float fill = (float)test_between(0, 255);
    if (test_random() % 3 == 0) {
        t.pad_rows = (int)test_between(0, t.crop_height ? t.crop_height - 1 : 5);
        t.pad_columns = (int)test_between(0, t.crop_width ? t.crop_width - 1 : 20);
        t.arithmetic.fill = &fill;
    }
    float values[4];
    for (int c = 0; c < 4; c++) values[c] = (float)test_between(-1000, 1000) / 7;
    float *mean = NULL;
    switch (test_random() % 4) {
        case 0:
            t.arithmetic.mean_value_count = 1;
            t.arithmetic.mean_values = values;
            break;
        case 1:
            t.arithmetic.mean_value_count = (int)channels;
            t.arithmetic.mean_values = values;
            break;
        case 2:
            if (t.arithmetic.fill) break;
            mean = malloc((size_t)(channels * height * width) * sizeof *mean);
            for (int64_t i = 0; i < channels * height * width; i++) mean[i] = (float)(test_random() % 256000) / 1000;
            t.arithmetic.mean_image = mean;
            t.arithmetic.mean_shape[0] = channels;
            t.arithmetic.mean_shape[1] = height;
            t.arithmetic.mean_shape[2] = width;
            break;
        default: break; /* no mean */
    }
    const uint32_t draws[4] = {test_random(), test_random(), test_random()};
    same_as_reference(&t, &image, draws);
    free(mean);
    free(image.memory);
}

static void the_usual_case(void) { /* what the loader is measured with */
    const float means[] = {104, 117, 123};
    const fb_transform t = {
        .crop_height = 227,
        .crop_width = 227,
        .mirror = 1,
        .random_crop = 1,
        .caffe_draws = 1,
        .arithmetic = {.scale = 1, .mean_value_count = 3, .mean_values = means},
    };
    const test_image image = make_image(FB_UINT8, PLANAR, 3, 256, 256);
    for (uint32_t flip = 0; flip < 2; flip++) {
        const uint32_t draws[4] = {flip, test_random(), test_random()};
        same_as_reference(&t, &image, draws);
    }
    free(image.memory);
}

/* ---- other forms: the same values in another order, or of another type */

static void forms_have_the_values_of_planes(void) {
    for (int i = 0; i < 1500; i++) {
        const fb_dtype dtype = test_random() % 2 ? FB_UINT8 : FB_FLOAT32;
        const int64_t channels = test_random() % 4 ? 3 : test_between(1, 4), height = test_between(1, 6);
        const int64_t width = test_random() % 4 ? test_between(1, 70) : test_between(1000, 1100);
        const test_image image = make_image(dtype, (int)(test_random() % LAYOUTS), channels, height, width);
        float values[4] = {0.25f, 0.5f, 0.75f, 1}, scales[4] = {1, 1.5f, 2, 3};
        fb_transform t = {.mirror = test_random() % 2, .random_crop = 1};
        if (test_random() % 2) {
            t.crop_height = (int)test_between(1, height);
            t.crop_width = (int)test_between(1, width);
        }
        t.form.channels_last = test_random() % 2;
        t.form.precision = (fb_precision)(test_random() % (dtype == FB_UINT8 ? 3 : 2));
        if (channels != 2 && channels != 4) t.form.channels = (fb_channels)(test_random() % 4);
        if (dtype == FB_UINT8 && channels != 2 && channels != 4 && test_random() % 4 == 0) {
            t.jitters = 1; /* tests/test_forms.py compares the values */
            t.brightness[1] = t.contrast[1] = t.saturation[1] = 2;
        }
        const int swapped = t.form.channels == FB_TO_RGB && channels == 3;
        const int gray = t.form.channels == FB_TO_GRAY && channels == 3;
        const int out_channels = gray ? 1 : t.form.channels > 0 && t.form.channels < FB_TO_GRAY ? 3 : (int)channels;
        t.arithmetic =
            (fb_arithmetic){.scale = 1, .mean_value_count = out_channels, .mean_values = values, .scales = scales};
        if (t.form.precision == FB_BYTES) t.arithmetic = (fb_arithmetic){.scale = 1};
        const uint32_t draws[4] = {test_random(), test_random(), test_random()};
        fb_geometry geometry;
        fb_error error;
        int64_t shape[3];
        int ndim;
        CHECK(fb_transform_shape(&t, FB_NORMALIZED, &image.view, shape, &ndim, &error) == 0, "%s", error.text);
        CHECK(fb_transform_choose(&t, &image.view, draws, &geometry, &error) == 0, "%s", error.text);
        const fb_region *region = &geometry.region;
        const size_t size = fb_dtype_size(fb_form_dtype(&t.form));
        const int64_t count = shape[0] * shape[1] * shape[2];
        unsigned char *const out = malloc((size_t)count * size); /* exactly, for the address sanitizer */
        for (size_t k = 0; k < sizeof kernel_names / sizeof *kernel_names; k++) {
            if (fb_kernel_choose(kernel_names[k]) != 0) continue;
            CHECK(fb_transform_apply(&t, &image.view, draws, out, (int)(test_random() % 2), &error) == 0, "%s",
                  error.text);
            for (int64_t j = 0; j < count && !t.jitters; j++) {
                const int64_t c = t.form.channels_last ? j % out_channels : j / (region->height * region->width);
                const int64_t place = t.form.channels_last ? j / out_channels : j % (region->height * region->width);
                const int64_t column = place % region->width, y = region->top + place / region->width;
                const int64_t x = region->left + (geometry.mirror ? region->width - 1 - column : column);
                const int64_t source = channels == 1 ? 0 : swapped ? 2 - c : c;
                volatile float value = pixel_at(&image.view, source, y, x);
                if (gray) {
                    const float blue = value, green = pixel_at(&image.view, 1, y, x);
                    const float red = pixel_at(&image.view, 2, y, x);
                    if (dtype == FB_FLOAT32) break; /* tests/test_forms.py */
                    value = (float)(((int)blue * 3735 + (int)green * 19235 + (int)red * 9798 + 16384) >> 15);
                }
                if (t.arithmetic.scales) {
                    value = value - values[c];
                    value = value * scales[c];
                }
                if (t.form.precision == FB_SINGLE) {
                    const float expected = value;
                    CHECK(memcmp(out + (size_t)j * size, &expected, size) == 0, "%s, form %d, value %d",
                          kernel_names[k], i, (int)j);
                } else if (t.form.precision == FB_BYTES) {
                    CHECK(out[j] == (unsigned char)value, "%s, form %d, byte %d", kernel_names[k], i, (int)j);
                }
            }
        }
        fb_kernel_choose(NULL);
        free(out);
        free(image.memory);
    }
}

/* ---- a mask: the same part of it, in its own type */

static int64_t nearest_to(int64_t i, int64_t from, int64_t to) { /* in doubles, which are exact enough here */
    return (int64_t)(((double)i + 0.5) * (double)from / (double)to);
}

static void masks_are_cut_as_their_images_are(void) {
    static const fb_dtype types[] = {FB_UINT8, FB_INT16, FB_FLOAT32, FB_INT64};
    for (int i = 0; i < 2000; i++) {
        const fb_dtype dtype = types[test_random() % 4];
        const int64_t size = (int64_t)fb_dtype_size(dtype), height = test_between(1, 20), width = test_between(1, 40),
                      channels = test_between(1, 3);
        unsigned char memory[3 * 20 * 40 * 8];
        for (size_t k = 0; k < sizeof memory; k++) memory[k] = (unsigned char)test_random();
        const int planes = test_random() % 2;
        const fb_view image = {
            .dtype = FB_UINT8, .ndim = 3, .shape = {3, height, width}, .strides = {height * width, width, 1}};
        fb_view mask = {.data = memory,
                        .dtype = dtype,
                        .ndim = 2,
                        .shape = {height, width},
                        .strides = {40 * size, size}},
                region;
        if (planes) {
            mask = (fb_view){.data = memory,
                             .dtype = dtype,
                             .ndim = 3,
                             .shape = {channels, height, width},
                             .strides = {800 * size, 40 * size, size}};
        }
        fb_transform t = {.mirror = test_random() % 2, .random_crop = 1, .arithmetic.scale = 2};
        int64_t resized_height = height, resized_width = width;
        if (test_random() % 2) {
            t.resize_height = (int)(resized_height = test_between(1, 50));
            t.resize_width = (int)(resized_width = test_between(1, 50));
        }
        if (test_random() % 2) {
            t.crop_height = (int)test_between(1, resized_height);
            t.crop_width = (int)test_between(1, resized_width);
        }
        if (test_random() % 2) {
            t.pad_rows = (int)test_between(0, t.crop_height ? t.crop_height - 1 : 5);
            t.pad_columns = (int)test_between(0, t.crop_width ? t.crop_width - 1 : 5);
        }
        const uint32_t draws[4] = {test_random(), test_random(), test_random()};
        const double fill = (double)test_between(0, 100);
        fb_geometry geometry;
        fb_error error;
        int64_t shape[3];
        int ndim;
        CHECK(fb_transform_choose(&t, &image, draws, &geometry, &error) == 0 &&
                  fb_geometry_fits(&geometry, &mask, &error) == 0,
              "%s", error.text);
        CHECK(fb_transform_shape(&t, FB_CUT, &mask, shape, &ndim, &error) == 0 && ndim == mask.ndim, "%s", error.text);
        const int64_t out_height = shape[ndim - 2], out_width = shape[ndim - 1], count = planes ? channels : 1;
        CHECK(out_height == (t.crop_height ? t.crop_height : resized_height + 2 * t.pad_rows) &&
                  out_width == (t.crop_width ? t.crop_width : resized_width + 2 * t.pad_columns) &&
                  (!planes || shape[0] == channels),
              "shape");
        const int64_t spare_rows = resized_height + 2 * t.pad_rows - out_height;
        const int64_t spare_columns = resized_width + 2 * t.pad_columns - out_width;
        const int64_t top = (int64_t)((uint64_t)draws[1] * (uint64_t)(spare_rows + 1) >> 32) - t.pad_rows;
        const int64_t left = (int64_t)((uint64_t)draws[2] * (uint64_t)(spare_columns + 1) >> 32) - t.pad_columns;
        unsigned char *const out = malloc((size_t)(count * out_height * out_width * size));
        fb_pixels_part(&geometry, &mask, &region);
        CHECK(fb_pixels_copy(&geometry, &region, (char *)out, dtype, fill, NULL), "stopped");
        const unsigned char *found = out;
        for (int64_t c = 0; c < count; c++) {
            for (int64_t y = 0; y < out_height; y++) {
                for (int64_t x = 0; x < out_width; x++, found += size) {
                    const int64_t row = top + y, column = left + (geometry.mirror ? out_width - 1 - x : x);
                    if (row < 0 || row >= resized_height || column < 0 || column >= resized_width) {
                        const float single = (float)fill;
                        const int64_t whole = (int64_t)fill;
                        const void *filled = dtype == FB_FLOAT32 ? (const void *)&single : &whole;
                        CHECK(memcmp(found, filled, (size_t)size) == 0, "mask %d, around it", i);
                        continue;
                    }
                    const unsigned char *expected = memory + (c * 800 + nearest_to(row, height, resized_height) * 40 +
                                                              nearest_to(column, width, resized_width)) *
                                                                 size;
                    CHECK(memcmp(found, expected, (size_t)size) == 0, "mask %d, (%lld, %lld)", i, (long long)y,
                          (long long)x);
                }
            }
        }
        free(out);
        mask.shape[mask.ndim - 1]++;
        CHECK(fb_geometry_fits(&geometry, &mask, &error) == -1 && strstr(error.text, "must be of one size"), "%s",
              error.text);
    }
}

/* ---- resizing: the part of it that is kept, and nothing read or written outside */

static void a_part_of_a_resized_image_is_that_of_the_whole(void) {
    fb_arena memory = {0}, other = {0};
    for (int i = 0; i < 1500; i++) {
        const int64_t channels = test_between(1, 6), height = test_between(1, 30), width = test_between(1, 40);
        const test_image image = make_image(FB_UINT8, (int)(test_random() % LAYOUTS), channels, height, width);
        fb_geometry whole = {
            .region = {.height = height, .width = width}, .height = test_between(1, 50), .width = test_between(1, 50)};
        if (test_random() % 2) {
            whole.region.top = test_between(0, height - 1);
            whole.region.height = test_between(1, height - whole.region.top);
            whole.region.left = test_between(0, width - 1);
            whole.region.width = test_between(1, width - whole.region.left);
        }
        whole.part = (fb_region){.height = whole.height, .width = whole.width};
        fb_geometry cut = whole;
        cut.part.top = test_between(0, whole.height - 1);
        cut.part.height = test_between(1, whole.height - cut.part.top);
        cut.part.left = test_between(0, whole.width - 1);
        cut.part.width = test_between(1, whole.width - cut.part.left);
        fb_view all, some;
        fb_error error;
        fb_arena_empty(&memory);
        fb_arena_empty(&other);
        fb_pixels_part(&whole, &image.view, &all);
        fb_pixels_part(&cut, &image.view, &some);
        CHECK(fb_pixels_resize(&whole, &all, &memory, &error) == 0, "%s", error.text);
        CHECK(fb_pixels_resize(&cut, &some, &other, &error) == 0, "%s", error.text);
        for (int64_t c = 0; c < channels; c++) {
            for (int64_t y = 0; y < cut.part.height; y++) {
                for (int64_t x = 0; x < cut.part.width; x++) {
                    CHECK(pixel_at(&some, c, y, x) == pixel_at(&all, c, cut.part.top + y, cut.part.left + x),
                          "image %d, channel %d", i, (int)c);
                }
            }
        }
        const int32_t stop = 1;
        other.stop = &stop;
        CHECK(fb_pixels_resize(&cut, &some, &other, &error) == -1 && strstr(error.text, "nobody waits"), "not stopped");
        other.stop = NULL;
        free(image.memory);
    }
    fb_arena_free(&memory);
    fb_arena_free(&other);
}

/* ---- random regions */

static void random_regions_lie_in_the_image(void) {
    static const double extreme[] = {5e-324, 1e-300, 1e-20, 1e20, 1e300};
    for (int i = 0; i < 20000; i++) {
        const fb_view image = {
            .dtype = FB_UINT8, .ndim = 2, .shape = {test_between(1, i % 2 ? 20 : 600), test_between(1, 600)}};
        fb_transform t = {.random_resized = 1,
                          .crop_height = 7,
                          .crop_width = 9,
                          .least_area = (double)test_between(1, 1000) / 1000,
                          .least_ratio = (double)test_between(1, 3000) / 1000};
        t.most_area = t.least_area + (1 - t.least_area) * (double)test_between(0, 9) / 9;
        t.most_ratio = t.least_ratio * (double)test_between(1, 9);
        if (i % 8 == 0) t.least_ratio = t.most_ratio = extreme[test_random() % 5];
        if (i % 8 == 1) t.most_ratio = 1e300;
        if (i % 8 == 2) t.least_ratio = 5e-324;
        const uint32_t draws[4] = {test_random(), test_random(), test_random(), test_random()};
        fb_geometry geometry;
        fb_error error;
        CHECK(fb_transform_choose(&t, &image, draws, &geometry, &error) == 0, "%s", error.text);
        const fb_region *region = &geometry.region;
        CHECK(region->top >= 0 && region->left >= 0 && region->height >= 1 && region->width >= 1 &&
                  region->top + region->height <= image.shape[0] && region->left + region->width <= image.shape[1],
              "region %d", i);
        CHECK(geometry.height == 7 && geometry.width == 9 && geometry.part.height == 7 && geometry.part.width == 9,
              "size %d", i);
    }
}

/* ---- what an image may have: the geometry does not depend on what becomes of the channels */

static void only_the_output_must_fit_a_blob(void) {
    const fb_view image = {.dtype = FB_UINT8, .ndim = 3, .shape = {3, 40000, 20000}};
    const fb_transform gray = {.form.channels = FB_TO_GRAY}, plain = {0};
    const uint32_t draws[4] = {0};
    fb_geometry geometry;
    fb_error error;
    int64_t shape[3];
    int ndim;
    CHECK(fb_transform_shape(&plain, FB_NORMALIZED, &image, shape, &ndim, &error) == -1, "2.4 billion values");
    CHECK(fb_transform_shape(&gray, FB_NORMALIZED, &image, shape, &ndim, &error) == 0 && shape[0] == 1, "%s",
          error.text);
    CHECK(fb_transform_choose(&gray, &image, draws, &geometry, &error) == 0 && geometry.out_height == 40000, "%s",
          error.text);
}

/* ---- refusals */

static void refused(const fb_transform *t, const fb_view *image, const char *words) {
    fb_error error = {0};
    int64_t shape[3];
    int ndim;
    float out[1] = {0};
    const uint32_t draws[4] = {0};
    CHECK(fb_transform_shape(t, FB_NORMALIZED, image, shape, &ndim, &error) == -1, "no error with \"%s\"", words);
    CHECK(strstr(error.text, words), "\"%s\" has no \"%s\"", error.text, words);
    CHECK(!error.fatal, "a bad image is not the end of its source");
    memset(&error, 0, sizeof error);
    CHECK(fb_transform_apply(t, image, draws, out, 0, &error) == -1, "apply(): no error with \"%s\"", words);
    CHECK(strstr(error.text, words), "apply(): \"%s\" has no \"%s\"", error.text, words);
    CHECK(out[0] == 0, "a refused image was written");
}

static void bad_images_are_refused(void) {
    const unsigned char byte = 0;
    const float values[4] = {0};
    const fb_view good = {.data = &byte, .dtype = FB_UINT8, .ndim = 3, .shape = {3, 20, 30}, .strides = {600, 30, 1}};
    const fb_transform plain = {.arithmetic.scale = 1};
    fb_transform t = plain;
    fb_view image = good;

    image.dtype = FB_INT64;
    refused(&t, &image, "Image data type must be unsigned byte");
    image = good;
    image.ndim = 4;
    refused(&t, &image, "this one has 4");
    image = good;
    image.shape[0] = 0;
    refused(&t, &image, "0 x 20 x 30");
    image.shape[0] = 3;
    image.shape[2] = -1;
    refused(&t, &image, "3 x 20 x -1");

    t.crop_height = t.crop_width = 21;
    refused(&t, &good, "datum_height >= crop_size (20 vs. 21)");
    image = good;
    image.shape[1] = 40;
    t.crop_height = t.crop_width = 31;
    refused(&t, &image, "datum_width >= crop_size (30 vs. 31)");

    t = plain;
    t.arithmetic.mean_values = values;
    t.arithmetic.mean_value_count = 2;
    refused(&t, &good, "Specify either 1 mean_value or as many as channels: 3");
    t = plain;
    t.arithmetic.mean_image = values;
    t.arithmetic.mean_shape[0] = 3;
    t.arithmetic.mean_shape[1] = 20;
    t.arithmetic.mean_shape[2] = 31;
    refused(&t, &good, "3 x 20 x 31");

    image = good; /* sizes whose product does not fit, in 32 bits and in 64 */
    image.shape[0] = image.shape[1] = image.shape[2] = 1300;
    refused(&plain, &image, "blob size exceeds INT_MAX");
    image.shape[0] = image.shape[1] = image.shape[2] = INT64_MAX;
    refused(&plain, &image, "blob size exceeds INT_MAX");
}

/* ---- `stop` */

/* So many pixels that a plane is written in several steps. */
static void a_large_image_is_written_in_steps(void) {
    enum { COUNT = 1100 * 1000 };
    static float mean[COUNT], expected[COUNT], memory[COUNT + 1];
    float *const out = memory + 1; /* any place in a cache line */
    const uint32_t draws[4] = {0xffffffffu, 0, 0};
    for (int i = 0; i < COUNT; i++) mean[i] = (float)(test_random() % 1000) / 7;
    for (int i = 0; i < 6; i++) {
        const int64_t height = i < 3 ? 1100 : 1, width = COUNT / height;
        const test_image image = make_image(FB_UINT8, i % 3 == 2 ? TAGGED : PLANAR, 1, height, width);
        const fb_transform t = {
            .mirror = i % 3 > 0,
            .arithmetic = {.scale = 0.5f, .mean_image = i % 3 ? mean : NULL, .mean_shape = {1, height, width}}};
        fb_error error;
        reference(&t, &image.view, draws, expected);
        for (int streaming = 0; streaming < 2; streaming++) {
            memset(out, 0, sizeof expected);
            CHECK(fb_transform_apply(&t, &image.view, draws, out, streaming, &error) == 0, "%s", error.text);
            CHECK(memcmp(out, expected, sizeof expected) == 0, "case %d, streaming %d", i, streaming);
        }
        free(image.memory);
    }
    /* A mean image that is not mirrored with the pixels. */
    const test_image row = make_image(FB_UINT8, PLANAR, 1, 1, COUNT);
    const fb_arithmetic arithmetic = {
        .scale = 1, .mean_image = mean, .mean_shape = {1, 1, COUNT}, .mean_lies_on_output = 1};
    const fb_geometry geometry = {.out_height = 1, .out_width = COUNT, .mirror = 1};
    CHECK(fb_pixels_normalize(&arithmetic, &geometry, &row.view, out, 0, NULL), "stopped");
    for (int i = 0; i < COUNT; i++) CHECK(out[i] == pixel_at(&row.view, 0, 0, COUNT - 1 - i) - mean[i], "column %d", i);
    free(row.memory);
}

/* Whatever the form: neither the image nor what lies around it. */
static void no_border_is_filled_when_nobody_waits(void) {
    static unsigned char out[4 * 3 * 50 * 50];
    const int32_t stop = 1;
    const uint32_t draws[4] = {0};
    const float fill = 1;
    const test_image image = make_image(FB_UINT8, PLANAR, 3, 40, 40);
    for (int i = 0; i < 6; i++) {
        const fb_transform t = {
            .pad_rows = 5,
            .pad_columns = 5,
            .arithmetic = {.scale = 1, .fill = &fill},
            .form = {.channels_last = i % 2, .precision = (fb_precision)(i / 2)},
        };
        fb_geometry geometry;
        fb_error error;
        CHECK(fb_transform_choose(&t, &image.view, draws, &geometry, &error) == 0, "%s", error.text);
        CHECK(!fb_pixels_write(&t, &geometry, &image.view, out, 0, &stop), "form %d was written", i);
        CHECK(!fb_pixels_copy(&geometry, &image.view, (char *)out, FB_UINT8, 1, &stop), "a mask was copied");
        for (size_t k = 0; k < sizeof out; k++) CHECK(out[k] == 0, "form %d: byte %d", i, (int)k);
    }
    free(image.memory);
}

static void nothing_is_written_when_nobody_waits(void) {
    static float out[3 * 40 * 40];
    int32_t stop = 0;
    const uint32_t draws[4] = {0};
    const fb_transform t = {.arithmetic.scale = 1};
    for (int layout = 0; layout < LAYOUTS; layout++) {
        const test_image image = make_image(FB_UINT8, layout, 3, 40, 40);
        fb_geometry geometry;
        fb_error error;
        CHECK(fb_transform_choose(&t, &image.view, draws, &geometry, &error) == 0, "%s", error.text);
        for (int streaming = 0; streaming < 2; streaming++) {
            stop = 0;
            CHECK(fb_pixels_normalize(&t.arithmetic, &geometry, &image.view, out, streaming, &stop), "stopped");
            stop = 1;
            CHECK(!fb_pixels_normalize(&t.arithmetic, &geometry, &image.view, out, streaming, &stop),
                  "an image was written that nobody waits for");
        }
        geometry.mirror = 1; /* a copy of contiguous memory checks only between large blocks */
        CHECK(!fb_pixels_copy(&geometry, &image.view, (char *)out, FB_UINT8, 0, &stop), "a mask was copied");
        stop = 0;
        CHECK(fb_pixels_copy(&geometry, &image.view, (char *)out, FB_UINT8, 0, &stop), "stopped");
        free(image.memory);
    }
}

static void kernels_are_chosen_by_name(void) {
    CHECK(fb_kernel_choose("no such kernel") == -1, "an unknown kernel was found");
    fb_kernel_choose(NULL);
    const char *const best = fb_kernel_name();
    for (size_t k = 0; k < sizeof kernel_names / sizeof *kernel_names; k++) {
        if (fb_kernel_choose(kernel_names[k]) == 0) {
            CHECK(strcmp(fb_kernel_name(), kernel_names[k]) == 0, "%s is in use", fb_kernel_name());
            printf("%s ", kernel_names[k]);
        }
    }
    fb_kernel_choose(NULL);
    CHECK(strcmp(fb_kernel_name(), best) == 0, "the best kernel was %s and is %s now", best, fb_kernel_name());
}

int main(void) {
    kernels_are_chosen_by_name();
    bad_images_are_refused();
    the_usual_case();
    forms_have_the_values_of_planes();
    masks_are_cut_as_their_images_are();
    a_part_of_a_resized_image_is_that_of_the_whole();
    random_regions_lie_in_the_image();
    only_the_output_must_fit_a_blob();
    a_large_image_is_written_in_steps();
    nothing_is_written_when_nobody_waits();
    no_border_is_filled_when_nobody_waits();
    for (int i = 0; i < 3000; i++) one_random_case();
    return 0;
}
