"""The benchmarks' input, made once in the user's cache.

Raw uint8 images of 3 x 256 x 256, too many for any cache; photographs of ImageNet's usual size as JPEG files and as
encoded records; and HDF5 files.
"""

import functools
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import numpy

from interleave import QUICK

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests/support"))
from databases import LMDB, datum, varint, write_leveldb, write_lmdb

SHAPE = (3, 256, 256)
BYTES = 3 * 256 * 256
RECORDS = 320 if QUICK else 3200  # 629 MB, more than any processor's cache
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastbatch" / "bench"


def image_database(records=RECORDS):
    """The path of an LMDB database of that many Datum records with random pixels and labels 0 .. 999.

    It is made once, in the user's cache, and all of it is in memory (the system's page cache) when this returns.
    """
    path = _made_once(CACHE / f"raw-256-{records}", functools.partial(_write_raw, records=records))
    _read_through(path / "data.mdb")
    return str(path)


PHOTOGRAPHS = 100 if QUICK else 1000
COPIES = 8
MOSAICS = 75
HEIGHT, WIDTH, QUALITY = 375, 500, 90  # of an ImageNet photograph; about 46 KB


def photographs():
    """Photographs as (path of an LMDB of encoded records, path of a list of the JPEG files, their folder).

    They are random crops of the photographs that scikit-learn and scikit-image ship.
    """
    path = _made_once(CACHE / f"photographs-{PHOTOGRAPHS}", _write_photographs)
    for file in (path / "lmdb" / "data.mdb", *(path / "files").iterdir()):
        _read_through(file)
    return str(path / "lmdb"), str(path / "list.txt"), f"{path}/files/"


def repeated_photographs():
    """The path of an LMDB with the records of `photographs()`, COPIES times over: for epochs that are longer."""
    path = _made_once(CACHE / f"photographs-{PHOTOGRAPHS}-{COPIES}", _write_repeated_photographs)
    _read_through(path / "lmdb" / "data.mdb")
    return str(path / "lmdb")


def mosaics():
    """The path of a folder of JPEG files of 2000 x 1500 pixels, each of 16 photographs."""
    folder = f"{_made_once(CACHE / f'mosaics-{PHOTOGRAPHS}-{MOSAICS}', _write_mosaics)}/"
    for file in Path(folder).iterdir():
        _read_through(file)
    return folder


def hdf5_files(files, rows):
    """The path of a list of `files` HDF5 files with `rows` rows each: data, float32 (3, 227, 227), and label."""
    path = _made_once(CACHE / f"hdf5-{files}-{rows}", functools.partial(_write_hdf5, files=files, rows=rows))
    for file in path.glob("*.h5"):
        _read_through(file)
    return f"{path}/list.txt"


LEVELDB_RECORDS = {
    kind: count // (10 if QUICK else 1) for kind, count in (("32x32", 30000), ("256x256", 1000), ("photographs", 1000))
}


def leveldbs(kind):
    """The paths of two LevelDB databases with the same records, because one can be open only once.

    The records are raw images of 32 x 32 or 256 x 256, or photographs.
    """
    records = LEVELDB_RECORDS[kind]
    path = _made_once(
        CACHE / f"leveldb-{kind}-{records}", functools.partial(_write_leveldbs, kind=kind, records=records)
    )
    for file in path.glob("*/*"):
        _read_through(file)
    return str(path / "one"), str(path / "other")


def _write_leveldbs(path, kind, records):
    if kind == "photographs":
        with LMDB(photographs()[0], readonly=True) as database:
            values = [value for _, value in database.items()][:records]
    else:
        random = numpy.random.RandomState(0)
        side = int(kind.partition("x")[0])
        values = [
            datum(random.randint(0, 256, (3, side, side)).astype(numpy.uint8), index % 1000) for index in range(records)
        ]
    write_leveldb(path / "one", values)
    write_leveldb(path / "one", [])  # opened again, it moves its log's records into tables
    shutil.copytree(path / "one", path / "other")


def _made_once(path, make):
    """`path`, a folder that make(folder) fills, unless an earlier benchmark has done so."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial.{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            make(partial)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _read_through(path):
    """Reads the file into the system's page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def _write_photographs(path):
    import cv2  # not at the top, because benchmarks of raw images run without it

    found = []
    for package, folder in (("sklearn", "datasets/images"), ("skimage", "data")):
        # find_spec() finds the package without importing it, which would take seconds.
        for file in sorted(Path(importlib.util.find_spec(package).origin).parent.glob(f"{folder}/*")):
            image = cv2.imread(str(file)) if file.suffix in (".jpg", ".png") else None
            if image is not None and image.shape[0] >= HEIGHT and image.shape[1] >= WIDTH:
                found.append(image)
    random = numpy.random.RandomState(0)
    (path / "files").mkdir()
    records, lines = [], []
    for number in range(PHOTOGRAPHS):
        image = found[number % len(found)]
        top, left = (random.randint(0, image.shape[axis] - size + 1) for axis, size in enumerate((HEIGHT, WIDTH)))
        part = image[top : top + HEIGHT, left : left + WIDTH]
        data = cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
        label = number % 1000
        records.append(_encoded_record(data, label))
        (path / "files" / f"{number:05}.jpg").write_bytes(data)
        lines.append(f"{number:05}.jpg {label}\n")
    (path / "list.txt").write_text("".join(lines))
    write_lmdb(path / "lmdb", records)


def _encoded_record(data, label):
    return b"\x22" + varint(len(data)) + data + b"\x28" + varint(label) + b"\x38\x01"


def _write_repeated_photographs(path):
    _, listed, folder = photographs()
    lines = [line.split() for line in Path(listed).read_text().splitlines()]
    records = [_encoded_record(Path(folder, name).read_bytes(), int(label)) for name, label in lines]
    write_lmdb(path / "lmdb", records * COPIES)


def _write_mosaics(path):
    import cv2

    files = sorted(Path(photographs()[2]).iterdir())
    for number in range(MOSAICS):
        parts = [cv2.imread(str(files[(16 * number + part) % len(files)])) for part in range(16)]
        image = numpy.vstack([numpy.hstack(parts[row : row + 4]) for row in range(0, 16, 4)])
        cv2.imwrite(str(path / f"{number:03}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def _write_hdf5(path, files, rows):
    import h5py

    random = numpy.random.RandomState(0)
    made = path.with_name(path.name.partition(".")[0])  # the folder's final path
    for number in range(files):
        with h5py.File(path / f"{number}.h5", "w") as file:
            file["data"] = random.rand(rows, 3, 227, 227).astype(numpy.float32)
            file["label"] = numpy.arange(rows)
    (path / "list.txt").write_text("".join(f"{made}/{number}.h5\n" for number in range(files)))


def _write_raw(path, records):
    random = numpy.random.RandomState(0)

    def record(index):
        pixels = numpy.frombuffer(random.bytes(BYTES), dtype=numpy.uint8).reshape(SHAPE)
        return b"%08d" % index, datum(pixels, index % 1000)

    with LMDB(path, map_size=(BYTES + 8192) * records + 2**20) as database:
        for first in range(0, records, 100):  # a transaction's pages are in memory until its commit
            database.put(map(record, range(first, min(first + 100, records))))
