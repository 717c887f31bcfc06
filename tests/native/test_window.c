/* Windows without Python: their geometry, the pixels written for them, and the window file, valid or randomly changed.
 * tests/layers/test_window_data.py compares all of it with Caffe. */
#include "pixels/kernels.h"
#include "files/window_file.h"

#include "check.h"

static const char *const kernel_names[] = {"avx512", "avx2", "neon", "generic"};
static fb_error error;

/* ---- where they lie */

static void known_places(void) {
    const fb_warp warp = {.crop_size = 8, .context_pad = 2};
    const fb_window window = {.x1 = 4, .x2 = 7, .y1 = 0, .y2 = 1};
    fb_geometry cut;
    for (int mirror = 0; mirror < 2; mirror++) {
        /* Twice the window is columns 2 to 10 of 9, rows -1 to 3: of 9 x 5 pixels, 7 x 4 are in the image. */
        CHECK(fb_window_choose(&warp, &window, 50, 9, mirror, &cut, &error) == 0, "%s", error.text);
        CHECK(cut.region.left == 2 && cut.region.width == 7 && cut.region.top == 0 && cut.region.height == 4, "region");
        CHECK(cut.width == 6 && cut.height == 6 && cut.top == 2 && cut.left == (mirror ? 2 : 0) && cut.mirror == mirror,
              "place");
    }
    const fb_warp square = {.crop_size = 8, .square = 1};
    CHECK(fb_window_choose(&square, &window, 50, 9, 0, &cut, &error) == 0, "%s", error.text);
    /* Its center is (6, 1), its longer side 4: columns 4 to 8, rows -1 to 3 of 5 x 5. */
    CHECK(cut.region.left == 4 && cut.region.width == 5 && cut.region.top == 0 && cut.region.height == 4,
          "region of a square");
    CHECK(cut.width == 8 && cut.height == 6 && cut.top == 2 && cut.left == 0, "place of a square");
    const fb_warp plain = {.crop_size = 5};
    CHECK(fb_window_choose(&plain, &window, 50, 9, 1, &cut, &error) == 0, "%s", error.text);
    CHECK(cut.region.left == 4 && cut.region.width == 4 && cut.region.top == 0 && cut.region.height == 2,
          "region as it is");
    CHECK(cut.width == 5 && cut.height == 5 && cut.top == 0 && cut.left == 0, "place of a region as it is");
}

static void every_place_is_inside(void) {
    int refused = 0;
    for (int i = 0; i < 200000; i++) {
        const int side = 1 << test_between(0, 20), height = (int)test_between(1, side),
                  width = (int)test_between(1, (1 << 30) / side);
        const int crop_size = (int)test_between(1, i % 2 ? 300 : 20000);
        const fb_warp warp = {
            .crop_size = crop_size, .context_pad = (int)test_between(0, (crop_size - 1) / 2), .square = i / 2 % 2};
        fb_window window = {.x1 = (int32_t)test_between(0, width - 1), .y1 = (int32_t)test_between(0, height - 1)};
        window.x2 = (int32_t)test_between(window.x1, width - 1);
        window.y2 = (int32_t)test_between(window.y1, height - 1);
        fb_geometry cut;
        if (fb_window_choose(&warp, &window, height, width, i / 4 % 2, &cut, &error) != 0) {
            CHECK(error.text[0], "an error without a reason");
            refused++;
            continue;
        }
        const fb_region *region = &cut.region;
        CHECK(region->left >= 0 && region->width > 0 && region->left + region->width <= width, "columns of %d", width);
        CHECK(region->top >= 0 && region->height > 0 && region->top + region->height <= height, "rows of %d", height);
        CHECK(cut.top >= 0 && cut.height > 0 && cut.top + cut.height <= crop_size, "rows of the square");
        CHECK(cut.left >= 0 && cut.width > 0 && cut.left + cut.width <= crop_size, "columns of the square");
    }
    CHECK(refused > 0 && refused < 100000, "%d of 200000 windows refused", refused);
}

/* ---- what is written */

static void pixels_are_where_they_belong(int side, int rounds) {
    const int64_t mean_width = side + 5, mean_height = side + 8, area = (int64_t)side * side;
    unsigned char *pixels = malloc((size_t)area * 3);
    float *mean = malloc((size_t)(3 * mean_height * mean_width) * sizeof *mean),
          *out = malloc((size_t)area * 3 * sizeof *out);
    for (int64_t i = 0; i < 3 * area; i++) pixels[i] = (unsigned char)test_random();
    for (int64_t i = 0; i < 3 * mean_height * mean_width; i++) mean[i] = (float)test_between(-999, 999) / 8;
    for (int i = 0; i < rounds; i++) {
        const float means[] = {1.5f, 2.25f, i % 3 ? 0.f : -7.f};
        const fb_arithmetic arithmetic = {.scale = 0.3f,
                                          .mean_value_count = i % 2 ? 0 : 3,
                                          .mean_values = means,
                                          .mean_image = i % 2 ? mean : NULL,
                                          .mean_shape = {3, mean_height, mean_width},
                                          .mean_lies_on_output = 1};
        fb_geometry cut = {.out_height = side,
                           .out_width = side,
                           .top = i % 5 ? test_between(0, side - 1) : 0,
                           .left = i % 5 ? test_between(0, side - 1) : 0,
                           .mirror = i / 2 % 2};
        cut.height = i % 5 ? (int)test_between(1, side - cut.top) : side;
        cut.width = i % 5 ? (int)test_between(1, side - cut.left) : side;
        /* As stored, or as of an image that was oriented: from the last pixel on, or by columns. */
        const int oriented = i / 4 % 3;
        const int64_t last = (cut.height - 1) * side * 3 + (cut.width - 1) * 3;
        const fb_view view = {.data = pixels + (oriented == 1 ? last : 0),
                              .dtype = FB_UINT8,
                              .ndim = 3,
                              .shape = {3, cut.height, cut.width},
                              .strides = {1,
                                          oriented == 2 ? 3
                                          : oriented    ? -side * 3
                                                        : side * 3,
                                          oriented == 2 ? side * 3
                                          : oriented    ? -3
                                                        : 3}};
        memset(out, 0x55, (size_t)area * 3 * sizeof *out);
        fb_pixels_normalize(&arithmetic, &cut, &view, out, i % 7 == 0, NULL);
        for (int channel = 0; channel < 3; channel++) {
            for (int y = 0; y < side; y++) {
                for (int x = 0; x < side; x++) {
                    const int64_t row = y - cut.top, place = x - cut.left,
                                  column = cut.mirror ? cut.width - 1 - place : place;
                    float expected = 0;
                    if (row >= 0 && row < cut.height && place >= 0 && place < cut.width) {
                        const unsigned char *pixel = (const unsigned char *)view.data + row * view.strides[1] +
                                                     column * view.strides[2] + channel;
                        const float less =
                            i % 2 ? mean[(channel * mean_height + y + 2) * mean_width + x + 2] : means[channel];
                        expected = ((float)*pixel - less) * arithmetic.scale;
                    }
                    CHECK(memcmp(&expected, &out[channel * area + (int64_t)y * side + x], sizeof expected) == 0,
                          "%s, round %d, channel %d, (%d, %d) of %d", fb_kernel_name(), i, channel, y, x, side);
                }
            }
        }
    }
    free(pixels);
    free(mean);
    free(out);
}

/* ---- the list */

static const char good[] = "# 0\na.jpg\n3\n30\n40\n3\n7 0.9 0 1 39 29\n2 1e-1 5 6 7 8\n3 .55 1 1 1 1\n# 1 b 3 1 1 0\r\n"
                           "#\t2\vc/d.png 3 100 200 2 1 1. 0 0 0 0 0 -0.5 199 99 199 99";

/* In memory that ends with the zero after it, for the address sanitizer. */
static int parse(const char *bytes, size_t size, fb_window_file *file) {
    char *exact = malloc(size + 1);
    memcpy(exact, bytes, size);
    exact[size] = 0;
    memset(&error, 0, sizeof error);
    memset(file, 0, sizeof *file);
    const int code = fb_window_file_read(exact, size, 0.6f, 0.5f, file, &error);
    CHECK(code == 0 || (code == -1 && error.text[0]), "an error without a reason");
    for (size_t i = 0; i < file->count; i++) { /* they point into what is freed now */
        CHECK(file->images[i].path >= exact && file->images[i].path + file->images[i].path_size <= exact + size,
              "path");
    }
    free(exact);
    return code;
}

static void check_list(const fb_window_list *list, const fb_window_file *file, int foreground) {
    for (size_t i = 0; i < list->count; i++) {
        const fb_window *w = &list->windows[i];
        CHECK(w->image >= 0 && (size_t)w->image < file->count, "image %d", w->image);
        const fb_window_image *image = &file->images[w->image];
        CHECK(w->x1 >= 0 && w->x1 <= w->x2 && w->x2 < image->width && w->y1 >= 0 && w->y1 <= w->y2 &&
                  w->y2 < image->height,
              "window");
        CHECK(foreground ? w->label > 0 : w->label == 0, "label %d", w->label);
    }
}

static void a_good_list(void) {
    fb_window_file file;
    CHECK(parse(good, sizeof good - 1, &file) == 0, "%s", error.text);
    CHECK(file.count == 3 && file.foreground.count == 2 && file.background.count == 2, "counts");
    CHECK(file.images[0].height == 30 && file.images[0].width == 40 && file.images[0].windows == 3 &&
              file.images[0].path_size == 5,
          "image");
    const fb_window first = {0, 7, 7, 0, 1, 39, 29}, last = {2, 11, 0, 199, 99, 199, 99};
    CHECK(memcmp(&file.foreground.windows[0], &first, sizeof first) == 0, "first window");
    CHECK(memcmp(&file.background.windows[1], &last, sizeof last) == 0, "last window");
    fb_window_file_free(&file);
}

static void every_beginning_and_random_changes(long rounds) {
    static const char changes[] = "0123456789-+.eE# \n\r\txaN\377\177";
    char copy[sizeof good];
    fb_window_file file;
    long accepted = 0;
    for (size_t cut = 0; cut < sizeof good - 1; cut++) {
        parse(good, cut, &file);
        fb_window_file_free(&file);
    }
    for (long i = 0; i < rounds; i++) {
        memcpy(copy, good, sizeof good);
        for (int64_t n = test_between(1, 3); n > 0; n--)
            copy[test_between(0, sizeof good - 2)] = changes[test_random() % (sizeof changes - 1)];
        if (parse(copy, sizeof good - 1, &file) == 0) {
            check_list(&file.foreground, &file, 1);
            check_list(&file.background, &file, 0);
            accepted++;
        }
        fb_window_file_free(&file);
    }
    CHECK(accepted > rounds / 100 && accepted < rounds, "%ld of %ld accepted", accepted, rounds);
}

int main(void) {
    known_places();
    every_place_is_inside();
    for (size_t k = 0; k < sizeof kernel_names / sizeof *kernel_names; k++) {
        if (fb_kernel_choose(kernel_names[k]) != 0) continue;
        for (int side = 1; side < 40; side++) pixels_are_where_they_belong(side, 60);
        pixels_are_where_they_belong(1100, 12); /* deinterleaved in pieces */
    }
    a_good_list();
    every_beginning_and_random_changes(100000);
    return 0;
}
