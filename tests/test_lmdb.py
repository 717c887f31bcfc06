"""What LMDBSource alone does: a directory that cannot be written, and a database that changes while it is open.

tests/test_databases.py has what sources of LMDB and LevelDB have in common, tests/test_lmdb_file.py the check of pages.
"""

import os
import tempfile

import numpy as np
import pytest

from contracts import check_source, loader_of, stack
from databases import LMDB, datum, image_lmdb, images
from fastbatch import LMDBSource, Loader, SourceError
from files import as_nobody


def test_a_directory_that_cannot_be_written():
    """Then it is opened without LMDB's locks, and nothing is left there."""
    with tempfile.TemporaryDirectory() as directory:  # everybody may go there, other than to tmp_path
        path, pictures = image_lmdb(os.path.join(directory, "db"), 3)
        os.unlink(os.path.join(path, "lock.mdb"))
        os.chmod(os.path.join(path, "data.mdb"), 0o444)
        os.chmod(path, 0o555)
        os.chmod(directory, 0o755)
        with as_nobody():
            source = LMDBSource(path)
        check_source(source, stack(pictures, range(3)), [b"%08d" % i for i in range(3)])
        assert os.listdir(path) == ["data.mdb"]
        os.chmod(path, 0o755)


def test_a_loader_sees_the_database_as_it_was_when_the_loader_was_made(tmp_path):
    path, pictures = image_lmdb(tmp_path / "db", 6, (1, 2, 2))
    more = images(4, (1, 2, 2), seed=9)
    with LMDBSource(path) as source, loader_of(source, batch_size=4) as before:
        with LMDB(path) as database:
            database.put((b"%08d" % index, datum(picture, index)) for index, picture in enumerate(more, 6))
        with loader_of(source, batch_size=4) as after:
            assert (len(before), len(after)) == (2, 3)
            for epoch in range(2):
                for loader, expected in ((before, pictures), (after, np.concatenate([pictures, more]))):
                    batches = [batch.data.copy() for batch in loader if batch.epoch == epoch]
                    assert np.concatenate(batches).tobytes() == expected.tobytes()


def test_a_database_that_was_emptied_since_it_was_opened(tmp_path):
    path, _ = image_lmdb(tmp_path / "db", 2)
    with LMDBSource(path) as source:
        with LMDB(path) as database:
            database.clear()
        with pytest.raises(SourceError, match=f"{path} is empty; a loader needs at least one sample"):
            Loader(source)
        with LMDB(path) as database:
            database.put([(b"again", datum(images(1)[0], 4))])
        with loader_of(source) as loader:
            assert [batch.sample_keys for batch in loader] == [[b"again"]]
