"""Loader: epochs, order, waiting, holding."""

import copy
import gc
import pickle
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from children import native_threads
from contracts import Holder, chunks, counting
from fastbatch import ArraySource, BatchesHeldError, Closed, DataTimeout, Loader, SampleError, Transform, _batches
from fastbatch._batches import BatchRing
from fastbatch.cores import usable_cores
from planned import PATIENCE, PlannedSource, planned_loader, wait_until


def values(batches):
    return [batch.data.tolist() for batch in batches]


# ---- epochs


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count, batch_size", [(1, 1), (1, 4), (10, 1), (10, 3), (10, 5), (10, 10), (10, 11)])
def test_an_epoch_has_every_sample_in_order(count, batch_size, threads):
    with counting(count, batch_size=batch_size, threads=threads) as loader:
        assert len(loader) == len(chunks(count, batch_size))
        for epoch in range(3):
            assert loader.epoch == epoch
            batches = []
            for number, batch in enumerate(loader):
                assert (batch.epoch, batch.number) == (epoch, number)
                batches.append(batch.data.tolist())
                batch.release()
            assert batches == chunks(count, batch_size)


@pytest.mark.parametrize("count, batch_size", [(2, 2), (10, 1), (10, 3), (10, 5), (10, 6), (10, 10)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_drop_leaves_out_what_does_not_fill_a_batch(count, batch_size, shuffle):
    with counting(count, batch_size=batch_size, last_batch="drop", shuffle=shuffle) as loader:
        assert len(loader) == count // batch_size
        for _ in range(3):
            sizes = [len(batch) for batch in loader]
            assert sizes == [batch_size] * len(loader)


def test_prefetch_1_works_in_a_plain_loop():
    """The batch of the step before is still alive when the next one is asked for."""
    with counting(50, prefetch=1, timeout=None) as loader:
        for _ in range(2):
            for expected, batch in enumerate(loader):
                assert batch.data.tolist() == [expected]
        assert loader.stats().slots == 2


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_leaving_a_loop_early_gives_up_its_epoch(threads, prefetch):
    with counting(20, batch_size=2, threads=threads, prefetch=prefetch) as loader:
        for epoch in range(300):
            for batch in loader:
                assert (batch.epoch, batch.number, batch.data.tolist()) == (
                    epoch,
                    batch.number,
                    [2 * batch.number, 2 * batch.number + 1],
                )
                if batch.number == epoch % 10:
                    break


def test_an_exception_in_a_loop_gives_up_its_epoch():
    with counting(20) as loader:
        with pytest.raises(ZeroDivisionError):
            for batch in loader:
                1 / int(batch.data[0])
        assert [batch.epoch for batch in loader] == [1] * 20


def test_an_epoch_that_nobody_took_a_batch_of_counts():
    with counting(3) as loader:
        iter(loader).close()
        iter(loader)  # collected at once
        assert loader.epoch == 2
        assert [(batch.epoch, batch.data.tolist()) for batch in loader] == [(2, [0]), (2, [1]), (2, [2])]


def test_exactly_all_batches_taken_is_a_whole_epoch():
    """The next epoch's first batches are kept, not made again."""
    with counting(4, prefetch=8) as loader:
        epoch = iter(loader)
        for _ in range(4):
            next(epoch)
        epoch.close()
        assert [batch.epoch for batch in loader] == [1] * 4


def test_an_iterator_is_not_open_any_more_after_its_last_batch():
    with counting(6, batch_size=2) as loader:
        for number in range(3):
            epoch = iter(loader)
            assert [(loader.epoch, next(epoch).epoch) for _ in range(len(loader))] == [(number, number)] * 3
            assert not epoch.open
        assert loader.epoch == 2  # as in the body of a loop
        assert list(epoch) == [] and loader.epoch == 3
        assert [(batch.epoch, loader.epoch) for batch in loader] == [(3, 3)] * 3


def test_a_finished_iterator_stays_finished():
    with counting(2) as loader:
        epoch = iter(loader)
        assert iter(epoch) is epoch
        assert values(epoch) == [[0], [1]]
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(epoch)
        epoch.close()
        epoch.close()
        assert loader.epoch == 1


def test_a_second_loop_while_one_runs_is_an_error():
    with counting(5) as loader:
        first = iter(loader)
        assert next(first).data == 0
        with pytest.raises(RuntimeError, match="an iterator of this loader is still open: a loader has one at a time"):
            iter(loader)
        assert next(first).data == 1  # it is not disturbed
        first.close()
        assert values(loader) == [[0], [1], [2], [3], [4]]


def test_a_second_loop_in_another_thread_is_an_error():
    with counting(5) as loader:
        for batch in loader:
            if batch.number == 3:
                break
            with ThreadPoolExecutor(1) as pool:
                assert isinstance(pool.submit(iter, loader).exception(), RuntimeError)
        assert values(loader) == chunks(5, 1)


def test_an_iterator_that_is_superseded_says_so():
    """No call on it is in progress, so another may supersede it; its next call must say so."""

    def take():
        return next(first).data.tolist()

    with counting(3) as loader:
        for asked in (False, True):
            first = iter(loader)
            number = first.number
            assert not asked or take() == [0]
            assert [batch.epoch for batch in loader] == [number + 1] * 3
            for _ in range(2):
                with pytest.raises(
                    RuntimeError, match="given up when a later iter.. or `for` of the same loader began the next"
                ):
                    next(first)
            first.close()
            assert list(first) == []
        assert loader.epoch == 4


def test_an_iterator_that_has_come_to_its_end_is_not_superseded():
    with counting(2) as loader:
        first = iter(loader)
        assert [next(first).data.tolist() for _ in range(2)] == [[0], [1]]
        second = iter(loader)
        assert list(first) == []
        assert [batch.epoch for batch in second] == [1, 1]


@pytest.mark.parametrize("how", ["a sample", "the body", "an iterator in a variable", "a generator"])
def test_an_exception_that_somebody_keeps_locks_nothing(how):
    """Its traceback keeps frames, and these their variables."""

    def body():
        for batch in loader:
            begun.append((batch.epoch, batch.number))
            batch.release()  # a frame that is kept would hold it
            if how == "the body":
                raise ValueError

    def variable():
        batches = iter(loader)
        batch = next(batches)
        begun.append((batch.epoch, batch.number))
        batch.release()
        raise ValueError

    def generator():
        batches = ((batch.epoch, batch.number, batch.release()) for batch in loader)
        begun.append(next(batches)[:2])
        raise ValueError

    loop = {"an iterator in a variable": variable, "a generator": generator}.get(how, body)
    with planned_loader("..r.", timeout=PATIENCE) as (_, loader):
        kept, begun = [], []
        for _ in range(5):
            try:
                loop()
            except ValueError as error:
                kept.append(error)
        assert len(kept) == 5
        assert [epoch for epoch, number in begun if number == 0] == [0, 1, 2, 3, 4]


def test_errors_that_the_looping_function_keeps_lock_nothing():
    with planned_loader("..r.", batch_size=2) as (_, loader):
        errors, batches = [], []
        for _ in range(3):
            try:
                for batch in loader:
                    batches.append((batch.epoch, batch.sample_keys))
                    batch.release()
            except SampleError as error:
                errors.append(error)
        assert batches == [(0, [0, 1]), (1, [0, 1]), (2, [0, 1])]
        assert [(error.epoch, error.index) for error in errors] == [(0, 2), (1, 2), (2, 2)]


def test_after_a_sample_error_the_iterator_goes_on():
    with planned_loader("r.r") as (_, loader):
        batches = iter(loader)
        with pytest.raises(SampleError):
            next(batches)
        assert next(batches).sample_keys == [1]
        with pytest.raises(RuntimeError, match="still open"):
            iter(loader)
        with pytest.raises(SampleError):
            next(batches)
        assert list(batches) == [] and loader.epoch == 1


def test_an_epoch_numbers_on_over_batches_that_wait():
    """The ring may hold batches of several epochs when epochs are short."""
    with counting(2, prefetch=15, threads=3) as loader:
        wait_until(lambda: loader.stats().ready == 16)
        for epoch in range(12):
            assert [(batch.epoch, batch.number) for batch in loader] == [(epoch, 0), (epoch, 1)]


def test_several_loaders_of_one_source():
    source = ArraySource(np.arange(30))
    with Loader(source, batch_size=7) as first, Loader(source, batch_size=4) as second:
        for _ in range(2):
            assert values(first) == chunks(30, 7)
            assert values(second) == chunks(30, 4)


# ---- what it says of itself


def test_threads_are_named_and_as_many_as_asked_for():
    before = native_threads()
    with counting(10, threads=3) as loader:
        assert len(native_threads() - before) == 3
        assert loader.stats().threads == 3
    assert native_threads() == before


def test_as_many_threads_as_usable_cores_unless_told():
    with counting(10) as loader:
        assert loader.stats().threads == usable_cores()


def test_a_seed_is_drawn_unless_given():
    with counting(10) as first, counting(10) as second, counting(10, seed=2**64 - 1) as third:
        assert first.seed != second.seed
        assert 0 <= first.seed < 2**64
        assert first.stats().seed == first.seed
        assert third.seed == third.stats().seed == 2**64 - 1
    with counting(10, seed=np.uint64(7)) as loader:
        assert loader.seed == 7


def test_stats_count():
    with planned_loader("....w...", batch_size=2, prefetch=3, threads=2) as (source, loader):
        wait_until(
            lambda: loader.stats().samples == 7 and loader.stats().ready == 3
        )  # all but the batch of the one that waits
        stats = loader.stats()
        assert (stats.held, stats.slots, stats.threads, stats.errors, stats.last_error) == (0, 4, 2, 0, None)
        source.open_gate()
        wait_until(lambda: loader.stats().ready == 4)
        wait_until(lambda: loader.stats().waited_for_space > 0)
        assert loader.stats().samples == 8
        epoch = iter(loader)
        batch = next(epoch)
        array = next(epoch).data
        assert loader.stats().held == 2
        batch.release()
        assert loader.stats().held == 1
        del array
        assert loader.stats().held == 0
        wait_until(lambda: loader.stats().ready == 4)
        assert loader.stats().samples == 12
    assert loader.stats().samples == 12  # callable after close()


def test_stats_tell_how_long_was_waited_for_data():
    with planned_loader("w", threads=1, timeout=0.02) as (_, loader):
        with pytest.raises(DataTimeout):
            next(iter(loader))
        assert 0.02 <= loader.stats().waited_for_data < PATIENCE


def test_what_it_was_made_with():
    source, transform = ArraySource(np.zeros((9, 1, 2, 2), np.uint8), np.arange(9)), Transform(scale=2)
    loader = Loader(
        source, transform, batch_size=4, shuffle=np.bool_(True), threads=2, prefetch=5, last_batch="drop", timeout=3
    )
    assert loader.source is source and loader.transform is transform and loader.names == ("data", "label")
    assert (loader.batch_size, loader.shuffle, loader.threads, loader.prefetch) == (4, True, 2, 5)
    assert (loader.last_batch, loader.timeout) == ("drop", 3)
    loader.close()
    assert loader.source is None  # it would keep a database open
    with counting(3) as loader:
        assert isinstance(loader.source, ArraySource) and loader.transform is None and loader.names == ("data",)
        assert (loader.shuffle, loader.last_batch, loader.threads) == (False, "partial", usable_cores())


def test_repr():
    loader = counting(10, batch_size=4)
    assert repr(loader) == "<fastbatch.Loader of arrays: 3 batches of 4, epoch 0>"
    list(loader)
    assert repr(loader) == "<fastbatch.Loader of arrays: 3 batches of 4, epoch 1>"
    loader.close()
    assert repr(loader) == "<fastbatch.Loader of arrays: 3 batches of 4, closed>"


# ---- waiting


@pytest.mark.parametrize("action, stage", [("w", "read"), ("L", "locate")])
def test_a_timeout_says_what_the_workers_do_and_loses_nothing(action, stage):
    with planned_loader("." + action + "..", threads=2, prefetch=2) as (source, loader):
        epoch = iter(loader)
        assert next(epoch).sample_keys == [0]
        wait_until(lambda: source.waiting == 1)
        loader._timeout = 0.02
        for _ in range(2):
            with pytest.raises(
                DataTimeout, match="no batch of planned was ready within 0.02 s; the workers: "
            ) as caught:
                next(epoch)
        said, remedy = str(caught.value).split("the workers: ")[1].split(". ")
        assert remedy == "If a batch may take longer, give the loader a longer timeout="
        sentences = said.split("; ")
        assert [sentence.split(":")[0] for sentence in sentences] == ["thread fastbatch-0", "thread fastbatch-1"]
        assert any(re.search(rf": {stage} sample 1 for \d+\.\d\d\d s$", sentence) for sentence in sentences)
        assert isinstance(caught.value, TimeoutError)
        source.open_gate()
        loader._timeout = PATIENCE
        assert [batch.sample_keys for batch in epoch] == [[1], [2], [3]]


def test_timeout_0_asks_without_waiting():
    with planned_loader("w.", timeout=0) as (source, loader):
        epoch = iter(loader)
        for _ in range(3):
            with pytest.raises(DataTimeout):
                next(epoch)
        source.open_gate()
        wait_until(lambda: loader.stats().ready == loader.stats().slots)  # the first batch among them
        assert [batch.sample_keys for batch in epoch] == [[0], [1]]


def test_only_one_thread_may_wait():
    with planned_loader("w..", threads=1) as (source, loader):
        ring, got = loader._ring, []

        def consume():
            while not got:
                try:
                    got.append(ring.next(PATIENCE).sample_keys)
                except RuntimeError:
                    pass  # the test was a moment faster

        thread = threading.Thread(target=consume)
        thread.start()

        def refused():
            with pytest.raises((RuntimeError, DataTimeout)) as caught:
                ring.next(0)
            return "another thread is waiting for this loader's next batch" in str(caught.value)

        wait_until(refused)
        source.open_gate()
        thread.join(PATIENCE)
        assert got == [[0]]
        assert ring.next(PATIENCE).sample_keys == [1]


def test_batches_may_be_taken_and_let_go_of_in_any_thread():
    with counting(40, prefetch=2) as loader:
        epoch, found = iter(loader), []

        def take():
            found.append(next(epoch).data.tolist())

        for _ in range(40):
            thread = threading.Thread(target=take)
            thread.start()
            thread.join(PATIENCE)
        assert found == [[i] for i in range(40)]


# ---- holding


def test_holding_every_batch_is_an_error_not_a_hang():
    with counting(20, prefetch=2, timeout=None) as loader:
        epoch = iter(loader)
        held = [next(epoch) for _ in range(3)]
        for _ in range(2):
            with pytest.raises(BatchesHeldError, match="all 3 batches of the ring are held by the caller") as caught:
                next(epoch)
        assert "batch.release(), del, or copy what you keep" in str(caught.value) and "a larger prefetch" in str(
            caught.value
        )
        assert values(held) == [[0], [1], [2]]
        del held[:2]
        assert values(epoch) == [[i] for i in range(3, 20)]  # nothing was lost
        assert values(held) == [[2]]


@pytest.mark.parametrize("keep", [lambda batch: batch.data, memoryview, lambda batch: batch.data[::2]])
def test_views_hold_their_batch(keep):
    with counting(20, batch_size=2, prefetch=2, timeout=None) as loader:
        epoch = iter(loader)
        held = [keep(next(epoch)) for _ in range(3)]
        with pytest.raises(BatchesHeldError):
            next(epoch)
        del held
        assert next(epoch).data.tolist() == [6, 7]


def test_batches_in_garbage_are_collected_first():
    gc.collect()
    gc.disable()
    try:
        with counting(20, prefetch=2, timeout=None) as loader:
            epoch = iter(loader)
            for _ in range(20):
                Holder(next(epoch))
    finally:
        gc.enable()


def test_holding_every_batch_with_a_timeout_waits_that_long():
    with counting(20, prefetch=1, timeout=0.02) as loader:
        epoch = iter(loader)
        wait_until(lambda: loader.stats().ready == 2)
        held = [next(epoch), next(epoch)]
        with pytest.raises(BatchesHeldError, match="all 2 batches"):
            next(epoch)
        assert loader.stats().waited_for_data >= 0.02
        assert values(held) == [[0], [1]]


def test_another_thread_may_let_go_while_the_timeout_runs():
    with counting(20, prefetch=1, timeout=PATIENCE) as loader:
        epoch = iter(loader)
        held = [next(epoch), next(epoch)]
        waiting = threading.Event()

        def let_go():
            waiting.wait(PATIENCE)
            held[0].release()

        def collecting(phase, info):
            waiting.set()  # next() collects garbage when it finds all batches held, and waits after that

        thread = threading.Thread(target=let_go)
        thread.start()
        gc.callbacks.append(collecting)
        try:
            assert next(epoch).data.tolist() == [2]
        finally:
            gc.callbacks.remove(collecting)
            thread.join(PATIENCE)


# ---- what cannot be done with it


@pytest.mark.parametrize("what", [pickle.dumps, copy.copy, copy.deepcopy])
def test_nothing_native_can_be_pickled_or_copied(what):
    with counting(5) as loader:
        batch = next(iter(loader))
        for thing in (loader, loader._ring, batch, loader._ring.next(PATIENCE)):
            with pytest.raises(TypeError, match="pickle"):
                what(thing)


def test_a_ring_that_was_never_initialized():
    ring = BatchRing.__new__(BatchRing)
    with pytest.raises(Closed, match="BatchRing was not initialized"):
        ring.next()
    with pytest.raises(Closed, match="BatchRing was not initialized"):
        ring.start_epoch(1)
    for use in (ring.stats, ring.activity, lambda: ring.count):
        with pytest.raises(Closed, match="BatchRing was not initialized"):
            use()
    assert ring.closed
    ring.close()


def test_a_ring_cannot_be_initialized_twice():
    source = ArraySource(np.arange(5))
    ring = BatchRing(source, batch_size=1, slots=2, threads=1)
    with pytest.raises(RuntimeError, match="a BatchRing cannot be initialized twice"):
        ring.__init__(source, batch_size=1, slots=2, threads=1)
    assert ring.next(PATIENCE).data.tolist() == [0]
    ring.close()


def test_all_rings_are_closed_at_exit_also_when_one_fails():
    closed = []

    class Ring:
        def __init__(self, *errors):
            self.errors = errors

        def close(self):
            closed.append(self)
            for error in self.errors:
                raise error

    rings = [Ring(), Ring(KeyboardInterrupt()), Ring(ValueError()), Ring()]
    with pytest.raises(KeyboardInterrupt):
        _batches._close_all([weakref.ref(ring) for ring in [*rings[:2], Ring(), *rings[2:]]])
    assert closed == rings


def test_a_loader_that_is_initialized_twice_begins_again():
    before = native_threads()
    loader = counting(5, threads=2)
    assert values(loader) == chunks(5, 1)
    loader.__init__(np.arange(3), threads=1)
    assert len(native_threads() - before) == 1
    assert [(batch.epoch, batch.data.tolist()) for batch in loader] == [(0, [0]), (0, [1]), (0, [2])]
    loader.close()


# ---- memory


def test_batches_are_no_larger_than_the_source():
    """10 images in batches of 20,000 took 11.5 GB. A loader of 10 images must not need more memory than they do."""
    big = np.broadcast_to(
        np.float32(1), (10, 2**40)
    )  # no memory for one, and so a message that says for how many it was
    with (
        Loader(big, batch_size=20000) as loader,
        pytest.raises(SampleError, match="no memory for a batch of 10 such samples"),
    ):
        next(iter(loader))
    with counting(10, batch_size=2**31 - 1) as loader:
        assert len(loader) == 1
        assert [(len(batch), batch.data.tolist(), batch.sample_keys) for batch in loader] == [
            (10, list(range(10)), list(range(10)))
        ]
        assert repr(loader) == "<fastbatch.Loader of arrays: 1 batch of 2147483647, epoch 1>"


# ---- shapes


def test_shapes_may_change_from_batch_to_batch():
    """Batches of one: their memory grows with what it has to hold, and shrinks in shape without another allocation."""
    with planned_loader("..s.s...", varying=True) as (_, loader):
        for _ in range(2):
            assert [batch.data.shape for batch in loader] == [
                (1, 3),
                (1, 3),
                (1, 4),
                (1, 3),
                (1, 4),
                (1, 3),
                (1, 3),
                (1, 3),
            ]


def test_a_transform_makes_float32_of_data_and_leaves_the_rest():
    pictures = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    source = {"data": pictures, "label": np.int32([5, 6]), "weight": np.float64([0.5, 2])}
    with Loader(source, Transform(scale=2), batch_size=2) as loader:
        batch = next(iter(loader))
    assert batch.data.dtype == np.float32 and (batch.data == pictures * np.float32(2)).all()
    assert batch.label.dtype == np.int64 and batch.label.tolist() == [5, 6]
    assert batch.weight.dtype == np.float64 and batch.weight.tolist() == [0.5, 2]


def test_a_third_partys_source_is_kept_until_the_last_worker_left():
    source = PlannedSource("." * 100)
    loader = Loader(source, threads=3)
    epoch = iter(loader)
    for _ in range(50):
        assert source.deleted == 0
        next(epoch)
    loader.close()
    assert source.deleted == 1
