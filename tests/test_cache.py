"""The cache of decoded images: batches have the same bits with it and without."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbatch
from children import FORKS, run_child
from contracts import PATIENCE, check_source, outcomes
from databases import datum, encoded, images, write_leveldb, write_lmdb
from fastbatch import ArraySource, ImageListSource, Joined, Loader, PythonSource, Transform
from geometries import geometries
from jpegs import encode_jpeg, encode_png, noise, with_exif
from third_party import ThirdParty

pytestmark = pytest.mark.skipif(fastbatch.features()["jpeg"] is None, reason="built without decoders")

LARGE = 2**24


def loader_of(source, transform=None, **options):
    return Loader(source, transform, timeout=PATIENCE, **{"batch_size": 1, "threads": 1, "seed": 3, **options})


def epochs(loader, count=3):
    """All that the batches of some epochs hold."""
    return [
        [
            (batch.sample_keys, {name: (array.shape, array.dtype, array.tobytes()) for name, array in batch.items()})
            for batch in loader
        ]
        for _ in range(count)
    ]


def settled(loader):
    """The loader's counters once it is closed, when nothing changes any more."""
    loader.close()
    return loader.stats()


def assert_found(stats, count):
    """Asserts that each of so many images was decoded once; with several threads, again while another one was at it."""
    assert count <= stats.cache_misses <= count + (stats.threads - 1) * stats.slots
    assert stats.cache_hits > 0


def files(folder, contents):
    paths = []
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
        paths.append(folder / f"{number}.jpg")
    return paths


@pytest.fixture
def photos(tmp_path):
    """Files of ten images of different sizes and kinds."""
    contents = [encode_jpeg(noise(30 + 3 * i, 50 - 2 * i, seed=i)) for i in range(6)]
    contents += [with_exif(encode_jpeg(noise(31, 44)), orientation) for orientation in (3, 6)]
    contents += [encode_png(noise(33, 29).astype(int), 2, 8), encode_jpeg(noise(32, 32, 1))]
    return files(tmp_path, contents)


TRANSFORMS = {
    "none": None,
    "means": Transform(crop_size=20, mirror=True, mean_value=104, scale=0.5),
    "resized": Transform(resize=24, crop_size=20, mirror=True, mean=(0.5,), std=(0.25,)),
    "resized to one size": Transform(resize=(40, 26), padding=2, phase="TEST", color="rgb", layout="NHWC"),
    "random": Transform(random_resized_crop=16, mirror=True, dtype="uint8"),
    "colored": Transform(crop_size=16, brightness=0.4, contrast=0.4, saturation=0.4, dtype="float16"),
    "gray": Transform(resize=30, crop_size=8, color="gray"),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("options", [{}, {"color": "gray"}, {"size": (28, 36)}], ids=["", "gray", "sized"])
def test_the_same_bits(photos, name, options):
    transform = TRANSFORMS[name]
    if "size" in options and transform is not None and (transform.resize or transform.random_resized_crop):
        pytest.skip("both would resize")
    source = ImageListSource([(path, number) for number, path in enumerate(photos)], **options)
    for threads in 1, 3:
        with loader_of(source, transform, shuffle=True) as plain:
            expected = epochs(plain)
        with loader_of(source, transform, shuffle=True, threads=threads, cache_bytes=LARGE) as loader:
            assert epochs(loader) == expected
            assert_found(settled(loader), 10)


@settings(max_examples=40)
@given(geometries(), st.integers(0, 2**32), st.sampled_from([1, 3]))
def test_any_geometry(tmp_path_factory, geometry, seed, channels):
    height, width, parameters = geometry
    folder = tmp_path_factory.mktemp("images")
    images = files(folder, [encode_jpeg(noise(height, width, channels, seed=seed % 1000 + i)) for i in range(2)])
    (folder / "mask").write_bytes(encode_png(noise(height, width, 1).reshape(height, width, 1).astype(int), 0, 8))
    rows = np.array([[[1, 2, 20, 30]]] * 2, np.float32)
    masks = ImageListSource([folder / "mask"] * 2, color="gray")
    source = Joined(ImageListSource(images, color="unchanged"), mask=masks, box=rows)
    moved = ("box",) if parameters["mirror"] or len(parameters) > 1 else ()
    transform = Transform(fields=("data", "mask"), boxes=moved, **parameters)
    with loader_of(source, transform, seed=seed) as plain:
        expected = epochs(plain)
    with loader_of(source, transform, seed=seed, cache_bytes=LARGE) as loader:
        assert epochs(loader) == expected
        assert_found(settled(loader), 4)


@pytest.mark.parametrize("name, write", [("LMDBSource", write_lmdb), ("LevelDBSource", write_leveldb)])
def test_databases(tmp_path, name, write):
    if not hasattr(fastbatch, name):
        pytest.skip("built without its library")
    records = [encoded(encode_jpeg(noise(30, 40, seed=i)), i) for i in range(9)]
    source = getattr(fastbatch, name)(write(tmp_path / "db", records))
    transform = Transform(crop_size=20, mirror=True)
    for options in {"shuffle": True}, {}, {"rank": 1, "ranks": 2, "shuffle": True}, {"last_batch": "wrap"}:
        options = {"batch_size": 4, **options}
        with loader_of(source, transform, **options) as plain:
            expected = epochs(plain)
        with loader_of(source, transform, cache_bytes=LARGE, **options) as loader:
            assert epochs(loader) == expected
            assert 0 < settled(loader).cache_misses <= 9


def test_a_source_keeps_its_contract(tmp_path):
    pixels = [noise(12, 11, seed=i) for i in range(7)]
    paths = files(tmp_path, [encode_png(each.astype(int), 2, 8) for each in pixels])
    expected = {"data": [np.ascontiguousarray(each[:, :, ::-1].transpose(2, 0, 1)) for each in pixels]}
    check_source(ImageListSource(paths), expected, [os.fsencode(path) for path in paths])
    with loader_of(ImageListSource(paths), batch_size=7, cache_bytes=LARGE) as loader:
        for _ in range(3):
            (batch,) = loader
            assert batch.sample_keys == [os.fsencode(path) for path in paths]
            assert (batch.data == np.stack(expected["data"])).all()


def test_a_position_is_restored(photos):
    source = ImageListSource(photos)[[0, 1, 1, 2, 9, 5, 5, 5]]
    transform = Transform(crop_size=20, mirror=True)
    with loader_of(source, transform, shuffle=True, batch_size=3) as plain:
        expected = epochs(plain)
        with loader_of(source, transform, shuffle=True, batch_size=3, cache_bytes=LARGE) as loader:
            assert epochs(loader) == expected
            plain.load_state_dict(loader.state_dict())
            loader.load_state_dict({**loader.state_dict(), "epoch": 1, "batch": 1})
            assert epochs(loader, 1) == [expected[1][1:]]
            assert_found(settled(loader), 8)  # by its place in the subset


def test_files_are_read_once_and_other_fields_each_time(photos):
    weight = np.arange(10.0)
    source = ImageListSource(photos, weight=weight)
    with loader_of(source, Transform(crop_size=20), prefetch=1, cache_bytes=LARGE) as loader:
        first = epochs(loader, 1)
        loader.load_state_dict({**loader.state_dict(), "epoch": 5, "batch": 0})
        for path in photos:
            path.unlink()
        weight[:] = 7
        loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batch": 0})
        again = epochs(loader, 1)
        assert [values["data"] for _, values in again[0]] == [values["data"] for _, values in first[0]]
        assert all(np.frombuffer(values["weight"][2]) == 7 for _, values in again[0])


def test_a_joined_python_source_is_asked_each_time(photos):
    source = Joined(ImageListSource(photos), value=PythonSource(lambda i: i, count=10, kind="thread"))
    with loader_of(source, batch_size=1, cache_bytes=LARGE) as loader:
        for _ in range(3):
            assert [int(batch["value"][0]) for batch in loader] == list(range(10))
        assert_found(settled(loader), 10)


def test_a_codec_of_a_third_party():
    party = ThirdParty()
    party.native.fields[0].ndim = -1
    party.use_codec()
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    party.show_encoded(0, pixels)
    with loader_of(party, batch_size=4, cache_bytes=LARGE) as loader:
        for _ in range(2):
            (batch,) = loader
            assert (batch.data == pixels).all() and batch.data.shape == (4, 1, 4, 5)
        party.native.left_alone = 1  # what fastbatch has, need not be shown
        (batch,) = loader
        (batch,) = loader
        assert (batch.data == pixels).all()


# ---- the budget


def test_half_of_the_images_are_there_in_every_epoch(tmp_path):
    paths = files(tmp_path, [encode_jpeg(noise(64, 64, seed=i)) for i in range(20)])
    each = 64 + 64 * 64 * 3
    room = (192 + 10 * each + 4095) // 4096 * 4096
    for shuffle in True, False:
        options = {"threads": 1, "prefetch": 1, "batch_size": 5, "shuffle": shuffle}
        with loader_of(ImageListSource(paths), cache_bytes=room, **options) as loader:
            epochs(loader, 4)
            stats = settled(loader)
            assert stats.cache_used == 192 + 10 * each <= loader.cache_bytes
            ahead = stats.cache_hits + stats.cache_misses - 4 * 20  # of the fifth epoch
            assert 0 <= ahead <= 10
            assert 30 <= stats.cache_hits <= 30 + ahead


def test_images_that_still_fit_are_kept(tmp_path):
    """After one that does not."""
    paths = files(tmp_path, [encode_jpeg(noise(side, side)) for side in (16, 120, 16, 16)])
    with loader_of(ImageListSource(paths), cache_bytes=8192) as loader:
        epochs(loader, 2)
        assert settled(loader).cache_used == 64 + 3 * (64 + 16 * 16 * 3)


@pytest.mark.parametrize(
    "cache_bytes, problem",
    [
        (0, ValueError),
        (-1, ValueError),
        (2**63, ValueError),
        (1.5, TypeError),
        ("4GB", TypeError),
        (True, TypeError),
    ],
)
def test_what_is_no_size(photos, cache_bytes, problem):
    with pytest.raises(problem, match="cache_bytes must be"):
        loader_of(ImageListSource(photos), cache_bytes=cache_bytes)


def test_no_room_for_the_table(photos):
    with pytest.raises(
        ValueError, match="cache_bytes=100 has no room for images: their table takes 128 bytes of .*, 10 images"
    ):
        loader_of(ImageListSource(photos), cache_bytes=100)


def test_more_than_there_can_be(photos):
    with pytest.raises(MemoryError, match=f"no memory for a cache of {2**60} bytes: Cannot allocate memory"):
        loader_of(ImageListSource(photos), cache_bytes=2**60)


def test_no_effect(tmp_path, photos):
    raw = (
        write_lmdb(tmp_path / "db", [datum(each, 0) for each in images(3)])
        if hasattr(fastbatch, "LMDBSource")
        else None
    )
    array = ArraySource(np.zeros((10, 3, 4, 5), np.uint8))
    sources = [array, array[:4], Joined(array, mask=np.zeros((10, 4, 5), np.uint8))]
    sources.append(PythonSource(np.zeros((10, 3), np.uint8), kind="thread"))
    if raw:
        sources += [fastbatch.LMDBSource(raw), Joined(fastbatch.LMDBSource(raw), weight=np.zeros(3))]
    for source in sources:
        with pytest.raises(ValueError, match="cache_bytes has no effect on .*: it keeps images that fastbatch decodes"):
            loader_of(source, cache_bytes=LARGE)


# ---- a file instead of memory


def test_a_file(photos, tmp_path):
    """The same bits. It has no name, and is gone with the loader."""
    source, transform = ImageListSource(photos, size=(28, 36)), Transform(crop_size=20, mirror=True)
    with loader_of(source, transform, shuffle=True) as plain:
        expected = epochs(plain)
        assert plain.cache_folder is None
    fast = tmp_path / "fast"
    fast.mkdir()
    for folder in str(fast), fast, os.fsencode(fast):
        with loader_of(source, transform, shuffle=True, threads=3, cache_bytes=LARGE, cache_folder=folder) as loader:
            assert loader.cache_folder == str(fast) and os.listdir(fast) == [] and mapped(fast) == LARGE
            assert epochs(loader) == expected
            assert_found(settled(loader), 10)
        assert mapped(fast) == 0


def mapped(folder):
    """The bytes of the maps of deleted files in a folder."""
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file if f" {folder}/fastbatch-cache-" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def test_a_folder_that_is_none_or_full(photos, tmp_path):
    source, fast = ImageListSource(photos), tmp_path / "fast"
    fast.mkdir()
    with pytest.raises(OSError, match=f"no file for the cache can be made in cache_folder='{tmp_path}/no': No such"):
        loader_of(source, cache_bytes=LARGE, cache_folder=tmp_path / "no")
    with pytest.raises(
        OSError, match="cache_folder='.*' has no room for the 1125899906842624 bytes of cache_bytes: No"
    ):
        loader_of(source, cache_bytes=2**50, cache_folder=fast)
    with pytest.raises(OSError, match="file system that cannot reserve room for the .* cache_bytes|can be made in"):
        loader_of(source, cache_bytes=LARGE, cache_folder="/proc/self/fd")
    with pytest.raises(ValueError, match="cache_bytes=100 has no room for images"):
        loader_of(source, cache_bytes=100, cache_folder=fast)
    assert os.listdir(fast) == []


def test_what_is_no_folder(photos, tmp_path):
    with pytest.raises(ValueError, match="cache_folder has no effect without cache_bytes, which says how many bytes"):
        loader_of(ImageListSource(photos), cache_folder=tmp_path)
    for wrong, problem in (3, TypeError), (True, TypeError), ("", ValueError), ("a\0b", ValueError):
        with pytest.raises(problem, match="cache_folder must be the path of a folder"):
            loader_of(ImageListSource(photos), cache_bytes=LARGE, cache_folder=wrong)


# ---- damaged images


def test_damaged_images_are_never_kept(tmp_path):
    good = encode_jpeg(noise(60, 40))
    paths = files(tmp_path, [good, good[: len(good) // 2], b"no image", good])
    for options in {}, {"size": 20}:
        source = ImageListSource(paths, **options)
        with loader_of(source) as plain:
            expected = [list(map(str, outcomes(iter(plain)))) for _ in range(3)]
        with loader_of(source, cache_bytes=LARGE) as loader:
            assert [list(map(str, outcomes(iter(loader)))) for _ in range(3)] == expected
            area = 20 * 20 if options else 60 * 40
            assert settled(loader).cache_used == 64 + 2 * (64 + (3 * area + 63) // 64 * 64)


def test_damage_below_a_crop(tmp_path):
    """It does not concern the batch, with the cache or without."""
    good = encode_jpeg(noise(400, 100), restart=1)
    hurt = good[: -len(good) // 8] + bytes(len(good) // 8 - 2) + good[-2:]
    paths = files(tmp_path, [good, hurt])
    transform = Transform(crop_size=(40, 40), phase="TEST")
    with loader_of(ImageListSource(paths), transform) as plain:
        expected = epochs(plain)
    with loader_of(ImageListSource(paths), transform, cache_bytes=LARGE) as loader:
        assert epochs(loader) == expected
        assert settled(loader).cache_used == 64 + 64 + 400 * 100 * 3


# ---- what it says


def test_stats_and_report(photos):
    with loader_of(ImageListSource(photos)) as loader:
        epochs(loader)
        stats = loader.stats()
        assert (stats.cache_hits, stats.cache_misses, stats.cache_used, stats.cache_hit_rate) == (0, 0, 0, 0)
        assert loader.cache_bytes is None
    with loader_of(ImageListSource(photos), cache_bytes=LARGE, prefetch=1) as loader:
        mark = loader.stats()
        assert loader.cache_bytes == LARGE
        epochs(loader, 4)
        stats = settled(loader)
        assert_found(stats, 10)
        assert stats.cache_hit_rate == stats.cache_hits / (stats.cache_hits + stats.cache_misses) > 0.6
        assert stats.since(mark).cache_used == stats.cache_used > 10 * 30 * 30 * 3


def test_a_fork_does_not_inherit_it(photos):
    """The child cannot use the loader, and must not keep its memory."""
    assert run_child(
        f"""
import os
import fastbatch
paths = {[str(path) for path in photos]!r}
loader = fastbatch.Loader(fastbatch.ImageListSource(paths, size=500), batch_size=1, cache_bytes={12345 * 4096})

def mapped():
    with open("/proc/self/smaps") as file:
        return sum(line.startswith("Size:") and int(line.split()[1]) == {12345 * 4} for line in file)

def sums():
    return [int(batch.data.sum()) for batch in loader]

first = sums()
print(mapped(), flush=True)
child = os.fork()
if child == 0:
    try:
        sums()
    except fastbatch.ForkedError:
        print(mapped(), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(sums() == first)
loader.close()
print(mapped())
""",
        *FORKS,
    ).split() == ["1", "0", "True", "0"]
