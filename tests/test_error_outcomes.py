"""`Loader.errors` and the counters say what became of samples, also of those in batches that nobody got."""

import pytest

from contracts import outcomes
from datasets import Images
from fastbatch import Loader, PythonSource, SampleError, TooManyErrors
from interrupts import Interrupted, interrupted_everywhere
from planned import PATIENCE, planned_loader


def told(loader):
    stats = loader.stats()
    return [(error.index, error.outcome) for error in loader.errors], stats.skipped, stats.replaced


def test_no_sample_of_a_batch_that_is_raised_was_skipped():
    answers = {1: "skip", 2: "replace", 3: "raise", 5: "skip"}
    options = {"batch_size": 4, "threads": 2, "on_error": lambda error: answers[error.index]}
    with planned_loader(".rrr.r..", **options) as (_, loader):
        error, rest = outcomes(iter(loader))
        assert (error.index, rest) == (3, [4, 6, 7])
        assert told(loader) == ([(1, "raised"), (2, "raised"), (3, "raised"), (5, "skipped")], 1, 0)
        assert all("batch 0 of epoch 0, which holds it, is not delivered" in str(each) for each in loader.errors[:3])


def test_no_sample_of_a_batch_over_budget_was_skipped():
    with planned_loader("rr..r...", batch_size=4, on_error="skip", error_budget=1) as (_, loader):
        batches = iter(loader)
        for count, bad in (2, 2), (3, 3):  # the samples of the batch that was given up count
            with pytest.raises(TooManyErrors) as caught:
                next(batches)
            assert (caught.value.count, len(caught.value.errors)) == (count, bad)
            assert "is delivered" not in str(caught.value)
        assert told(loader) == ([(0, "raised"), (1, "raised"), (4, "raised")], 0, 0)


@pytest.mark.parametrize("policy", ["skip", "replace"])
@pytest.mark.parametrize("leave", ["restart", "restore", "close"])
def test_a_batch_that_nobody_got_leaves_no_trace(leave, policy):
    """Some of its samples were decided about, and then it was given up."""

    def decide(error):
        if error.index == 2 and interrupts:
            raise interrupts.pop()
        return policy

    interrupts = [KeyboardInterrupt()]
    with planned_loader(".rr...", batch_size=3, seed=1, on_error=decide) as (_, loader):
        state = loader.state_dict()
        batches = iter(loader)
        with pytest.raises(KeyboardInterrupt):
            next(batches)
        assert told(loader) == ([], 0, 0)
        if leave == "close":
            loader.close()
            assert told(loader) == ([], 0, 0)
            return
        batches.close()
        if leave == "restore":
            loader.load_state_dict(state)
        for batch in loader:
            batch.release()
        outcome = "skipped" if policy == "skip" else "replaced"
        assert {each for _, each in told(loader)[0]} == {outcome}
        assert {error.epoch for error in loader.errors} == {0 if leave == "restore" else 1}
        assert sum(told(loader)[1:]) == len(loader.errors)


def test_what_is_said_of_a_batch_all_of_whose_samples_were_skipped():
    """No batch is delivered."""
    with planned_loader("rr..", batch_size=2, on_error="skip") as (_, loader):
        assert [batch.sample_keys for batch in loader] == [[2, 3]]
        assert [str(error).partition("; ")[2] for error in loader.errors] == 2 * [
            "it was left out of batch 0 of epoch 0."
        ]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_an_interrupted_decision_keeps_the_cause(kind):
    """A worker's exception can be taken only once."""
    causes = []

    def decide(error):
        causes.append(error.__cause__)
        if len(causes) < 3:
            raise KeyboardInterrupt
        return "skip"

    source = PythonSource(Images(4, raises=1), workers=1, kind=kind)
    with Loader(source, batch_size=4, on_error=decide, timeout=PATIENCE) as loader:
        batches = iter(loader)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                next(batches)
        assert next(batches)["label"].tolist() == [0, 2, 3]
        assert [type(cause) for cause in [*causes, loader.errors[0].__cause__]] == 4 * [LookupError]


def test_a_function_that_raises_the_error_it_was_given():
    def refuse(error):
        raise error

    with planned_loader(".r", batch_size=2, on_error=refuse) as (_, loader):
        with pytest.raises(SampleError) as caught:
            next(iter(loader))
        assert caught.value.outcome == "raised"
        assert [(error.index, error.outcome) for error in loader.errors] == [(1, "raised")]


def test_an_interrupt_loses_no_cause():
    source = PythonSource(Images(2, raises=1), workers=1, kind="thread")
    with Loader(source, batch_size=2, on_error="skip", timeout=PATIENCE) as loader:
        for outcome in interrupted_everywhere(lambda: len(next(iter(loader)))):
            if isinstance(outcome, Interrupted):
                outcome = None
                for batch in loader:
                    batch.release()
        assert len(loader.errors) > 10
        assert all(isinstance(error.__cause__, LookupError) for error in loader.errors)


def test_an_interrupt_does_not_hide_that_an_epoch_is_empty():
    with planned_loader("rr", batch_size=2, prefetch=1, on_error="skip") as (_, loader):
        batches = iter(loader)
        for outcome in interrupted_everywhere(lambda: next(batches)):
            if isinstance(outcome, Interrupted):
                try:
                    outcome = next(batches)
                except Exception as error:
                    outcome = error
            assert isinstance(outcome, TooManyErrors)
            assert "sample 0: planned failure of read" in str(outcome)
            batches = iter(loader)


def test_a_batch_is_counted_once_however_often_its_samples_are_replaced():
    for policy in "replace", lambda error: "replace":
        with planned_loader("rr......", batch_size=4, prefetch=1, seed=3, on_error=policy) as (_, loader):
            for batch in loader:
                size = batch.data.nbytes + batch.label.nbytes
                batch.release()
            loader.close()
            stats = loader.stats()
            assert stats.replaced >= 2
            assert 2 <= stats.batches <= 4  # two of the next epoch may be ready
            assert stats.bytes == stats.batches * size


def ways_to_share(count):
    """(last_batch, even, rank, ranks) with which each rank has at least two of the samples: one has no other."""
    for rank, ranks in (None, None), (0, 2), (1, 2):
        if count >= 2 * (ranks or 1):
            for last_batch in "partial", "pad", "wrap":
                yield last_batch, None, rank, ranks
            if ranks is not None:  # even= is for several
                yield "partial", "pad", rank, ranks


@pytest.mark.parametrize(
    "count, last_batch, even, rank, ranks", [(count, *way) for count in (3, 4, 5, 6) for way in ways_to_share(count)]
)
def test_a_sample_is_never_replaced_by_itself(count, last_batch, even, rank, ranks):
    """Also where it occurs twice in an epoch, and where epochs begin within batches."""
    for bad in range(count):
        plan = "." * bad + "r" + "." * (count - bad - 1)
        options = {"batch_size": 2, "last_batch": last_batch, "rank": rank, "ranks": ranks, "even": even}
        with planned_loader(plan, seed=bad, on_error="replace", **options) as (_, loader):
            for _ in range(6):
                for batch in loader:
                    assert bad not in batch.sample_keys
            assert all("it was to replace" not in error.reason for error in loader.errors)


def test_a_list_of_thousands_of_bad_samples_is_in_order():
    """Each was replaced ten times."""
    with planned_loader("r" * 3000, batch_size=3000, threads=4, at_once=64, on_error="replace") as (_, loader):
        with pytest.raises(SampleError, match="as number 10 of at most 10"):
            next(iter(loader))
        attempts = [error.reason.partition("as number ")[2][:2].strip() for error in loader.errors]
        assert attempts == ["", *map(str, range(1, 11))]
