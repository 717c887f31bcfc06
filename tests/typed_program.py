"""A program as users write them, of which test_stubs.py has mypy --strict check every type, and which it runs.

A type that gets lost becomes Any: assert_type fails on that, and so do the comments that say which errors mypy must
find, since --strict refuses those that are not needed.
"""

from __future__ import annotations

import pathlib
import queue
import sys
from typing import Any, Optional, Union

import numpy as np
from typing_extensions import assert_type

import fastbatch
from fastbatch.cores import usable_cores
from fastbatch.formats.binaryproto import read_mean_file


def decide(error: fastbatch.SampleError) -> str:
    return "skip" if error.stage == "read" else "raise"


def arrays() -> int:
    images, labels = np.zeros((10, 3, 8, 8), np.uint8), np.arange(10)
    transform = fastbatch.Transform(crop_size=6, mirror=True, scale=0.5, mean_value=(1, 2, 3), phase="TEST")
    assert_type(transform.mean_value, tuple[float, ...])
    assert_type(transform.mean_file, Optional[str])
    assert_type(transform.crop_size, Union[int, tuple[int, int]])
    fastbatch.Transform(mirror=True, boxes=("box",), points=["left eye", "right eye"], least_visible=0.25)
    imagenet = fastbatch.Transform(mean=(0.485, 0.456, 0.406), std=0.225, color="rgb", dtype="float16", layout="NHWC")
    assert_type(imagenet.std, tuple[float, ...])
    assert_type(transform.mean_image(), Optional[np.ndarray[Any, np.dtype[np.float32]]])
    samples = 0
    with fastbatch.Loader(
        (images, labels), transform, batch_size=4, shuffle=True, seed=1, threads=2, timeout=60, on_error=decide
    ) as loader:
        assert_type(loader, fastbatch.Loader)
        assert_type(len(loader), int)
        assert_type(loader.seed, int)
        assert_type(loader.epoch, int)
        for batch in loader:
            assert_type(batch, fastbatch.Batch)
            assert_type(batch["data"], np.ndarray[Any, Any])
            assert_type(batch.label, np.ndarray[Any, Any])
            assert_type(batch.names, tuple[str, ...])
            assert_type(batch.sample_keys, list[Union[bytes, int]])
            assert_type(dict(batch.items()), dict[str, np.ndarray[Any, Any]])
            assert_type(list(batch), list[str])
            assert_type(batch.get("weight"), Optional[np.ndarray[Any, Any]])
            data, _label = batch.values()
            assert_type(data, np.ndarray[Any, Any])
            assert_type(batch.shapes, dict[str, tuple[int, ...]])
            assert_type(batch.number + batch.epoch, int)
            samples += len(batch)
            memoryview(batch).release()
        batches = iter(loader)
        assert_type(next(batches), fastbatch.Batch)
        batches.close()
        assert_type((loader.batch_size, loader.threads, loader.prefetch), tuple[int, int, int])
        assert_type(loader.shuffle, bool)
        if loader.last_batch == "pad":
            assert_type(batch.real, int)
        assert_type((loader.rank, loader.ranks), tuple[int, int])
        assert_type(loader.state_dict(), dict[str, Any])
        loader.load_state_dict(loader.state_dict())
        assert_type(loader.names, tuple[str, ...])
        assert_type(loader.transform, Optional[fastbatch.Transform])
        assert_type(loader.timeout, Optional[float])
        assert_type(loader.errors, list[fastbatch.SampleError])
        assert_type((loader.errors and loader.errors[0].outcome) or None, Optional[str])
        assert_type(loader.error_budget, Union[int, float, None])
        assert_type(loader.cache_bytes, Optional[int])
        assert_type(loader.cache_folder, Optional[str])
        statistics(loader)
    assert_type(loader.closed, bool)
    return samples


def statistics(loader: fastbatch.Loader) -> None:
    stats = loader.stats()
    assert_type(stats, fastbatch.Stats)
    assert_type(stats.samples, int)
    assert_type(stats.waited_for_data, float)
    assert_type(stats.last_error, Optional[str])
    assert_type(loader.stats(since=stats).stages["read"].p99, float)
    assert_type(loader.report(since=stats), str)
    loader.timeline(pathlib.Path("/dev/null.txt")) if stats.batches < 0 else None


def other_sources() -> int:
    image = np.zeros((2, 1, 4, 4), np.float32)
    source = fastbatch.ArraySource(image, weight=[0.5, 1.5])
    assert_type(source.arrays, dict[str, np.ndarray[Any, Any]])
    loaders = [
        fastbatch.Loader(source, batch_size=np.int64(2)),
        fastbatch.Loader(image, fastbatch.Transform(mean_value=image.mean(axis=(0, 2, 3)))),
        fastbatch.Loader({"data": image, "label": [1, 2]}),
        fastbatch.Loader((image,)),
        fastbatch.Loader(memoryview(b"ab")),
    ]
    return sum(len(batch) for loader in loaders for batch in loader)


def database(path: pathlib.Path) -> int:
    with fastbatch.LMDBSource(path) as source:
        assert_type(source, fastbatch.LMDBSource)
        assert_type(source.path, str)
        assert_type(source.shape, tuple[int, int, int])
        assert_type(source[1:], fastbatch.Subset)
        assert_type(len(fastbatch.Joined(source, other=source)), int)
        assert_type(len(source), int)
        loader = fastbatch.Loader(source, batch_size=2)
    try:
        return sum(len(batch["label"]) for batch in loader)
    except fastbatch.SampleError as error:
        assert_type(error.key, Union[bytes, int])
        assert_type(error.source + error.stage + error.reason, str)
        assert_type((error.index, error.epoch, error.batch), tuple[int, Optional[int], Optional[int]])
        raise


def errors() -> list[type[fastbatch.FastbatchError]]:
    runtime: list[type[RuntimeError]] = [fastbatch.Closed, fastbatch.BatchesHeldError]
    assert_type(runtime, list[type[RuntimeError]])
    mistakes: tuple[type[OSError], type[ValueError], type[TimeoutError]]
    mistakes = (fastbatch.SourceError, fastbatch.SampleError, fastbatch.DataTimeout)
    ours = [each for each in mistakes if issubclass(each, fastbatch.FastbatchError)]
    return [*ours, fastbatch.ForkedError, fastbatch.MissingLibraryError]


def queues() -> str:
    jobs: fastbatch.BlockingQueue[str] = fastbatch.BlockingQueue(maxsize=2)
    jobs.push("first", timeout=1)
    assert_type(jobs.try_push("second"), bool)
    assert_type(jobs.peek(), str)
    first = jobs.pop(1.5)
    assert_type(first, str)
    assert_type(jobs.try_pop(), str)
    try:
        jobs.try_peek()
    except queue.Empty:
        jobs.close()
    assert_type(jobs.closed, bool)
    return fastbatch.BlockingQueue[str].__name__ + first


def facts() -> str:
    assert_type(fastbatch.features(), dict[str, Optional[str]])
    assert_type(fastbatch.__version__, str)
    assert_type(usable_cores(), int)
    return fastbatch.get_include()


class OwnSource:
    """As somebody's extension module would have it."""

    def __fastbatch_source__(self, random_access: bool) -> object:
        raise NotImplementedError("only its type is of interest here")


def never_run(path: pathlib.Path) -> None:
    """What needs a file or an extension, and what mypy must refuse."""
    assert_type(fastbatch.Loader(OwnSource()), fastbatch.Loader)
    assert_type(read_mean_file(path), np.ndarray[Any, np.dtype[np.float32]])
    fastbatch.Transform(mean_file=path)

    fastbatch.Loader("train_lmdb")  # type: ignore[arg-type]
    fastbatch.Loader((1, 2, 3))  # type: ignore[arg-type]
    fastbatch.Loader(OwnSource(), batchsize=4)  # type: ignore[arg-type]
    fastbatch.Loader(OwnSource(), batch_size=4.5)  # type: ignore[arg-type]
    fastbatch.Loader(OwnSource(), transform="mirror")  # type: ignore[arg-type]
    fastbatch.Loader(OwnSource(), seed="random")  # type: ignore[arg-type]
    fastbatch.Loader(OwnSource(), timeout="1 s")  # type: ignore[arg-type]
    fastbatch.Transform(phase="VAL")  # type: ignore[arg-type]
    fastbatch.Transform(color="hsv")  # type: ignore[arg-type]
    fastbatch.Transform(crop_size="227")  # type: ignore[arg-type]
    fastbatch.Transform(mean_value="104")  # type: ignore[arg-type]
    fastbatch.LMDBSource(3)  # type: ignore[arg-type]
    fastbatch.LevelDBSource(3)  # type: ignore[arg-type]
    assert_type(fastbatch.LevelDBSource(path).shape, tuple[int, int, int])
    fastbatch.BlockingQueue[int]().push("one")  # type: ignore[arg-type]
    fastbatch.BlockingQueue[int]().pop("1 s")  # type: ignore[arg-type]
    fastbatch.Loader(OwnSource()).close(1)  # type: ignore[call-arg]
    read_mean_file(3)  # type: ignore[arg-type]
    for batch in fastbatch.Loader(OwnSource()):
        batch[0]  # type: ignore[index]


if __name__ == "__main__":
    print(
        arrays(),
        other_sources(),
        database(pathlib.Path(sys.argv[1])),
        len(errors()),
        queues(),
        facts() == fastbatch.get_include(),
    )
