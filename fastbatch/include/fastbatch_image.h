/* Encoded images: what a source requests, and what a codec does. fastbatch's own codec is in images/_codec.pyx.
 *
 * A source that holds whole JPEG or PNG files returns them unchanged, as views of type FB_ENCODED, and names a codec.
 * The core asks the codec for the image's shape as soon as it has the file. It asks for the pixels once it knows which
 * of them the batch needs, so a crop costs less than the whole image.
 *
 * The pixels are bit-identical to those of cv::imread, cv::imdecode and cv::resize in OpenCV 4.5.1 with the same
 * libjpeg and libpng, which is what Debian 11's Caffe uses. A damaged image, such as a truncated JPEG, is an error
 * here, although OpenCV returns it.
 */
#ifndef FASTBATCH_IMAGE_H
#define FASTBATCH_IMAGE_H

#include "fastbatch.h"

#define FB_CODEC_ABI 2
#define FB_CODEC_CAPSULE "fastbatch.codec"

/* The flags of OpenCV's imread(), which Caffe uses. FB_COLOR and FB_GRAY orient the image by its EXIF tag. FB_UNCHANGED
 * does not, and gives the image's own 1, 3 or 4 channels. */
typedef enum fb_color { FB_UNCHANGED = -1, FB_GRAY = 0, FB_COLOR = 1 } fb_color;

struct fb_decoding {
    fb_color color;
    /* 0: the image's own size; otherwise the size to resize to, as cv::resize does (INTER_LINEAR, 8 bits) */
    int new_height, new_width;
};

/* Where in image files decoding can begin, so that a later decode of the same bytes reads only what its region needs: of
 * baseline JPEG files, by fastbatch's own codec. The first decode of an image adds it, and those that read further down
 * add the rest. Pixels and errors do not depend on it. A source can own an index, which any number of its loaders use at
 * the same time: see fb_source. */
typedef struct fb_index fb_index;

/* What decoded an image. */
typedef enum fb_way {
    FB_BY_INDEX,       /* JPEG: fastbatch's own decoder, and what an index knows of the image */
    FB_BY_OWN_DECODER, /* JPEG: the same, without an index */
    FB_BY_LIBJPEG,
    FB_BY_LIBDEFLATE, /* PNG */
    FB_BY_LIBPNG,
    FB_WAYS
} fb_way;

/* Part of the oriented and resized image. */
typedef struct fb_region {
    int64_t top, left, height, width;
} fb_region;

/* The codec's functions. An fb_decoder is one worker's memory and codec state, reused from image to image, so that
 * nothing is allocated in steady state.
 *
 * A decoder's memory is sized by the largest of about its last twenty images. It holds the decoded region (only the
 * needed columns where libjpeg can skip the others), the resized region, and a few rows in the libraries' buffers. An
 * image that cannot be decoded in part takes more: a progressive JPEG all of its pixels and coefficients, an interlaced
 * PNG all of its pixels.
 *
 * A file gets at most 9 bytes per pixel that it claims. It cannot claim more pixels than its bytes can encode: 256 per
 * byte of a JPEG (512 if it is progressive, 16 million with arithmetic coding), and 8,256 one-bit pixels per byte of a
 * PNG. Text, profiles and other metadata take no more memory than their bytes.
 *
 * Several threads may use different decoders at the same time. No function needs the GIL. */
struct fb_codec {
    uint32_t abi;  /* FB_CODEC_ABI */
    uint32_t size; /* sizeof(fb_codec) */
    /* stop: see fb_stopping(); may be NULL. Decoding may fail once it is set. Returns NULL if memory runs out. */
    fb_decoder *(*open)(const int32_t *stop);
    void (*close)(fb_decoder *decoder); /* NULL is allowed */
    /* Reads the header. Sets `shape` to the resulting channels, height and width. `bytes` must stay valid until
     * finish(). Returns 0, or -1 with *error. */
    int (*begin)(fb_decoder *decoder, const void *bytes, size_t size, const fb_decoding *decoding, int64_t shape[3],
                 fb_error *error);
    /* Decodes what this region needs. Points `pixels` at it as (channels, height, width) uint8, blue first, with any
     * strides: channels are interleaved or in planes, three channels of gray can be one plane, and an oriented image can
     * have negative strides. Call it once per begin(); the pixels are valid until the decoder's next begin(). Returns 0,
     * or -1 with *error. */
    int (*finish)(fb_decoder *decoder, const fb_region *region, fb_view *pixels, fb_error *error);
    /* Like finish(), but then resizes the region by itself, as cv::resize does with part of an image: no pixel outside
     * the region contributes. Both sizes are at least 1, and begin() must not have been asked to resize. May be NULL,
     * because only sources call this, not the core. */
    int (*finish_resized)(fb_decoder *decoder, const fb_region *region, int new_height, int new_width, fb_view *pixels,
                          fb_error *error);
    /* Like finish_resized(), but gives only a part of the resized region. NULL: images of this codec are not resized by
     * a Transform; a loader refuses one that would. */
    int (*finish_part)(fb_decoder *decoder, const fb_region *region, int new_height, int new_width,
                       const fb_region *part, fb_view *pixels, fb_error *error);
    /* These are NULL in a codec that knows no index. count: the images that there are; 0: unknown. It decides how much
     * is noted of each, so that all of them find room. limit: bytes; beyond, images are decoded as without an index.
     * Returns NULL if memory runs out. */
    fb_index *(*index_new)(uint64_t count, uint64_t limit);
    void (*index_delete)(fb_index *index); /* NULL is allowed */
    /* How many images it knows, and how many bytes it takes. */
    void (*index_counts)(fb_index *index, uint64_t *images, uint64_t *bytes);
    /* Has the image that begin() has begun decoded by this index, and added to it. identity: a number that no other
     * bytes have among those that this index is used for; 0: made of all bytes, which takes 5 us for 100 KB. */
    void (*use_index)(fb_decoder *decoder, fb_index *index, uint64_t identity);
    /* How many images the decoder has decoded in this way (fb_way). May be NULL. */
    uint64_t (*count)(const fb_decoder *decoder, int way);
    /* An index that index_new() just made is to know what this file has, and to be saved there; the file need not exist.
     * Returns 0; 1 if the file is damaged, so that it will be made anew, with *error, which says how; or -1 with *error.
     * NULL: there are no such files. */
    int (*index_open)(fb_index *index, const char *path, fb_error *error);
    /* Adds to the file what is new in the index. A loader calls it after each epoch and at its end, and workers may use
     * the index meanwhile. Returns 0; or -1 with *error, and only once: later calls do nothing then, as without a file. */
    int (*index_save)(fb_index *index, fb_error *error);
    /* Says where the values made of the next finish()'s pixels will be written. Call it between begin() and finish(). The
     * decoder may have this memory fetched into the caches while it decodes. Returns whether it probably will, so that
     * it is better to write through the caches than past them. NULL: it never does. */
    int (*expect_output)(fb_decoder *decoder, const void *memory, size_t size);
};

/* For sources that decode images themselves. Returns the calling worker's decoder for a field, or NULL if memory runs
 * out. The decoder is opened on first use and closed after the last worker has ended. `codec` is the source's member
 * `codec`. */
static inline fb_decoder *fb_worker_decoder(fb_worker *worker, int field, const fb_codec *codec) {
    if (worker->decoders[field] == NULL) worker->decoders[field] = codec->open(worker->stop);
    return worker->decoders[field];
}

#endif
