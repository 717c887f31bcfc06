"""The example sources, built as their README says, against the contract that all sources share."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from compiled import compile_extension
from contracts import check_source
from fastbatch import CallbackSource, Loader, SampleError
from planned import compile_c

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "sources"


def module_of(name):
    """An example in Python."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_one_in_c():
    source = module_of("squares").SquaresSource(11, compile_c(EXAMPLES / "squares.c"))
    data = [np.full((1, 4, 4), i, np.float32) for i in range(11)]
    check_source(source, {"data": data, "label": [np.int64(i) for i in range(11)]})


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return compile_extension(EXAMPLES / "cifar.pyx", tmp_path_factory.mktemp("cifar"))


def test_the_one_in_cython(cifar, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (13, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(13).astype(np.uint8) % 10
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels)))
    source = cifar.CifarSource(path)
    check_source(source, {"data": list(images), "label": [np.int64(label) for label in labels]})

    path.write_bytes(path.read_bytes()[:-5])  # the same file: the source has it open
    with Loader(source, batch_size=1, threads=1) as loader, pytest.raises(SampleError, match="sample 12: .* cut short"):
        for number, batch in enumerate(loader):
            assert batch.data[0].tobytes() == images[number].tobytes()
    with pytest.raises(ValueError, match=r"has 39944 bytes, and a file of CIFAR-10 a multiple of 3073"):
        cifar.CifarSource(path)
    path.write_bytes(b"\x0a" + bytes(3072))
    with Loader(cifar.CifarSource(path)) as loader, pytest.raises(SampleError, match="its label is 10; CIFAR-10 has"):
        next(iter(loader))


def test_a_function_in_cython(tmp_path):
    series = compile_extension(EXAMPLES / "series.pyx", tmp_path)
    values = np.random.RandomState(0).rand(100)
    source = series.windows(values)
    narrow = values.astype(np.float32)
    check_source(
        source, {"data": [narrow[i : i + 64] for i in range(36)], "target": [narrow[i + 64] for i in range(36)]}
    )

    function, fields = series.__pyx_capi__["read_window"], {"data": ("float32", (64,)), "target": ("float32", ())}
    source = CallbackSource(function, fields, 36, context=narrow.ctypes.data, owner=narrow)
    with Loader(source, batch_size=36) as loader:
        assert (next(iter(loader)).target == narrow[64:]).all()


def test_the_one_in_ctypes_and_numba():
    pytest.importorskip("numba", reason="needs numba")
    source = module_of("waves").WavesSource(9)
    waves = [np.sin(2 * np.pi * (i + 1) * np.arange(1000) / 1000).astype(np.float32) for i in range(9)]
    for threads in (1, 4):
        with Loader(source, batch_size=3, threads=threads, timeout=20) as loader:
            for batch in loader:
                first = 3 * batch.number
                np.testing.assert_allclose(batch.data, waves[first : first + 3], atol=1e-6)
                assert batch.index.tolist() == [first, first + 1, first + 2]
