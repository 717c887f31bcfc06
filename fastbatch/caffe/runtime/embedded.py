"""What is different in the `caffe` tool, where this Python is a guest: nobody shows its exceptions, or asks what it waits for."""

import contextlib
import signal
import sys
import traceback

from fastbatch.caffe.runtime.lifetime import embedded

EMBEDDED = embedded()
"""Whether we are in the tool."""

if EMBEDDED and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Python has taken SIGINT when it was started, and its KeyboardInterrupt would abort the tool. Without Python,
    # Ctrl-C ends `caffe test` and `caffe time`; `caffe train` has a handler of its own, which Python leaves alone.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def tell():
    """In the tool, prints the exception in hand before it is lost: the tool aborts without showing it."""
    if EMBEDDED:
        traceback.print_exc()
        sys.stderr.flush()
