"""An error of a sample is raised once, in index of its batch, with source, key and reason; the loader goes on."""

import pickle

import pytest

from children import run_child
from contracts import outcomes
from fastbatch import DataTimeout, SampleError, SourceError
from planned import PATIENCE, planned_loader, wait_until


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "action, stage, reason",
    [
        ("l", "locate", "planned failure of locate"),
        ("r", "read", "planned failure of read"),
        ("s", "collate", "its data has shape (4), but the batch has (3), the shape of its first sample"),
    ],
)
def test_an_error_is_raised_once_at_its_turn(threads, action, stage, reason):
    with planned_loader("." * 7 + action + "." * 4, varying=True, batch_size=3, prefetch=5, threads=threads) as (
        _,
        loader,
    ):
        for epoch in range(3):
            first, second, error, last = outcomes(iter(loader))
            assert (first, second, last) == ([0, 1, 2], [3, 4, 5], [9, 10, 11])
            assert isinstance(error, SampleError) and isinstance(error, ValueError)
            assert (error.source, error.key, error.index, error.stage) == ("planned", 7, 7, stage)
            assert error.reason.startswith(reason)
            assert (error.epoch, error.batch) == (epoch, 2)
            assert str(error) == (
                f"planned, sample 7: {error.reason}. It failed in stage '{stage}'; batch 2 of epoch {epoch}, which "
                "holds it, is not delivered, and the next call gives the following batch."
            )
        wait_until(lambda: loader.stats().errors > 3)  # of the epochs ahead


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("action", ["l", "r"])
def test_an_error_at_every_index_of_a_batch(threads, index, action):
    plan = list("." * 12)
    plan[4 + index] = action
    with planned_loader("".join(plan), varying=True, batch_size=4, threads=threads) as (_, loader):
        first, error, last = outcomes(iter(loader))
        assert (first, error.index, last) == ([0, 1, 2, 3], 4 + index, [8, 9, 10, 11])


@pytest.mark.parametrize("threads", [2, 5])
def test_of_several_errors_in_a_batch_the_first_counts(threads):
    """It is the last to happen: its sample waits at the gate until all the others have failed."""
    with planned_loader("...Wrrlr...", batch_size=8, threads=threads, prefetch=1) as (source, loader):
        epoch = iter(loader)
        wait_until(lambda: source.waiting and source.reads >= 6)
        source.open_gate()
        error, rest = outcomes(epoch)
        assert (error.index, error.reason) == (3, "planned failure of read")
        assert rest == [8, 9, 10]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_batch_fails_and_none_hangs(threads):
    with planned_loader("rlrlrlrl", batch_size=2, threads=threads, prefetch=1) as (_, loader):
        for _ in range(20):
            assert [error.index for error in outcomes(iter(loader))] == [0, 2, 4, 6]
        assert loader.stats().samples == 0


def test_an_error_while_the_consumer_waits():
    with planned_loader(".W.", threads=1, prefetch=1) as (source, loader):
        epoch = iter(loader)
        assert next(epoch).sample_keys == [0]
        loader._timeout = 0
        with pytest.raises(DataTimeout):
            next(epoch)
        loader._timeout = PATIENCE
        source.open_gate()
        with pytest.raises(SampleError, match="planned, sample 1: planned failure of read"):
            next(epoch)
        assert next(epoch).sample_keys == [2]


def test_an_error_that_nobody_waits_for_stands_in_stats():
    with planned_loader("...r....", batch_size=2, prefetch=3, threads=2) as (_, loader):
        assert loader.stats().errors in (0, 1)
        wait_until(lambda: loader.stats().errors == 1)
        assert loader.stats().last_error == "planned, sample 3: planned failure of read. It failed in stage 'read'."
        first, error, third, fourth = outcomes(iter(loader))
        assert str(error).startswith(loader.stats().last_error[:-1])
        assert (first, error.index, third, fourth) == ([0, 1], 3, [4, 5], [6, 7])


def test_an_error_that_is_never_asked_for_does_not_disturb_close():
    with planned_loader("r" * 10, prefetch=3) as (_, loader):
        wait_until(lambda: loader.stats().errors == 4)
    assert "planned failure of read" in loader.stats().last_error


def test_a_sample_that_has_become_good_again():
    with planned_loader("." * 3 + "r" + "." * 36, prefetch=1, threads=2) as (source, loader):
        assert [error.index for error in outcomes(iter(loader)) if isinstance(error, SampleError)] == [3]
        source.change(3, ".")
        assert outcomes(iter(loader)) == [[index] for index in range(40)]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("action", ["f", "F"])
def test_a_lost_source_is_lost_for_good(threads, action):
    with planned_loader("...." + action + "...", batch_size=2, threads=threads) as (_, loader):
        epoch = iter(loader)
        assert [next(epoch).sample_keys, next(epoch).sample_keys] == [[0, 1], [2, 3]]
        words = "planned cannot be read any further: planned failure of (read|locate) \\(at sample 4\\)"
        for _ in range(3):
            with pytest.raises(SourceError, match=words):
                next(epoch)
        epoch.close()
        with pytest.raises(SourceError, match=words):
            next(iter(loader))


def test_sample_errors_can_be_pickled():
    with planned_loader(".r") as (_, loader):
        _, error = outcomes(iter(loader))
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, SampleError) and str(copy) == str(error) and copy.reason == error.reason


def test_memory_that_cannot_be_had_is_an_error_of_its_batch():
    run_child("""
        import numpy as np
        from children import limit_memory
        from fastbatch import Loader, SampleError
        limit_memory(2**29)
        large = np.broadcast_to(np.float32(1), (2**10, 2**20))
        with Loader(large, batch_size=2**10, threads=1, prefetch=1) as loader:
            try:
                next(iter(loader))
            except SampleError as error:
                assert "no memory for a batch of 1024 such samples (Cannot allocate memory)" in error.reason, error
            else:
                raise AssertionError("a batch came")
        with Loader(large, batch_size=4, threads=1, prefetch=1) as loader:
            assert next(iter(loader)).data.sum() == 2**22
    """)
