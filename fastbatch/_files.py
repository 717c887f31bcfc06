"""Files that users name: read as a whole, and quoted in messages."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

_QUOTED = 80  # characters of it that a message shows


def read_file(path: Any, most: int = -1) -> bytes:
    """The content of a regular file, or its first `most` bytes.

    Raises OSError for everything else. A named pipe would be waited for until somebody writes into it, and a device may
    have no end.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # somebody has a lease on the file, and is giving it back now
        descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a named pipe, a socket or a device, not a file", path)
        return file.read(most)


def quoted(value: Any) -> str:
    """`value` as a message quotes it: its repr, cut off where it is long, for a file may hold anything.

    Bytes are shown as a path is.
    """
    if isinstance(value, bytes):
        value = os.fsdecode(value[: _QUOTED + 1])
    if isinstance(value, str):
        return repr(value) if len(value) <= _QUOTED else f"{value[:_QUOTED]!r}..."
    text = repr(value)
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."
