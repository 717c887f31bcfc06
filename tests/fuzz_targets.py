"""What the parsers promise for any bytes: the targets of tools/fuzz (guided by coverage) and of test_fuzz.py (not).

python tests/fuzz_targets.py TARGET FOLDER LIBFUZZER-OPTIONS [INPUT]

runs one target with atheris: on one file, or until it finds something, at most -runs=N times. FOLDER receives
everything else: the target's seeds, its dictionary, and the findings.
"""

import ctypes
import os
import re
import struct
import sys
from typing import Callable, NamedTuple


class Target(NamedTuple):
    """load() imports a parser and returns check(content).

    check(content) raises an exception if these bytes break a promise.
    """

    load: Callable[[], Callable[[bytes], None]]
    seeds: list[bytes]
    words: list[bytes]  # that a fuzzer could find by chance, but not soon
    size: int = 512  # the longest input
    needs_caffe: bool = False  # in the Caffe root there is no atheris: tools/fuzz leaves it out


# ---- The list of images


def image_list():
    from fastbatch.errors import SourceError
    from fastbatch.sources._image_list import parse_list

    atoi = ctypes.CDLL(None).atoi

    def check(content):
        """A list is accepted only if every line is valid.

        It is then read as Caffe reads it: find_last_of(' '), and C's atoi().
        """
        lines = content.split(b"\n")
        if lines[-1] == b"":
            del lines[-1]
        labels = [re.fullmatch(rb"(?s).+ [\t\v\f\r]*([+-]?[0-9]+)[\t\v\f\r]*", line) for line in lines]
        right = [label and len(label[1]) <= 64 and -(2**31) <= int(label[1]) < 2**31 for label in labels]
        marked = b"\0" in content or content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:3] == b"\xef\xbb\xbf"
        try:
            found = parse_list(content, "list")
        except SourceError as error:
            assert marked or not lines or not all(right), f"refused: {error}"
            number = re.search(r"line (\d+) ", str(error))
            assert number is None or right.index(next(filter(lambda each: not each, right))) == int(number[1]) - 1, (
                error
            )
        else:
            assert lines and all(right) and not marked, found
            assert found == [(line[: line.rfind(b" ")], atoi(line[line.rfind(b" ") + 1 :])) for line in lines]

    return check


def image_labels():
    import numpy as np

    from fastbatch.errors import SourceError
    from fastbatch.sources._list_files import parse_labels

    atoll, strtod = ctypes.CDLL(None).atoll, ctypes.CDLL(None).strtod
    atoll.restype, strtod.restype = ctypes.c_longlong, ctypes.c_double

    def check(content):
        """What is accepted has the words of its lines, and C's numbers. What is refused names a line that exists."""
        for count, dtype in (0, "i8"), (1, "f8"), (2, "i4"), (3, "f8"):
            try:
                names, labels = parse_labels(content, "list", count, np.dtype(dtype))
            except SourceError as error:
                number = re.search(r"line (\d+) ", str(error))
                assert number is None or 1 <= int(number[1]) <= content.count(b"\n") + 1, error
                continue
            words = [line.split() for line in content.split(b"\n")[: len(names)]]
            assert names and [each[: len(each) - count] for each in words] == [name.split() for name in names]
            read = atoll if dtype == "i4" else lambda word: strtod(word, None)
            numbers = [read(word) for each in words for word in each[len(each) - count :]]
            np.testing.assert_array_equal([] if labels is None else labels.ravel(), numbers)

    return check


# ---- The list of HDF5 files


def hdf5_list():
    from fastbatch.errors import SourceError
    from fastbatch.sources._hdf5 import parse_list

    def check(content):
        """As C++ reads words from a stream: isspace() of the C locale is between them."""
        words = [word for word in re.split(rb"[ \t\n\v\f\r]", content) if word]
        marked = b"\0" in content or content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:3] == b"\xef\xbb\xbf"
        try:
            found = parse_list(content, "list")
        except SourceError as error:
            assert marked or not words, f"refused: {error}"
        else:
            assert found == words and words and not marked

    return check


# ---- The list of windows


def window_list():
    from fastbatch.errors import SourceError
    from fastbatch.sources._windows import parse_windows

    strtof = ctypes.CDLL(None).strtof
    strtof.restype = ctypes.c_float
    foreground_from, background_below = ctypes.c_float(0.6).value, ctypes.c_float(0.3).value

    class Wrong(Exception):
        pass

    def right(is_right):
        if not is_right:
            raise Wrong

    def expected(content):
        """What the list means, word by word."""
        right(b"\0" not in content and content[:2] not in (b"\xff\xfe", b"\xfe\xff") and content[:3] != b"\xef\xbb\xbf")
        words = re.finditer(rb"[^ \t\n\v\f\r]+", content)
        images, foreground, background = [], [], []

        def whole():
            word = next(words, None)
            right(word and re.fullmatch(rb"[+-]?[0-9]+", word[0]) and -(2**31) <= int(word[0]) < 2**31)
            return int(word[0])

        for word in words:
            right(word[0] == b"#" and whole() == len(images))
            path = next(words, None)
            right(path and whole() == 3)
            height, width = whole(), whole()
            right(0 < height <= 2**20 and 0 < width <= 2**20 and height * width <= 2**30)
            count = whole()
            right(count >= 0)
            for _ in range(count):
                label = whole()
                overlap = next(words, None)
                right(overlap and re.fullmatch(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", overlap[0]))
                overlap = strtof(overlap[0], None)
                right(abs(overlap) != float("inf"))
                x1, y1, x2, y2 = whole(), whole(), whole(), whole()
                right(0 <= x1 <= x2 < width and 0 <= y1 <= y2 < height)
                if overlap >= foreground_from:
                    right(0 < label <= 2**24)
                    foreground.append((len(images), label, x1, y1, x2, y2))
                elif overlap < background_below:
                    background.append((len(images), 0, x1, y1, x2, y2))
            images.append((b"root/" + path[0], height, width, count))
        right(images)
        return images, foreground, background

    def check(content):
        """What is accepted means what stands there; what is refused is wrong."""
        try:
            means = expected(content)
        except Wrong:
            means = None
        try:
            images, *windows = parse_windows(content, "list", b"root/", 0.6, 0.3)
        except SourceError as error:
            assert means is None, f"refused: {error}"
        else:
            assert means is not None, images
            # Without the second column, the line, which is for messages.
            assert (images, *([(row[0], *row[2:]) for row in each.tolist()] for each in windows)) == means

    return check


# ---- The mean file


def _message_class(name, *messages):
    """The class of Google's protobuf for a message, of these: (name, [(number, name, kind, options)]).

    ImportError if it is not installed.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    proto = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="fuzz.proto", package="fuzz")
    for message, fields in messages:
        made = file.message_type.add(name=message)
        for number, field, kind, options in fields:
            known = getattr(proto, f"TYPE_{kind}", None)
            added = made.field.add(
                name=field,
                number=number,
                type=known or proto.TYPE_MESSAGE,
                type_name=None if known else f".fuzz.{kind}",
            )
            added.label = proto.LABEL_REPEATED if "repeated" in options else proto.LABEL_OPTIONAL
            if "packed" in options:
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName(f"fuzz.{name}")
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


BLOB_SHAPE = "BlobShape", [(1, "dim", "INT64", "repeated packed")]
BLOB_PROTO = (
    "BlobProto",
    [
        (1, "num", "INT32", ""),
        (2, "channels", "INT32", ""),
        (3, "height", "INT32", ""),
        (4, "width", "INT32", ""),
        (7, "shape", "BlobShape", ""),
        (5, "data", "FLOAT", "repeated packed"),
        (6, "diff", "FLOAT", "repeated packed"),
        (8, "double_data", "DOUBLE", "repeated packed"),
        (9, "double_diff", "DOUBLE", "repeated packed"),
    ],
)


def binaryproto():
    import numpy as np

    from fastbatch.formats.binaryproto import _mean_of_blob

    np.seterr(over="ignore", invalid="ignore")  # a double that is no float
    try:
        from google.protobuf.message import DecodeError
        from google.protobuf.unknown_fields import UnknownFieldSet

        blob_proto = _message_class("BlobProto", BLOB_SHAPE, BLOB_PROTO)
    except ImportError:
        blob_proto = None

    def has_field_zero(fields):
        """Whether there is a field of number 0 in a group. Protobuf for C++ refuses it, that for Python does not."""
        return any(
            field.field_number == 0 or (isinstance(field.data, UnknownFieldSet) and has_field_zero(field.data))
            for field in fields
        )

    def expected(content):
        """What Caffe reads from a BlobProto: a shape and float32 values, or None if it is not a mean image."""
        try:
            blob = blob_proto.FromString(content)
        except (
            DecodeError,
            SystemError,
        ):  # SystemError: a warning of old versions that part of it was not read, if it is an error
            return None
        if has_field_zero(UnknownFieldSet(blob)) or has_field_zero(UnknownFieldSet(blob.shape)):
            return None
        legacy = [blob.num, blob.channels, blob.height, blob.width]
        shape = legacy if any(map(blob.HasField, ("num", "channels", "height", "width"))) else list(blob.shape.dim)
        values = blob.double_data if len(blob.double_data) else blob.data
        if len(shape) != 4 or shape[0] != 1 or min(shape) < 1 or shape[1] * shape[2] * shape[3] != len(values):
            return None
        return shape[1:], np.array(values, np.float64).astype(np.float32)

    def check(content):
        """The parser may raise only ValueError.

        If protobuf is installed, the bytes are read as protobuf reads them, or refused with a reason.
        """
        try:
            found = _mean_of_blob(memoryview(content))
        except ValueError as error:
            assert str(error)
            found = None
        if blob_proto is None:
            return
        reference = expected(content)
        if reference is None or found is None:
            assert found is None and reference is None, (found, reference)
        else:
            assert list(found.shape) == reference[0] and found.dtype == np.float32
            np.testing.assert_array_equal(found.ravel(), reference[1])

    return check


def _varint(value):
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _block(field, content):
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _blobs():
    """Mean images in every way to write them."""
    legacy = b"".join(_varint(field << 3) + _varint(size) for field, size in enumerate((1, 3, 2, 2), start=1))
    packed = _block(7, _block(1, bytes([1, 3, 2, 2])))
    unpacked = _block(7, b"".join(b"\x08" + bytes([size]) for size in (1, 3, 2, 2)))
    floats, doubles = struct.pack("<12f", *range(12)), struct.pack("<12d", *range(12))
    one_by_one = b"".join(b"\x2d" + floats[i : i + 4] for i in range(0, 48, 4))
    values = [
        _block(5, floats),
        one_by_one,
        _block(8, doubles),
        _block(6, floats) + _block(9, doubles) + _block(5, floats),
    ]
    return [shape + value for shape in (legacy, packed, unpacked) for value in values] + [
        legacy,
        b"\x0b\x0c" + legacy + _block(5, floats),
    ]


# ---- Where things stand in a prototxt

NODE = (
    "Node",
    [
        (1, "a", "Node", "repeated"),
        (2, "b", "Node", "repeated"),
        (3, "s", "STRING", "repeated"),
        (4, "n", "INT32", "repeated"),
        (5, "f", "FLOAT", "repeated"),
    ],
)


# Tokens that protobuf's parser for Python reads as its C++ parser does, which the scanner follows: no +1, no 010, no
# whitespace but ASCII's. A comment must reach the end of its line: one that might end earlier has the search try every
# place for that.
COMMON = re.compile(
    r"""(?: [ \t\n\r\v\f] | \#[^\n]*(?:\n|\Z) | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | [][{}<>:;,]
    | -?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?(?![\w.+-]) | [A-Za-z_][A-Za-z0-9_]*(?![\w.+-]) )*""",
    re.VERBOSE,
)


def prototxt():
    import fastbatch

    # By its path: importing the package around it needs Caffe.
    sys.path.append(os.path.join(os.path.dirname(fastbatch.__file__), "caffe", "convert"))
    try:
        import text as prototxt
    finally:
        sys.path.pop()
    try:
        from google.protobuf import text_format

        node = _message_class("Node", NODE)
    except ImportError:
        node = None

    def tree(message):
        found = []
        for field, values in message.ListFields():
            found += [(field.name, tree(value) if hasattr(value, "ListFields") else None) for value in values]
        return sorted(found, key=repr)

    def check(content):
        text = content.decode("latin-1")
        found = _check_prototxt(prototxt, text)
        if node is None:
            return
        if not COMMON.fullmatch(text):
            return
        message = node()
        try:
            text_format.Parse(text, message)
        except (text_format.ParseError, UnicodeError, RecursionError):  # of names that it does not know, too
            return
        assert found is not None and _names(found, sorted_by=repr) == tree(message)

    return check


def _names(fields, sorted_by=None):
    """The names in a tree of fields: [(name, the same of what it holds, or None)]."""
    names = [(field.name, None if field.fields is None else _names(field.fields, sorted_by)) for field in fields]
    return sorted(names, key=sorted_by) if sorted_by else names


def _check_prototxt(prototxt, text):
    """The scanner may raise only ValueError.

    It finds the fields that are in the text, and removing one field leaves the others unchanged.
    """
    try:
        found = prototxt.fields(text)
    except ValueError as error:
        assert str(error)
        return None

    def look(fields, start, end):
        for field in fields:
            assert start <= field.start < field.value_start < field.value_end <= field.end <= end, field
            assert text[field.start :].startswith(field.name), field
            if field.fields is not None:
                assert text[field.value_start] + text[field.value_end - 1] in ("{}", "<>"), field
                look(field.fields, field.value_start + 1, field.value_end - 1)
        for before, after in zip(fields, fields[1:]):
            assert before.end <= after.start or before[1:3] == after[1:3], (before, after)

    look(found, 0, len(text))
    assert prototxt.replaced(text, []) == text
    if found:
        start, end = found[len(text) % len(found)][1:3]  # any one of them
        taken = [field for field in found if field.start == start]
        assert _names(prototxt.fields(text[start:end])) == _names(taken)
        rest = prototxt.replaced(text, prototxt.replacing(text, taken))
        assert _names(prototxt.fields(rest)) == _names(field for field in found if field.start != start)
    return found


PROTOTXT = b"""name: "net" # a comment { with 'quotes
layer { name: 'data' type: "Data" top: "data", top: "label"; include < phase: TRAIN >
  transform_param { mean_value: [104, 117.5, -1e-3] mirror: true }
  data_param: { source: "a\\"b" 'c' backend: LMDB }
}
"""


# ---- What a layer is told


def param_str():
    from fastbatch.caffe import LAYERS

    schemas = [layer.schema for layer in LAYERS.values()]

    def check(content):
        """The parser may raise only ValueError, which names the layer and shows a correct example."""
        text = content.decode("latin-1")
        for schema in schemas:
            try:
                schema.parse(text)
            except ValueError as error:
                assert schema.layer in str(error) and schema.example in str(error), error

    return check


LISTS = [
    b"a.jpg 1\n",
    b"a b/c.png -7\r\nd.png +12\r\n",
    b"x 2147483647\ny -2147483648",
    b"\xff\xfea\0",
    b"\xef\xbb\xbfa 1\n",
]
LONG = [b"a.jpg " + digits + b"\n" for digits in (5000 * b"1", 62 * b"0" + b"7\r", 64 * b"0" + b"7")]

TARGETS = {
    "image_list": Target(
        image_list, LISTS + LONG, [b" ", b"\r\n", b"\t", b"2147483648", b"-2147483649", b"\xef\xbb\xbf"]
    ),
    "image_labels": Target(
        image_labels,
        [*LISTS, b"a.jpg 0 1\nb c.png\t-1  +7\r\n", b"a 1.5 .5e1 nan\nb 1. -inf 2", b"a\nb 1\n"],
        [b" ", b"\r\n", b"\t", b"2147483648", b"1e400", b"inf", b"nan", b".", b"0x1", b"1_0"],
    ),
    "hdf5_list": Target(
        hdf5_list, [b"a.h5\nb/c.h5\n", b" a\tb\vc\fd\re ", *LISTS[3:]], [b" ", b"\r\n", b"\v", b"\f", b"\x85", b"\xa0"]
    ),
    "window_list": Target(
        window_list,
        [
            b"# 0\na.jpg\n3\n30\n40\n2\n1 0.9 0 0 9 9\n0 0.1 5 5 20 20\n# 1\nb.png\n3\n7\n5\n1\n20 1e0 0 0 4 6\n",
            b"# 0 a 3 1 1 0",
            b"# 0 a 3 9 9 1 3 .5 1 2 3 4",
            *LISTS[3:],
        ],
        [b"# ", b" 3 ", b"\r\n", b"2147483648", b"-1", b"1e39", b"0.6", b"0.3", b"nan", b"0x1"],
    ),
    "binaryproto": Target(
        binaryproto,
        _blobs(),
        [b"\x08\x01", b"\x2a", b"\x2d", b"\x3a", b"\x42", b"\x41", b"\x0b", b"\x0c", b"\xff" * 9 + b"\x01"],
    ),
    "prototxt": Target(
        prototxt,
        [
            PROTOTXT,
            b"a: 1",
            b'a: "b" ' + 40 * b"#",
            120 * b"a{",
            b"a { b < a: [ {}, <> ] > s: 'x' \"y\" n: 1 n: [2, 0x3] }; a: { f: 1e-3, } # b",
        ],
        [
            b"{",
            b"}",
            b"<",
            b">",
            b"[",
            b"]",
            b": ",
            b"#",
            b"\n",
            b'"',
            b"'",
            b"\\",
            b",",
            b";",
            b"a {",
            b"s: ",
            b"n: ",
            b"f: ",
        ],
        size=256,
    ),
    "param_str": Target(
        param_str,
        [
            (
                b'data_param { source: "a" batch_size: 2 backend: LMDB } transform_param { mirror: true mean_value: '
                b"[1, 2] } threads: 3"
            ),
            (
                b'{"data_param": {"source": "a", "batch_size": 2}, "transform_param": {"mean_value": [1, 2.5]}, '
                b'"zero_copy": false}'
            ),
            b"{'image_data_param': {'source': 'a', 'shuffle': True}, 'threads': 2, 'transform_param': {}}",
        ],
        [
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b"'",
            b": ",
            b"True",
            b"null",
            b"1e999",
            b"**",
            b"param",
            b"\\u0000",
            b"memory_data_param",
            b"hdf5_data_param",
        ],
        needs_caffe=True,
    ),
}


def write_words(words, path):
    """A dictionary, as libFuzzer reads it."""
    with open(path, "w") as file:
        file.writelines('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)


def main(name, folder, *options):
    import atheris

    target = TARGETS[name]
    with atheris.instrument_imports(include=["fastbatch", "text"]):  # and not what they are compared with
        import fastbatch  # noqa: F401

        check = target.load()
    arguments = [f"-max_len={target.size}", f"-artifact_prefix={folder}/found-", f"-dict={folder}/words", *options]
    write_words(target.words, os.path.join(folder, "words"))
    if options[-1].startswith("-"):  # no file to run it on
        arguments.append(os.path.join(folder, "seeds"))
        os.makedirs(arguments[-1], exist_ok=True)
        for number, seed in enumerate(target.seeds):
            with open(os.path.join(arguments[-1], str(number)), "wb") as file:
                file.write(seed)
    atheris.Setup([sys.argv[0], *arguments], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
