"""Several solvers on one database: in TRAIN each takes its own records, in TEST all, as with Caffe's own layer."""

import pytest

pytest.importorskip("caffe._caffe")

import caffe
import numpy as np

from databases import datum, image_database, images
from fastbatch import Loader
from nets import assert_same_bits, caffes, labels, ours, params, run

pytestmark = pytest.mark.usefixtures("alone_again")


@pytest.fixture
def alone_again():
    yield
    be(0, 1)
    caffe.set_multiprocess(False)


def be(rank, count):
    """Tell Caffe what each process of python/train.py tells it. Without set_multiprocess, Caffe would abort."""
    caffe.set_multiprocess(True)
    caffe.set_solver_count(count)
    caffe.set_solver_rank(rank)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rank", range(8))
@pytest.mark.parametrize("records", [5, 16, 17])
def test_every_rank_has_its_own_records(build, tmp_path, records, rank, threads, write):
    """Of the endless sequence of records, rank r of n takes those with the numbers r, r + n, r + 2 n, ..."""
    path, _ = image_database(write, tmp_path / "db", records)
    be(rank, 8)
    expected = [(rank + 8 * k) % records for k in range(50)]
    assert labels(build, ours(params(path, 5) + f"threads: {threads}"), 10) == expected


def test_every_rank_tests_on_everything(build, tmp_path, write):
    path, _ = image_database(write, tmp_path / "db", 5)
    for rank in range(8):
        be(rank, 8)
        assert labels(build, ours(params(path, 3)), 5, phase=caffe.TEST) == 3 * [0, 1, 2, 3, 4]
        assert labels(build, ours(params(path, 3), more="phase: TEST"), 5) == 3 * [0, 1, 2, 3, 4]


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("rank, count", [(0, 2), (1, 2), (2, 3), (3, 4), (6, 7), (0, 30), (29, 30)])
def test_the_same_bits_as_caffes_own_layer(build, tmp_path, rank, count, phase, write):
    """Each rank draws only for its own records, so its draws differ from another rank's."""
    sizes = [(24, 24), (19, 19), (40, 20), (19, 64), (33, 21), (20, 20), (50, 50)]
    path = write(tmp_path / "db", [datum(images(1, (3, *size), seed=i)[0], i) for i, size in enumerate(sizes)])
    param_str = params(path, 4, "crop_size: 17 mirror: true mean_value: 9")
    be(rank, count)
    phase = getattr(caffe, phase)
    assert_same_bits(*(run(build, layer(param_str), 10, seed=rank, phase=phase) for layer in (ours, caffes)))


def test_batches_that_caffes_epochs_do_not_divide(build, tmp_path, write):
    """Two ranks together see every record once in an epoch, though the epochs end in the middle of batches."""
    path, _ = image_database(write, tmp_path / "db", 9)
    seen = []
    for rank in range(2):
        be(rank, 2)
        seen.append(labels(build, ours(params(path, 4)), 9))
    assert [label for pair in zip(*seen) for label in pair] == 8 * list(range(9))


OWN = """
import numpy, fastbatch, fastbatch.caffe

class Own(fastbatch.caffe.Layer):
    def source(self):
        return fastbatch.Loader({"data": numpy.arange(9), "label": numpy.arange(9)}, batch_size=4, shuffle=True, seed=5)
"""


def test_ranks_of_a_loader_in_a_layer(build, tmp_path, monkeypatch):
    """As Loaders that were told their rank, in TRAIN; everything, in TEST."""
    (tmp_path / "own_of_ranks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = 'layer { name: "own" type: "Python" top: "data" top: "label" python_param { module: "own_of_ranks" '
    text += 'layer: "Own" } }'
    values = {"data": np.arange(9), "label": np.arange(9)}

    def expected(**ranks):
        with Loader(values, batch_size=4, shuffle=True, seed=5, last_batch="wrap", **ranks) as loader:
            return [label for _ in range(20) for batch in loader for label in batch["label"].tolist()][:40]

    for rank in range(3):
        be(rank, 3)
        assert labels(build, text, 10) == expected(rank=rank, ranks=3)
        assert labels(build, text, 10, phase=caffe.TEST) == expected()
