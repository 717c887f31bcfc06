/* The window file of Caffe's WindowData: images, and the windows of each, separated by white space:
 *
 *     # index  path  channels height width  number  and then, `number` times:  class overlap x1 y1 x2 y2
 *
 * Text that Caffe's streams would misread, or could not read at all, is an error that names the line.
 */
#ifndef FASTBATCH_WINDOW_FILE_H
#define FASTBATCH_WINDOW_FILE_H

#include "pixels/window.h"

typedef struct fb_window_image {
    const char *path; /* points into the file's bytes */
    size_t path_size;
    int32_t height, width, windows;
} fb_window_image;

typedef struct fb_window_list {
    fb_window *windows;
    size_t count, room;
} fb_window_list;

/* Initialize it with zeros before fb_window_file_read(). */
typedef struct fb_window_file {
    fb_window_image *images;
    size_t count, room;
    fb_window_list background, foreground;
} fb_window_file;

/* Reads `size` bytes, which a zero byte must follow. A window is foreground if its overlap is at least `foreground`,
 * and background if it is below `background`; other windows are dropped. Returns 0, or -1 with *error. Memory use is
 * bounded by `size`, whatever counts the file claims. */
int fb_window_file_read(const char *bytes, size_t size, float foreground, float background, fb_window_file *file,
                        fb_error *error);

void fb_window_file_free(fb_window_file *file);

#endif
