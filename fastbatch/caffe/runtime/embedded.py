"""What is different in the `caffe` tool, where this Python is a guest: nobody shows its exceptions, or asks what it waits for."""

import sys
import traceback

from fastbatch.caffe.runtime.lifetime import embedded

EMBEDDED = embedded()
"""Whether we are in the tool."""


def tell():
    """In the tool, prints the exception in hand before it is lost: the tool aborts without showing it."""
    if EMBEDDED:
        traceback.print_exc()
        sys.stderr.flush()
