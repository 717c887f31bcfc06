/* encode_jpeg.c for C tests. */
#ifndef ENCODE_JPEG_H
#define ENCODE_JPEG_H

enum { SPACE_GRAY = 1, SPACE_RGB = 2, SPACE_YCC = 3, SPACE_CMYK = 4, SPACE_YCCK = 5 }; /* libjpeg's J_COLOR_SPACE */
enum { PROGRESSIVE = 1, ARITHMETIC = 2, OPTIMIZED = 4, SEPARATE_SCANS = 8, NO_ADOBE = 16, NO_JFIF = 32 };

/* pixels: rows of 1 (gray), 3 (RGB) or 4 (CMYK) bytes a pixel. factors: h and v of each component. restart: MCUs
 * between markers, or 0. Returns the file's size, or -1 if it does not fit in `capacity`. */
long encode_jpeg(const unsigned char *pixels, int width, int height, int channels, int color_space, const int *factors,
                 int quality, int flags, int restart, unsigned char *out, long capacity);

#endif
