/* cache.h: threads that look up and keep the same images at the same time. */
#include "cache.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "check.h"

#define IMAGES 3000
#define THREADS 4

static fb_cache *cache;
static int64_t published; /* atomic */

/* Image i, and what it takes in the cache. */
static int64_t channels_of(uint64_t i) {
    return 1 + (int64_t)i % 4;
}
static int64_t height_of(uint64_t i) {
    return 1 + (int64_t)i % 17;
}
static int64_t width_of(uint64_t i) {
    return 1 + (int64_t)i % 23;
}
static int64_t values_of(uint64_t i) {
    return channels_of(i) * height_of(i) * width_of(i);
}
static size_t bytes_of(uint64_t i) {
    return 64 + ((size_t)values_of(i) + 63) / 64 * 64;
}

static void check_image(const fb_cached *image, uint64_t i) {
    fb_view view;
    fb_cached_show(image, &view);
    CHECK(view.ndim == 3 && view.shape[0] == channels_of(i) && view.shape[1] == height_of(i) &&
              view.shape[2] == width_of(i),
          "image %d", (int)i);
    CHECK(image->image_height == (int64_t)i && image->image_width == 7, "image %d", (int)i);
    const int64_t step = image->planar ? 1 : channels_of(i);
    CHECK(view.strides[2] == step && view.strides[1] == step * width_of(i), "image %d", (int)i);
    CHECK(view.strides[0] == (image->planar ? height_of(i) * width_of(i) : 1), "image %d", (int)i);
    for (int64_t k = 0; k < values_of(i); k++)
        CHECK(((const unsigned char *)view.data)[k] == (unsigned char)(i * 31 + (uint64_t)k), "image %d", (int)i);
}

static void *work(void *argument) {
    const uint64_t first = (uint64_t)(size_t)argument * 100;
    for (uint64_t n = 0; n < 2 * IMAGES; n++) {
        const uint64_t i = (first + n) % IMAGES;
        const fb_cached *found = fb_cache_get(cache, i);
        if (found) {
            check_image(found, i);
            continue;
        }
        if (!fb_cache_wants(cache, i, channels_of(i), height_of(i), width_of(i))) continue;
        fb_cached *image = fb_cache_claim(cache, i, channels_of(i), height_of(i), width_of(i), i % 3 == 0);
        if (image == NULL) continue;
        image->image_height = (int64_t)i;
        image->image_width = 7;
        for (int64_t k = 0; k < values_of(i); k++) fb_cached_pixels(image)[k] = (unsigned char)(i * 31 + (uint64_t)k);
        fb_cache_publish(cache, i, image);
        __atomic_add_fetch(&published, (int64_t)bytes_of(i), __ATOMIC_RELAXED);
    }
    return NULL;
}

/* folder: of the file that holds the images; NULL: memory does. */
static void run(size_t size, const char *folder) {
    pthread_t threads[THREADS];
    cache = fb_cache_new(size, IMAGES, folder);
    CHECK(cache, "%zu bytes", size);
    CHECK(fb_cache_used(cache) == fb_cache_table(IMAGES), "only the table");
    published = 0;
    for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    size_t needed = fb_cache_table(IMAGES), there = needed;
    for (uint64_t i = 0; i < IMAGES; i++) {
        const fb_cached *image = fb_cache_get(cache, i);
        needed += bytes_of(i);
        if (image) check_image(image, i);
        if (image) there += bytes_of(i);
    }
    CHECK(fb_cache_used(cache) == there, "%zu bytes, and not %zu", there, fb_cache_used(cache));
    CHECK(there == fb_cache_table(IMAGES) + (size_t)published, "each once");
    CHECK(there <= size, "within the limit");
    CHECK(size < needed ? there > size - 4096 - 2000 : there == needed, "all that fits: %zu of %zu", there, size);
    fb_cache_empty(cache);
    CHECK(fb_cache_used(cache) == there, "still known");
    fb_cache_free(cache);
}

/* Nothing is left in a folder, and no file is made where there is no room. */
static void use_folder(const char *folder) {
    char missing[4096];
    run((size_t)1 << 24, folder);
    run(400000, folder);
    errno = 0;
    CHECK(fb_cache_new((size_t)1 << 60, 1, folder) == NULL && errno == ENOSPC, "%d", errno);
    snprintf(missing, sizeof missing, "%s/no", folder);
    CHECK(fb_cache_new(1 << 20, 1, missing) == NULL && errno == ENOENT, "%d", errno);
    CHECK(rmdir(folder) == 0, "files are left: %d", errno);
}

int main(int count, char **arguments) {
    CHECK(fb_cache_new(4095, 1, NULL) == NULL && fb_cache_new(4096, 512, NULL) == NULL, "no room for an image");
    CHECK(fb_cache_new((size_t)1 << 61, 1, NULL) == NULL, "no such memory");
    CHECK(fb_cache_new(SIZE_MAX, UINT64_MAX, NULL) == NULL, "no such table");
    fb_cache_free(NULL);
    cache = fb_cache_new(8192, 10, NULL);
    CHECK(fb_cache_get(cache, 10) == NULL && fb_cache_claim(cache, UINT64_MAX, 1, 1, 1, 1) == NULL, "no such image");
    CHECK(!fb_cache_wants(cache, 10, 1, 1, 1) && !fb_cache_wants(cache, 0, 4, INT32_MAX, INT32_MAX), "never");
    CHECK(fb_cache_claim(cache, 0, 4, INT32_MAX, INT32_MAX, 1) == NULL && fb_cache_wants(cache, 0, 1, 1, 1),
          "too large");
    fb_cache_free(cache);
    run((size_t)1 << 24, NULL);
    run(400000, NULL);
    if (count > 1) use_folder(arguments[1]);
    return 0;
}
