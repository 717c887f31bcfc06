"""Bad input raises one exception, in place of its batch, with source, key and reason; everything stays usable."""

import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from children import native_threads, run_child
from databases import LMDB, datum, image_lmdb, images, varint, write_lmdb
from fastbatch import (
    ArraySource,
    Closed,
    DataTimeout,
    FastbatchError,
    LMDBSource,
    Loader,
    SampleError,
    SourceError,
    Transform,
)
from planned import PATIENCE, planned_loader, wait_until
from test_sources import as_nobody, descriptors_below


def outcomes(epoch):
    """What every batch of an epoch is: its keys, or its error."""
    found = []
    while True:
        try:
            found.append(next(epoch).sample_keys)
        except StopIteration:
            return found
        except SampleError as error:
            found.append(error)


# ---- when an error is raised


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "action, stage, reason",
    [
        ("l", "locate", "planned failure of locate"),
        ("r", "read", "planned failure of read"),
        ("s", "collate", "its data has shape (4), but the batch has (3), the shape of its first sample"),
    ],
)
def test_an_error_is_raised_once_at_its_turn(threads, action, stage, reason):
    with planned_loader("." * 7 + action + "." * 4, varying=True, batch_size=3, prefetch=5, threads=threads) as (
        _,
        loader,
    ):
        for epoch in range(3):
            first, second, error, last = outcomes(iter(loader))
            assert (first, second, last) == ([0, 1, 2], [3, 4, 5], [9, 10, 11])
            assert isinstance(error, SampleError) and isinstance(error, ValueError)
            assert (error.source, error.key, error.index, error.stage) == ("planned", 7, 7, stage)
            assert error.reason.startswith(reason)
            assert (error.epoch, error.batch) == (epoch, 2)
            assert str(error) == (
                f"planned, sample 7: {error.reason}. It failed in stage '{stage}'; batch 2 of epoch {epoch}, which "
                "holds it, is not delivered, and the next call gives the following batch."
            )
        wait_until(lambda: loader.stats().errors > 3)  # of the epochs ahead


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("action", ["l", "r"])
def test_an_error_at_every_place_of_a_batch(threads, place, action):
    plan = list("." * 12)
    plan[4 + place] = action
    with planned_loader("".join(plan), varying=True, batch_size=4, threads=threads) as (_, loader):
        first, error, last = outcomes(iter(loader))
        assert (first, error.index, last) == ([0, 1, 2, 3], 4 + place, [8, 9, 10, 11])


@pytest.mark.parametrize("threads", [2, 5])
def test_of_several_errors_in_a_batch_the_first_counts(threads):
    """It is the last to happen: its sample waits at the gate until all the others have failed."""
    with planned_loader("...Wrrlr...", batch_size=8, threads=threads, prefetch=1) as (source, loader):
        epoch = iter(loader)
        wait_until(lambda: source.waiting and source.reads >= 6)
        source.open_gate()
        error, rest = outcomes(epoch)
        assert (error.index, error.reason) == (3, "planned failure of read")
        assert rest == [8, 9, 10]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_batch_fails_and_none_hangs(threads):
    with planned_loader("rlrlrlrl", batch_size=2, threads=threads, prefetch=1) as (_, loader):
        for _ in range(20):
            assert [error.index for error in outcomes(iter(loader))] == [0, 2, 4, 6]
        assert loader.stats().samples == 0


def test_an_error_while_the_consumer_waits():
    with planned_loader(".W.", threads=1, prefetch=1) as (source, loader):
        epoch = iter(loader)
        assert next(epoch).sample_keys == [0]
        loader._timeout = 0
        with pytest.raises(DataTimeout):
            next(epoch)
        loader._timeout = PATIENCE
        source.open_gate()
        with pytest.raises(SampleError, match="planned, sample 1: planned failure of read"):
            next(epoch)
        assert next(epoch).sample_keys == [2]


def test_an_error_that_nobody_waits_for_stands_in_stats():
    with planned_loader("...r....", batch_size=2, prefetch=3, threads=2) as (_, loader):
        assert loader.stats().errors in (0, 1)
        wait_until(lambda: loader.stats().errors == 1)
        assert loader.stats().last_error == "planned, sample 3: planned failure of read. It failed in stage 'read'."
        first, error, third, fourth = outcomes(iter(loader))
        assert str(error).startswith(loader.stats().last_error[:-1])
        assert (first, error.index, third, fourth) == ([0, 1], 3, [4, 5], [6, 7])


def test_an_error_that_is_never_asked_for_does_not_disturb_close():
    with planned_loader("r" * 10, prefetch=3) as (_, loader):
        wait_until(lambda: loader.stats().errors == 4)
    assert "planned failure of read" in loader.stats().last_error


def test_a_sample_that_has_become_good_again():
    with planned_loader("." * 3 + "r" + "." * 36, prefetch=1, threads=2) as (source, loader):
        assert [error.index for error in outcomes(iter(loader)) if isinstance(error, SampleError)] == [3]
        source.change(3, ".")
        assert outcomes(iter(loader)) == [[index] for index in range(40)]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("action", ["f", "F"])
def test_a_lost_source_is_lost_for_good(threads, action):
    with planned_loader("...." + action + "...", batch_size=2, threads=threads) as (_, loader):
        epoch = iter(loader)
        assert [next(epoch).sample_keys, next(epoch).sample_keys] == [[0, 1], [2, 3]]
        words = "planned cannot be read any further: planned failure of (read|locate) \\(at sample 4\\)"
        for _ in range(3):
            with pytest.raises(SourceError, match=words):
                next(epoch)
        epoch.close()
        with pytest.raises(SourceError, match=words):
            next(iter(loader))


def test_sample_errors_can_be_pickled():
    with planned_loader(".r") as (_, loader):
        _, error = outcomes(iter(loader))
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, SampleError) and str(copy) == str(error) and copy.reason == error.reason


# ---- parameters


@pytest.mark.parametrize("name, most", [("batch_size", 2**31 - 1), ("prefetch", 2**16), ("threads", 4096)])
def test_counts_out_of_range(name, most):
    before = native_threads()
    for value in (0, -1, most + 1, 2**70):
        with pytest.raises(ValueError, match=f"{name} must be between 1 and {most}, not {value}"):
            Loader(np.arange(4), **{name: value})
    for value in (1.5, "2", True, [1], np.float32(1)):
        with pytest.raises(TypeError, match=f"{name} must be a whole number, not "):
            Loader(np.arange(4), **{name: value})
    assert native_threads() == before


@pytest.mark.parametrize("name", ["batch_size", "prefetch", "threads"])
def test_counts_of_numpys_types(name):
    with Loader(np.arange(4), **{name: np.int8(2)}) as loader:
        assert sum(len(batch) for batch in loader) == 4


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"seed": -1}, ValueError, "seed must be between 0 and 2**64 - 1, not -1"),
        ({"seed": 2**64}, ValueError, "seed must be between 0 and 2**64 - 1, not 18446744073709551616"),
        ({"seed": "7"}, TypeError, "seed must be a whole number, not '7'"),
        ({"seed": True}, TypeError, "seed must be a whole number, not True"),
        (
            {"timeout": -1},
            ValueError,
            "timeout must be seconds, 0 or more, or None to wait as long as it takes; not -1",
        ),
        (
            {"timeout": float("nan")},
            ValueError,
            "timeout must be seconds, 0 or more, or None to wait as long as it takes; not nan",
        ),
        (
            {"timeout": "soon"},
            TypeError,
            "timeout must be seconds, 0 or more, or None to wait as long as it takes; not 'soon'",
        ),
        ({"transform": {"crop_size": 3}}, TypeError, "transform must be a fastbatch.Transform or None, not dict"),
        (
            {"drop_last": True, "batch_size": 5},
            ValueError,
            "drop_last=True leaves no batch: the source has 4 samples, batch_size is 5",
        ),
        ({"shuffel": True}, TypeError, "Loader has no parameter shuffel: did you mean shuffle?"),
        ({"batchsize": 3}, TypeError, "did you mean batch_size?"),
        (
            {"colour": 3},
            TypeError,
            "its parameters are source, transform, batch_size, shuffle, seed, threads, prefetch, drop_last, timeout",
        ),
        ({"shuffle": [3, 2, 1]}, TypeError, "shuffle must be True or False, not [3, 2, 1]"),
        ({"shuffle": "False"}, TypeError, "shuffle must be True or False, not 'False'"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False, not 1"),
        ({"drop_last": "no"}, TypeError, "drop_last must be True or False, not 'no'"),
        ({"drop_last": None}, TypeError, "drop_last must be True or False, not None"),
        # PyTorch's
        (
            {"num_workers": 4},
            TypeError,
            "Loader has no parameter num_workers: samples are read by native threads of this process",
        ),
        ({"pin_memory": True}, TypeError, "pin_memory() copies one into pinned memory"),
        ({"collate_fn": list}, TypeError, "native threads put the samples side by side"),
        ({"sampler": [2, 1]}, TypeError, "shuffle=True gives a new order for each epoch, fixed by seed"),
        ({"batch_sampler": [[2, 1]]}, TypeError, "shuffle=True gives a new order for each epoch, fixed by seed"),
        ({"worker_init_fn": print}, TypeError, "threads=, by default one for each usable core"),
        ({"prefetch_factor": 2}, TypeError, "prefetch= is the number of batches prepared ahead"),
        ({"persistent_workers": True}, TypeError, "the threads of a loader live as long as it does"),
        ({"generator": None}, TypeError, "the order and the random crops are fixed by seed"),
    ],
)
def test_other_options(options, error, words):
    before = native_threads()
    with pytest.raises(error) as caught:
        Loader(np.arange(4), **options)
    assert words in str(caught.value)
    assert native_threads() == before


@pytest.mark.parametrize(
    "source, words",
    [
        (
            [1, 2, 3],
            "not list: make one array of its samples by numpy.asarray(), or say fastbatch.ArraySource(*arrays)",
        ),
        ([], "not list: make one array of its samples"),
        ([np.arange(3), np.arange(3)], "not list: make one array of its samples"),
        (
            [("cat.jpg", 0)],
            "not list: for pairs of a file's path and a label say fastbatch.ImageListSource(...) of this list",
        ),
        ([[Path("cat.jpg"), 0]], "say fastbatch.ImageListSource(...)"),
        (None, "not NoneType"),
        (7, "not int"),
        (
            (np.arange(3), np.arange(3), np.arange(3)),
            "not a tuple of 3: more than two arrays go into a dict, by their names",
        ),
        ((), "not a tuple of 0"),
    ],
)
def test_what_is_no_source(source, words):
    with pytest.raises(TypeError) as caught:
        Loader(source)
    assert str(caught.value).startswith(
        "source must be a source such as ArraySource or LMDBSource, an array, a tuple (data, label) or a dict"
    )
    assert words in str(caught.value)


# ---- arrays


@pytest.mark.parametrize("name", ["a\0b", "\udc80", "a\nb"])
def test_names_that_cannot_be_printed(name):
    with pytest.raises(
        ValueError, match="an array cannot have the name .*: it holds characters that cannot be printed"
    ):
        Loader({name: np.arange(3), "a": np.arange(3)})


def test_names_that_are_no_strings():
    with pytest.raises(
        TypeError, match="the dict of arrays has the key 1: keys are the arrays' names, and must be strings"
    ):
        Loader({1: np.arange(3)})


@pytest.mark.parametrize(
    "array, words",
    [
        (np.array(["a", "b"]), "elements of type <U1"),
        (np.array([1, None], dtype=object), "elements of type object"),
        (np.zeros(3, np.complex64), "elements of type complex64"),
        (np.zeros(3, "M8[s]"), "elements of type datetime64[s]"),
        (np.zeros(3, ">f4"), "elements of type >f4"),
        (np.zeros(3, [("x", "f4")]), "elements of type [('x', '<f4')]"),
    ],
)
def test_arrays_of_other_types(array, words):
    with pytest.raises(TypeError) as caught:
        ArraySource(image=array)
    assert str(caught.value).startswith("image has " + words)
    assert "uint8" in str(caught.value) and "float32" in str(caught.value) and "astype()" in str(caught.value)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({}, "0 arrays; an ArraySource has 1 to 16"),
        ({f"a{i}": np.arange(3) for i in range(17)}, "17 arrays; an ArraySource has 1 to 16"),
        (
            {"data": np.arange(3), "label": np.arange(4)},
            "the arrays have different numbers of samples: data has 3, label has 4",
        ),
        ({"data": np.empty((0, 3))}, "the arrays are empty; a loader needs at least one sample"),
        ({"data": np.float32(1)}, "data has shape (); it needs a first axis that counts samples"),
        ({"data": np.zeros((1,) * 9)}, "data has shape (1, 1, 1, 1, 1, 1, 1, 1, 1)"),
    ],
)
def test_arrays_that_do_not_fit(arrays, words):
    with pytest.raises(ValueError) as caught:
        ArraySource(**arrays)
    assert words in str(caught.value)


def test_an_array_given_twice():
    with pytest.raises(ValueError, match="the array 'data' is given twice, by position and by name"):
        ArraySource(np.arange(3), data=np.arange(3))


# ---- databases


def damaged(path, how):
    """A path that is no database that can be opened."""
    data = os.path.join(path, "data.mdb")
    if how == "missing":
        return path + "-nowhere"
    if how == "a file":
        return data
    if how == "an empty directory":
        os.makedirs(path + "-empty")
        return path + "-empty"
    size = os.path.getsize(data)
    with open(data, "r+b") as file:
        if how == "empty file":
            file.truncate(0)
        elif how == "text":
            file.write(b"label,path\n" * (size // 11))
        elif how == "another version":
            for page in (0, 4096):
                file.seek(page + 20)  # MDB_meta.mm_version, after the page's header and the magic number
                file.write(struct.pack("<I", 999))
        elif how == "half a header":
            file.truncate(100)
        elif how == "cut short":
            file.truncate(size // 2)
    if how == "a directory":
        os.unlink(data)
        os.mkdir(data)
    return path


@pytest.mark.parametrize(
    "how, words",
    [
        (
            "missing",
            "it has no data.mdb (No such file or directory); source must name the directory that convert_imageset",
        ),
        ("a file", "it has no data.mdb (Not a directory); source must name the directory"),
        ("an empty directory", "it has no data.mdb (No such file or directory); source must name the directory"),
        ("a directory", "Is a directory"),
        ("empty file", "data.mdb is empty"),
        ("text", "data.mdb is not an LMDB file"),
        ("half a header", "data.mdb is not an LMDB file"),
        ("another version", "it was written by another version of LMDB"),
        ("cut short", "it was cut short, by an interrupted copy perhaps"),
    ],
)
def test_databases_that_cannot_be_opened(tmp_path, how, words):
    path = damaged(image_lmdb(tmp_path / "db", 200)[0], how)
    for _ in range(2):
        with pytest.raises(SourceError) as caught:
            LMDBSource(path)
        assert str(caught.value).startswith(f"cannot open the LMDB database {path}: ")
        assert words in str(caught.value)
        assert isinstance(caught.value, OSError) and isinstance(caught.value, FastbatchError)
    assert descriptors_below(tmp_path) == []


def test_a_database_without_records(tmp_path):
    path = write_lmdb(tmp_path / "db", [])
    with pytest.raises(SourceError, match=f"the LMDB database {path} is empty; a loader needs at least one record"):
        LMDBSource(path)
    assert descriptors_below(tmp_path) == []


def test_a_database_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as directory:
        path, _ = image_lmdb(os.path.join(directory, "db"), 3)
        os.chmod(directory, 0o755)
        os.chmod(os.path.join(path, "data.mdb"), 0)
        with as_nobody(), pytest.raises(SourceError, match=f"cannot open the LMDB database {path}: Permission denied"):
            LMDBSource(path)
        assert descriptors_below(directory) == []


@pytest.mark.parametrize("path, error", [(7, TypeError), (None, TypeError), ("a\0b", ValueError), ("", SourceError)])
def test_what_is_no_path(path, error):
    with pytest.raises(error):
        LMDBSource(path)


def test_a_number_of_records_that_is_damaged(tmp_path):
    """It stands in both meta pages, without a checksum: so many addresses of 24 bytes are 8 bytes in 64 bits."""
    path, _ = image_lmdb(str(tmp_path / "db"), 5000)
    file = Path(path, "data.mdb")
    content = bytearray(file.read_bytes())
    for page in 0, 4096:
        at = content.find(struct.pack("<Q", 5000), page, page + 200)
        if at >= 0:
            content[at : at + 8] = struct.pack("<Q", (2**64 + 8) // 24)
    file.write_bytes(content)
    with pytest.raises(
        SourceError,
        match=f"{path}: data.mdb is damaged: it says that it has 768614336404564651 records, and has 5000; make",
    ):
        LMDBSource(path)
    with (
        LMDBSource(path, check=False) as source,
        pytest.raises(MemoryError, match="no memory for the addresses of 768614336404564651 "),
    ):
        Loader(source, batch_size=4, shuffle=True)


def shape(channels, height, width):
    return b"\x08" + varint(channels) + b"\x10" + varint(height) + b"\x18" + varint(width)


def data(size):
    return b"\x22" + varint(size) + bytes(size)


GOOD = datum(images(1, (3, 4, 5))[0], 1)
NOT_A_DATUM = "the record is not a Datum"

BAD_RECORDS = {
    "empty": (b"", NOT_A_DATUM),
    "text": (b"this is no Datum at all", NOT_A_DATUM),
    "a JPEG file": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(100), NOT_A_DATUM),
    "zeros": (bytes(60), NOT_A_DATUM),
    "cut in the data": (GOOD[:-10], NOT_A_DATUM),
    "cut in a number": (shape(3, 4, 5)[:-1], NOT_A_DATUM),
    "a number without end": (b"\x08" + b"\xff" * 12, NOT_A_DATUM),
    "a length beyond the record": (shape(3, 4, 5) + b"\x22" + varint(2**40), NOT_A_DATUM),
    "floats that are no floats": (shape(1, 1, 1) + b"\x32\x03abc", NOT_A_DATUM),
    "no shape": (data(60), "the Datum has no pixels: its shape is 0 x 0 x 0"),
    "no channels": (shape(0, 4, 5) + data(60), "the Datum has no pixels: its shape is 0 x 4 x 5"),
    "negative height": (shape(3, -4, 5) + data(60), "the Datum has no pixels: its shape is 3 x -4 x 5"),
    "all negative": (shape(-3, -4, -5) + data(60), "the Datum has no pixels: its shape is -3 x -4 x -5"),
    "absurd": (shape(2**31 - 1, 2**31 - 1, 2**31 - 1) + data(60), "more than any Blob can hold"),
    "beyond an int": (shape(3, 30000, 30000) + data(60), "more than any Blob can hold (blob size exceeds INT_MAX)"),
    "large": (
        shape(3, 20000, 30000) + data(60),
        (
            "the Datum is truncated: its shape, 3 x 20000 x 30000 (channels, height, width), needs "
            "1800000000 values but its data holds 60"
        ),
    ),
    "short data": (
        shape(3, 4, 5) + data(59),
        "the Datum is truncated: its shape, 3 x 4 x 5 (channels, height, width), needs 60 values but its data holds 59",
    ),
    "no data": (shape(3, 4, 5), "needs 60 values but its data holds 0"),
    "short float_data": (
        shape(3, 4, 5) + b"\x32" + varint(236) + bytes(236),
        "needs 60 values but its float_data holds 59",
    ),
    "encoded, but no image": (
        shape(3, 4, 5) + data(60) + b"\x38\x01",
        "neither JPEG nor PNG: its 60 bytes begin with 00 00",
    ),
    "encoded, of no bytes": (shape(3, 4, 5) + b"\x38\x01", "the Datum holds an encoded image of no bytes"),
    "encoded, truncated": (b"\x22\x04\xff\xd8\xff\xe0\x38\x01", "the JPEG image is truncated"),
}


@pytest.mark.parametrize("case", list(BAD_RECORDS))
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("transform", [None, Transform(scale=2)])
def test_records_that_cannot_be_read(tmp_path, case, shuffle, transform):
    record, reason = BAD_RECORDS[case]
    path = write_lmdb(tmp_path / "db", [(b"a", GOOD), (b"b\xff", record), (b"c", GOOD)])
    with LMDBSource(path) as source, Loader(source, transform, shuffle=shuffle, timeout=PATIENCE) as loader:
        for epoch in range(2):
            found = outcomes(iter(loader))
            errors = [error for error in found if isinstance(error, SampleError)]
            assert sorted(keys for keys in found if keys not in errors) == [[b"a"], [b"c"]]
            (error,) = errors
            stage = "decode" if reason.startswith(("neither", "the JPEG")) else "read"
            assert (error.source, error.key, error.index, error.stage) == (path, b"b\xff", 1, stage)
            assert (error.epoch, error.batch) == (epoch, found.index(error))
            assert reason in error.reason
            assert str(error).startswith(f"{path}, sample 1 (key 'b\\xff'): {error.reason}")


def test_a_byte_behind_a_whole_datum_is_ignored(tmp_path):
    """As in Caffe, which ignores protobuf's result. Without a label, the record is refused."""
    path = write_lmdb(tmp_path / "db", [GOOD + b"\0", GOOD + b"\xff\xff", shape(1, 1, 2) + data(2) + b"\0"])
    with LMDBSource(path) as source, Loader(source, timeout=PATIENCE) as loader:
        *good, error = outcomes(iter(loader))
        assert good == [[b"00000000"], [b"00000001"]]
        assert (error.index, NOT_A_DATUM in error.reason) == (2, True)


def test_a_source_whose_init_was_not_called():
    source = LMDBSource.__new__(LMDBSource)
    with pytest.raises(RuntimeError, match="a LMDBSource was made without a path: its __init__ was not called"):
        source.shape
    with pytest.raises(Closed):
        Loader(source)
    assert (len(source), repr(source)) == (0, "LMDBSource(None)")
    source.close()


def test_a_first_record_that_cannot_be_read_is_an_error_of_its_batch(tmp_path):
    path = write_lmdb(tmp_path / "db", [b"nonsense", GOOD, GOOD])
    with LMDBSource(path) as source:
        with pytest.raises(SampleError, match=f"{path}, sample 0 \\(key '00000000'\\): the record is not a Datum"):
            source.shape
        with Loader(source, timeout=PATIENCE) as loader:
            for _ in range(2):
                error, *rest = outcomes(iter(loader))
                assert (error.index, error.key, rest) == (0, b"00000000", [[b"00000001"], [b"00000002"]])


def test_no_memory_is_asked_for_on_a_records_word_alone():
    """Records that claim 1.8 GB are refused as damaged, in a process limited to less than half of that."""
    run_child("""
        import resource, tempfile
        from databases import write_lmdb
        from test_bad_input import BAD_RECORDS, GOOD, shape
        from fastbatch import LMDBSource, Loader, SampleError, Transform
        claims = [BAD_RECORDS["large"][0], shape(1, 40000, 40000) + b"\\x32" + b"\\x04" + bytes(4)]
        with tempfile.TemporaryDirectory() as directory:
            path = write_lmdb(directory, [*claims, GOOD])
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
            with LMDBSource(path) as source:
                for transform in (None, Transform(crop_size=2)):
                    for batch_size in (1, 3):
                        with Loader(source, transform, batch_size=batch_size, threads=1, prefetch=1) as loader:
                            try:
                                next(iter(loader))
                            except SampleError as error:
                                assert "the Datum is truncated" in error.reason, error
                            else:
                                raise AssertionError("a batch came")
    """)


def test_memory_that_cannot_be_had_is_an_error_of_its_batch():
    run_child("""
        import resource
        import numpy as np
        from fastbatch import Loader, SampleError
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
        large = np.broadcast_to(np.float32(1), (2**10, 2**20))
        with Loader(large, batch_size=2**10, threads=1, prefetch=1) as loader:
            try:
                next(iter(loader))
            except SampleError as error:
                assert "no memory for a batch of 1024 such samples (Cannot allocate memory)" in error.reason, error
            else:
                raise AssertionError("a batch came")
        with Loader(large, batch_size=4, threads=1, prefetch=1) as loader:
            assert next(iter(loader)).data.sum() == 2**22
    """)


# ---- shapes and transforms


def test_shapes_that_change_inside_a_batch(tmp_path):
    sizes = [(3, 8, 9), (3, 8, 9), (3, 8, 9), (3, 9, 8), (3, 5, 5), (3, 5, 5)]
    path = write_lmdb(tmp_path / "db", [datum(images(1, size)[0], 0) for size in sizes])
    with LMDBSource(path) as source, Loader(source, batch_size=2, timeout=PATIENCE) as loader:
        for _ in range(2):
            first, error, last = outcomes(iter(loader))
            assert (first, last) == ([b"00000000", b"00000001"], [b"00000004", b"00000005"])
            assert (error.key, error.stage) == (b"00000003", "collate")
            assert error.reason.startswith(
                "its data has shape (3, 9, 8), but the batch has (3, 8, 9), the shape of its first sample"
            )
            assert error.reason.endswith(
                "; use crop_size, a batch size of 1, or samples of one shape (images of a list: size=, or new_height "
                "and new_width)"
            )
    crop = Transform(crop_size=5)
    with LMDBSource(path) as source, Loader(source, crop, batch_size=6, timeout=PATIENCE) as loader:
        assert next(iter(loader)).data.shape == (6, 3, 5, 5)


def test_a_type_that_changes_inside_a_database(tmp_path):
    records = [datum(images(1, dtype=dtype)[0], 0) for dtype in (np.uint8, np.float32, np.uint8)]
    path = write_lmdb(tmp_path / "db", records)
    with LMDBSource(path) as source:
        with Loader(source, timeout=PATIENCE) as loader:
            first, error, last = outcomes(iter(loader))
            assert (first, last) == ([b"00000000"], [b"00000002"])
            assert error.key == b"00000001" and "its data is of another type than the first sample's" in error.reason
        with Loader(source, Transform(), batch_size=3, timeout=PATIENCE) as loader:
            assert next(iter(loader)).data.dtype == np.float32


def mean_file(path, *dims, values=None):
    """A BlobProto of this shape, as compute_image_mean writes it."""
    count = int(np.prod(dims)) if values is None else values
    packed = b"".join(map(varint, dims))
    blob = (
        b"\x3a"
        + varint(2 + len(packed))
        + b"\x0a"
        + varint(len(packed))
        + packed
        + b"\x2a"
        + varint(4 * count)
        + bytes(4 * count)
    )
    path.write_bytes(blob)
    return str(path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"crop_size": 9}, "the image, 3 x 8 x 9 (channels, height, width), is smaller than crop_size 9"),
        ({"crop_size": 10**9, "phase": "TEST"}, "is smaller than crop_size 1000000000"),
        ({"mean_value": (1, 2)}, "Specify either 1 mean_value or as many as channels: 3 (there are 2)"),
        ({"mean_value": (1, 2, 3, 4)}, "Specify either 1 mean_value or as many as channels: 3 (there are 4)"),
        (
            {"mean_file": (1, 3, 8, 8)},
            "the mean image is 3 x 8 x 8 (channels, height, width) but the image, before cropping, is 3 x 8 x 9",
        ),
        (
            {"mean_file": (1, 1, 8, 9), "crop_size": 4},
            "the mean image is 1 x 8 x 9 (channels, height, width) but the image",
        ),
    ],
)
def test_transforms_that_do_not_fit_the_image(tmp_path, options, words):
    if "mean_file" in options:
        options = {**options, "mean_file": mean_file(tmp_path / "mean.binaryproto", *options["mean_file"])}
    path = write_lmdb(tmp_path / "db", [datum(images(1, (3, 8, 9))[0], 0), datum(images(1, (3, 8, 9))[0], 0)])
    with LMDBSource(path) as source, Loader(source, Transform(**options), timeout=PATIENCE) as loader:
        errors = outcomes(iter(loader))
        assert [error.key for error in errors] == [b"00000000", b"00000001"]
        for error in errors:
            assert error.source == path and words in error.reason


def refusal(arrays, **options):
    """The error with which a loader refuses to transform these arrays, before it starts a thread."""
    before = native_threads()
    with pytest.raises((TypeError, ValueError)) as caught:
        Loader(arrays, Transform(**options))
    assert native_threads() == before
    return f"{caught.type.__name__}: {caught.value}"


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.float16, bool], ids=lambda dtype: np.dtype(dtype).name)
def test_arrays_of_types_that_no_transform_takes(dtype):
    data = np.zeros((4, 3, 8, 9), dtype)
    assert refusal((data, np.arange(4))) == (
        f"TypeError: data is {data.dtype}, and a transform takes uint8 or float32: convert it with "
        f"astype(numpy.float32)"
    )


@pytest.mark.parametrize("ndim", [0, 1, 4])
def test_arrays_that_are_no_images(ndim):
    assert refusal(np.zeros((2, *[3] * ndim), np.uint8)) == (
        "ValueError: the transform does not fit data: an image has 3 dimensions (channels, height, width) or 2 "
        f"(height, width), this one has {ndim}"
    )


@pytest.mark.parametrize(
    "shape, options, words, looks_last",
    [
        (
            (8, 9, 3),
            {"mean_value": (1, 2, 3)},
            "Specify either 1 mean_value or as many as channels: 8 (there are 3)",
            True,
        ),
        (
            (28, 28, 1),
            {"crop_size": 24},
            "the image, 28 x 28 x 1 (channels, height, width), is smaller than crop_size 24",
            True,
        ),
        ((8, 9, 4), {"crop_size": 5}, "is smaller than crop_size 5", True),
        ((8, 9, 3), {"mean_file": (1, 3, 8, 9)}, "the mean image is 3 x 8 x 9", True),
        (
            (3, 8, 9),
            {"mean_value": (1, 2)},
            "Specify either 1 mean_value or as many as channels: 3 (there are 2)",
            False,
        ),
        ((3, 8, 3), {"crop_size": 5}, "is smaller than crop_size 5", False),
        ((8, 9, 2), {"crop_size": 5}, "is smaller than crop_size 5", False),
        ((9, 3), {"crop_size": 5}, "is smaller than crop_size 5", False),
        ((3, 0, 3), {}, "the image has no pixels", False),
    ],
)
def test_arrays_that_a_transform_does_not_fit(tmp_path, shape, options, words, looks_last):
    if "mean_file" in options:
        options = {"mean_file": mean_file(tmp_path / "mean.binaryproto", *options["mean_file"])}
    data = np.zeros((2, *shape), np.float32)
    said = refusal({"label": np.arange(2), "data": data}, **options)
    assert said.startswith("ValueError: the transform does not fit data: ") and words in said
    hint = "; the array looks like n x height x width x channels: use images.transpose(0, 3, 1, 2)"
    assert said.endswith(hint) == looks_last
    if looks_last:
        with Loader(data.transpose(0, 3, 1, 2), Transform(**options)) as loader:
            assert len(outcomes(iter(loader))) == 2


@pytest.mark.parametrize("options", [{"mirror": True}, {"crop_size": 2}], ids=str)
def test_channels_at_the_end_and_a_transform_that_moves_pixels(options):
    """Without a crop, the array was taken for 8 channels of 9 x 3 pixels.

    Red and blue were silently exchanged in one image of two.
    """
    said = refusal(np.zeros((2, 8, 9, 3), np.uint8), **options)
    assert said.startswith(
        "ValueError: a transform crops and mirrors images of channels x height x width; the array looks like n x height"
    )
    for shape in (3, 8, 9), (10, 3, 3), (8, 9, 5):  # the last two are odd, but who knows
        with Loader(np.zeros((2, *shape), np.uint8), Transform(**options)) as loader:
            assert len(outcomes(iter(loader))) == 2
    with Loader(np.ones((2, 8, 9, 3), np.uint8), Transform(scale=2)) as loader:  # no pixel moves
        assert (next(iter(loader)).data == 2).all()


@pytest.mark.parametrize("options", [{"mirror": True}, {"crop_size": 4}], ids=str)
@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 9), (8, 9, 1), (4, 4, 4)], ids=str)
def test_images_beside_data_that_a_transform_would_leave_as_they_are(shape, options):
    """A mask was neither cropped nor mirrored with its image, without a word."""
    arrays = {"data": np.zeros((2, 3, 8, 9), np.uint8), "mask": np.zeros((2, *shape), np.uint8), "label": np.arange(2)}
    said = refusal(arrays, **options)
    assert said.startswith(
        "ValueError: the transform crops or mirrors data, and data only: mask, whose samples have shape "
    )
    assert "Leave crop_size and mirror out and do both in your loop, or make mask further channels of data" in said
    with Loader(arrays, Transform(scale=2)) as loader:
        assert [array.shape for array in next(iter(loader)).values()] == [(1, 3, 8, 9), (1, *shape), (1,)]


def test_fields_that_are_no_images_may_stand_beside_a_transform():
    arrays = {
        "data": np.zeros((2, 3, 8, 9), np.uint8),
        "boxes": np.zeros((2, 5, 4)),
        "name": np.zeros((2, 9)),
        "label": np.arange(2),
    }
    with Loader(arrays, Transform(crop_size=4, mirror=True)) as loader:
        assert next(iter(loader)).shapes == {"data": (1, 3, 4, 4), "boxes": (1, 5, 4), "name": (1, 9), "label": (1,)}


def test_masked_arrays():
    """Their mask was lost: what it hides arrived in batches."""
    masked = np.ma.masked_equal([1, -9999, 3], -9999)
    for arrays in masked, (np.arange(3), masked), {"data": np.arange(3), "weight": masked}:
        with pytest.raises(TypeError, match=r"is a masked array, and batches have no mask: .* with \w+\.filled"):
            Loader(arrays)
    with Loader(masked.filled(0), batch_size=3) as loader:
        assert next(iter(loader)).data.tolist() == [1, 0, 3]


def test_paths_are_no_sources(tmp_path):
    """It says which source reads what is there."""
    said = {}
    for name in "lmdb/data.mdb", "leveldb/CURRENT", "folder/a.jpg", "train.txt", "a.npy", "a.npz", "a.h5":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (
        "lmdb",
        "lmdb/data.mdb",
        "leveldb",
        "folder",
        "folder/a.jpg",
        "train.txt",
        "a.npy",
        "a.npz",
        "a.h5",
        "none",
    ):
        path = str(tmp_path / name)
        for source in path, Path(path), path.encode():
            with pytest.raises(TypeError) as caught:
                Loader(source)
            said[name] = str(caught.value).replace(str(tmp_path), "...")
            assert said[name].startswith("source must be a source, not a path: ")
    ends = {name: words.split("path: ", 1)[1] for name, words in said.items()}
    assert ends["lmdb"] == ends["lmdb/data.mdb"] == "for the database say fastbatch.LMDBSource('.../lmdb')"
    assert ends["leveldb"] == "for the database say fastbatch.LevelDBSource('.../leveldb')"
    assert "say fastbatch.ImageListSource of a list of pairs (path, label)" in ends["folder"]
    assert ends["folder/a.jpg"] == "for image files say fastbatch.ImageListSource([('.../folder/a.jpg', label), ...])"
    assert (
        ends["train.txt"]
        == "for a list of image files, a line for each, say fastbatch.ImageListSource('.../train.txt')"
    )
    assert ends["a.npy"].startswith("give the array: numpy.load('.../a.npy', mmap_mode='r')")
    assert ends["a.npz"] == "give the arrays: dict(numpy.load('.../a.npz'))"
    assert ends["a.h5"].startswith("give the arrays, such as h5py.File('.../a.h5')['data'][:]")
    assert ends["none"].startswith("there is no .../none, either")


def test_mean_value_and_mean_file_together(tmp_path):
    with pytest.raises(ValueError, match="Cannot specify mean_file and mean_value at the same time"):
        Transform(mean_value=3, mean_file=mean_file(tmp_path / "mean.binaryproto", 1, 3, 8, 9))


@pytest.mark.parametrize(
    "case, error, words",
    [
        ("missing", FileNotFoundError, "File not found"),
        ("empty", ValueError, "the file is empty"),
        ("text", ValueError, "it is not a binaryproto file"),
        ("cut", ValueError, "truncated or corrupt"),
        ("3-D", ValueError, "the blob in it is (3, 8, 9), expected (1, C, H, W)"),
        ("two images", ValueError, "the blob in it is (2, 3, 8, 9), expected (1, C, H, W)"),
        ("too few values", ValueError, "its shape, (1, 3, 8, 9), needs 216 values but it holds 215"),
        ("absurd", ValueError, "impossible shape"),
    ],
)
def test_mean_files_that_are_none(tmp_path, case, error, words):
    path = tmp_path / "mean.binaryproto"
    if case == "empty":
        path.write_bytes(b"")
    elif case == "text":
        path.write_bytes(b"data_mean: 104\n")
    elif case == "cut":
        mean_file(path, 1, 3, 8, 9)
        path.write_bytes(path.read_bytes()[:-5])
    elif case == "3-D":
        mean_file(path, 3, 8, 9)
    elif case == "two images":
        mean_file(path, 2, 3, 8, 9)
    elif case == "too few values":
        mean_file(path, 1, 3, 8, 9, values=215)
    elif case == "absurd":
        mean_file(path, 1, 2**31, 2**31, 2**31, values=3)
    with pytest.raises(error) as caught:
        Transform(mean_file=path)
    assert str(path) in str(caught.value) and "mean_file" in str(caught.value) and words in str(caught.value)


# ---- a database that is damaged where nobody looks at first


def test_a_damaged_page_is_an_error_and_not_a_crash(tmp_path):
    """Pages are overwritten: whatever LMDB reads, no process dies, and the errors name the source."""
    path, _ = image_lmdb(tmp_path / "db", 300, (1, 4, 4))
    with LMDB(path, readonly=True) as database:
        assert database.stat().leaf_pages > 3
    with open(os.path.join(path, "data.mdb"), "r+b") as file:
        pages = os.path.getsize(os.path.join(path, "data.mdb")) // 4096
        for page in range(2, pages):
            file.seek(4096 * page + 16)
            if page % 3 == 0:
                file.write(b"\x00" * 4080)
    out = run_child(f"""
        from fastbatch import LMDBSource, Loader, SampleError, SourceError
        good = bad = 0
        try:
            with LMDBSource({path!r}) as source, Loader(source, timeout=20) as loader:
                epoch = iter(loader)
                while True:
                    try:
                        next(epoch)
                        good += 1
                    except SampleError as error:
                        assert error.source == {path!r}
                        bad += 1
                    except StopIteration:
                        break
        except SourceError as error:
            assert {path!r} in str(error), error
            bad += 1
        print(good, bad)
    """)
    _good, bad = map(int, out.split())
    assert bad >= 1
