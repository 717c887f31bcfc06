# ruff: noqa: NPY002 (the generators of whoever uses numpy.random)
"""The global random numbers of worker processes: seeded for each sample as random.seed() and others do it."""

import random

import numpy as np
import pytest
from hypothesis import given
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


def test_the_generator_of_random_is_seeded_in_place():
    """This is faster. If it fails, this Python keeps the state in a new way, and its workers call random.seed()."""
    assert SEEDER.in_place


@given(seed=st.integers(0, 2**64 - 1), draws=st.integers(0, 700))
def test_all_draws_are_those_after_random_seed(seed, draws):
    for _ in range(draws):
        random.getrandbits(32)
    random.gauss(0, 1)  # makes two numbers, and keeps one for the next call
    np.random.standard_normal()
    SEEDER.seed(seed)
    found, of_numpy = random.getstate(), np.random.get_state()
    drawn = [random.random() for _ in range(400)], random.gauss(0, 1), np.random.standard_normal()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    assert found == random.getstate()
    assert [np.array_equal(one, other) for one, other in zip(of_numpy, np.random.get_state())] == [True] * 5
    assert drawn == ([random.random() for _ in range(400)], random.gauss(0, 1), np.random.standard_normal())


@given(expected=st.lists(st.integers(0, 2**64 - 1), max_size=20), data=st.data())
def test_seeds_may_come_as_expected_or_not(expected, data):
    SEEDER.expect(expected)
    others = st.lists(st.sampled_from([0, 7, *expected]), max_size=3)
    for seed in [*expected[: data.draw(st.integers(0, 20))], *data.draw(others), *expected[-3:]]:
        SEEDER.seed(seed)
        found = random.getstate()
        random.seed(seed)
        assert found == random.getstate()


def test_looking_for_the_generator_leaves_it_as_it_was():
    random.seed(5)
    random.gauss(0, 1)
    before = random.getstate()
    Seeder()
    assert random.getstate() == before


def test_what_is_not_as_expected_is_seeded_by_random_seed(monkeypatch):
    seeds = []
    monkeypatch.setattr(random, "seed", seeds.append)
    seeder = Seeder()
    seeder.seed(2**64 - 1)
    assert not seeder.in_place
    assert seeds == [2**64 - 1]
    monkeypatch.setattr(random, "seed", random.SystemRandom().seed)
    assert not Seeder().in_place
