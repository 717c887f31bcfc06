/* fastbatch's codec for JPEG and PNG. Extensions get it from the capsule FB_CODEC_CAPSULE; C code compiled with it, here. */
#ifndef FASTBATCH_IMAGES_IMAGE_H
#define FASTBATCH_IMAGES_IMAGE_H

#include "fastbatch_image.h"

const fb_codec *fb_image_codec(void);

#endif
