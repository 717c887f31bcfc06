"""Subset: chosen samples of every kind of source."""

import pickle

import numpy as np
import pytest

import datasets
from contracts import PATIENCE, check_source
from databases import image_leveldb, image_lmdb, images
from fastbatch import (
    ArraySource,
    ImageListSource,
    LevelDBSource,
    LMDBSource,
    Loader,
    PythonSource,
    SampleError,
    SourceError,
    Subset,
    Transform,
    features,
)
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeRecords
from jpegs import encode_png
from third_party import ThirdParty

COUNT = 11
PICTURES = images(COUNT)
LABELS = np.arange(COUNT) * 10
CHOICES = {
    "a slice": slice(2, 9),
    "a slice with steps": slice(1, None, 4),
    "backwards": slice(None, None, -2),
    "a range": range(9, 1, -3),
    "some": [7, 0, 10, 3],
    "in order": np.array([1, 2, 3, 6], np.uint8),
    "few in order": (5, 10),
    "from the end": np.array([-1, 0, -COUNT + 1]),
    "unsigned": np.array([4, 1], np.uint64),
    "a mask": LABELS % 30 == 0,
    "one": [6],
}


def of(indices):
    return np.arange(COUNT)[list(indices) if isinstance(indices, (range, tuple)) else indices].tolist()


def check(subset, chosen, keys=None):
    expected = {"data": [PICTURES[i] for i in chosen], "label": [np.int64(LABELS[i]) for i in chosen]}
    check_source(subset, expected, list(chosen) if keys is None else [keys[i] for i in chosen])


@pytest.mark.parametrize("choice", list(CHOICES))
def test_arrays(choice):
    indices = CHOICES[choice]
    source = ArraySource(PICTURES, LABELS)
    check(source[indices], of(indices))
    check(Subset(source, indices), of(indices))


@pytest.fixture(params=["LMDB", "LevelDB", "images"])
def source(request, tmp_path):
    """A source of PICTURES with LABELS, and its keys."""
    if request.param in ("LMDB", "LevelDB") and features()[request.param.lower()] is None:
        pytest.skip(f"built without {request.param}")
    if request.param == "LMDB":
        path, _ = image_lmdb(tmp_path / "db", COUNT)
        opened = LMDBSource(path)
    elif request.param == "LevelDB":
        path, _ = image_leveldb(tmp_path / "db", COUNT)
        opened = LevelDBSource(path)
    elif features()["png"] is None:
        pytest.skip("built without decoders")
    else:
        names = [f"{i}.png" for i in range(COUNT)]
        for name, picture in zip(names, PICTURES):
            (tmp_path / name).write_bytes(encode_png(picture[::-1].transpose(1, 2, 0), 2, 8))
        opened = ImageListSource(names, tmp_path, label=LABELS)
    with opened, Loader(opened, batch_size=COUNT) as loader:
        (batch,) = loader
        assert (batch.data == PICTURES).all()
        keys, labels = batch.sample_keys, batch.label.tolist()
        batch.release()
        yield opened, keys, labels


@pytest.mark.parametrize("choice", ["a slice", "a slice with steps", "some", "in order", "few in order"])
def test_files(source, choice):
    source, keys, labels = source
    chosen = of(CHOICES[choice])
    expected = {"data": [PICTURES[i] for i in chosen], "label": [np.int64(labels[i]) for i in chosen]}
    subset = source[CHOICES[choice]]
    assert subset.shape == source.shape
    check_source(subset, expected, [keys[i] for i in chosen])


def test_a_subset_of_a_subset():
    source = ArraySource(PICTURES, LABELS)
    for first in CHOICES.values():
        for second in slice(None, None, -1), [-1, 0], slice(0, 1):
            subset = source[first][second]
            chosen = np.array(of(first))[second].tolist()
            assert subset.source is source and list(subset.indices) == chosen
    check(source[::-2][[3, 1]][::-1], [8, 4])


def test_what_a_subset_is():
    source = ArraySource(PICTURES, LABELS)
    indices = np.array([3, 1])
    with source[indices] as subset:
        assert len(subset) == 2 and subset.shape == (3, 12, 10) and subset.workers is None
        assert repr(subset) == f"Subset({source!r}, 2 samples)"
        indices[:] = 0  # the subset has its own
        assert subset.indices.tolist() == [3, 1] and not subset.indices.flags.writeable
        check(pickle.loads(pickle.dumps(subset)), [3, 1])
    check(pickle.loads(pickle.dumps(source[2:4])), [2, 3])


def test_an_index_may_occur_more_than_once():
    with Loader(ArraySource(LABELS)[[2, 2, 5]], batch_size=3) as loader:
        for _ in range(2):
            (batch,) = loader
            assert batch.data.tolist() == [20, 20, 50] and batch.sample_keys == [2, 2, 5]


def test_shapes_of_images_that_differ(tmp_path):
    if features()["png"] is None:
        pytest.skip("built without decoders")
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode_png(np.zeros((4 + i, 3, 3), np.uint8), 2, 8))
    subset = ImageListSource([f"{i}.png" for i in range(3)], tmp_path)[[2, 0]]
    assert subset.shape == (3, 6, 3) and subset.shape_of(1) == (3, 4, 3)
    with pytest.raises(IndexError, match="the subset has 2 samples, and no 2"):
        subset.shape_of(2)
    (tmp_path / "0.png").unlink()
    with Loader(subset) as loader:
        batches = iter(loader)
        next(batches)
        with pytest.raises(SampleError, match=r"images, sample 0 \(key '0.png'\): Could not open") as caught:
            next(batches)
    assert (caught.value.index, caught.value.key) == (0, b"0.png")


def test_a_transform():
    with (
        Loader(ArraySource(PICTURES, LABELS)[[4, 2]], Transform(crop_size=8, phase="TEST"), batch_size=2) as loader,
    ):
        assert (next(iter(loader)).data == PICTURES[[4, 2], :, 2:10, 1:9]).all()


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_python_code(kind):
    source = PythonSource(datasets.Images(COUNT, raises=7), workers=2, kind=kind)
    subset = source[[5, 7, 1, 9]]
    assert subset.workers == 2
    with Loader(subset, batch_size=2, timeout=PATIENCE) as loader:
        assert loader.threads == 2
        for epoch in range(2):
            batches = iter(loader)
            with pytest.raises(SampleError, match="Images, sample 7: loading it raised LookupError") as caught:
                next(batches)
            assert epoch or type(caught.value.__cause__) is LookupError
            batch = next(batches)
            assert batch.label.tolist() == [1, 9] and batch.sample_keys == [1, 9]
            assert (batch.data == [datasets.image(1), datasets.image(9)]).all()
            batch.release()
    with Loader(subset[2:], Transform(scale=2), batch_size=2, timeout=PATIENCE) as loader:
        assert (next(iter(loader)).data == np.stack([datasets.image(1), datasets.image(9)]) * 2.0).all()


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_no_other_samples_are_loaded(kind, tmp_path):
    """Not even sample 0, to see what samples look like."""
    log = tmp_path / "log"
    source = PythonSource(datasets.Counted(str(log), COUNT, fails=[0]), workers=1, kind=kind)
    subset = source[[5, 7]]
    assert subset.shape == subset.shape_of(1) == source.shape == ()
    with Loader(subset, batch_size=2, timeout=PATIENCE) as loader:
        assert next(iter(loader)).data.tolist() == [5, 7]
    assert set(log.read_text().split()) == {"5", "7"}
    with pytest.raises(SourceError, match="sample 0 of Counted cannot be loaded: loading it raised LookupError"):
        Loader(PythonSource(datasets.Counted(str(log), COUNT, fails=[0]), workers=1, kind=kind)[:5])


def test_a_subset_of_an_iterable_begins_with_sample_0():
    source = PythonSource(datasets.SizedStream(9))
    with Loader(source[3::2], batch_size=3, timeout=PATIENCE) as loader:
        assert [batch.data.tolist() for batch in loader] == [[3, 5, 7]]


def test_a_worker_that_dies_is_replaced():
    subset = PythonSource(datasets.Images(COUNT, dies=7), workers=1)[[5, 7, 3]]
    with Loader(subset, timeout=PATIENCE) as loader:
        batches = iter(loader)
        assert next(batches).label.tolist() == [5]
        with pytest.raises(
            SampleError, match="sample 7: the worker process .* ended by SIGKILL, .*; another one takes its place"
        ):
            next(batches)
        assert next(batches).label.tolist() == [3]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("announced", [False, True])
def test_a_source_that_writes(shared, announced):
    source = ThirdParty(COUNT, writes=True)
    source.native.source.locate = None
    source.native.source.shared_batches = shared
    source.native.source.done = source.native.count_done
    if announced:
        source.native.source.announce = source.native.note
    with Loader(Subset(source, [8, 2, 5]), batch_size=3, timeout=PATIENCE, threads=2) as loader:
        batch = next(iter(loader))
        assert batch.label.tolist() == batch.data[:, 0, 0, 0].tolist() == batch.sample_keys == [8, 2, 5]


@pytest.mark.parametrize("pure", [False, True])
def test_a_locate_that_depends_on_the_index_alone(pure):
    source = ThirdParty(COUNT, writes=True)
    source.native.source.pure_locate = pure
    for each in source, Subset(source, range(COUNT)):
        with Loader(each, batch_size=4, threads=4, shuffle=True, seed=3, timeout=PATIENCE) as loader:
            for _ in range(20):
                labels = [label for batch in loader for label in batch.label.tolist()]
                assert sorted(labels) == list(range(COUNT))


def test_caffes_order_over_a_subset():
    ring = BatchRing(ArraySource(LABELS)[[4, 2, 9]], batch_size=2, slots=2, threads=2, order=CaffeRecords(0))
    try:
        assert [ring.next(PATIENCE).data.tolist() for _ in range(2)] == [[40, 20], [90, 40]]
    finally:
        ring.close()


class Uncounted:
    """A source that does not know its number of samples, and has no len()."""

    def __init__(self, party):
        self.party = party

    def __fastbatch_source__(self, random_access):
        return self.party.__fastbatch_source__(random_access)


def test_a_source_without_len():
    party = ThirdParty(COUNT, writes=True)
    with Loader(Subset(Uncounted(party), [-1, 0]), batch_size=2, timeout=PATIENCE) as loader:
        assert next(iter(loader)).label.tolist() == [10, 0]
    party.native.source.count = 2**64 - 1
    with pytest.raises(TypeError, match=r"Uncounted does not know how many samples it has \(FB_UNCOUNTED\), so none"):
        Subset(Uncounted(party), [0])


def test_a_source_that_has_become_smaller():
    source = ThirdParty(COUNT, writes=True)
    subset = Subset(source, [1, 9])
    source.native.source.count = 5
    with pytest.raises(SourceError, match="third party has only 5 samples now, and the subset has its sample 9"):
        Loader(subset)
    source.native.source.count = 2**64 - 1
    source.native.end, source.native.said = 5, 5
    with Loader(subset, timeout=PATIENCE, threads=1) as loader:
        batches = iter(loader)
        assert next(batches).label.tolist() == [1]
        with pytest.raises(SourceError, match="the source has only 5 samples now, and the subset has its sample 9"):
            next(batches)


@pytest.mark.parametrize(
    "indices, error, message",
    [
        ([0, COUNT], IndexError, r"index 11 \(the indices' number 1\) is out of range: there are 11 samples"),
        (np.array([2**63], np.uint64), IndexError, "index 9223372036854775808"),
        ([-COUNT - 1], IndexError, "index -12"),
        (range(3, 20), IndexError, r"index 11 \(the indices' number 8\)"),
        (LABELS[:5] > 0, IndexError, "the mask has 5 values, and the source 11 samples"),
        ([], ValueError, r"of 11 samples, \[\] chooses none"),
        (slice(20, 30), ValueError, "of 11 samples, slice.20, 30, None. chooses none"),
        (LABELS < 0, ValueError, "chooses none"),
        (3, TypeError, r"\[3\] would be a sample, .*: source\[\[3\]\] is the source of this sample alone"),
        (np.int64(3), TypeError, r"source\[\[3\]\]"),
        ([0.5], TypeError, r"samples are chosen by a slice, an array of integers, or a mask .*, not by \[0.5\]"),
        ("label", TypeError, "not by 'label'"),
        ([[1, 2], [3, 4]], TypeError, "samples are chosen by"),
        (None, TypeError, "not by None"),
        ({1, 2}, TypeError, "not by {1, 2}"),
    ],
)
def test_what_chooses_no_samples(indices, error, message):
    with pytest.raises(error, match=message):
        ArraySource(LABELS)[indices]


def test_what_is_no_source():
    with pytest.raises(TypeError, match="Subset takes a source, not array.*: arrays become one by ArraySource, a"):
        Subset(LABELS, [0])


def test_a_source_is_not_iterated():
    with pytest.raises(TypeError, match=r"Loader\(source\) gives batches"):
        list(ArraySource(LABELS))


def test_uncounted_and_pure():
    source = ThirdParty()
    source.native.source.count, source.native.source.pure_locate = 2**64 - 1, 1
    with pytest.raises(TypeError, match="with pure_locate, an fb_source knows its count"):
        Loader(source)


def numbers():
    yield from range(COUNT)


def test_an_iterable_is_asked_in_its_own_order():
    source = PythonSource(numbers, count=COUNT, kind="thread")
    with Loader(source[[1, 4, 9]], batch_size=3, timeout=PATIENCE) as loader:
        for _ in range(2):
            assert next(iter(loader)).data.tolist() == [1, 4, 9]
    with pytest.raises(ValueError, match="is an iterable, whose samples come in its own order"):
        Loader(source[::-1])
