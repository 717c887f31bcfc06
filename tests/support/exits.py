"""Programs that end, or go on, while samples are being loaded: what test_exits.py runs.

A `Work` is a loader at work. `STATES` says what it is in the middle of, `ENDS` how the program ends meanwhile, and
`SURVIVED` what happens without an end of the program.
"""

import contextlib
import gc
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from multiprocessing import forkserver, resource_tracker

import datasets
from children import names_of_native_threads
from databases import datum, write_lmdb
from fastbatch import Closed, DataTimeout, ForkedError, LMDBSource, Loader, PythonSource, SampleError
from planned import wait_until

COUNT = 100
BATCH = 5
SLOTS = 3
BAD = 7  # the sample that fails, in batch 1

# What the loader is in the middle of: (which samples, batches that were taken, how many of them are still held).
STATES = {
    "no batch taken": ("good", 0, 0),
    "mid-batch": ("slow", 0, 0),
    "mid-epoch": ("good", 2, 1),
    "every slot leased": ("good", SLOTS, SLOTS),
    "an error pending": ("bad", 1, 1),
}


def database(samples, folder):
    """An LMDB of such samples. A slow one is followed by megabytes of unknown fields."""
    if samples == "slow":
        records = [datum(datasets.image(0), 0) + b"\xf8\x07\x01" * (2**20 // 3)]
    else:
        records = [datum(datasets.image(i), i) for i in range(COUNT)]
    if samples == "bad":
        records[BAD] = b"no Datum"
    return LMDBSource(write_lmdb(os.path.join(folder, samples), records))


def slow(index):
    """A sample that takes some milliseconds, with the label 0."""
    return datasets.slowly(index), 0


def python(samples, **options):
    """A data set of such samples."""
    if samples == "slow":
        return PythonSource(slow, count=COUNT, workers=2, **options)
    return PythonSource(datasets.Images(COUNT, **({"raises": BAD} if samples == "bad" else {})), workers=2, **options)


# Where samples come from.
KINDS = {
    "native": database,
    "forkserver": lambda samples, folder: python(samples, start_method="forkserver"),
    "fork": lambda samples, folder: python(samples, start_method="fork"),
    "spawn": lambda samples, folder: python(samples, start_method="spawn"),
    "thread": lambda samples, folder: python(samples, kind="thread"),
}
PROCESSES = {"forkserver", "fork", "spawn"}


class Work:
    """A loader at work, and what the program holds of it."""

    def __init__(self, kind, state, folder):
        self.samples, taken, held = STATES[state]
        slow = self.samples == "slow"
        self.loader = Loader(
            KINDS[kind](self.samples, folder),
            batch_size=20000 if slow else BATCH,  # of slow ones, none is ever ready
            prefetch=SLOTS - 1,
            last_batch="wrap",
            timeout=0.1 if slow else 60,
            threads=2,
        )
        self.batches = iter(self.loader)
        self.held = [next(self.batches) for _ in range(taken)][taken - held :]
        self.next = taken  # the number of the next batch
        if slow:
            wait_until(lambda: self.loader.stats().samples)
        else:
            wait_until(lambda: self.loader.stats().ready == SLOTS - held)

    @property
    def processes(self):
        """The ids of the worker processes."""
        return self.loader._ring.processes

    def go_on(self):
        """Takes what comes next, and looks at it."""
        self.held.clear()
        if self.samples == "slow":
            before = self.loader.stats().samples
            while self.loader.stats().samples == before:
                with contextlib.suppress(DataTimeout):
                    next(self.batches)
            return
        for _ in range(2 * SLOTS):
            labels = [i % COUNT for i in range(self.next * BATCH, (self.next + 1) * BATCH)]
            self.next += 1
            try:
                batch = next(self.batches, None)
                if batch is None:
                    self.batches = iter(self.loader)
                    batch = next(self.batches)
                assert batch.label.tolist() == labels
                del batch
            except SampleError as error:
                assert self.samples == "bad" and error.index == BAD and BAD in labels, error

    def fails_in_a_child(self):
        """What a forked child sees of it."""
        for use in self.loader.stats, lambda: next(self.batches):
            try:
                use()
            except ForkedError:
                continue
            raise AssertionError("a child process used its parent's loader")

    def close(self):
        self.loader.close()


# ---- How a program ends. Each is a function of begin(), which makes a Work.


def end_with_a_global(begin):
    sys.kept = begin()


def end_in_a_cycle(begin):
    work = begin()
    work.me = work
    gc.disable()


def end_beside_a_thread(begin):
    """The thread takes batches, until the loader is closed."""

    def loop():
        work = begin()
        with contextlib.suppress(Closed):
            while True:
                work.go_on()
                begun.set()

    begun = threading.Event()
    threading.Thread(target=loop, daemon=True).start()
    begun.wait()


def exception(begin):
    work = begin()  # noqa: F841 (the traceback has it)
    raise LookupError(3)


def exit_(begin):
    work = begin()  # noqa: F841
    sys.exit(3)


def exit_at_once(begin):
    work = begin()  # noqa: F841
    os._exit(4)


def end_by(number):
    """The function that ends it by a signal to the process and its children, as terminals and batch systems do."""

    def end(begin):
        work = begin()
        wait_until(lambda: all(map(ignores_interrupts, work.processes)))  # one of them may be just starting
        os.killpg(0, number)
        select.poll().poll(60_000)  # the thread sanitizer holds signals back while time.sleep() lasts

    return end


def kill(begin):
    work = begin()  # noqa: F841
    os.kill(os.getpid(), signal.SIGKILL)


def kill_beside_a_fork(begin):
    """A process that was forked lives on, with copies of all files, until its input ends."""
    work = begin()  # noqa: F841
    parent = os.getpid()
    if os.fork() == 0:
        os.setsid()
        os.read(0, 1)
        os._exit(0)
    os.kill(parent, signal.SIGKILL)


def become_another_program(begin):
    """The process keeps its number, by which workers know that their loader is there."""
    work = begin()  # noqa: F841
    os.execvp("cat", ["cat"])


TRACEBACK = r"Traceback \(most recent call last\):\n(  .*\n)*"
ENDS = {  # with the exit code, and what is on stderr
    "global": (end_with_a_global, 0, ""),
    "cycle": (end_in_a_cycle, 0, ""),
    "beside a thread": (end_beside_a_thread, 0, ""),
    "exception": (exception, 1, TRACEBACK + "LookupError: 3\n"),
    "sys.exit": (exit_, 3, ""),
    "os._exit": (exit_at_once, 4, ""),
    "SIGTERM": (end_by(signal.SIGTERM), -signal.SIGTERM, ""),
    "SIGINT": (end_by(signal.SIGINT), -signal.SIGINT, TRACEBACK + "KeyboardInterrupt\n"),
    "SIGKILL": (kill, -signal.SIGKILL, ""),
    "SIGKILL beside a fork": (kill_beside_a_fork, -signal.SIGKILL, ""),
    "exec": (become_another_program, 0, ""),
}


# ---- What a program survives: functions of begin(), after which nothing is left of the Work.


def close(begin):
    begin().close()


def collect(begin):
    work = begin()
    work.me = work
    del work
    gc.collect()


def thread_ends(begin):
    """With its thread, the loader is gone, which nobody has closed."""

    def run():
        work = begin()  # noqa: F841
        sys.exit(3)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def kill_worker(begin):
    """Another one takes its place. While every batch is ready, none of the workers has a sample, and none is lost."""
    work = begin()
    os.kill(work.processes[0], signal.SIGKILL)
    work.go_on()
    work.close()


def fork(begin):
    """The child cannot use the loader, and ends as programs do. The parent goes on."""
    work = begin()
    child = os.fork()
    if child == 0:
        work.fails_in_a_child()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    work.go_on()
    work.close()


def fork_and_exec(begin):
    """The other program gets none of the loader's files."""
    work = begin()
    listed = subprocess.run(["sh", "-c", "ls /proc/$$/fd; :"], close_fds=False, stdout=subprocess.PIPE, check=True)
    assert listed.stdout.split() == [b"0", b"1", b"2"], listed
    work.go_on()
    work.close()


SURVIVED = {
    "close()": close,
    "garbage collection": collect,
    "end of a thread": thread_ends,
    "SIGKILL of a worker": kill_worker,
    "fork": fork,
    "fork and exec": fork_and_exec,
}


# ---- Running them


def run(begin, name, survived=SURVIVED):
    """Runs one of these. The test sees that nothing is left of its session."""
    os.setsid()

    def announced():
        work = begin()
        print("ready", *work.processes, flush=True)
        return work

    if name in ENDS:
        ENDS[name][0](announced)
        return
    forkserver.ensure_running()
    resource_tracker.ensure_running()
    before = left()
    survived[name](announced)
    try:
        wait_until(lambda: left() == before)
    except AssertionError:
        raise AssertionError(f"before: {before}\nafter: {left()}") from None
    print("nothing is left", flush=True)


def left():
    """What could be left of a Work in the process: threads, processes, files, shared memory."""
    multiprocessing.active_children()  # lets go of what it keeps of processes that have ended, as its next start does
    with open("/proc/self/maps") as maps:
        shared = [line for line in maps if "memfd:" in line or "/dev/shm" in line]
    return (
        sorted(names_of_native_threads().values()),
        threading.active_count(),
        members(os.getpid()),
        sorted(os.listdir("/proc/self/fd")),
        shared,
    )


def members(session):
    """The ids of a session's processes that are still running."""
    found = set()
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/stat") as file:
                state, _, _, its = file.read().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(its) == session and state not in "ZX":
            found.add(int(process))
    return found


def ignores_interrupts(process):
    """Whether a process has got so far that it ignores Ctrl-C."""
    with open(f"/proc/{process}/status") as file:
        ignored = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn:"))
    return bool(ignored >> (signal.SIGINT - 1) & 1)
