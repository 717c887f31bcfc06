"""BlockingQueue, and the native queue under it as other extensions use it."""

import copy
import gc
import itertools
import pickle
import queue
import signal
import sys
import threading
import weakref
from pathlib import Path

import pytest

from children import run_child, running
from compiled import compile_extension
from fastbatch import BlockingQueue, Closed
from planned import PATIENCE, wait_until


class Item:
    """An object that weak references can watch."""


def drain(blocking):
    items = []
    while True:
        try:
            items.append(blocking.try_pop())
        except (queue.Empty, Closed):
            return items


def in_thread(function, *arguments):
    """Starts `function` in a thread and sees it begin; result() waits for it, and returns or raises what it did."""
    outcome = []

    def run():
        try:
            outcome.append((function(*arguments), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    within = (
        run.__code__,
        getattr(function, "__code__", None),
        None,
    )  # compiled functions have none; None: already back
    wait_until(lambda: running(thread) in within)

    def result():
        thread.join(PATIENCE)
        assert outcome, "the thread is still blocked"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


# ---- first in, first out


def test_first_in_first_out():
    blocking = BlockingQueue()
    for item in (1, None, "three", [4]):
        blocking.push(item)
    assert len(blocking) == 4
    assert [blocking.pop() for _ in range(4)] == [1, None, "three", [4]]
    assert len(blocking) == 0


def test_an_unbounded_queue_grows_and_keeps_its_order():
    blocking = BlockingQueue()
    pushed, popped = 0, []
    for round_ in range(1, 100):  # the circle's beginning moves on between growths
        for _ in range(round_):
            blocking.push(pushed)
            pushed += 1
        popped += [blocking.pop() for _ in range(round_ // 2)]
    assert len(blocking) == pushed - len(popped) > 2000
    assert popped + drain(blocking) == list(range(pushed))


@pytest.mark.parametrize("maxsize", [1, 2, 3, 17])
def test_a_bounded_queue_goes_round(maxsize):
    blocking = BlockingQueue(maxsize)
    assert blocking.maxsize == maxsize
    for item in range(10 * maxsize):
        if item >= maxsize:
            assert not blocking.try_push("too many")
            assert blocking.pop() == item - maxsize
        assert blocking.try_push(item)
    assert drain(blocking) == list(range(9 * maxsize, 10 * maxsize))


def test_peek_leaves_the_item():
    blocking = BlockingQueue()
    item = Item()
    blocking.push(item)
    blocking.push(2)
    assert blocking.peek() is item and blocking.try_peek() is item
    assert len(blocking) == 2
    assert blocking.pop() is item
    assert blocking.peek() == 2


# ---- timeouts


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01])
def test_empty(timeout):
    blocking = BlockingQueue()
    for take in (blocking.pop, blocking.peek):
        with pytest.raises(queue.Empty, match=f"no item within {timeout} s"):
            take(timeout)
        with pytest.raises(queue.Empty):
            take(timeout=timeout)
    for take in (blocking.try_pop, blocking.try_peek):
        with pytest.raises(queue.Empty):
            take()


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01])
def test_full(timeout):
    blocking = BlockingQueue(2)
    blocking.push(1)
    blocking.push(2)
    item = Item()
    with pytest.raises(queue.Full, match=f"no space among 2 items within {timeout} s"):
        blocking.push(item, timeout)
    assert blocking.try_push(item) is False
    gone = weakref.ref(item)
    del item
    assert gone() is None  # the queue has kept nothing of it
    assert drain(blocking) == [1, 2]


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_timeout_that_makes_no_sense(timeout):
    blocking = BlockingQueue(1)
    for use in (lambda: blocking.push(1, timeout), lambda: blocking.pop(timeout), lambda: blocking.peek(timeout)):
        with pytest.raises(
            ValueError, match="timeout must be seconds, 0 or more, or None to wait as long as it takes; not"
        ):
            use()
    with pytest.raises(TypeError):
        blocking.pop("soon")
    assert len(blocking) == 0


def test_a_timeout_for_ever():
    blocking = BlockingQueue(1)
    blocking.push(1, float("inf"))
    assert blocking.pop(float("inf")) == 1
    assert blocking.push(2, 10**30) is None
    assert blocking.pop(10**30) == 2


@pytest.mark.parametrize(
    "maxsize, error", [(-1, ValueError), ("2", TypeError), (1.5, TypeError), (2**63, OverflowError)]
)
def test_a_maxsize_that_makes_no_sense(maxsize, error):
    with pytest.raises(error):
        BlockingQueue(maxsize)


@pytest.mark.parametrize("maxsize", [2**60, 2**61, 2**62, 2**63 - 1])
def test_a_maxsize_beyond_all_memory(maxsize):
    """8 times 2**61 is 0 in 64 bits."""
    with pytest.raises(MemoryError, match=f"no memory for a queue of {maxsize} items"):
        BlockingQueue(maxsize)


def test_an_unbounded_queue_that_cannot_grow():
    """It has room for a power of 2; a dict of that many items has grown before."""
    run_child("""
        from children import limit_memory
        from fastbatch import BlockingQueue
        queue = BlockingQueue()
        count = 2**19
        for i in range(count):
            queue.push(i)
        lift_limit = limit_memory(2**21)
        words = []
        for push in queue.push, queue.try_push, lambda item: queue.push(item, 1e6):
            try:
                push(count)
            except MemoryError as error:
                words.append(str(error))
        lift_limit()
        assert words == [f"no memory for more than the {count} items of the queue"] * 3, words
        queue.push(count)
        assert [queue.pop() for _ in range(count + 1)] == list(range(count + 1))
    """)


# ---- blocking


def test_pop_waits_for_push():
    blocking = BlockingQueue()
    for take in (blocking.pop, blocking.peek):
        result = in_thread(take)
        blocking.push(7)
        assert result() == 7
    result = in_thread(blocking.pop, PATIENCE)
    assert result() == 7


def test_push_waits_for_pop():
    blocking = BlockingQueue(1)
    blocking.push(1)
    result = in_thread(blocking.push, 2)
    assert blocking.pop() == 1
    assert result() is None
    assert blocking.pop() == 2


def test_one_push_serves_those_who_peek_and_the_one_who_pops():
    blocking = BlockingQueue()
    results = [in_thread(blocking.peek) for _ in range(3)]
    blocking.push(7)
    assert [result() for result in results] == [7, 7, 7]
    result = in_thread(blocking.pop)
    assert result() == 7


@pytest.mark.parametrize("maxsize", [0, 1, 5])
def test_many_producers_and_consumers(maxsize):
    blocking, count = BlockingQueue(maxsize), 300

    def produce(producer):
        for number in range(count):
            blocking.push((producer, number))

    def consume():
        items = []
        while True:
            try:
                items.append(blocking.pop())
            except Closed:
                return items

    producers = [in_thread(produce, producer) for producer in range(4)]
    consumers = [in_thread(consume) for _ in range(3)]
    for result in producers:
        result()
    blocking.close()
    taken = [result() for result in consumers]
    assert sorted(itertools.chain.from_iterable(taken)) == [
        (producer, number) for producer in range(4) for number in range(count)
    ]
    for items in taken:
        for producer in range(4):
            numbers = [number for by, number in items if by == producer]
            assert numbers == sorted(numbers)


# ---- closing


def test_a_closed_queue_is_drained_and_then_closed():
    blocking = BlockingQueue(3)
    blocking.push(1)
    blocking.push(2)
    assert not blocking.closed
    blocking.close()
    blocking.close()
    assert blocking.closed
    for push in (blocking.push, blocking.try_push):
        with pytest.raises(Closed, match="the queue is closed: nothing more can be pushed"):
            push(3)
    assert blocking.peek() == 1
    assert [blocking.pop(), blocking.try_pop()] == [1, 2]
    for take in (blocking.pop, blocking.try_pop, blocking.peek, blocking.try_peek):
        with pytest.raises(Closed, match="the queue is closed, and nothing is left in it"):
            take()
    assert len(blocking) == 0


def test_close_wakes_everyone_who_waits():
    empty, full = BlockingQueue(), BlockingQueue(1)
    full.push(1)
    results = [in_thread(empty.pop) for _ in range(3)] + [in_thread(empty.peek, PATIENCE) for _ in range(2)]
    pushes = [in_thread(full.push, 2) for _ in range(3)]
    empty.close()
    full.close()
    for result in results + pushes:
        with pytest.raises(Closed):
            result()
    assert full.pop() == 1


def test_a_push_that_was_refused_keeps_nothing():
    blocking = BlockingQueue()
    blocking.close()
    item = Item()
    gone = weakref.ref(item)
    with pytest.raises(Closed):
        blocking.push(item)
    del item
    assert gone() is None


def test_repr():
    blocking = BlockingQueue(3)
    blocking.push(1)
    assert repr(blocking) == "<fastbatch.BlockingQueue, 1 of 3 items>"
    blocking.close()
    assert repr(blocking) == "<fastbatch.BlockingQueue, 1 of 3 items, closed>"
    assert repr(BlockingQueue()) == "<fastbatch.BlockingQueue, 0 of any number of items>"


# ---- signals


class Alarm(Exception):
    pass


@pytest.mark.parametrize("method", ["pop", "peek", "push"])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_signal_interrupts_a_blocked_call(method, timeout):
    """Ctrl-C is the same, with KeyboardInterrupt for Alarm; test_processes.py sends it from outside."""
    blocking = BlockingQueue(1)
    item = Item()
    gone = weakref.ref(item)

    def ring(number, frame):
        raise Alarm

    if method == "push":
        blocking.push("first")
    former = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm):
            signal.setitimer(signal.ITIMER_REAL, 0.03)  # in here: it may be over before the next line
            if method == "push":
                blocking.push(item, timeout)
            else:
                getattr(blocking, method)(timeout)
    finally:
        signal.signal(signal.SIGALRM, former)
    del item
    assert gone() is None
    assert drain(blocking) == (["first"] if method == "push" else [])  # it goes on working
    blocking.push(1)
    assert blocking.pop() == 1


def test_a_signal_whose_handler_returns_does_not_interrupt():
    blocking, seen = BlockingQueue(), []

    def ring(number, frame):
        seen.append(number)
        blocking.push("from the handler")

    former = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        assert blocking.pop(PATIENCE) == "from the handler"
    finally:
        signal.signal(signal.SIGALRM, former)
    assert seen == [signal.SIGALRM]


# ---- memory


def test_references_are_counted():
    blocking, item = BlockingQueue(), Item()
    before = sys.getrefcount(item)
    blocking.push(item)
    assert sys.getrefcount(item) == before + 1
    blocking.peek()
    assert sys.getrefcount(item) == before + 1
    assert blocking.pop() is item
    assert sys.getrefcount(item) == before
    blocking.push(item)
    del blocking
    assert sys.getrefcount(item) == before


def test_the_garbage_collector_sees_through_it():
    blocking, item = BlockingQueue(), Item()
    gone = weakref.ref(item)
    item.queue = blocking
    blocking.push(item)
    blocking.push(blocking)
    del blocking, item
    gc.collect()
    assert gone() is None


def test_items_are_found_by_the_garbage_collector():
    blocking, item = BlockingQueue(), Item()
    blocking.push(item)
    (items,) = [found for found in gc.get_referents(blocking) if isinstance(found, dict)]
    assert list(items.values()) == [item]


@pytest.mark.parametrize("what", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_pickled_or_copied(what):
    with pytest.raises(TypeError, match="pickle"):
        what(BlockingQueue())


def test_it_cannot_be_initialised_twice():
    blocking = BlockingQueue(3)
    blocking.push(1)
    with pytest.raises(RuntimeError, match="a BlockingQueue cannot be initialized twice"):
        blocking.__init__(5)
    assert (blocking.maxsize, blocking.pop()) == (3, 1)


def test_one_that_was_never_initialised():
    blocking = BlockingQueue.__new__(BlockingQueue)
    for use in (
        blocking.pop,
        blocking.peek,
        blocking.close,
        lambda: blocking.push(1),
        lambda: len(blocking),
        lambda: blocking.closed,
    ):
        with pytest.raises(RuntimeError, match="BlockingQueue.__init__ was not called"):
            use()


# ---- the native queue, in another extension


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """queue_user.pyx, compiled against the installed fastbatch as anybody else would do it."""
    source = Path(__file__).with_name("support") / "queue_user.pyx"
    return compile_extension(source, tmp_path_factory.mktemp("queue_user"))


@pytest.mark.slow
class TestNativeQueue:
    def test_every_call(self, user):
        native = user.NativeQueue(2)
        assert (native.try_pop(), native.try_peek()) == (("TIMEOUT", None), ("TIMEOUT", None))
        assert (native.pop(0.01), native.peek(0.01), native.pop(0)) == (("TIMEOUT", None),) * 3
        assert (native.push(5), native.try_push(6), native.try_push(7), native.push(7, 0.01)) == (
            "OK",
            "OK",
            "TIMEOUT",
            "TIMEOUT",
        )
        assert native.size() == 2
        assert (native.peek(), native.try_peek(), native.pop()) == (("OK", 5),) * 3
        assert not native.closed()
        native.close()
        assert native.closed()
        assert (native.push(8), native.try_push(8)) == ("CLOSED", "CLOSED")
        assert (native.try_pop(), native.pop(), native.peek()) == (("OK", 6), ("CLOSED", None), ("CLOSED", None))

    def test_close_wakes_everyone_who_waits(self, user):
        empty, full = user.NativeQueue(0), user.NativeQueue(1)
        full.push(1)
        pops = [in_thread(empty.pop) for _ in range(2)] + [in_thread(empty.peek)]
        pushes = [in_thread(full.push, 2) for _ in range(3)]
        empty.close()
        full.close()
        assert [result() for result in pops] == [("CLOSED", None)] * 3
        assert [result() for result in pushes] == ["CLOSED"] * 3

    @pytest.mark.parametrize("limit", [0, 1, 7])
    @pytest.mark.parametrize("producers, consumers", [(1, 1), (4, 1), (1, 4), (3, 3)])
    def test_native_threads(self, user, limit, producers, consumers):
        count = 2000
        items = range(producers, producers + producers * count)  # each of them once
        assert user.hammer(limit, producers, consumers, count) == (len(items), sum(items), True)
