"""Loaders and queues when processes end, fork and receive signals, each in its own process."""

import os
import signal
import sysconfig
import textwrap
import threading

import pytest

from children import FORKS, HANG, finish_child, native_threads, run_child, start_child
from databases import image_lmdb
from planned import compile_c, planned_loader, wait_until

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
    """A program of these parts, each of them indented as it stands in this file."""
    return PRELUDE + "".join(map(textwrap.dedent, parts))


# ---- the end of the interpreter

ENDS = {
    "in the middle of an epoch": """
        loader = counting()
        for batch in loader:
            if batch.number == 10:
                break
    """,
    "never iterated over": """
        loader = counting()
    """,
    "with a full ring": """
        loader = counting()
        wait_until(lambda: loader.stats().ready == loader.stats().slots)
    """,
    "with iterator, batch and array alive": """
        loader = counting()
        epoch = iter(loader)
        batch = next(epoch)
        array = next(epoch).data
        view = memoryview(next(epoch))
    """,
    "with only an array alive": """
        array = next(iter(counting())).data
    """,
    "in a cycle": """
        loader = counting()
        loader.me = loader
        loader.epoch_of_mine = iter(loader)
        loader.batch = next(loader.epoch_of_mine)
        gc.disable()
        del loader
    """,
    "hidden in a module that outlives others": """
        sys.kept = builtins_kept = counting()
        import builtins
        builtins.kept = iter(counting())
        batch = next(builtins.kept)
    """,
    "inside a generator": """
        def batches():
            with counting() as loader:
                yield from loader
        generator = batches()
        next(generator)
    """,
    "with many loaders": """
        loaders = [counting() for _ in range(20)]
        firsts = [next(iter(loader)) for loader in loaders]
    """,
    "after an error": """
        source = PlannedSource("..r" * 30)
        loader = Loader(source, timeout=PATIENCE)
        epoch = iter(loader)
        next(epoch), next(epoch)
        try:
            next(epoch)
        except SampleError as error:
            kept = error
    """,
    "while a worker is in the middle of a sample": """
        source = PlannedSource("..w")
        loader = Loader(source, threads=2)
        wait_until(lambda: source.waiting)
        threading.Timer(0.1, source.open_gate).start()
    """,
    "with a database": """
        source = LMDBSource(sys.argv[1])
        loader = Loader(source, batch_size=3, shuffle=True)
        batch = next(iter(loader))
        other = Loader(source)
    """,
    "with a database whose source is gone": """
        loader = Loader(LMDBSource(sys.argv[1]))
        batch = next(iter(loader))
    """,
    "with a database in a cycle": """
        class Holder: pass
        holder = Holder()
        holder.me, holder.source = holder, LMDBSource(sys.argv[1])
        holder.loader = Loader(holder.source)
        gc.disable()
        del holder
    """,
    "with a thread in next()": """
        source = PlannedSource("w")
        loader = Loader(source, threads=1)
        def consume():
            try:
                next(iter(loader))
            except Closed:
                pass
        thread = threading.Thread(target=consume, daemon=True)
        thread.start()
        wait_until(lambda: source.waiting and loader._ring.consuming)
        atexit.register(source.open_gate)
    """,
    "with threads in a queue": """
        empty, full = BlockingQueue(), BlockingQueue(1)
        full.push(1)
        for function, arguments in ((empty.pop, ()), (empty.peek, ()), (full.push, (2,))):
            threading.Thread(target=function, args=arguments, daemon=True).start()
    """,
    "with a queue that holds loaders": """
        queue = BlockingQueue()
        queue.push(counting())
        queue.push(queue)
    """,
    "closed by the program's own exit function": """
        loader = counting()
        atexit.register(loader.close)
    """,
    "read by the program's own exit function": """
        loader = counting(10)
        atexit.register(lambda: list(map(len, loader)))
    """,
    "made by an exit function": """
        @atexit.register
        def late():
            global loader
            loader = counting()
            next(iter(loader))
    """,
    "by sys.exit in a thread": """
        loader = counting()
        def end():
            next(iter(loader))
            sys.exit(0)
        thread = threading.Thread(target=end)
        thread.start()
    """,
    "by os._exit": """
        loader = counting()
        next(iter(loader))
        os._exit(0)
    """,
}


@pytest.mark.parametrize("end", list(ENDS))
def test_the_interpreter_ends_silently(tmp_path, end):
    path, _ = image_lmdb(tmp_path / "db", 9, (1, 3, 3))
    run_child(f"import sys\nsys.argv.append({path!r})\n" + script(ENDS[end]))


def test_the_exit_code_is_the_programs():
    run_child(
        script("""
        loader = counting()
        batch = next(iter(loader))
        sys.exit(3)
    """),
        rc=3,
    )


def test_an_unhandled_exception_is_all_that_is_said():
    child = start_child(
        script("""
        for batch in counting():
            raise ValueError("mine")
    """)
    )
    _, err = child.communicate(timeout=HANG)
    assert child.returncode == 1
    assert err.startswith("Traceback (most recent call last):") and err.endswith("\nValueError: mine\n")
    assert err.count("Traceback") == 1 and "Exception ignored" not in err


UNWINDING = """
#include <Python.h>
#include <pthread.h>
#include <unistd.h>

static void report(void *unused) { (void)!write(2, "unwound\\n", 8); }

/* As Caffe's C++ frames, through which no thread may be ended. */
void call(PyObject *function) {
    pthread_cleanup_push(report, NULL);
    PyObject *result = PyObject_CallObject(function, NULL);
    Py_XDECREF(result);
    if (!result) PyErr_Clear();
    pthread_cleanup_pop(0);
}
"""


@pytest.mark.parametrize("wait", ["queue.pop()", "next(batches)"])
def test_a_daemon_threads_frames_are_not_unwound_at_the_end(tmp_path, wait):
    """Up to Python 3.13, a thread that wants the GIL during the interpreter's shutdown is ended.

    The process then dies with "FATAL: exception not rethrown".
    """
    source = tmp_path / "unwinding.c"
    source.write_text(UNWINDING)
    library = compile_c(source, "-I", sysconfig.get_paths()["include"])
    run_child(
        script(f"""
        import ctypes
        call = ctypes.PyDLL({library!r}).call
        call.argtypes, call.restype = [ctypes.py_object], None
        queue, source = BlockingQueue(), PlannedSource("w")

        class Slow:
            "Lets other threads run while the interpreter is taken down."
            def __del__(self, sleep=time.sleep):
                sleep(0.3)

        def consume():
            at_exit.wait()
            loader = Loader(source, threads=1)
            batches = iter(loader)
            ready.set()
            {wait}

        @atexit.register
        def let_it_wait():
            sys.setswitchinterval(1000)  # so that it lets others run only in its wait
            at_exit.set()
            ready.wait()

        at_exit, ready = threading.Event(), threading.Event()
        # Before the exit: since Python 3.12, no thread can be started in a callback.
        threading.Thread(target=call, args=(consume,), daemon=True).start()
        atexit.unregister(fastbatch._batches._close_all_rings)
        sys.slow = Slow()
    """)
    )


# ---- signals from outside


def interrupted(child, number, ready="ready\n"):
    """Sends the child a signal when it says that it is ready."""
    assert child.stdout.readline() == ready, child.communicate()
    child.send_signal(number)
    return child


TELL = """
def tell(condition):
    "Prints that the test may go on, from a thread, when the main thread is where it should be."
    def wait():
        wait_until(condition)
        # print() takes a lock. If this thread still held it, the interpreter would not survive its own shutdown.
        os.write(1, b"ready\\n")
    threading.Thread(target=wait, daemon=True).start()

main = threading.main_thread()
"""

BLOCKED = {
    "next()": """
        source = PlannedSource("w" + "." * 9)
        loader = Loader(source, threads=1)
        epoch = iter(loader)
        tell(lambda: source.waiting and loader._ring.consuming)
        def block():
            next(epoch)
        def go_on():
            source.open_gate()
            assert [batch.sample_keys for batch in epoch] == [[i] for i in range(10)]
    """,
    "next() with a timeout": """
        source = PlannedSource("w" + "." * 9)
        loader = Loader(source, threads=1, timeout=60)
        epoch = iter(loader)
        tell(lambda: source.waiting and loader._ring.consuming)
        def block():
            next(epoch)
        def go_on():
            source.open_gate()
            assert [batch.sample_keys for batch in epoch] == [[i] for i in range(10)]
    """,
    "pop()": """
        queue = BlockingQueue()
        def block():
            queue.pop()
        tell(lambda: running(main) is block.__code__)
        def go_on():
            queue.push(1)
            assert queue.pop() == 1
    """,
    "push()": """
        queue = BlockingQueue(1)
        queue.push(1)
        def block():
            queue.push(2)
        tell(lambda: running(main) is block.__code__)
        def go_on():
            assert queue.pop() == 1 and len(queue) == 0
    """,
    "close()": """
        source = PlannedSource("w")
        loader = Loader(source, threads=1)
        wait_until(lambda: source.waiting)
        tell(lambda: running(main) is Loader.close.__code__)
        def block():
            loader.close()
        def go_on():
            source.open_gate()
            loader.close()
            assert source.deleted == 1 and not native_threads()
    """,
    "the end of a loader": """
        source = PlannedSource(".w")
        loader = Loader(source, threads=1)
        batch = next(iter(loader))
        wait_until(lambda: source.waiting)
        arrived, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        def let_it_end():
            os.read(arrived, 1)
            source.open_gate()
        threading.Thread(target=let_it_end, daemon=True).start()
        def block():
            global loader
            del loader
            for _ in range(1000):
                pass
        tell(lambda: running(main) is block.__code__)
        def go_on():
            assert batch.data.size and not native_threads()
    """,
}


@pytest.mark.parametrize("where", list(BLOCKED))
def test_ctrl_c(where):
    """KeyboardInterrupt comes out of the blocked call, and everything goes on working."""
    child = start_child(
        script(
            TELL,
            BLOCKED[where],
            """
        try:
            block()
        except KeyboardInterrupt:
            print("interrupted")
        go_on()
    """,
        )
    )
    assert finish_child(interrupted(child, signal.SIGINT)) == "interrupted\n"


def test_ctrl_c_that_nobody_catches():
    child = start_child(
        script(
            TELL,
            BLOCKED["next()"],
            """
        atexit.register(source.open_gate)
        block()
    """,
        )
    )
    _, err = interrupted(child, signal.SIGINT).communicate(timeout=HANG)
    assert child.returncode == -signal.SIGINT
    assert err.endswith("\nKeyboardInterrupt\n") and err.count("Traceback") == 1


@pytest.mark.parametrize("where", ["next()", "pop()"])
def test_sigterm_ends_the_process(where):
    child = start_child(script(TELL, BLOCKED[where], "block()"))
    finish_child(interrupted(child, signal.SIGTERM), rc=-signal.SIGTERM)


@pytest.mark.parametrize("where", ["next()", "pop()"])
def test_sigterm_with_a_handler_that_exits(where):
    child = start_child(
        script(
            TELL,
            BLOCKED[where],
            """
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
        if "source" in globals():
            atexit.register(source.open_gate)
        block()
    """,
        )
    )
    finish_child(interrupted(child, signal.SIGTERM), rc=5)


def test_signals_go_to_the_programs_threads():
    """A worker never runs a handler: they block all signals but those of their own faults."""
    run_child(
        script("""
        with counting(threads=3) as loader:
            assert len(native_threads()) == 3
            for thread in native_threads():
                with open(f"/proc/self/task/{thread}/status") as file:
                    (blocked,) = [int(line.split()[1], 16) for line in file if line.startswith("SigBlk:")]
                for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGUSR1"):
                    assert blocked >> (getattr(signal, name) - 1) & 1, (name, hex(blocked))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    """)
    )


# ---- forks

IN_CHILD = """
def in_child(function):
    "Runs it in a forked child, which must end well; then the parent goes on."
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0

def forked(function):
    try:
        function()
    except ForkedError as error:
        return str(error)
    raise AssertionError("it worked")
"""


def test_a_fork_with_a_loader_open():
    run_child(
        script(
            IN_CHILD,
            """
        loader = counting(100, prefetch=4)
        epoch = iter(loader)
        batch = next(epoch)
        array = next(epoch).data
        idle = counting(10)

        def child():
            words = ("this loader was made before a fork, and its threads stayed with the parent process: make "
                     "the loader in the child")
            for use in (lambda: next(epoch), lambda: iter(loader), lambda: iter(idle), loader.stats):
                assert forked(use) == words
            assert batch.data.tolist() == [0] and array.tolist() == [1]  # its own copy of the memory
            batch.release()
            loader.close()
            loader.close()
            assert forked(epoch.close) == words
            assert len(loader) == 100 and not native_threads()
            with counting(5) as mine:
                assert [one.data.tolist() for one in mine] == [[i] for i in range(5)]

        for _ in range(3):
            in_child(child)
        assert (batch.data.tolist(), array.tolist()) == ([0], [1])
        assert [one.data.tolist() for one in epoch] == [[i] for i in range(2, 100)]
        assert len(list(map(len, idle))) == 10
    """,
        ),
        *FORKS,
    )


def test_a_fork_into_another_pid_namespace(tmp_path):
    """In a new PID namespace, the child may have its parent's process id, 1.

    It took the parent's loader for its own, and waited forever.
    """
    always_1 = tmp_path / "always_1.c"
    always_1.write_text("int getpid(void) { return 1; }")
    run_child(
        script(
            IN_CHILD,
            """
        assert os.getpid() == 1
        loader = counting(10)
        queue = BlockingQueue()
        source = LMDBSource(%r)
        batch = next(iter(loader))

        def child():
            assert os.getpid() == 1
            for use in (lambda: iter(loader), loader.stats, queue.close, lambda: Loader(source)):
                forked(use)
            batch.release()
            loader.close()
            source.close()

        in_child(child)
        del batch
        assert sum(1 for batch in loader) == 10 and loader.stats().held == 0
        with Loader(source) as other:
            assert sum(1 for batch in other) == 9
        source.close()
    """,
        )
        % image_lmdb_once(),
        *FORKS,
        LD_PRELOAD=":".join(filter(None, [os.environ.get("LD_PRELOAD"), compile_c(always_1)])),
    )


def test_a_fork_that_only_ends():
    """The child runs the parent's exit functions and destructors, with the parent's objects."""
    run_child(
        script(
            IN_CHILD,
            """
        loader = counting()
        epoch = iter(loader)
        batch = next(epoch)
        source = LMDBSource(%r)
        other = Loader(source, shuffle=True)
        queue = BlockingQueue()
        queue.push(loader)
        in_child(lambda: None)
        def drop():
            global loader, epoch, batch, source, other, queue
            del loader, epoch, batch, source, other, queue
            gc.collect()
        in_child(drop)
        assert next(epoch).data.tolist() == [1]
        assert len(list(map(len, other))) == 9
    """,
        )
        % image_lmdb_once(),
        *FORKS,
    )


def test_a_fork_while_others_use_the_locks():
    """The child must not wait for a lock that a thread of the parent held at the moment of the fork."""
    run_child(
        script(
            IN_CHILD,
            """
        loader = counting(10**6, prefetch=2)
        queue = BlockingQueue()
        stop = threading.Event()
        def use():
            while not stop.is_set():
                loader.stats()
                queue.push(1)
                queue.pop()
        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        epoch = iter(loader)
        def child():
            forked(lambda: next(epoch))
            forked(queue.pop)
            loader.close()
        for _ in range(5):
            next(epoch)
            in_child(child)
        stop.set()
        for thread in threads:
            thread.join()
        loader.close()
    """,
        ),
        *FORKS,
    )


def test_a_fork_with_a_queue_open():
    run_child(
        script(
            IN_CHILD,
            """
        queue = BlockingQueue(5)
        queue.push("parent's")

        def child():
            words = "this queue was made before a fork, in another process: make it in the child"
            for use in (queue.pop, queue.peek, queue.try_pop, lambda: queue.push(1), lambda: queue.try_push(1),
                        lambda: len(queue), queue.close):
                assert forked(use) == words
            mine = BlockingQueue()
            mine.push(1)
            assert mine.pop() == 1

        in_child(child)
        assert queue.pop() == "parent's" and len(queue) == 0
    """,
        ),
        *FORKS,
    )


def test_a_fork_with_a_database_open():
    run_child(
        script(
            IN_CHILD,
            """
        import logging
        logging.basicConfig()
        path = %r
        source = LMDBSource(path)
        loader = Loader(source, threads=2, timeout=PATIENCE)
        epoch = iter(loader)
        next(epoch)

        def child():
            assert forked(lambda: Loader(source)) == (
                f"LMDBSource({path!r}) was opened before a fork; LMDB forbids its use in the child: open it there")
            source.close()
            with LMDBSource(path) as mine, Loader(mine, timeout=PATIENCE) as reader:
                assert [batch.label.tolist() for batch in reader] == [[i] for i in range(9)]

        in_child(child)
        in_child(child)
        assert [batch.label.tolist() for batch in epoch] == [[i] for i in range(1, 9)]
        loader.close()
        source.close()
    """,
        )
        % image_lmdb_once(),
        *FORKS,
    )


_databases = []


def image_lmdb_once():
    """The path of a database of nine images that lives as long as this process."""
    import tempfile

    if not _databases:
        _databases.append(tempfile.TemporaryDirectory())
        image_lmdb(_databases[0].name, 9, (1, 3, 3))
    return _databases[0].name


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_loaders_in_processes_of_multiprocessing(tmp_path, method):
    """Each process makes its own loader, whatever the parent has open."""
    program = tmp_path / "program.py"
    program.write_text(
        script("""
        import multiprocessing

        def total(count):
            with counting(count) as loader:
                return sum(int(batch.data[0]) for batch in loader)

        if __name__ == "__main__":
            loader = counting()
            epoch = iter(loader)
            next(epoch)
            with multiprocessing.get_context(%r).Pool(2) as pool:
                assert pool.map(total, [3, 5, 10]) == [3, 10, 45]
                pool.close()
                pool.join()
            assert next(epoch).data.tolist() == [1]
    """)
        % method
    )
    run_child(
        f"import runpy, sys; sys.argv = [{str(program)!r}]; runpy.run_path({str(program)!r}, run_name='__main__')",
        *FORKS,
    )


# ---- threads that cannot be had, or do not come back


def test_threads_that_cannot_be_started():
    run_child(
        script("""
        import resource
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, unlimited[1]))  # no room for their stacks
        try:
            counting(threads=4000)
        except RuntimeError as error:
            words = str(error)
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        assert "of 4000 threads could be started: " in words and "ask for fewer with threads=" in words, words
        assert 1 < int(words.split()[1]) < 4000
        assert not native_threads()
        with counting(5) as loader:
            assert [batch.data.tolist() for batch in loader] == [[i] for i in range(5)]
    """)
    )


GIVEN_UP = """
    import warnings

    def close(loader):
        loader.close()

    def drop(loader):
        pass

    def give_up(how, found):
        source = PlannedSource("....w", width=100000)
        loader = Loader(source, threads=2, batch_size=2)
        epoch = iter(loader)
        batch = next(epoch)
        wait_until(lambda: source.waiting)
        how(loader)
        if how is close:
            assert loader.closed
            loader.close()  # at once
        del loader, epoch
        gc.collect()
        assert source.deleted == 0  # the worker reads through it
        source.open_gate()
        wait_until(lambda: source.waiting == 0)
        assert batch.data[1, 99999] == 1
        found.append(source)

    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=give_up, args=(how, found)) for how in (close, drop)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 2
    assert [warning.category for warning in caught] == [RuntimeWarning] * 2
    for warning in caught:
        words = str(warning.message)
        assert words.startswith("closing the loader of planned: not stopped after 5 s, and left behind"), words
        assert ": read sample 4 for " in words, words
    wait_until(lambda: not native_threads())
"""

STUCK_TO_THE_END = """
    source = PlannedSource("w")
    loader = Loader(source, threads=1)
    wait_until(lambda: source.waiting)
"""


@pytest.mark.slow
def test_a_worker_that_is_stuck_is_named_and_left_behind():
    """By close(), by dropping a loader, and by the interpreter's shutdown; all at once, because each takes 5 s."""
    at_the_end = start_child(script(STUCK_TO_THE_END))
    run_child(script(GIVEN_UP))  # there the worker wakes up later, and finds its memory as it was
    _, err = at_the_end.communicate(timeout=HANG)
    assert at_the_end.returncode == 0
    assert "RuntimeWarning: closing the loader of planned: not stopped after 5 s, and left behind" in err
    assert "thread fastbatch-0: read sample 0 for " in err
    assert "Traceback" not in err


# ---- close() and threads in this process


def test_close_while_workers_are_in_every_state():
    """Workers waiting for the sequencer, for space, in locate() and in read() leave at their next step."""
    before = native_threads()
    for plan in ("." * 50, "w" + "." * 50, "L" + "." * 50):
        with planned_loader(plan, threads=4, prefetch=2) as (source, loader):
            if plan[0] == ".":
                wait_until(lambda: loader.stats().ready == 3)
            else:
                wait_until(lambda: source.waiting == 1)
            closing = threading.Thread(target=loader.close)
            closing.start()
            source.open_gate()
            closing.join()
            assert source.deleted == 1
            assert native_threads() == before


def test_the_main_module_may_be_anything():
    """Run from standard input, where there is no file."""
    child = start_child("exec(__import__('sys').stdin.read())")
    out, err = child.communicate(
        script("""
        with counting(3) as loader:
            print([batch.data.tolist() for batch in loader])
    """),
        timeout=HANG,
    )
    assert (child.returncode, out, err) == (0, "[[0], [1], [2]]\n", "")
