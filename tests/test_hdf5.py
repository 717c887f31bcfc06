"""The rows of HDF5 files, read ahead and shuffled with C's rand().

That it is all as in Caffe, tests/layers/test_hdf5_data.py says.
"""

import contextlib
import ctypes
import itertools
import os
import time

import numpy as np
import pytest

from children import FORKS, anonymous_memory, run_child
from fastbatch import Closed, SourceError
from fastbatch._batches import BatchRing
from fastbatch.orders import Positions
from fastbatch.orders.caffe import CaffeRows
from planned import wait_until

h5py = pytest.importorskip("h5py")
hdf5 = pytest.importorskip("fastbatch.sources._hdf5")

libc = ctypes.CDLL(None)


@pytest.fixture
def files(tmp_path):
    """files(*counts): the paths of files with so many rows each, new ones at every call: earlier ones may be in use.

    Row i of file f has label 100 f + i, and 1, 2, 3 times that as data.
    """

    numbers = itertools.count()

    def files(*counts):
        paths = []
        for i, count in enumerate(counts):
            paths.append(tmp_path / f"{next(numbers)}.h5")
            label = np.arange(count) + 100 * i
            with h5py.File(paths[-1], "w") as file:
                file["label"] = label
                file["data"] = label[:, None] * np.array([1, 2, 3])
        return [bytes(path) for path in paths]

    return files


class Layer:
    """What HDF5Data does, without Caffe."""

    def __init__(self, paths, batch_size, threads=2, slots=3, threaded=None, **options):
        self.source = hdf5.CaffeHDF5(paths, ["data", "label"], threaded)
        self.order = CaffeRows(self.source, batch_size, **options)
        self.ring = BatchRing(self.source, batch_size=batch_size, slots=slots, threads=threads, order=self.order)

    def forward(self):
        """The labels of the next batch."""
        while True:
            if not self.source.threaded:
                self.source.read_ahead()
            batch = self.ring.next(20)
            again = self.order.settle(batch.number)
            if again is None:
                break
            batch.release()
            self.ring.start_epoch(0, again)
        labels = batch["label"].ravel().astype(int).tolist()  # rows are one-dimensional
        assert (batch["data"] == np.array(labels)[:, None] * np.array([1, 2, 3])).all()
        return labels

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.source.close()
        self.ring.close()


def shuffle(items):
    """std::random_shuffle of libstdc++, which draws from C's rand()."""
    for i in range(1, len(items)):
        j = libc.rand() % (i + 1)
        items[i], items[j] = items[j], items[i]


def caffes_labels(counts):
    """The labels of a shuffling HDF5Data layer of Caffe's, in sequence, each with its own draws."""
    files = list(range(len(counts)))
    shuffle(files)
    rows = list(range(counts[files[0]]))
    shuffle(rows)
    file = 0  # index in `files`
    while True:
        for number, row in enumerate(rows):
            label = 100 * files[file] + row
            if number == len(rows) - 1:  # after the last row, in the same forward()
                if len(files) > 1:
                    file += 1
                    if file == len(files):
                        file = 0
                        shuffle(files)
                    rows = list(range(counts[files[file]]))
                    shuffle(rows)
                shuffle(rows)
            yield label


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("counts", [(7,), (5, 1, 9)], ids=str)
def test_rows_come_in_order_without_an_end(files, counts, batch_size, ranks, threads):
    rows = [100 * i + row for i, count in enumerate(counts) for row in range(count)]
    with Layer(files(*counts), batch_size, threads, rank=ranks - 1, ranks=ranks) as layer:
        labels = [label for _ in range(12) for label in layer.forward()]
    assert labels == [rows[(ranks - 1 + i * ranks) % len(rows)] for i in range(len(labels))]


@pytest.mark.parametrize("drawing", ["never", "now and then", "every time"])
@pytest.mark.parametrize("batch_size", [1, 4, 31])
@pytest.mark.parametrize("counts", [(7,), (5, 2, 9)], ids=str)
def test_shuffles_are_those_of_a_layer_that_shuffles_when_its_turn_comes(files, counts, batch_size, drawing):
    often = {"never": 10**9, "now and then": 4, "every time": 1}[drawing]
    paths, courses = files(*counts), []
    for ours in True, False:
        libc.srand(5)
        course = []
        if ours:
            with Layer(paths, batch_size, shuffle=True) as layer:
                for i in range(25):
                    course.append(layer.forward())
                    if i % often == often - 1:
                        libc.rand()
        else:
            labels = caffes_labels(counts)
            for i in range(25):
                course.append([next(labels) for _ in range(batch_size)])
                if i % often == often - 1:
                    libc.rand()
        courses.append([*course, libc.rand()])
    assert courses[0] == courses[1]


def test_where_no_thread_may_read(files):
    with Layer(files(3, 2), 2, threaded=False) as layer:
        assert not layer.source.threaded
        assert [layer.forward() for _ in range(4)] == [[0, 1], [2, 100], [101, 0], [1, 2]]


def test_what_it_says_of_itself(files):
    source = hdf5.CaffeHDF5(files(3), ["label", "data"])
    with pytest.raises(RuntimeError, match="make its order, a CaffeRows, first"):
        source.__fastbatch_source__(False)
    order = CaffeRows(source, 2)
    assert (source.shapes, source.classes) == (((), (3,)), ("H5T_INTEGER", "H5T_INTEGER"))
    assert hdf5.version().split(".")[0].isdigit()
    for wrong in (
        lambda: source.__init__([], ["data"]),
        lambda: [source.__fastbatch_source__(False) for _ in range(2)],
        lambda: order.__init__(source, 2),
        lambda: [order.__fastbatch_order__(None) for _ in range(2)],
    ):
        with pytest.raises(RuntimeError):
            wrong()
    with pytest.raises(ValueError, match="zero byte"):
        hdf5.CaffeHDF5([b"x"], ["data\0x"])
    with pytest.raises(ValueError, match="1 to 16 tops, not 17"):
        hdf5.CaffeHDF5([b"x"], ["data"] * 17)


def test_what_is_wrong_with_a_later_file_is_said_when_its_turn_comes(files, tmp_path):
    with Layer([*files(4), bytes(tmp_path / "missing.h5")], 2) as layer:
        assert [layer.forward(), layer.forward()] == [[0, 1], [2, 3]]
        for _ in range(2):
            with pytest.raises(SourceError, match="Failed opening HDF5 file: .*missing.h5: No such file"):
                layer.forward()


def large_files(folder, count=2):
    """Files that take many steps to read."""
    paths = []
    for i in range(count):
        paths.append(folder / f"large{i}.h5")
        with h5py.File(paths[-1], "w") as file:
            file.create_dataset(
                "data", (30_000, 3, 300), np.float32, chunks=(500, 3, 300), compression="gzip", fillvalue=0
            )
            file["label"] = np.arange(30_000)
    return [bytes(path) for path in paths]


@pytest.mark.parametrize("wait", [0, 0.001, 0.02])
def test_it_can_be_closed_at_any_time(tmp_path, wait):
    layer = Layer(large_files(tmp_path), 100)
    time.sleep(wait)
    layer.source.close()
    layer.ring.close()
    layer.source.close()
    with pytest.raises(Closed):
        layer.ring.next(1)


@pytest.mark.usefixtures("counts_memory")
@pytest.mark.parametrize("threaded", [True, False])
def test_closing_frees_the_files(tmp_path, threaded):
    """Also for those who keep it, as Caffe keeps every layer."""
    with Layer(large_files(tmp_path), 100, threaded=threaded) as layer:
        layer.source.read_ahead()
        layer.ring.next(20).release()
        before = anonymous_memory()
    wait_until(lambda: before - anonymous_memory() > 100_000_000)  # the thread ends when it is through with its step
    layer.source.read_ahead()
    assert before - anonymous_memory() > 100_000_000


def test_closing_before_there_is_a_loader(files):
    source = hdf5.CaffeHDF5(files(3, 4), ["data", "label"])
    order = CaffeRows(source, 1)
    source.close()
    with pytest.raises(Closed, match="paths is closed"):
        BatchRing(source, batch_size=1, slots=2, threads=1, order=order)


def test_a_signals_handler_may_close_while_forward_reads(tmp_path):
    run_child(f"""
        import signal
        from fastbatch import Closed
        from test_hdf5 import Layer
        def close(*_):
            closed.append(layer.__exit__())
        closed, layer = [], Layer({large_files(tmp_path)!r}, 100, threaded=False)
        signal.signal(signal.SIGALRM, close)
        signal.setitimer(signal.ITIMER_REAL, 0.003)
        try:
            while True:
                layer.source.read_ahead()
                layer.ring.next(20).release()
        except Closed:
            pass
        assert closed == [None]
    """)


def test_children_can_read_hdf5(tmp_path):
    """Forks while the thread is in libhdf5.

    There is one lock for everything, and the child inherits it in its current state.
    """
    large_files(tmp_path)
    run_child(
        f"""
        import os, sys
        from pathlib import Path
        sys.path.insert(0, {str(tmp_path)!r})
        from fastbatch.sources import _hdf5
        from fastbatch._batches import BatchRing
        from fastbatch.orders.caffe import CaffeRows
        paths = [os.path.join({str(tmp_path)!r}, f"large{{i}}.h5").encode() for i in range(2)]
        source = _hdf5.CaffeHDF5(paths, ["data", "label"])
        ring = BatchRing(source, batch_size=1000, slots=2, threads=1, order=CaffeRows(source, 1000))
        for i in range(30):
            pid = os.fork()
            if not pid:
                assert _hdf5.is_thread_safe() and source.close() is None
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            if i % 5 == 4:
                for _ in range(30):
                    ring.next(20).release()
        source.close()
        ring.close()
    """,
        *FORKS,
    )


SLOW = """
    import io, os, threading, time
    import h5py
    from fastbatch._batches import BatchRing
    from fastbatch.sources._hdf5 import CaffeHDF5
    from fastbatch.orders.caffe import CaffeRows

    class Slow(io.BytesIO):
        def readinto(self, memory):  # with libhdf5's lock held, and the GIL let go of
            time.sleep(0.001)
            return super().readinto(memory)

    def read():
        while not stop:
            with h5py.File(Slow(content), "r") as file:
                file["label"][:100]

    content, stop = open(PATHS[0], "rb").read(), False
    thread = threading.Thread(target=read)
    thread.start()
"""


def test_nobody_waits_for_libhdf5_with_the_gil(files):
    """Who has libhdf5's lock may need the GIL: h5py, for a file that is a Python object."""
    run_child(
        SLOW.replace("PATHS", repr(files(3000, 3000)))
        + f"""
    for _ in range(10):
        CaffeRows(CaffeHDF5({files(3000, 3000)!r}, ["data", "label"]), 100)
    source = CaffeHDF5({files(3000, 3000)!r}, ["data", "label"])
    ring = BatchRing(source, batch_size=100, slots=2, threads=1, order=CaffeRows(source, 100))
    for _ in range(20):
        ring.next(20).release()
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    stop = True
    thread.join()
    source.close()
    ring.close()
    """,
        *FORKS,
    )


def test_where_no_thread_may_read_others_may_fork(files):
    """forward() has the GIL while it reads a file; who forks needs it."""
    run_child(
        f"""
        import os, threading
        from test_hdf5 import Layer
        def fork():
            for _ in range(30):
                pid = os.fork()
                if not pid:
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
        with Layer({files(3, 3)!r}, 3, threaded=False) as layer:
            forking = threading.Thread(target=fork)
            forking.start()
            while forking.is_alive():
                assert layer.forward() == [0, 1, 2] and layer.forward() == [100, 101, 102]
    """,
        *FORKS,
    )


def test_who_forks_may_drop_a_source_that_reads(tmp_path):
    """The garbage collector may drop it at any time, even while the thread waits for the end of the fork."""
    run_child(
        f"""
        import os, time
        dropped = lambda: sources.clear()
        os.register_at_fork(before=dropped)  # those that were registered last are called first: after fastbatch's
        from fastbatch.orders.caffe import CaffeRows
        from fastbatch.sources._hdf5 import CaffeHDF5
        source = CaffeHDF5({large_files(tmp_path)!r}, ["data", "label"])
        sources = [source, CaffeRows(source, 1), source.__fastbatch_source__(False)]
        del source
        time.sleep(0.005)  # now it reads
        pid = os.fork()
        if not pid:
            CaffeRows(CaffeHDF5({large_files(tmp_path)!r}, ["label"]), 1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """,
        *FORKS,
    )


def test_a_forked_child_without_the_parents_source_ends_well(files):
    run_child(
        f"""
        import ctypes, os
        from fastbatch.orders.caffe import CaffeRows
        from fastbatch.sources._hdf5 import CaffeHDF5
        def source():
            made = CaffeHDF5({files(3, 4)!r}, ["data", "label"])
            return made, CaffeRows(made, 1), made.__fastbatch_source__(False)
        parents = source()
        for i in range(10):
            pid = os.fork()
            if not pid:
                del parents
                junk = [bytearray(b"A" * size) for size in range(1000, 30000, 37)]
                source()
                ctypes.CDLL(None).exit(0)
            assert os.waitpid(pid, 0)[1] == 0
    """,
        *FORKS,
    )


@pytest.mark.parametrize("batch_size", [3, 20])
def test_a_batch_that_is_lost_on_its_way_leaves_rand_as_it_should_be(files, batch_size):
    """By Ctrl-C between next() and settle(), say."""
    paths, drawn = files(7, 4), []
    for lost in [], [3], [1, 2, 5]:
        libc.srand(9)
        with Layer(paths, batch_size, shuffle=True) as layer:
            for i in range(9):
                if i in lost:
                    layer.ring.next(20).release()
                else:
                    layer.forward()
        drawn.append(libc.rand())
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("counts", [(3,), (5, 2, 9)], ids=str)
def test_an_interrupt_before_a_batch_is_done_again_loses_nothing(files, counts, times):
    """settle() repeats its answer until the loader has begun again, whatever happens in between.

    Ctrl-C right after settle() is an example.
    """
    paths, courses, interrupted = files(*counts), [], 0
    for ours in True, False:
        libc.srand(5)
        course = []
        if ours:
            with Layer(paths, 4, shuffle=True) as layer:
                for i in range(12):
                    libc.rand()
                    batch = layer.ring.next(20)
                    again = layer.order.settle(batch.number)
                    if again is None:
                        course.append(batch["label"].ravel().astype(int).tolist())
                        continue
                    for _ in range(times):
                        assert again == i
                        batch.release()
                        batch = layer.ring.next(20)
                        again = layer.order.settle(batch.number)
                        interrupted += 1
                    batch.release()
                    course.append(layer.forward())
        else:
            labels = caffes_labels(counts)
            labels = itertools.chain([next(labels)], labels)  # the first shuffle is drawn when the layer is made
            for _ in range(12):
                libc.rand()
                course.append([next(labels) for _ in range(4)])
        courses.append([*course, libc.rand()])
    assert courses[0] == courses[1]
    assert interrupted >= 6 * times


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("counts", [(1,), (7,), (5, 1, 9), (1, 1)], ids=str)
def test_a_state_gives_the_rows_that_follow(files, counts, shuffle):
    """Also in a fresh process, in which rand() is in another state."""
    paths = files(*counts)
    for met in range(0, 60, 7):
        libc.srand(3)
        with running(paths, shuffle) as saved:
            for position in range(met):
                saved.at(position)
            state = saved.save()
            expected = [saved.at(position) for position in range(met, met + 60)]
        libc.srand(4)
        with running(paths, shuffle) as loaded:
            assert loaded.load(state) == met
            assert loaded.save() == state
            assert [loaded.at(position) for position in range(met, met + 60)] == expected
    run_child(f"""
        from test_hdf5 import running
        with running({paths!r}, {shuffle}) as loaded:
            assert loaded.load({state!r}) == {met}
            assert [loaded.at(position) for position in range({met}, {met} + 60)] == {expected!r}
    """)


def test_a_state_of_other_rows_is_refused(files):
    paths = files(7, 5)
    with running(paths, True) as positions:
        state = positions.save()
    for others, shuffle, options in (
        (paths, False, {}),
        (paths[:1], True, {}),
        (paths, True, {"ranks": 2}),
        (paths[::-1] + paths, True, {}),
    ):
        with running(others, shuffle, **options) as positions, pytest.raises(ValueError, match="state"):
            positions.load(state)
    with running(files(7), True) as positions:
        state = positions.save()
    with running(files(8), True) as positions, pytest.raises(ValueError, match="a state of this order has"):
        positions.load(state)
    with running(files(7), False) as positions:
        state = positions.save()
    said = "this state belongs to a file of 7 rows, and this one has 8"
    with running(files(8), False) as positions, pytest.raises(ValueError, match=said):
        positions.load(state)


def test_rows_are_not_gone_back_to(files):
    with running(files(2, 2), True) as positions:  # of one size: either may come first
        answers = [positions.at(position) for position in (0, 0)]
        assert answers[0] == answers[1]
        positions.at(1)
        with pytest.raises(SourceError, match="this order cannot go back to the rows of earlier files"):
            positions.at(0)


@contextlib.contextmanager
def running(paths, shuffle, **options):
    """The Positions of a CaffeRows, while the thread of its source reads."""
    source = hdf5.CaffeHDF5(paths, ["data", "label"])
    order = CaffeRows(source, 4, shuffle=shuffle, **options)
    capsule = source.__fastbatch_source__(False)
    try:
        yield Positions(order, None)
    finally:
        source.close()
        del capsule


def test_very_many_shuffles_ahead(files):
    paths, courses = files(1), []
    for ours in True, False:
        libc.srand(1)
        if ours:
            with Layer(paths, 20_000, shuffle=True) as layer:
                courses.append([layer.forward() for _ in range(3)] + [libc.rand()])
        else:
            courses.append([[0] * 20_000] * 3 + [libc.rand()])  # one row takes no draw
    assert courses[0] == courses[1]


def test_what_is_no_file_is_not_waited_for(files, tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    for path in tmp_path / "pipe.h5", tmp_path:
        with pytest.raises(SourceError, match="is not a file"):
            CaffeRows(hdf5.CaffeHDF5([bytes(path)], ["data"]), 1)
    with Layer([*files(4), bytes(tmp_path / "pipe.h5")], 4) as layer:
        layer.forward()
        with pytest.raises(SourceError, match="pipe.h5 is not a file"):
            layer.forward()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "at least 1 HDF5 filename"),
        (b" \n\t\r\n", "at least 1 HDF5 filename"),
        (b"a.h5\0", "is not text"),
        ("a.h5".encode("utf-16"), "UTF-16"),
        (b"\xef\xbb\xbfa.h5", "byte order mark"),
    ],
)
def test_lists_that_are_refused(content, words):
    with pytest.raises(SourceError, match=words) as raised:
        hdf5.parse_list(content, "list.txt")
    assert "list.txt" in str(raised.value)


def test_lists_are_split_where_caffe_splits_them():
    assert hdf5.parse_list(b"\n a.h5\tb\xff.h5\r\n\n/c/d.h5", "list.txt") == [b"a.h5", b"b\xff.h5", b"/c/d.h5"]
