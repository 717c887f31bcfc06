"""The first sample of a batch decides its shapes, and nobody waits for that longer than needed.

tests/support/planned.py explains plans.
"""

import threading

import pytest

from children import native_threads
from fastbatch import Closed, SampleError
from planned import PATIENCE, planned_loader, wait_until

THREADS = 16


def test_batches_of_one_sample_are_read_at_the_same_time():
    with planned_loader("w" * 64, varying=True, batch_size=1, threads=THREADS, prefetch=THREADS - 1) as (
        source,
        loader,
    ):
        wait_until(lambda: source.waiting == THREADS, "that all threads are in read() at the same time")
        source.open_gate()
        assert [batch.sample_keys for batch in loader] == [[index] for index in range(64)]


@pytest.mark.parametrize("varying", [False, True])
def test_the_others_are_read_before_the_shape_is_known(varying):
    with planned_loader("w...", varying=varying, batch_size=4, threads=4, prefetch=1) as (source, loader):
        wait_until(lambda: source.waiting >= 1 and source.reads >= 3)
        source.open_gate()
        assert next(iter(loader))["data"].tolist() == [[index] * 3 for index in range(4)]


def test_the_sequencer_goes_on_meanwhile():
    """Of later batches, too."""
    with planned_loader("w" + "." * 11, varying=True, batch_size=4, threads=8, prefetch=2) as (source, loader):
        wait_until(lambda: loader.stats().ready == 2)
        source.open_gate()
        assert [batch.sample_keys for batch in loader] == [list(range(first, first + 4)) for first in (0, 4, 8)]


def test_the_first_sample_decides_also_when_it_comes_last():
    with planned_loader("w.s.", varying=True, batch_size=4, threads=4) as (source, loader):
        wait_until(lambda: source.reads >= 3)
        source.open_gate()
        with pytest.raises(SampleError, match=r"sample 2.* its data has shape \(4\), but the batch has \(3\)"):
            next(iter(loader))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("others", ["...", "rrr", "lll"])
@pytest.mark.parametrize("first", ["W", "r", "l"])
def test_a_first_sample_that_fails_is_the_reason(first, others, varying, threads):
    """Whatever happened to those beside it; the next batch has a first sample of its own."""
    plan = first + others + "...."
    with planned_loader(plan, varying=varying, batch_size=4, threads=threads) as (source, loader):
        if first == "W":
            wait_until(lambda: source.waiting >= 1)
            source.open_gate()
        epoch = iter(loader)
        with pytest.raises(SampleError, match="planned failure") as caught:
            next(epoch)
        assert caught.value.index == 0
        assert next(epoch).sample_keys == [4, 5, 6, 7]


def test_close_wakes_those_who_wait_for_the_first_sample():
    before = native_threads()
    with planned_loader("w" + "." * 15, varying=True, batch_size=16, threads=8) as (source, loader):
        wait_until(lambda: sum("first sample" in each for each in loader._ring.activity()) == 7)
        closer = threading.Thread(target=loader.close)
        closer.start()
        wait_until(lambda: len(native_threads() - before) == 1, "that only the one in read() is left")
        source.open_gate()
        closer.join(PATIENCE)
        assert not closer.is_alive()
        with pytest.raises(Closed):
            next(iter(loader))


def test_an_epoch_that_is_left_while_its_first_sample_is_read():
    with planned_loader("." * 4 + "w" + "." * 7, varying=True, batch_size=4, threads=4, prefetch=3) as (source, loader):
        for batch in loader:
            assert batch.sample_keys == [0, 1, 2, 3]
            wait_until(lambda: source.waiting >= 1)
            break
        source.open_gate()
        assert [batch.sample_keys for batch in loader] == [list(range(first, first + 4)) for first in (0, 4, 8)]


@pytest.mark.parametrize("at_once", [0, 16])
def test_many_small_batches(at_once):
    """Batches of 1 to 5 samples, whose shapes vary from batch to batch, over many epochs, each left at any point."""
    plan = ("." * 5 + "s" * 5) * 4
    with planned_loader(plan, varying=True, at_once=at_once, batch_size=5, threads=8, prefetch=5) as (_, loader):
        for epoch in range(60):
            for number, batch in enumerate(loader):
                assert batch["data"].shape == (5, 3 + number % 2)
                assert batch["data"][:, 0].tolist() == list(range(5 * number, 5 * number + 5))
                if number == epoch % 9:
                    break
