"""A C source whose samples wait and fail according to a plan; planned_source.c explains the plan's characters."""

import contextlib
import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

import fastbatch

PATIENCE = 20  # seconds before a test counts a wait as hung

new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


@functools.cache
def library(kind=ctypes.CDLL):
    """planned_source.c, compiled once; child processes find it through the environment. PyDLL calls hold the GIL."""
    path = os.environ.get("FASTBATCH_PLANNED_SOURCE")
    if path is None:
        path = compile_c(Path(__file__).with_name("planned_source.c"))
        os.environ["FASTBATCH_PLANNED_SOURCE"] = path
    loaded = kind(path)
    pointer = ctypes.c_void_p
    for name, result, *arguments in (
        ("new", pointer, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ("change", None, pointer, ctypes.c_long, ctypes.c_char),
        ("waiting", ctypes.c_int, pointer),
        ("reads", ctypes.c_long, pointer),
        ("located", ctypes.c_long, pointer),
        ("done", ctypes.c_long, pointer),
        ("held", ctypes.c_long, pointer),
        ("deleted", ctypes.c_int, pointer),
        ("open_gate", None, pointer),
        ("run_until", ctypes.c_long, pointer, ctypes.c_long),
    ):
        function = getattr(loaded, "planned_" + name)
        function.restype, function.argtypes = result, arguments
    return loaded


_temporary = []  # directories, removed when the interpreter exits


def compile_c(source, *flags):
    """The path of a shared library made of one C file. Skips the test without a compiler."""
    _temporary.append(tempfile.TemporaryDirectory())
    path = os.path.join(_temporary[-1].name, source.stem + ".so")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [
        *compiler,
        "-std=gnu11",
        "-O1",
        "-shared",
        "-fPIC",
        "-pthread",
        "-I",
        fastbatch.get_include(),
        str(source),
        "-o",
        path,
    ]
    try:
        subprocess.run([*command, *flags], check=True)
    except FileNotFoundError:
        import pytest  # here: child processes, which find the library compiled, start faster without it

        pytest.skip(f"needs a C compiler; there is no {compiler[0]}")
    return path


class Header(ctypes.Structure):
    """An fb_source."""

    _fields_ = [
        ("abi", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("field_count", ctypes.c_uint32),
        ("at_once", ctypes.c_uint32),
        ("fields", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("count", ctypes.c_uint64),
        ("self", ctypes.c_void_p),
        ("locate", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("write", ctypes.c_void_p),
        ("done", ctypes.c_void_p),
        ("codec", ctypes.c_void_p),
        ("decoding", ctypes.c_void_p),
    ]


class PlannedSource:
    """Samples that come, wait or fail as `plan` says. Its memory is never freed."""

    capsule_name = b"fastbatch.source"

    def __init__(self, plan, width=3, varying=False, at_once=0):
        self.native = library().planned_new(plan.encode(), width, varying, at_once)
        self.header = Header.from_address(self.native)

    def __len__(self):
        return self.header.count

    def __fastbatch_source__(self, random_access):
        ours = self.capsule_name == PlannedSource.capsule_name
        return new_capsule(
            self.native, self.capsule_name, ctypes.cast(library().planned_delete, ctypes.c_void_p) if ours else None
        )

    def change(self, index, action):
        """Another plan for one sample."""
        library().planned_change(self.native, index, action.encode())

    def open_gate(self):
        """Opens the gate, for threads that wait now or later."""
        library().planned_open_gate(self.native)

    def run_until_read_holding_the_gil(self, reads):
        """Opens the gate and waits in C, with the GIL, until so many samples were read; at most 10 s. How many were."""
        return library(ctypes.PyDLL).planned_run_until(self.native, reads)

    @property
    def waiting(self):
        """Workers at the gate."""
        return library().planned_waiting(self.native)

    @property
    def reads(self):
        """Samples that were read or have failed in read()."""
        return library().planned_reads(self.native)

    @property
    def located(self):
        """Samples that locate() has found."""
        return library().planned_located(self.native)

    @property
    def done(self):
        """Samples for which done() was called."""
        return library().planned_done(self.native)

    @property
    def held(self):
        """The maximum number of samples between locate() and done() at one time."""
        return library().planned_held(self.native)

    @property
    def deleted(self):
        """The number of capsules deleted."""
        return library().planned_deleted(self.native)


@contextlib.contextmanager
def planned_loader(plan, width=3, varying=False, at_once=0, **options):
    """(source, loader) of a plan. The gate is opened at the end, so that close() need not wait."""
    source = PlannedSource(plan, width, varying, at_once)
    loader = fastbatch.Loader(source, **{"timeout": PATIENCE, **options})
    try:
        yield source, loader
    finally:
        source.open_gate()
        loader.close()


def wait_until(condition, what="what the test waits for"):
    """Waits until other threads make the condition true; fails after a time limit."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {PATIENCE} s"
        time.sleep(0.001)
