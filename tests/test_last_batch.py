"""What becomes of the samples of an epoch that do not fill a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import counting
from fastbatch import ArraySource
from fastbatch._batches import BatchRing
from fastbatch.orders import Linear, Permuted, Positions, in_batches


def epochs_of(count, epochs, **options):
    """For each epoch: its number, and the values and number of real samples of its batches."""
    with counting(count, **options) as loader:
        found = []
        for _ in range(epochs):
            expected = len(loader)
            number = loader.epoch
            batches = []
            for batch in loader:
                batches.append((batch.epoch, batch.number, batch.data.tolist(), batch.real))
            assert [batch[:2] for batch in batches] == [(number, i) for i in range(expected)]
            assert len(batches) == expected
            found.append((number, [batch[2:] for batch in batches]))
        return found


def test_ten_samples_in_batches_of_four():
    """The table of docs/loader.md."""
    full = [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4)]
    assert epochs_of(10, 2, batch_size=4) == [(0, [*full, ([8, 9], 2)]), (1, [*full, ([8, 9], 2)])]
    assert epochs_of(10, 2, batch_size=4, last_batch="drop") == [(0, full), (1, full)]
    padded = [*full, ([8, 9, 0, 1], 2)]
    assert epochs_of(10, 2, batch_size=4, last_batch="pad") == [(0, padded), (1, padded)]
    assert epochs_of(10, 3, batch_size=4, last_batch="wrap") == [
        (0, [*full, ([8, 9, 0, 1], 4)]),
        (1, [([2, 3, 4, 5], 4), ([6, 7, 8, 9], 4)]),
        (2, [*full, ([8, 9, 0, 1], 4)]),
    ]


def test_batches_larger_than_the_epoch():
    assert epochs_of(3, 2, batch_size=8) == [(0, [([0, 1, 2], 3)]), (1, [([0, 1, 2], 3)])]
    assert epochs_of(3, 1, batch_size=8, last_batch="pad") == [(0, [([0, 1, 2, 0, 1, 2, 0, 1], 3)])]
    # The second batch begins in epoch 2, and the third one in epoch 5: no batch begins in the others.
    assert epochs_of(3, 3, batch_size=8, last_batch="wrap") == [
        (0, [([0, 1, 2, 0, 1, 2, 0, 1], 8)]),
        (2, [([2, 0, 1, 2, 0, 1, 2, 0], 8)]),
        (5, [([1, 2, 0, 1, 2, 0, 1, 2], 8)]),
    ]


COUNTS = {"count": st.integers(1, 40), "batch_size": st.integers(1, 9), "ranks": st.integers(1, 4)}


@settings(max_examples=100)
@given(**COUNTS, shuffle=st.booleans(), threads=st.integers(1, 3), leaving=st.lists(st.integers(0, 9), max_size=2))
def test_wrap_goes_through_all_epochs_without_a_gap(count, batch_size, ranks, shuffle, threads, leaving):
    """In every step all ranks are in the same epoch, also after loops that were left early."""
    step = batch_size * ranks
    order = Positions(Permuted(5) if shuffle else Linear(5), count)
    for rank in range(ranks):
        with counting(
            count,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=5,
            threads=threads,
            last_batch="wrap",
            rank=rank,
            ranks=ranks,
        ) as loader:
            number = 0  # of the step, over all epochs
            for leave in [*leaving, None, None]:
                epoch = number * step // count
                assert loader.epoch == epoch
                first = -(-epoch * count // step)
                last = -(-(epoch + 1) * count // step)
                assert len(loader) == last - first >= 1
                for batch in loader:
                    assert (batch.epoch, batch.number, batch.real) == (epoch, number - first, batch_size)
                    positions = range(number * step + rank, (number + 1) * step, ranks)
                    assert batch.data.tolist() == [order.at(position)[0] for position in positions]
                    if batch.number == leave:
                        break
                    number += 1
                number = last


@settings(max_examples=100)
@given(**COUNTS, shuffle=st.booleans(), even=st.sampled_from([None, "pad", "drop"]))
def test_padded_batches_are_full_and_say_what_is_real(count, batch_size, ranks, shuffle, even):
    ranks = min(ranks, count)
    seen = []
    for rank in range(ranks):
        options = {"seed": 5, "rank": rank, "ranks": ranks, "shuffle": shuffle, "even": even}
        for number, batches in epochs_of(count, 2, batch_size=batch_size, last_batch="pad", **options):
            assert {len(values) for values, _ in batches} == {batch_size}
            assert [real for _, real in batches[:-1]] == [batch_size] * (len(batches) - 1)
            seen += [value for values, real in batches for value in values[:real]] if number == 0 else []
            if ranks == 1:
                whole = [value for values, _ in batches for value in values]
                assert whole[count:] == [whole[i % count] for i in range(len(whole) - count)]
    dropped = count % ranks if even == "drop" else 0
    assert len(seen) == len(set(seen)) == count - dropped


@settings(max_examples=100)
@given(**COUNTS, even=st.sampled_from([None, "pad", "drop"]))
def test_drop_leaves_all_ranks_the_same_full_batches(count, batch_size, ranks, even):
    step = batch_size * ranks
    steps = (count + (-count % ranks if even == "pad" else 0)) // step
    if steps == 0:
        with pytest.raises(ValueError, match="leaves nothing|is empty"):
            counting(count, batch_size=batch_size, last_batch="drop", rank=0, ranks=ranks, even=even)
        return
    for rank in range(ranks):
        options = {"rank": rank, "ranks": ranks, "even": even}
        ((_, batches),) = epochs_of(count, 1, batch_size=batch_size, last_batch="drop", **options)
        expected = np.arange(steps * step) % count
        assert [values for values, _ in batches] == expected[rank::ranks].reshape(steps, batch_size).tolist()


def test_a_ring_goes_on_at_any_batch_of_orders_that_drop_pad_or_wrap():
    source = ArraySource(list(range(10)))
    rings = {
        last_batch: BatchRing(source, batch_size=4, slots=3, threads=2, order=in_batches(Linear(), 4, last_batch))
        for last_batch in ("drop", "pad", "wrap")
    }
    try:
        for ring in rings.values():
            ring.start_epoch(2, 1)
            assert ring.next(20).sample_keys == [4, 5, 6, 7]
        with pytest.raises(ValueError, match="an epoch of 8 samples has no batch 2"):
            rings["drop"].start_epoch(2, 2)
        rings["pad"].start_epoch(2, 2)
        assert rings["pad"].next(20).sample_keys == [8, 9, 0, 1]
        rings["wrap"].start_epoch(3, 1)
        batch = rings["wrap"].next(20)
        assert (batch.epoch, batch.number, batch.sample_keys) == (3, 1, [6, 7, 8, 9])
        rings["wrap"].start_epoch(3, 2)  # which is the first one of epoch 4
        batch = rings["wrap"].next(20)
        assert (batch.epoch, batch.number, batch.sample_keys) == (4, 0, [0, 1, 2, 3])
    finally:
        for ring in rings.values():
            ring.close()
