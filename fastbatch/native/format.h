/* What image.c asks of each image format: a reader that is opened once for a worker and reads image after image. */
#ifndef FASTBATCH_FORMAT_H
#define FASTBATCH_FORMAT_H

#include "image.h"

typedef struct fb_header {
    int64_t height, width; /* as stored, before any orientation */
    int channels;          /* that reading it with this colour will give */
    int orientation;       /* 1 to 8, as in EXIF */
} fb_header;

/* Decoded rows, interleaved. FB_ROW_SLACK bytes behind the last one may be read, whatever is in them. */
typedef struct fb_rows {
    unsigned char *data;
    int64_t stride;    /* bytes from row to row */
    int64_t top, left; /* where in the image the first pixel belongs */
} fb_rows;

#define FB_ROW_SLACK 16

/* OpenCV's limits, which Caffe's are: CV_IO_MAX_IMAGE_WIDTH, _HEIGHT and _PIXELS. */
#define FB_MAX_SIDE (INT64_C(1) << 20)
#define FB_MAX_PIXELS (INT64_C(1) << 30)

/* begin() reads the header and takes no memory on its word; the bytes must stay until read(). read() decodes the rows
 * and columns of the region, and maybe more around it, into `memory`. Both return 0, or -1 with *error. */
typedef struct fb_jpeg fb_jpeg;
fb_jpeg *fb_jpeg_open(void);
void fb_jpeg_close(fb_jpeg *jpeg);
int fb_jpeg_begin(fb_jpeg *jpeg, const unsigned char *bytes, size_t size, fb_color color, fb_header *header, fb_error *error);
int fb_jpeg_read(fb_jpeg *jpeg, const fb_region *region, fb_scratch *memory, fb_rows *rows, fb_error *error);

typedef struct fb_png fb_png;
fb_png *fb_png_open(void);
void fb_png_close(fb_png *png);
int fb_png_begin(fb_png *png, const unsigned char *bytes, size_t size, fb_color color, fb_header *header, fb_error *error);
int fb_png_read(fb_png *png, const fb_region *region, fb_scratch *memory, fb_rows *rows, fb_error *error);

/* The EXIF orientation of a JPEG file as OpenCV 4.5.1 finds it, 1 (as stored) if there is none. */
int fb_exif_orientation(const unsigned char *bytes, size_t size);

/* One line for hostile headers, the same for each format: 0, or -1 with *error. `least_bytes`: no file of this size is
 * shorter. */
static inline int fb_check_claim(int64_t height, int64_t width, uint64_t least_bytes, size_t size, fb_error *error) {
    if (height > FB_MAX_SIDE || width > FB_MAX_SIDE || height * width > FB_MAX_PIXELS) {
        return fb_fail(error, "the image claims to be %lld x %lld pixels wide and high, beyond OpenCV's limits (1048576 a side, "
                       "1073741824 in all): it is damaged, or has to be scaled down first", (long long)width, (long long)height);
    }
    if (least_bytes > size) {
        return fb_fail(error, "the image claims to be %lld x %lld pixels wide and high, which cannot be in %zu bytes: it is truncated "
                       "or damaged", (long long)width, (long long)height, size);
    }
    return 0;
}

#endif
