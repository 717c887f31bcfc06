"""The decoder's output equals, bit for bit, that of the OpenCV that the real Caffe uses."""

import importlib.util
import os
import random

import numpy as np
import pytest

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
    exif,
    noise,
    with_exif,
    with_segment,
)

cv2 = pytest.importorskip("cv2")
if not cv2.__version__.startswith("4.5.1"):
    pytest.skip(f"compared with OpenCV 4.5.1, and this is {cv2.__version__}", allow_module_level=True)
decode_image = pytest.importorskip("fastbatch.images._codec").decode_image

COLORS = {"color": cv2.IMREAD_COLOR, "gray": cv2.IMREAD_GRAYSCALE, "unchanged": cv2.IMREAD_UNCHANGED}


def opencv(data, color, size=None):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), COLORS[color])
    assert image is not None
    if size is not None:
        image = cv2.resize(image, (size[1], size[0]))
    return image[:, :, None] if image.ndim == 2 else image


def same(data, color, size=None, regions=0, seed=0, what=""):
    """Decodes all of the image, and `regions` random parts of it."""
    expected = opencv(data, color, size)
    whole = decode_image(data, color, size)
    assert whole.dtype == expected.dtype and whole.shape == expected.shape, (what, color, size)
    np.testing.assert_array_equal(whole, expected, err_msg=f"{what} {color} {size}")
    pick = random.Random(seed)
    height, width = expected.shape[:2]
    for _ in range(regions):
        top, left = pick.randrange(height), pick.randrange(width)
        region = (top, left, pick.randint(1, height - top), pick.randint(1, width - left))
        part = decode_image(data, color, size, region)
        expected_part = expected[top : top + region[2], left : left + region[3]]
        assert part.shape == expected_part.shape
        assert (part == expected_part).all(), (what, color, size, region, expected.shape)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    "flags", [0, PROGRESSIVE, ARITHMETIC, OPTIMIZED, SEPARATE_SCANS, PROGRESSIVE | ARITHMETIC], ids=str
)
def test_every_kind_of_colour_jpeg(sampling, flags):
    for number, (height, width) in enumerate([(97, 143), (64, 96), (33, 17), (1, 1), (2, 3), (7, 50), (50, 7)]):
        for restart in (0, 1 + number):
            data = encode_jpeg(noise(height, width), sampling, quality=40 + 8 * number, flags=flags, restart=restart)
            for color in COLORS:
                same(data, color, regions=8, what=f"{sampling} {flags} {restart}")


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"])
def test_every_first_row_and_column_of_a_region(sampling):
    data = encode_jpeg(noise(83, 90), sampling, quality=85)
    expected = opencv(data, "color")
    for first in range(83):
        for count in (1, 2, 9, 40):
            rows = decode_image(data, region=(first, 31, min(count, 83 - first), 20))
            assert (rows == expected[first : first + count, 31:51]).all(), (first, count)
            columns = decode_image(data, region=(30, first, 20, min(count, 90 - first)))
            assert (columns == expected[30:50, first : first + count]).all(), (first, count)


def test_small_sizes_of_each_sampling():
    for sampling in SAMPLINGS:
        for height in (1, 2, 3, 8, 9, 16, 17):
            for width in (1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 18, 33):
                data = encode_jpeg(noise(height, width), sampling)
                for color in ("color", "gray"):
                    same(data, color, regions=3, what=sampling)


def test_gray_rgb_and_cmyk_jpegs():
    kinds = [
        (noise(45, 61, 1), GRAY, (1, 1)),
        (noise(45, 61, 1), GRAY, (2, 2)),
        (noise(45, 61, 3), RGB, (1, 1, 1, 1, 1, 1)),
        (noise(45, 61, 3), RGB, (2, 2, 1, 1, 2, 1)),
        (noise(45, 61, 4), CMYK, (1, 1, 1, 1, 1, 1)),
        (noise(45, 61, 4), YCCK, (1, 1, 1, 1, 1, 1)),
        (noise(45, 61, 4), YCCK, (2, 2, 1, 1, 1, 1)),
        (noise(45, 61, 3), YCC, (2, 2, 1, 1, 1, 1)),
    ]
    for pixels, space, factors in kinds:
        for flags in (0, PROGRESSIVE, NO_ADOBE, NO_JFIF, NO_ADOBE | NO_JFIF):
            data = encode_jpeg(pixels, factors, space, flags=flags)
            for color in COLORS:
                same(data, color, regions=10, what=f"{space} {factors} {flags}")


def test_opencvs_own_and_pillows_jpegs():
    Image = pytest.importorskip("PIL.Image")
    import io

    picture = noise(75, 110)
    for parameters in ([], [1, 30], [1, 100, 2, 1], [3, 1], [4, 5]):
        same(cv2.imencode(".jpg", picture, parameters)[1].tobytes(), "color", regions=20)
    for mode, channels in (("RGB", 3), ("L", 1), ("CMYK", 4)):
        for options in (
            {},
            {"progressive": True},
            {"subsampling": 0},
            {"subsampling": 1},
            {"subsampling": 2, "optimize": True},
        ):
            out = io.BytesIO()
            Image.fromarray(noise(75, 110, channels), mode).save(out, "JPEG", **options)
            for color in COLORS:
                same(out.getvalue(), color, regions=10, what=f"{mode} {options}")


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("order", "<>")
def test_exif_orientation(orientation, order):
    for pixels in (noise(37, 58), noise(37, 58, 1)):
        data = with_exif(encode_jpeg(pixels), orientation, order)
        for color in COLORS:
            same(data, color, regions=20, what=orientation)
            same(data, color, (25, 41), regions=20, what=orientation)


def test_exif_is_read_by_opencvs_rules():
    """Also where OpenCV's rules differ from the standard: a bad entry, another segment first, a truncated directory."""
    plain = encode_jpeg(noise(9, 14))
    pick = random.Random(4)
    tags = [
        0x010E,
        0x010F,
        0x0110,
        0x0131,
        0x0132,
        0x8298,
        0x011A,
        0x011B,
        0x013E,
        0x013F,
        0x0211,
        0x0214,
        0x0128,
        0x0213,
        0x8769,
        7,
        0x0112,
    ]
    oriented = 0
    for _ in range(1500):

        def entries():
            return [
                (
                    pick.choice(tags),
                    pick.choice([2, 3, 5]),
                    pick.choice([0, 1, 3, 4, 5, 9, 20, 200]),
                    pick.choice([0, 1, 6, 8, 20, 26, 40, 60, 70, 500, 65535]),
                )
                for _ in range(pick.randrange(4))
            ]

        tiff = bytearray(exif(pick.choice([3, 5, 6, 8]), pick.choice("<>"), entries(), entries()))
        tiff += bytes(pick.randrange(60))
        for _ in range(pick.randrange(3)):
            tiff[pick.randrange(min(12, len(tiff)))] = pick.choice([0, 1, 8, 42, 73, 77, 255])
        data = with_segment(
            plain, pick.choice([b"Exif\0\0", b"Exif\0\1", b"abcdef"]) + bytes(tiff[: pick.choice([len(tiff), 14, 30])])
        )
        for _ in range(pick.randrange(3)):
            marker = pick.choice([0xE0, 0xE2, 0xEF, 0xFE, 0xE1, 0xE1])
            data = with_segment(data, bytes(pick.randrange(20)), marker)
        expected = opencv(data, "color")
        oriented += expected.shape[0] > expected.shape[1] or not (expected == opencv(plain, "color")).all()
        got = decode_image(data)
        assert got.shape == expected.shape and (got == expected).all(), data
    assert 100 < oriented < 1400


@pytest.mark.parametrize("interlaced", [False, True], ids=["", "interlaced"])
@pytest.mark.parametrize("transparent", [False, True], ids=["", "tRNS"])
def test_every_kind_of_png(interlaced, transparent):
    pick = np.random.RandomState(1)
    palette = (b"PLTE", bytes(pick.randint(0, 256, 768).astype(np.uint8)))
    kinds = [(0, 1, d) for d in (1, 2, 4, 8, 16)] + [
        (2, 3, 8),
        (2, 3, 16),
        (4, 2, 8),
        (4, 2, 16),
        (6, 4, 8),
        (6, 4, 16),
    ]
    kinds += [(3, 1, d) for d in (1, 2, 4, 8)]
    for color_type, channels, depth in kinds:
        for height, width in ((1, 1), (5, 3), (23, 37), (16, 16)):
            chunks = [(*palette[:1], palette[1][: 3 * 2**depth])] if color_type == 3 else []
            if transparent and color_type in (0, 2, 3):
                sizes = {0: 2, 2: 6, 3: 2 ** min(depth, 8)}
                chunks.append((b"tRNS", bytes(sizes[color_type]) if color_type != 3 else bytes(range(sizes[3]))))
            samples = pick.randint(0, 2**depth, (height, width, channels))
            data = encode_png(samples, color_type, depth, chunks, interlaced)
            for color in COLORS:
                if color == "unchanged" and depth == 16:
                    assert cv2.imdecode(np.frombuffer(data, np.uint8), -1).dtype == np.uint16
                    with pytest.raises(ValueError, match="Image data type must be unsigned byte"):
                        decode_image(data, color)
                else:
                    same(data, color, regions=5, what=f"type {color_type}, {depth} bits")


def test_png_with_gamma_and_chromaticities():
    samples = noise(20, 30).astype(int)
    for chunks in (
        [(b"gAMA", (45455).to_bytes(4, "big"))],
        [(b"sRGB", b"\0")],
        [(b"cHRM", bytes(32))],
        [
            (b"gAMA", (100000).to_bytes(4, "big")),
            (b"cHRM", b"".join(n.to_bytes(4, "big") for n in (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))),
        ],
    ):
        for color in COLORS:
            same(encode_png(samples, 2, 8, chunks), color, regions=3, what=chunks)


def test_resize_to_any_size():
    pick = random.Random(7)
    pictures = [
        (noise(60, 84), 0),
        (noise(61, 43, 1), 0),
        (noise(1, 30), 0),
        (noise(30, 1), 0),
        (noise(1, 1), 0),
        (noise(2, 2), 0),
    ]
    for pixels, _ in pictures:
        data = encode_jpeg(pixels, (1, 1) if pixels.ndim == 2 else "4:2:0")
        height, width = pixels.shape[:2]
        sizes = [
            (height // 2 or 1, width // 2 or 1),
            (2 * height, 2 * width),
            (height, width),
            (1, width),
            (height, 1),
            (1, 1),
            (height, 2 * width),
            (227, 1),
            (1, 227),
            (height + 1, width + 1),
            (max(height - 1, 1), width),
        ]
        sizes += [(pick.randint(1, 150), pick.randint(1, 150)) for _ in range(60)]
        for size in sizes:
            for color in ("color", "gray"):
                same(data, color, size, regions=4, seed=size[0], what="resize")
    rgba = encode_png(noise(50, 70, 4).astype(int), 6, 8)
    for _ in range(40):
        same(rgba, "unchanged", (pick.randint(1, 120), pick.randint(1, 120)), regions=4, what="four channels")


def photographs(package, folder):
    """The folder of the package's pictures, found without importing it (which takes seconds and warns)."""
    return os.path.join(os.path.dirname(importlib.util.find_spec(package).origin), folder)


def test_photographs():
    """Those that scikit-image and scikit-learn bring along."""
    folders = [photographs("skimage", "data"), photographs("sklearn", "datasets/images")]
    paths = [
        os.path.join(folder, name)
        for folder in folders
        for name in sorted(os.listdir(folder))
        if name.endswith((".jpg", ".jpeg", ".png"))
    ]
    decoded = 0
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        for color in COLORS:
            image = cv2.imread(path, COLORS[color])
            if image is None or image.dtype != np.uint8:
                with pytest.raises(ValueError, match="truncated|unsigned byte"):
                    decode_image(data, color)
                continue
            decoded += 1
            assert (decode_image(data, color).reshape(image.shape) == image).all(), path
            same(data, color, (256, 256), regions=3, what=path)
            same(data, color, None, regions=3, what=path)
    assert decoded > 10


def test_imagenet_sized_photographs_cropped_at_random():
    folder = photographs("sklearn", "datasets/images")
    pick = random.Random(3)
    for name in ("china.jpg", "flower.jpg"):
        photo = cv2.imread(os.path.join(folder, name))
        for sampling in ("4:4:4", "4:2:2", "4:2:0"):
            for _ in range(12):
                top, left = pick.randrange(photo.shape[0] - 375), pick.randrange(photo.shape[1] - 500)
                part = photo[top : top + 375, left : left + 500, ::-1]
                data = encode_jpeg(part, sampling, quality=92, flags=pick.choice([0, OPTIMIZED]))
                expected, resized = opencv(data, "color"), opencv(data, "color", (256, 256))
                for _ in range(6):
                    y, x = pick.randrange(375 - 226), pick.randrange(500 - 226)
                    assert (decode_image(data, region=(y, x, 227, 227)) == expected[y : y + 227, x : x + 227]).all()
                    y, x = pick.randrange(30), pick.randrange(30)
                    assert (
                        decode_image(data, size=(256, 256), region=(y, x, 227, 227))
                        == resized[y : y + 227, x : x + 227]
                    ).all()


def test_files_with_garbage_behind_the_image():
    for data in (encode_jpeg(noise(20, 30)), encode_png(noise(20, 30).astype(int), 2, 8)):
        for garbage in (b"\0" * 1000, b"garbage", data, b"\xff"):
            same(data + garbage, "color", regions=3)


def test_jpegs_that_end_in_something_else_than_their_marker(tmp_path):
    """As Caffe's ImageData reads them. What is accepted has OpenCV's pixels; what is refused lacks some of its own."""
    pick = random.Random(11)
    trailers = [
        b"",
        b"\0",
        b"\0" * 3000,
        b"SEFHe\0\0\0 a phone's" * 3,
        b"some \xff\xd9",
        b"some \xff\xd9 and more",
        b"\xff" * 9,
        b"\xff\xd8\xff\xe1",
    ]
    accepted = refused = 0
    for flags in (0, OPTIMIZED, PROGRESSIVE, SEPARATE_SCANS):
        for sampling, restart in (("4:2:0", 0), ("4:4:4", 3), ("4:2:2", 1)):
            data = encode_jpeg(noise(41, 67), sampling, quality=pick.choice([50, 90]), flags=flags, restart=restart)
            whole = opencv(data, "color")
            for _ in range(60):
                cut = pick.choice([2, 2, 2, pick.randint(2, 9), pick.randint(10, 400)])
                ended = data[:-cut] + pick.choice(trailers)
                (tmp_path / "image.jpg").write_bytes(ended)
                expected = cv2.imread(str(tmp_path / "image.jpg"))
                try:
                    found = decode_image(ended)
                except ValueError as problem:
                    assert "truncated" in str(problem) or "not a JPEG" in str(problem)
                    assert cut > 2 or expected is None  # bits are missing, be they 0 as libjpeg makes them up, or not
                    refused += 1
                else:
                    assert (found == expected).all()
                    assert cut > 2 or (found == whole).all()
                    accepted += 1
    assert accepted > 200 and refused > 150
