"""Hypothesis strategies for image files of every kind that JPEG and PNG have, made by jpegs.py."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from jpegs import (
    ARITHMETIC,
    CMYK,
    GRAY,
    NO_ADOBE,
    NO_JFIF,
    OPTIMIZED,
    PROGRESSIVE,
    RGB,
    SAMPLINGS,
    SEPARATE_SCANS,
    YCC,
    YCCK,
    encode_jpeg,
    encode_png,
    noise,
    with_exif,
)

JPEG_CHANNELS = {GRAY: 1, RGB: 3, YCC: 3, CMYK: 4, YCCK: 4}
JPEG_FLAGS = [
    0,
    PROGRESSIVE,
    ARITHMETIC,
    OPTIMIZED,
    SEPARATE_SCANS,
    PROGRESSIVE | ARITHMETIC,
    NO_ADOBE,
    NO_JFIF,
    NO_ADOBE | NO_JFIF,
]
LARGE_MCU = ("4:1:0", "mixed")  # a fourth component would exceed the limit of an MCU

# PNG's color types (chapter 11.2.2 of its specification): samples per pixel, and the depths allowed for each.
PNG_GRAY, PNG_RGB, PNG_PALETTE, PNG_GRAY_ALPHA, PNG_RGB_ALPHA = 0, 2, 3, 4, 6
PNG_SAMPLES = {PNG_GRAY: 1, PNG_RGB: 3, PNG_PALETTE: 1, PNG_GRAY_ALPHA: 2, PNG_RGB_ALPHA: 4}
PNG_DEPTHS = {
    PNG_GRAY: (1, 2, 4, 8, 16),
    PNG_RGB: (8, 16),
    PNG_PALETTE: (1, 2, 4, 8),
    PNG_GRAY_ALPHA: (8, 16),
    PNG_RGB_ALPHA: (8, 16),
}


class ImageFile(NamedTuple):
    """How an image file is made.

    `how` goes to the encoder; the EXIF orientation (JPEG only) is 0 where there is none.
    """

    format: str
    height: int  # as it is stored
    width: int
    seed: int
    how: dict[str, Any]
    orientation: int = 0

    def content(self):
        """The bytes of the file."""
        if self.format == "png":
            return self._png(**self.how)
        pixels = noise(self.height, self.width, JPEG_CHANNELS[self.how["space"]], self.seed)
        data = encode_jpeg(pixels, **self.how)
        return with_exif(data, self.orientation) if self.orientation else data

    def _png(self, color_type, depth, transparent, interlaced, filters):
        random = np.random.RandomState(self.seed)
        samples = random.randint(0, 2**depth, (self.height, self.width, PNG_SAMPLES[color_type]))
        chunks = [(b"PLTE", random.bytes(3 * 2**depth))] if color_type == PNG_PALETTE else []
        if transparent:
            size = random.randint(1, 2**depth + 1) if color_type == PNG_PALETTE else 2 * PNG_SAMPLES[color_type]
            chunks.append((b"tRNS", random.bytes(size) if color_type == PNG_PALETTE else bytes(size)))
        return encode_png(samples, color_type, depth, chunks, interlaced, filters)


@st.composite
def image_files(draw, height, width, channels=None):
    """An ImageFile that OpenCV shows as height x width, in color and in gray.

    With `channels`, OpenCV shows it as stored, in that many channels.
    """
    seed = draw(st.integers(0, 2**16))
    if channels == 4 or draw(st.booleans()):
        return ImageFile("png", height, width, seed, draw(_png_kinds(channels)))
    space = draw(
        st.sampled_from([GRAY] if channels == 1 else [YCC, RGB, CMYK, YCCK] if channels else list(JPEG_CHANNELS))
    )
    samplings = [name for name in SAMPLINGS if JPEG_CHANNELS[space] < 4 or name not in LARGE_MCU]
    how = {
        "space": space,
        "sampling": draw(st.sampled_from(samplings)),
        "quality": draw(st.integers(1, 100)),
        "flags": draw(st.sampled_from(JPEG_FLAGS)),
        "restart": draw(st.integers(0, 9)),
    }
    orientation = draw(st.integers(0, 9))
    if channels is None and 5 <= orientation <= 8:  # no effect on an image that is shown as stored
        height, width = width, height
    return ImageFile("jpeg", height, width, seed, how, orientation)


@st.composite
def _png_kinds(draw, channels):
    """The options of a PNG file that is stored in so many channels, as OpenCV counts them.

    None means any number of channels, and also depths of 16 bits.
    """
    color_type, transparent = draw(
        st.sampled_from(
            {
                1: [(PNG_GRAY, False), (PNG_GRAY, True)],
                3: [(PNG_RGB, False), (PNG_PALETTE, False)],
                4: [(PNG_RGB, True), (PNG_PALETTE, True), (PNG_GRAY_ALPHA, False), (PNG_RGB_ALPHA, False)],
                None: [
                    (PNG_GRAY, False),
                    (PNG_GRAY, True),
                    (PNG_RGB, False),
                    (PNG_RGB, True),
                    (PNG_PALETTE, False),
                    (PNG_PALETTE, True),
                    (PNG_GRAY_ALPHA, False),
                    (PNG_RGB_ALPHA, False),
                ],
            }[channels]
        )
    )
    return {
        "color_type": color_type,
        "depth": draw(st.sampled_from([depth for depth in PNG_DEPTHS[color_type] if depth < 16 or channels is None])),
        "transparent": transparent,
        "interlaced": draw(st.booleans()),
        "filters": draw(st.booleans()),
    }
