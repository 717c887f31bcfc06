"""A source in C whose fb_source, fields, views and codec tests change as they like. See third_party.c."""

import ctypes
import functools
from pathlib import Path

from planned import compile_c, new_capsule

(UINT8, INT32, INT64, FLOAT32, FLOAT64, INT8, INT16, UINT16, UINT32, UINT64, FLOAT16, BOOL, ENCODED) = range(13)
"""fb_dtype."""

pointer, u32, i32, i64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int32, ctypes.c_int64


class Source(ctypes.Structure):
    """An fb_source."""

    _fields_ = [
        *[(name, u32) for name in ("abi", "size", "field_count", "at_once")],
        *[("fields", pointer), ("name", ctypes.c_char_p), ("count", ctypes.c_uint64), ("self", pointer)],
        *[(name, pointer) for name in ("locate", "read", "write", "done", "codec", "decoding")],
        *[(name, ctypes.c_int) for name in ("shared_batches", "converts")],
        *[("announce", pointer), ("seeded", ctypes.c_int), ("pure_locate", ctypes.c_int), ("decodings", pointer)],
        ("expect", pointer),
        ("indexes", pointer),
    ]


class Codec(ctypes.Structure):
    """An fb_codec."""

    _fields_ = [("abi", u32), ("size", u32)] + [
        (name, pointer)
        for name in (
            *("open", "close", "begin", "finish", "finish_resized", "finish_part"),
            *("index_new", "index_delete", "index_counts", "use_index", "count"),
            *("index_open", "index_save", "expect_output"),
        )
    ]


class Decoding(ctypes.Structure):
    """An fb_decoding."""

    _fields_ = [("color", i32), ("new_height", i32), ("new_width", i32)]


class Field(ctypes.Structure):
    """An fb_field."""

    _fields_ = [("name", ctypes.c_char_p), ("dtype", i32), ("ndim", i32), ("shape", i64 * 8)]


class View(ctypes.Structure):
    """An fb_view."""

    _fields_ = [
        *[("data", pointer), ("dtype", i32), ("ndim", i32), ("shape", i64 * 8), ("strides", i64 * 8)],
        ("scalar", i64),
    ]


class Party(ctypes.Structure):
    """All of it, as in third_party.c."""

    _fields_ = [
        *[("source", Source), ("codec", Codec), ("decoding", Decoding), ("fields", Field * 17), ("views", View * 17)],
        *[("left_alone", u32), ("silent", i32), ("deleted", i32), ("scratch", ctypes.c_size_t)],
        *[(name, ctypes.c_uint64) for name in ("end", "said")],
        *[("count_done", pointer), ("note", pointer), ("noted", pointer), ("together", i64)],
        *[("begun", i64), ("ended", i64), ("twice", i64), ("over", pointer)],
        *[("note_expected", pointer), ("expected_count", i64), ("expected", ctypes.POINTER(ctypes.c_uint64))],
    ]


@functools.cache
def library():
    """third_party.c, compiled once."""
    loaded = ctypes.CDLL(compile_c(Path(__file__).with_name("third_party.c")))
    loaded.party_new.restype, loaded.party_new.argtypes = ctypes.POINTER(Party), [ctypes.c_uint64, ctypes.c_int]
    loaded.party_size.restype = ctypes.c_size_t
    assert loaded.party_size() == ctypes.sizeof(Party), "third_party.py and third_party.c differ"
    return loaded


class ThirdParty:
    """A source of samples with "data" (uint8, 3 x 4 x 5) and "label" (int64), all zero, until `native` is changed.

    Its memory stays.
    """

    def __init__(self, count=4, writes=False):
        self.count = count
        self.native = library().party_new(count, writes).contents
        self.kept = []

    def __len__(self):
        return self.count

    def __fastbatch_source__(self, random_access):
        return new_capsule(
            ctypes.addressof(self.native), b"fastbatch.source", ctypes.cast(library().party_delete, ctypes.c_void_p)
        )

    def keep(self, text):
        """The address of a copy of some bytes that stays."""
        self.kept.append(ctypes.create_string_buffer(text, len(text)))
        return ctypes.addressof(self.kept[-1])

    def use_codec(self):
        """Encoded views are decoded by the codec of third_party.c."""
        self.native.source.codec = ctypes.addressof(self.native) + Party.codec.offset

    def show_encoded(self, field, image):
        """Field number `field` is this image, (height, width) uint8, in the codec's format."""
        height, width = image.shape
        content = bytes([height, width]) + image.tobytes()
        view = self.native.views[field]
        view.data, view.dtype, view.ndim = self.keep(content), ENCODED, 1
        view.shape[0], view.strides[0] = len(content), 1


def decoders_open():
    """Decoders of the codec that are not closed."""
    return library().decoders_open()


def decoders_closed_too_late():
    """Decoders that were closed after the capsule's destructor had run."""
    return library().decoders_closed_too_late()
