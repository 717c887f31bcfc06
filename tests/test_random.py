"""Order and random draws: stable, independent of the number of threads, and equal to a slow reference."""

import hashlib
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from databases import image_lmdb, images, varint
from fastbatch import ArraySource, LMDBSource, Loader, Transform
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeRecords
from planned import PATIENCE

ALL = Transform(crop_size=5, mirror=True, scale=0.25, mean_value=(104, 117, 123))


def order(count, epochs=1, **options):
    """The samples' indices in each epoch."""
    with Loader(np.broadcast_to(np.uint8(0), (count,)), timeout=PATIENCE, **options) as loader:
        return [[key for batch in loader for key in batch.sample_keys] for _ in range(epochs)]


def fingerprint(loader, epochs=3):
    """A hash of every byte and every key that a loader delivers."""
    seen = hashlib.sha256()
    for _ in range(epochs):
        for batch in loader:
            seen.update(repr((batch.epoch, batch.number, batch.sample_keys)).encode())
            for name in batch.names:
                seen.update(batch[name].tobytes())
    return seen.hexdigest()


# ---- the reference itself, by what its authors published


@pytest.mark.parametrize(
    "counter, key, out",
    [
        # from kat_vectors of Random123, https://github.com/DEShawResearch/random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_reference_is_philox(counter, key, out):
    assert tuple(int(word) for word in reference.philox4x32(counter, key)) == out


def test_the_reference_is_mt19937():
    stream = reference.CaffeStream(1701)
    assert [stream.next() for _ in range(3)] == [384112814, 2227967492, 495543390]
    stream = reference.CaffeStream(5489)  # the standard's own seed and its 10,000th draw: C++11, [rand.predef]
    assert [stream.next() for _ in range(10000)][-1] == 4123659995


# ---- the same for any number of threads


@pytest.mark.parametrize("transform", [None, ALL], ids=["as they are", "transformed"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", ["arrays", "uint8", "float32"])
def test_the_same_bytes_for_any_number_of_threads(tmp_path, kind, shuffle, transform):
    if kind == "arrays":
        source = {"data": images(53, (3, 9, 8)), "label": np.arange(53)}
    else:
        source = LMDBSource(image_lmdb(tmp_path / "db", 53, (3, 9, 8), np.dtype(kind))[0])
    found = set()
    for threads in (1, 2, 3, 8):
        for prefetch in (1, 4):
            with Loader(
                source,
                transform,
                batch_size=7,
                shuffle=shuffle,
                seed=11,
                threads=threads,
                prefetch=prefetch,
                timeout=PATIENCE,
            ) as loader:
                found.add(fingerprint(loader))
    assert len(found) == 1


def test_what_was_left_out_before_does_not_matter():
    """Epoch 2 is what it is, though nothing, or half, of the epochs before it was taken."""
    source = {"data": images(20, (1, 6, 6))}
    options = {"batch_size": 3, "shuffle": True, "seed": 9, "timeout": PATIENCE}
    prints = set()
    for taken in (0, 1, 4, 7):
        with Loader(source, Transform(crop_size=4, mirror=True), **options) as loader:
            for _ in range(2):
                for _ in zip(range(taken), loader):
                    pass
            assert loader.epoch == 2
            prints.add(fingerprint(loader, epochs=1))
    assert len(prints) == 1


# ---- seeds


def test_a_seed_fixes_everything_and_another_changes_it():
    source = {"data": images(40, (3, 8, 8)), "label": np.arange(40)}

    def run(seed):
        with Loader(source, ALL, batch_size=6, shuffle=True, seed=seed, timeout=PATIENCE) as loader:
            return loader.seed, fingerprint(loader)

    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    assert len({run(seed)[1] for seed in seeds}) == len(seeds)
    for seed in seeds:
        assert run(seed) == run(seed)
    drawn, print_ = run(None)
    assert run(drawn) == (drawn, print_)


def test_the_seed_changes_crops_and_mirrors_without_shuffle_too():
    source = {"data": images(10, (3, 8, 8))}
    prints = set()
    for seed in range(5):
        with Loader(source, ALL, seed=seed, timeout=PATIENCE) as loader:
            prints.add(fingerprint(loader, epochs=1))
    assert len(prints) == 5


def test_a_sample_is_cropped_differently_in_each_epoch():
    source = {"data": images(1, (3, 50, 50))}
    with Loader(source, Transform(crop_size=5), seed=3, timeout=PATIENCE) as loader:
        assert len({next(iter(loader)).data.tobytes() for _ in range(10)}) == 10


# ---- the shuffle


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 255, 256, 257, 1000])
def test_every_epoch_is_a_permutation(count):
    for epoch in order(count, epochs=3, batch_size=64, shuffle=True, seed=count):
        assert sorted(epoch) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(epoch) for seed in range(5) for epoch in order(50, epochs=4, shuffle=True, seed=seed)]
    assert len(set(orders)) == 20
    assert tuple(range(50)) not in orders
    in_place = sum(epoch[i] == i for epoch in orders for i in range(50))
    assert in_place < 60  # on average one in each of 20 orders


@pytest.mark.parametrize("count", [1, 2, 7, 255, 256, 257, 1000, 65537])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_the_order_is_the_references(count, seed):
    for epoch, found in enumerate(order(count, epochs=2, batch_size=512, shuffle=True, seed=seed)):
        assert found == reference.permute(seed, epoch, count, range(count)).tolist()


@pytest.mark.parametrize("count", [2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12345, 2**62])
def test_counts_beyond_32_bits(count):
    """Shuffling needs no memory: the source claims that many samples, all in one byte."""
    with Loader(
        np.broadcast_to(np.uint8(0), (count,)), shuffle=True, seed=5, batch_size=10, timeout=PATIENCE
    ) as loader:
        assert len(loader) == -(-count // 10)
        assert next(iter(loader)).sample_keys == reference.permute(5, 0, count, range(10)).tolist()
    with Loader(np.broadcast_to(np.uint8(0), (count,)), batch_size=2**10, timeout=PATIENCE) as loader:
        assert next(iter(loader)).sample_keys == list(range(2**10))


# ---- golden values: whoever changes these changes the format, and the major version

GOLDEN_ORDERS = {  # (count, seed): epochs 0 and 1
    (10, 0): [[7, 4, 8, 0, 9, 5, 6, 1, 2, 3], [2, 0, 7, 4, 3, 9, 8, 6, 5, 1]],
    (10, 1701): [[5, 4, 0, 9, 6, 1, 3, 2, 8, 7], [0, 2, 7, 5, 8, 6, 4, 9, 3, 1]],
    (10, 2**64 - 1): [[1, 2, 9, 7, 6, 4, 5, 8, 3, 0], [1, 8, 5, 0, 2, 6, 7, 3, 9, 4]],
}
GOLDEN_LARGE = [
    466282310899,
    832302567620,
    231404193860,
    842861843088,
    841561951183,
    801608854114,
    429753767127,
    679960677323,
]
GOLDEN_CROPS = [  # (row, column, mirrored): epoch 0, then epoch 1
    (2, 3, True),
    (1, 4, False),
    (0, 4, True),
    (0, 1, True),
    (0, 2, False),
    (4, 0, False),
    (3, 4, True),
    (1, 1, False),
    (2, 0, False),
    (4, 3, False),
    (1, 0, True),
    (0, 3, True),
]


@pytest.mark.parametrize("count, seed", list(GOLDEN_ORDERS))
def test_golden_orders(count, seed):
    assert order(count, epochs=2, shuffle=True, seed=seed) == GOLDEN_ORDERS[count, seed]


def test_golden_order_of_a_large_source():
    with Loader(
        np.broadcast_to(np.uint8(0), (10**12,)), batch_size=8, shuffle=True, seed=42, timeout=PATIENCE
    ) as loader:
        assert next(iter(loader)).sample_keys == GOLDEN_LARGE


def test_golden_crops_and_mirrors():
    """Pixels are their own coordinates, so the values say where the crop was and whether it was mirrored."""
    rows, columns = np.mgrid[0:8, 0:8]
    coordinates = np.stack([rows, columns]).astype(np.uint8)
    source = np.broadcast_to(coordinates, (6, 2, 8, 8))
    with Loader(source, Transform(crop_size=4, mirror=True), batch_size=6, seed=1701, timeout=PATIENCE) as loader:
        found = []
        for _ in range(2):
            for image in next(iter(loader)).data:
                top, left, right = image[0, 0, 0], image[1, 0, 0], image[1, 0, 3]
                found.append((int(top), int(min(left, right)), bool(left > right)))
    assert found == GOLDEN_CROPS


def test_golden_bytes():
    """All together, on arithmetic that no processor rounds differently."""
    source = {
        "data": (np.arange(30 * 3 * 8 * 9) * 7 % 251).astype(np.uint8).reshape(30, 3, 8, 9),
        "label": np.arange(30),
    }
    with Loader(source, ALL, batch_size=4, shuffle=True, seed=2**40 + 3, timeout=PATIENCE) as loader:
        assert fingerprint(loader) == "35e15a8b1732dbc094399fd9c3171145107090d6df286f506541cee835a36d4d"


# ---- against the reference, whatever the parameters

SCALES = st.sampled_from([1.0, 0.00390625, 0.017, -2.5, 1e-30, 3.4e38])
VALUES = st.floats(-300, 300, width=32)


@st.composite
def loaders(draw):
    """Images, labels, and the options of a loader of them."""
    count = draw(st.integers(1, 30))
    channels = draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    batch_size = draw(st.integers(1, 12))
    options = {
        "batch_size": batch_size,
        "shuffle": draw(st.booleans()),
        "seed": draw(st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))),
        "threads": draw(st.sampled_from([1, 2, 3, 8])),
        "prefetch": draw(st.integers(1, 5)),
        "last_batch": draw(st.sampled_from(["partial", "drop"])) if count >= batch_size else "partial",
    }
    transform = None
    if draw(st.booleans()):
        transform = {
            "crop_size": draw(st.integers(0, min(height, width))),
            "mirror": draw(st.booleans()),
            "scale": draw(SCALES),
            "phase": draw(st.sampled_from(["TRAIN", "TEST"])),
        }
        mean = draw(st.sampled_from(["none", "one", "each", "image"]))
        if mean == "one":
            transform["mean_value"] = (draw(VALUES),)
        elif mean == "each":
            transform["mean_value"] = tuple(draw(VALUES) for _ in range(channels))
        elif mean == "image":
            transform["mean_image"] = images(1, (channels, height, width), np.float32, seed=draw(st.integers(0, 9)))[0]
    dtype = draw(st.sampled_from([np.uint8, np.float32]))
    pictures = images(count, (channels, height, width), dtype, seed=draw(st.integers(0, 99)))
    layout = draw(st.sampled_from(["contiguous", "channels last", "backwards", "with gaps"]))
    if layout == "channels last":
        pictures = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    elif layout == "backwards":
        pictures = pictures[::-1, :, ::-1, ::-1]
    elif layout == "with gaps":
        pictures = np.repeat(pictures, 2, axis=3)[..., ::2]
    return pictures, np.arange(count) * 3 - 5, options, transform


def write_mean(path, mean):
    """A BlobProto with the legacy shape, as compute_image_mean writes it."""
    shape = b"\x08\x01" + b"".join(tag + varint(size) for tag, size in zip((b"\x10", b"\x18", b"\x20"), mean.shape))
    values = struct.pack(f"<{mean.size}f", *mean.ravel())
    path.write_bytes(shape + b"\x2a" + varint(len(values)) + values)


def as_transform(parameters, directory):
    """The Transform of a dict of reference.transformed()'s parameters."""
    if parameters is None:
        return None
    parameters = dict(parameters)
    mean = parameters.pop("mean_image", None)
    if mean is not None:
        parameters["mean_file"] = directory / "mean.binaryproto"
        write_mean(parameters["mean_file"], mean)
    return Transform(**parameters)


@settings(max_examples=100)
@given(loaders())
def test_a_loader_delivers_what_the_reference_does(case):
    pictures, labels, options, parameters = case
    with tempfile.TemporaryDirectory() as directory:
        transform = as_transform(parameters, Path(directory))
    if parameters and parameters.get("mean_value"):
        assert transform.mean_value == parameters["mean_value"]
    with np.errstate(all="ignore"), Loader((pictures, labels), transform, timeout=PATIENCE, **options) as loader:
        for epoch in range(2):
            expected = reference.epoch_of_batches(
                pictures,
                labels,
                epoch,
                options["batch_size"],
                options["shuffle"],
                options["seed"],
                options["last_batch"] == "drop",
                parameters,
            )
            assert len(loader) == len(expected)
            for batch, (indices, data, wanted) in zip(loader, expected):
                assert batch.sample_keys == indices
                assert batch.data.dtype == data.dtype and batch.data.shape == data.shape
                assert batch.data.tobytes() == data.tobytes()
                assert batch.label.tolist() == wanted.tolist()


@settings(max_examples=60)
@given(loaders(), st.integers(0, 2**32 - 1), st.integers(1, 4), st.data())
def test_caffes_own_order_and_draws(case, seed, ranks, data):
    """Batches that run on over the end of the data, rank r of n taking every n-th record, and one stream of draws."""
    pictures, labels, options, parameters = case
    rank = data.draw(st.integers(0, ranks - 1))
    parameters = parameters or {}
    with tempfile.TemporaryDirectory() as directory:
        transform = as_transform(parameters, Path(directory))
    stream, position, size = reference.CaffeStream(seed), rank, options["batch_size"]
    ring = BatchRing(
        ArraySource(pictures, labels),
        batch_size=size,
        slots=options["prefetch"] + 1,
        threads=options["threads"],
        transform=transform,
        label_dtype="float32",
        order=CaffeRecords(seed, transform, rank=rank, ranks=ranks),
    )
    try:
        with np.errstate(all="ignore"):
            for _ in range(2 * len(pictures) // size + 2):
                batch = ring.next(PATIENCE)
                indices = [(position + i * ranks) % len(pictures) for i in range(size)]
                position += size * ranks
                assert batch.sample_keys == indices
                wanted = [
                    reference.transformed(pictures[i], stream(parameters), stream.reduce, **parameters) for i in indices
                ]
                assert batch.data.tobytes() == np.stack(wanted).tobytes()
                assert batch.label.dtype == np.float32 and batch.label.tolist() == labels[indices].tolist()
                batch = None
    finally:
        ring.close()
