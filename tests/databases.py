"""Makes LMDB and LevelDB databases of Datum records for tests and benchmarks, with py-lmdb, libleveldb and nothing of fastbatch's."""

import ctypes
import ctypes.util
import functools
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


def pairs(records):
    """The records as (key, value) pairs: values alone are given the keys "00000000", ..."""
    return [record if isinstance(record, tuple) else (b"%08d" % i, record) for i, record in enumerate(records)]


def write_lmdb(path, records):
    """Writes (key, value) pairs, or values to which keys "00000000", ... are given, to a new database. Returns its path as str."""
    records = pairs(records)
    size = 2 * sum(len(value) + 4096 for _, value in records) + 2**20
    with lmdb.open(str(path), map_size=size) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in records:
                transaction.put(key, value)
    return str(path)


@functools.lru_cache(maxsize=None)
def leveldb():
    """LevelDB's C API."""
    library = ctypes.CDLL(ctypes.util.find_library("leveldb") or "libleveldb.so.1")
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    for name, result, arguments in (
        ("options_create", pointer, ()),
        ("options_set_create_if_missing", None, (pointer, ctypes.c_uint8)),
        ("options_set_write_buffer_size", None, (pointer, size)),
        ("options_set_block_size", None, (pointer, size)),
        ("options_set_compression", None, (pointer, ctypes.c_int)),
        ("options_destroy", None, (pointer,)),
        ("writeoptions_create", pointer, ()),
        ("writeoptions_destroy", None, (pointer,)),
        ("open", pointer, (pointer, text, ctypes.POINTER(text))),
        ("put", None, (pointer, pointer, text, size, text, size, ctypes.POINTER(text))),
        ("delete", None, (pointer, pointer, text, size, ctypes.POINTER(text))),
        ("compact_range", None, (pointer, text, size, text, size)),
        ("close", None, (pointer,)),
    ):
        function = getattr(library, "leveldb_" + name)
        function.restype, function.argtypes = result, arguments
    return library


def write_leveldb(path, records, tables=False, compressed=True, delete=()):
    """The same for LevelDB, with Caffe's options. The records lie in its log, as Caffe leaves a small database, or in tables. Those with
    the keys `delete` are deleted again."""
    library, problem = leveldb(), ctypes.c_char_p()
    options, written = library.leveldb_options_create(), library.leveldb_writeoptions_create()
    library.leveldb_options_set_create_if_missing(options, 1)
    library.leveldb_options_set_write_buffer_size(options, 268435456)
    library.leveldb_options_set_block_size(options, 65536)
    library.leveldb_options_set_compression(options, compressed)
    database = library.leveldb_open(options, str(path).encode(), problem)
    if database is None:
        raise OSError(problem.value)
    for key, value in pairs(records):
        library.leveldb_put(database, written, key, len(key), value, len(value), problem)
    for key in delete:
        library.leveldb_delete(database, written, key, len(key), problem)
    if tables:
        library.leveldb_compact_range(database, None, 0, None, 0)
    library.leveldb_close(database)
    library.leveldb_writeoptions_destroy(written)
    library.leveldb_options_destroy(options)
    if problem.value is not None:
        raise OSError(problem.value)
    return str(path)


def images(count, shape=(3, 12, 10), dtype=np.uint8, seed=0):
    """Random images (count, *shape) of type uint8, or float32 of both signs."""
    generator = np.random.RandomState(seed)
    if dtype == np.uint8:
        return generator.randint(0, 256, (count, *shape)).astype(np.uint8)
    return generator.randn(count, *shape).astype(dtype)


def image_database(write, path, count, shape=(3, 12, 10), dtype=np.uint8, seed=0):
    """A database of `images(...)` with labels 0, 1, ..., made by `write`. Returns (path, images)."""
    pictures = images(count, shape, dtype, seed)
    return write(path, [datum(picture, label) for label, picture in enumerate(pictures)]), pictures


image_lmdb = functools.partial(image_database, write_lmdb)
image_leveldb = functools.partial(image_database, write_leveldb)
