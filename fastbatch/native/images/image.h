/* fastbatch's codec for JPEG and PNG. Extensions get it from the capsule FB_CODEC_CAPSULE; C code compiled with it, here. */
#ifndef FASTBATCH_IMAGES_IMAGE_H
#define FASTBATCH_IMAGES_IMAGE_H

#include "fastbatch_image.h"

const fb_codec *fb_image_codec(void);

/* For callers that decode one image: a decoder that has perhaps decoded others, so that Huffman tables and memory need not
 * be made anew. Returns NULL if memory runs out. For any thread. */
fb_decoder *fb_decoder_borrow(void);
void fb_decoder_return(fb_decoder *decoder); /* NULL is allowed */

#endif
