"""LevelDBSource: its records, and the one handle per database and process."""

import os
import shutil
import signal
import threading

import numpy as np
import pytest

import fastbatch
from bad_records import GOOD
from children import FORKS, run_child, start_child
from contracts import PATIENCE, check_source, loader_of, stack
from databases import datum, image_leveldb, images, write_leveldb

if fastbatch.features()["leveldb"] is None:
    pytest.skip("fastbatch was built without LevelDB", allow_module_level=True)

from fastbatch import LevelDBSource, Loader, SampleError, SourceError
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeRecords
from fastbatch.sources._leveldb import version

KEYS = [b"%08d" % i for i in range(40)]
SMALL, LARGE = (
    (3, 12, 10),
    (3, 150, 150),
)  # from 64 KB on, on average, records are found by their keys, as soon as those are known


# ---- what every source can do


@pytest.mark.parametrize("tables", [False, True], ids=["in the log", "in tables"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
def test_leveldb(tmp_path, shape, dtype, compressed, tables):
    labels = [7, 0, -1, 2**31 - 1, -(2**31), 2**24 + 1, 5]
    pictures = images(7, shape, dtype)
    pictures[3:] = 3  # so that compression has something to do
    records = [datum(*pair) for pair in zip(pictures, labels)]
    path = write_leveldb(tmp_path / "db", records, tables=tables, compressed=compressed)
    with LevelDBSource(path) as source:
        assert (source.shape, source.path, source.encoded) == (shape, path, False)
        check_source(source, stack(pictures, labels), KEYS[:7])


def test_keys_are_in_their_order_and_of_any_length(tmp_path):
    """Bytewise. Of a key longer than LMDB's longest, batches keep the first 511 bytes."""
    keys = [
        b"",
        b"b",
        b"a",
        b"\xff" * 3,
        b"a\0",
        b"long" * 100,
        b"\xfe" + b"longer" * 5000,
        b"\xfe" + b"longer" * 5000 + b"?",
    ]
    pictures = images(len(keys), (1, 2, 3))
    path = write_leveldb(tmp_path / "db", [(key, datum(picture, 0)) for key, picture in zip(keys, pictures)])
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    for shuffle in False, True:
        with loader_of(LevelDBSource(path), batch_size=8, shuffle=shuffle, seed=1) as loader:
            (batch,) = loader
            shown = order if not shuffle else [order[picture_at(batch, i, pictures[order])] for i in range(8)]
            for i, picture in enumerate(shown):
                assert batch.data[i].tobytes() == pictures[picture].tobytes()
                # An empty key counts as no key, and the sample's index stands in for it.
                assert batch.sample_keys[i] == (keys[picture][:511] or 0)


def picture_at(batch, index, pictures):
    """Which of the pictures is at this index of the batch."""
    return [picture.tobytes() for picture in pictures].index(batch.data[index].tobytes())


def test_records_that_were_deleted_or_written_again(tmp_path):
    """LevelDB keeps the old ones beside the new until it rearranges its files."""
    pictures = images(5)
    old, new = ([(key, datum(picture, label)) for key, picture in zip(KEYS, pictures)] for label in (1, 2))
    path = write_leveldb(tmp_path / "db", old, tables=True)
    write_leveldb(path, new[:2], delete=[KEYS[3]])
    kept = [0, 1, 2, 4]
    check_source(LevelDBSource(path), stack(pictures[kept], [2, 2, 1, 1]), [KEYS[i] for i in kept])


def test_a_database_of_many_tables(tmp_path):
    """4 MB, written twice, which LevelDB merges into tables of 2 MB: readers go from one to the next."""
    pictures = images(40, (1, 400, 256))
    for label in 40, 0:
        path = write_leveldb(
            tmp_path / "db", [datum(picture, label + i) for i, picture in enumerate(pictures)], tables=True
        )
    assert len([name for name in os.listdir(path) if name.endswith(".ldb")]) > 1
    check_source(LevelDBSource(path), stack(pictures, range(40)), KEYS)


def test_a_path_is_no_source(tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 1)
    with pytest.raises(TypeError) as caught:
        Loader(path)
    assert str(caught.value).endswith(f"not a path: for the database say fastbatch.LevelDBSource({path!r})")


def test_versions():
    assert fastbatch.features()["leveldb"] == version()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
def test_caffes_order_has_no_end(tmp_path, shape, ranks):
    """Epochs, positions and keys are as if the records had been counted, even if it reads them first."""
    path, pictures = image_leveldb(tmp_path / "db", 7, shape)
    shutil.copytree(path, tmp_path / "counted")
    with LevelDBSource(path) as source, LevelDBSource(tmp_path / "counted") as to_count:
        assert len(to_count) == 7
        for rank in range(ranks):
            options = dict(batch_size=2, slots=3, threads=2, order=CaffeRecords(0, rank=rank, ranks=ranks))
            counted, uncounted = BatchRing(to_count, **options), BatchRing(source, **options)
            try:
                for step in range(25):
                    batches = counted.next(PATIENCE), uncounted.next(PATIENCE)
                    records = [(rank + ranks * i) % 7 for i in (2 * step, 2 * step + 1)]
                    assert batches[1].sample_keys == [KEYS[record] for record in records]
                    assert batches[1]["data"].tobytes() == pictures[records].tobytes()
                    assert batches[1].epoch == (rank + ranks * (2 * step + 1)) // 7
                    for name in "sample_keys", "epoch", "number":
                        assert getattr(batches[0], name) == getattr(batches[1], name)
            finally:
                counted.close()
                uncounted.close()


def test_loaders_learn_the_keys_from_each_other(tmp_path):
    """The loaders continue with the right record, wherever each is when the first one sees the last key.

    This holds whichever of them counts the records meanwhile.
    """
    path, pictures = image_leveldb(tmp_path / "db", 40, (1, 260, 260))
    for _ in range(20):
        with LevelDBSource(path) as source:
            rings = [
                BatchRing(source, batch_size=3, slots=3, threads=2, order=CaffeRecords(0, rank=rank, ranks=2))
                for rank in (0, 1)
            ]
            counting = threading.Thread(target=len, args=(source,))
            counting.start()
            try:
                for step in range(30):
                    for rank in 0, 1:
                        batch = rings[rank].next(PATIENCE)
                        records = [(rank + 2 * i) % 40 for i in range(3 * step, 3 * step + 3)]
                        assert batch.sample_keys == [KEYS[record] for record in records]
                        assert batch["data"].tobytes() == pictures[records].tobytes()
            finally:
                counting.join()
                for ring in rings:
                    ring.close()


@pytest.mark.parametrize("good", [GOOD, datum(images(1, LARGE)[0], 3)], ids=["small", "large"])
def test_an_error_without_an_end_names_the_place_in_the_database(tmp_path, good):
    path = write_leveldb(tmp_path / "db", [good, good, b"nonsense"])
    with LevelDBSource(path) as source:
        ring = BatchRing(source, batch_size=1, slots=3, threads=2, order=CaffeRecords(0))
        try:
            for epoch in range(3):
                assert [ring.next(PATIENCE).sample_keys, ring.next(PATIENCE).sample_keys] == [[KEYS[0]], [KEYS[1]]]
                with pytest.raises(SampleError) as caught:
                    ring.next(PATIENCE)
                assert (caught.value.index, caught.value.key, caught.value.epoch) == (2, KEYS[2], epoch)
        finally:
            ring.close()


# ---- one handle


def test_threads_count_and_close_at_once(tmp_path):
    script = f"""
        import sys, threading
        from databases import image_leveldb
        from fastbatch import Closed, LevelDBSource
        path, _ = image_leveldb({str(tmp_path / "a")!r}, 50)
        sys.setswitchinterval(1e-6)

        def read():
            try:
                assert len(source) == 50
                source.__fastbatch_source__(True)
            except Closed:
                pass

        for _ in range(200):
            source = LevelDBSource(path)
            threads = [threading.Thread(target=target) for target in (read, read, source.close)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        """
    run_child(script)


def test_another_process_has_it(tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 3)
    holder = start_child(f"""
        import fastbatch
        source = fastbatch.LevelDBSource({path!r})
        print("open", flush=True)
        input()
    """)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(SourceError) as caught:
        LevelDBSource(path)
    assert str(caught.value).startswith(
        f"Failed to open leveldb {path}: IO error: lock {path}/LOCK: Resource temporarily unavailable; "
    )
    assert f"process {holder.pid} has it open, and LevelDB allows one at a time: end that, or read a copy" in str(
        caught.value
    )
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with LevelDBSource(path) as source:  # it died in the middle of it
        assert len(source) == 3


def test_something_else_in_this_process_has_it(tmp_path):
    """By another name, which LevelDB itself would fall for."""
    script = f"""
        import ctypes, os
        from databases import image_leveldb, leveldb
        from fastbatch import LevelDBSource, SourceError
        path, _ = image_leveldb({str(tmp_path / "a")!r}, 3)
        os.symlink(path, path + "-link")
        options, problem = leveldb().leveldb_options_create(), ctypes.c_char_p()
        other = leveldb().leveldb_open(options, os.fsencode(path), problem)
        for name in path, path + "-link":
            try:
                LevelDBSource(name)
            except SourceError as error:
                print(error)
        leveldb().leveldb_close(other)
        LevelDBSource(path).close()
        """
    first, second = run_child(script).splitlines()
    for path, line in ("a", first), ("a-link", second):
        assert line.startswith(
            f"Failed to open leveldb {tmp_path / path}: something else in this process has it open, a Data layer of "
            "Caffe's perhaps, and LevelDB opens a database once: close that first"
        )


def test_a_database_that_was_deleted_and_made_again(tmp_path):
    """The open database stays what it was, and the new one is never taken for it.

    The new one's files may have got the same inode numbers.
    """
    path, _pictures = image_leveldb(tmp_path / "db", 3)
    old = LevelDBSource(path)
    shutil.rmtree(path)
    image_leveldb(tmp_path / "other", 4, seed=1)
    os.rename(tmp_path / "other", path)
    with pytest.raises(
        SourceError,
        match="this process has an earlier database of that name open, whose files were deleted since: close",
    ):
        LevelDBSource(path)
    assert old.shape == (3, 12, 10)
    old.close()
    with LevelDBSource(path) as new:
        check_source(new, stack(images(4, seed=1), range(4)), KEYS[:4])


def test_a_fork_with_a_database_open(tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 9)
    script = f"""
        import os
        from fastbatch import ForkedError, LevelDBSource, Loader, SourceError
        path = {path!r}
        source = LevelDBSource(path)
        loader = Loader(source, threads=2, timeout=20)
        shuffling = Loader(source, shuffle=True, timeout=20)
        epoch = iter(loader)
        next(epoch)
        for _ in range(2):
            child = os.fork()
            if child == 0:
                for use in lambda: Loader(source), lambda: len(source), lambda: LevelDBSource(path):
                    try:
                        use()
                    except (ForkedError, SourceError) as error:
                        print(error)
                source.close()
                del loader, shuffling, epoch, source
                raise SystemExit
            assert os.waitpid(child, 0)[1] == 0
        assert [batch.label.tolist() for batch in epoch] == [[i] for i in range(1, 9)]
        assert sum(len(batch) for batch in shuffling) == 9
        loader.close()
        shuffling.close()
        source.close()
        LevelDBSource(path).close()
    """
    lines = run_child(script, *FORKS).splitlines()
    assert len(lines) == 6
    for first, second, third in (lines[:3], lines[3:]):
        assert (
            first == second == f"LevelDBSource({path!r}) was opened before a fork; LevelDB forbids its use in the child"
        )
        assert third.startswith(
            f"Failed to open leveldb {path}: the process that this one was forked from had it open, and LevelDB cannot"
        )


def test_a_forked_child_opens_what_nobody_has_open(tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 9)
    script = f"""
        import os
        from fastbatch import LevelDBSource, Loader
        LevelDBSource({path!r}).close()
        child = os.fork()
        if child == 0:
            with LevelDBSource({path!r}) as source, Loader(source, timeout=20) as loader:
                os._exit(sum(len(batch) for batch in loader))
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 9
    """
    run_child(script, *FORKS)


def test_closing_in_a_forked_child_does_not_wait_for_leveldbs_thread(tmp_path):
    """Which rearranges files, and does not exist there."""
    for name in "parents", "childs":
        for begin in range(6):  # each adds a table: from four on LevelDB merges them
            path = write_leveldb(tmp_path / name, [(b"%08d" % i, GOOD) for i in range(7 * begin, 7 * begin + 7)])
    run_child(
        f"""
        import os, signal
        from fastbatch import LevelDBSource
        LevelDBSource({str(tmp_path / "parents")!r}).close()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            for _ in range(2):
                with LevelDBSource({path!r}) as source:
                    assert len(source) == 42
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with LevelDBSource({path!r}) as source:
            assert len(source) == 42
    """,
        *FORKS,
        stderr=2
        * (
            f"fastbatch leaves the LevelDB database {path} open until this process ends: it was forked from one that "
            "used LevelDB, whose own thread a fork does not copy, and closing might wait for that for ever\n"
        ),
    )


@pytest.mark.parametrize(
    "end", ["raise SystemExit(3)", "import os; os._exit(3)", "import threading; raise SystemExit(3)"]
)
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
def test_the_process_ends_in_the_middle_of_it(tmp_path, shape, end):
    path, _ = image_leveldb(tmp_path / "db", 9, shape)
    run_child(
        f"""
        from fastbatch import LevelDBSource, Loader
        source = LevelDBSource({path!r})
        loaders = [Loader(source, shuffle=shuffle, threads=3) for shuffle in (False, True)]
        epochs = [iter(loader) for loader in loaders]
        batches = [next(epoch) for epoch in epochs]
        {end}
    """,
        rc=3,
    )
    with LevelDBSource(path) as source:
        assert len(source) == 9


def test_ctrl_c_while_the_records_are_counted(tmp_path):
    path = write_leveldb(tmp_path / "db", [(b"%08d" % i, b"\x08\x01") for i in range(50000)])
    script = f"""
        import os, signal, threading
        from fastbatch import LevelDBSource
        source = LevelDBSource({path!r})
        for delay in 0.0005, 0.001, 0.002:
            try:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
                while True:
                    source = LevelDBSource({path!r})
                    count = len(source)
                    source.close()
                    del source
            except KeyboardInterrupt:
                pass
        with LevelDBSource({path!r}) as source:
            print(len(source))
    """
    assert run_child(script) == "50000\n"
