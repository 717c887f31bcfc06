"""LevelDBSource: databases that are none, or damaged."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

import fastbatch
from bad_records import GOOD
from children import run_child
from contracts import PATIENCE, loader_of, outcomes
from databases import datum, image_leveldb, images, write_leveldb, write_lmdb
from files import as_nobody, descriptors_below

if fastbatch.features()["leveldb"] is None:
    pytest.skip("fastbatch was built without LevelDB", allow_module_level=True)

from fastbatch import LevelDBSource, LMDBSource, Loader, SampleError, SourceError
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeRecords

KEYS = [b"%08d" % i for i in range(40)]
SMALL, LARGE = (
    (3, 12, 10),
    (3, 150, 150),
)  # from 64 KB on, on average, records are found by their keys, as soon as those are known


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
            "it is an LMDB database: write backend: LMDB, because LEVELDB is Caffe's default, or make an LMDBSource",
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
