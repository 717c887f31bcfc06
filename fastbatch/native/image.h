/* Encoded images: what a source asks for, and what a codec does for it. fastbatch's own codec is in _images.pyx.
 *
 * A source that holds whole JPEG or PNG files shows them as they are, as views of type FB_ENCODED, and names a codec. The
 * core asks the codec for the image's shape as soon as it has the file, and for the pixels once it knows which of them
 * the batch will show: a crop costs less than the whole image.
 */
#ifndef FASTBATCH_IMAGE_H
#define FASTBATCH_IMAGE_H

#include "fastbatch.h"

/* As the flags of OpenCV's imread(), which Caffe uses. FB_COLOR and FB_GRAY turn the image as its EXIF orientation says,
 * FB_UNCHANGED does not. */
typedef enum fb_color { FB_UNCHANGED = -1, FB_GRAY = 0, FB_COLOR = 1 } fb_color;

struct fb_decoding {
    fb_color color;
    int new_height, new_width; /* 0: as the image is; otherwise resized to this as cv::resize does (INTER_LINEAR, 8 bits) */
};

/* Part of an image, as it is after its orientation and the resize. */
typedef struct fb_region {
    int64_t top, left, height, width;
} fb_region;

/* One worker's: codec state and memory that are kept from image to image. */
typedef struct fb_decoder fb_decoder;

struct fb_codec {
    fb_decoder *(*open)(void); /* NULL without memory */
    void (*close)(fb_decoder *decoder);
    /* Reads the header. shape: channels, height, width that the image will have. `bytes` must stay until finish().
     * Both return 0, or -1 with *error. */
    int (*begin)(fb_decoder *decoder, const void *bytes, size_t size, const fb_decoding *decoding, int64_t shape[3],
                 fb_error *error);
    /* Decodes what this region needs, and shows it: uint8, (channels, height, width) of the region with any strides,
     * blue first. Valid until the decoder's next begin(). */
    int (*finish)(fb_decoder *decoder, const fb_region *region, fb_view *pixels, fb_error *error);
};

#endif
