"""fastbatch's own JPEG decoder: the pixels and the sentences of libjpeg, for any file.

tests/native/fuzz_jpeg.c compares them for files one after the other, as workers decode them: tables are kept.
"""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

codec = pytest.importorskip("fastbatch.images._codec")

from fastbatch import ImageListSource, Loader, Transform, decode_image, features
from fastbatch._features import info
from jpegs import (
    ARITHMETIC,
    CMYK,
    OPTIMIZED,
    PROGRESSIVE,
    RGB,
    SAMPLINGS,
    SEPARATE_SCANS,
    encode_jpeg,
    noise,
    with_exif,
)
from pixel_reference import resized
from planned import PATIENCE

if codec.jpeg_decoder() != "own":
    pytest.skip("the own JPEG decoder is not in use here", allow_module_level=True)

OWN_SAMPLINGS = "4:2:0", "4:2:2", "4:4:4", "4:4:0", "4:1:1"

# `use_jpeg_decoder` concerns all threads: each test leaves the own one.


def answer(decoder, data, color="color", region=None, size=None):
    """The pixels, or the sentence that refuses the file."""
    codec.use_jpeg_decoder(decoder)
    try:
        return decode_image(data, color, size, region).tolist()
    except ValueError as error:
        return str(error)
    finally:
        codec.use_jpeg_decoder("own")


def same(data, *options):
    expected = answer("libjpeg", data, *options)
    assert answer("own", data, *options) == expected
    assert answer("base", data, *options) == expected


def is_own(data, *options):
    """Whether the own decoder decodes the file, and not libjpeg in its place."""
    before = codec.own_jpeg_count()
    decode_image(data, *options)
    return codec.own_jpeg_count() > before


kinds = st.fixed_dictionaries(
    {
        "sampling": st.sampled_from([*SAMPLINGS, "4:2:0", "4:2:0", "4:2:2", "4:4:4"]),
        "quality": st.integers(1, 100),
        "flags": st.sampled_from([0, 0, 0, 0, OPTIMIZED, OPTIMIZED, PROGRESSIVE, SEPARATE_SCANS, ARITHMETIC]),
        "restart": st.sampled_from([0, 0, 0, 1, 3, 7]),
    }
)


@st.composite
def files(draw):
    """(a JPEG file, a region of the image)"""
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    pixels = noise(height, width, draw(st.sampled_from([3, 3, 3, 1])), draw(st.integers(0, 9)))
    kind = draw(kinds)
    if pixels.ndim == 2:
        kind["sampling"] = draw(st.sampled_from([(1, 1), (2, 2)]))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    region = top, left, draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    return encode_jpeg(pixels, **kind), draw(st.sampled_from([None, region, region]))


colors = st.sampled_from(["color", "color", "gray", "unchanged"])


@given(files(), colors)
def test_any_image(file, color):
    data, region = file
    same(data, color, region)


@given(files(), colors, st.tuples(st.integers(1, 120), st.integers(1, 120)), st.data())
def test_any_image_resized(file, color, size, data):
    """Planes are resized as OpenCV does it, and as interleaved channels are."""
    content, _ = file
    height, width = size
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows, columns = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    whole = np.array(answer("libjpeg", content, color), np.uint8)
    if whole.shape[:2] != size:
        whole = resized(whole, height, width)
    same(content, color, (top, left, rows, columns), size)
    part = decode_image(content, color, size, (top, left, rows, columns))
    assert part.tolist() == whole[top : top + rows, left : left + columns].tolist()


@st.composite
def damaged(draw, data):
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(len(data) // 2 if draw(st.booleans()) else 2, len(data) - 1))
        how = draw(st.sampled_from(["bit", "byte", "cut", "cut and ended", "inserted", "marker", "padded"]))
        if how == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte":
            data[at] = draw(st.sampled_from([0, 0xFF, 0x7F, draw(st.integers(0, 255))]))
        elif how == "cut":
            del data[at:]
        elif how == "cut and ended":
            data[at:] = b"\xff\xd9"
        elif how == "inserted":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == "marker":
            data[at:at] = bytes([0xFF, draw(st.integers(0xC0, 0xFF))])
        else:
            data[at:] = bytes([draw(st.integers(0, 255))]) * (len(data) - at)
        if len(data) < 4:
            break
    return bytes(data)


@given(st.data(), files(), colors)
def test_any_damaged_image(data, file, color):
    content, region = file
    same(data.draw(damaged(content)), color, region)


@pytest.mark.parametrize("sampling", OWN_SAMPLINGS)
def test_every_first_row_and_column_of_a_region(sampling):
    data = encode_jpeg(noise(70, 83), sampling)
    whole = np.array(answer("libjpeg", data), np.uint8)
    for first in range(70):
        rows, columns = 1 + first % 5, 1 + first % 3
        part = decode_image(data, region=(first, 7, min(rows, 70 - first), 40))
        assert (part == whole[first : first + rows, 7:47]).all()
        part = decode_image(data, region=(20, first, 33, columns))
        assert (part == whole[20:53, first : first + columns]).all()


@pytest.mark.parametrize("sampling, columns", [("4:2:0", 6), ("4:2:2", 6), ("4:4:4", 11), ("4:4:0", 11), ("4:1:1", 3)])
def test_restart_markers_anywhere(sampling, columns):
    """Behind every MCU, within rows of MCUs, at their ends, and behind several of them."""
    for interval in 1, 2, columns - 1, columns, columns + 1, 2 * columns, 7 * columns + 3:
        data = encode_jpeg(noise(150, 83), sampling, restart=interval)
        assert (b"\xff\xd0" in data) and is_own(data)
        for region in None, (0, 0, 1, 1), (69, 82, 1, 1), (15, 17, 34, 30), (37, 0, 20, 83):
            same(data, "color", region)
            same(data, "gray", region)


def restart_markers(data):
    return [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]


def test_restart_markers_that_are_not_where_they_belong():
    good = encode_jpeg(noise(64, 64, seed=3), restart=2)  # eight intervals
    markers = restart_markers(good)
    assert [good[at + 1] for at in markers] == [0xD0 + number for number in range(7)]
    changed = []
    for at in markers:
        others = [good[at + 1] ^ 1, 0xD7, 0xD8, 0xD9, 0x00, 0xFF]
        changed += [good[: at + 1] + bytes([other]) + good[at + 2 :] for other in others if other != good[at + 1]]
        for piece in b"", good[at : at + 2] * 2, b"\0" + good[at : at + 2], b"\xff" + good[at : at + 2]:
            changed.append(good[:at] + piece + good[at + 2 :])
        changed.append(good[: at - 1] + good[at:])
        changed.append(good[: at + 2] + good[at + 3 :])
    changed.append(good[:-2] + b"\xff\xd7\xff\xd9")  # one more
    for data in changed:
        for region in None, (0, 0, 10, 64), (20, 20, 20, 20):
            same(data, "color", region)


@pytest.mark.parametrize("kind", range(0xC0, 0xD0))
@pytest.mark.parametrize("channels", [1, 3])
def test_another_kind_of_image_in_the_header(kind, channels):
    """Such as lossless, 0xC3, which libjpeg-turbo knows from 3.0 on."""
    data = bytearray(encode_jpeg(noise(40, 50)[..., :channels].squeeze()))
    data[data.index(b"\xff\xc0") + 1] = kind
    for color in "color", "gray", "unchanged":
        same(bytes(data), color)


def test_data_that_end_soon_below_the_region():
    """libjpeg has then read to the end, and notices that rows below the region are missing."""
    data = encode_jpeg(np.full((96, 32), 90, np.uint8), (1, 1))
    for end in range(len(data) - 2, len(data) - 24, -1):
        for height in range(1, 96, 8):
            same(data[:end] + b"\xff\xd9", "gray", (0, 0, height, 32))
    sentence = answer("own", data[:-6] + b"\xff\xd9", "gray", (0, 0, 80, 32))
    assert "truncated" in sentence


@pytest.mark.parametrize("transform", [Transform(crop_size=171), Transform(crop_size=171, dtype="float16")])
@pytest.mark.parametrize("progressive", [False, True])
def test_large_batches_are_written_through_the_caches(tmp_path, transform, progressive):
    """The decoder fetches a sample's place in a batch of 4 MiB and more, and touches no pixel thereby."""
    count = 24  # of 343 KB as floats
    for number in range(count):
        content = encode_jpeg(noise(180, 240, seed=number), flags=PROGRESSIVE if progressive else 0)
        (tmp_path / f"{number}.jpg").write_bytes(content)
    source = ImageListSource([tmp_path / f"{number}.jpg" for number in range(count)])
    epochs = []
    for batch_size in count, 1:
        with Loader(source, transform, batch_size=batch_size, seed=1, threads=2, timeout=PATIENCE) as loader:
            epochs.append(np.concatenate([np.array(batch["data"]) for batch in loader]))
    assert np.array_equal(*epochs)


def test_what_it_decodes():
    """Photographs, as almost all of them are stored; anything else is libjpeg's."""
    picture = noise(64, 96)
    for sampling in SAMPLINGS:
        for flags in 0, OPTIMIZED:
            assert is_own(encode_jpeg(picture, sampling, flags=flags)) == (sampling in OWN_SAMPLINGS)
    plain = encode_jpeg(picture)
    assert is_own(plain, "gray") and is_own(plain, "color", (32, 48)) and is_own(with_exif(plain, 6))
    gray = encode_jpeg(noise(64, 96, 1), (1, 1))
    assert is_own(gray) and is_own(gray, "gray") and is_own(gray, "unchanged")
    assert not is_own(plain + b"\0") and not is_own(plain[:-2])  # its data must end where the file does
    assert is_own(encode_jpeg(picture, restart=2))
    for flags in PROGRESSIVE, SEPARATE_SCANS, ARITHMETIC:
        assert not is_own(encode_jpeg(picture, flags=flags))
    assert not is_own(encode_jpeg(picture, "4:4:4", RGB))
    assert not is_own(encode_jpeg(noise(64, 96, 4), "4:4:4", CMYK))
    assert not is_own(encode_jpeg(noise(64, 4)))  # libjpeg does not interpolate such narrow chroma


def test_it_can_be_turned_off():
    program = "import fastbatch, fastbatch.images._codec as codec; print(codec.jpeg_decoder())"

    def output(value):
        environ = {**os.environ, "FASTBATCH_JPEG_DECODER": value}
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    assert output("") == "own"
    assert output("libjpeg") == "libjpeg"
    assert output("own") == "own"
    assert "FASTBATCH_JPEG_DECODER is 'none'; it can be 'libjpeg'" in output("none")
    with pytest.raises(ValueError, match="the JPEG decoder is 'opencv'; it is 'own', 'base' or 'libjpeg'"):
        codec.use_jpeg_decoder("opencv")


def test_info_says_which_kernels_are_in_use():
    kernels = codec.jpeg_kernels()
    base = {"x86_64": "SSE2", "AMD64": "SSE2", "aarch64": "NEON", "arm64": "NEON"}[platform.machine()]
    assert kernels in (base, "AVX2")
    assert f"\nJPEG     own decoder ({kernels}), and libjpeg-turbo\n" in info()
    assert features()["jpeg_decoder"] == kernels
    try:
        codec.use_jpeg_decoder("base")
        assert codec.jpeg_kernels() == base
        codec.use_jpeg_decoder("libjpeg")
        assert codec.jpeg_kernels() is None
        assert "\nJPEG     libjpeg-turbo\n" in info() and features()["jpeg_decoder"] is None
    finally:
        codec.use_jpeg_decoder("own")
