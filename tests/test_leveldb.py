"""LevelDBSource: the contract of all sources, bad databases, and the one handle per database and process."""

import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

import fastbatch
from bad_records import GOOD
from children import FORKS, run_child, start_child
from contracts import PATIENCE, check_source, loader_of, outcomes, stack
from databases import datum, image_leveldb, images, write_leveldb, write_lmdb
from files import as_nobody, descriptors_below

if fastbatch.features()["leveldb"] is None:
    pytest.skip("fastbatch was built without LevelDB", allow_module_level=True)

from fastbatch import LevelDBSource, LMDBSource, Loader, SampleError, SourceError
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
            places = order if not shuffle else [order[name_of(batch, place, pictures[order])] for place in range(8)]
            for place, index in enumerate(places):
                assert batch.data[place].tobytes() == pictures[index].tobytes()
                # An empty key is none: such a record goes by its place.
                assert batch.sample_keys[place] == (keys[index][:511] or 0)


def name_of(batch, place, pictures):
    """Which of the pictures is in this place."""
    return [picture.tobytes() for picture in pictures].index(batch.data[place].tobytes())


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
                    places = [(rank + ranks * i) % 7 for i in (2 * step, 2 * step + 1)]
                    assert batches[1].sample_keys == [KEYS[place] for place in places]
                    assert batches[1]["data"].tobytes() == pictures[places].tobytes()
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
                        places = [(rank + 2 * i) % 40 for i in range(3 * step, 3 * step + 3)]
                        assert batch.sample_keys == [KEYS[place] for place in places]
                        assert batch["data"].tobytes() == pictures[places].tobytes()
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


# ---- databases that are none, or damaged


def files(path, ending):
    return [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(ending)]


def damaged(path, how):
    if how == "missing":
        return path + "-nowhere"
    if how == "a file":
        return os.path.join(path, "CURRENT")
    if how == "an empty directory":
        os.makedirs(path + "-empty")
        return path + "-empty"
    if how == "an LMDB database":
        return write_lmdb(path + "-lmdb", [GOOD])
    if how == "no table":
        os.unlink(files(path, ".ldb")[0])
    current = os.path.join(path, "CURRENT")
    manifest = os.path.join(path, Path(current).read_text().strip())
    if how == "an empty table":
        os.truncate(files(path, ".ldb")[0], 0)
    if how == "no manifest":
        os.unlink(manifest)
    if how == "an empty manifest":
        os.truncate(manifest, 0)
    if how == "a manifest of something else":
        Path(manifest).write_text("no manifest " * 100)
    if how == "an empty CURRENT":
        os.truncate(current, 0)
    if how == "a CURRENT of something else":
        Path(current).write_text("MANIFEST-999999\n")
    return path


@pytest.mark.parametrize(
    "how, words",
    [
        (
            "missing",
            (
                "it has no file CURRENT (No such file or directory); source must name the directory that "
                "convert_imageset made"
            ),
        ),
        ("a file", "it has no file CURRENT (Not a directory); source must name the directory"),
        ("an empty directory", "it has no file CURRENT (No such file or directory); source must name the directory"),
        (
            "an LMDB database",
            "it is an LMDB database: write backend: LMDB, for LEVELDB is Caffe's default, or make an LMDBSource",
        ),
        ("no table", "Corruption: 1 missing files; "),
        ("no manifest", "No such file or directory; it is damaged"),
        ("an empty manifest", "Corruption: "),
        ("a manifest of something else", "Corruption: "),
        (
            "an empty CURRENT",
            "Corruption: CURRENT file does not end with newline; it is damaged: make it again, or copy it again",
        ),
        ("a CURRENT of something else", "; it is damaged: make it again, or copy it again"),
    ],
)
def test_databases_that_cannot_be_opened(tmp_path, how, words):
    path = write_leveldb(tmp_path / "db", 20 * [GOOD], tables=True)
    path = damaged(path, how)
    before = os.listdir(path) if os.path.isdir(path) else None
    for _ in range(2):
        with pytest.raises(SourceError) as caught:
            LevelDBSource(path)
        assert str(caught.value).startswith(f"Failed to open leveldb {path}: ")
        assert words in str(caught.value)
    assert descriptors_below(tmp_path) == []
    if "CURRENT (" in words or "LMDB" in words:  # LevelDB would have made LOCK and LOG, and the directory
        assert (os.listdir(path) if os.path.isdir(path) else None) == before


def test_a_leveldb_database_for_lmdb(tmp_path):
    path = write_leveldb(tmp_path / "db", [GOOD])
    with pytest.raises(
        SourceError,
        match="it has no data.mdb .*; it is a LevelDB database: write backend: LEVELDB, or make a LevelDBSource",
    ):
        LMDBSource(path)


def test_a_database_without_records(tmp_path):
    for records, delete in ([], []), ([GOOD], [KEYS[0]]):
        path = write_leveldb(tmp_path / f"db{len(records)}", records, delete=delete)
        with pytest.raises(
            SourceError, match=f"the LevelDB database {path} is empty; a loader needs at least one record"
        ):
            LevelDBSource(path)
    assert descriptors_below(tmp_path) == []


def test_a_directory_that_cannot_be_written():
    with tempfile.TemporaryDirectory() as directory:  # everybody may go there, other than to tmp_path
        path, _ = image_leveldb(os.path.join(directory, "db"), 3)
        for name in os.listdir(path):
            os.chmod(os.path.join(path, name), 0o444)
        os.chmod(path, 0o555)
        os.chmod(directory, 0o755)
        with as_nobody(), pytest.raises(SourceError) as caught:
            LevelDBSource(path)
        assert str(caught.value) == (
            f"Failed to open leveldb {path}: IO error: {path}/LOCK: Permission denied; LevelDB writes to every "
            "database that it opens, if only to lock it: copy this one to where you may write, or make an LMDB of "
            "it, which can be read anywhere"
        )
        os.chmod(path, 0o755)
        with LevelDBSource(path) as source:
            assert len(source) == 3


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


def big_database(tmp_path):
    """Of blocks and tables of a few records each."""
    pictures = images(40, (1, 100, 300))
    return write_leveldb(tmp_path / "db", [datum(*pair) for pair in zip(pictures, range(40))], tables=True), pictures


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_byte_that_changed(tmp_path, share):
    """Caffe's layer continues with the next block or a wrong pixel; ours raises an error and delivers no batch."""
    path, pictures = big_database(tmp_path)
    table = files(path, ".ldb")[0]
    flip(table, int(os.path.getsize(table) * share))
    with LevelDBSource(path) as source:
        for use in (lambda: len(source), lambda: Loader(source), lambda: Loader(source, shuffle=True)):
            with pytest.raises(
                SourceError,
                match=f"{path} cannot be read: LevelDB says: Corruption: .*; the database is damaged: make it again",
            ):
                use()
        ring = BatchRing(source, batch_size=1, slots=3, threads=3, order=CaffeRecords(0))
        try:
            good = 0
            with pytest.raises(
                SourceError, match=f"{path} cannot be read any further: LevelDB says: Corruption: "
            ) as caught:
                while True:
                    batch = ring.next(PATIENCE)
                    assert batch.sample_keys == [KEYS[good]]
                    assert batch["data"][0].tobytes() == pictures[good].tobytes()
                    good += 1
            assert 0 < good < 40
            with pytest.raises(SourceError) as again:
                ring.next(PATIENCE)
            assert str(again.value) == str(caught.value)
        finally:
            ring.close()


def test_damage_to_a_record_that_was_good_before(tmp_path):
    """Only that record's batch raises the error, because all keys are known; the others are delivered."""
    path, pictures = image_leveldb(tmp_path / "db", 5, LARGE)
    write_leveldb(path, [])  # opened again, it has them in a table
    (table,) = files(path, ".ldb")
    with LevelDBSource(path) as source:
        with loader_of(source) as loader:
            assert [batch.sample_keys for batch in loader] == [[key] for key in KEYS[:5]]
        flip(table, int(os.path.getsize(table) * 0.5))
        loaders = loader_of(source), loader_of(source, shuffle=True)
        ring = BatchRing(source, batch_size=1, slots=3, threads=3, order=CaffeRecords(0))
        try:
            for _epoch in range(2):
                for loader in loaders:
                    found = outcomes(iter(loader))
                    (error,) = errors = [error for error in found if isinstance(error, SampleError)]
                    assert sorted(keys for keys in found if keys not in errors) == [[KEYS[i]] for i in (0, 1, 3, 4)]
                    assert (error.source, error.key, error.index, error.stage) == (path, KEYS[2], 2, "read")
                    assert error.reason.startswith("LevelDB says: Corruption: block checksum mismatch")
                    assert error.reason.endswith("; the database is damaged: make it again, or copy it again")
                for place in range(5):
                    if place == 2:
                        with pytest.raises(SampleError, match="sample 2 .*block checksum mismatch"):
                            ring.next(PATIENCE)
                    else:
                        assert ring.next(PATIENCE)["data"].tobytes() == pictures[place].tobytes()
        finally:
            ring.close()
            for loader in loaders:
                loader.close()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("count, shape", [(10, SMALL), (1, SMALL), (1, LARGE), (4, LARGE)])
def test_what_a_loader_has_read_before_is_verified_again(tmp_path, count, shape, shuffle):
    """In the next epoch at the latest: LevelDB's iterator does not verify its current block again."""
    path, pictures = image_leveldb(tmp_path / "db", count, shape)
    write_leveldb(path, [])
    (table,) = files(path, ".ldb")
    with LevelDBSource(path) as source, loader_of(source, shuffle=shuffle, prefetch=1) as loader:
        assert sum(len(batch) for batch in loader) == count
        flip(table, int(os.path.getsize(table) * 0.5))
        errors = []
        for epoch in range(8):
            batches = iter(loader)
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    break
                except SampleError as error:
                    errors.append(error)
                    continue
                except SourceError as error:
                    errors.append(error)
                    break
                if epoch >= 4:  # before that, what was read ahead, or verified before the flip
                    assert batch.data[0].tobytes() == pictures[KEYS.index(batch.sample_keys[0])].tobytes()
            batches.close()
        assert all("LevelDB says: Corruption: block checksum mismatch" in str(error) for error in errors)
        assert errors


def test_nothing_is_read_behind_damage(tmp_path):
    """Workers that had to find the next samples went on past the damage.

    At the end of the database, an assertion of LevelDB's ended the process.
    """
    path, _ = big_database(tmp_path)
    table = files(path, ".ldb")[0]
    flip(table, int(os.path.getsize(table) * 0.9))
    run_child(f"""
        from fastbatch import LevelDBSource, SourceError
        from fastbatch._batches import BatchRing
        from fastbatch.orders.caffe import CaffeRecords
        source = LevelDBSource({path!r})
        for _ in range(20):
            ring = BatchRing(source, batch_size=1, slots=100, threads=4, order=CaffeRecords(0))
            try:
                while True:
                    ring.next(20)
            except SourceError as error:
                assert "block checksum mismatch" in str(error)
            while ring.stats()["errors"] < 30:
                pass
            ring.close()
    """)


def test_a_byte_of_the_first_record_that_changed(tmp_path):
    path, _ = big_database(tmp_path)
    flip(files(path, ".ldb")[0], 100)
    with pytest.raises(
        SourceError,
        match=f"{path} cannot be read: LevelDB says: Corruption: .*; the database is damaged: make it again",
    ):
        LevelDBSource(path)
    assert descriptors_below(tmp_path) == []


def test_every_byte_that_changed_is_noticed_or_changes_nothing(tmp_path):
    """In tables, manifest and CURRENT. Whatever can be read is right."""
    path = write_leveldb(tmp_path / "db", [datum(*pair) for pair in zip(images(4, (1, 3, 3)), range(4))], tables=True)
    expected = contents(path)
    pristine = tmp_path / "pristine"
    shutil.copytree(path, pristine)
    refused = 0
    for name in sorted(os.listdir(pristine)):
        if name in ("LOCK", "LOG", "LOG.old"):
            continue
        for offset in range(os.path.getsize(pristine / name)):
            shutil.rmtree(path)
            shutil.copytree(pristine, path)
            flip(os.path.join(path, name), offset)
            try:
                assert contents(path) == expected, (name, offset)
            except SourceError:
                refused += 1
    assert refused > 200


def contents(path):
    with LevelDBSource(path) as source, loader_of(source) as loader:
        return [(batch.sample_keys, batch.data.tobytes(), batch.label.tolist()) for batch in loader]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_table_that_is_cut_short(tmp_path, shuffle):
    path, _ = big_database(tmp_path)
    table = files(path, ".ldb")[-1]
    os.truncate(table, os.path.getsize(table) // 2)
    with pytest.raises(SourceError, match="LevelDB says|Failed to open leveldb"), LevelDBSource(path) as source:
        Loader(source, shuffle=shuffle)


def test_a_record_of_nothing_is_an_error_of_its_batch(tmp_path):
    """Neither key nor value: no memory was asked for, and none was found."""
    path = write_leveldb(tmp_path / "db", [(b"", b""), (b"c", GOOD)])
    with LevelDBSource(path) as source, Loader(source, timeout=PATIENCE) as loader:
        error, *rest = outcomes(iter(loader))
        assert (error.index, error.key, rest) == (0, 0, [[b"c"]])
        assert error.reason == "the record is not a Datum: it is empty"
