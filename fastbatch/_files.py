"""Files that users name: reads them as a whole, and quotes their content in messages."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

_QUOTED = 80  # characters of a value that a message shows


def read_file(path: Any, most: int = -1) -> bytes:
    """The content of a regular file, or its first `most` bytes.

    Raises OSError for any other kind of file. Opening a named pipe waits for a writer, and a device may have no end.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except BlockingIOError:  # another process holds a lease on the file and is releasing it
        descriptor = os.open(path, flags)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a named pipe, a socket or a device, not a file", path)
        return file.read(most)


def quoted(value: Any) -> str:
    """The repr of `value` for a message, truncated if long, since a file may contain anything.

    Bytes are shown like a path.
    """
    if isinstance(value, bytes):
        value = os.fsdecode(value[: _QUOTED + 1])
    if isinstance(value, str):
        return repr(value) if len(value) <= _QUOTED else f"{value[:_QUOTED]!r}..."
    text = repr(value)
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."
