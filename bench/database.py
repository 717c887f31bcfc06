"""The database that benchmarks read: raw uint8 images 3 x 256 x 256, too many for any cache."""

import os
import shutil
import sys
from pathlib import Path

import numpy

from interleave import QUICK

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from databases import datum

SHAPE = (3, 256, 256)
BYTES = 3 * 256 * 256
RECORDS = 320 if QUICK else 3200  # 629 MB: no processor's cache holds them
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastbatch" / "bench"


def image_database(records=RECORDS):
    """The path of an LMDB database of that many Datum records with random pixels and labels 0 .. 999.

    It is made once, in the user's cache, and all of it is in memory (the system's page cache) when this returns.
    """
    path = CACHE / f"raw-256-{records}"
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial.{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            _write(partial, records)
            partial.rename(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    with open(path / "data.mdb", "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    return str(path)


def _write(path, records):
    import lmdb  # here: benchmarks of other sources run without it

    random = numpy.random.RandomState(0)
    size = (BYTES + 8192) * records + 2**20
    with lmdb.open(str(path), map_size=size, sync=False) as environment:
        for first in range(0, records, 100):  # a transaction's pages are in memory until its commit
            with environment.begin(write=True) as transaction:
                for index in range(first, min(first + 100, records)):
                    pixels = numpy.frombuffer(random.bytes(BYTES), dtype=numpy.uint8).reshape(SHAPE)
                    transaction.put(b"%08d" % index, datum(pixels, index % 1000), append=True)
