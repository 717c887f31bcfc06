"""Makes LMDB databases of Datum records for tests and benchmarks, with py-lmdb and nothing of fastbatch's."""

import struct

import lmdb
import numpy as np


def varint(value):
    """A protobuf varint; negative numbers as 64-bit two's complement."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def datum(image, label=None, packed=False):
    """The serialized Datum of an image (channels, height, width): uint8 becomes `data`, anything else `float_data`, as in pycaffe."""
    image = np.asarray(image)
    channels, height, width = image.shape
    out = b"\x08" + varint(channels) + b"\x10" + varint(height) + b"\x18" + varint(width)
    if image.dtype == np.uint8:
        out += b"\x22" + varint(image.size) + image.tobytes()
    if label is not None:
        out += b"\x28" + varint(int(label))
    if image.dtype != np.uint8:
        values = image.astype("<f4").ravel()
        if packed:
            out += b"\x32" + varint(values.nbytes) + values.tobytes()
        else:
            out += b"".join(b"\x35" + struct.pack("<f", value) for value in values)
    return out


def write_lmdb(path, records):
    """Writes (key, value) pairs, or values to which keys "00000000", ... are given, to a new database. Returns its path as str."""
    records = [record if isinstance(record, tuple) else (b"%08d" % i, record) for i, record in enumerate(records)]
    size = 2 * sum(len(value) + 4096 for _, value in records) + 2**20
    with lmdb.open(str(path), map_size=size) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in records:
                transaction.put(key, value)
    return str(path)


def images(count, shape=(3, 12, 10), dtype=np.uint8, seed=0):
    """Random images (count, *shape) of type uint8, or float32 of both signs."""
    generator = np.random.RandomState(seed)
    if dtype == np.uint8:
        return generator.randint(0, 256, (count, *shape)).astype(np.uint8)
    return generator.randn(count, *shape).astype(dtype)


def image_lmdb(path, count, shape=(3, 12, 10), dtype=np.uint8, seed=0):
    """A database of `images(...)` with labels 0, 1, ... Returns (path, images)."""
    pictures = images(count, shape, dtype, seed)
    return write_lmdb(path, [datum(picture, label) for label, picture in enumerate(pictures)]), pictures
