"""JPEG and PNG files of every kind, for the tests of the decoder. encode_jpeg.c is compiled when it is first needed."""

import ctypes
import functools
import os
import shlex
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest

GRAY, RGB, YCC, CMYK, YCCK = 1, 2, 3, 4, 5  # libjpeg's J_COLOR_SPACE
PROGRESSIVE, ARITHMETIC, OPTIMIZED, SEPARATE_SCANS, NO_ADOBE, NO_JFIF = 1, 2, 4, 8, 16, 32

SAMPLINGS = {
    "4:4:4": (1, 1, 1, 1, 1, 1),
    "4:2:2": (2, 1, 1, 1, 1, 1),
    "4:2:0": (2, 2, 1, 1, 1, 1),
    "4:4:0": (1, 2, 1, 1, 1, 1),
    "4:1:1": (4, 1, 1, 1, 1, 1),
    "4:1:0": (4, 2, 1, 1, 1, 1),
    "luma less": (1, 1, 2, 2, 2, 2),
    "mixed": (2, 2, 2, 1, 1, 2),
}


@functools.cache
def _encoder():
    folder = tempfile.mkdtemp(prefix="fastbatch-jpeg-")
    path = os.path.join(folder, "encode_jpeg.so")
    source = Path(__file__).parents[1] / "native" / "encode_jpeg.c"
    compiler = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    try:
        command = [*compiler, "-shared", "-fPIC", "-O2", str(source), "-o", path, "-ljpeg"]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"JPEG files of every kind need a C compiler and libjpeg's headers ({error})")
        return ctypes.CDLL(path).encode_jpeg
    finally:
        if os.path.exists(path):
            os.unlink(path)
        os.rmdir(folder)


def encode_jpeg(pixels, sampling="4:2:0", space=None, quality=90, flags=0, restart=0):
    """A JPEG file of `pixels`: (height, width) gray, or (height, width, 3 or 4) RGB or CMYK.

    `sampling`: a name or factors.
    """
    pixels = np.ascontiguousarray(pixels, np.uint8)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    space = space or {1: GRAY, 3: YCC, 4: CMYK}[channels]
    factors = SAMPLINGS.get(sampling, sampling)
    factors = [*factors, *factors[:2]] if channels == 4 else factors
    out = ctypes.create_string_buffer(pixels.size * 6 + 8192)
    encode = _encoder()
    encode.restype = ctypes.c_long
    encode.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_int] * 4,
        ctypes.c_void_p,
        *[ctypes.c_int] * 3,
        ctypes.c_void_p,
        ctypes.c_long,
    ]
    size = encode(
        pixels.ctypes.data,
        pixels.shape[1],
        pixels.shape[0],
        channels,
        space,
        (ctypes.c_int * 8)(*factors),
        quality,
        flags,
        restart,
        out,
        len(out),
    )
    assert size > 0
    return out.raw[:size]


def noise(height, width, channels=3, seed=0):
    """A picture with edges and gradients everywhere, (height, width, channels) or (height, width)."""
    random = np.random.RandomState(seed + 1000 * height + width)
    y, x = np.mgrid[0:height, 0:width]
    planes = [
        128 + 60 * np.sin(x / random.uniform(2, 9) + c) + 60 * np.cos(y / random.uniform(2, 9) - c)
        for c in range(channels)
    ]
    picture = np.clip(np.stack(planes, -1) + random.randint(-40, 40, (height, width, channels)), 0, 255).astype(
        np.uint8
    )
    return picture[:, :, 0] if channels == 1 else picture


def exif(orientation, order="<", before=(), after=()):
    """A TIFF structure with an orientation between other entries, each (tag, type, count, value)."""
    entries = [*before, (0x0112, 3, 1, orientation), *after]
    body = struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,)))
        body += struct.pack(order + "HHI", tag, kind, count) + packed
    return (b"II" if order == "<" else b"MM") + body + struct.pack(order + "I", 0)


def with_segment(jpeg, content, marker=0xE1, at=2):
    """The JPEG file with one more segment, after SOI."""
    return jpeg[:at] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[at:]


def with_exif(jpeg, orientation, order="<"):
    return with_segment(jpeg, b"Exif\0\0" + exif(orientation, order))


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) & 0xFFFFFFFF)


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)  # y, x, step y, step x


def encode_png(samples, color_type, depth, chunks=(), interlaced=False, filters=True):
    """A PNG file of `samples`, (height, width, channels) unsigned integers below 2 ** depth.

    `chunks` go before the pixels.

    Of all kinds that the format has (PNG specification, chapters 4.5, 6 and 11.2): no library writes all of them.
    """
    height, width, _channels = samples.shape
    data = b""
    for y, x, step_y, step_x in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = samples[y::step_y, x::step_x]
        if part.size:
            data += _png_rows(part, depth, filters)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, int(interlaced))
    parts = [png_chunk(b"IHDR", header), *(png_chunk(*chunk) for chunk in chunks)]
    packed = zlib.compress(data)
    half = len(packed) // 2  # pixels in two chunks
    return PNG_SIGNATURE + b"".join(
        [*parts, png_chunk(b"IDAT", packed[:half]), png_chunk(b"IDAT", packed[half:]), png_chunk(b"IEND", b"")]
    )


def with_right_checksums(png):
    """A damaged PNG whose chunks have the right checksums, so that the damage gets as far as the pixels."""
    png, at = bytearray(png), len(PNG_SIGNATURE)
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(png[at : at + 4], "big")
        png[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(png[at + 4 : end])))[: max(0, len(png) - end)]
        at = end + 4
    return bytes(png)


def _png_rows(part, depth, filters):
    height, _width, channels = part.shape
    if depth == 16:
        rows = part.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = part.astype(np.uint8).reshape(height, -1)
    else:
        bits = (part.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    pixel = max(1, channels * depth // 8)
    out, above = b"", np.zeros(rows.shape[1], np.int64)
    for y, row in enumerate(rows.astype(np.int64)):
        left, corner = (np.concatenate([np.zeros(pixel, np.int64), each[:-pixel]])[: len(row)] for each in (row, above))
        kind = y % 5 if filters else 0
        predicted = (0 * row, left, above, (left + above) // 2, _paeth(left, above, corner))[kind]
        out += bytes([kind]) + (row - predicted).astype(np.uint8).tobytes()
        above = row
    return out


def _paeth(left, above, corner):
    """PNG specification, chapter 9.4."""
    estimate = left + above - corner
    to_left, to_above, to_corner = (abs(estimate - each) for each in (left, above, corner))
    takes_left = (to_left <= to_above) & (to_left <= to_corner)
    return np.where(takes_left, left, np.where(to_above <= to_corner, above, corner))
