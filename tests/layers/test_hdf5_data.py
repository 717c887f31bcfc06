"""Our HDF5Data layer against Caffe's own in one process: the same bits, order, ranks and shuffles."""

import ctypes
import gc
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
h5py = pytest.importorskip("h5py")
_hdf5 = pytest.importorskip("fastbatch.sources._hdf5")

import caffe

import fastbatch
from fastbatch.cli import main
from fastbatch.orders.caffe import CaffeRows
from layer_contracts import check_in_a_forked_child, trained
from nets import anonymous_kb, assert_same_bits, native_threads, open_files, run, shown

pytestmark = pytest.mark.usefixtures("leaves_nothing")

libc = ctypes.CDLL(None)


def write(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(
                name, data=values, **({"chunks": True, "compression": "gzip"} if values.ndim > 1 else {})
            )
    return str(path)


def rows(count, shape=(2, 3), dtype=np.float32, seed=0):
    return (np.random.RandomState(seed).rand(count, *shape) * 250 - (0 if np.dtype(dtype).kind == "u" else 120)).astype(
        dtype
    )


def list_of(folder, paths, name="list.txt"):
    (folder / name).write_text("".join(f"{path}\n" for path in paths))
    return f'source: "{folder}/{name}"'


@pytest.fixture
def files(tmp_path):
    """files(*counts): the source of files with so many rows each, named data and label."""

    def files(*counts, name="list.txt"):
        return list_of(
            tmp_path,
            [
                write(
                    tmp_path / f"{name} {i}.h5".replace(" ", "_"),
                    data=rows(count, seed=i),
                    label=np.arange(count) + 100.0 * i,
                )
                for i, count in enumerate(counts)
            ],
            name,
        )

    return files


def ours(param, options="", tops=("data", "label"), name="data", more=""):
    python = f'python_param {{ module: "fastbatch.caffe" layer: "HDF5Data" param_str: \'{options}\' }}'
    return layer("Python", python, param, tops, name, more)


def caffes(param, options="", tops=("data", "label"), name="data", more=""):
    return layer("HDF5Data", "", param, tops, name, more)


def layer(kind, python, param, tops, name, more):
    tops = " ".join(f'top: "{top}"' for top in tops)
    return f'layer {{ name: "{name}" type: "{kind}" {tops} {python} hdf5_data_param {{ {param} }} {more} }}\n'


def assert_conforms(build, param, options="", tops=("data", "label"), forwards=9, phase=caffe.TRAIN, seeds=(1, 77)):
    for seed in seeds:
        results, after = [], []
        for kind in ours, caffes:
            libc.srand(seed)
            results.append(run(build, kind(param, options, tops), forwards, phase=phase, names=tops))
            after.append([libc.rand() for _ in range(3)])
        assert_same_bits(*results)
        assert after[0] == after[1]


# The same numbers


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("counts", [(7,), (7, 3, 5), (1, 1, 9, 2), (12, 12)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 4, 12, 31])
@pytest.mark.parametrize("shuffle", ["false", "true"])
def test_same_rows_in_the_same_order(build, files, shuffle, batch_size, counts, threads):
    assert_conforms(build, f"{files(*counts)} batch_size: {batch_size} shuffle: {shuffle}", f"threads: {threads}")


DTYPES = [
    np.float16,
    np.float32,
    np.float64,
    np.int8,
    np.uint8,
    np.int16,
    np.uint16,
    np.int32,
    np.uint32,
    np.int64,
    np.uint64,
    ">f4",
    ">i2",
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).str)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4), (2, 1, 3, 1, 2), (1,) * 12 + (3,)], ids=str)
def test_every_type_and_rank(build, tmp_path, shape, dtype):
    path = write(tmp_path / "file.h5", values=rows(5, shape, dtype), label=np.arange(5))
    assert_conforms(
        build, f"{list_of(tmp_path, [path])} batch_size: 3", tops=("values", "label"), forwards=3, seeds=[1]
    )


def test_numbers_that_floats_cannot_hold(build, tmp_path):
    path = write(
        tmp_path / "file.h5",
        big=np.array([2**24 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]),
        wide=np.array([1e300, -1e-300, np.nan, np.inf]),
        tiny=np.array([1e-42, -0.0, 2**-149, 1 / 3]),
    )
    assert_conforms(
        build, f"{list_of(tmp_path, [path])} batch_size: 4", tops=("big", "wide", "tiny"), forwards=2, seeds=[1]
    )


def test_several_tops_of_several_shapes(build, tmp_path):
    paths = [
        write(
            tmp_path / f"{i}.h5",
            a=rows(6, (3, 5, 5), np.uint8, i),
            b=rows(6, (), np.int32, i + 9),
            c=rows(6, (1,), np.float64, i + 5),
        )
        for i in range(3)
    ]
    for tops in ("a", "b", "c"), ("c", "a"), ("b",):
        for shuffle in "true", "false":
            assert_conforms(build, f"{list_of(tmp_path, paths)} batch_size: 5 shuffle: {shuffle}", tops=tops)


def test_a_file_that_is_read_in_many_steps(build, tmp_path):
    """Chunked and compressed, chunked with odd chunks, and contiguous: 20 MB each."""
    values = rows(500, (100, 100), np.float32)
    paths = [tmp_path / f"{i}.h5" for i in range(3)]
    for path, how in zip(
        paths, ({"chunks": (64, 100, 100), "compression": "gzip", "compression_opts": 1}, {"chunks": (7, 30, 100)}, {})
    ):
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=values, **how)
            file.create_dataset("label", data=np.arange(500))
    assert_conforms(build, f"{list_of(tmp_path, paths)} batch_size: 300", forwards=6, seeds=[1])


@pytest.mark.parametrize("shapes", [((), (1,), (1, 1)), ((1,), ()), ((2, 3), (3, 2), (6,), (1, 6, 1))], ids=str)
@pytest.mark.parametrize("shuffle", ["false", "true"])
def test_only_the_size_of_a_row_counts(build, tmp_path, shapes, shuffle):
    """The first file decides the tops' shape; a later file may have other axes with as many values per row."""
    paths = [
        write(tmp_path / f"{i}.h5", data=rows(5 + i, seed=i), label=rows(5 + i, shape, seed=i + 9))
        for i, shape in enumerate(shapes)
    ]
    assert_conforms(build, f"{list_of(tmp_path, paths)} batch_size: 4 shuffle: {shuffle}")


def test_links_and_values_that_were_never_written(build, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("far", data=rows(6))
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file.create_dataset("label", (6,), np.float32, fillvalue=7, chunks=(2,))
        file["near"] = h5py.SoftLink("/label")
        file["data"] = h5py.ExternalLink("other.h5", "/far")
    assert_conforms(
        build,
        f"{list_of(tmp_path, [tmp_path / 'file.h5'])} batch_size: 4",
        tops=("label", "near", "data"),
        forwards=3,
        seeds=[1],
    )


def test_a_list_with_any_white_space(build, tmp_path):
    paths = [write(tmp_path / f"{i}.h5", data=rows(3, seed=i), label=rows(3, (), seed=i)) for i in range(3)]
    (tmp_path / "list.txt").write_text(f"\n {paths[0]}\t{paths[1]}\r\n\n\f{paths[2]}")
    assert_conforms(build, f'source: "{tmp_path}/list.txt" batch_size: 4')


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST], ids=["TRAIN", "TEST"])
@pytest.mark.parametrize("counts", [(10,), (4, 1, 2)], ids=str)
@pytest.mark.parametrize("shuffle", ["false", "true"])
def test_ranks(build, files, shuffle, counts, phase):
    """Rank r of n takes every n-th row of the stream; TEST reads everything."""
    source = files(*counts)
    caffe.set_multiprocess(True)
    try:
        for count in 2, 3, 8:
            caffe.set_solver_count(count)
            for rank in range(count):
                caffe.set_solver_rank(rank)
                assert_conforms(build, f"{source} batch_size: 3 shuffle: {shuffle}", phase=phase, forwards=5, seeds=[5])
    finally:
        caffe.set_solver_rank(0)
        caffe.set_solver_count(1)
        caffe.set_multiprocess(False)


def test_upstreams_own_files(build, tmp_path):
    """TestRead of test_hdf5data_layer.cpp."""
    data = np.arange(10 * 8 * 6 * 5, dtype=np.float32).reshape(10, 8, 6, 5)
    label = np.arange(1, 11, dtype=np.float32).reshape(10, 1)
    one = write(tmp_path / "1.h5", data=data, label=label, label2=label + 1)
    two = write(tmp_path / "2.h5", data=data + 2400, label=label.astype(np.uint8), label2=(label + 1).astype(np.uint8))
    net = build(ours(f"{list_of(tmp_path, [one, two])} batch_size: 5", tops=("data", "label", "label2")))
    assert [net.blobs[name].data.shape for name in net.blobs] == [(5, 8, 6, 5), (5, 1), (5, 1)]
    for i in range(10):
        net.forward()
        first = i % 2 * 5
        assert net.blobs["label"].data.ravel().tolist() == [first + j for j in range(1, 6)]
        assert net.blobs["label2"].data.ravel().tolist() == [first + j for j in range(2, 7)]
        assert_same_bits([net.blobs["data"].data], [data[first : first + 5] + (2400 if i // 2 % 2 else 0)])


# Where others draw from rand()


@pytest.mark.parametrize("counts", [(7,), (5, 4, 6), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_draws_of_others_between_forwards(build, files, counts, every):
    param = f"{files(*counts)} batch_size: 4 shuffle: true"
    results = []
    for kind in ours, caffes:
        libc.srand(3)
        net = build(kind(param, "threads: 2"))
        course = []
        for i in range(25):
            net.forward()
            course += shown(net)
            if i % every == 0:
                libc.rand()
        results.append(course)
    assert_same_bits(*results)


@pytest.mark.parametrize("prefetch", [1, 4])
def test_two_layers_that_shuffle_take_turns(build, files, prefetch):
    """As a training net and its test net do. Each one's predictions miss the other's draws, so it redoes batches."""
    sources = [
        f"{files(*counts, name=f'list{i}.txt')} batch_size: {size} shuffle: true"
        for i, (counts, size) in enumerate((((5, 9, 4), 6), ((8,), 3)))
    ]
    more = f"data_param {{ prefetch: {prefetch} }}"
    results = []
    for kind in ours, caffes:
        libc.srand(11)
        nets = [build(kind(source, more=more if kind is ours else "")) for source in sources]
        course = []
        for i in range(30):
            for net, often in zip(nets, (1, 2)):
                if i % often == 0:
                    net.forward()
                    course += shown(net)
        results.append(course)
    assert_same_bits(*results)


def test_two_such_layers_in_one_net(build, files):
    """Caffe's own layer cannot show one dataset in tops of two names, so the files are the reference."""
    net = build(
        ours(f"{files(5, 3)} batch_size: 4 shuffle: true")
        + ours(
            f"{files(6, name='other.txt')} batch_size: 4 shuffle: true",
            'datasets: "data label"',
            ("data2", "label2"),
            "other",
        )
    )
    seen = []
    for _ in range(24):
        net.forward()
        seen.append((net.blobs["label"].data.tolist(), net.blobs["label2"].data.tolist()))
    first, second = ([label for batch in each for label in batch] for each in zip(*seen))
    for epoch in range(12):
        assert sorted(first[8 * epoch : 8 * epoch + 8]) == [0, 1, 2, 3, 4, 100, 101, 102]
    for epoch in range(16):
        assert sorted(second[6 * epoch : 6 * epoch + 6]) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("when", range(1, 8))
def test_srand_in_the_middle(build, files, when):
    """Batches that are ready by then were shuffled with draws that will never be made."""
    param = f"{files(6, 3)} batch_size: 5 shuffle: true"
    results = []
    for kind in ours, caffes:
        libc.srand(3)
        net = build(kind(param))
        course = []
        for i in range(16):
            if i == when:
                libc.srand(99)
            net.forward()
            course += shown(net)
        results.append(course)
    assert_same_bits(*results)


# Training


def test_training_is_the_same(tmp_path, files):
    paths = [
        write(tmp_path / f"{i}.h5", data=rows(9 + i, (4,), seed=i), label=rows(9 + i, (1,), seed=i + 50))
        for i in range(3)
    ]
    train = f"{list_of(tmp_path, paths, 'train.txt')} batch_size: 4 shuffle: true"
    test = f"{list_of(tmp_path, paths[:1], 'test.txt')} batch_size: 4 shuffle: true"
    solver = (
        "test_iter: 2 test_interval: 3 snapshot: 4 snapshot_format: HDF5 "
        f'snapshot_prefix: "{tmp_path}/snapshot" max_iter: 100'
    )
    results = []
    for kind in ours, caffes:
        text = kind(train, more="include { phase: TRAIN }") + kind(test, more="include { phase: TEST }")
        libc.srand(8)
        results.append(trained(tmp_path, text, 1, loss="EuclideanLoss", std=0.001, base_lr=0.0000001, solver=solver))
    assert_same_bits(*results)


@pytest.mark.parametrize("shuffle", ["true", "false"])
def test_convert_finds_the_batches_identical(tmp_path, files, shuffle, capfd):
    (tmp_path / "net.prototxt").write_text(caffes(f"{files(7, 5)} batch_size: 4 shuffle: {shuffle}"))
    assert main(["convert", str(tmp_path / "net.prototxt"), "-o", str(tmp_path / "new.prototxt"), "--check"]) == 0
    assert "The batches are identical to the last bit." in capfd.readouterr().err
    assert 'layer: "HDF5Data"' in (tmp_path / "new.prototxt").read_text()


def test_a_source_that_was_not_made(tmp_path):
    source, order = _hdf5.CaffeHDF5.__new__(_hdf5.CaffeHDF5), CaffeRows.__new__(CaffeRows)
    for use in source.read_ahead, source.row_files, lambda: source.__fastbatch_source__(True), lambda: order.settle(0):
        with pytest.raises(RuntimeError, match="was not initialized"):
            use()
    source.close()
    (tmp_path / "no.h5").write_text("")
    source = _hdf5.CaffeHDF5([bytes(tmp_path / "no.h5")], ["data"])
    with pytest.raises(fastbatch.SourceError):
        order.__init__(source, 2)
    with pytest.raises(RuntimeError, match="initialization failed"):
        order.settle(0)
    with pytest.raises(RuntimeError, match="make its order, a CaffeRows, first"):
        source.__fastbatch_source__(True)
    assert (source.shapes, source.classes) == (((),), ("H5T_FLOAT",))


# How it reads


def test_beside_caffes_own_layer_and_snapshots(build, tmp_path):
    """One libhdf5, three who use it at once."""
    values = rows(400, (60, 60))
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.h5")
        with h5py.File(paths[-1], "w") as file:
            file.create_dataset("data", data=values + i, chunks=(9, 60, 60), compression="gzip")
            file.create_dataset("label", data=np.arange(400) + 1000 * i)
    param = f"{list_of(tmp_path, paths)} batch_size: 100"
    net, other = build(ours(param, "threads: 2")), build(caffes(param))
    for i in range(24):
        net.forward()
        other.forward()
        net.save_hdf5(str(tmp_path / "snapshot.h5"))
        with h5py.File(paths[i % 4], "r") as file:
            assert file["label"][3] == 1000 * (i % 4) + 3
        assert_same_bits(shown(net), shown(other))


def test_a_thread_reads_and_ends_with_the_net(build, files):
    net = build(ours(f"{files(5, 5)} batch_size: 2", "threads: 1"))
    assert native_threads() == ["fastbatch-0", "fastbatch-hdf5"]
    net.layers[0].close()
    net.layers[0].close()
    with pytest.raises(fastbatch.Closed):
        net.forward()
    del net
    gc.collect()
    fastbatch.caffe.close_all()
    assert native_threads() == []


def test_close_frees_the_files_while_the_net_lives(build, tmp_path):
    for i in range(2):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset("data", (10_000, 2500), np.float32, chunks=(100, 2500), fillvalue=i)
            file["label"] = np.arange(10_000)
    net = build(ours(f"{list_of(tmp_path, [tmp_path / '0.h5', tmp_path / '1.h5'])} batch_size: 2", "threads: 1"))
    net.forward()
    before = anonymous_kb()
    fastbatch.caffe.close_all()
    while native_threads():
        time.sleep(0.001)  # the one that reads files ends when it is through with its step
    assert before - anonymous_kb() > 90_000
    assert net.blobs["label"].data.tolist() == [0, 1]


def test_where_libhdf5_is_not_thread_safe(build, files, monkeypatch):
    monkeypatch.setattr(_hdf5, "is_thread_safe", lambda: False)
    net = build(ours(f"{files(3, 4)} batch_size: 2", "threads: 1"))
    assert native_threads() == ["fastbatch-0"]
    del net
    for counts in (7,), (3, 4, 1):
        for shuffle in "true", "false":
            assert_conforms(build, f"{files(*counts)} batch_size: 5 shuffle: {shuffle}", "threads: 2")


def test_prefetch_and_datasets(build, files):
    net = build(
        ours(f"{files(5)} batch_size: 2", 'datasets: "label data"', tops=("x", "y"), more="data_param { prefetch: 2 }")
    )
    assert net.layers[0].stats()["slots"] == 3
    assert net.blobs["x"].data.shape == (2,) and net.blobs["y"].data.shape == (2, 2, 3)


def test_without_a_copy_and_with_one(build, files):
    param = f"{files(5, 6)} batch_size: 4 shuffle: true"
    net = build(ours(param))
    net.forward()
    assert net.blobs["data"].data.ctypes.data == net.layers[0]._showing.shown.address(0)
    assert_conforms(build, param, "zero_copy: false")


def test_no_file_stays_open(build, files, tmp_path):
    net = build(ours(f"{files(5)} batch_size: 2"))
    net.forward()
    assert open_files(".h5") == []


# What is wrong


def test_what_is_wrong_with_the_parameters(build, files, tmp_path):
    source = files(5)
    for text, words in [
        (ours(source), "hdf5_data_param.batch_size is missing"),
        (ours(f"{source} batch_size: 0"), "batch_size must be 1 or more, not 0"),
        (ours("batch_size: 2"), "hdf5_data_param.source is missing"),
        (ours(f"{source} batch_size: 2", more="transform_param { }"), "HDF5Data does not transform data"),
        (ours(f"{source} batch_size: 2", more="data_param { prefetch: 0 }"), "prefetch must be 1 or more"),
        (ours(f"{source} batch_size: 2", more="data_param { batch_size: 3 }"), "Write it in hdf5_data_param"),
        (
            ours(f"{source} batch_size: 2", 'datasets: "data"'),
            'names 1 dataset \\("data"\\), but layer "data" has 2 tops',
        ),
        (ours(f"{source} batch_size: 2", tops=[]), "at least 1 top blob"),
        (ours(f"{source} batch_size: 2", tops=[f"top{i}" for i in range(17)]), "1 to 16 tops, not 17"),
        (ours(f"{source} batch_size: 400000000"), "blob size exceeds INT_MAX"),
    ]:
        with pytest.raises(ValueError, match=words):
            build(text)


def test_what_is_wrong_with_the_list(build, tmp_path):
    for content, words in [
        (None, "Failed to open source file: .*: No such file"),
        (b"", "Must have at least 1 HDF5 filename listed in"),
        (b" \n\t\n", "Must have at least 1"),
        ("a.h5\n".encode("utf-16"), "UTF-16"),
        (b"\xef\xbb\xbfa.h5", "byte order mark"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "list.txt: source names a list of files, not an HDF5 file"),
        (b"missing.h5", "Failed opening HDF5 file: missing.h5: No such file"),
    ]:
        if content is not None:
            (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(fastbatch.SourceError, match=words):
            build(ours(f'source: "{tmp_path}/list.txt" batch_size: 2'))


def wrong_files(folder):
    """(name, what is wrong with it in words)"""

    def wrong(name, **datasets):
        return write(folder / name, **{"data": rows(4), "label": np.arange(4), **datasets})

    (folder / "text.h5").write_text("not a file of HDF5's\n" * 50)
    (folder / "empty.h5").write_bytes(b"")
    good = Path(wrong("good.h5")).read_bytes()
    (folder / "cut.h5").write_bytes(good[: len(good) // 2])
    with h5py.File(folder / "nothing.h5", "w") as file:
        file.create_dataset("data", data=rows(4))
    with h5py.File(folder / "group.h5", "w") as file:
        file.create_dataset("data", data=rows(4))
        file.create_group("label")
    with h5py.File(folder / "dangling.h5", "w") as file:
        file.create_dataset("data", data=rows(4))
        file["label"] = h5py.SoftLink("/nowhere")
    with h5py.File(folder / "huge.h5", "w") as file:
        file.create_dataset("data", (2**31 - 5, 2, 3), np.float64, chunks=(1, 2, 3))
        file.create_dataset("label", (2**31 - 5,), np.float32, chunks=(5,))
    with h5py.File(folder / "more.h5", "w") as file:
        file.create_dataset("data", (2**40, 2, 3), np.float64, chunks=(1, 2, 3))
        file.create_dataset("label", (2**40,), np.float32, chunks=(5,))
    with h5py.File(folder / "wide.h5", "w") as file:
        file.create_dataset("data", (4, 2**40), np.float64, chunks=(1, 5))
        file.create_dataset("label", data=np.arange(4))
    wrong("rows.h5", label=np.arange(5))
    wrong("text_label.h5", label=np.array([b"a", b"b", b"c", b"d"]))
    wrong("bool.h5", label=np.array([True, False, True, False]))
    wrong("scalar.h5", label=np.float32(3))
    wrong("norows.h5", data=rows(0), label=rows(0, ()))
    wrong("novalues.h5", data=rows(4, (0, 3)))
    return [
        ("missing.h5", "Failed opening HDF5 file: .*: No such file"),
        ("text.h5", "Failed opening HDF5 file: .*text.h5: file signature not found"),
        ("empty.h5", "Failed opening HDF5 file"),
        ("cut.h5", "Failed opening HDF5 file: .*truncated"),
        ("nothing.h5", "Failed to find HDF5 dataset label in .*nothing.h5"),
        ("group.h5", "label in .* is not a dataset"),
        ("dangling.h5", "label in .* is not a dataset"),
        ("rows.h5", "dataset label has 5 rows and dataset data has 4"),
        ("text_label.h5", "Unsupported datatype class: H5T_STRING"),
        ("bool.h5", "Unsupported datatype class: H5T_ENUM"),
        ("scalar.h5", "dataset label in .* has no rows"),
        ("norows.h5", "dataset data in .* is empty"),
        ("novalues.h5", "dataset data in .* is empty"),
        ("huge.h5", "no memory for the 2147483643 rows"),
        ("more.h5", "has 1099511627776 rows, more than Caffe can count"),
        ("wide.h5", "more values than a Blob can hold"),
    ]


def test_what_is_wrong_with_the_first_file(build, tmp_path):
    for name, words in wrong_files(tmp_path):
        with pytest.raises(fastbatch.SourceError, match=words):
            build(ours(f"{list_of(tmp_path, [tmp_path / name])} batch_size: 2"))


def test_what_is_wrong_with_a_later_file(build, tmp_path):
    """The rows before it are shown; then the source is lost, and says so each time."""
    first = write(tmp_path / "first.h5", data=rows(4), label=np.arange(4))
    write(tmp_path / "shape.h5", data=rows(4, (3, 3)), label=np.arange(4))
    write(tmp_path / "rank.h5", data=rows(4, (5,)), label=np.arange(4))
    later = [
        (
            "shape.h5",
            r"a row of dataset data has shape \(3, 3\), but in the first file \(2, 3\), which are not as many values",
        ),
        ("rank.h5", r"a row of dataset data has shape \(5\), but in the first file \(2, 3\)"),
    ]
    for name, words in wrong_files(tmp_path) + later:
        net = build(ours(f"{list_of(tmp_path, [first, tmp_path / name])} batch_size: 2", "threads: 2"))
        for expected in [0, 1], [2, 3]:
            net.forward()
            assert net.blobs["label"].data.tolist() == expected
        for _ in range(2):
            with pytest.raises(fastbatch.SourceError, match=f"list.txt cannot be read any further: .*{words}"):
                net.forward()
        assert net.blobs["label"].data.tolist() == [2, 3]


def test_damage_in_the_middle_of_a_file(build, tmp_path):
    path = tmp_path / "file.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=rows(64, (64, 64)), chunks=(8, 64, 64), compression="gzip", fletcher32=True)
        file.create_dataset("label", data=np.arange(64))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(fastbatch.SourceError, match="Failed to read float dataset data of .*file.h5, rows 0 to 63: "):
        build(ours(f"{list_of(tmp_path, [path])} batch_size: 2"))


# Ends

SCRIPT = """
    import sys
    import h5py, numpy as np, caffe
    for i in range(3):
        with h5py.File(f"{i}.h5", "w") as file:
            data = np.random.RandomState(i).rand(1000, 40, 40)
            file.create_dataset("data", data=data, chunks=(50, 40, 40), compression="gzip", compression_opts=1)
            file.create_dataset("label", data=np.arange(1000))
    open("list.txt", "w").write("0.h5 1.h5 2.h5")
    open("net.prototxt", "w").write('''
        layer { name: "data" type: "Python" top: "data" top: "label"
                hdf5_data_param { source: "list.txt" batch_size: 8 }
                python_param { module: "fastbatch.caffe" layer: "HDF5Data" } }''')
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    net.forward()
"""


def test_a_process_that_ends_while_a_file_is_read(start):
    process = start(SCRIPT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert [line for line in errors.splitlines() if line[:1] not in "IW"] == []


def test_a_process_that_ends_at_once_while_a_file_is_read(start):
    """Python is not shut down, as in the `caffe` tool: only C's exit functions run, including libhdf5's."""
    process = start(SCRIPT + "\n    import ctypes; ctypes.CDLL(None).exit(0)\n")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert [line for line in errors.splitlines() if line[:1] not in "IW"] == []


def test_in_a_forked_child(start):
    check_in_a_forked_child(start, SCRIPT, childs=[0.0, 1.0, 2.0], parents=[8.0, 9.0, 10.0])


def test_children_find_libhdf5_free(start):
    """Whoever forks while the thread is in libhdf5, which has one lock for everything."""
    process = start(
        SCRIPT
        + """
    import os
    for i in range(20):
        pid = os.fork()
        if not pid:
            with h5py.File("0.h5", "r") as file:
                assert file["label"][i] == i
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        for _ in range(i):
            net.forward()
    print("done")
    """
    )
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "done\n"), errors
