"""LMDB and LevelDB databases of Datum records for tests and benchmarks.

They are written through the C libraries, without any code of fastbatch.
"""

import contextlib
import ctypes
import ctypes.util
import functools
import os
import struct

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
    """The serialized Datum of an image (channels, height, width).

    As in pycaffe, uint8 becomes `data`, and any other type `float_data`.
    """
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


def encoded(image, label):
    """The serialized Datum of an image file, given as bytes."""
    return b"\x22" + varint(len(image)) + image + b"\x28" + varint(label) + b"\x38\x01"


def pairs(records):
    """The records as (key, value) pairs: values alone are given the keys "00000000", ..."""
    return [record if isinstance(record, tuple) else (b"%08d" % i, record) for i, record in enumerate(records)]


class Value(ctypes.Structure):
    """LMDB's MDB_val."""

    _fields_ = (("size", ctypes.c_size_t), ("data", ctypes.c_void_p))

    @classmethod
    def of(cls, content):
        """Points into `content`, which must live longer."""
        return cls(len(content), ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p))

    def __bytes__(self):
        return ctypes.string_at(self.data, self.size)


class Stat(ctypes.Structure):
    """LMDB's MDB_stat."""

    _fields_ = tuple((name, ctypes.c_uint) for name in ("page_size", "depth")) + tuple(
        (name, ctypes.c_size_t) for name in ("branch_pages", "leaf_pages", "overflow_pages", "entries")
    )


@functools.cache
def liblmdb():
    """LMDB's C API: its functions raise OSError with LMDB's own words for the code that they return."""
    library = ctypes.CDLL(ctypes.util.find_library("lmdb") or "liblmdb.so.0")
    library.mdb_strerror.restype = ctypes.c_char_p

    def checked(code, function, arguments):
        if code not in (0, NOTFOUND):
            raise OSError(f"{function.__name__}: {library.mdb_strerror(code).decode()}")
        return code

    pointer, number, value = ctypes.c_void_p, ctypes.c_uint, ctypes.POINTER(Value)
    for name, result, arguments in (
        ("env_create", checked, (ctypes.POINTER(pointer),)),
        ("env_set_mapsize", checked, (pointer, ctypes.c_size_t)),
        ("env_open", checked, (pointer, ctypes.c_char_p, number, number)),
        ("env_stat", checked, (pointer, ctypes.POINTER(Stat))),
        ("env_close", None, (pointer,)),
        ("txn_begin", checked, (pointer, pointer, number, ctypes.POINTER(pointer))),
        ("txn_commit", checked, (pointer,)),
        ("txn_abort", None, (pointer,)),
        ("dbi_open", checked, (pointer, ctypes.c_char_p, number, ctypes.POINTER(number))),
        ("drop", checked, (pointer, number, ctypes.c_int)),
        ("put", checked, (pointer, number, value, value, number)),
        ("cursor_open", checked, (pointer, number, ctypes.POINTER(pointer))),
        ("cursor_get", checked, (pointer, value, value, ctypes.c_int)),
        ("cursor_close", None, (pointer,)),
    ):
        function = getattr(library, "mdb_" + name)
        function.argtypes, function.restype = arguments, ctypes.c_int if result else None
        if result:
            function.errcheck = result
    return library


NOTFOUND = -30798  # MDB_NOTFOUND
NEXT = 8  # MDB_NEXT
READ_ONLY = 0x20000  # MDB_RDONLY


class LMDB:
    """An LMDB database that is open, or in a `with`. Each call is a transaction of its own."""

    def __init__(self, path, map_size=2**24, readonly=False):
        self.flags = READ_ONLY if readonly else 0
        if not readonly:
            os.makedirs(path, exist_ok=True)
        self.environment = ctypes.c_void_p()
        liblmdb().mdb_env_create(self.environment)
        try:
            liblmdb().mdb_env_set_mapsize(self.environment, 0 if readonly else map_size)
            liblmdb().mdb_env_open(self.environment, os.fsencode(path), self.flags, 0o644)
        except OSError:
            self.close()
            raise

    def close(self):
        liblmdb().mdb_env_close(self.environment)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @contextlib.contextmanager
    def transaction(self):
        """(transaction, the handle of its only database)."""
        transaction, database = ctypes.c_void_p(), ctypes.c_uint()
        liblmdb().mdb_txn_begin(self.environment, None, self.flags, transaction)
        try:
            liblmdb().mdb_dbi_open(transaction, None, 0, database)
            yield transaction, database
        except BaseException:
            liblmdb().mdb_txn_abort(transaction)
            raise
        liblmdb().mdb_txn_commit(transaction)

    def put(self, records):
        """Writes (key, value) pairs, over what the keys had before."""
        with self.transaction() as (transaction, database):
            for key, value in records:
                liblmdb().mdb_put(transaction, database, Value.of(key), Value.of(value), 0)

    def items(self):
        """A list of all (key, value) pairs, in LMDB's order."""
        found, cursor, key, value = [], ctypes.c_void_p(), Value(), Value()
        with self.transaction() as (transaction, database):
            liblmdb().mdb_cursor_open(transaction, database, cursor)
            while liblmdb().mdb_cursor_get(cursor, key, value, NEXT) != NOTFOUND:
                found.append((bytes(key), bytes(value)))
            liblmdb().mdb_cursor_close(cursor)
        return found

    def clear(self):
        """Removes all records."""
        with self.transaction() as (transaction, database):
            liblmdb().mdb_drop(transaction, database, 0)

    def stat(self):
        found = Stat()
        liblmdb().mdb_env_stat(self.environment, found)
        return found


def write_lmdb(path, records):
    """Writes (key, value) pairs, or values to which keys "00000000", ... are given, to a new database.

    Returns its path as str.
    """
    records = pairs(records)
    with LMDB(path, map_size=2 * sum(len(value) + 4096 for _, value in records) + 2**20) as database:
        database.put(records)
    return str(path)


@functools.cache
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
    """The same for LevelDB, with Caffe's options.

    The records lie in its log, as Caffe leaves a small database, or in tables. Those with the keys `delete` are deleted
    again.
    """
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
