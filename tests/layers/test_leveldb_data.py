"""Data on LevelDB, beyond what it shares with LMDB.

What is logged, who may have the database open, and damage that Caffe ignores.
"""

import gc
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

import fastbatch
from databases import datum, image_leveldb, images, write_leveldb
from fastbatch.caffe import close_all
from fastbatch.caffe.runtime.lifetime import registry
from nets import assert_same_bits, caffes, labels, native_threads, open_files, ours, params, run

SHAPE = (3, 12, 10)


@pytest.fixture(autouse=True)
def leaves_no_lock():
    yield
    gc.collect()
    registry.sweep()
    assert (native_threads(), open_files("/LOCK")) == ([], [])


def test_the_default_backend_and_its_name(build, tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 5)
    results = [
        run(build, layer(f'data_param {{ source: "{path}" batch_size: 3 {backend} }}'), 4)
        for layer in (ours, caffes)
        for backend in ("", "backend: LEVELDB", "backend: 0")
    ]
    for result in results[1:]:
        assert_same_bits(results[0], result)


@pytest.mark.parametrize("compressed", [False, True])
def test_many_tables_many_epochs(build, tmp_path, compressed):
    """4 MB in tables of 2 MB, read two and a half times."""
    pictures = images(37, (1, 400, 256))
    pictures[::2] //= 200
    for label in 37, 0:
        path = write_leveldb(
            tmp_path / "db", [datum(each, label + i) for i, each in enumerate(pictures)], True, compressed
        )
    assert len([name for name in os.listdir(path) if name.endswith(".ldb")]) > 1
    param_str = params(path, 7, "crop_size: 50 mirror: true")
    assert_same_bits(*(run(build, layer(param_str), 13, seed=3) for layer in (ours, caffes)))


@pytest.mark.parametrize("encoded", [False, True])
def test_a_database_that_caffes_own_tool_made(build, tmp_path, encoded):
    cv2 = pytest.importorskip("cv2")
    if not shutil.which("convert_imageset"):
        pytest.skip("Caffe's convert_imageset is not installed")
    for i, picture in enumerate(images(9, (20, 30, 3))):
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), picture)
    (tmp_path / "list").write_text("".join(f"{i}.png {i}\n" for i in range(9)))
    more = ["--encoded", "--encode_type=png"] if encoded else []
    subprocess.run(
        ["convert_imageset", "--backend=leveldb", *more, f"{tmp_path}/", f"{tmp_path}/list", f"{tmp_path}/db"],
        check=True,
    )
    param_str = params(str(tmp_path / "db"), 4, "crop_size: 17 mean_value: 3")
    results = [run(build, layer(param_str), 7, seed=3) for layer in (ours, caffes)]
    assert_same_bits(*results)
    assert [int(label) for batch in results[0][1::2] for label in batch] == [i % 9 for i in range(28)]
    with fastbatch.LevelDBSource(tmp_path / "db") as source, fastbatch.Loader(source) as loader:
        assert [batch.sample_keys for batch in loader] == [[b"%08d_%d.png" % (i, i)] for i in range(9)]


# What is logged


@pytest.mark.parametrize("rank", [0, 1])
def test_the_log_is_caffes(tmp_path, rank):
    """Word for word, from every rank.

    Caffe logs the restart when its thread restarts; we log it when a net shows the batch that follows.
    """
    path, _ = image_leveldb(tmp_path / "db", 5, SHAPE)
    said = []
    for _number, layer in enumerate((ours, caffes)):
        (tmp_path / "net.prototxt").write_text(layer(params(path, 4)))
        script = (
            f"import caffe; caffe.set_multiprocess(True); caffe.set_solver_count(2); caffe.set_solver_rank({rank})\n"
            f"net = caffe.Net('{tmp_path}/net.prototxt', caffe.TRAIN)\nfor _ in range(8): net.forward()"
        )
        log = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "GLOG_minloglevel": "0"},
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        ).stderr
        lines = [line.split("] ", 1)[1] for line in log.splitlines() if "] " in line]
        said.append([line for line in lines if "leveldb" in line or line.startswith(("output data", "Restarting"))])
    found, expected = said
    restarts = found.count("Restarting data prefetching from start.")
    assert list(dict.fromkeys(found)) == list(dict.fromkeys(expected))
    assert found[0] == f"Opened leveldb {path}"
    # 32 records of every other, so of 64, from the first or second on: the last one shown lies in epoch 12.
    assert (
        restarts == (12 if rank == 0 else 0) and expected.count("Restarting data prefetching from start.") >= restarts
    )


def test_one_record_many_times_in_a_batch(build, tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 1)
    for layer in ours, caffes:
        assert labels(build, layer(params(path, 7)), 3) == 21 * [0]


# Who may have it


def test_nets_for_training_and_for_testing_on_one_database(build, tmp_path):
    """Each at its own place. Caffe's own layers cannot: see below."""
    path, _ = image_leveldb(tmp_path / "db", 7)
    train = build(ours(params(path, 3)), caffe.TRAIN)
    test = build(ours(params(path, 2, "", "prefetch: 1")), caffe.TEST)
    for step in range(10):
        train.forward()
        assert train.blobs["label"].data.tolist() == [i % 7 for i in range(3 * step, 3 * step + 3)]
        if step % 2:
            test.forward()
            assert test.blobs["label"].data.tolist() == [step - 1 - 7 * (step // 7), step % 7] if step != 7 else [6, 0]
    assert len(open_files(f"{path}/LOCK")) == 1


def test_caffes_own_layers_cannot_share_it(build, tmp_path, start):
    path, _ = image_leveldb(tmp_path / "db", 3)
    (tmp_path / "caffes.prototxt").write_text(caffes(params(path, 3)))
    child = start("import caffe; nets = [caffe.Net('caffes.prototxt', caffe.TRAIN) for _ in range(2)]")
    assert "already held by process" in child.communicate(timeout=60)[1]
    assert child.returncode == -6


@pytest.mark.parametrize("name", ["db", "link"])
def test_while_caffes_own_layer_has_it(build, tmp_path, name):
    """By another name LevelDB would not notice."""
    path, _ = image_leveldb(tmp_path / "db", 3)
    os.symlink(path, tmp_path / "link")
    net = build(caffes(params(path, 3)))
    other = str(tmp_path / name)
    with pytest.raises(fastbatch.SourceError) as caught:
        build(ours(params(other, 3)))
    assert str(caught.value).startswith(
        f"Failed to open leveldb {other}: something else in this process has it open, a Data layer of Caffe's"
    )
    assert labels_of(net, 2) == [0, 1, 2, 0, 1, 2]
    del net, caught
    assert labels(build, ours(params(other, 3)), 2) == [0, 1, 2, 0, 1, 2]


def labels_of(net, forwards):
    return [int(label) for _ in range(forwards) for label in net.forward()["label"]]


def test_caffes_own_layer_may_have_it_when_ours_is_closed(build, tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 3)
    for close in (lambda net: net.layers[0].close()), (lambda net: close_all()):
        net = build(ours(params(path, 2)))
        assert labels_of(net, 1) == [0, 1]
        close(net)
        assert open_files("/LOCK") == []
        assert labels(build, caffes(params(path, 2)), 2) == [0, 1, 2, 0]
        assert net.blobs["label"].data.tolist() == [0, 1]


def test_a_net_that_is_gone_lets_go_of_it(build, tmp_path):
    path, _ = image_leveldb(tmp_path / "db", 3)
    for _ in range(20):
        net = build(ours(params(path, 2)))
        net.forward()
    assert len(open_files("/LOCK")) == 1
    del net
    gc.collect()
    assert open_files("/LOCK") == []


@pytest.mark.skipif(not shutil.which("caffe"), reason="the caffe tool is not installed")
@pytest.mark.parametrize("databases", [1, 2])
def test_training_in_the_caffe_tool(tmp_path, databases):
    """Training and tests on a database each give the same as Caffe's own layer; on one, only ours can."""
    for name in "train", "test":
        write_leveldb(tmp_path / name, [datum(image, i % 10) for i, image in enumerate(images(23, SHAPE))])
    said = []
    for layer in [ours, caffes] if databases == 2 else [ours]:
        net = "".join(
            layer(params(str(tmp_path / name), 4, "mirror: true scale: 0.004"), more=f"include {{ phase: {phase} }}")
            for phase, name in (("TRAIN", "train"), ("TEST", "test" if databases == 2 else "train"))
        )
        (tmp_path / "net.prototxt").write_text(
            net
            + """
            layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
                    inner_product_param { num_output: 10 weight_filler { type: "gaussian" std: 0.1 } } }
            layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
        """
        )
        (tmp_path / "solver.prototxt").write_text(
            'net: "net.prototxt" test_iter: 4 test_interval: 5 base_lr: 0.01 lr_policy: "fixed" max_iter: 12 display: '
            "1 random_seed: 1701 snapshot_after_train: false solver_mode: CPU"
        )
        done = subprocess.run(
            ["caffe", "train", "-solver", "solver.prototxt"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            check=True,
            text=True,
            env={**os.environ, "GLOG_minloglevel": "0"},
        )
        said.append(
            [
                line.split("] ", 1)[1]
                for line in done.stderr.splitlines()
                if "loss = " in line and "(" not in line.split("loss")[0]
            ]
        )
    assert len(said[0]) > 12 and said[0] == said[-1]


# Damage


def damaged(tmp_path):
    """(path, images) of a database with a byte in its middle that changed."""
    pictures = images(40, (1, 100, 300))
    path = write_leveldb(tmp_path / "db", [datum(*pair) for pair in zip(pictures, range(40))], tables=True)
    (table,) = [os.path.join(path, name) for name in os.listdir(path) if name.endswith(".ldb")]
    with open(table, "r+b") as file:
        file.seek(os.path.getsize(table) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xFF]))
    return path, pictures


def test_a_byte_that_changed_is_an_error_in_its_turn(build, tmp_path):
    """Records before the damage are right, and none after it is delivered.

    Building the net does not look for damage.
    """
    path, pictures = damaged(tmp_path)
    net = build(ours(params(path, 1)))
    good = 0
    with pytest.raises(fastbatch.SourceError) as caught:
        while True:
            net.forward()
            assert net.blobs["label"].data.item() == good
            np.testing.assert_array_equal(net.blobs["data"].data[0], pictures[good])
            good += 1
    assert 15 <= good <= 20
    assert str(caught.value).startswith(
        f"{path} cannot be read any further: LevelDB says: Corruption: block checksum mismatch"
    )
    assert f"(at sample {good})" in str(caught.value)
    for _ in range(2):
        with pytest.raises(fastbatch.SourceError):
            net.forward()


def test_caffe_shows_the_changed_byte(build, tmp_path):
    """Which is why ours asks LevelDB to verify checksums."""
    path, pictures = damaged(tmp_path)
    arrays = run(build, caffes(params(path, 40)), 1)
    assert arrays[1].tolist() == list(range(40))
    assert (arrays[0] != pictures).sum() == 1


def test_a_bad_record_in_the_second_epoch(build, tmp_path):
    path = write_leveldb(tmp_path / "db", [datum(each, i) for i, each in enumerate(images(4, SHAPE))] + [b"no Datum"])
    net = build(ours(params(path, 1)))
    for epoch in range(3):
        assert labels_of(net, 4) == [0, 1, 2, 3]
        with pytest.raises(fastbatch.SampleError) as caught:
            net.forward()
        assert (caught.value.index, caught.value.key, caught.value.epoch) == (4, b"00000004", epoch)


def test_a_database_without_records(build, tmp_path):
    """Caffe fails an assertion of LevelDB's, or reads invalid memory if LevelDB was compiled without assertions."""
    path = write_leveldb(tmp_path / "db", [])
    with pytest.raises(
        fastbatch.SourceError, match=f"the LevelDB database {path} is empty; a loader needs at least one record"
    ):
        build(ours(params(path, 1)))
