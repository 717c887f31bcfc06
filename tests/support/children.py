"""Runs scripts in processes of their own, and looks at processes and threads through /proc."""

import functools
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import fastbatch

HANG = 120  # seconds after which a child is taken for hung; on a busy machine some take half a minute
# Flags of a child that forks: since 3.12 Python warns of forks of processes that have threads.
FORKS = ["-W", "ignore::DeprecationWarning"]


def environment(**more):
    """The environment in which a child finds the same fastbatch, the tests and the modules beside this one."""
    support = Path(__file__).resolve().parent
    paths = [str(Path(fastbatch.__file__).resolve().parents[1]), str(support), str(support.parent)]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def start_child(script, *flags, **more):
    """A child that runs the script, with pipes for its input and output."""
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *flags, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
    )


def finish_child(child, rc=0, stderr=""):
    """Waits for a child and returns what it printed; its exit code and its standard error must be these."""
    try:
        out, err = child.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)  # faulthandler prints its stack
        raise AssertionError(f"the child hangs: {child.communicate(timeout=HANG)}") from None
    finally:
        child.kill()
    if (child.returncode, err) != (rc, stderr):
        raise AssertionError(
            f"the child's exit code is {child.returncode}, not {rc}; it printed {out!r}, and on stderr:\n{err}"
        )
    return out


def run_child(script, *flags, rc=0, stderr="", **more):
    """What a script prints, run in a process of its own."""
    return finish_child(start_child(script, *flags, **more), rc, stderr)


PF_EXITING = 4  # Linux's flag of an exiting thread, which may have been joined already


def native_threads():
    """The ids of this process's threads that are fastbatch's."""
    return set(names_of_native_threads())


def names_of_native_threads():
    """{id: name} of them."""
    threads = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/stat") as file:
                start, _, rest = file.read().rpartition(") ")
        except OSError:  # it has just ended
            continue
        name = start.partition(" (")[2]
        if name.startswith("fastbatch") and not int(rest.split()[6]) & PF_EXITING:
            threads[thread] = name
    return threads


def running(thread):
    """The code of the Python function that a thread is in."""
    frame = sys._current_frames().get(thread.ident)
    return frame and frame.f_code


def limit_memory(room):
    """Leaves this process so many bytes of address space beyond those it has. Returns a function that lifts the limit.

    The limit is relative, because a sanitizer alone occupies terabytes.
    """
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    former = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + room, former[1]))
    return functools.partial(resource.setrlimit, resource.RLIMIT_AS, former)


def anonymous_memory():
    """Bytes of this process's memory that belong to no file."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")
