/* The kernels for x86-64 processors with AVX2, BMI1 and BMI2: all since 2013, except the cheapest. */
#include "jpeg_kernels.h"

#if defined(__x86_64__)

#define FB_JPEG_USE_AVX2
#include "jpeg_color.h"
#include "jpeg_idct.h"
#include "jpeg_unstuff.h"

const fb_jpeg_kernels fb_jpeg_avx2 = {"AVX2",  1,           fb_unstuff,  fb_count_ff,
                                      fb_idct, fb_sum_rows, fb_mix_rows, fb_convert};

#endif
