/* Finds the EXIF orientation by OpenCV 4.5.1's rules, because these decide what Caffe sees. Only the first APP1 segment
 * counts, whatever it holds. A directory with an entry that points outside the segment is ignored. The first of several
 * orientations wins. See EXIF 2.3, section 4.6. */
#include "format.h"

typedef struct exif {
    const unsigned char *bytes; /* from the TIFF header on */
    uint64_t size;
    int little; /* endian */
    int broken; /* an entry points outside the segment */
} exif;

static uint32_t get16(exif *data, uint64_t at) {
    if (at + 1 >= data->size) {
        data->broken = 1;
        return 0;
    }
    const unsigned char *p = data->bytes + at;
    return data->little ? (uint32_t)(p[0] | p[1] << 8) : (uint32_t)(p[0] << 8 | p[1]);
}

static uint32_t get32(exif *data, uint64_t at) {
    if (at + 3 >= data->size) {
        data->broken = 1;
        return 0;
    }
    const uint32_t first = get16(data, at), second = get16(data, at + 2);
    return data->little ? second << 16 | first : first << 16 | second;
}

static void look_at_string(exif *data, uint64_t entry) {
    const uint64_t length = get32(data, entry + 4);
    const uint64_t at = length > 4 ? get32(data, entry + 8) : 8;
    if (at > data->size || at + length > data->size) data->broken = 1;
}

static void look_at_rationals(exif *data, uint64_t entry, int count) {
    uint32_t at = get32(data, entry + 8);
    for (int i = 0; i < count && !data->broken; i++, at += 8) {
        get32(data, at);
        get32(data, (uint64_t)at + 4);
    }
}

static int directory_orientation(exif *data) {
    data->little = data->size > 1 && data->bytes[0] == 'I' && data->bytes[1] == 'I';
    if (get16(data, 2) != 42) return 1;
    uint32_t entry = get32(data, 4);
    const uint32_t count = get16(data, entry);
    int orientation = 0;
    entry += 2;
    for (uint32_t i = 0; i < count && !data->broken; i++, entry += 12) {
        switch (get16(data, entry)) {
            case 0x0112: { /* Orientation */
                const int value = (int)get16(data, (uint64_t)entry + 8);
                if (orientation == 0) orientation = value ? value : 1;
                break;
            }
            case 0x010e:
            case 0x010f:
            case 0x0110:
            case 0x0131:
            case 0x0132:
            case 0x8298: /* strings */ look_at_string(data, entry); break;
            case 0x011a:
            case 0x011b: look_at_rationals(data, entry, 1); break; /* XResolution, YResolution */
            case 0x013e: look_at_rationals(data, entry, 2); break; /* WhitePoint */
            case 0x0211:
                look_at_rationals(data, entry, 3);
                break; /* YCbCrCoefficients */
            /* PrimaryChromaticities, ReferenceBlackWhite */
            case 0x013f:
            case 0x0214: look_at_rationals(data, entry, 6); break;
            case 0x0128:
            case 0x0213: get16(data, (uint64_t)entry + 8); break; /* ResolutionUnit, YCbCrPositioning */
            default: break;
        }
    }
    return data->broken || orientation < 1 || orientation > 8 ? 1 : orientation;
}

int fb_exif_orientation(const unsigned char *bytes, size_t size) {
    size_t at = 0;
    while (size - at >= 2) {
        const int marker = bytes[at + 1];
        at += 2;
        if (marker == 0xd8 || marker == 0xd9) continue; /* SOI, EOI */
        const int has_size = marker == 0xc0 || marker == 0xc2 || marker == 0xc4 || (marker >= 0xd0 && marker <= 0xd7) ||
                             marker == 0xda || marker == 0xdb || marker == 0xdd || (marker >= 0xe0 && marker <= 0xef) ||
                             marker == 0xfe;
        if (!has_size || size - at < 2) return 1;
        const size_t length = (size_t)(bytes[at] << 8 | bytes[at + 1]); /* with its own two bytes */
        if (marker == 0xe1) {
            if (length <= 6 || size - at < 2 + 6) return 1;
            /* Like OpenCV, this reads two bytes more than the segment has. */
            exif data = {.bytes = bytes + at + 2 + 6, .size = length - 6};
            if (data.size > size - at - 2 - 6) data.size = size - at - 2 - 6;
            return directory_orientation(&data);
        }
        if (length < 2 || length > size - at) return 1;
        at += length;
    }
    return 1;
}
