"""Records of a database that are no Datum, or that no image can be read from, each with the reason that is given."""

from databases import datum, images, varint


def shape(channels, height, width):
    return b"\x08" + varint(channels) + b"\x10" + varint(height) + b"\x18" + varint(width)


def data(size):
    return b"\x22" + varint(size) + bytes(size)


GOOD = datum(images(1, (3, 4, 5))[0], 1)
NOT_A_DATUM = "the record is not a Datum"

BAD_RECORDS = {
    "empty": (b"", NOT_A_DATUM),
    "text": (b"this is no Datum at all", NOT_A_DATUM),
    "a JPEG file": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100), NOT_A_DATUM),
    "zeros": (bytes(60), NOT_A_DATUM),
    "cut in the data": (GOOD[:-10], NOT_A_DATUM),
    "cut in a number": (shape(3, 4, 5)[:-1], NOT_A_DATUM),
    "a number without end": (b"\x08" + b"\xff" * 12, NOT_A_DATUM),
    "a length beyond the record": (shape(3, 4, 5) + b"\x22" + varint(2**40), NOT_A_DATUM),
    "floats that are no floats": (shape(1, 1, 1) + b"\x32\x03abc", NOT_A_DATUM),
    "no shape": (data(60), "the Datum has no pixels: its shape is 0 x 0 x 0"),
    "no channels": (shape(0, 4, 5) + data(60), "the Datum has no pixels: its shape is 0 x 4 x 5"),
    "negative height": (shape(3, -4, 5) + data(60), "the Datum has no pixels: its shape is 3 x -4 x 5"),
    "all negative": (shape(-3, -4, -5) + data(60), "the Datum has no pixels: its shape is -3 x -4 x -5"),
    "absurd": (shape(2**31 - 1, 2**31 - 1, 2**31 - 1) + data(60), "more than any Blob can hold"),
    "beyond an int": (shape(3, 30000, 30000) + data(60), "more than any Blob can hold (blob size exceeds INT_MAX)"),
    "large": (
        shape(3, 20000, 30000) + data(60),
        (
            "the Datum is truncated: its shape, 3 x 20000 x 30000 (channels, height, width), needs "
            "1800000000 values but its data holds 60"
        ),
    ),
    "short data": (
        shape(3, 4, 5) + data(59),
        "the Datum is truncated: its shape, 3 x 4 x 5 (channels, height, width), needs 60 values but its data holds 59",
    ),
    "no data": (shape(3, 4, 5), "needs 60 values but its data holds 0"),
    "short float_data": (
        shape(3, 4, 5) + b"\x32" + varint(236) + bytes(236),
        "needs 60 values but its float_data holds 59",
    ),
    "encoded, but no image": (
        shape(3, 4, 5) + data(60) + b"\x38\x01",
        "neither JPEG nor PNG: its 60 bytes begin with 00 00",
    ),
    "encoded, of no bytes": (shape(3, 4, 5) + b"\x38\x01", "the Datum holds an encoded image of no bytes"),
    "encoded, truncated": (b"\x22\x04\xff\xd8\xff\xe0\x38\x01", "the JPEG image is truncated"),
}
