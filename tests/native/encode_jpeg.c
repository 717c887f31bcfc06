/* JPEG files of every kind that libjpeg can write, for the tests: any sampling factors, progressive, arithmetic coding,
 * restart markers, one scan for each component. Linked into C tests, or loaded by Python as a library. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "encode_jpeg.h"

long encode_jpeg(const unsigned char *pixels, int width, int height, int channels, int color_space, const int *factors,
                 int quality, int flags, int restart, unsigned char *out, long capacity) {
    struct jpeg_compress_struct library;
    struct jpeg_error_mgr errors;
    jpeg_scan_info scans[4];
    unsigned char *written = NULL;
    unsigned long size = 0;
    memset(&library, 0, sizeof library);
    library.err = jpeg_std_error(&errors); /* ends the program on any error */
    jpeg_create_compress(&library);
    jpeg_mem_dest(&library, &written, &size);
    library.image_width = (JDIMENSION)width;
    library.image_height = (JDIMENSION)height;
    library.input_components = channels;
    library.in_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_set_defaults(&library);
    jpeg_set_colorspace(&library, (J_COLOR_SPACE)color_space);
    jpeg_set_quality(&library, quality, TRUE);
    for (int i = 0; i < library.num_components; i++) {
        library.comp_info[i].h_samp_factor = factors[2 * i];
        library.comp_info[i].v_samp_factor = factors[2 * i + 1];
    }
    library.optimize_coding = (flags & OPTIMIZED) != 0;
    library.arith_code = (flags & ARITHMETIC) != 0;
    library.restart_interval = (unsigned)restart;
    if (flags & NO_ADOBE) library.write_Adobe_marker = FALSE;
    if (flags & NO_JFIF) library.write_JFIF_header = FALSE;
    if (flags & PROGRESSIVE) jpeg_simple_progression(&library);
    if (flags & SEPARATE_SCANS) {
        for (int i = 0; i < library.num_components; i++) {
            scans[i] = (jpeg_scan_info){.comps_in_scan = 1, .component_index = {i}, .Se = DCTSIZE2 - 1};
        }
        library.scan_info = scans;
        library.num_scans = library.num_components;
    }
    jpeg_start_compress(&library, TRUE);
    for (int y = 0; y < height; y++) {
        JSAMPROW row = (JSAMPROW)pixels + (size_t)y * (size_t)width * (size_t)channels;
        jpeg_write_scanlines(&library, &row, 1);
    }
    jpeg_finish_compress(&library);
    jpeg_destroy_compress(&library);
    const long result = (long)size <= capacity ? (long)size : -1;
    if (result > 0) memcpy(out, written, size);
    free(written);
    return result;
}
