"""The index of JPEG files: the same pixels and errors with and without it, and when it is used."""

import os
import pickle
import time

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
    SampleError,
    Transform,
)
from fastbatch.sources._image_index import ImageIndex
from jpegs import OPTIMIZED, PROGRESSIVE, encode_jpeg, encode_png, noise, with_exif
from planned import PATIENCE

if codec.jpeg_decoder() != "own":
    pytest.skip("the own JPEG decoder is not in use here", allow_module_level=True)

CROP = Transform(crop_size=40, mirror=True)


def write_files(folder, contents):
    """The paths of these files, which nobody changed recently."""
    paths = []
    for number, content in enumerate(contents):
        paths.append(os.path.join(folder, f"{number}.jpg"))
        write_file(paths[-1], content)
    return paths


def write_file(path, content, age=100):
    with open(path, "wb") as file:
        file.write(content)
    then = time.time() - age
    os.utime(path, (then, then))


def epochs(source, count=3, transform=CROP, **options):
    """(the batches of some epochs, the images that each of them decoded by what decoded them)"""
    options = {"batch_size": 4, "seed": 5, "threads": 2, "timeout": PATIENCE, **options}
    with Loader(source, transform, prefetch=1, **options) as loader:
        return [[np.array(batch["data"]) for batch in loader] for _ in range(count)]


def counts(source, count=1, **options):
    """What decoded the images of some epochs; prefetched ones are not waited for."""
    with Loader(source, CROP, batch_size=1, threads=1, prefetch=1, timeout=PATIENCE, seed=5, **options) as loader:
        for _ in range(count):
            for _batch in loader:
                pass
        return loader.stats().images


def same(some, others):
    return all(
        np.array_equal(one, other) for ours, theirs in zip(some, others) for one, other in zip(ours, theirs)
    ) and [len(each) for each in some] == [len(each) for each in others]


KINDS = [
    encode_jpeg(noise(300, 400, seed=1)),
    encode_jpeg(noise(299, 401, seed=2), "4:2:2", quality=75),
    encode_jpeg(noise(301, 333, seed=3), "4:4:4", flags=OPTIMIZED),
    encode_jpeg(noise(260, 300, 1, seed=4), (1, 1)),
    with_exif(encode_jpeg(noise(400, 300, seed=5), quality=96), 6),
    encode_jpeg(noise(300, 400, seed=6), "4:4:0"),
    encode_jpeg(noise(300, 400, seed=7), flags=PROGRESSIVE),
    encode_jpeg(noise(300, 400, seed=8), restart=3),
    encode_png(noise(100, 120), 2, 8),
    encode_jpeg(noise(45, 47, seed=9)),
    encode_jpeg(noise(900, 1200, seed=10)),
]


@pytest.mark.parametrize("color", ["color", "gray"])
@pytest.mark.parametrize("index_bytes", [None, 20000, 6000, 1500])
def test_the_pixels_do_not_depend_on_it(tmp_path, color, index_bytes):
    """With room for all places, for one in each row, for some images, and for none."""
    paths = write_files(tmp_path, KINDS)
    plain = epochs(ImageListSource(paths, color=color, index_bytes=0))
    assert same(epochs(ImageListSource(paths, color=color, index_bytes=index_bytes)), plain)


def test_which_images_are_in_it(tmp_path):
    source = ImageListSource(write_files(tmp_path, KINDS))
    first = counts(source)
    assert first["index"] <= 3  # of the next epoch, whose first batches are prepared
    second = counts(source)
    assert second["index"] >= 8  # gray, and the usual samplings, of which a crop is a small part
    assert second["libjpeg"] >= 1 and second["libdeflate"] + second["libpng"] >= 1


def photographs(count, seed=0):
    return [encode_jpeg(noise(200, 300, seed=seed + number)) for number in range(count)]


@pytest.fixture
def database(tmp_path):
    """The paths of two databases of the same photographs."""
    records = [encoded(content, number) for number, content in enumerate(photographs(10))]
    write_lmdb(str(tmp_path / "lmdb"), records)
    write_leveldb(str(tmp_path / "leveldb"), records)
    return str(tmp_path / "lmdb"), str(tmp_path / "leveldb")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", [LMDBSource, LevelDBSource])
def test_loaders_of_a_source_share_it(database, kind, shuffle):
    path = database[kind is LevelDBSource]
    with kind(path) as source, kind(path, index_bytes=0) as plain:
        counts(source, shuffle=shuffle)
        again = counts(source, shuffle=shuffle)
        assert again["own"] == 0 and again["index"] >= 10
        assert counts(source[2:5])["index"] >= 3  # a subset's, too
        assert counts(Joined(source, number=np.arange(10)))["own"] == 0
        assert same(epochs(source, shuffle=shuffle), epochs(plain, shuffle=shuffle))
        assert counts(plain, 2)["index"] == 0


def test_a_joined_source_uses_the_indexes_of_its_parts(tmp_path):
    paths = write_files(tmp_path, photographs(6))
    images, others = ImageListSource(paths), ImageListSource(paths[::-1], color="gray")
    joined = Joined(images, other=others)
    transform = Transform(crop_size=40, fields=("data", "other"))
    plain = Joined(ImageListSource(paths, index_bytes=0), other=ImageListSource(paths[::-1], "", "gray", index_bytes=0))
    found = []
    for source in joined, plain:
        with Loader(source, transform, batch_size=2, seed=3, threads=2, timeout=PATIENCE) as loader:
            found.append([[np.array(batch["other"]) for batch in loader] for _ in range(3)])
            assert (loader.stats().images["index"] > 0) == (source is joined)
    assert same(*found)
    assert counts(images)["own"] == 0  # of which the joined loader has shown all


def test_a_folder_of_images(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        write_files(tmp_path / label, photographs(3, seed=ord(label)))
    source = ImageFolderSource(tmp_path)
    counts(source)
    assert counts(source)["own"] == 0
    assert counts(ImageFolderSource(tmp_path, index_bytes=0), 2)["index"] == 0


def test_a_file_that_changes(tmp_path):
    """Its place in the list and its size stay the same, and so does most of its content."""
    content = bytearray(encode_jpeg(noise(200, 300)))
    paths = write_files(tmp_path, [bytes(content)] * 4)
    source = ImageListSource(paths)
    before = epochs(source, 2)
    content[len(content) // 2] ^= 4
    write_file(paths[1], content, age=50)
    assert same(epochs(source), epochs(ImageListSource(paths, index_bytes=0)))
    write_file(paths[1], encode_jpeg(noise(200, 300, seed=8)), age=49)
    after = epochs(source)
    assert same(after, epochs(ImageListSource(paths, index_bytes=0))) and not same(after, before)
    os.truncate(paths[1], 3000)
    with pytest.raises(Exception, match="is truncated"):
        epochs(source)


def test_a_file_that_was_just_written(tmp_path):
    """A change within the resolution of its times would go unnoticed: all of its bytes identify it."""
    paths = write_files(tmp_path, photographs(4))
    source = ImageListSource(paths)
    for seed in range(3):
        content = bytearray(encode_jpeg(noise(200, 300)))
        content[5000] ^= 1 << seed
        now = time.time() + 1000  # also of a clock that is ahead
        for path in paths:
            with open(path, "wb") as file:
                file.write(content)
            os.utime(path, (now, now))
        assert same(epochs(source, 2), epochs(ImageListSource(paths, index_bytes=0), 2))
    assert counts(source)["own"] == 0


def test_a_database_that_changes(tmp_path):
    path = str(tmp_path / "lmdb")
    write_lmdb(path, [encoded(content, 0) for content in photographs(4)])
    with LMDBSource(path) as source:
        before = epochs(source, 2)
        with LMDB(path) as database:
            database.put(pairs([encoded(content, 0) for content in photographs(4, seed=50)]))
        after = epochs(source, 2)
        assert not same(before, after)
        with LMDBSource(path, index_bytes=0) as plain:
            assert same(after, epochs(plain, 2))


def test_a_database_that_grows(tmp_path):
    """The first write makes all records new to the index, and later ones only those that they change."""
    path = str(tmp_path / "lmdb")
    contents = photographs(6)
    write_lmdb(path, [encoded(content, 0) for content in contents])
    with LMDBSource(path) as source:
        counts(source)
        assert counts(source)["own"] == 0
        for number, new in enumerate((6 + 1, 1, 1, 1)):
            with LMDB(path) as database:
                database.put([(b"more%d" % number, encoded(photographs(1, seed=60 + number)[0], 0))])
            total = 7 + number
            with Loader(source, CROP, batch_size=total, threads=1, prefetch=1, timeout=PATIENCE) as loader:
                len(next(iter(loader)))
                images = loader.stats().images  # perhaps some of the next epoch's, too, all from the index
            assert images["own"] == new and images["index"] >= total - new
        with LMDBSource(path, index_bytes=0) as plain:
            assert same(epochs(source, 2), epochs(plain, 2))


def damaged(content, at, how):
    content = bytearray(content)
    if how == "cut":
        return bytes(content[:at] + content[-2:])
    content[at : at + 2] = b"\xff\xd3" if how == "marker" else b"\xfe\xfe"
    return bytes(content)


@pytest.mark.parametrize("how", ["cut", "marker", "bits"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_damage_is_what_it_is_without_an_index(tmp_path, share, how):
    """Below the crop it does no harm, in no epoch."""
    content = encode_jpeg(noise(200, 300))
    paths = write_files(tmp_path, [damaged(content, int(share * len(content)), how), content])
    found = []
    for index_bytes in None, 0:
        source = ImageListSource(paths, index_bytes=index_bytes)
        with Loader(source, Transform(crop_size=40), batch_size=1, threads=1, seed=1, on_error="skip") as loader:
            shown = [[np.array(batch["data"]) for batch in loader] for _ in range(8)]
            found.append((shown, [error.reason for error in loader.errors]))
    assert same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_a_lower_crop_goes_on_where_an_earlier_one_ended(tmp_path):
    """Rows that an image's first decode did not reach are noted by those that do, and later ones jump to them."""
    contents = photographs(6)
    paths = write_files(tmp_path, contents)
    transforms = [Transform(crop_size=(40, 300)), Transform(crop_size=40)]
    source, plain = ImageListSource(paths), ImageListSource(paths, index_bytes=0)
    for seed in range(6):
        for transform in transforms:
            options = {"batch_size": 2, "seed": seed, "threads": 2}
            assert same(epochs(source, 2, transform, **options), epochs(plain, 2, transform, **options))
    again = counts(source)
    assert again["own"] == 0 and again["index"] >= 6


def test_an_image_that_is_damaged_below_the_crop_is_in_it(tmp_path):
    """A crop that shows the damage says what it says without an index."""
    content = encode_jpeg(noise(200, 300))
    paths = write_files(tmp_path, [damaged(content, int(0.8 * len(content)), "cut")])
    reasons = []
    for index_bytes in None, 0:
        source = ImageListSource(paths, index_bytes=index_bytes)
        with Loader(source, Transform(crop_size=40, phase="TEST"), timeout=PATIENCE) as loader:
            for _ in range(3):
                assert len(list(loader)) == 1
            assert (loader.stats().images["index"] > 0) == (index_bytes is None)
        with Loader(source, Transform(crop_size=(200, 40)), timeout=PATIENCE) as loader:
            with pytest.raises(SampleError) as caught:
                next(iter(loader))
            reasons.append(caught.value.reason)
    assert reasons[0] == reasons[1] and "truncated" in reasons[0]


def test_the_memory_it_takes(tmp_path):
    paths = write_files(tmp_path, photographs(30))

    def decoded(index_bytes):
        source = ImageListSource(paths, index_bytes=index_bytes)
        counts(source)
        return counts(source)

    places = decoded(None)
    assert places["own"] == 0
    rows = decoded(12000)  # 30 images of 13 rows: 12 bytes for a row, or 28
    assert rows["own"] == 0
    some = decoded(5000)
    assert 5 < some["index"] < 30 <= some["index"] + some["own"]
    assert decoded(1024)["index"] == 1 and decoded(0)["index"] == 0


def test_small_images_and_large_crops_do_without(tmp_path):
    paths = write_files(tmp_path, [encode_jpeg(noise(50, 60, seed=number)) for number in range(5)])
    assert counts(ImageListSource(paths), 2)["index"] == 0
    paths = write_files(tmp_path, [encode_jpeg(noise(200, 300, seed=number)) for number in range(5)])
    with Loader(ImageListSource(paths, size=40), batch_size=1, threads=1) as loader:  # of the whole image
        for _ in range(2):
            list(map(len, loader))
        assert loader.stats().images["index"] == 0


def test_many_threads_make_it_at_once(tmp_path):
    paths = write_files(tmp_path, photographs(5)) * 30
    source = ImageListSource(paths)
    plain = epochs(ImageListSource(paths, index_bytes=0), 2, batch_size=30)
    assert same(epochs(source, 2, batch_size=30, threads=8), plain)
    assert same(epochs(source, 2, batch_size=30, threads=8), plain)
    # A thread that finds another one noting rows of the same image notes none. So some crops may still be beyond them.
    assert same(epochs(source, 2, batch_size=30, threads=1), plain)
    assert counts(source)["own"] == 0


def test_a_child_process_has_an_index_of_its_own(tmp_path):
    paths = write_files(tmp_path, photographs(4))
    run_child(
        f"""
import os
from fastbatch import ImageListSource, Loader, Transform

def decoded(source):
    with Loader(source, Transform(crop_size=40), batch_size=1, threads=1, prefetch=1) as loader:
        list(map(len, loader))
        return loader.stats().images

source = ImageListSource({paths!r})
decoded(source)
assert decoded(source)["own"] == 0
child = os.fork()
if child == 0:
    assert decoded(source)["own"] >= 4
    assert decoded(source)["own"] == 0
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert decoded(source)["own"] == 0
""",
        *FORKS,
    )


def test_wrong_options(tmp_path, database):
    paths = write_files(tmp_path, photographs(1))
    for wrong, error in ((True, TypeError), (1.5, TypeError), ("1", TypeError), (-1, ValueError), (2**63, ValueError)):
        for make in (
            lambda: ImageListSource(paths, index_bytes=wrong),
            lambda: LMDBSource(database[0], index_bytes=wrong),
        ):
            with pytest.raises(error, match="index_bytes is .*; it is a number of bytes"):
                make()
    for few in 1, 1023:
        with pytest.raises(ValueError, match=f"index_bytes is {few}, in which no image finds room: give 0 .* 1024"):
            ImageListSource(paths, index_bytes=few)
    write_lmdb(str(tmp_path / "raw"), [b"\x08\x01\x10\x02\x18\x02\x22\x04abcd"])
    with pytest.raises(ValueError, match="index_bytes has no effect: the first record of .* is no image file"):
        LMDBSource(str(tmp_path / "raw"), index_bytes=10000)


def test_the_option_is_pickled(tmp_path, database):
    paths = write_files(tmp_path, photographs(2))
    for source in (
        ImageListSource(paths, index_bytes=0),
        LMDBSource(database[0], index_bytes=0),
        LevelDBSource(database[1], index_bytes=0),
    ):
        with source, pickle.loads(pickle.dumps(source)) as copy:
            assert counts(copy, 2)["index"] == 0


def test_what_an_index_says_of_itself():
    assert ImageIndex().counts() == (0, 0)
