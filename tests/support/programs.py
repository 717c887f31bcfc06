"""Programs for child processes: what they have in common, and a way to write them in parts."""

import textwrap

PRELUDE = """
import atexit, gc, os, signal, sys, threading, time
import numpy as np
import fastbatch
from fastbatch import BlockingQueue, Closed, DataTimeout, ForkedError, LMDBSource, Loader, SampleError
from children import native_threads, running
from planned import PATIENCE, PlannedSource, planned_loader, wait_until

def counting(count=1000, **options):
    return Loader(np.arange(count), **{"timeout": PATIENCE, "threads": 2, **options})
"""


def script(*parts):
    """A program of these parts, each of them indented as it stands in its test."""
    return PRELUDE + "".join(map(textwrap.dedent, parts))
