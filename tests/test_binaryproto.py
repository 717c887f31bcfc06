"""Mean files: what compute_image_mean and pycaffe write, what protobuf allows, and what is refused."""

import os
import struct

import numpy as np
import pytest

from fastbatch.formats.binaryproto import read_mean_file


def varint(value):
    value &= 2**64 - 1  # negative numbers take 10 bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def block(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def legacy_shape(*shape):
    return b"".join(number(field, size) for field, size in enumerate(shape, start=1))


def new_shape(*shape):
    return block(7, block(1, b"".join(map(varint, shape))))


MEAN = (np.arange(2 * 3 * 4, dtype=np.float32) / 7).reshape(2, 3, 4)
VALUES = block(5, MEAN.tobytes())


@pytest.fixture
def read(tmp_path):
    """Writes bytes to a file and reads it as a mean file."""

    def write_and_read(content):
        path = tmp_path / "mean.binaryproto"
        path.write_bytes(content)
        return read_mean_file(path)

    return write_and_read


@pytest.mark.parametrize(
    "content",
    [
        legacy_shape(1, 2, 3, 4) + VALUES,  # compute_image_mean
        VALUES + legacy_shape(1, 2, 3, 4),
        new_shape(1, 2, 3, 4) + VALUES,  # caffe.io.array_to_blobproto
        block(7, b"".join(number(1, size) for size in (1, 2, 3, 4))) + VALUES,  # dims unpacked
        legacy_shape(1, 2, 3, 4) + new_shape(5, 5) + VALUES,  # the legacy shape wins
        legacy_shape(1, 2, 3, 4) + b"".join(b"\x2d" + value.tobytes() for value in MEAN.ravel()),  # data unpacked
        legacy_shape(1, 2, 3, 4) + block(5, MEAN[:1].tobytes()) + block(5, MEAN[1:].tobytes()),  # in pieces
        legacy_shape(1, 2, 3, 4) + block(8, MEAN.astype("<f8").tobytes()),  # double_data
        legacy_shape(1, 2, 3, 4) + block(5, b"\0" * 96) + block(8, MEAN.astype("<f8").tobytes()),  # double_data wins
        legacy_shape(1, 2, 3, 4) + block(8, b"") + VALUES,  # but not an empty one
        legacy_shape(1, 2, 3, 4) + VALUES + block(6, b"\0" * 96),  # a diff is ignored
        number(100, 1) + block(101, b"x") + legacy_shape(1, 2, 3, 4) + VALUES,  # unknown fields
        b"\xb5\x06abcd\xb1\x06abcdefgh" + legacy_shape(1, 2, 3, 4) + VALUES,  # of 4 and 8 bytes, too
        number(2, 99) + legacy_shape(1, 2, 3, 4) + VALUES,  # the last scalar wins
        b"\x53"
        + number(2, 99)
        + b"\x5b\x5c\x54"
        + legacy_shape(1, 2, 3, 4)
        + VALUES,  # an unknown group, and one in it
    ],
)
def test_every_way_to_write_a_mean_is_read(read, content):
    mean = read(content)
    assert mean.dtype == np.float32
    assert mean.flags.c_contiguous and mean.flags.writeable
    np.testing.assert_array_equal(mean, MEAN)


def test_doubles_are_rounded_once(read):
    mean = read(legacy_shape(1, 1, 1, 1) + block(8, struct.pack("<d", 1 / 3)))
    assert mean[0, 0, 0] == np.float32(1 / 3)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "not a binaryproto"),
        (b"\0\0\0\0", "not a binaryproto"),
        (VALUES, r"\(\), expected \(1, C, H, W\)"),
        (new_shape(2, 3, 4) + VALUES, r"\(2, 3, 4\), expected \(1, C, H, W\)"),
        (new_shape(2, 1, 3, 4) + VALUES, r"expected \(1, C, H, W\)"),
        (number(1, 1) + number(2, 2) + VALUES, "impossible shape"),  # height and width were never set
        (legacy_shape(1, 2, -3, 4) + VALUES, "impossible shape"),
        (legacy_shape(1, 2**31 - 1, 2**31 - 1, 2**31 - 1) + VALUES, "impossible shape"),
        (new_shape(1, 2**40, 2**40, 2**40) + VALUES, "impossible shape"),
        (legacy_shape(1, 2, 3, 5) + VALUES, "needs 30 values but it holds 24"),
        (legacy_shape(1, 2, 3, 4), "needs 24 values but it holds 0"),
        (legacy_shape(1, 2, 3, 4) + block(5, MEAN.tobytes()[:-2]), "truncated or corrupt"),
        (legacy_shape(1, 2, 3, 4) + VALUES + b"\x4e", "not a binaryproto"),  # a wire type that does not exist
        (legacy_shape(1, 2, 3, 4) + VALUES + b"\x08" + b"\xff" * 11, "not a binaryproto"),  # a varint without end
        (legacy_shape(1, 2, 3, 4) + VALUES + block(6, b"\0" * 67), "truncated or corrupt"),  # of the diff, too
        (legacy_shape(1, 2, 3, 4) + VALUES + block(9, b"\0" * 12), "truncated or corrupt"),
        (b"\x53" + legacy_shape(1, 2, 3, 4) + VALUES, "not a binaryproto"),  # a group without end
        (legacy_shape(1, 2, 3, 4) + VALUES + b"\x53\x5c", "not a binaryproto"),  # the end of another group
        (
            number(2**29, 0) + legacy_shape(1, 2, 3, 4) + VALUES,
            "not a binaryproto",
        ),  # the field numbers of protobuf end before
    ],
)
def test_what_is_no_mean_is_refused_with_the_files_name(read, content, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(content)
    assert "mean.binaryproto" in str(caught.value)


def test_a_mean_that_was_cut_off_anywhere_is_refused(read):
    whole = VALUES + legacy_shape(1, 2, 3, 4)
    for size in range(len(whole)):
        with pytest.raises(ValueError):
            read(whole[:size])


def test_random_damage_gives_an_array_or_a_value_error(read):
    random = np.random.RandomState(1)
    whole = np.frombuffer(legacy_shape(1, 2, 3, 4) + new_shape(1, 2, 3, 4) + VALUES, np.uint8)
    refused = 0
    for _ in range(500):
        damaged = whole.copy()
        damaged[random.randint(len(damaged), size=3)] = random.randint(256, size=3)
        try:
            mean = read(damaged.tobytes())
        except ValueError:
            refused += 1
        else:
            assert mean.ndim == 3 and mean.dtype == np.float32
    assert 0 < refused < 500


def test_a_missing_file_and_a_directory_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="File not found: .*nowhere.binaryproto"):
        read_mean_file(tmp_path / "nowhere.binaryproto")
    with pytest.raises(ValueError, match="is a directory"):
        read_mean_file(str(tmp_path))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path / "pipe", "/dev/zero":
        with pytest.raises(ValueError, match="mean_file .*: it is a named pipe, a socket or a device, not a file"):
            read_mean_file(path)
