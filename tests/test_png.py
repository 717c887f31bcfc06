"""PNG images that libdeflate inflates are what libpng makes of them: the pixels, and what is said of damage."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastbatch import decode_image, features
from jpegs import PNG_SIGNATURE, encode_png, png_chunk, with_right_checksums

if not features()["png"]:
    pytest.skip("needs libjpeg-turbo and libpng", allow_module_level=True)

from fastbatch.images._codec import use_libdeflate

pytestmark = pytest.mark.skipif(not features()["deflate"], reason="needs libdeflate")

KINDS = {"gray": (0, 1), "RGB": (2, 3), "palette": (3, 1), "gray and alpha": (4, 2), "RGBA": (6, 4)}
COLORS = ["color", "gray", "unchanged"]


@pytest.fixture(autouse=True)
def both_ways():
    yield
    use_libdeflate(True)


def outcome(data, color, region=None):
    """The pixels, or the error."""
    try:
        return decode_image(data, color, region=region).tolist()
    except ValueError as error:
        return str(error)


def same_both_ways(data, color, region=None):
    """What libdeflate and libpng make of the image."""
    assert not use_libdeflate(False)
    theirs = outcome(data, color, region)
    assert use_libdeflate(True)
    assert outcome(data, color, region) == theirs
    return theirs


@st.composite
def pngs(draw):
    """A PNG of 8 bits per channel, and its samples."""
    color_type, channels = KINDS[draw(st.sampled_from(list(KINDS)))]
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    samples = np.random.RandomState(draw(st.integers(0, 99))).randint(0, 256, (height, width, channels))
    colors = draw(st.sampled_from([256, 256, 200]))
    chunks = [(b"PLTE", bytes(range(256)) * 3)] if color_type == 3 else []
    if color_type == 3:
        chunks = [(b"PLTE", (bytes(range(256)) * 3)[: 3 * colors])]
        samples = samples % draw(st.sampled_from([colors, 256]))  # or some indices without a color
    if color_type in (0, 2, 3) and draw(st.booleans()):
        chunks.append((b"tRNS", bytes({0: 2, 2: 6, 3: 100}[color_type])))
    if draw(st.booleans()):
        chunks.append((b"tEXt", b"name\0text"))
    return encode_png(samples, color_type, 8, chunks, filters=draw(st.booleans()))


@given(pngs(), st.sampled_from(COLORS), st.data())
def test_pixels_are_those_of_libpng(png, color, data):
    whole = same_both_ways(png, color)
    assert isinstance(whole, list)
    height, width = len(whole), len(whole[0])
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    part = same_both_ways(png, color, region)
    assert part == [row[left : left + region[3]] for row in whole[top : top + region[2]]]


@given(pngs(), st.sampled_from(COLORS), st.data())
def test_damage_is_what_libpng_says_it_is(png, color, data):
    damaged = bytearray(png)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(8, len(png) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(8, len(png) - 1)) :]
    if data.draw(st.booleans()):
        damaged = with_right_checksums(damaged)
    same_both_ways(bytes(damaged), color)


def made_of(packed, *chunks, height=3, width=300):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunks or [(b"IDAT", packed), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in [(b"IHDR", header), *chunks])


ROWS = bytes(3 * 301)
PACKED = zlib.compress(ROWS)
# A window of 256 bytes, and distances beyond it. zlib's own encoder does not make this.
NARROW = bytes([0x08, 0x1D]) + zlib.compress(bytes(np.random.RandomState(0).randint(0, 4, 300)) * 3 + bytes(3))[2:]


@pytest.mark.parametrize(
    "png",
    {
        "more rows": made_of(zlib.compress(ROWS + bytes(301))),
        "a row less": made_of(zlib.compress(ROWS[301:])),
        "bytes behind": made_of(PACKED + b"behind"),
        "no checksum": made_of(PACKED[:-4]),
        "a wrong checksum": made_of(PACKED[:-4] + b"1234"),
        "an unknown filter": made_of(zlib.compress(ROWS[:-301] + b"\x05" + ROWS[-300:])),
        "a narrow window": made_of(NARROW),
        "a dictionary": made_of(bytes([0x78, 0xBB]) + bytes(4) + PACKED[2:]),
        "an empty chunk": made_of(b"", (b"IDAT", b""), (b"IDAT", PACKED), (b"IDAT", b""), (b"IEND", b"")),
        "text behind": made_of(b"", (b"IDAT", PACKED), (b"tEXt", b"a\0b"), (b"IEND", b"")),
        "pixels in two places": made_of(b"", (b"IDAT", PACKED[:5]), (b"tEXt", b"a\0b"), (b"IDAT", PACKED[5:])),
        "an unknown chunk behind": made_of(b"", (b"IDAT", PACKED), (b"ABCD", b""), (b"IEND", b"")),
        "a palette behind": made_of(b"", (b"IDAT", PACKED), (b"PLTE", bytes(3)), (b"IEND", b"")),
        "an end with content": made_of(b"", (b"IDAT", PACKED), (b"IEND", b"1")),
        "no end": made_of(b"", (b"IDAT", PACKED)),
        "no pixels": made_of(b"", (b"IEND", b"")),
        "bytes behind the end": made_of(PACKED) + b"anything",
    }.items(),
    ids=lambda named: named[0],
)
def test_what_is_unusual(png):
    for region in (None, (0, 0, 1, 1)):
        same_both_ways(png[1], "gray", region)


def test_huge_images_are_left_to_libpng():
    """Row by row: its memory is that of the region."""
    png = made_of(zlib.compress(bytes(9000 * 9001)), height=9000, width=9000)
    assert same_both_ways(png, "gray", (8999, 0, 1, 2)) == [[[0], [0]]]
