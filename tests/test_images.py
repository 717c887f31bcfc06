"""decode_image: known pixels, bad files, hostile files.

tests/layers/test_opencv_bits.py compares every kind of image with OpenCV's result.
"""

import ctypes
import pathlib
import random
import struct
import threading
import zlib

import numpy as np
import pytest

_images = pytest.importorskip("fastbatch.images._codec")

from children import run_child
from fastbatch import decode_image
from jpegs import (
    ARITHMETIC,
    CMYK,
    GRAY,
    OPTIMIZED,
    PNG_SIGNATURE,
    PROGRESSIVE,
    RGB,
    SAMPLINGS,
    SEPARATE_SCANS,
    encode_jpeg,
    encode_png,
    noise,
    png_chunk,
    with_exif,
    with_segment,
)
from pixel_reference import resized


def bgr(rgb):
    return rgb[:, :, ::-1]


# ---- pixels


def test_png_has_exactly_the_pixels_that_were_stored():
    rgba = noise(13, 21, 4)
    data = encode_png(rgba.astype(int), 6, 8)
    assert (decode_image(data) == bgr(rgba[:, :, :3])).all()
    assert (decode_image(data, "unchanged") == rgba[:, :, [2, 1, 0, 3]]).all()
    gray = noise(13, 21, 1)[:, :, None]
    data = encode_png(gray.astype(int), 0, 8, interlaced=True)
    assert decode_image(data, "gray").shape == (13, 21, 1)
    assert (decode_image(data, "gray") == gray).all() and (decode_image(data, "unchanged") == gray).all()
    assert (decode_image(data) == gray.repeat(3, 2)).all()
    assert (decode_image(encode_png(gray.astype(int) * 257, 0, 16), "gray") == gray).all()  # the high byte of 16 bits
    bits = (gray > 128).astype(int)
    assert (decode_image(encode_png(bits, 0, 1), "gray") == bits * 255).all()
    palette = noise(1, 4, 3)[0]
    indices = gray.astype(int) % 4
    data = encode_png(indices, 3, 2, [(b"PLTE", palette.tobytes())])
    assert (decode_image(data) == bgr(palette[indices[:, :, 0]])).all()


def test_png_gray_is_weighted():
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]]])
    gray = decode_image(encode_png(rgb, 2, 8), "gray")[0, :, 0].tolist()
    assert gray == [76, 149, 29, 255, 18]  # 0.299, 0.587, 0.114, cut off as libpng does


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_jpeg_has_the_colours_that_were_stored(sampling):
    """A picture of one color comes through any kind of JPEG within the rounding of YCbCr."""
    for color in ((200, 30, 90), (0, 0, 0), (255, 255, 255), (12, 250, 128)):
        picture = np.full((19, 37, 3), color, np.uint8)
        for flags in (0, PROGRESSIVE):
            image = decode_image(encode_jpeg(picture, sampling, quality=100, flags=flags)).astype(int)
            assert image.shape == (19, 37, 3) and abs(image - color[::-1]).max() <= 2
            gray = decode_image(encode_jpeg(picture, sampling, quality=100, flags=flags), "gray").astype(int)
            assert gray.shape == (19, 37, 1) and abs(gray - np.dot(color, [0.299, 0.587, 0.114])).max() <= 2


def test_jpeg_in_other_colour_spaces():
    gray = noise(20, 30, 1)
    assert abs(decode_image(encode_jpeg(gray, (1, 1), GRAY, 100), "unchanged")[:, :, 0].astype(int) - gray).max() <= 2
    rgb = noise(20, 30)
    assert abs(decode_image(encode_jpeg(rgb, "4:4:4", RGB, 100)).astype(int) - bgr(rgb)).max() <= 2
    cmyk = np.full((20, 30, 4), (255, 100, 0, 200), np.uint8)  # inverted, as Adobe stores it: blue * key, and so on
    image = decode_image(encode_jpeg(cmyk, "4:4:4", CMYK, 100)).astype(int)
    assert abs(image - [0, 200 * 100 // 255, 200]).max() <= 3


def test_orientation_turns_the_image_where_colour_or_gray_is_asked_for():
    plain = encode_jpeg(noise(17, 28))
    stored = decode_image(plain)
    oriented = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2)}
    oriented[6], oriented[7] = oriented[5][:, ::-1], oriented[5][::-1, ::-1]
    oriented[8] = oriented[5][::-1]
    for orientation in range(10):
        data = with_exif(plain, orientation, "<>"[orientation % 2])
        expected = oriented.get(orientation, stored)
        assert (decode_image(data) == expected).all()
        assert (decode_image(data, region=(3, 5, 9, 7)) == expected[3:12, 5:12]).all()
        assert (decode_image(data, "unchanged") == stored).all()


def test_resize():
    pick = random.Random(5)
    for data in (encode_jpeg(noise(40, 62)), encode_jpeg(noise(33, 7)), encode_png(noise(1, 9).astype(int), 2, 8)):
        image = decode_image(data)
        sizes = [(20, 31), (80, 124), (1, 1), (image.shape[0], 1), (1, 50)]
        for size in sizes + [(pick.randint(1, 90), pick.randint(1, 90)) for _ in range(30)]:
            expected = resized(image, *size)
            assert (decode_image(data, size=size) == expected).all(), size
            top, left = pick.randrange(size[0]), pick.randrange(size[1])
            part = decode_image(data, size=size, region=(top, left, size[0] - top, 1))
            assert (part == expected[top:, left : left + 1]).all(), size


def test_codec_for_other_extensions_is_in_a_capsule():
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    codec = pointer(_images.codec_capsule(), b"fastbatch.codec")
    assert ctypes.c_uint32.from_address(codec).value == 2  # FB_CODEC_ABI


def test_any_bytes_like_object_and_from_many_threads():
    files = [encode_jpeg(noise(60, 80 + i), list(SAMPLINGS)[i % 4], flags=PROGRESSIVE * (i % 2)) for i in range(8)]
    files.append(encode_png(noise(30, 40).astype(int), 2, 8))
    expected = [decode_image(data) for data in files]
    assert all(
        (decode_image(kind(data)) == image).all()
        for data, image in zip(files, expected)
        for kind in (bytearray, memoryview)
    )
    wrong = []

    def work():
        for _ in range(20):
            wrong.extend(i for i, data in enumerate(files) if not (decode_image(data) == expected[i]).all())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- what is refused


def test_a_path_is_no_image():
    for path in "cats/1.jpg", pathlib.PurePosixPath("cats/1.jpg"):
        with pytest.raises(
            TypeError,
            match=r"the content of an image file, not its path: .* pathlib\.Path\('cats/1\.jpg'\)\.read_bytes\(\)",
        ):
            decode_image(path)


def test_other_formats_are_named():
    for data, name in [
        (b"BM" + bytes(60), "BMP"),
        (b"GIF89a" + bytes(60), "GIF"),
        (b"II*\0" + bytes(60), "TIFF"),
        (b"MM\0*" + bytes(60), "TIFF"),
        (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(60), "WebP"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "JPEG 2000"),
        (b"P6\n1 1\n255\nabc", "PPM"),
        (b"\0\0\0\x1cftypavif" + bytes(60), "AVIF or HEIF"),
    ]:
        with pytest.raises(ValueError, match=f"a {name} image; only JPEG and PNG can be decoded: convert it"):
            decode_image(data)
    with pytest.raises(ValueError, match="the image is empty: 0 bytes"):
        decode_image(b"")
    with pytest.raises(ValueError, match="neither JPEG nor PNG: its 12 bytes begin with 68 65 6c 6c 6f 20 77 6f "):
        decode_image(b"hello world!")
    with pytest.raises(ValueError, match="neither JPEG nor PNG"):
        decode_image(b"RIFF\x20\0\0\0WAVEfmt ")


def kinds_of_jpeg():
    picture = noise(50, 70)
    return {
        "baseline": encode_jpeg(picture),
        "gray": encode_jpeg(noise(50, 70, 1), (1, 1)),
        "restart": encode_jpeg(picture, restart=2),
        "optimized": encode_jpeg(picture, flags=OPTIMIZED),
        "4:4:4": encode_jpeg(picture, "4:4:4"),
        "cmyk": encode_jpeg(noise(50, 70, 4), "4:4:4", CMYK),
        "progressive": encode_jpeg(picture, flags=PROGRESSIVE),
        "separate scans": encode_jpeg(picture, flags=SEPARATE_SCANS),
        "arithmetic": encode_jpeg(picture, flags=ARITHMETIC),
    }


def test_truncated_files_are_refused_wherever_they_end():
    pngs = encode_png(noise(50, 70).astype(int), 2, 8), encode_png(noise(50, 70).astype(int), 2, 8, interlaced=True)
    for data in (*kinds_of_jpeg().values(), *pngs):
        whole = decode_image(data)
        for length in [*range(1, 60), *range(60, len(data), 97), *range(len(data) - 20, len(data) - 2)]:
            for region in (None, (0, 0, 3, 3)):  # also where the part that is asked for would be there
                with pytest.raises(ValueError, match="truncated|damaged|neither JPEG nor PNG|empty"):
                    decode_image(data[:length], region=region)
        assert (decode_image(data + b"trailing garbage") == whole).all()


@pytest.mark.parametrize("kind", kinds_of_jpeg())
def test_a_jpeg_with_all_its_pixels_needs_no_end_of_image_marker(kind):
    """Phones and interrupted writers omit it, or write something else instead."""
    data = kinds_of_jpeg()[kind]
    whole, colors = decode_image(data), decode_image(data, "unchanged")
    for cut in (2, 1):
        for trailer in (b"", b"\0", b"\0" * 5000, b"SEFHe\0\0\0 a trailer of a phone's" * 50, b"\xff" * 20):
            if kind == "arithmetic":  # its decoder reads zeros past the end, without a warning
                with pytest.raises(ValueError, match="truncated"):
                    decode_image(data[:-cut] + trailer)
                continue
            if cut == 1 and trailer and trailer[:1] not in b"\0\xff":
                continue  # with the FF before it, this would be another marker
            ended = data[:-cut] + trailer
            assert (decode_image(ended) == whole).all() and (decode_image(ended, "unchanged") == colors).all()
            assert (decode_image(ended, region=(40, 60, 10, 10)) == whole[40:, 60:]).all()
            assert (decode_image(ended, region=(3, 2, 9, 11)) == whole[3:12, 2:13]).all()


@pytest.mark.parametrize("kind", kinds_of_jpeg())
def test_a_trailer_does_not_make_a_truncated_jpeg_whole(kind):
    """Also a trailer with an end-of-image marker, and zeros, which are valid codes of pixels."""
    data = kinds_of_jpeg()[kind]
    trailers = [
        b"a trailer",
        b"a trailer \xff\xd9",
        b"a trailer \xff\xd9 that goes on",
        b"\0" * 60000,
        b"\0" * 60000 + b"\xff\xd9 and on",
        data[:200],
        b"\xff" * 60000,
    ]
    if kind == "arithmetic":
        trailers = [trailer for trailer in trailers if b"\xff\xd9" not in trailer]
    for missing in (60, 300, 1500):
        for trailer in trailers:
            for region in (None, (3, 2, 9, 11)):
                if region and trailer.endswith(b"\xff\xd9"):
                    continue  # what is below the region is believed where the marker ends the file
                with pytest.raises(ValueError, match="truncated|damaged|not a JPEG"):
                    decode_image(data[: -2 - missing] + trailer, region=region)


def test_damaged_files_are_refused():
    jpeg = encode_jpeg(noise(60, 60), "4:4:4", restart=3)
    at = jpeg.index(b"\xff\xd3")
    with pytest.raises(ValueError, match="truncated or damaged .libjpeg: Corrupt JPEG data"):
        decode_image(jpeg[:at] + b"\0\1\2\3" + jpeg[at:])
    with pytest.raises(ValueError, match="truncated or damaged .libjpeg: Corrupt JPEG data"):
        decode_image(jpeg[: at - 40] + b"\xff\x01" + jpeg[at:])
    with pytest.raises(ValueError, match="not a JPEG image that can be decoded: "):
        decode_image(jpeg.replace(b"\xff\xdb", b"\xff\xfe"))  # no quantization tables
    end = len(jpeg) - 2
    assert (
        decode_image(jpeg[:end] + b"\0\0\0" + jpeg[end:]) == decode_image(jpeg)
    ).all()  # padding after the pixels does no harm
    png = bytearray(encode_png(noise(60, 60).astype(int), 2, 8))
    for at in (40, len(png) // 2, len(png) - 20):
        png[at] ^= 4
        with pytest.raises(ValueError, match="not a PNG image that can be decoded, or damaged: "):
            decode_image(bytes(png), region=(0, 0, 1, 1))
        png[at] ^= 4
    # The checksum of the pixels alone is wrong: libpng calls that a warning.
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 11, 8, 0, 0, 0, 0))
    good, bad = zlib.compress(bytes(110)), zlib.compress(bytes(110))[:-1] + b"?"
    assert not decode_image(PNG_SIGNATURE + header + png_chunk(b"IDAT", good) + png_chunk(b"IEND", b"")).any()
    with pytest.raises(ValueError, match="or damaged: IDAT: incorrect data check"):
        decode_image(PNG_SIGNATURE + header + png_chunk(b"IDAT", bad) + png_chunk(b"IEND", b""))


def test_16_bits_stay_16_bits_for_caffe():
    data = encode_png(noise(5, 6).astype(int) * 257, 2, 16)
    with pytest.raises(ValueError, match="Image data type must be unsigned byte.*force_color"):
        decode_image(data, "unchanged")
    assert decode_image(data).shape == (5, 6, 3)


def jpeg_with_size(height, width, **options):
    """A JPEG file of 16 x 16 pixels that claims to be larger."""
    data = bytearray(encode_jpeg(noise(16, 16), **options))
    at = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2", b"\xff\xc9", b"\xff\xca") if marker in data)
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_with_size(height, width, depth=8, color_type=2):
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    return (
        PNG_SIGNATURE
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(bytes(9999)))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.usefixtures("counts_memory")
def test_hostile_sizes_are_refused_before_memory_is_taken(tmp_path):
    """In a process of its own, which must not grow."""
    files = [
        jpeg_with_size(65535, 65535),
        jpeg_with_size(65500, 65500),
        jpeg_with_size(65500, 65500, flags=PROGRESSIVE),
        jpeg_with_size(32767, 32767),
        jpeg_with_size(20000, 20000, flags=PROGRESSIVE),
        jpeg_with_size(65535, 16383, flags=2),
        png_with_size(2**31 - 1, 2**31 - 1),
        png_with_size(1000000, 1),
        png_with_size(1, 1000000),
        png_with_size(30000, 30000),
        png_with_size(2**20, 1000, 1, 0),
    ]
    for number, data in enumerate(files):
        (tmp_path / str(number)).write_bytes(data)
    program = f"""
        import resource
        from fastbatch import decode_image
        grown = -resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range({len(files)}):
            with open({str(tmp_path)!r} + f"/{{number}}", "rb") as file:
                data = file.read()
            for region in (None, (0, 0, 1, 1)):
                try:
                    decode_image(data, region=region)
                except ValueError as error:
                    print(error)
        grown += resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert grown < 16 * 1024, grown
    """
    said = run_child(program).splitlines()
    assert len(said) == 2 * len(files)
    refused = ("beyond OpenCV's limits", "which cannot be in", "Maximum supported image dimension", "Invalid IHDR data")
    assert [line for line in said if not any(words in line for words in refused)] == []


@pytest.mark.usefixtures("counts_memory")
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"sPLT", b"iCCP", b"eXIf", b"orNt"])
def test_text_and_profiles_take_no_memory(tmp_path, kind):
    """libpng would inflate and keep all of it: 200 MB for a file of 120 KB, held by the decoder."""
    packed = zlib.compress(bytes(60000))
    content = {b"iTXt": b"name\0\1\0\0\0" + packed, b"zTXt": b"name\0\0" + packed, b"iCCP": b"name\0\0" + packed}.get(
        kind, b"name\0" + bytes(100)
    )
    whole = encode_png(np.full((1, 1, 3), 7), 2, 8)
    for at in (len(PNG_SIGNATURE) + 25, len(whole) - 12):  # after IHDR, and before IEND
        (tmp_path / "image").write_bytes(whole[:at] + png_chunk(kind, content) * 900 + whole[at:])
        run_child(f"""
            import resource
            from fastbatch import decode_image
            with open({str(tmp_path / "image")!r}, "rb") as file:
                data = file.read()
            grown = -resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert decode_image(data).tolist() == [[[7, 7, 7]]]
            grown += resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert grown < 4 * 1024, grown
        """)


@pytest.mark.parametrize("kind", [b"sPLT", b"tEXt", b"iCCP", b"eXIf", b"orNt"])
def test_a_chunk_that_claims_to_be_longer_than_the_file(kind):
    """libpng would allocate that much memory, and the decoder would keep it.

    Newer versions skip the chunk first, and find its end missing.
    """
    whole = encode_png(np.zeros((3, 4, 3), int), 2, 8)
    at = len(PNG_SIGNATURE) + 25  # after IHDR
    with pytest.raises(ValueError, match="chunk data is too large|truncated: its 94 bytes end before the image does"):
        decode_image(whole[:at] + struct.pack(">I", 2**31 - 1) + kind + whole[at:])
    assert decode_image(whole[:at] + png_chunk(kind, b"12345678") + whole[at:]).shape == (3, 4, 3)


@pytest.mark.usefixtures("counts_memory")
def test_images_that_really_are_large_need_memory_only_for_the_part_that_is_asked_for(tmp_path):
    zeros = zlib.compressobj(9)
    packed = b"".join(zeros.compress(bytes(20001)) for _ in range(20000)) + zeros.flush()
    bomb = (
        PNG_SIGNATURE
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
        + png_chunk(b"IDAT", packed)
    )
    bomb += png_chunk(b"IEND", b"")
    assert len(bomb) < 500000
    (tmp_path / "bomb.png").write_bytes(bomb)
    program = f"""
        import resource
        from fastbatch import decode_image
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open({str(tmp_path / "bomb.png")!r}, "rb") as file:
            assert decode_image(file.read(), "gray", region=(19999, 0, 1, 20000)).sum() == 0
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024
    """
    run_child(program)


def test_jpeg_made_of_thousands_of_scans_is_refused():
    data = encode_jpeg(noise(16, 16), flags=PROGRESSIVE)
    start = data.rindex(b"\xff\xda")
    with pytest.raises(ValueError, match="more than 500 scans|progression"):
        decode_image(data[:start] + data[start:-2] * 1000 + data[-2:])


def test_arguments_that_make_no_sense():
    data = encode_jpeg(noise(10, 12))
    with pytest.raises(ValueError, match="color is 'colour'; it can be 'color', 'gray' or 'unchanged'"):
        decode_image(data, "colour")
    assert decode_image(data, size=7).shape == (7, 7, 3)
    for size in ((0, 5), (5, -1), 0, (2**31, 1)):
        with pytest.raises(ValueError, match="a height and a width, each at least 1"):
            decode_image(data, size=size)
    with pytest.raises(ValueError, match="cannot be resized to 2000000 x 1 "):
        decode_image(data, size=(1, 2000000))
    for region in ((0, 0, 11, 12), (-1, 0, 2, 2), (0, 0, 0, 3), (9, 11, 2, 1)):
        with pytest.raises(ValueError, match="is not inside of the image of 12 x 10"):
            decode_image(data, region=region)
    for region in ((2**70, 0, 1, 1), (0, 0, 2**64, 1)):
        with pytest.raises(ValueError, match="is not inside of the image of 12 x 10"):
            decode_image(data, region=region)
    with pytest.raises(TypeError):
        decode_image("a path")
    for size in ((1, 2, 3), (10.9, 12.9), "12", True, [None, 3]):
        with pytest.raises(
            TypeError, match="size is .*; it is a height and a width, two integers, or one integer for both"
        ):
            decode_image(with_segment(data, b"comment", 0xFE), size=size)
    for region in ((0, 0, 1.5, 2), (0, 0, 1), 5, "abcd"):
        with pytest.raises(TypeError, match="region is .*; it is top, left, height and width, four integers"):
            decode_image(data, region=region)
