"""Loaders of several processes that share the epochs: who reads what, and how a process finds its rank."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import counting
from fastbatch import Loader
from fastbatch.orders import Linear, Permuted, Positions
from fastbatch.ranks import find_rank
from planned import PATIENCE

VARIABLES = [
    "RANK",
    "WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
]


def steps(count, ranks, epochs=1, **options):
    """What each rank gets: a list of its batches' samples for each epoch."""
    found = []
    for rank in range(ranks):
        with counting(count, rank=rank, ranks=ranks, seed=5, threads=1, **options) as loader:
            assert (loader.rank, loader.ranks, loader.even) == (rank, ranks, options.get("even"))
            found.append([])
            for _ in range(epochs):
                batches = [batch.data.tolist() for batch in loader]
                assert len(batches) == len(loader)
                found[-1].append(batches)
    return found


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.sampled_from([None, "pad", "drop"]))
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_ranks(count, ranks, batch_size, shuffle, even):
    """The k-th batches of all ranks together are the k-th batch of one process whose batches are as large."""
    ranks = min(ranks, count)
    shared = steps(count, ranks, 2, batch_size=batch_size, shuffle=shuffle, even=even)
    order = Positions(Permuted(5) if shuffle else Linear(5), count)
    for epoch in range(2):
        expected = [order.at(epoch * count + i)[0] for i in range(count)]
        if even == "pad":
            expected += expected[: -count % ranks]
        elif even == "drop":
            expected = expected[: count // ranks * ranks]
        whole = ranks * batch_size
        for step in range(-(-len(expected) // whole)):
            there = [
                value for rank in shared for batch in rank[epoch][step : step + 1] for value in batch
            ]  # a rank may have no batch in the last step
            assert sorted(there) == sorted(expected[step * whole : (step + 1) * whole])
        sizes = [sum(map(len, rank[epoch])) for rank in shared]
        assert max(sizes) - min(sizes) <= (0 if even else 1)


def test_ten_samples_for_four_ranks():
    """The table of docs/loader.md."""
    assert steps(10, 4, batch_size=2) == [[[[0, 4], [8]]], [[[1, 5], [9]]], [[[2, 6]]], [[[3, 7]]]]
    assert steps(10, 4, batch_size=2, even="pad") == [
        [[[0, 4], [8]]],
        [[[1, 5], [9]]],
        [[[2, 6], [0]]],
        [[[3, 7], [1]]],
    ]
    assert steps(10, 4, batch_size=2, even="drop") == [[[[0, 4]]], [[[1, 5]]], [[[2, 6]]], [[[3, 7]]]]


def test_a_single_rank_reads_everything(clean):
    for options in {"rank": 0, "ranks": 1}, {"rank": "auto"}, {}:
        with counting(5, batch_size=5, **options) as loader:
            assert (loader.rank, loader.ranks) == (0, 1)
            assert [batch.data.tolist() for batch in loader] == [[0, 1, 2, 3, 4]]


def test_ranks_that_do_not_shuffle_need_no_seed():
    with Loader(np.arange(6), rank=1, ranks=2, batch_size=3, timeout=PATIENCE) as loader:
        assert [batch.data.tolist() for batch in loader] == [[1, 3, 5]]


# ---- which rank this is


@pytest.fixture
def clean(monkeypatch):
    """An environment without launchers; a function that sets variables."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delitem(sys.modules, "caffe", raising=False)
    return lambda **variables: [monkeypatch.setenv(name, str(value)) for name, value in variables.items()]


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, (0, 1)),
        ({"RANK": 3, "WORLD_SIZE": 8}, (3, 8)),
        ({"OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 4}, (1, 4)),
        ({"PMI_RANK": 1, "PMI_SIZE": 4}, (1, 4)),
        ({"SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 3}, (2, 3)),
        ({"SLURM_PROCID": 0, "SLURM_NTASKS": 3}, (0, 1)),  # the batch script itself, which is one process
        # One launcher inside another.
        ({"SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 3, "PMI_RANK": 2, "PMI_SIZE": 3}, (2, 3)),
        ({"SLURM_PROCID": 0, "SLURM_STEP_NUM_TASKS": 2, "OMPI_COMM_WORLD_RANK": 3, "OMPI_COMM_WORLD_SIZE": 8}, (3, 8)),
        ({"SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 2, "RANK": 9, "WORLD_SIZE": 16, "GROUP_WORLD_SIZE": 2}, (9, 16)),
        ({"PMI_RANK": 0, "PMI_SIZE": 1, "RANK": 3, "WORLD_SIZE": 4, "GROUP_WORLD_SIZE": 1}, (3, 4)),
    ],
)
def test_the_environment_says_which_rank_this_is(clean, variables, expected):
    clean(**variables)
    assert find_rank() == expected
    if expected[1] > 1:
        with counting(20, rank="auto") as loader:
            assert (loader.rank, loader.ranks) == expected
            assert next(iter(loader)).data.tolist() == [expected[0]]


@pytest.mark.parametrize(
    "variables, problem",
    [
        (
            {"RANK": 1, "WORLD_SIZE": 8, "OMPI_COMM_WORLD_RANK": 1, "OMPI_COMM_WORLD_SIZE": 4},
            r"itself: for torchrun, this is rank 1 of 8 \(RANK, WORLD_SIZE\), and for Open MPI it is rank 1 of 4 ",
        ),
        (
            {"RANK": 0, "WORLD_SIZE": 1, "SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 3},
            r"for torchrun, this is rank 0 of 1 .*, and for SLURM it is rank 2 of 3",
        ),
        ({"PMI_RANK": 1, "PMI_SIZE": 4, "OMPI_COMM_WORLD_RANK": 2, "OMPI_COMM_WORLD_SIZE": 4}, "for MPI it is rank 1"),
        ({"RANK": 1}, "the environment has RANK and no WORLD_SIZE, which torchrun sets too"),
        ({"PMI_SIZE": 2}, "the environment has PMI_SIZE and no PMI_RANK, which MPI sets too"),
        ({"RANK": 8, "WORLD_SIZE": 8}, "RANK is '8' and WORLD_SIZE is '8', and a rank is at least 0 and less"),
        ({"RANK": "one", "WORLD_SIZE": "8"}, "RANK is 'one' and WORLD_SIZE is '8'"),
        ({"RANK": "-1", "WORLD_SIZE": "8"}, "RANK is '-1'"),
    ],
)
def test_an_environment_that_contradicts_itself(clean, variables, problem):
    clean(**variables)
    with pytest.raises(ValueError, match=problem):
        counting(20, rank="auto")


def torch_of(initialized):
    distributed = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: initialized, get_rank=lambda: 2, get_world_size=lambda: 5
    )
    return SimpleNamespace(distributed=distributed)


def test_what_the_process_itself_says_comes_first(clean, monkeypatch):
    clean(RANK=1, WORLD_SIZE=8)
    monkeypatch.setitem(sys.modules, "caffe", SimpleNamespace(solver_rank=lambda: 0, solver_count=lambda: 1))
    monkeypatch.setitem(sys.modules, "torch", torch_of(initialized=False))
    assert find_rank() == (1, 8)
    monkeypatch.setitem(sys.modules, "caffe", SimpleNamespace(solver_rank=lambda: 3, solver_count=lambda: 4))
    assert find_rank() == (3, 4)
    monkeypatch.setitem(sys.modules, "torch", torch_of(initialized=True))
    assert find_rank() == (2, 5)
    monkeypatch.setitem(sys.modules, "caffe", SimpleNamespace(__path__=[]))  # some folder of that name
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # or a torch without torch.distributed
    assert find_rank() == (1, 8)
