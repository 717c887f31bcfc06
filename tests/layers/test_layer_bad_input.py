"""Wrong parameters, databases and records raise clear exceptions; Caffe's own layer aborts or reads garbage."""

import gc
import os
import re
import signal
import time

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

import fastbatch
from databases import LMDB, datum, images, varint, write_leveldb, write_lmdb
from nets import (
    anonymous_kb,
    labels,
    native_threads,
    open_files,
    ours,
    params,
    slow_lmdb,
    thread_count,
)

pytestmark = pytest.mark.usefixtures("leaves_nothing")

SHAPE = (3, 12, 10)
IMAGES = images(9, SHAPE)
RECORDS = [datum(image, i) for i, image in enumerate(IMAGES)]
SIZE = b"\x08\x03\x10\x0c\x18\x0a"


@pytest.fixture
def good(tmp_path):
    return write_lmdb(tmp_path / "good", RECORDS)


def blob(array):
    return caffe.io.array_to_blobproto(array).SerializeToString()


def mean_blob(shape):
    return blob(images(1, shape, np.float32))


def assert_refused(build, text, error, *words):
    """Building the net raises `error`, whose text contains all the words, and leaves nothing behind."""
    before = thread_count(), open_files()
    with pytest.raises(error) as caught:
        build(text)
    assert isinstance(caught.value, error)
    for word in words:
        assert word in str(caught.value)
    assert native_threads() == [] and (thread_count(), open_files()) == before


# Parameters


@pytest.mark.parametrize(
    "batch_size, more, transform, words",
    [
        (0, "", "", ["batch_size must be 1 or more, not 0", "Check failed: top_shape[0] > 0"]),
        (2**31 - 1, "", "", ["batch_size 2147483647", "(2147483647, 3, 12, 10)", "blob size exceeds INT_MAX"]),
        (2**32 - 1, "", "", ["batch_size 4294967295", "blob size exceeds INT_MAX"]),
        (2, "prefetch: 0", "", ["prefetch must be 1 or more, not 0", "Caffe itself would wait for ever"]),
        (2, "prefetch: 4294967295", "", ["prefetch must be at most 65536, not 4294967295"]),
        (
            2,
            "",
            "crop_size: 11",
            [
                "of its first image: the image, 3 x 12 x 10 (channels, height, width), is smaller than crop_size 11",
                "datum_width >= crop_size",
            ],
        ),
        (
            2,
            "",
            "crop_size: 13",
            [
                "of its first image: the image, 3 x 12 x 10 (channels, height, width), is smaller than crop_size 13",
                "datum_height >= crop_size",
            ],
        ),
        (2, "", "mean_value: 1 mean_value: 2", ["Specify either 1 mean_value or as many as channels: 3 (there are 2)"]),
    ],
)
def test_numbers_that_make_no_sense(build, good, batch_size, more, transform, words):
    assert_refused(build, ours(params(good, batch_size, transform, more)), ValueError, good, *words)


def test_the_other_backend(build, good, tmp_path):
    """The error says which it is, and what to write."""
    for backend in "backend: LEVELDB", "":
        assert_refused(
            build,
            ours(f'data_param {{ source: "{good}" batch_size: 2 {backend} }}'),
            fastbatch.SourceError,
            f"Failed to open leveldb {good}: ",
            "it is an LMDB database: write backend: LMDB, because LEVELDB is Caffe's default",
        )
    other = write_leveldb(tmp_path / "other", RECORDS)
    assert_refused(
        build,
        ours(f'data_param {{ source: "{other}" batch_size: 2 backend: LMDB }}'),
        fastbatch.SourceError,
        f"cannot open the LMDB database {other}: ",
        "it is a LevelDB database: write backend: LEVELDB",
    )


@pytest.mark.parametrize(
    "wrong, words",
    [
        ("thread: 2", ['param_str has no field "thread". Did you mean threads?', "line 1"]),
        (
            "transform_param { crop_h: 2 }",
            ['transform_param has no field "crop_h". It is a field of SSD\'s Caffe', "{'crop_size': [height, width]}"],
        ),
        ("transform_param { expand_param { } }", ['no field "expand_param"', "fastbatch does not do it"]),
        ("transform_param { cropsize: 2 }", ['transform_param has no field "cropsize". Did you mean crop_size?']),
        ("threads: 0", ["threads", "it cannot be 0, the least is 1"]),
        ("threads: -1", ["threads cannot be -1"]),
        ("threads: two", ["threads cannot be two"]),
        ("transform_param { mirror: true", ['param_str of layer "data" (Data), line 1']),
        ("transform_param { force_color: true force_gray: true }", ["cannot set both force_color and force_gray"]),
    ],
)
def test_wrong_param_str(build, good, wrong, words):
    assert_refused(build, ours(params(good, 2) + wrong), ValueError, *words)


def test_too_many_threads(build, good):
    text = ours(params(good, 2) + "threads: 4097")
    assert_refused(build, text, ValueError, good, "threads must be at most 4096, not 4097")


def test_wrong_number_of_tops_and_bottoms(build, good):
    for tops in [], ["a", "b", "c"]:
        words = "Data Layer produces at least 1 and at most 2 top blob(s) as output, data and label"
        assert_refused(build, ours(params(good, 2), tops=tops), ValueError, f"{words}; this one has {len(tops)}")
    text = 'layer { name: "in" type: "Input" top: "in" input_param { shape { dim: 1 } } }'
    text += ours(params(good, 2), more='bottom: "in"')
    assert_refused(build, text, ValueError, "Data Layer takes 0 bottom blob(s) as input; this one has 1")


def test_a_layer_whose_net_cannot_be_built_for_another_reason(build, good):
    text = ours(params(good, 2)) + ours("threads: 0", tops=["other"]).replace('name: "data"', 'name: "other"')
    with pytest.raises(ValueError, match="threads"):
        build(text)
    gc.collect()
    assert (native_threads(), open_files(".mdb")) == ([], [])


# The mean file


@pytest.mark.parametrize(
    "content, words",
    [
        (mean_blob(SHAPE)[:100], ["it is not a binaryproto file", "truncated or corrupt"]),
        (mean_blob(SHAPE)[:-4], ["truncated or corrupt"]),
        (b"these are no mean values", ["it is not a binaryproto file"]),
        (b"", ["the file is empty"]),
        (blob(images(1, SHAPE, np.float32)[0]), ["is (3, 12, 10), expected (1, C, H, W)"]),
        (
            mean_blob((3, 12, 11)),
            [
                "of its first image: the mean image is 3 x 12 x 11 ",
                "before cropping, is 3 x 12 x 10: ",
                "datum_width == data_mean_.width()",
            ],
        ),
        (mean_blob((3, 13, 10)), ["the mean image is 3 x 13 x 10 ", "datum_height == data_mean_.height()"]),
        (mean_blob((1, 12, 10)), ["the mean image is 1 x 12 x 10 ", "datum_channels == data_mean_.channels()"]),
    ],
    ids=["cut", "4 bytes short", "text", "empty", "3-D", "wider", "higher", "gray"],
)
def test_mean_file(build, good, tmp_path, content, words):
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(content)
    text = ours(params(good, 2, f'crop_size: 5 mean_file: "{path}"'))
    assert_refused(build, text, ValueError, str(path), *words)


def test_mean_file_that_is_missing(build, good, tmp_path):
    text = ours(params(good, 2, f'mean_file: "{tmp_path}/missing"'))
    assert_refused(build, text, FileNotFoundError, "File not found", f"{tmp_path}/missing")


def test_mean_file_and_mean_value(build, good, tmp_path):
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(mean_blob(SHAPE))
    text = ours(params(good, 2, f'mean_value: 3 mean_file: "{path}"'))
    assert_refused(build, text, ValueError, "Cannot specify mean_file and mean_value at the same time")


# Databases


def test_databases_that_are_none(build, good, tmp_path):
    def assert_source_refused(name, *words):
        assert_refused(build, ours(params(tmp_path / name, 2)), fastbatch.SourceError, str(tmp_path / name), *words)

    assert_source_refused("missing", "No such file or directory")
    (tmp_path / "empty folder").mkdir()
    assert_source_refused("empty folder", "it has no data.mdb", "No such file or directory")
    (tmp_path / "file").write_bytes(b"x")
    assert_source_refused("file", "Not a directory")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/data.mdb").write_bytes(b"no database" * 5000)
    assert_source_refused("text", "data.mdb is not an LMDB file")
    write_lmdb(tmp_path / "no records", [])
    assert_source_refused("no records", "is empty")
    os.truncate(f"{good}/data.mdb", os.path.getsize(f"{good}/data.mdb") // 2)
    assert_source_refused("good", "cut short")


# Records

BAD_RECORDS = {
    "text": (b"\xff\xff\xff", "the record is not a Datum"),
    "empty": (b"", "the record is not a Datum: it is empty"),
    "truncated": (RECORDS[5][:100], "it is truncated or corrupt: it has 100 bytes"),
    "short data": (SIZE + b"\x22\x05abcde", "needs 360 values but its data holds 5"),
    "short float_data": (SIZE + 5 * b"\x35\0\0\0\0", "needs 360 values but its float_data holds 5"),
    "no pixels": (SIZE, "needs 360 values but its data holds 0"),
    "zero height": (
        b"\x08\x03\x10\x00" + RECORDS[5][4:],
        "no pixels: its shape is 3 x 0 x 10 (channels, height, width; Check failed: datum_height > 0)",
    ),
    "negative channels": (b"\x08" + varint(-3) + RECORDS[5][2:], "its shape is -3 x 12 x 10"),
    "absurd size": (
        b"\x08\x03\x10" + varint(20000) + b"\x18" + varint(20000) + b"\x22\x05abcde",
        "needs 1200000000 values",
    ),
    "impossible size": (
        b"\x08" + varint(2**31 - 1) + b"\x10" + varint(2**31 - 1) + b"\x18\x01",
        "blob size exceeds INT_MAX",
    ),
    "encoded, but no image": (b"\x22\x05abcde\x38\x01", "neither JPEG nor PNG: its 5 bytes begin with 61 62"),
    "encoded, truncated": (b"\x22\x04\xff\xd8\xff\xe0\x38\x01", "the JPEG image is truncated"),
    "another height": (datum(images(1, (3, 11, 10))[0], 5), "shape (3, 11, 10), but the batch has (3, 12, 10)"),
    "another width": (datum(images(1, (3, 12, 11))[0], 5), "shape (3, 12, 11), but the batch has (3, 12, 10)"),
    "other channels": (datum(images(1, (1, 12, 10))[0], 5), "shape (1, 12, 10), but the batch has (3, 12, 10)"),
}


def outcomes(net, forwards, error=fastbatch.SampleError):
    """For each forward() the batch's labels, or the exception. A failed one leaves the batch before in the blobs."""
    found = []
    for _ in range(forwards):
        before = net.blobs["data"].data.copy(), net.blobs["label"].data.copy()
        try:
            net.forward()
            batch = net.blobs["label"].data.astype(int).tolist()
            np.testing.assert_array_equal(net.blobs["data"].data, IMAGES[batch])
            found.append(batch)
        except error as caught:
            np.testing.assert_array_equal(net.blobs["data"].data, before[0])
            np.testing.assert_array_equal(net.blobs["label"].data, before[1])
            found.append(caught)
    return found


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("bad", BAD_RECORDS)
def test_a_bad_record_is_an_error_of_its_batch_alone(build, tmp_path, bad, threads):
    record, reason = BAD_RECORDS[bad]
    path = write_lmdb(tmp_path / "db", [*RECORDS[:5], record, *RECORDS[6:]])
    net = build(ours(params(path, 2) + f"threads: {threads}"))
    found = outcomes(net, 9)  # two epochs
    errors = [found.pop(2), found.pop(6)]
    assert found == [[0, 1], [2, 3], [6, 7], [8, 0], [1, 2], [3, 4], [7, 8]]
    # In the second epoch it is the first of its batch: if it can be read at all, then the sample after it does not fit.
    second = 6 if "other" in bad else 5
    for epoch, batch, index, error in (0, 2, 5, errors[0]), (1, 7, second, errors[1]):
        assert type(error) is fastbatch.SampleError
        assert (error.source, error.key, error.index) == (path, b"%08d" % index, index)
        assert (error.epoch, error.batch) == (epoch, batch)
        assert str(error).startswith(f"{path}, sample {index} (key '{index:08}'): {error.reason}")
    assert reason in errors[0].reason
    stats = net.layers[0].stats()
    assert stats["errors"] >= 2 and path in stats["last_error"]


@pytest.mark.parametrize("bad", [bad for bad in BAD_RECORDS if "other" not in bad])
def test_a_bad_first_record_has_no_shape_for_the_net(build, tmp_path, bad):
    record, reason = BAD_RECORDS[bad]
    path = write_lmdb(tmp_path / "db", [record, *RECORDS])
    assert_refused(build, ours(params(path, 2)), fastbatch.SampleError, path, "key '00000000'", reason)


def test_later_images_that_do_not_fit_the_transform(build, tmp_path):
    """The first image does; the others are errors of their batches, though alone in them."""
    shapes = [SHAPE, (3, 7, 10), SHAPE, (2, 12, 10), SHAPE]
    path = write_lmdb(tmp_path / "db", [datum(images(1, shape)[0], i) for i, shape in enumerate(shapes)])
    (tmp_path / "mean").write_bytes(mean_blob(SHAPE))
    for transform, expected in [
        (
            "crop_size: 8",
            {
                1: "3 x 7 x 10 (channels, height, width), is smaller than crop_size 8 "
                "(Check failed: datum_height >= crop_size (7 vs. 8))"
            },
        ),
        ("mean_value: 1 mean_value: 2 mean_value: 3", {3: "Specify either 1 mean_value or as many as channels: 2"}),
        (
            f'mean_file: "{tmp_path}/mean"',
            {
                1: (
                    "the mean image is 3 x 12 x 10 (channels, height, width) but the image, before cropping, is 3 x "
                    "7 x 10"
                ),
                3: "is 2 x 12 x 10",
            },
        ),
    ]:
        net = build(ours(params(path, 1, transform)))
        for i in [0, 1, 2, 3, 4, 0]:
            if i in expected:
                with pytest.raises(fastbatch.SampleError) as caught:
                    net.forward()
                assert caught.value.index == i and expected[i] in caught.value.reason
            else:
                net.forward()
                assert net.blobs["label"].data.tolist() == [i]


def test_nothing_is_allocated_on_a_records_word(build, tmp_path):
    """Each of these claims to be an image of 4.8 GB, as floats, and holds 5 bytes."""
    record = BAD_RECORDS["absurd size"][0]
    net = build(ours(params(write_lmdb(tmp_path / "db", RECORDS[:1] + 8 * [record]), 1)))
    before = anonymous_kb()
    for i in range(27):
        if i % 9:
            with pytest.raises(fastbatch.SampleError):
                net.forward()
        else:
            net.forward()
        assert anonymous_kb() - before < 8 * 1024


def test_an_error_while_nobody_waits_stands_in_stats(build, tmp_path):
    path = write_lmdb(tmp_path / "db", [*RECORDS[:3], b"\xff", *RECORDS[4:]])
    net = build(ours(params(path, 2)))
    deadline = time.monotonic() + 30
    while net.layers[0].stats()["errors"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert "sample 3 (key '00000003'): the record is not a Datum" in net.layers[0].stats()["last_error"]
    found = outcomes(net, 3)
    assert found[0] == [0, 1] and found[1].index == 3 and found[2] == [4, 5]


def test_an_error_while_forward_waits(build, tmp_path):
    """The batch takes a while, and its last sample is a bad one."""
    slow = slow_lmdb(tmp_path / "db", [0] * 30 + [1], megabytes=1)
    with fastbatch.LMDBSource(slow) as source:
        assert len(source) == 31
    write_bad(slow, b"00000029")
    net = build(ours(params(slow, 30) + "threads: 1"))
    assert net.layers[0].stats()["errors"] == 0
    with pytest.raises(fastbatch.SampleError) as caught:
        net.forward()
    assert caught.value.index == 29 and net.layers[0].stats()["waited_for_data"] > 0
    net.forward()
    assert net.blobs["label"].data.tolist() == [1] + 29 * [0]


def write_bad(path, key):
    """Replaces one record of a database by what is no Datum."""
    with LMDB(path, map_size=2**30) as database:
        assert key in dict(database.items())
        database.put([(key, b"\xff")])


def test_after_every_refusal_a_right_net_works(build, good, tmp_path):
    for _ in range(20):
        with pytest.raises(ValueError):
            build(ours(params(good, 0)))
        with pytest.raises(OSError):
            build(ours(params(tmp_path / "missing", 1)))
    assert labels(build, ours(params(good, 4)), 3) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2]


# Processes

NET = """
    import os, signal, sys
    import caffe
    from nets import *

    def build(param_str):
        with open("net.prototxt", "w") as file:
            file.write(ours(param_str))
        return caffe.Net("net.prototxt", caffe.TRAIN)
"""


def test_the_process_forks_with_a_net(start, good):
    process = start(
        NET
        + f"""
    net = build(params("{good}", 2))
    net.forward()
    child = os.fork()
    if child == 0:
        for _ in range(2):
            try:
                net.forward()
            except RuntimeError as error:
                print(error, flush=True)
        for _ in range(2):
            print(labels(lambda text, phase: build(params("{good}", 3)), "", 3), flush=True)
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    for _ in range(8):
        net.forward()
        print(net.blobs["label"].data.astype(int).tolist())
    """
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == lines[1]
    assert "built before the process forked" in lines[0] and "build it after the fork" in lines[0]
    assert lines[2] == lines[3] == "[0, 1, 2, 3, 4, 5, 6, 7, 8]"
    assert lines[4:] == ["[2, 3]", "[4, 5]", "[6, 7]", "[8, 0]", "[1, 2]", "[3, 4]", "[5, 6]", "[7, 8]"]


def test_ctrl_c_while_forward_waits(start, tmp_path):
    """forward() raises KeyboardInterrupt; the net and its layer stay usable."""
    process = start(
        NET
        + f"""
    net = build(params("{slow_lmdb(tmp_path / "db", [5])}", 20000, more="prefetch: 1") + "threads: 1")
    try:
        print("waiting", flush=True)
        net.forward()
    except KeyboardInterrupt:
        print("interrupted", net.layers[0].stats()["ready"], flush=True)
    net.layers[0].close()
    print(native_threads(), open_files(".mdb"))
    """
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "interrupted 0\n[] []\n", "")


@pytest.mark.parametrize(
    "end",
    ["", "net.forward()", "del net", "net.layers[0].close()", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGINT)"],
)
def test_the_interpreter_exits_with_a_net_running(start, good, end):
    process = start(
        NET
        + f"""
    net = build(params("{good}", 2) + "threads: 4")
    net.forward()
    slow = build(params("{good}", 100000) + "threads: 4")
    {end}
    """
    )
    out, err = process.communicate(timeout=60)
    if "SIGINT" in end:
        assert process.returncode == -signal.SIGINT and err.splitlines()[-1] == "KeyboardInterrupt"
    else:
        assert (process.returncode, out, err) == (0, "", "")


def test_no_file_descriptor_is_left(start, good):
    process = start(
        NET
        + f"""
    import resource
    caffe.Net  # what has to be imported is
    net = build(params("{good}", 2))
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    open("again.prototxt", "w").write(ours(params("{good}", 2)))
    try:
        while True:
            taken.append(os.open("/", os.O_RDONLY))
    except OSError:
        pass
    os.close(taken.pop())  # Caffe opens the prototxt
    try:
        caffe.Net("again.prototxt", caffe.TRAIN)
    except OSError as error:
        print(error)
    """
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == "[Errno 24] Too many open files: a layer needs two file descriptors for a moment while it is set up\n"


# ---- on_error


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("write", [write_lmdb, write_leveldb])
def test_a_bad_record_is_replaced(build, tmp_path, monkeypatch, write, threads):
    """Another record takes its place, the same one for any number of threads. All others stay where they are."""
    said = []
    monkeypatch.setattr(caffe, "log", said.append, raising=False)
    path = write(tmp_path / "db", [*RECORDS[:5], b"no Datum", *RECORDS[6:]])
    net = build(ours(params(path, 2) + f'threads: {threads} on_error: "replace" error_budget: 0.5'))
    found = outcomes(net, 9)
    bad = found[2].pop(1), found[7].pop(0)
    assert found == [[0, 1], [2, 3], [4], [6, 7], [8, 0], [1, 2], [3, 4], [6], [7, 8]]
    assert bad == (6, 3)  # by the draws for its position in epochs 0 and 1
    logged = [line for line in said if "sample 5" in line]
    assert len(logged) == 2
    for batch, line in zip((2, 7), logged):
        assert line.startswith(f"{path}, sample 5 (key '00000005')")
        assert f"; another sample takes its place in batch {batch} of epoch " in line


def test_the_draws_of_the_others_stay(build, tmp_path):
    """A crop and a mirror are drawn for each record, in the order of Caffe's stream."""
    text = "crop_size: 3 mirror: true"
    shown = []
    for name, records in ("good", RECORDS), ("bad", [*RECORDS[:5], b"no Datum", *RECORDS[6:]]):
        path = write_lmdb(tmp_path / name, records)
        caffe.set_random_seed(3)
        net = build(ours(params(path, 3, text) + 'threads: 3 on_error: "replace"'))
        shown.append([])
        for _ in range(3):
            net.forward()
            shown[-1].append(net.blobs["data"].data.copy())
    good, bad = np.concatenate(shown[0]), np.concatenate(shown[1])
    same = [index for index in range(9) if index != 5]
    np.testing.assert_array_equal(good[same], bad[same])
    assert (good[5] != bad[5]).any()


def test_each_replaced_record_is_logged_once_and_then_counted(build, tmp_path, monkeypatch):
    """The ring names the first thousand errors."""
    said = []
    monkeypatch.setattr(caffe, "log", said.append, raising=False)
    path = write_lmdb(tmp_path / "db", [*RECORDS[:2], b"no Datum"] * 1200)
    net = build(ours(params(path, 100) + 'on_error: "replace"'))
    for _ in range(36):
        net.forward()
    named = [line for line in said if "takes its place" in line]
    assert named == [str(error) for error in net.layers[0]._ring.errors] and len(named) == 1000
    more = [int(re.match("([0-9]+) more samples were replaced", line)[1]) for line in said if "more samples" in line]
    assert 1000 + sum(more) == net.layers[0].stats()["replaced"] > 1200


def test_more_bad_records_than_the_budget(build, tmp_path):
    path = write_lmdb(tmp_path / "db", [RECORDS[0], *[b"no Datum"] * 3, *RECORDS[4:]])
    net = build(ours(params(path, 4) + 'on_error: "replace" error_budget: 2'))
    with pytest.raises(fastbatch.TooManyErrors, match="more than error_budget=2 allows"):
        net.forward()


@pytest.mark.parametrize(
    "options, words",
    [
        ('on_error: "skip"', 'on_error cannot be "skip" in a layer, because the batches of a net have a fixed size'),
        ('on_error: "drop"', 'on_error must be "raise" or "replace", not \'drop\''),
        ("error_budget: 3", 'error_budget has no effect with on_error="raise"'),
        ('on_error: "replace" error_budget: 1.5', "error_budget must be a number of samples, a share between 0 and 1"),
        ('on_error: "replace" error_budget: nan', "error_budget must be a number of samples, a share between 0 and 1"),
    ],
)
def test_policies_that_a_layer_does_not_have(build, tmp_path, options, words):
    path = write_lmdb(tmp_path / "db", RECORDS)
    assert_refused(build, ours(params(path, 2) + options), ValueError, path, words)
