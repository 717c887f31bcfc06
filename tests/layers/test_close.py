"""Closing one layer or all of them while the net lives, waits or is gone; and later calls of the net."""

import gc
import threading
import time

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

import fastbatch
from databases import datum, image_lmdb, write_lmdb
from fastbatch.caffe import close_all
from nets import caffes, native_threads, open_files, ours, params, shown, slow_lmdb

pytestmark = pytest.mark.usefixtures("leaves_nothing")

RECORDS = 9
DOUBLED = 'layer { name: "doubled" type: "Power" bottom: "data" top: "doubled" power_param { scale: 2 } }'
NEGATED = 'layer { name: "negated" type: "Power" bottom: "data" top: "negated" power_param { scale: -1 } }'


@pytest.fixture
def database(tmp_path):
    """(path, images)"""
    return image_lmdb(tmp_path / "db", RECORDS)


def net_of_two(build, database):
    """A net that shows two samples at a time, and whose images two layers read."""
    return build(ours(params(database[0], 2)) + DOUBLED + NEGATED)


@pytest.mark.parametrize("zero_copy", ["true", "false"])
@pytest.mark.parametrize("forwards", [1, 3, 12])
def test_the_last_batch_stays_readable(build, database, forwards, zero_copy):
    path, images = database
    net = build(ours(params(path, 2) + f"threads: 3 zero_copy: {zero_copy}") + DOUBLED + NEGATED)
    for _ in range(forwards):
        net.forward()
    last = [k % RECORDS for k in range(2 * forwards - 2, 2 * forwards)]
    for _ in range(2):
        net.layers[0].close()
        assert (native_threads(), open_files(".mdb")) == ([], [])
        gc.collect()
        np.testing.assert_array_equal(net.blobs["data"].data, images[last])
        np.testing.assert_array_equal(net.blobs["label"].data, last)
        net.forward(start="doubled")  # of the layers after it, which still read it
        np.testing.assert_array_equal(net.blobs["doubled"].data, 2 * images[last].astype(np.float32))


def test_forward_after_close_raises_closed(build, database):
    net = net_of_two(build, database)
    net.forward()
    net.layers[0].close()
    for _ in range(3):
        with pytest.raises(fastbatch.Closed, match="closed") as caught:
            net.forward()
        assert database[0] in str(caught.value)
    assert net.blobs["label"].data.tolist() == [0, 1]


def test_close_before_the_first_forward(build, database):
    net = net_of_two(build, database)
    net.layers[0].close()
    assert (native_threads(), open_files(".mdb")) == ([], [])
    with pytest.raises(fastbatch.Closed):
        net.forward()


def test_stats_before_and_after_close(build, database):
    net = net_of_two(build, database)
    for _ in range(4):
        net.forward()
    before = net.layers[0].stats()
    net.layers[0].close()
    stats = net.layers[0].stats()
    assert before["slots"] == stats["slots"] == 5 and before["held"] == stats["held"] == 1
    assert stats["samples"] >= 8 and (stats["errors"], stats["last_error"]) == (0, None)


def test_a_closed_layer_and_others_on_the_same_database(build, database):
    nets = [build(ours(params(database[0], 2) + "threads: 2")) for _ in range(3)]
    assert len(native_threads()) == 6
    for net in nets:
        net.forward()
    nets[1].layers[0].close()
    assert len(native_threads()) == 4 and len(open_files("data.mdb")) > 0
    for i in range(1, 20):
        for net in nets[0], nets[2]:
            net.forward()
            assert net.blobs["label"].data.tolist() == [2 * i % RECORDS, (2 * i + 1) % RECORDS]
    assert nets[1].blobs["label"].data.tolist() == [0, 1]


def test_close_all(build, database):
    nets = [build(ours(params(database[0], 2) + "threads: 2")) for _ in range(3)]
    for i, net in enumerate(nets):
        for _ in range(i + 1):
            net.forward()
    for _ in range(2):
        close_all()
        assert (native_threads(), open_files(".mdb")) == ([], [])
    for i, net in enumerate(nets):
        assert net.blobs["label"].data.tolist() == [2 * i, 2 * i + 1]
        with pytest.raises(fastbatch.Closed):
            net.forward()
    net = build(ours(params(database[0], 2)))  # a new net is a new beginning
    net.forward()
    assert net.blobs["label"].data.tolist() == [0, 1]


@pytest.mark.parametrize("close", [lambda net: net.layers[0].close(), lambda net: close_all()], ids=["layer", "all"])
def test_close_by_another_thread_while_forward_waits(build, tmp_path, close):
    net = build(ours(params(slow_lmdb(tmp_path / "slow"), 20000, more="prefetch: 1") + "threads: 2"))
    closer = threading.Timer(0.2, close, [net])  # forward() waits by then
    closer.start()
    with pytest.raises(fastbatch.Closed):
        net.forward()
    closer.join()
    assert (native_threads(), open_files(".mdb")) == ([], [])
    assert net.layers[0].stats()["samples"] < 20000


def test_a_blob_of_a_destroyed_net(build, database):
    """Its last batch is not overwritten by later ones, and is freed with the blob."""
    path, images = database
    kept = []
    for i in range(1, 8):
        net = build(ours(params(path, 2) + "threads: 2") + DOUBLED + NEGATED)
        for _ in range(i):
            net.forward()
        kept.append((net.blobs["data"], net.blobs["label"].data))
        del net
        gc.collect()
        assert (native_threads(), open_files(".mdb")) == ([], [])
    for i, (data, label) in enumerate(kept):
        last = [2 * i % RECORDS, (2 * i + 1) % RECORDS]
        np.testing.assert_array_equal(data.data, images[last])
        np.testing.assert_array_equal(label, last)


def assert_readable(arrays):
    """The arrays are readable, whatever they show by now; a failure crashes the process."""
    for array in arrays:
        assert np.isfinite(array).all()


def test_arrays_of_earlier_batches(build, database):
    """As with Caffe's own layer, they show something else by now, but reading them is safe."""
    net = build(ours(params(database[0], 2, more="prefetch: 1") + "threads: 2") + DOUBLED + NEGATED)
    kept = []
    for _ in range(5):
        net.forward()
        kept += [net.blobs["data"].data, net.blobs["label"].data]
    assert_readable(kept)
    net.layers[0].close()
    assert_readable(kept)
    np.testing.assert_array_equal(kept[-1], [8 % RECORDS, 9 % RECORDS])
    del net
    gc.collect()
    assert_readable(kept)


def test_the_result_of_a_forward_that_was_not_the_last(build, database):
    net = build(ours(params(database[0], 2)))
    result = net.forward()
    net.forward()
    del net
    gc.collect()
    assert_readable(result.values())
    assert native_threads() == []


def test_arrays_of_batches_that_were_smaller(build, tmp_path):
    """A slot that gets larger memory leaves the addresses of the former one readable."""
    sizes = [1 + 7 * i for i in range(30)]
    pictures = [np.full((1, size, size), size, np.uint8) for size in sizes]
    net = build(ours(params(write_lmdb(tmp_path / "db", map(datum, pictures, sizes)), 1, more="prefetch: 1")))
    kept = []
    for size in sizes:
        net.forward()
        assert_readable(kept)
        kept.append(net.blobs["data"].data)
        np.testing.assert_array_equal(kept[-1], np.full((1, 1, size, size), size))
    net.layers[0].close()
    assert_readable(kept)


def test_setup_a_second_time(build, database):
    net = net_of_two(build, database)
    net.forward()
    with pytest.raises(RuntimeError, match="setup\\(\\) of this layer was called before"):
        net.layers[0].setup([], [net.blobs["data"], net.blobs["label"]])
    np.testing.assert_array_equal(net.blobs["label"].data, [0, 1])
    net.forward()
    np.testing.assert_array_equal(net.blobs["label"].data, [2, 3])


def test_with_caffes_own_layer_on_the_same_database(build, database, caplog):
    """Closing our environment would drop the locks of Caffe's. It stays open and serves our next layer."""
    path = database[0]
    its = build(caffes(params(path, 2)))
    for _ in range(2):
        net = build(ours(params(path, 2)))
        net.forward()
        caplog.clear()
        del net
        gc.collect()
        assert [record.name for record in caplog.records] == ["fastbatch"]
        assert f"leaves the LMDB database {path} open" in caplog.text
        assert len(open_files("lock.mdb")) == 2 and native_threads() == []
    for i in range(RECORDS):
        its.forward()
        assert its.blobs["label"].data.tolist() == [2 * i % RECORDS, (2 * i + 1) % RECORDS]
    del its
    net = build(ours(params(path, 2)))  # nobody else has it open any more: this one closes it
    assert len(open_files("lock.mdb")) == 1
    net.layers[0].close()
    assert open_files(".mdb") == []


def test_forward_of_a_layer_by_hand(build, database):
    """Its blobs may be gone with its net, which nobody can see then."""
    net = net_of_two(build, database)
    net.forward()
    layer, kept = net.layers[0], [net.blobs["data"], net.blobs["label"]]
    for _ in range(2):
        for tops in [], kept, None:
            with pytest.raises(
                RuntimeError, match=r"forward\(\) of a layer is for Caffe to call: call that of its net"
            ):
                layer.forward([], tops)
        net = None
        gc.collect()
    np.testing.assert_array_equal(kept[1].data, [0, 1])


# What else a net may ask of a layer


def test_backward(build, database):
    text = "force_backward: true " + ours(params(database[0], 2)) + DOUBLED + NEGATED
    net = build(text)
    for i in range(12):
        net.forward()
        net.blobs["doubled"].diff[...] = 1
        net.blobs["negated"].diff[...] = 5
        net.backward()
        assert net.blobs["label"].data.tolist() == [2 * i % RECORDS, (2 * i + 1) % RECORDS]
        np.testing.assert_array_equal(net.blobs["data"].diff, -3)


def test_reshape_takes_no_batch(build, database):
    net = net_of_two(build, database)
    for i in range(12):
        net.reshape()
        net.forward()
        net.reshape()
        batch = [2 * i % RECORDS, (2 * i + 1) % RECORDS]
        assert net.blobs["label"].data.tolist() == batch
        np.testing.assert_array_equal(net.blobs["negated"].data, -database[1][batch].astype(np.float32))


def test_the_net_may_write_into_its_batch(build, database):
    """As an in-place layer does. The next epoch has the images as they were."""
    net = net_of_two(build, database)
    for _ in range(4):
        for i in range(RECORDS):
            net.forward()
            np.testing.assert_array_equal(net.blobs["data"].data, database[1][[2 * i % RECORDS, (2 * i + 1) % RECORDS]])
            net.blobs["data"].data[...] = -1


@pytest.mark.parametrize("options", ["threads: 1", "threads: 3", "threads: 3 zero_copy: false"])
def test_a_batch_does_not_change_while_the_next_ones_are_prepared(build, database, options):
    net = build(ours(params(database[0], 2, more="prefetch: 1") + options))
    for _ in range(10):
        net.forward()
        before = shown(net)
        time.sleep(0.005)
        for array, now in zip(before, shown(net)):
            np.testing.assert_array_equal(now, array)


def test_nets_in_several_threads(build, database, tmp_path):
    """Each in its own. (Caffe's forward() holds the GIL, ours releases it while it waits.)"""
    texts = [ours(params(database[0], size) + "threads: 2") for size in (1, 2, 3)]
    found = {}

    def run(number):
        path = tmp_path / f"net{number}.prototxt"
        path.write_text(texts[number])
        own = caffe.Net(str(path), caffe.TRAIN)
        found[number] = []
        for _ in range(60):
            own.forward()
            found[number] += own.blobs["label"].data.tolist()

    threads = [threading.Thread(target=run, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [k % RECORDS for k in range(60 * (number + 1))] for number in range(3)}
