"""An interrupt at any bytecode of a loader loses neither a batch of the ring nor an error."""

import numpy as np
import pytest

from fastbatch import Loader, SampleError, SourceError
from interrupts import Interrupted, interrupted_at, interrupted_everywhere
from planned import PATIENCE, planned_loader


@pytest.mark.parametrize("kept", [False, True], ids=["dropped", "kept"])
def test_next_of_a_batch_that_fails(kept):
    """A slot outside all queues while its error was built was lost: with prefetch=1, the next loop waited forever."""
    outcomes = []
    with planned_loader("r.", prefetch=1) as (_, loader):
        batches = iter(loader)

        def call():
            return next(batches)

        for outcome in interrupted_everywhere(call):
            if isinstance(outcome, Interrupted):
                with pytest.raises(SampleError, match="sample 0"):  # not lost either
                    next(batches)
            else:
                assert isinstance(outcome, SampleError)
            assert next(batches).sample_keys == [1]
            with pytest.raises(StopIteration):
                next(batches)
            batches = iter(loader)
            outcomes.append(outcome if kept else type(outcome))
        assert len(outcomes) > 10
        assert loader.stats().held == 0


def test_next_of_a_source_that_is_lost():
    """The batch counted as taken before it was known to be the last: the next call waited forever."""
    for moment in range(1, 100):
        with planned_loader(".F..", prefetch=1) as (_, loader):
            batches = iter(loader)
            assert next(batches).sample_keys == [0]
            interrupted, outcome = interrupted_at(moment, lambda: next(batches))
            assert isinstance(outcome, Interrupted if interrupted else SourceError)
            for _ in range(2):
                with pytest.raises(SourceError, match="planned cannot be read any further"):
                    next(batches)
        if not interrupted:
            break
    assert 5 < moment < 99


def test_a_whole_epoch():
    """iter(), next(), the end of a loop, and leaving it early."""

    def epoch():
        for batch in loader:
            if batch.number == 2:
                break
        for batch in loader:
            batch.release()
        loader.stats()
        return batch.epoch

    before = -1
    with Loader(np.arange(8), batch_size=2, prefetch=2, threads=2, timeout=PATIENCE) as loader:
        for outcome in interrupted_everywhere(epoch):
            assert isinstance(outcome, (Interrupted, int))
            batches = [(batch.epoch, batch.data.tolist()) for batch in loader]
            now = batches[0][0]
            assert before < now <= before + 3
            assert batches == [(now, [0, 1]), (now, [2, 3]), (now, [4, 5]), (now, [6, 7])]
            before = now
        assert loader.stats().held == 0


def test_no_memory_for_a_batch_loses_none():
    _testcapi = pytest.importorskip(
        "_testcapi", reason="needs CPython's test extension, which can make allocations fail"
    )
    taken = []
    with Loader(np.arange(30), prefetch=1, threads=1, timeout=PATIENCE) as loader:
        batches = iter(loader)
        for failing in range(30):
            _testcapi.set_nomemory(failing, failing + 1)
            try:
                batch = next(batches)
            except MemoryError:
                continue
            finally:
                _testcapi.remove_mem_hooks()
            taken.append(batch.number)
            batch = None
            if len(taken) > 20:
                break
        assert loader.stats().held == 0
        taken += [batch.number for batch in batches]
    assert taken == sorted(taken) and len(taken) >= 29
