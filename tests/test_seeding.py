# ruff: noqa: NPY002 (the generators of whoever uses numpy.random)
"""The global random numbers of worker processes: seeded for each sample as random.seed() and others do it."""

import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastbatch.sources._seeding import Seeder


@pytest.fixture(autouse=True)
def _own_generators():
    """The other tests' generators stay as they are."""
    python, numpys = random.getstate(), np.random.get_state()
    yield
    random.setstate(python)
    np.random.set_state(numpys)


SEEDER = Seeder()
FULL_STATE = 624  # draws after which a generator's position is that of a new one


def same_states(one, other):
    """Whether two states of numpy.random are the same."""
    return all(np.array_equal(value, expected) for value, expected in zip(one, other))


def test_the_generators_are_given_their_words():
    """This is faster. If it fails, a generator keeps its state in a new way, and is seeded by its own function."""
    assert SEEDER.by_words >= {"random", "numpy"}


@given(seed=st.integers(0, 2**64 - 1), draws=st.integers(0, 700))
@example(seed=0, draws=FULL_STATE)
def test_all_draws_are_those_after_random_seed(seed, draws):
    for _ in range(draws):
        random.getrandbits(32)
        np.random.randint(2**32, dtype=np.uint32)
    random.gauss(0, 1)  # makes two numbers, and keeps one for the next call
    if draws % 2:
        np.random.standard_normal()
    SEEDER.seed(seed)
    found, of_numpy = random.getstate(), np.random.get_state()
    drawn = [random.random() for _ in range(400)], random.gauss(0, 1), np.random.standard_normal()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    assert found == random.getstate()
    assert same_states(of_numpy, np.random.get_state())
    assert drawn == ([random.random() for _ in range(400)], random.gauss(0, 1), np.random.standard_normal())


@given(expected=st.lists(st.integers(0, 2**64 - 1), max_size=40), data=st.data())
def test_seeds_may_come_as_expected_or_not(expected, data):
    SEEDER.expect(expected)
    others = st.lists(st.sampled_from([0, 7, *expected]), max_size=3)
    for seed in [*expected[: data.draw(st.integers(0, 40))], *data.draw(others), *expected[-3:]]:
        SEEDER.seed(seed)
        found, of_numpy = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        assert found == random.getstate()
        assert same_states(of_numpy, np.random.get_state())


def test_looking_for_the_generators_leaves_them_as_they_were():
    random.seed(5)
    np.random.seed(5)
    random.gauss(0, 1)
    np.random.standard_normal()
    before, of_numpy = random.getstate(), np.random.get_state()
    Seeder()
    assert random.getstate() == before
    assert same_states(np.random.get_state(), of_numpy)


def test_what_is_not_as_expected_is_seeded_by_random_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(random, "seed", seeds.append)
    seeder = Seeder()
    seeder.seed(2**64 - 1)
    assert "random" not in seeder.by_words
    assert seeds == [2**64 - 1]
    monkeypatch.setattr(random, "seed", random.SystemRandom().seed)
    assert "random" not in Seeder().by_words


@pytest.mark.skipif(not hasattr(np.random, "set_bit_generator"), reason="NumPy before 1.24 has one kind only")
@pytest.mark.parametrize("replaced", ["before", "after"])
def test_a_generator_of_another_kind_is_seeded_by_numpy_random_seed(replaced):
    usual = np.random.get_bit_generator()
    seeder = Seeder()
    seeder.seed(1)
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        if replaced == "before":
            seeder = Seeder()
            assert "numpy" not in seeder.by_words
        seeder.seed(4)
        drawn = np.random.random()
        np.random.seed(4)
        assert drawn == np.random.random()
    finally:
        np.random.set_bit_generator(usual)
    seeder.seed(4)
    of_numpy = np.random.get_state()
    np.random.seed(4)
    assert same_states(of_numpy, np.random.get_state())
