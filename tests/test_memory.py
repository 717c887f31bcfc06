"""Memory: a batch allocates none, and many batches and loaders leak none."""

import os
from pathlib import Path

import numpy as np
import pytest

import datasets
from children import run_child
from databases import datum, image_lmdb, images, write_lmdb
from fastbatch import LMDBSource, Loader, PythonSource, _build_info
from planned import compile_c

pytestmark = [
    pytest.mark.skipif("sanitizer" in _build_info.MODE, reason="sanitizers have their own memory"),
    pytest.mark.skipif("debug" in _build_info.MODE, reason="tracing allocates"),
]

PRELUDE = """
import gc, os, resource, sys
import numpy as np
from children import anonymous_memory, native_threads
PATH = {path!r}

def make(kind, **options):
    "A loader of something that needs no anonymous memory of its own: 32 images of 3 x 64 x 64."
    from fastbatch import LMDBSource, Loader, Transform
    transform = Transform(crop_size=50, mirror=True, mean_value=(104, 117, 123), scale=0.5)
    if kind == "arrays":
        return Loader((np.broadcast_to(np.uint8(7), (32, 3, 64, 64)), np.arange(32)), transform, **options)
    if kind == "arrays as they are":
        return Loader(np.broadcast_to(np.uint8(7), (32, 3, 64, 64)), **options)
    return Loader(LMDBSource(PATH + "/" + kind), transform, shuffle=True, **options)

def run(loader, batches):
    "Takes so many batches, with their arrays, over as many epochs as it needs."
    while batches > 0:
        for batch in loader:
            data = batch["data"]
            label = batch["label"] if "label" in batch else None
            batches -= 1
            if batches == 0:
                break
"""

KINDS = ["arrays", "arrays as they are", "uint8", "float", "float in pieces"]


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """The directory that holds a database of each kind."""
    directory = tmp_path_factory.mktemp("databases")
    image_lmdb(directory / "uint8", 32, (3, 64, 64))
    image_lmdb(directory / "float", 32, (3, 64, 64), np.float32)
    pieces = []
    for picture in images(32, (3, 64, 64), np.float32):  # has to be gathered before it can be read
        whole = datum(picture, 0, packed=True)
        values = picture.tobytes()
        pieces.append(
            whole[: whole.index(b"\x32")]
            + b"".join(b"\x32\x80\x40" + values[i : i + 8192] for i in range(0, len(values), 8192))
        )
    write_lmdb(directory / "float in pieces", pieces)
    return str(directory)


def child(databases, text, *flags, **more):
    return run_child(PRELUDE.format(path=databases) + text, *flags, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_no_native_allocation_for_a_batch(databases, kind):
    """Counted by an interposed malloc. Python's small objects come from its pools, which no longer grow by then."""
    counter = compile_c(Path(__file__).with_name("support") / "malloc_counter.c")
    out = child(
        databases,
        f"""
import ctypes
program = ctypes.CDLL(None)
counting = ctypes.c_int.in_dll(program, "counting")
by_main_thread = ctypes.c_long.in_dll(program, "by_main_thread")
by_other_threads = ctypes.c_long.in_dll(program, "by_other_threads")
loader = make({kind!r}, batch_size=8, threads=2, prefetch=3)
run(loader, 200)
while min(len(trace) for trace in loader._ring.traces()) < 100:  # a thread that was not running takes memory once
    run(loader, 20)
gc.collect()
gc.freeze()
counting.value = 1
run(loader, 500)
counting.value = 0
print(by_main_thread.value, by_other_threads.value)
counting.value = 1
kept = [bytearray(1000) for _ in range(100)]
counting.value = 0
print(by_main_thread.value)
loader.close()
""",
        LD_PRELOAD=counter,
    )
    by_main_thread, by_workers, with_bytearrays = map(int, out.split())
    assert by_workers == 0
    assert by_main_thread < 10, "in 500 batches: a pool of Python's that grew"
    assert with_bytearrays >= by_main_thread + 100, "the counter counts"


@pytest.mark.parametrize("kind", ["arrays", "uint8"])
def test_no_page_fault_for_a_batch(databases, kind):
    out = child(
        databases,
        f"""
loader = make({kind!r}, batch_size=32, threads=2, prefetch=3)
run(loader, 100)
before = resource.getrusage(resource.RUSAGE_SELF)
run(loader, 500)
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_minflt - before.ru_minflt, after.ru_majflt - before.ru_majflt)
""",
    )
    minor, major = map(int, out.split())
    assert major == 0
    assert minor < 50, "in 500 batches of 250 pages each"


def test_a_worker_process_keeps_what_samples_free(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    assert faults_of_a_sample() < 150, "of the 1536 pages that a sample needs"


def test_a_worker_process_leaves_settings_of_malloc_to_the_environment(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert faults_of_a_sample() > 1000


def faults_of_a_sample():
    """The page faults of a worker process while it loads a sample, the first ones left out."""
    source = PythonSource(datasets.PageFaults(), workers=1, start_method="spawn")  # with the environment of now
    with Loader(source, batch_size=1, timeout=60) as loader:
        faults = [int(batch.data[0]) for batch in loader]
    return (faults[-1] - faults[10]) / (len(faults) - 11)


def test_python_objects_for_a_batch_are_few_and_freed(databases):
    """In blocks of Python's allocator: what a batch is, alone and with both its arrays, and what stays of it."""
    out = child(
        databases,
        """
from array import array
loader = make("arrays", batch_size=8, threads=2, prefetch=3)
run(loader, 100)
gc.collect()
gc.disable()
count = sys.getallocatedblocks
blocks = array("q", [0] * 4)  # counting itself leaves no block behind
epoch = iter(loader)
for _ in range(3):
    blocks[0] = count()
    batch = next(epoch)
    blocks[1] = count()
    batch["data"], batch["label"]
    blocks[2] = count()
    batch = None
    blocks[3] = count()
    print(blocks[1] - blocks[0], blocks[2] - blocks[0], blocks[3] - blocks[0])
epoch.close()
run(loader, 10)
blocks[0] = count()
run(loader, 1000)
blocks[1] = count()
print(blocks[1] - blocks[0])
""",
    )
    _, *rows, grown = out.splitlines()  # the first row has what Python makes once
    for row in rows:
        batch, with_arrays, left = map(int, row.split())
        assert 2 <= batch <= 5  # a Batch, a Lease, and the dict of arrays that have been asked for
        assert with_arrays <= 20  # for each array: Field, memoryview, array and what NumPy keeps beside it
        assert left == 0
    assert abs(int(grown)) < 30  # in 1,000 batches


@pytest.mark.parametrize("kind", ["arrays", "uint8", "float in pieces"])
def test_anonymous_memory_is_the_ring_and_a_little(databases, kind):
    out = child(
        databases,
        f"""
bare = anonymous_memory()
loader = make({kind!r}, batch_size=128, threads=2, prefetch=7)
ring = 8 * 128 * (3 * 50 * 50 * 4 + 8)
run(loader, 100)
settled = anonymous_memory()
run(loader, 1000)
print(bare, ring, settled, anonymous_memory())
""",
    )
    bare, ring, settled, after = map(int, out.split())
    assert after - bare <= ring + 64 * 2**20
    assert after - settled < 2**20, "over 1,000 batches"


OPENED = {
    "closed": """
def once(number):
    loader = make(kind, batch_size=2, threads=2, prefetch=1)
    next(iter(loader))
    loader.close()
""",
    "closed by with": """
def once(number):
    with make(kind, batch_size=2, threads=2, prefetch=1) as loader:
        for batch in loader:
            break
""",
    "dropped": """
def once(number):
    next(iter(make(kind, batch_size=2, threads=2, prefetch=1)))
""",
    "dropped at once": """
def once(number):
    make(kind, batch_size=2, threads=2, prefetch=1)
""",
    "failed": """
def once(number):
    loader = make(kind, batch_size=2, threads=2, prefetch=1)
    loader._ring.close()
    try:
        next(iter(loader))
    except RuntimeError:
        pass
    try:
        make(kind, batch_size=100, last_batch="drop")
    except ValueError:
        pass
""",
}


@pytest.mark.parametrize(
    "how, kind, many",
    [
        ("closed", "arrays", 1000),
        ("closed", "uint8", 1000),
        ("closed by with", "uint8", 200),
        ("dropped", "uint8", 200),
        ("dropped at once", "arrays", 200),
        ("failed", "arrays", 200),
    ],
)
def test_nothing_is_left_of_many_loaders(databases, how, kind, many):
    """Memory, threads and open files stay as they are."""
    out = child(
        databases,
        f"kind, many = {kind!r}, {many}\n{OPENED[how]}"
        """
def state():
    return anonymous_memory(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

print(*state())
for number in range(100):
    once(number)
gc.collect()
first = state()
for number in range(many):
    once(number)
gc.collect()
print(*first)
print(*state())
""",
    )
    bare, settled, after = [[int(number) for number in line.split()] for line in out.splitlines()]
    assert bare[1:] == settled[1:] == after[1:]  # threads and files
    assert after[0] - settled[0] < 2**20  # bytes. The allocators take half of that at a time, at some moment or other.


def test_an_array_that_is_kept_keeps_its_own_batch_only():
    """Of a ring of 64 MB that was closed, 1 MB stays with the array, and goes with it."""
    out = run_child("""
import numpy as np
from children import anonymous_memory
from fastbatch import Loader
bare = anonymous_memory()
loader = Loader(np.broadcast_to(np.float32(1), (256, 256 * 256)), batch_size=4, prefetch=63, threads=2)
array = next(iter(loader)).data
while loader.stats().ready < 63:
    pass
full = anonymous_memory()
loader.close()
kept = anonymous_memory()
assert array.sum() == 4 * 65536
del array
print(full - bare, kept - bare, anonymous_memory() - bare)
""")
    full, kept, after = map(int, out.split())
    assert full >= 60 * 2**20  # the kernel counts with a little delay
    assert kept < 8 * 2**20
    assert after < kept - 2**19


SMALL_SAMPLES = """
import numpy as np
from children import anonymous_memory
from fastbatch import LMDBSource, Loader
source = {source}
bare = anonymous_memory()
loader = Loader(source, batch_size={batch_size}, prefetch=3, threads=2)
for epoch in range(3):
    for batch in loader:
        keys = {keys}
del batch, keys
print(anonymous_memory() - bare)
"""
COUNT = 65536


def test_small_samples_cost_what_they_hold_and_16_bytes():
    """Of 65,536 samples in a batch, 24 bytes each."""
    source = f"np.broadcast_to(np.float32(1), ({3 * COUNT}, 6))"
    assert int(run_child(SMALL_SAMPLES.format(source=source, batch_size=COUNT, keys=None))) < 12 * 2**20


def test_keys_cost_what_they_take(tmp_path):
    """8 bytes each, and none where nobody has any."""
    write_lmdb(tmp_path, [datum(np.zeros((1, 2, 3), np.uint8), label) for label in range(COUNT // 2)])
    source = f"LMDBSource({str(tmp_path)!r})"
    grown = run_child(SMALL_SAMPLES.format(source=source, batch_size=COUNT // 2, keys="batch.sample_keys[-1]"))
    assert int(grown) < 16 * 2**20


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_keys_of_any_length(tmp_path, batch_size):
    """From 1 byte to LMDB's longest, 511, in any order: those of a batch share their memory."""
    lengths = np.random.RandomState(0).randint(1, 508, 3000)
    keys = sorted(b"%04d" % number + b"k" * int(length) for number, length in enumerate(lengths))
    write_lmdb(tmp_path, [(key, datum(np.zeros((1, 1, 1), np.uint8), 0)) for key in keys])
    with LMDBSource(tmp_path) as source, Loader(source, batch_size=batch_size, threads=4) as loader:
        for _ in range(2):
            assert [key for batch in loader for key in batch.sample_keys] == keys


def test_one_large_record_is_not_paid_for_ever():
    """256 MB in the first of many records: memory that the source requests in locate() and in read()."""
    out = run_child("""
from children import anonymous_memory
from fastbatch import Loader
from third_party import ThirdParty
source = ThirdParty(400)
source.native.scratch = 2**28
bare = anonymous_memory()
with Loader(source, batch_size=4, threads=2) as loader:
    batches = iter(loader)
    next(batches)
    large = anonymous_memory()
    for batch in batches:
        pass
    print(large - bare, anonymous_memory() - bare)
""")
    large, settled = map(int, out.split())
    assert large > 2**28
    assert settled < 2 * 20 * 2**28 // 100  # two workers, each with 16 records and what it reads


def test_batches_that_vary_in_size_need_the_largest_only():
    """A slot grows with what it has to hold, and does not with what it held before."""
    out = run_child("""
import tempfile
import numpy as np
from children import anonymous_memory
from databases import datum, write_lmdb
from fastbatch import LMDBSource, Loader
sides = [10, 700, 20, 500, 699, 1, 600]
with tempfile.TemporaryDirectory() as directory:
    write_lmdb(directory, [datum(np.full((1, side, side), side % 256, np.uint8), side) for side in sides])
    with LMDBSource(directory) as source, Loader(source, prefetch=3, threads=2) as loader:
        for epoch in range(3):
            for batch, side in zip(loader, sides):
                assert batch.data.shape == (1, 1, side, side) and (batch.data == side % 256).all()
        settled = anonymous_memory()
        for epoch in range(50):
            for batch in loader:
                pass
        print(anonymous_memory() - settled)
""")
    assert int(out) < 4 * 700 * 700  # slots that had not met the largest yet


def test_the_source_and_its_arrays_are_let_go_of():
    """An array is freed when its loader is closed, and a loader holds no unneeded reference."""
    out = run_child("""
import sys
import numpy as np
from fastbatch import ArraySource, Loader
array = np.arange(100, dtype=np.float32)
before = sys.getrefcount(array)
for _ in range(10):
    source = ArraySource(array)
    with Loader(source, batch_size=7, shuffle=True) as loader:
        for batch in loader:
            last = batch.data
    del source, loader, batch, last
print(sys.getrefcount(array) - before)
""")
    assert out == "0\n"
