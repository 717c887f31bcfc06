"""JAX and TensorFlow take batches by DLPack, without a copy. Tests of each run where it is installed."""

import gc

import numpy as np
import pytest

from fastbatch import Loader

DTYPES = ["uint8", "int32", "float16", "float32", "bool"]


def jax_array(exporter):
    jax = pytest.importorskip("jax")
    return jax.dlpack.from_dlpack(exporter)


def tensorflow_tensor(exporter):
    tensorflow = pytest.importorskip("tensorflow")
    return tensorflow.experimental.dlpack.from_dlpack(exporter.__dlpack__())


def numbers(dtype):
    return np.arange(6 * 64).reshape(6, 4, 16).astype(dtype)


@pytest.mark.parametrize("take", [jax_array, tensorflow_tensor])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_is_taken_without_a_copy(take, dtype):
    with Loader({"image": numbers(dtype), "label": np.arange(6)}, batch_size=3) as loader:
        batch = next(iter(loader))
        for exporter in batch, batch["image"]:
            taken = take(exporter)
            assert np.asarray(taken).tobytes() == numbers(dtype)[:3].tobytes()
            assert taken.dtype == dtype and np.asarray(memoryview(taken)).ctypes.data == batch.address(0)


@pytest.mark.parametrize("take", [jax_array, tensorflow_tensor])
def test_what_was_taken_keeps_the_batch(take):
    with Loader(numbers("float32"), batch_size=3, prefetch=2) as loader:
        batch = next(iter(loader))
        taken = take(batch["data"])
        batch.release()
        del batch
        gc.collect()
        assert loader.stats().held == 1
        for _ in range(3):
            for later in loader:
                assert later.address(0) != np.asarray(memoryview(taken)).ctypes.data
        assert np.asarray(taken).tobytes() == numbers("float32")[:3].tobytes()
        del taken, later
        gc.collect()
        assert loader.stats().held == 0


def test_jax_copies_int64():
    """It has 32 bits unless told otherwise."""
    with Loader(numbers("int64"), batch_size=3) as loader:
        taken = jax_array(next(iter(loader)))
        assert taken.dtype == "int32" and np.array_equal(taken, numbers("int64")[:3])
