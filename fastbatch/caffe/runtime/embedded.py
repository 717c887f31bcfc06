"""What differs in the `caffe` tool, which embeds Python: it prints no exception, and Ctrl-C would abort it."""

import contextlib
import signal
import sys
import traceback

from fastbatch.caffe.runtime.lifetime import embedded

EMBEDDED = embedded()
"""Whether this Python is embedded in the tool."""

if EMBEDDED and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Python installed its SIGINT handler at startup, and KeyboardInterrupt would abort the tool. Without Python, Ctrl-C
    # ends `caffe test` and `caffe time`. `caffe train` has its own handler, which Python does not replace.
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def print_if_embedded():
    """Prints the current exception if embedded in the tool, which aborts without showing it."""
    if EMBEDDED:
        traceback.print_exc()
        sys.stderr.flush()
