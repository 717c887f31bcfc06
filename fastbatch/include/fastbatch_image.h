/* Encoded images: what a source asks for, and what a codec does for it. fastbatch's own codec is in images/_codec.pyx.
 *
 * A source that holds whole JPEG or PNG files shows them as they are, as views of type FB_ENCODED, and names a codec. The
 * core asks the codec for the image's shape as soon as it has the file, and for the pixels once it knows which of them
 * the batch will show: a crop costs less than the whole image.
 *
 * The pixels are OpenCV's, bit for bit: those of cv::imread, cv::imdecode and cv::resize of OpenCV 4.5.1 on the same libjpeg
 * and libpng, which is what Debian 11's Caffe uses. Where OpenCV hands out an image that is damaged (a truncated JPEG),
 * this is an error.
 */
#ifndef FASTBATCH_IMAGE_H
#define FASTBATCH_IMAGE_H

#include "fastbatch.h"

#define FB_CODEC_ABI 2
#define FB_CODEC_CAPSULE "fastbatch.codec"

/* As the flags of OpenCV's imread(), which Caffe uses. FB_COLOR and FB_GRAY turn the image as its EXIF orientation says,
 * FB_UNCHANGED does not; it gives 1, 3 or 4 channels, as the image has them. */
typedef enum fb_color { FB_UNCHANGED = -1, FB_GRAY = 0, FB_COLOR = 1 } fb_color;

struct fb_decoding {
    fb_color color;
    /* 0: as the image is; otherwise resized to this as cv::resize does (INTER_LINEAR, 8 bits) */
    int new_height, new_width;
};

/* Part of an image, as it is after its orientation and the resize. */
typedef struct fb_region {
    int64_t top, left, height, width;
} fb_region;

/* One worker's memory and codec state, kept from image to image: in steady state nothing is allocated. It holds what the
 * largest of its latest images took, of about twenty: the decoded region (its columns too where libjpeg can leave the others out), the resized
 * region, and the libraries' buffers of some rows. Images whose parts cannot be decoded alone take more: a progressive
 * JPEG all of its pixels and coefficients, an interlaced PNG all of its pixels. A file gets no more than 9 bytes for each
 * pixel that it claims, and cannot claim more pixels than its own bytes can encode: 256 for each byte of a JPEG (512 if
 * it is progressive, 16 million in one with arithmetic coding), 8,256 (of one bit) for each of a PNG. Text, profiles and the
 * like take no more than their bytes.
 *
 * Different decoders may be used from different threads at once. Nothing needs the GIL. */
struct fb_codec {
    uint32_t abi;  /* FB_CODEC_ABI */
    uint32_t size; /* sizeof(fb_codec) */
    /* stop: see fb_stopping(); may be NULL. Decoding may fail when that is set. Returns NULL without memory. */
    fb_decoder *(*open)(const int32_t *stop);
    void (*close)(fb_decoder *decoder); /* NULL is allowed */
    /* Reads the header. shape: channels, height and width that the image will have. `bytes` must stay until finish().
     * 0, or -1 with *error. */
    int (*begin)(fb_decoder *decoder, const void *bytes, size_t size, const fb_decoding *decoding, int64_t shape[3],
                 fb_error *error);
    /* Decodes what this region needs, and shows it as (channels, height, width) uint8, blue first, with any strides
     * (interleaved; for images that are turned they can be negative). Once for each begin(); valid until the decoder's
     * next begin(). 0, or -1 with *error. */
    int (*finish)(fb_decoder *decoder, const fb_region *region, fb_view *pixels, fb_error *error);
    /* finish(), and then the region alone is resized, as cv::resize does it with a part of an image: its border is the border.
     * Both sizes are 1 or more, and begin() was not asked to resize. May be NULL: only sources call this, not fastbatch. */
    int (*finish_resized)(fb_decoder *decoder, const fb_region *region, int new_height, int new_width, fb_view *pixels,
                          fb_error *error);
};

/* For sources that decode themselves: the calling worker's decoder for a field, opened when it is asked for first, and closed when no
 * worker runs any more. `codec` is the source's own, its member `codec`. NULL without memory. */
static inline fb_decoder *fb_worker_decoder(fb_worker *worker, int field, const fb_codec *codec) {
    if (worker->decoders[field] == NULL) worker->decoders[field] = codec->open(worker->stop);
    return worker->decoders[field];
}

/* The codec for JPEG and PNG. */
const fb_codec *fb_image_codec(void);

#endif
