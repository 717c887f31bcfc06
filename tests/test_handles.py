"""Database handles: one per database and process, under a lock that no finalizer, signal or fork may disturb."""

import fcntl
import os

import pytest

import fastbatch
from children import FORKS, run_child
from databases import image_leveldb, image_lmdb

KINDS = {"LMDB": image_lmdb, "LevelDB": image_leveldb}
if fastbatch.features()["leveldb"] is None:
    del KINDS["LevelDB"]

# What the programs below begin with.
BEGIN = """
    import gc, logging, os, signal, sys, threading, time
    before_fork = []
    os.register_at_fork(before=lambda: [function() for function in before_fork])
    from fastbatch import Loader, SourceError, {kind}Source as Source
    path, other = {path!r}, {other!r}
    # What children open in LevelDB stays open, with a line in the log.
    logging.getLogger("fastbatch").addFilter(lambda record: "LevelDB" not in record.getMessage())

    def read(path):
        with Source(path) as source, Loader(source, timeout=20) as loader:
            return [batch.label.tolist() for batch in loader]

    def in_child(function):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            function()
            sys.stdout.flush()
            os._exit(0)
        return os.waitpid(child, 0)[1]
"""


@pytest.fixture(params=list(KINDS))
def program(request, tmp_path):
    """A function that runs a program with two databases of a kind, `path` and `other`, and returns what it printed."""
    write = KINDS[request.param]
    (path, _), (other, _) = (write(tmp_path / name, 3, (1, 2, 2)) for name in ("db", "other"))

    def run(text):
        return run_child(BEGIN.format(kind=request.param, path=path, other=other) + text, *FORKS)

    run.path, run.kind = path, request.param
    return run


@pytest.mark.parametrize(
    "what",
    ["read(other)", "read(path)", "assert in_child(lambda: None) == 0", "assert in_child(lambda: read(other)) == 0"],
)
def test_a_finalizer_may_open_a_database_or_fork_at_any_moment(program, what):
    """The garbage collector ran one in a thread that was opening a database, which then waited for its own lock."""
    rounds = 8 if "child" in what else 20
    program(f"""
    class Last:
        def __init__(self):
            self.itself = self

        def __del__(self):
            global finalized
            finalized += 1
            try:
                {what}
            except SourceError as error:  # LevelDB's, in a child of a fork
                assert "forked" in str(error), error

    finalized = 0
    gc.collect()
    gc.set_threshold(1)
    for _ in range({rounds}):
        Last()
        source = Source(path)
        Last()
        source.close()
    gc.set_threshold(0)
    gc.collect()
    assert finalized == 2 * {rounds}
    assert read(path) == [[0], [1], [2]]
    """)


def test_what_else_is_done_before_a_fork_may_open_a_database(program):
    """With the lock held for the fork. Functions that were registered earlier are called later."""
    program("""
    def fork():
        before_fork.clear()
        in_child(lambda: None)

    for function in lambda: read(path), lambda: Source(path).close(), fork:
        before_fork[:] = [function]
        assert in_child(before_fork.clear) == 0
        before_fork.clear()
        assert read(path) == read(other) == [[0], [1], [2]]
    """)


# A thread opens `path` on a disk that does not answer until `answer()`: another process has a lease on the lock file.
STUCK = """
    import subprocess
    holder = subprocess.Popen([sys.executable, "-c", '''if True:
        import fcntl, os, signal, sys
        # os.write(), not print(): a handler's print() must not interrupt another print().
        signal.signal(signal.SIGIO, lambda *_: os.write(1, b"asked\\\\n"))
        file = os.open(sys.argv[1], os.O_RDONLY)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        os.write(1, b"ready\\\\n")
        sys.stdin.read()
    ''', lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"ready\\n"
    got = []
    opening = threading.Thread(target=lambda: got.append(read(path)))
    opening.start()
    assert holder.stdout.readline() == b"asked\\n"

    def answer():
        holder.communicate()
        opening.join(20)
        assert got == [[[0], [1], [2]]]
        assert read(path) == read(other) == [[0], [1], [2]]
"""


@pytest.fixture
def stuck(program):
    """The same with a thread that is stuck."""
    lock = os.path.join(program.path, "lock.mdb" if program.kind == "LMDB" else "LOCK")
    file = os.open(lock, os.O_RDONLY)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        pytest.skip(f"this file system has no leases: {error}")
    finally:
        os.close(file)

    def run(text):
        return program(f"\n    lock = {lock!r}{STUCK}{text}")

    run.kind = program.kind
    return run


def test_a_fork_does_not_wait_for_a_disk_that_does_not_answer(stuck):
    """Nor for the lock, which is another thread's."""
    outcome = stuck("""
    def child():
        try:
            print(read(other))
        except SourceError as error:
            print(error)

    assert in_child(child) == 0
    assert in_child(child) == 0
    answer()
    assert in_child(lambda: print("afterwards", read(other))) == 0
    """)
    first, second, third = outcome.splitlines()
    assert first == second
    assert third == "afterwards [[0], [1], [2]]"
    if stuck.kind == "LMDB":
        assert first == "[[0], [1], [2]]"
    else:  # whose own locks may be held for ever
        assert (
            "the process that this one was forked from was opening or closing a LevelDB database in another thread"
            in first
        )


def test_an_exception_of_a_signals_handler_is_not_lost_in_a_fork(stuck):
    """Python ignores what is raised before a fork: the handler runs afterwards."""
    stuck("""
    class Told(Exception):
        pass

    def tell(*_):
        raise Told

    signal.signal(signal.SIGALRM, tell)
    for number, expected in (signal.SIGALRM, Told), (signal.SIGINT, KeyboardInterrupt):
        children = os.getpid()
        threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        try:
            child = os.fork()
            if child == 0:
                os._exit(0)
            while True:
                time.sleep(20)
        except expected:
            os.wait()
    answer()
    """)


def test_waiting_for_a_thread_that_opens_a_database_can_be_interrupted(stuck):
    stuck("""
    threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    try:
        read(other)
    except KeyboardInterrupt:
        answer()
        print("interrupted")
    """)


def test_no_descriptor_left(program):
    """The error gives the reason, and open databases can be closed although /proc cannot be listed."""
    program("""
    import resource
    source = Source(path)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = []

    def take_all():
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass

    take_all()
    for left in range(20):
        try:
            Source(other).close()
            break
        except SourceError as error:
            assert "Too many open files" in str(error), (left, error)
            assert "damaged" not in str(error), (left, error)
        os.close(taken.pop())
    assert 2 <= left < 10
    take_all()
    source.close()
    while taken:
        os.close(taken.pop())
    assert len(os.listdir("/proc/self/fd")) < before
    assert read(path) == read(other) == [[0], [1], [2]]
    """)
