"""What the sources of LMDB and of LevelDB databases have in common, with one test for both.

tests/test_lmdb.py and tests/test_leveldb.py have what only one of them does.
"""

import os
from typing import Callable, NamedTuple

import numpy as np
import pytest

import fastbatch
from bad_records import BAD_RECORDS, GOOD
from contracts import PATIENCE, check_source, loader_of, outcomes, stack
from databases import datum, encoded, images, write_leveldb, write_lmdb
from fastbatch import Closed, LevelDBSource, LMDBSource, Loader, SampleError, SourceError, Transform
from files import descriptors_below
from jpegs import encode_jpeg, encode_png, noise

KEYS = [b"%08d" % i for i in range(10)]
SMALL, LARGE = (3, 12, 10), (3, 150, 150)  # LevelDB finds records from 64 KB on by their keys

needs_images = pytest.mark.skipif(fastbatch.features()["jpeg"] is None, reason="built without decoders")


class Kind(NamedTuple):
    """One of the two."""

    name: str
    source: type
    write: Callable
    lock: str  # the file that is open once for each handle


KINDS = [
    Kind("lmdb", LMDBSource, write_lmdb, "lock.mdb"),
    Kind("leveldb", LevelDBSource, write_leveldb, "LOCK"),
]


@pytest.fixture(params=KINDS, ids=[kind.name for kind in KINDS])
def kind(request):
    if fastbatch.features()[request.param.name] is None:
        pytest.skip(f"built without {request.param.name}")
    return request.param


def written(kind, folder, count=3):
    """(path, pictures) of a database with the labels 0, 1, ..."""
    pictures = images(count)
    return kind.write(folder / "db", [datum(*pair) for pair in zip(pictures, range(count))]), pictures


# ---- records


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_records_of_both_types(kind, tmp_path, dtype, packed):
    labels = [7, 0, -1, 2**31 - 1, -(2**31), 2**24 + 1, 5]
    pictures = images(7, SMALL, dtype)
    path = kind.write(tmp_path / "db", [datum(*pair, packed=packed) for pair in zip(pictures, labels)])
    with kind.source(path) as source:
        assert (source.shape, source.path, source.encoded) == (SMALL, path, False)
        check_source(source, stack(pictures, labels), KEYS[:7])


@pytest.mark.parametrize("first", [SMALL, LARGE], ids=["small", "large"])
def test_images_of_many_sizes(kind, tmp_path, first):
    shapes = [first, (1, 4, 4), (3, 200, 131), (2, 1, 1), first]
    pictures = [images(1, shape, seed=i)[0] for i, shape in enumerate(shapes)]
    path = kind.write(tmp_path / "db", [datum(picture, label) for label, picture in enumerate(pictures)])
    check_source(kind.source(path), stack(pictures, range(5)), KEYS[:5])


def test_keys_give_the_order(kind, tmp_path):
    pictures = images(4, (1, 2, 2))
    keys = [b"b", b"\xff\x00", b"a" * 511, b"10"]
    path = kind.write(tmp_path / "db", [(key, datum(picture, 0)) for key, picture in zip(keys, pictures)])
    order = sorted(range(4), key=keys.__getitem__)
    check_source(kind.source(path), stack(pictures[order], [0] * 4), sorted(keys))


def test_float_data_in_several_pieces(kind, tmp_path):
    """Packed and unpacked pieces of float_data in one record; and uint8 in a database that began with float."""
    floats, pixels = images(1, (1, 2, 3), np.float32)[0], images(1, (1, 2, 3))[0]
    shape = datum(floats, 0)[:6]
    values = floats.tobytes()
    mixed = shape + b"\x28\x04" + b"\x32\x08" + values[:8] + b"\x35" + values[8:12] + b"\x32\x0c" + values[12:]
    path = kind.write(tmp_path / "db", [mixed, datum(pixels, 9)])
    check_source(kind.source(path), stack([floats, pixels.astype(np.float32)], [4, 9]), KEYS[:2])


def test_a_record_without_a_label_has_the_label_0(kind, tmp_path):
    pictures = images(3)
    path = kind.write(tmp_path / "db", [datum(picture) for picture in pictures])
    check_source(kind.source(path), stack(pictures, [0, 0, 0]), KEYS[:3])


@needs_images
@pytest.mark.parametrize("color", ["unchanged", "color", "gray"])
def test_encoded_records(kind, tmp_path, color):
    """JPEG and PNG, of one size and of several, between raw ones."""
    pixels = [noise(20, 31, seed=1), noise(9, 14, seed=2), noise(5, 5, 1, seed=3)[:, :, None]]
    files = [encode_jpeg(pixels[0]), encode_png(pixels[1], 2, 8), encode_png(pixels[2], 0, 8)]
    decoded = [np.ascontiguousarray(fastbatch.images.decode_image(file, color).transpose(2, 0, 1)) for file in files]
    raw = images(1, (3, 7, 8))[0]
    path = kind.write(tmp_path / "db", [*(encoded(file, i) for i, file in enumerate(files)), datum(raw, 3)])
    with kind.source(path, color) as source:
        assert (source.shape, source.encoded) == (decoded[0].shape, True)
        check_source(source, stack([*decoded, raw], range(4)), KEYS[:4])


@needs_images
def test_encoded_records_behind_one_of_floats(kind, tmp_path):
    """As in Caffe, where each record is read as what it is."""
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    rows = np.ascontiguousarray(pixels.transpose(1, 2, 0)[:, :, ::-1])
    records = [datum(pixels.astype(np.float32), 0), encoded(encode_png(rows, 2, 8), 1)]
    source = kind.source(kind.write(tmp_path / "db", records))
    with Loader(source, Transform(scale=2), batch_size=2) as loader:
        batch = next(iter(loader))
        assert (batch["data"] == 2 * pixels.astype(np.float32)).all()
        assert batch["label"].tolist() == [0, 1]


# ---- records that cannot be read


@pytest.mark.parametrize("case", list(BAD_RECORDS))
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("transform", [None, Transform(scale=2)])
def test_records_that_cannot_be_read(kind, tmp_path, case, shuffle, transform):
    record, reason = BAD_RECORDS[case]
    path = kind.write(tmp_path / "db", [(b"a", GOOD), (b"b\xff", record), (b"c", GOOD)])
    with kind.source(path) as source, Loader(source, transform, shuffle=shuffle, timeout=PATIENCE) as loader:
        for epoch in range(2):
            found = outcomes(iter(loader))
            errors = [error for error in found if isinstance(error, SampleError)]
            assert sorted(keys for keys in found if keys not in errors) == [[b"a"], [b"c"]]
            (error,) = errors
            stage = "decode" if reason.startswith(("neither", "the JPEG")) else "read"
            assert (error.source, error.key, error.index, error.stage) == (path, b"b\xff", 1, stage)
            assert (error.epoch, error.batch) == (epoch, found.index(error))
            assert reason in error.reason
            assert str(error).startswith(f"{path}, sample 1 (key 'b\\xff'): {error.reason}")


def test_a_first_record_that_cannot_be_read_is_an_error_of_its_batch(kind, tmp_path):
    path = kind.write(tmp_path / "db", [b"nonsense", GOOD, GOOD])
    with kind.source(path) as source:
        with pytest.raises(SampleError, match=f"{path}, sample 0 \\(key '00000000'\\): the record is not a Datum"):
            source.shape
        with Loader(source, timeout=PATIENCE) as loader:
            for _ in range(2):
                error, *rest = outcomes(iter(loader))
                assert (error.index, error.key, rest) == (0, KEYS[0], [[KEYS[1]], [KEYS[2]]])


# ---- opening and closing


@pytest.mark.parametrize("path, error", [(7, TypeError), (None, TypeError), ("a\0b", ValueError), ("", SourceError)])
def test_what_is_no_path(kind, path, error):
    with pytest.raises(error):
        kind.source(path)


def test_by_a_path_object_and_another_name(kind, tmp_path):
    """The library itself would open it twice, which neither survives."""
    path, pictures = written(kind, tmp_path)
    os.symlink(path, tmp_path / "link")
    with kind.source(tmp_path / "db") as first, kind.source(tmp_path / "link") as second:
        assert descriptors_below(path).count(kind.lock) == 1
        for source in (first, second):
            check_source(source, stack(pictures, range(3)), KEYS[:3])
    assert repr(second) == f"{kind.source.__name__}({str(tmp_path / 'link')!r})"


def test_it_is_open_once_and_closed_with_its_last_user(kind, tmp_path):
    path, _ = written(kind, tmp_path)
    first, second = kind.source(path), kind.source(path)
    loader, shuffling = loader_of(first), loader_of(second, shuffle=True)
    assert descriptors_below(tmp_path).count(kind.lock) == 1
    first.close()
    second.close()
    first.close()
    assert len(list(loader)) == len(list(shuffling)) == 3  # a loader keeps what it reads open
    loader.close()
    assert descriptors_below(tmp_path).count(kind.lock) == 1
    shuffling.close()
    assert descriptors_below(tmp_path) == []
    for use in (lambda: Loader(first), lambda: Loader(first, shuffle=True)):
        with pytest.raises(Closed, match=f"{kind.source.__name__}\\('{path}'\\) is closed"):
            use()
    kind.write(path, [(b"more", GOOD)])  # anybody may have it now
    with kind.source(path) as again:
        assert len(again) == 4


def test_a_source_that_is_collected_is_closed(kind, tmp_path):
    path, _ = written(kind, tmp_path)
    source = kind.source(path)
    del source
    assert descriptors_below(tmp_path) == []
