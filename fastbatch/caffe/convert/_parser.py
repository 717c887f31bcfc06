"""A separate program that reads a prototxt with Caffe's own parser and writes the message in binary.

    python _parser.py LIBRARY MESSAGE PROTOTXT BINARY

LIBRARY is _caffe.so, which loads or contains libcaffe. MESSAGE is the name of a message of caffe.proto. All functions
called here are Caffe's own, looked up by their C++ names. The exit status is 3 if they cannot be found, and 1 if the
text is invalid; protobuf then reports the reason on standard error.

This is a separate program because protobuf reports errors only on standard error, and because a Caffe with another
binary interface should crash this process only. It imports neither fastbatch nor any package.
"""

import ctypes
import sys

WRONG, UNREACHABLE = 1, 3
_SIZE = 1 << 16  # bytes for the message, a C++ object of a few dozen pointers


def _find(library, *names):
    for name in names:
        if hasattr(library, name):
            return library[name]
    raise SystemExit(UNREACHABLE)


def main(path, kind, source, target):
    """Convert the file `source` to `target`. Returns the exit status."""
    try:
        library = ctypes.CDLL(path)
    except OSError as problem:
        print(problem, file=sys.stderr)
        return UNREACHABLE
    # Depending on protobuf's version, the constructor takes no argument, an arena, or an arena and a flag.
    constructor = f"_ZN5caffe{len(kind)}{kind}C1E"
    arena = "PN6google8protobuf5ArenaE"
    construct = _find(library, *(constructor + arguments for arguments in ("v", arena, arena + "b")))
    read = _find(library, "_ZN5caffe21ReadProtoFromTextFileEPKcPN6google8protobuf7MessageE")
    write = _find(library, "_ZN5caffe22WriteProtoToBinaryFileERKN6google8protobuf7MessageEPKc")
    construct.argtypes, construct.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_bool], None
    read.argtypes, read.restype = [ctypes.c_char_p, ctypes.c_void_p], ctypes.c_bool
    write.argtypes, write.restype = [ctypes.c_void_p, ctypes.c_char_p], None
    message = ctypes.create_string_buffer(_SIZE)
    construct(message, None, False)
    if not read(source.encode(), message):
        return WRONG
    write(message, target.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
