"""A thousand nets in one process, one after another; and the memory of one."""

import gc
import multiprocessing

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import exits
import net_exits
from databases import image_lmdb
from nets import anonymous_kb, native_threads, open_files, ours, params, thread_count
from planned import wait_until

MB = 1024  # in the unit of anonymous_kb()


@pytest.mark.slow
def test_a_thousand_nets_leave_nothing_behind(build, tmp_path):
    """Nets are built, run and dropped: threads, files and memory stay flat; Blobs of destroyed nets are still right."""
    records, batch = 50, 20
    path, images = image_lmdb(tmp_path / "db", records, (3, 32, 32))
    text = (
        ours(params(path, batch) + "threads: 2")
        + """
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
        layer { name: "loss" type: "EuclideanLoss" bottom: "label" bottom: "label" top: "loss" }
    """
    )
    gc.collect()
    threads, files = thread_count(), open_files()

    def run(nets):
        for number in range(nets):
            net = build(text)
            for _ in range(1 + number % 3):
                net.forward()
            last = np.arange(batch * (number % 3), batch * (1 + number % 3)) % records
            kept.append((net.blobs["data"], net.blobs["label"], last))
            if len(kept) > 3:
                data, label, last = kept.pop(0)  # its net was destroyed some nets ago
                np.testing.assert_array_equal(data.data, images[last])
                np.testing.assert_array_equal(label.data, last)

    kept = []
    run(100)
    before = anonymous_kb()
    for _ in range(10):
        run(100)
        assert thread_count() <= threads + 4  # those of the last net, and of one that is to be noticed
        assert anonymous_kb() - before < 4 * MB  # one ring has 1.2 MB; what a destroyed net leaves for ever is 1.5 KB
    kept.clear()
    gc.collect()
    assert native_threads() == [] and (thread_count(), open_files()) == (threads, files)


@pytest.mark.parametrize("nets", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_nets_with_worker_processes_leave_nothing_behind(build, nets):
    def run(nets):
        for _ in range(nets):
            net = build(net_exits.layer("fork", "good", ""))
            net.forward()
            del net
            gc.collect()

    run(2)
    before, memory = exits.left(), anonymous_kb()
    run(nets)
    wait_until(lambda: exits.left() == before)
    assert multiprocessing.active_children() == []
    assert anonymous_kb() - memory < MB


@pytest.mark.parametrize("zero_copy", ["true", "false"])
def test_memory_of_a_net(start, tmp_path, zero_copy):
    """Anonymous memory of a net: at most its ring and 64 MB more than the same net with an Input layer has."""
    shape, batch, prefetch = (3, 128, 128), 32, 4
    path, _ = image_lmdb(tmp_path / "db", 64, shape)

    def memory(layer):
        process = start(f"""
            import caffe, gc
            from nets import *
            with open("net.prototxt", "w") as file:
                file.write({layer!r} + '''
                    layer {{ name: "pool" type: "Pooling" bottom: "data" top: "pool"
                             pooling_param {{ kernel_size: 4 stride: 4 }} }}
                ''')
            net = caffe.Net("net.prototxt", caffe.TRAIN)
            for _ in range(40):
                net.forward()
            print(anonymous_kb())
        """)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        return int(out)

    dims = " ".join(f"dim: {size}" for size in (batch, *shape))
    plain = memory(f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}')
    own = memory(ours(params(path, batch, more=f"prefetch: {prefetch}") + f"threads: 2 zero_copy: {zero_copy}"))
    ring = (prefetch + 1) * batch * int(np.prod(shape)) * 4 // 1024
    assert own - plain < ring + 64 * MB
