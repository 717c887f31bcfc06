"""PythonSource: the exceptions of workers, which wait until the errors of their samples are raised; and interrupts."""

import pickle
import socket
import threading
import weakref

import pytest

import datasets
from fastbatch import Loader, PythonSource, SampleError, current_sample
from fastbatch.sources._exceptions import caused
from fastbatch.sources._known import Known
from fastbatch.sources._serving import connections
from fastbatch.sources._team import teams
from planned import wait_until

PATIENCE = 60


def causes(loader):
    """The causes of an epoch's errors, of samples that are skipped."""
    for _ in loader:
        pass
    return [error.__cause__ for error in loader.errors]


def test_hundreds_of_samples_that_fail_at_once_keep_their_causes():
    """There were 64 at most, and the older ones were lost."""

    def load(index):
        if index % 100 == 0:
            return index
        raise LookupError(index)

    source = PythonSource(load, 500, workers=2, kind="thread")
    with Loader(source, batch_size=250, on_error="skip", timeout=PATIENCE) as loader:
        assert [cause.args for cause in causes(loader)] == [(index,) for index in range(500) if index % 100]


def test_the_exceptions_that_wait_have_a_bound():
    """Large ones: 65000 bytes each at most, and 16 MiB together. The oldest are dropped, and their reasons stay."""
    visits, asked = [], threading.Event()

    def load(index):
        if index == 0:
            visits.append(index)
            if len(visits) == 3:  # after the probe and the epoch. The next one's exceptions would take their place.
                asked.wait(PATIENCE)
            return index
        raise LookupError(index, "x" * 30000)

    source = PythonSource(load, 400, workers=1, kind="thread")
    # One thread, so that the samples fail in order.
    with Loader(source, batch_size=400, threads=1, prefetch=1, on_error="skip", timeout=PATIENCE) as loader:
        found = causes(loader)
        assert all(error.reason.startswith("loading it raised LookupError: (") for error in loader.errors)
        asked.set()
    kept = [cause.args[0] for cause in found if cause is not None]
    assert kept == list(range(400 - len(kept), 400)) and 200 < len(kept) < 300


def test_a_sample_that_fails_twice_in_a_batch_has_its_cause_twice():
    """The second exception took the place of the first one, which nobody had asked for yet."""
    loads = []

    def load(index):
        loads.append(index)
        if index == 1:
            raise LookupError(loads.count(1))
        return index

    source = PythonSource(load, 3, workers=1, kind="thread")[[0, 1, 1, 2, 1]]
    with Loader(source, batch_size=5, prefetch=1, on_error="skip", timeout=PATIENCE) as loader:
        assert [cause.args for cause in causes(loader)] == [(1,), (2,), (3,)]


def test_exceptions_of_batches_that_are_given_up_are_forgotten():
    """Otherwise the sample's next error would have the cause of an earlier one, which nobody has heard of."""
    epochs = []

    def load(index):
        if index == 3:
            epochs.append(current_sample().epoch)
            raise LookupError(epochs.count(epochs[-1]))
        return index

    source = PythonSource(load, 4, workers=1, kind="thread")
    with Loader(source, batch_size=2, prefetch=1, timeout=PATIENCE) as loader:
        state = loader.state_dict()
        epoch = iter(loader)
        next(epoch)
        wait_until(lambda: loader.stats().ready)  # with the sample that failed
        epoch.close()
        loader.load_state_dict(state)
        epoch = iter(loader)
        next(epoch)
        with pytest.raises(SampleError) as error:
            next(epoch)
    assert epochs.count(0) == 2 and error.value.__cause__.args == (2,)


@pytest.mark.parametrize(
    "kind, cause",
    [(datasets.BecomesText, RuntimeError), (datasets.Frozen, type(None)), (datasets.RaisesElsewhere, type(None))],
)
def test_an_exception_that_pickle_spoils_does_not_keep_a_loader_from_going_on(kind, cause):
    """The loader gave the error such a cause, in vain, again and again."""
    source = PythonSource(datasets.FailsWith(kind), workers=1)
    with Loader(source, on_error="skip", timeout=PATIENCE) as loader:
        found, epoch = [], iter(loader)
        while len(found) < 5:
            try:
                found.append(next(epoch)["data"][0])
            except GeneratorExit:
                found.append(None)
            except StopIteration:
                break
        tries = 3 * (kind is datasets.RaisesElsewhere)
        assert found == [0, *tries * [None], 2]
        assert [type(error.__cause__) for error in loader.errors] == [cause]
        assert loader.errors[0].reason == f"loading it raised {kind.__name__}"


def test_a_cause_that_becomes_no_exception_here_is_left_out():
    """Its class may be another one in this process."""
    error = LookupError("1")
    assert caused(error, pickle.dumps(("text", "lines"))) is error and error.__cause__ is None
    assert caused(error, pickle.dumps("text")) is error and error.__cause__ is None
    assert type(caused(error, pickle.dumps((ValueError("2"), "lines"))).__cause__) is ValueError


def test_nothing_is_called_when_a_team_or_a_connection_is_gone():
    """An exception of a signal handler in a weak reference's callback reached nobody."""
    team = PythonSource(datasets.Images(4), workers=1, kind="thread").__fastbatch_team__(False, 1)
    try:
        assert team in list(teams)
        assert [reference.__callback__ for reference in weakref.getweakrefs(team)] == [None]
    finally:
        team.close()
    del team
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connections.add(ours, theirs)
        for connection in (ours, theirs):
            assert connection in list(connections)
            assert [reference.__callback__ for reference in weakref.getweakrefs(connection)] == [None]


def test_what_is_gone_is_not_known_any_more():
    known = Known()
    objects = [datasets.Images(), datasets.Images()]
    known.add(*objects)
    assert list(known) == objects
    del objects[0]
    assert list(known) == objects
    known.add()
    assert len(known.references) == 1
