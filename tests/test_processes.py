"""Loaders and queues when processes end and receive signals, each in its own process."""

import signal
import sysconfig
import threading

import pytest

from children import HANG, finish_child, native_threads, run_child, start_child
from databases import image_lmdb
from planned import compile_c, planned_loader, wait_until
from programs import script

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


# ---- threads that cannot be had, or do not come back


@pytest.mark.usefixtures("counts_memory")  # a sanitizer needs some for each thread
def test_threads_that_cannot_be_started():
    run_child(
        script("""
        from children import limit_memory
        lift_limit = limit_memory(2**30)  # no room for their stacks
        try:
            counting(threads=4000)
        except RuntimeError as error:
            words = str(error)
        lift_limit()
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
