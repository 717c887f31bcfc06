"""Loaders, queues and databases in processes that fork, each in its own process."""

import os

import pytest

from children import FORKS, run_child
from databases import image_lmdb
from planned import compile_c
from programs import script

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
