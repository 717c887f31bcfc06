"""Databases that cannot be opened, and records that cannot be read, are errors that name the database and say why."""

import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from bad_records import GOOD, NOT_A_DATUM, data, shape
from children import run_child
from contracts import outcomes
from databases import LMDB, datum, image_lmdb, images, write_lmdb
from fastbatch import Closed, FastbatchError, LMDBSource, Loader, SourceError, Transform
from files import as_nobody, descriptors_below
from planned import PATIENCE

# ---- opening


def damaged(path, how):
    """A path that is no database that can be opened."""
    data = os.path.join(path, "data.mdb")
    if how == "missing":
        return path + "-nowhere"
    if how == "a file":
        return data
    if how == "an empty directory":
        os.makedirs(path + "-empty")
        return path + "-empty"
    size = os.path.getsize(data)
    with open(data, "r+b") as file:
        if how == "empty file":
            file.truncate(0)
        elif how == "text":
            file.write(b"label,path\n" * (size // 11))
        elif how == "another version":
            for page in (0, 4096):
                file.seek(page + 20)  # MDB_meta.mm_version, after the page's header and the magic number
                file.write(struct.pack("<I", 999))
        elif how == "half a header":
            file.truncate(100)
        elif how == "cut short":
            file.truncate(size // 2)
    if how == "a directory":
        os.unlink(data)
        os.mkdir(data)
    return path


@pytest.mark.parametrize(
    "how, words",
    [
        (
            "missing",
            "it has no data.mdb (No such file or directory); source must name the directory that convert_imageset",
        ),
        ("a file", "it has no data.mdb (Not a directory); source must name the directory"),
        ("an empty directory", "it has no data.mdb (No such file or directory); source must name the directory"),
        ("a directory", "Is a directory"),
        ("empty file", "data.mdb is empty"),
        ("text", "data.mdb is not an LMDB file"),
        ("half a header", "data.mdb is not an LMDB file"),
        ("another version", "it was written by another version of LMDB"),
        ("cut short", "it was cut short, by an interrupted copy perhaps"),
    ],
)
def test_databases_that_cannot_be_opened(tmp_path, how, words):
    path = damaged(image_lmdb(tmp_path / "db", 200)[0], how)
    for _ in range(2):
        with pytest.raises(SourceError) as caught:
            LMDBSource(path)
        assert str(caught.value).startswith(f"cannot open the LMDB database {path}: ")
        assert words in str(caught.value)
        assert isinstance(caught.value, OSError) and isinstance(caught.value, FastbatchError)
    assert descriptors_below(tmp_path) == []


def test_a_database_without_records(tmp_path):
    path = write_lmdb(tmp_path / "db", [])
    with pytest.raises(SourceError, match=f"the LMDB database {path} is empty; a loader needs at least one record"):
        LMDBSource(path)
    assert descriptors_below(tmp_path) == []


def test_a_database_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as directory:
        path, _ = image_lmdb(os.path.join(directory, "db"), 3)
        os.chmod(directory, 0o755)
        os.chmod(os.path.join(path, "data.mdb"), 0)
        with as_nobody(), pytest.raises(SourceError, match=f"cannot open the LMDB database {path}: Permission denied"):
            LMDBSource(path)
        assert descriptors_below(directory) == []


def test_a_number_of_records_that_is_damaged(tmp_path):
    """It stands in both meta pages, without a checksum: so many addresses of 24 bytes are 8 bytes in 64 bits."""
    path, _ = image_lmdb(str(tmp_path / "db"), 5000)
    file = Path(path, "data.mdb")
    content = bytearray(file.read_bytes())
    for page in 0, 4096:
        at = content.find(struct.pack("<Q", 5000), page, page + 200)
        if at >= 0:
            content[at : at + 8] = struct.pack("<Q", (2**64 + 8) // 24)
    file.write_bytes(content)
    with pytest.raises(
        SourceError,
        match=f"{path}: data.mdb is damaged: it says that it has 768614336404564651 records, and has 5000; make",
    ):
        LMDBSource(path)
    with (
        LMDBSource(path, check=False) as source,
        pytest.raises(MemoryError, match="no memory for the addresses of 768614336404564651 "),
    ):
        Loader(source, batch_size=4, shuffle=True)


def test_a_source_whose_init_was_not_called():
    source = LMDBSource.__new__(LMDBSource)
    with pytest.raises(RuntimeError, match="a LMDBSource was made without a path: its __init__ was not called"):
        source.shape
    with pytest.raises(Closed):
        Loader(source)
    assert (len(source), repr(source)) == (0, "LMDBSource(None)")
    source.close()


# ---- records


def test_a_byte_behind_a_whole_datum_is_ignored(tmp_path):
    """As in Caffe, which ignores protobuf's result. Without a label, the record is refused."""
    path = write_lmdb(tmp_path / "db", [GOOD + b"\0", GOOD + b"\xff\xff", shape(1, 1, 2) + data(2) + b"\0"])
    with LMDBSource(path) as source, Loader(source, timeout=PATIENCE) as loader:
        *good, error = outcomes(iter(loader))
        assert good == [[b"00000000"], [b"00000001"]]
        assert (error.index, NOT_A_DATUM in error.reason) == (2, True)


def test_no_memory_is_asked_for_on_a_records_word_alone():
    """Records that claim 1.8 GB are refused as damaged, in a process limited to less than half of that."""
    run_child("""
        import tempfile
        from children import limit_memory
        from databases import write_lmdb
        from bad_records import BAD_RECORDS, GOOD, shape
        from fastbatch import LMDBSource, Loader, SampleError, Transform
        claims = [BAD_RECORDS["large"][0], shape(1, 40000, 40000) + b"\\x32" + b"\\x04" + bytes(4)]
        with tempfile.TemporaryDirectory() as directory:
            path = write_lmdb(directory, [*claims, GOOD])
            limit_memory(2**29)
            with LMDBSource(path) as source:
                for transform in (None, Transform(crop_size=2)):
                    for batch_size in (1, 3):
                        with Loader(source, transform, batch_size=batch_size, threads=1, prefetch=1) as loader:
                            try:
                                next(iter(loader))
                            except SampleError as error:
                                assert "the Datum is truncated" in error.reason, error
                            else:
                                raise AssertionError("a batch came")
    """)


def test_shapes_that_change_inside_a_batch(tmp_path):
    sizes = [(3, 8, 9), (3, 8, 9), (3, 8, 9), (3, 9, 8), (3, 5, 5), (3, 5, 5)]
    path = write_lmdb(tmp_path / "db", [datum(images(1, size)[0], 0) for size in sizes])
    with LMDBSource(path) as source, Loader(source, batch_size=2, timeout=PATIENCE) as loader:
        for _ in range(2):
            first, error, last = outcomes(iter(loader))
            assert (first, last) == ([b"00000000", b"00000001"], [b"00000004", b"00000005"])
            assert (error.key, error.stage) == (b"00000003", "collate")
            assert error.reason.startswith(
                "its data has shape (3, 9, 8), but the batch has (3, 8, 9), the shape of its first sample"
            )
            assert error.reason.endswith(
                "; use crop_size, a batch size of 1, or samples of one shape (images of a list: size=, or new_height "
                "and new_width)"
            )
    crop = Transform(crop_size=5)
    with LMDBSource(path) as source, Loader(source, crop, batch_size=6, timeout=PATIENCE) as loader:
        assert next(iter(loader)).data.shape == (6, 3, 5, 5)


def test_a_type_that_changes_inside_a_database(tmp_path):
    records = [datum(images(1, dtype=dtype)[0], 0) for dtype in (np.uint8, np.float32, np.uint8)]
    path = write_lmdb(tmp_path / "db", records)
    with LMDBSource(path) as source:
        with Loader(source, timeout=PATIENCE) as loader:
            first, error, last = outcomes(iter(loader))
            assert (first, last) == ([b"00000000"], [b"00000002"])
            assert error.key == b"00000001" and "its data is of another type than the first sample's" in error.reason
        with Loader(source, Transform(), batch_size=3, timeout=PATIENCE) as loader:
            assert next(iter(loader)).data.dtype == np.float32


# ---- pages


def test_a_damaged_page_is_an_error_and_not_a_crash(tmp_path):
    """Pages are overwritten: whatever LMDB reads, no process dies, and the errors name the source."""
    path, _ = image_lmdb(tmp_path / "db", 300, (1, 4, 4))
    with LMDB(path, readonly=True) as database:
        assert database.stat().leaf_pages > 3
    with open(os.path.join(path, "data.mdb"), "r+b") as file:
        pages = os.path.getsize(os.path.join(path, "data.mdb")) // 4096
        for page in range(2, pages):
            file.seek(4096 * page + 16)
            if page % 3 == 0:
                file.write(b"\x00" * 4080)
    out = run_child(f"""
        from fastbatch import LMDBSource, Loader, SampleError, SourceError
        good = bad = 0
        try:
            with LMDBSource({path!r}) as source, Loader(source, timeout=20) as loader:
                epoch = iter(loader)
                while True:
                    try:
                        next(epoch)
                        good += 1
                    except SampleError as error:
                        assert error.source == {path!r}
                        bad += 1
                    except StopIteration:
                        break
        except SourceError as error:
            assert {path!r} in str(error), error
            bad += 1
        print(good, bad)
    """)
    _good, bad = map(int, out.split())
    assert bad >= 1
