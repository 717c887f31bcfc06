"""A program of its own: reads a prototxt with the parser that Caffe itself uses, and writes the message in binary.

    python _parser.py LIBRARY MESSAGE PROTOTXT BINARY

LIBRARY is _caffe.so, which brings libcaffe, or contains it. MESSAGE is the name of a message of caffe.proto. Everything
that is called here is a function of Caffe's own, found by its C++ name; where they cannot be found, the exit status is 3.
What is wrong with a text, protobuf says on standard error; then it is 1.

It is a process of its own because protobuf tells what is wrong on standard error only, and because a Caffe that is not
what this takes it for should end this process and not another. Nothing of fastbatch, and no package, is imported.
"""

import ctypes
import sys

WRONG, UNREACHABLE = 1, 3
_SIZE = 1 << 16  # bytes; a message is a C++ object of some dozens of pointers


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
    # In its various versions, protobuf has given the constructor no argument, an arena, and an arena with a flag.
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
