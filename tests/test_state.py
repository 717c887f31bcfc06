"""A loader's state: saved at any point and loaded anywhere, what follows is the same to the bit."""

import json
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from children import run_child
from contracts import counting
from fastbatch import ArraySource, Closed, Loader, SampleError, Transform
from fastbatch.orders import Linear, Permuted, Positions, Weighted, Windowed
from interrupts import Interrupted, interrupted_everywhere
from planned import PATIENCE, planned_loader

LAST_BATCH = st.sampled_from(["partial", "drop", "pad", "wrap"])
IMAGES = np.random.RandomState(1).randint(0, 256, (30, 1, 5, 6)).astype(np.uint8)
TRANSFORM = Transform(crop_size=4, mirror=True)


def images(count, **options):
    """A loader of images with random crops and mirrors, so that a wrong draw shows."""
    return Loader((IMAGES[:count], np.arange(count)), TRANSFORM, timeout=PATIENCE, **options)


def content(batch):
    """All that can be seen of a batch."""
    return batch.epoch, batch.number, batch.real, batch.sample_keys, batch.data.tobytes(), batch.label.tobytes()


def loops(loader, count):
    """The contents of the next `count` loops."""
    return [[content(batch) for batch in loader] for _ in range(count)]


def stored(state, form):
    """The state, as it comes back from a file."""
    return json.loads(json.dumps(state)) if form == "json" else pickle.loads(pickle.dumps(state))


def ordering(how, count):
    """Options of a Loader for this kind of order."""
    return {
        "in order": {},
        "shuffled": {"shuffle": True},
        "in windows": {"shuffle": True, "shuffle_window": 4},
        "by weights": {"weights": range(1, count + 1)},
    }[how]


ORDERINGS = st.sampled_from(["in order", "shuffled", "in windows", "by weights"])


@settings(max_examples=300)
@given(st.data(), st.integers(1, 30), st.integers(1, 9), ORDERINGS, LAST_BATCH, st.integers(1, 3))
def test_the_rest_is_the_same_wherever_it_was_saved(data, count, batch_size, how, last_batch, ranks):
    batch_size = min(batch_size, count // ranks) if last_batch == "drop" else batch_size
    if batch_size == 0 or (last_batch == "partial" and ranks > count):
        return
    options = {"batch_size": batch_size, "seed": 7, "last_batch": last_batch, **ordering(how, count)}
    options.update(rank=data.draw(st.integers(0, ranks - 1)), ranks=ranks)

    def loader():
        return images(count, threads=data.draw(st.integers(1, 3)), prefetch=data.draw(st.integers(1, 4)), **options)

    with loader() as first, loader() as second:
        complete = data.draw(st.integers(0, 2))
        loops(first, complete)
        taken = data.draw(st.integers(0, len(first)))
        if taken:
            for batch in first:  # left in the body of its loop
                if batch.number + 1 == taken:
                    state = first.state_dict()
                    batch.release()  # with prefetch=1, the loop below needs both batches of the ring
                    rest = [content(each) for each in iterate_on(first)]
                    break
            expected = [rest, *loops(first, 2)]
        else:
            state = first.state_dict()
            expected = loops(first, 3)
        assert len(json.dumps(state)) < 100
        for _ in range(data.draw(st.integers(0, 2))):  # wherever the second one is now
            next(iter(second))
        second.load_state_dict(stored(state, data.draw(st.sampled_from(["json", "pickle"]))))
        assert second.state_dict() == state
        assert second.epoch == state["epoch"]
        assert loops(second, 3) == expected


def iterate_on(loader):
    """The rest of the loop that runs over a loader."""
    return loader._iterator()


def test_a_state_says_where_the_consumer_is():
    """Not what is prepared ahead."""
    with counting(10, batch_size=4, seed=3, prefetch=8) as loader:
        order = [10, 4, 3, 0, 0]
        assert loader.state_dict() == {"epoch": 0, "batch": 0, "order": order}
        for number, batch in enumerate(loader, 1):
            assert loader.state_dict() == {"epoch": 0, "batch": number, "order": order}
            del batch
        assert loader.state_dict() == {"epoch": 1, "batch": 0, "order": order}
        for _ in loader:
            break
        assert loader.state_dict() == {"epoch": 1, "batch": 1, "order": order}  # where the loop was left
        iterator = iter(loader)
        assert loader.state_dict() == {"epoch": 2, "batch": 0, "order": order}
        next(iterator)
        iterator.close()
        assert loader.state_dict() == {"epoch": 2, "batch": 1, "order": order}
    assert loader.state_dict() == {"epoch": 2, "batch": 1, "order": order}  # closed
    with counting(10, batch_size=4, seed=3, shuffle=True, last_batch="wrap", rank=1, ranks=2) as loader:
        assert loader.state_dict() == {"epoch": 0, "batch": 0, "order": [10, 8, 3, 1, 1]}


def test_a_state_from_the_body_of_the_last_batch_is_the_end_of_its_epoch():
    with counting(4, seed=0) as loader:
        state = [loader.state_dict() for _ in loader][-1]
        assert (state["epoch"], state["batch"]) == (0, 4)
        loader.load_state_dict(state)
        assert loader.epoch == 0
        assert [batch.data.tolist() for batch in loader] == []  # what comes after a loop is still to be done
        assert loader.epoch == 1
        assert [batch.epoch for batch in loader] == [1] * 4


def test_after_an_interrupt_the_state_is_where_the_loop_was_left():
    with counting(10, batch_size=2, seed=0) as loader:
        with pytest.raises(KeyboardInterrupt):
            for batch in loader:
                if batch.number == 2:
                    raise KeyboardInterrupt
        loader.load_state_dict(loader.state_dict())
        assert [batch.data.tolist() for batch in loader] == [[6, 7], [8, 9]]


def test_an_earlier_iterator_that_ends_moves_nothing():
    with counting(8, batch_size=2) as loader:
        former = iter(loader)
        for _ in range(4):
            next(former)
        batches = iter(loader)
        next(batches)
        next(batches)
        state = loader.state_dict()
        assert (state["epoch"], state["batch"]) == (1, 2)
        assert next(former, None) is None
        assert loader.state_dict() == state
        assert next(batches).data.tolist() == [4, 5]


def test_a_failed_batch_counts_as_taken():
    with planned_loader("..r...", batch_size=2) as (_, loader):
        batches = iter(loader)
        next(batches)
        with pytest.raises(SampleError):
            next(batches)
        assert loader.state_dict()["batch"] == 2
        loader.load_state_dict(loader.state_dict())
        assert [batch.number for batch in loader] == [2]


@settings(max_examples=100)
@given(
    st.integers(1, 60),
    st.sampled_from([(1, 2), (2, 1), (4, 3), (3, 4), (6, 2), (2, 6), (12, 1), (3, 12)]),
    LAST_BATCH,
    ORDERINGS,
    st.data(),
)
def test_another_number_of_ranks_goes_on_with_the_same_steps(count, numbers, last_batch, how, data):
    """With as many samples in a step."""
    step, before, after = 12, *numbers
    if (last_batch == "drop" and count < step) or (last_batch == "partial" and count < max(numbers)):
        return

    def loader(rank, ranks):
        return counting(
            count,
            rank=rank,
            ranks=ranks,
            batch_size=step // ranks,
            seed=9,
            last_batch=last_batch,
            threads=1,
            **ordering(how, count),
        )

    with loader(0, before) as saved:
        taken = data.draw(st.integers(0, len(saved)))
        state = saved.state_dict()
        for batch in saved:
            if batch.number < taken:
                state = saved.state_dict()
    orders = {"in order": Linear(9), "shuffled": Permuted(9), "in windows": Windowed(9, 4)}
    order = Positions(orders.get(how) or Weighted(9, range(1, count + 1)), count)
    expected = [order.at(position)[0] for position in range(taken * step, count)]
    if last_batch == "drop":
        expected = expected[: len(expected) // step * step]
    elif last_batch == "pad" and taken * step < count:
        expected += [order.at(i % count)[0] for i in range(-count % step)]
    elif last_batch == "wrap" and taken * step < count:
        expected += [order.at(count + i)[0] for i in range(-count % step)]
    found = []
    for rank in range(after):
        with loader(rank, after) as loaded:
            loaded.load_state_dict(state)
            found += [value for batch in loaded for value in batch.data.tolist()]
    assert sorted(found) == sorted(expected)


def test_last_batch_and_even_may_have_changed():
    with counting(10, batch_size=2, rank=0, ranks=2, seed=0, even="pad") as loader:
        batches = iter(loader)
        state = [next(batches) and loader.state_dict() for _ in range(2)][1]
    for options in {"last_batch": "pad"}, {"last_batch": "drop"}, {"even": "drop"}:
        with counting(10, batch_size=2, rank=1, ranks=2, seed=0, **options) as loader:
            loader.load_state_dict(state)
            expected = {"drop": [], "pad": [[9, 1]], "partial": [[9]]}[loader.last_batch]
            assert [batch.data.tolist() for batch in loader] == expected


def test_a_drawn_seed_is_taken_over():
    with images(20, batch_size=3, shuffle=True) as first, images(20, batch_size=3, shuffle=True) as second:
        iterator = iter(first)
        next(iterator)
        state, rest = first.state_dict(), [content(batch) for batch in iterator]
        assert first.seed != second.seed
        second.load_state_dict(state)
        assert second.seed == second.stats().seed == first.seed
        assert loops(second, 1) == [rest]
        assert loops(second, 2) == loops(first, 2)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"count": 11}, "the state belongs to a data set of 10 samples, and this one has 11"),
        ({"seed": 4}, "the state belongs to a loader with seed=3, and this one has seed=4: give it that seed"),
        ({"shuffle": False}, "the state belongs to a loader with shuffle=True, and this one has shuffle=False"),
        (
            {"shuffle_window": 5},
            "a loader with shuffle=True, and this one has shuffle=True, shuffle_window=5",
        ),
        (
            {"last_batch": "wrap"},
            'a loader with another last_batch than "wrap", and this one has last_batch="wrap"',
        ),
        (
            {"batch_size": 3, "rank": 0, "ranks": 2},
            "batches of 4 samples over all ranks, and here it is 6: make the loader with batch_size=2",
        ),
        ({"rank": 0, "ranks": 3}, "batches of 4 samples over all ranks, and here it is 12$"),
    ],
)
def test_a_state_of_something_else_is_refused(options, problem):
    made = {"count": 10, "batch_size": 4, "shuffle": True, "seed": 3}
    check_refused(made, options, problem)


@pytest.mark.parametrize(
    "weights, others, problem",
    [
        (range(10), range(1, 11), "a loader with other weights"),
        (range(10), None, "a loader with weights, and this one has none"),
        (None, range(10), "a loader without weights, and this one has weights"),
    ],
)
def test_a_state_of_other_weights_is_refused(weights, others, problem):
    check_refused({"count": 10, "batch_size": 4, "seed": 3, "weights": weights}, {"weights": others}, problem)


def check_refused(made, options, problem):
    with counting(**made) as loader:
        state = loader.state_dict()
    with counting(**{**made, **options}) as other:
        batches = iter(other)
        first = next(batches).data.tolist()
        before = other.state_dict()
        with pytest.raises(ValueError, match=problem):
            other.load_state_dict(state)
        assert other.state_dict() == before  # it stays where it is
        rest = [batch.data.tolist() for batch in batches]
    with counting(**{**made, **options}) as again:
        assert [batch.data.tolist() for batch in again] == [first, *rest]


def test_a_state_may_have_numpys_integers():
    with counting(10, batch_size=4, seed=3) as loader:
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        rest = [batch.data.tolist() for batch in batches]
        loader.load_state_dict({name: np.array(value, np.uint64) for name, value in state.items()})
        assert loader.state_dict() == state
        assert [batch.data.tolist() for batch in loader] == rest
    with counting(10, batch_size=4) as loader:
        loader.load_state_dict({**state, "epoch": np.int64(0), "batch": np.int8(1)})
        assert [batch.data.tolist() for batch in loader] == rest
        json.dumps(loader.state_dict())


def test_what_is_no_state_is_refused():
    with counting(10, batch_size=4, seed=3) as loader:
        state = loader.state_dict()
        for wrong in (
            {},
            None,
            "state",
            [1, 2],
            {**state, "epoch": -1},
            {**state, "epoch": 2**32},
            {**state, "epoch": 1.0},
            {**state, "batch": -1},
            {**state, "batch": None},
            {**state, "order": [10, 4, 3]},
            {**state, "order": [10, 4, 3, -2, 0]},
            {**state, "order": [10, 4, 3, 0, 2]},
            {**state, "order": [10, 4, 3, 0, 0, -1]},
            {**state, "order": [10, 4, 3, True, 0]},
            {**state, "order": 5},
            {"epoch": 0, "batch": 0},
        ):
            with pytest.raises(ValueError, match="this is not a state of a Loader, as state_dict"):
                loader.load_state_dict(wrong)
        with pytest.raises(ValueError, match="the state is damaged: it is at batch 4 of an epoch that has only 3"):
            loader.load_state_dict({**state, "batch": 4})


@pytest.mark.parametrize("last_batch", ["partial", "wrap"])
@pytest.mark.parametrize("batch", [0, 2, 5])
def test_a_loop_that_is_interrupted_before_its_first_batch_can_be_run_again(batch, last_batch):
    """It had begun the epoch that was restored, and the next loop began the one after it."""
    with counting(10, batch_size=2, seed=0, last_batch=last_batch) as loader:
        state = {**loader.state_dict(), "epoch": 3, "batch": batch}
        rest = [[2 * number, 2 * number + 1] for number in range(batch, 5)]
        begun = 0
        loader.load_state_dict(state)
        for outcome in interrupted_everywhere(lambda: next(iter(loader), None)):
            if loader.state_dict() == state:
                begun += 1
                assert isinstance(outcome, Interrupted) and loader.epoch == 3
                assert [each.data.tolist() for each in loader] == rest
                assert loader.epoch == 4
            outcome = None  # its traceback may hold a batch
            loader.load_state_dict(state)
        assert begun > 10


def test_iterators_of_a_position_that_give_it_up_one_after_the_other():
    """The first one's end, when it is freed at last, does not end the epoch of the second."""
    with counting(6, batch_size=2, seed=0) as loader:
        loader.load_state_dict({**loader.state_dict(), "epoch": 1, "batch": 1})
        first, second = iter(loader), iter(loader)
        assert second.number == first.number == 1
        del first
        assert next(second).data.tolist() == [2, 3]
        second.close()  # after its first batch, this gives up the rest
        assert [(batch.epoch, batch.number) for batch in loader] == [(2, 0), (2, 1), (2, 2)]


def test_loading_needs_a_loader_that_is_not_in_use():
    loader = counting(10, batch_size=4, seed=3)
    state = loader.state_dict()
    for _ in loader:
        with pytest.raises(RuntimeError, match="an iterator of this loader is still open"):
            loader.load_state_dict(state)
        break
    loader.close()
    with pytest.raises(Closed):
        loader.load_state_dict(state)


def test_an_iterator_from_before_is_void():
    """Also one that has given all batches of an epoch to which the state goes back."""
    with counting(4, seed=0) as loader:
        state, kept = loader.state_dict(), []
        for taken in 1, 4:

            def take(taken=taken):
                kept.append(iter(loader))
                for _ in range(taken):
                    next(kept[-1])

            take()
            loader.load_state_dict(state)
            with pytest.raises(RuntimeError, match=r"this iterator is from before load_state_dict\(\)"):
                next(kept[-1])
            assert not kept[-1].open
            kept[-1].close()
            assert [batch.data.tolist() for batch in loader] == [[0], [1], [2], [3]]
            loader.load_state_dict(state)


def test_many_restores_while_threads_are_at_work():
    """Batches of positions left behind are never delivered, whatever the seed was."""
    with images(30, batch_size=4, shuffle=True, threads=3, prefetch=5) as loader:
        seeds = [loader.seed + 1, loader.seed + 2] if loader.seed < 2**63 else [1, 2]
        reference = {}
        for seed in seeds:
            with images(30, batch_size=4, shuffle=True, seed=seed) as other:
                reference[seed] = loops(other, 2)
        for i in range(200):
            seed, epoch, batch = seeds[i % 2], i % 3 % 2, i % 8
            loader.load_state_dict({"epoch": epoch, "batch": batch, "order": [30, 4, seed, 1, 0]})
            iterator = iter(loader)
            for expected in reference[seed][epoch][batch : batch + i % 4]:
                assert content(next(iterator)) == expected
            iterator.close()


def test_another_process_goes_on():
    with images(30, batch_size=4, shuffle=True, seed=5, threads=2) as loader:
        loops(loader, 1)
        iterator = iter(loader)
        next(iterator)
        state = loader.state_dict()
        expected = [content(batch) for batch in iterator]
    run_child(
        f"""
        import pickle
        from test_state import content, images
        with images(30, batch_size=4, shuffle=True, seed=5, threads=1) as loader:
            loader.load_state_dict(pickle.loads({pickle.dumps(state)!r}))
            assert [content(batch) for batch in loader] == pickle.loads({pickle.dumps(expected)!r})
        """
    )


def test_any_thread_may_ask_between_two_batches():
    with counting(10, seed=0) as loader:
        found = []
        for _ in loader:
            thread = threading.Thread(target=lambda: found.append(loader.state_dict()["batch"]))
            thread.start()
            thread.join()
        assert found == list(range(1, 11))


def test_ten_million_samples():
    """At any point, in the same few steps: what the bench measures."""
    source = ArraySource(np.broadcast_to(np.uint8(0), 10_000_000))
    with Loader(source, batch_size=64, shuffle=True, seed=1, rank=3, ranks=8, threads=1, timeout=PATIENCE) as loader:
        order = Positions(Permuted(1), 10_000_000)
        state = loader.state_dict()
        for batch in 19_531, 10_000, 0:
            state["epoch"], state["batch"] = 4_000_000_000, batch
            loader.load_state_dict(state)
            found = next(iter(loader))
            assert (found.epoch, found.number) == (4_000_000_000, batch)
            assert len(json.dumps({**loader.state_dict(), "order": [10_000_000, 512, 2**64 - 1, 1, 1]})) < 100
            first = 4_000_000_000 * 10_000_000 + batch * 512 + 3
            last = min(first + 512, 4_000_000_001 * 10_000_000)
            assert found.sample_keys == [order.at(position)[0] for position in range(first, last, 8)]


def test_a_batch_that_close_takes_away_was_not_taken():
    for _ in range(30):
        loader = Loader(np.broadcast_to(np.uint8(7), (10**9,)), prefetch=2, timeout=PATIENCE)
        taken = 0
        closer = threading.Thread(target=loader.close)
        epoch = iter(loader)
        closer.start()
        try:
            for _ in epoch:
                taken += 1
        except Closed:
            pass
        closer.join()
        assert loader.state_dict()["batch"] == taken
