/* The kernels for every x86-64 or arm64 processor, with vectors of 16 bytes. */
#include "jpeg_kernels.h"

#if FB_JPEG_KERNELS

#include "jpeg_color.h"
#include "jpeg_idct.h"
#include "jpeg_unstuff.h"

#if defined(__x86_64__)
#define NAME "SSE2"
#else
#define NAME "NEON"
#endif

const fb_jpeg_kernels fb_jpeg_base = {NAME, 0, fb_unstuff, fb_count_ff, fb_idct, fb_sum_rows, fb_mix_rows, fb_convert};

#endif
