"""Orders by themselves: their answers in any sequence of questions.

A state saved here is also loaded in a fresh process.
"""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from children import run_child
from fastbatch import ArraySource, Transform
from fastbatch._batches import BatchRing
from fastbatch.orders import Endless, Linear, Permuted, Positions, Sharded, Weighted, Windowed
from fastbatch.orders.caffe import CaffeLines, CaffeRecords, CaffeSampling

SEEDS = st.integers(0, 2**64 - 1)
CAFFE_SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.integers(1, 50)
ALL_DRAWS = Transform(mirror=True, crop_size=3)
TRANSFORMS = st.sampled_from([None, Transform(mirror=True), Transform(crop_size=3), ALL_DRAWS])


@st.composite
def shards(draw, whole):
    """A shard of an order over a count of samples, with the count. Not empty."""
    order, count = draw(whole)
    ranks = draw(st.integers(1, 7))
    even = draw(st.sampled_from([None, "pad", "drop"]))
    positions = len(Positions(order, count))
    ranks = min(ranks, positions) if even == "drop" else ranks
    rank = draw(st.integers(0, ranks - 1 if even else min(ranks, positions) - 1))
    most = {None: 1, "pad": 9, "drop": positions // ranks}[even]
    return Sharded(order, rank, ranks, even, draw(st.integers(1, most))), count


@st.composite
def caffe_records(draw):
    ranks = draw(st.integers(1, 5))
    order = CaffeRecords(draw(CAFFE_SEEDS), draw(TRANSFORMS), draw(st.integers(0, ranks - 1)), ranks)
    return order, draw(COUNTS)


@st.composite
def caffe_lines(draw):
    count = draw(COUNTS)
    shuffle_seed = draw(st.one_of(st.none(), CAFFE_SEEDS))
    return CaffeLines(draw(CAFFE_SEEDS), draw(TRANSFORMS), shuffle_seed, draw(st.integers(0, count - 1))), count


@st.composite
def caffe_sampling(draw):
    counts = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    batch_size = draw(st.integers(1, 9))
    order = CaffeSampling(draw(CAFFE_SEEDS), *counts, batch_size, draw(st.integers(0, batch_size)), draw(st.booleans()))
    return order, 2 * sum(counts)


WEIGHTS = st.lists(st.floats(0, 1e9), min_size=1, max_size=50).filter(any)
WINDOWED = st.builds(Windowed, SEEDS, st.integers(2, 60))
WEIGHTED = st.builds(Weighted, SEEDS, WEIGHTS).map(lambda order: (order, len(order.weights)))
PLAIN = st.one_of(
    st.tuples(st.one_of(st.builds(Linear, SEEDS), st.builds(Permuted, SEEDS), WINDOWED), COUNTS), WEIGHTED
)


@st.composite
def endless_shards(draw):
    order, count = draw(PLAIN)
    ranks = draw(st.integers(1, 7))
    return Sharded(Endless(order), draw(st.integers(0, ranks - 1)), ranks), count


ENDLESS = st.one_of(PLAIN, shards(PLAIN)).map(lambda case: (Endless(case[0]), case[1]))
ORDERS = st.one_of(
    PLAIN,
    ENDLESS,
    shards(PLAIN),
    endless_shards(),
    shards(shards(PLAIN)),
    caffe_records(),
    caffe_lines(),
    caffe_sampling(),
)


def answers(positions, first, last):
    return [positions.at(position) for position in range(first, last)]


# ---- what the contract promises of every order


@settings(max_examples=300)
@given(ORDERS, st.lists(st.integers(0, 200), max_size=8))
def test_an_answer_depends_on_the_position_only(case, asked):
    expected = answers(Positions(*case), 0, 201)
    positions = Positions(*case)
    assert [positions.at(position) for position in asked] == [expected[position] for position in asked]
    assert all(0 <= index < case[1] for index, _, _ in expected)
    assert [positions.pure_at(position) for position in asked] in (
        [expected[position] for position in asked],
        [None] * len(asked),  # of orders that draw from a stream
    )
    assert pickle.loads(pickle.dumps(case[0])) == case[0]


@settings(max_examples=100)
@given(PLAIN)
def test_an_endless_order_is_the_order_itself(case):
    endless = Positions(Endless(case[0]), case[1])
    assert answers(endless, 0, 120) == answers(Positions(*case), 0, 120)
    assert len(endless) == 0
    with pytest.raises(TypeError, match="this order has no ends of epochs already"):
        Positions(Endless(Endless(case[0])), case[1])


@settings(max_examples=100)
@given(PLAIN, st.integers(1, 9))
def test_shards_of_an_endless_order(case, ranks):
    """They divide the positions of all epochs, so that no rank is ever ahead of the others."""
    order, count = case
    whole = answers(Positions(order, count), 0, 12 * ranks)
    for rank in range(ranks):
        shard = Positions(Sharded(Endless(order), rank, ranks), count)
        assert len(shard) == 0
        assert answers(shard, 0, 12) == whole[rank::ranks]
    for even in "pad", "drop":
        with pytest.raises(TypeError, match="shards of an order without ends of epochs are always even"):
            Positions(Sharded(Endless(order), 0, ranks, even), count)


def test_which_orders_answer_workers_in_parallel():
    pure = [type(order).__name__ for order, count in EVERY_KIND if Positions(order, count).pure_at(3) is not None]
    assert pure == ["Linear", "Permuted", "Windowed", "Weighted", "Sharded"]


@settings(max_examples=300)
@given(ORDERS, st.integers(0, 200))
def test_a_state_gives_the_positions_that_follow(case, met):
    saved, loaded = Positions(*case), Positions(*case)
    answers(saved, 0, met)
    state = saved.save()
    assert loaded.load(state) == met
    assert loaded.save() == state  # nothing is lost, and no byte is left to chance
    assert answers(loaded, met, met + 60) == answers(saved, met, met + 60)
    assert len(saved.save()) == len(state)


EVERY_KIND = [
    (Linear(5), 7),
    (Permuted(2**64 - 1), 1000),
    (Windowed(2**64 - 1, 30), 1000),
    (Weighted(3, range(1000)), 1000),
    (Sharded(Permuted(3), 2, 3), 1000),
    (CaffeRecords(1701, ALL_DRAWS, 1, 3), 7),
    (CaffeLines(1701, ALL_DRAWS, 9, 5), 7),
    (CaffeLines(1701, None, None, 5), 7),
    (CaffeSampling(1701, 7, 2, 10, 4, True), 18),
]


def test_a_state_goes_on_in_another_process():
    met, cases = 100, []
    for order, count in EVERY_KIND:
        positions = Positions(order, count)
        answers(positions, 0, met)
        cases.append((order, count, positions.save()))
        cases[-1] += (answers(positions, met, met + 50),)
    run_child(
        f"""
        import pickle
        from fastbatch.orders import Positions
        for order, count, state, expected in pickle.loads({pickle.dumps(cases)!r}):
            positions = Positions(order, count)
            next = positions.load(state)
            assert next == {met}
            assert [positions.at(position) for position in range(next, next + 50)] == expected, order
        """
    )


@pytest.mark.parametrize("order, count", EVERY_KIND, ids=lambda value: type(value).__name__)
def test_a_state_that_does_not_belong_is_refused(order, count):
    positions = Positions(order, count)
    answers(positions, 0, 10)
    state = positions.save()
    others = [
        (Linear(6), 7),
        (Linear(5), 8),
        (Permuted(2**64 - 2), 1000),
        (Permuted(2**64 - 1), 1001),
        (Sharded(Permuted(3), 1, 3), 1000),
        (Sharded(Permuted(3), 2, 3), 1001),
        (Sharded(Permuted(3), 2, 3, even="pad"), 1000),
        (Sharded(Permuted(3), 2, 3, even="drop"), 1000),
        (Sharded(Permuted(4), 2, 3), 1000),
        (CaffeRecords(1701, ALL_DRAWS, 1, 3), 8),
        (CaffeRecords(1702, ALL_DRAWS, 1, 3), 7),
        (CaffeRecords(1701, None, 1, 3), 7),
        (CaffeRecords(1701, ALL_DRAWS, 2, 3), 7),
        (CaffeLines(1701, ALL_DRAWS, 9, 5), 8),
        (CaffeLines(1701, ALL_DRAWS, 10, 5), 7),
        (CaffeLines(1701, ALL_DRAWS, None, 5), 7),
        (CaffeLines(1702, ALL_DRAWS, 9, 5), 7),
        (CaffeLines(1701, ALL_DRAWS, 9, 4), 7),
        (CaffeSampling(1701, 7, 2, 10, 4, False), 18),
        (CaffeSampling(1701, 6, 3, 10, 4, True), 18),
        (CaffeSampling(1701, 7, 2, 10, 3, True), 18),
        (CaffeSampling(1701, 7, 2, 9, 4, True), 18),
        (CaffeSampling(1700, 7, 2, 10, 4, True), 18),
    ]
    for other in others:
        untouched, expected = Positions(*other), answers(Positions(*other), 0, 20)
        with pytest.raises(ValueError, match="state"):
            untouched.load(state)
        assert answers(untouched, 0, 20) == expected
    for bad in state[:-1], state + b"x", b"", b"x" * len(state), bytes(len(state)):
        with pytest.raises(ValueError, match="state"):
            positions.load(bad)
    assert answers(positions, 10, 20) == answers(Positions(order, count), 10, 20)


def test_a_damaged_state_is_refused():
    """Numbers that would lead out of a table, divide by zero, or keep a loader busy for days."""

    def changed(state, at, number, size):
        return state[:at] + number.to_bytes(size, "little", signed=True) + state[at + size :]

    used = 56 + 4 * 624  # behind the head and the generator's words
    for order, count in (CaffeRecords(1701, ALL_DRAWS), 7), (CaffeLines(1701, ALL_DRAWS, 9, 5), 7):
        state = Positions(order, count).save()
        for bad in -1, 625:
            with pytest.raises(ValueError, match="this state is damaged"):
                Positions(order, count).load(changed(state, used, bad, 4))
    with pytest.raises(ValueError, match="this state is damaged: it is of a database without records"):
        Positions(CaffeRecords(1701), None).load(changed(Positions(CaffeRecords(1701), None).save(), 2560, 0, 8))
    with pytest.raises(ValueError, match="this state is damaged: it is behind the position"):
        Positions(order, count).load(changed(state, 8, 2**62, 8))


def test_a_refusal_says_what_the_state_is_of():
    state = Positions(Permuted(), 5).save()
    with pytest.raises(
        ValueError, match="this is a state of a shuffled order, and cannot be loaded into the order of the source"
    ):
        Positions(Linear(), 5).load(state)
    with pytest.raises(ValueError, match="a state of this order has 56 bytes, and this one has 3"):
        Positions(Linear(), 5).load(b"abc")


# ---- linear, permuted, windowed and weighted


@given(SEEDS, COUNTS)
def test_linear(seed, count):
    positions = Positions(Linear(seed), count)
    assert len(positions) == count
    assert [each[:2] for each in answers(positions, 0, 3 * count)] == [
        (i % count, i // count) for i in range(3 * count)
    ]


@given(SEEDS, COUNTS)
def test_permuted(seed, count):
    positions, linear = Positions(Permuted(seed), count), Positions(Linear(seed), count)
    for epoch in range(3):
        given = answers(positions, epoch * count, (epoch + 1) * count)
        # The same samples, with the same draws, in another order.
        assert sorted(given) == answers(linear, epoch * count, (epoch + 1) * count)


@given(SEEDS, st.integers(2, 60), COUNTS)
def test_windowed(seed, window, count):
    positions, linear = Positions(Windowed(seed, window), count), Positions(Linear(seed), count)
    for epoch in range(3):
        given = answers(positions, epoch * count, (epoch + 1) * count)
        # The same samples, with the same draws, in another order.
        assert sorted(given) == answers(linear, epoch * count, (epoch + 1) * count)
        indices = [index for index, _, _ in given]
        assert indices == reference.windowed(seed, epoch, count, window)
        for first in range(0, count, window):  # each window has samples that follow one another
            found = set(indices[first : first + window])
            begins = [index for index in found if (index - 1) % count not in found]
            assert len(begins) == (len(found) < count)


def test_windows_and_their_samples_move():
    """No window keeps its place or its order, and what is left over is another part of the data in each epoch."""
    positions = Positions(Windowed(5, 10), 1005)
    epochs = [[positions.at(epoch * 1005 + i)[0] for i in range(1005)] for epoch in range(20)]
    assert len({epoch[0] for epoch in epochs}) > 15
    assert len({min(epoch[1000:]) for epoch in epochs}) > 15
    assert len({tuple(epoch[i] - min(epoch[:10]) for i in range(10)) for epoch in epochs}) > 15


@given(WEIGHTED, st.integers(0, 3))
def test_weighted(case, epoch):
    order, count = case
    given = answers(Positions(order, count), epoch * count, (epoch + 1) * count)
    assert [index for index, _, _ in given] == reference.weighted(order.seed, epoch, order.weights)
    assert all(order.weights[index] > 0 for index, _, _ in given)
    # Draws belong to the place in the epoch: those of a sample that comes again are others.
    assert [draws for _, _, draws in given] == [
        draws for _, _, draws in answers(Positions(Linear(order.seed), count), epoch * count, (epoch + 1) * count)
    ]


def test_weights_are_probabilities():
    weights = np.array([0, 1, 3, 0, 6])
    positions = Positions(Weighted(1, weights), 5)
    found = np.bincount([positions.at(i)[0] for i in range(100_000)], minlength=5)
    assert (found[[0, 3]] == 0).all()
    expected = weights[[1, 2, 4]] * 10_000
    chi_square = ((found[[1, 2, 4]] - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # exceeded once in 1000 seeds; this seed is fixed


@pytest.mark.parametrize(
    "weights, error, words",
    [
        ([1, -1], ValueError, r"weights must be finite and at least 0, and weights\[1\] is -1.0"),
        ([1, float("nan")], ValueError, r"weights\[1\] is nan"),
        ([0, 0], ValueError, "weights must have a sum above 0 that is finite, and theirs is 0.0"),
        ([1e308, 1e308], ValueError, "theirs is inf"),
        ([], ValueError, r"one for each sample, and has shape \(0,\)"),
        ([[1, 2]], ValueError, r"has shape \(1, 2\)"),
        (["a"], TypeError, "weights must be numbers, one for each sample, not"),
    ],
)
def test_what_cannot_be_weights(weights, error, words):
    with pytest.raises(error, match=words):
        Weighted(0, weights)


def test_weights_belong_to_the_samples():
    with pytest.raises(ValueError, match="weights has 2 numbers, and there are 3 samples: it needs one for each"):
        Positions(Weighted(0, [1, 2]), 3)


# ---- shards


@settings(max_examples=300)
@given(PLAIN, st.integers(1, 9))
def test_shards_divide_an_epoch(plain, ranks):
    order, count = plain
    ranks = min(ranks, count)
    shards = [Positions(Sharded(order, rank, ranks), count) for rank in range(ranks)]
    assert sum(map(len, shards)) == count
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    whole = Positions(order, count)
    for epoch in range(3):
        expected = answers(whole, epoch * count, (epoch + 1) * count)
        for rank, shard in enumerate(shards):
            assert answers(shard, epoch * len(shard), (epoch + 1) * len(shard)) == expected[rank::ranks]


@settings(max_examples=300)
@given(PLAIN, st.integers(1, 9))
def test_padded_shards_are_equally_long(plain, ranks):
    order, count = plain
    length = -(-count // ranks)
    shards = [Positions(Sharded(order, rank, ranks, "pad"), count) for rank in range(ranks)]
    assert {len(shard) for shard in shards} == {length}
    whole = Positions(order, count)
    for epoch in range(3):
        expected = answers(whole, epoch * count, (epoch + 1) * count)
        padded = [expected[i % count] for i in range(length * ranks)]
        for rank, shard in enumerate(shards):
            assert answers(shard, epoch * length, (epoch + 1) * length) == padded[rank::ranks]


@settings(max_examples=100)
@given(PLAIN, st.integers(1, 9))
def test_shards_that_drop_are_equally_long(plain, ranks):
    order, count = plain
    ranks = min(ranks, count)
    length = count // ranks
    shards = [Positions(Sharded(order, rank, ranks, "drop"), count) for rank in range(ranks)]
    assert {len(shard) for shard in shards} == {length}
    whole = Positions(order, count)
    for epoch in range(3):
        kept = answers(whole, epoch * count, epoch * count + length * ranks)
        for rank, shard in enumerate(shards):
            assert answers(shard, epoch * length, (epoch + 1) * length) == kept[rank::ranks]


def test_shards_of_shards():
    count = 101
    parts = [Sharded(Sharded(Permuted(9), rank, 2), node, 3) for rank in range(2) for node in range(3)]
    met = []
    for part in parts:
        positions = Positions(part, count)
        met += answers(positions, 0, len(positions))
    assert sorted(met) == answers(Positions(Linear(9), count), 0, count)


def test_shards_that_cannot_be():
    with pytest.raises(
        ValueError, match='there are 3 samples, so shard 3 of 4 is empty; use fewer shards, or even="pad"'
    ):
        Positions(Sharded(Linear(), 3, 4), 3)
    with pytest.raises(ValueError, match="so shard 0 of 4 is empty"):
        Positions(Sharded(Linear(), 0, 4, "drop"), 3)
    with pytest.raises(ValueError, match='even must be "pad", "drop" or None, not True'):
        Sharded(Linear(), 0, 4, True)
    assert answers(Positions(Sharded(Linear(), 3, 4, "pad"), 3), 0, 2) == answers(Positions(Linear(), 3), 0, 6)[::3]
    with pytest.raises(ValueError, match="there are 11 samples, too few for a batch of 4 on each of 3 ranks: .drop"):
        Positions(Sharded(Linear(), 0, 3, "drop", 4), 11)
    for even, multiple in (None, 2), ("pad", 0):
        with pytest.raises(ValueError, match="multiple must be at least 1, and 1 without even"):
            Sharded(Linear(), 0, 3, even, multiple)
    for rank, ranks in (2, 2), (-1, 2), (0, 0):
        with pytest.raises(ValueError, match="rank must be at least 0 and less than ranks"):
            Sharded(Linear(), rank, ranks)
    with pytest.raises(
        TypeError, match="an order without ends of epochs, such as Caffe's, cannot be divided into shards"
    ):
        Positions(Sharded(CaffeRecords(0), 0, 2), 3)


def test_a_loader_takes_any_order():
    """Of a shard too: its batches end with its epochs."""
    order = Sharded(Permuted(1), 1, 3)
    positions = Positions(order, 50)
    ring = BatchRing(ArraySource(list(range(50))), batch_size=4, slots=3, threads=2, order=order)
    try:
        for epoch in range(3):
            keys = []
            while ring.epoch == epoch:
                keys += ring.next(20).sample_keys
            assert keys == [
                index for index, _, _ in answers(positions, epoch * len(positions), (epoch + 1) * len(positions))
            ]
    finally:
        ring.close()
    assert ring.count == len(positions) == 17


def test_a_ring_goes_on_at_any_batch():
    """Of bounded epochs and of endless orders."""
    source = ArraySource(list(range(10)))
    for order in Permuted(1), CaffeRecords(0, rank=1, ranks=3):
        positions = Positions(order, 10)
        expected = [index for index, _, _ in answers(positions, 0, 60)]
        ring = BatchRing(source, batch_size=4, slots=3, threads=2, order=order)
        try:
            for epoch, batch in (0, 2), (0, 0), (0, 1):
                ring.start_epoch(epoch, batch)
                found = ring.next(20)
                assert (found.epoch, found.number) == (positions.at(len(found) + 4 * batch - 1)[1], batch)
                assert found.sample_keys == expected[4 * batch :][: len(found)]
        finally:
            ring.close()
    ring = BatchRing(source, batch_size=4, slots=3, threads=2)
    try:
        with pytest.raises(ValueError, match="an epoch of 10 samples has no batch 3"):
            ring.start_epoch(0, 3)
        ring.start_epoch(5, 2)
        batch = ring.next(20)
        assert (batch.epoch, batch.number, batch.sample_keys) == (5, 2, [8, 9])
    finally:
        ring.close()


@settings(max_examples=100)
@given(ORDERS, st.integers(0, 30), st.integers(1, 6), st.integers(1, 3))
def test_a_ring_may_begin_at_any_batch(case, before, batch_size, threads):
    """And gives what one gives that has come there from the beginning. So does one that is sent there."""
    order, count = case
    options = {"batch_size": batch_size, "slots": 3, "order": order}
    source = ArraySource(list(range(count)))

    def take(ring, number):
        found = []
        for _ in range(number):
            batch = ring.next(20)
            found.append((batch.epoch, batch.number, batch.real, batch.sample_keys))
            batch.release()
        return found

    rings = [BatchRing(source, threads=threads, **options)]
    try:
        take(rings[0], before)
        epoch, taken = rings[0].position
        if taken and taken == rings[0].batches(epoch):
            epoch, taken = epoch + 1, 0
        if not rings[0].batches(epoch):  # nobody counts its batches
            epoch, taken = 0, rings[0].taken
        rings.append(BatchRing(source, threads=1, epoch=epoch, batch=taken, **options))
        rings.append(BatchRing(source, threads=2, **options))
        rings[2].start_epoch(epoch, taken)
        expected = take(rings[0], 5)
        assert take(rings[1], 5) == take(rings[2], 5) == expected
        if len(Positions(*case)) == 0:
            assert [ring.taken for ring in rings] == [before + 5] * 3
    finally:
        for ring in rings:
            ring.close()


# ---- Caffe's


@given(caffe_records())
def test_records(case):
    order, count = case
    expected = [divmod(order.rank + i * order.ranks, count)[::-1] for i in range(100)]
    assert [each[:2] for each in answers(Positions(*case), 0, 100)] == expected
    assert len(Positions(*case)) == 0


def shuffled(lines, stream):
    """As Boost and libstdc++ do it for Caffe."""
    for i in range(len(lines) - 1, 0, -1):
        bucket = 2**32 // (i + 1)
        j = i + 1
        while j > i:
            j = stream.next() // bucket
        lines[i], lines[j] = lines[j], lines[i]


@given(caffe_lines())
def test_lines(case):
    order, count = case
    stream = None if order.shuffle_seed is None else reference.CaffeStream(order.shuffle_seed)
    lines, expected = list(range(count)), []
    for epoch in range(5):
        if stream is not None:
            shuffled(lines, stream)
        expected += [(line, epoch) for line in lines]
    expected = expected[order.skip :]
    assert [each[:2] for each in answers(Positions(*case), 0, len(expected))] == expected
    # Its draws are those of a list that is not shuffled.
    plain = Positions(CaffeRecords(order.seed, order.transform), count)
    assert [each[2] for each in answers(Positions(*case), 0, 50)] == [each[2] for each in answers(plain, 0, 50)]


@given(caffe_sampling())
def test_sampling(case):
    order, _ = case
    stream, expected = reference.CaffeStream(order.seed), []
    for i in range(100):
        foreground = i % order.batch_size >= order.batch_size - order.foreground_count
        window = stream.next() % (order.foreground if foreground else order.background)
        mirrored = stream.next() % 2 if order.mirror else 0
        expected.append((2 * (order.background * foreground + window) + mirrored, 0, (0, 0, 0, 0)))
    assert answers(Positions(*case), 0, 100) == expected
