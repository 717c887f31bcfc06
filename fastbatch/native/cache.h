/* Decoded images, kept for later epochs: uint8 and whole, before a crop, after a resize to a fixed size.
 *
 * The memory is one mapping: a table with an entry for each image, then the images, one behind the other in the order in
 * which they were decoded. Nothing is ever moved or evicted. A data set that is twice as large as the cache therefore
 * finds half of its images in every epoch; if the least recently used ones were evicted, it would find none.
 *
 * Any thread may call these functions at any time, except fb_cache_empty() and fb_cache_free(). None of them waits. */
#ifndef FASTBATCH_CACHE_H
#define FASTBATCH_CACHE_H

#include "fastbatch.h"

typedef struct fb_cache fb_cache;

/* An image, followed by its pixels, which are contiguous: one plane for each channel, or interleaved channels. */
typedef struct fb_cached {
    int64_t channels, height, width;   /* of the pixels */
    int64_t image_height, image_width; /* before they were resized */
    int planar;
} fb_cached;

/* Returns a cache with an entry for each of `images` images, all empty; or NULL with errno, which is EINVAL if not even
 * the table fits. It takes at most `size` bytes, with everything, and a page only once something is written there.
 * Children of the process do not inherit the memory.
 *
 * folder: NULL, or where the images are to be, in a file without a name. It has room for all `size` bytes from the
 * beginning, because a disk that is full later would end the process. */
fb_cache *fb_cache_new(size_t size, uint64_t images, const char *folder);

/* The bytes of the table alone. */
size_t fb_cache_table(uint64_t images);

/* Frees the images. fb_cache_used() still works. */
void fb_cache_empty(fb_cache *cache);
void fb_cache_free(fb_cache *cache); /* NULL is allowed */

/* The bytes that the table and the images take. */
size_t fb_cache_used(const fb_cache *cache);

/* Returns the image with this number, or NULL. It stays there until fb_cache_empty(), and nobody changes it. */
const fb_cached *fb_cache_get(const fb_cache *cache, uint64_t number);

/* Whether the image with this number is missing, and would fit. */
int fb_cache_wants(const fb_cache *cache, uint64_t number, int64_t channels, int64_t height, int64_t width);

/* Returns memory for the image, with the fields filled in; NULL if it does not fit, or if another thread was faster. The
 * caller sets `image_height` and `image_width`, writes the pixels, and calls fb_cache_publish(). Otherwise the image is
 * never there. */
fb_cached *fb_cache_claim(fb_cache *cache, uint64_t number, int64_t channels, int64_t height, int64_t width,
                          int planar);
void fb_cache_publish(fb_cache *cache, uint64_t number, const fb_cached *image);

unsigned char *fb_cached_pixels(const fb_cached *image);

/* Points a view at the pixels, as (channels, height, width). */
void fb_cached_show(const fb_cached *image, fb_view *view);

#endif
