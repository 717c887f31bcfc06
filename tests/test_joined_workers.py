"""Joined: a PythonSource beside other sources."""

import multiprocessing
import pickle

import numpy as np
import pytest

import datasets
from fastbatch import ArraySource, Joined, Loader, PythonSource, SampleError, SourceError, Transform

PATIENCE = 60
COUNT = 9
IMAGES = np.stack([datasets.image(index) for index in range(COUNT)])
CHOSEN = [5, 2, 7, 2, 0]


def python(kind="thread", workers=2, **wrong):
    """Fields "data" and "label"."""
    return PythonSource(datasets.Images(COUNT, **wrong), workers=workers, kind=kind)


def in_thread(load, **options):
    return PythonSource(load, COUNT, workers=1, kind="thread", **options)


def raises_at(wrong):
    def load(index):
        if index == wrong:
            raise LookupError(index)
        return index

    return in_thread(load)


def epoch(source, *arguments, **options):
    """An epoch as arrays by name."""
    with Loader(source, *arguments, timeout=PATIENCE, **options) as loader:
        found = [{name: array.copy() for name, array in batch.items()} for batch in loader]
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_it_is_as_arrays_are(kind):
    """Images of an array, masks of Python code; they are cropped and mirrored in the same way."""
    source = Joined(ArraySource(IMAGES), mask=python(kind))
    assert source.workers == 2
    plain = Joined(ArraySource(IMAGES), mask=ArraySource(IMAGES, np.arange(COUNT)))
    transform = Transform(fields=("data", "mask"), crop_size=5, mirror=True)
    for arguments in ((), (transform,)):
        for one, other in (
            (pickle.loads(pickle.dumps(source)), plain),
            (source[CHOSEN], plain[CHOSEN]),
            (Joined(ArraySource(IMAGES)[CHOSEN], mask=python(kind)[CHOSEN]), plain[CHOSEN]),
        ):
            found = epoch(one, *arguments, batch_size=4, shuffle=True, seed=3)
            expected = epoch(other, *arguments, batch_size=4, shuffle=True, seed=3)
            assert list(found) == ["data", "mask", "mask_label"]
            for name, array in found.items():
                np.testing.assert_array_equal(array, expected[name])


def test_several_of_them():
    """Without another source, they write into the batch."""
    source = Joined(python(), other=python("process"), third=in_thread(lambda index: index * 2))
    found = epoch(source, batch_size=4)
    assert (found["data"] == IMAGES).all() and (found["other"] == IMAGES).all()
    assert (found["third"] == np.arange(COUNT) * 2).all()


def test_shapes_that_vary():
    masks = in_thread(datasets.photo, varying=True)
    images = in_thread(lambda index: (datasets.photo(index), index), varying=True)
    transform = Transform(fields=("data", "mask"), crop_size=6, mirror=True)
    found = epoch(Joined(images, mask=masks), transform, batch_size=COUNT, seed=1)
    assert (found["data"] == found["mask"]).all() and found["label"].tolist() == list(range(COUNT))


def test_random_numbers_belong_to_the_sample():
    random = PythonSource(datasets.RandomNumbers(COUNT), workers=2)
    alone = epoch(random, batch_size=COUNT, seed=5)
    beside = epoch(Joined(ArraySource(IMAGES), random=random), batch_size=COUNT, seed=5)
    assert (alone["data"] == beside["random"]).all()


@pytest.mark.parametrize(
    "source, index",
    [
        (Joined(ArraySource(IMAGES), mask=raises_at(3)), 3),
        (Joined(raises_at(3), mask=IMAGES), 3),
        (Joined(ArraySource(IMAGES)[CHOSEN], mask=raises_at(7)[CHOSEN]), 7),
        (Joined(ArraySource(IMAGES)[::-1], mask=raises_at(3)), 5),
        (Joined(ArraySource(IMAGES), mask=raises_at(2)[::-1]), 6),
        (Joined(ArraySource(IMAGES), mask=raises_at(2)[::-1])[4:], 6),
    ],
)
def test_an_exception_is_the_cause_of_the_samples_error(source, index):
    with Loader(source, batch_size=9, prefetch=1, on_error="skip", timeout=PATIENCE) as loader:
        next(iter(loader))
        [error] = loader.errors
    assert error.index == index and type(error.__cause__) is LookupError
    assert "loading it raised LookupError" in error.reason


def test_a_process_that_ends_is_replaced_and_all_end_with_the_loader():
    with Loader(Joined(ArraySource(IMAGES), mask=python("process", dies=4)), batch_size=3, timeout=PATIENCE) as loader:
        assert loader.threads == 2 and len(loader._ring.processes) == 2
        for _ in range(2):
            batches = iter(loader)
            assert (next(batches).data == IMAGES[:3]).all()
            with pytest.raises(SampleError, match="in Images: the worker process .* another one takes its place"):
                next(batches)
            assert next(batches).mask_label.tolist() == [6, 7, 8]
        processes = loader._ring.processes
    assert len(processes) == 2 and not {child.pid for child in multiprocessing.active_children()} & {*processes}


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_the_end_of_a_process_of_any_source_is_told(kind):
    joined = Joined(python(kind), more=python("process", dies=4))
    with Loader(joined, batch_size=3, on_error="skip", timeout=PATIENCE) as loader:
        assert [len(batch) for batch in loader][:2] == [3, 2]
        assert "which was to load it, was ended by SIGKILL" in loader.errors[0].reason


def test_what_cannot_be_joined():
    with pytest.raises(TypeError, match="has a PythonSource among its sources, and is joined once more: join all of"):
        Joined(IMAGES, more=Joined(IMAGES, mask=python()))
    with pytest.raises(TypeError, match="is joined once more"):
        Joined(IMAGES, more=Joined(IMAGES, mask=python())[:])
    with pytest.raises(SourceError, match="sample 0 of Images cannot be loaded"):
        Loader(Joined(in_thread(lambda index: index), mask=python(raises=0)))
    stream = PythonSource(datasets.generator, COUNT, kind="thread")
    with pytest.raises(ValueError, match="generator is an iterable, whose samples come in its own order"):
        Loader(Joined(ArraySource(IMAGES), number=stream), shuffle=True)
    assert epoch(Joined(ArraySource(IMAGES), number=stream))["number"].tolist() == list(range(COUNT))


def test_an_iterable_beside_several_workers():
    """Without threads=, the loader had two threads, and the error said to leave threads out."""
    numbers = np.arange(COUNT)
    stream = PythonSource(datasets.generator, COUNT, kind="thread")
    for source in (Joined(stream, mask=python(workers=2)), Joined(python(workers=2), mask=stream[:])):
        assert source.workers == 1
        with Loader(source, timeout=PATIENCE) as loader:
            assert loader.threads == 1
    assert epoch(Joined(stream, other=numbers))["data"].tolist() == numbers.tolist()
    assert Joined(python(workers=2), mask=numbers).workers == 2


def test_sources_without_workers_have_no_team():
    source = Joined(ArraySource(IMAGES), mask=IMAGES)
    assert not hasattr(source, "__fastbatch_team__") and source.workers is None
