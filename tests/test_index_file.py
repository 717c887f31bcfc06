"""The index of JPEG files as a file: what is in it is used at once, and nothing wrong in it is ever believed."""

import logging
import os
import pickle
import shutil
import struct

import numpy as np
import pytest

codec = pytest.importorskip("fastbatch.images._codec")

from children import FORKS, run_child
from databases import LMDB, encoded, pairs, write_leveldb, write_lmdb
from fastbatch import (
    ImageFolderSource,
    ImageListSource,
    Joined,
    LevelDBSource,
    LMDBSource,
    Loader,
    SourceError,
    Transform,
)
from jpegs import encode_jpeg, noise
from planned import PATIENCE

if codec.jpeg_decoder() != "own":
    pytest.skip("the own JPEG decoder is not in use here", allow_module_level=True)

COUNT = 8
CONTENTS = [encode_jpeg(noise(200, 300, seed=number)) for number in range(COUNT)]
HEADER = struct.Struct("=8sII6Q")


def ways(source, epochs=1, **options):
    """(what decoded the images of some epochs, and of the beginning of the next one; the batches of the last)"""
    options = {"batch_size": len(source), "threads": 2, "seed": 5, "timeout": PATIENCE, **options}
    with Loader(source, Transform(crop_size=40), prefetch=1, **options) as loader:
        for _ in range(epochs):
            shown = [np.array(batch["data"]) for batch in loader]
        images = loader.stats().images
    return images, shown


@pytest.fixture
def paths(tmp_path):
    found = []
    for number, content in enumerate(CONTENTS):
        found.append(str(tmp_path / f"{number}.jpg"))
        with open(found[-1], "wb") as file:
            file.write(content)
        os.utime(found[-1], (1e9, 1e9))
    return found


@pytest.fixture
def index(tmp_path):
    return tmp_path / "train.index"


def images_in(index):
    magic, order, version, size, images, *_ = HEADER.unpack(index.read_bytes()[: HEADER.size])
    assert (magic, order, version, size) == (b"\x8afbindex", 0x01020304, 1, index.stat().st_size)
    return images


def without(source_of, *arguments):
    """The first epoch's pixels without an index."""
    with source_of(*arguments, index_bytes=0) as source:
        return ways(source)[1]


def same(some, others):
    return len(some) == len(others) and all(map(np.array_equal, some, others))


def test_it_is_written_when_a_loader_closes_and_used_by_the_next_source(paths, index):
    plain = without(ImageListSource, paths)
    images, shown = ways(ImageListSource(paths, index_file=index))
    assert images["own"] >= COUNT and same(shown, plain)
    assert images_in(index) == COUNT
    images, shown = ways(ImageListSource(paths, index_file=index))
    assert images["own"] == 0 and images["index"] >= COUNT and same(shown, plain)
    assert os.listdir(index.parent).count("train.index") == 1 and len(os.listdir(index.parent)) == COUNT + 1


@pytest.mark.parametrize("kind", [LMDBSource, LevelDBSource])
def test_databases(tmp_path, index, kind):
    path = str(tmp_path / "database")
    (write_lmdb if kind is LMDBSource else write_leveldb)(path, [encoded(each, 3) for each in CONTENTS])
    plain = without(kind, path)
    for shuffle in False, True:
        for known in False, True:
            with kind(path, index_file=os.fsencode(index)) as source:
                images, shown = ways(source, shuffle=shuffle)
            assert (images["own"] == 0) == known and (shuffle or same(shown, plain))
        index.unlink()


def test_a_folder_and_parts_of_sources(tmp_path, paths, index):
    for label in "ab":
        (tmp_path / label).mkdir()
        shutil.copy(paths["ab".index(label)], tmp_path / label)
    source = ImageFolderSource(tmp_path, index_file=index)
    ways(Joined(source, number=np.arange(2))[:1])
    assert images_in(index) == 1
    ways(source)
    assert images_in(index) == 2
    assert ways(ImageFolderSource(tmp_path, index_file=str(index)))[0]["own"] == 0


def test_entries_belong_to_bytes_wherever_they_are(tmp_path, paths, index):
    """In another order, under other names, in a database, and in one that was written again."""
    ways(ImageListSource(paths, index_file=index))
    for path in paths:
        os.rename(path, f"{path}.moved")
        os.utime(f"{path}.moved", (2e9, 1.1e9))
    moved = [f"{path}.moved" for path in paths[::-1]]
    assert ways(ImageListSource(moved, index_file=index))[0]["own"] == 0
    path = str(tmp_path / "lmdb")
    write_lmdb(path, [encoded(each, 3) for each in CONTENTS])
    for _ in range(2):
        with LMDBSource(path, index_file=index) as source:
            assert ways(source)[0]["own"] == 0
        with LMDB(path) as database:
            database.put(pairs([encoded(each, 4) for each in CONTENTS[::-1]]))
    assert images_in(index) == COUNT


def test_an_image_that_changes_is_not_the_same_image(paths, index):
    """One bit, of which neither the size nor the header nor the file's times tell anything."""
    ways(ImageListSource(paths, index_file=index))
    content = bytearray(CONTENTS[3])
    content[len(content) // 2] ^= 4
    with open(paths[3], "r+b") as file:
        file.write(content)
    os.utime(paths[3], (1e9, 1e9))
    images, shown = ways(ImageListSource(paths, index_file=index))
    assert images["index"] >= COUNT - 1 and same(shown, without(ImageListSource, paths))


def test_images_that_are_new_are_added(paths, index):
    ways(ImageListSource(paths[:3], index_file=index))
    ways(ImageListSource(paths[5:], index_file=index))
    assert images_in(index) == 6
    ways(ImageListSource(paths, index_file=index))
    assert images_in(index) == COUNT
    assert ways(ImageListSource(paths[2:6] * 2, index_file=index))[0]["own"] == 0


def test_it_is_written_between_epochs(paths, index):
    with Loader(ImageListSource(paths, index_file=index), Transform(crop_size=40), batch_size=COUNT) as loader:
        list(map(len, loader))
        assert not index.exists()
        iterator = iter(loader)
        next(iterator)
        assert images_in(index) == COUNT
    before = index.stat()
    ways(ImageListSource(paths, index_file=index), 3)
    assert index.stat() == before  # there was nothing to write


def test_two_processes_lose_nothing(paths, index):
    """Both begin without a file. The second one to end keeps what the first one has written."""
    first, second = ImageListSource(paths[:4], index_file=index), ImageListSource(paths[3:], index_file=index)
    options = {"batch_size": 4, "threads": 1, "prefetch": 1}
    with Loader(first, Transform(crop_size=40), **options) as one:
        with Loader(second, Transform(crop_size=40), **options) as other:
            for loader in one, other:
                list(map(len, loader))
        assert images_in(index) == COUNT - 3
    assert images_in(index) == COUNT


def test_a_child_process_opens_it_anew(paths, index):
    ways(ImageListSource(paths, index_file=index))
    run_child(
        f"""
import os
from fastbatch import ImageListSource, Loader, Transform

def decoded(source):
    with Loader(source, Transform(crop_size=40), batch_size=1, threads=1, prefetch=1) as loader:
        list(map(len, loader))
        return loader.stats().images["own"]

source = ImageListSource({paths!r}, index_file={str(index)!r})
assert decoded(source) == 0
child = os.fork()
if child == 0:
    assert decoded(source) == 0
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert decoded(source) == 0
""",
        *FORKS,
    )


def test_it_takes_little_memory_and_honors_its_limit(paths, index):
    ways(ImageListSource(paths, index_file=index))
    assert ways(ImageListSource(paths, index_bytes=2000, index_file=index))[0]["own"] == 0
    more = [f"{paths[0]}.{number}.jpg" for number in range(16)]
    for number, path in enumerate(more):
        with open(path, "wb") as file:
            file.write(encode_jpeg(noise(200, 300, seed=100 + number)))
    ways(ImageListSource(more, index_file=index))
    with pytest.raises(SourceError, match=r"train.index, \d+ bytes have to be in memory, and index_bytes allows 1024"):
        ways(ImageListSource(paths, index_bytes=1024, index_file=index))


# ---- files that are of no use


def damages(content):
    """Damaged copies of an index, by what was done."""
    yield "empty but for the magic", content[:8]
    yield "a part of the header", content[:40]
    yield "no table", content[: -16 * COUNT]
    yield "one byte too few", content[:-1]
    yield "one byte too many", content + b"\0"
    for at in (16, 24, 32, 40, 48, 56, len(content) - 10, len(content) - 16 * COUNT):
        changed = bytearray(content)
        changed[at] ^= 1
        yield f"byte {at} changed", bytes(changed)


def test_a_damaged_file_is_made_anew(paths, index, caplog):
    ways(ImageListSource(paths, index_file=index))
    good = index.read_bytes()
    plain = without(ImageListSource, paths)
    for what, content in damages(good):
        index.write_bytes(content)
        caplog.clear()
        images, shown = ways(ImageListSource(paths, index_file=index))
        assert same(shown, plain) and images["own"] >= COUNT, what
        assert index.read_bytes() == good, what
        (record,) = caplog.records
        assert "train.index is of no use, and is made anew: it " in record.getMessage(), what
        assert record.levelno == logging.WARNING and record.name == "fastbatch"


def test_a_damaged_entry_is_made_anew(paths, index):
    ways(ImageListSource(paths, index_file=index))
    good, plain = index.read_bytes(), without(ImageListSource, paths)
    for at in (64, 72, 80, 88, 92, 94, 96, 98, 110, 500, len(good) - 16 * COUNT - 40):
        changed = bytearray(good)
        changed[at] ^= 16
        index.write_bytes(changed)
        images, shown = ways(ImageListSource(paths, index_file=index))
        assert same(shown, plain) and images["index"] >= COUNT - 1 and images["own"] >= 1, at
        assert index.read_bytes() == good, at


def test_a_file_of_somebody_else_stays_as_it_is(paths, index):
    for content in b"", b"train.txt", CONTENTS[0], b"\x8afbinde", bytes(1000):
        index.write_bytes(content)
        with pytest.raises(
            SourceError, match="train.index is not an index of JPEG files: index_file is the file where"
        ):
            ways(ImageListSource(paths, index_file=index))
        assert index.read_bytes() == content
    with pytest.raises(SourceError, match="is not an index of JPEG files"):
        ways(ImageListSource(paths, index_file=index.parent))


@pytest.mark.parametrize("order, version", [(0x01020304, 2), (0x04030201, 1)])
def test_another_version_or_byte_order(paths, index, order, version):
    ways(ImageListSource(paths, index_file=index))
    content = bytearray(index.read_bytes())
    struct.pack_into("=II", content, 8, order, version)
    index.write_bytes(content)
    with pytest.raises(
        SourceError, match="was made by another version of fastbatch, or on a machine with another byte"
    ):
        ways(ImageListSource(paths, index_file=index))
    assert index.read_bytes() == content


def test_where_it_cannot_be(paths, index):
    with pytest.raises(SourceError, match="index_file is .*/no/train.index, and there is no folder .*/no/$"):
        ways(ImageListSource(paths, index_file=index.parent / "no" / "train.index"))
    index.symlink_to(index)
    with pytest.raises(SourceError, match="cannot read the index of JPEG files .*: Too many levels of symbolic links"):
        ways(ImageListSource(paths, index_file=index))


def test_a_disk_that_is_full(paths, index):
    """A limit of the size of files has to do. One sentence is enough."""
    sentence = f"cannot write the index of JPEG files {index}: File too large; the index stays in memory, and the file"
    run_child(
        f"""
import logging, resource, signal
from fastbatch import ImageListSource, Loader, Transform

logging.basicConfig(format="%(message)s")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with Loader(ImageListSource({paths!r}, index_file={str(index)!r}), Transform(crop_size=40), batch_size=4) as loader:
    for _ in range(3):
        list(map(len, loader))
    assert loader.stats().images["index"] >= {COUNT}
""",
        stderr=f"{sentence} as it was\n",
    )
    assert not index.exists() and len(os.listdir(index.parent)) == COUNT


def test_a_link_stays_a_link_and_a_mode_stays(paths, index):
    target = index.with_name("target")
    ways(ImageListSource(paths[:4], index_file=target))
    index.symlink_to("target")
    target.chmod(0o640)
    ways(ImageListSource(paths, index_file=index))
    assert index.is_symlink() and images_in(target) == COUNT and target.stat().st_mode & 0o777 == 0o640


# ---- the option


def test_wrong_options(tmp_path, paths, index):
    for wrong, error in ((3, TypeError), (True, TypeError), ("", ValueError), ("a\0b", ValueError)):
        with pytest.raises(error, match="index_file is .*the path of"):
            ImageListSource(paths, index_file=wrong)
    with pytest.raises(ValueError, match="index_file has no effect with index_bytes=0, which turns the index off"):
        ImageListSource(paths, index_bytes=0, index_file=index)
    write_lmdb(str(tmp_path / "raw"), [b"\x08\x01\x10\x02\x18\x02\x22\x04abcd"])
    with pytest.raises(ValueError, match="index_file has no effect: the first record of .* is no image file"):
        LMDBSource(str(tmp_path / "raw"), index_file=index)


def test_it_is_pickled(tmp_path, paths, index):
    write_lmdb(str(tmp_path / "lmdb"), [encoded(each, 3) for each in CONTENTS])
    write_leveldb(str(tmp_path / "leveldb"), [encoded(each, 3) for each in CONTENTS])
    (tmp_path / "folder" / "a").mkdir(parents=True)
    shutil.copy(paths[0], tmp_path / "folder" / "a")
    for source, count in (
        (ImageListSource(paths, index_file=index), COUNT),
        (ImageFolderSource(tmp_path / "folder", index_file=index), 1),
        (LMDBSource(str(tmp_path / "lmdb"), index_file=index), COUNT),
        (LevelDBSource(str(tmp_path / "leveldb"), index_file=index), COUNT),
    ):
        with source, pickle.loads(pickle.dumps(source)) as copy:
            ways(copy)
        assert images_in(index) == count
        index.unlink()


def test_it_does_not_follow_the_current_folder(tmp_path, paths, index, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = ImageListSource(paths, index_file="train.index")
    monkeypatch.chdir(tmp_path.parent)
    ways(source)
    assert images_in(index) == COUNT
