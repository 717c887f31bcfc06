"""Which files this process has open, and what it may do with files as an ordinary user."""

import contextlib
import os


def descriptors_below(path):
    """The names of the files in the folder `path` that this process has open, sorted."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            pass  # the listing's own
    return sorted(os.path.basename(name) for name in found if name.startswith(str(path)))


@contextlib.contextmanager
def as_nobody():
    """Root may write everywhere; an ordinary user may not."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
