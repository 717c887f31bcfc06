"""The output of a command: a file, or standard output."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile


def write(data: bytes, path: str | None) -> None:
    """Write to a file, or to standard output if there is no path.

    An existing file keeps its owner, mode, attributes and names. It is replaced atomically, so a reader finds either
    the old content or the new. A file with several names is overwritten in place. So is one whose owner this user
    cannot set, or whose folder this user may not write.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if path is None:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    descriptor = _descriptor(path)
    if descriptor is not None:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        return
    path = os.path.realpath(path)  # a symbolic link stays a link
    old = os.stat(path) if os.path.exists(path) else None
    if old is not None and (not stat.S_ISREG(old.st_mode) or old.st_nlink > 1 or not _replace(data, path, old)):
        with open(os.open(path, os.O_WRONLY), "wb") as file:
            file.write(data)
            file.flush()
            if stat.S_ISREG(old.st_mode):
                file.truncate()
    elif old is None:
        _replace(data, path, None)


def _descriptor(path: str) -> int | None:
    """The number of this process's open file that a path such as /dev/stdout names."""
    folders = {os.path.realpath(folder) for folder in ("/dev/fd", "/proc/self/fd")}
    for _ in range(40):  # as many links as Linux follows
        folder, name = os.path.split(path)
        if name.isdigit() and os.path.realpath(folder) in folders:
            return int(name)
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    return None


def _replace(data: bytes, path: str, old: os.stat_result | None) -> bool:
    """Replace or create a file. False, with nothing done, if the new file would have another owner."""
    try:
        handle, part = tempfile.mkstemp(prefix=os.path.basename(path) + ".", dir=os.path.dirname(path))
    except PermissionError:
        if old is None:
            raise
        return False
    try:
        with open(handle, "wb") as file:
            file.write(data)
        if old is None:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o666 & ~mask)
        elif not _make_like(part, path, old):
            return False
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    return True


def _make_like(part: str, path: str, old: os.stat_result) -> bool:
    """Give the file `part` the owner, mode and attributes of `path`. Returns whether that worked."""
    try:
        new = os.stat(part)
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            os.chown(part, old.st_uid, old.st_gid)
        shutil.copystat(path, part)
        os.utime(part)
    except OSError:
        return False
    return True
