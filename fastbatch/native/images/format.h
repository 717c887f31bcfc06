/* The interface of an image format. Each format is an fb_format in its own file and a row in the table of image.c. */
#ifndef FASTBATCH_FORMAT_H
#define FASTBATCH_FORMAT_H

#include "fastbatch_image.h"

#include "arena.h"

typedef struct fb_header {
    int64_t height, width; /* as stored, before any orientation */
    int channels;          /* of the decoded image, which depends on the requested color */
    int orientation;       /* 1 to 8, as in EXIF */
} fb_header;

/* Decoded rows. FB_ROW_SLACK bytes after the last row of interleaved channels must be readable; their content does not
 * matter. */
typedef struct fb_rows {
    unsigned char *data;
    int64_t stride;    /* bytes from row to row */
    int64_t top, left; /* the first pixel's position in the image */
    /* Bytes from pixel to pixel and from channel to channel. Channels are interleaved, or in planes of their own: then,
     * `pixel` is 1. Three channels of gray may be one plane: then, `channel` is 0. */
    int64_t pixel, channel;
} fb_rows;

#define FB_ROW_SLACK 16

/* For code that found fb_stopping(): `return fb_fail_stopped(error)`. */
static inline int fb_fail_stopped(fb_error *error) {
    return fb_fail(error, "nobody waits for it any more");
}

/* OpenCV's limits, which Caffe's are: CV_IO_MAX_IMAGE_WIDTH, _HEIGHT and _PIXELS. */
#define FB_MAX_SIDE (INT64_C(1) << 20)
#define FB_MAX_PIXELS (INT64_C(1) << 30)

/* A reader of one format is opened for the format's first image and then reads image after image. All memory for an
 * image comes from the arena, which image.c empties before each begin(). Therefore no error path has to free
 * anything. */
typedef struct fb_format {
    const char *name;
    const char *magic; /* the bytes with which its files begin */
    size_t magic_size;
    void *(*open)(fb_arena *arena); /* returns NULL if memory runs out */
    void (*close)(void *reader);
    /* begin() reads the header and allocates no memory by its claims. The bytes must stay valid until read() returns.
     * read() decodes the region's rows and columns, and possibly more around them. They return 0, and the way in which
     * the image was decoded; or -1 with *error. */
    int (*begin)(void *reader, const unsigned char *bytes, size_t size, fb_color color, fb_header *header,
                 fb_error *error);
    int (*read)(void *reader, const fb_region *region, fb_rows *rows, fb_error *error);
    /* For the image that begin() has begun. NULL: the format knows no index. */
    void (*use_index)(void *reader, fb_index *index, uint64_t identity);
    /* See fb_codec. NULL: it never does. */
    int (*expect_output)(void *reader, const void *memory, size_t size);
} fb_format;

extern const fb_format fb_jpeg_format, fb_png_format;

/* For tests: the bytes that the decoder uses for the latest image, and those that it holds. */
typedef struct fb_memory {
    size_t used, held;
} fb_memory;

fb_memory fb_decoder_memory(const fb_decoder *decoder);

/* Returns the EXIF orientation of a JPEG file as OpenCV 4.5.1 finds it; 1 (as stored) if there is none. */
int fb_exif_orientation(const unsigned char *bytes, size_t size);

/* Rejects hostile headers, for all formats: returns 0, or -1 with *error. `least_bytes`: the least size of a file with
 * an image of this height and width. */
static inline int fb_check_claim(int64_t height, int64_t width, uint64_t least_bytes, size_t size, fb_error *error) {
    if (height > FB_MAX_SIDE || width > FB_MAX_SIDE || height * width > FB_MAX_PIXELS) {
        return fb_fail(
            error,
            "the image claims to be %lld x %lld pixels wide and high, beyond OpenCV's limits (1048576 a side, "
            "1073741824 in all): it is damaged, or has to be scaled down first",
            (long long)width, (long long)height);
    }
    if (least_bytes > size) {
        return fb_fail(
            error,
            "the image claims to be %lld x %lld pixels wide and high, which cannot be in %zu bytes: it is truncated "
            "or damaged",
            (long long)width, (long long)height, size);
    }
    return 0;
}

#endif
