"""Loader: close(), and loaders that are collected without it."""

import gc
import threading
import weakref

import numpy as np
import pytest

from children import native_threads
from contracts import Holder, counting
from fastbatch import Closed, Loader
from planned import PATIENCE, planned_loader, wait_until


def test_close_may_be_called_twice_and_from_many_threads():
    loader = counting(100)
    next(iter(loader))
    threads = [threading.Thread(target=loader.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    loader.close()
    assert loader.closed


def test_after_close():
    loader = counting(5)
    epoch = iter(loader)
    batch = next(epoch)
    loader.close()
    assert batch.data.tolist() == [0]
    with pytest.raises(Closed, match="the loader of arrays is closed"):
        next(epoch)
    with pytest.raises(Closed, match="the loader of arrays is closed"):
        iter(loader)
    assert len(loader) == 5
    epoch.close()


def test_close_wakes_a_thread_that_waits():
    with planned_loader("w", threads=1) as (source, loader):
        caught = []

        def consume():
            with pytest.raises(Closed, match="the loader of planned is closed") as info:
                next(iter(loader))
            caught.append(info)
            source.open_gate()  # only now can the worker leave, and close() return

        thread = threading.Thread(target=consume)
        thread.start()
        wait_until(lambda: source.waiting == 1 and loader._ring.consuming)
        loader.close()
        thread.join(PATIENCE)
        assert len(caught) == 1
        assert source.deleted == 1


def test_close_in_a_loop_ends_it_with_an_error():
    loader = counting(20)
    with pytest.raises(Closed):
        for batch in loader:  # noqa: B007 (the last batch is looked at below)
            loader.close()
    assert batch.data.tolist() == [0]


def test_an_unclosed_loader_that_is_collected_leaves_no_thread():
    before = native_threads()
    for state in range(4):
        with_threads = counting(1000, threads=2)
        assert len(native_threads() - before) == 2
        if state > 0:
            epoch = iter(with_threads)
        if state > 1:
            batch = next(epoch)
            del batch
        if state > 2:
            Holder(epoch)
            gc.collect()
        epoch = None
        with_threads = None
        assert native_threads() == before, state


def test_an_unclosed_loader_that_is_collected_stops_though_a_batch_is_kept():
    before = native_threads()
    loader = counting(1000, threads=2)
    batch = next(iter(loader))
    del loader
    gc.collect()
    assert native_threads() == before
    assert batch.data.tolist() == [0]


def test_a_loader_in_a_cycle_is_collected():
    before = native_threads()
    loader = counting(1000, threads=2)
    ring = weakref.ref(loader._ring)
    loader.me = loader
    loader.epoch_of_mine = iter(loader)
    loader.batch = next(loader.epoch_of_mine)
    del loader
    gc.collect()
    assert ring() is None
    assert native_threads() == before


def test_a_batch_outlives_everything():
    pictures = np.arange(1000, dtype=np.int32).reshape(10, 100)
    loader = Loader(pictures, batch_size=5)
    array = next(iter(loader)).data
    loader.close()
    del loader
    gc.collect()
    assert array.tobytes() == pictures[:5].tobytes()
    array += 1  # it is ours now
    assert array[0, 0] == 1
