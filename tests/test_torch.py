"""fastbatch.torch, and PyTorch's data sets as sources, with the real torch."""

import contextlib
import copy
import gc
import inspect
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import datasets
import torch_datasets
from children import environment, finish_child, start_child
from fastbatch import BatchesHeldError, Closed, DataTimeout, Loader, PythonSource, SampleError, SourceError, Transform
from fastbatch._contract import DTYPES
from fastbatch.loader import as_source
from fastbatch.sources._seeding import Seeder
from fastbatch.torch import TensorBatch, TorchLoader
from interrupts import interrupted_everywhere
from planned import PATIENCE, PlannedSource

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/torch_training.py"


def arrays(count=10):
    return {"data": np.stack([datasets.image(i) for i in range(count)]), "label": np.arange(count)}


def epoch(loader):
    """An epoch's batches: dicts of lists."""
    return [{name: np.asarray(values).tolist() for name, values in batch.items()} for batch in loader]


def labels(loader):
    return [batch["label"].tolist() for batch in loader]


# ---- tensors


def test_batches_are_the_loaders_as_tensors():
    options = {"batch_size": 4, "shuffle": True, "seed": 3, "last_batch": "pad"}
    transform = Transform(crop_size=5, mirror=True)
    with Loader(arrays(), transform, **options) as plain, TorchLoader(arrays(), transform, **options) as loader:
        assert isinstance(loader, Loader) and loader.device == torch.device("cpu") and len(loader) == 3
        for _ in range(2):
            for batch, expected in zip(loader, plain):
                assert list(batch) == ["data", "label"] and isinstance(batch, dict)
                assert batch["data"].dtype == torch.float32 and batch.label.dtype == torch.int64
                for name, array in expected.items():
                    assert batch[name].shape == array.shape and batch[name].numpy().tobytes() == array.tobytes()
                assert (batch.epoch, batch.number, batch.real) == (expected.epoch, expected.number, expected.real)
                assert batch.sample_keys == expected.sample_keys


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type(dtype):
    values = np.arange(6).astype(dtype).reshape(3, 2)
    with TorchLoader(values, batch_size=3) as loader:
        (batch,) = loader
        assert str(batch.data.dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(batch.data.numpy(), values)


def test_a_type_that_an_older_torch_lacks(monkeypatch):
    def refuse(array):
        raise TypeError("can't convert np.ndarray of type numpy.uint16")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    problem = 'the array "data" has dtype uint16, for which torch .* has no tensors: use another dtype, a newer torch'
    with TorchLoader(np.zeros(3, np.uint16)) as loader, pytest.raises(TypeError, match=problem):
        next(iter(loader))


def test_tensors_are_leases():
    """The memory of a batch is not used again while a tensor, or a view of it, lives."""
    loader = TorchLoader(arrays(8), batch_size=1, prefetch=2)
    iterator = iter(loader)
    batch = next(iterator)
    view, label = batch["data"][0, 1], batch["label"]
    label += 5  # they may be written
    del batch
    assert loader.stats().held == 1
    assert [other["label"].item() for other in iterator] == list(range(1, 8))
    expected = datasets.image(0)[1]
    assert view.numpy().tobytes() == expected.tobytes() and label.item() == 5
    del label
    held = list(zip(range(2), loader))
    with pytest.raises(BatchesHeldError):
        next(iter(loader))
    loader.close()
    assert view.numpy().tobytes() == expected.tobytes() and len(held) == 2
    del view, held
    gc.collect()
    assert loader.stats().held == 0


def test_tensors_lie_in_the_memory_of_the_batch():
    with Loader(arrays(), batch_size=4) as loader:
        for batch in loader:
            tensor = torch.from_dlpack(batch["data"])
            assert tensor.data_ptr() == batch.address(0) == torch.from_dlpack(batch).data_ptr()
            tensor[0] = 7
            assert (batch["data"][0] == 7).all()
            address = batch.address(0)
            del batch
            assert loader.stats().held == 1  # by the tensor
            assert np.from_dlpack(tensor).ctypes.data == address
    with TorchLoader(arrays(), batch_size=4) as loader:
        batch = next(iter(loader))
        assert batch["data"].data_ptr() % 64 == 0
        assert batch["data"].data_ptr() == batch._batch.address(0)


def test_a_tensor_batch_is_a_dict():
    with TorchLoader(arrays(), batch_size=4) as loader:
        batch = next(iter(loader))
        assert {"data", "label", "real", "sample_keys", "keys"} <= set(dir(batch))
        for clone in copy.copy(batch), TensorBatch(batch, batch._batch):
            assert clone.data is batch.data and clone.sample_keys == [0, 1, 2, 3]
        for clone in pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch), TensorBatch({**batch}):
            assert type(clone) is TensorBatch and clone.label.tolist() == [0, 1, 2, 3]
            with pytest.raises(AttributeError, match="the batch has no attribute or tensor 'real'; it has data, label"):
                clone.real
        with pytest.raises(AttributeError, match="no attribute or tensor 'mask'; it has data, label"):
            batch.mask
        assert (lambda data, label: label)(**batch) is batch["label"]


def test_the_parameters_are_a_loaders():
    *own, device, others = inspect.signature(TorchLoader).parameters.values()
    assert [*own, others] == list(inspect.signature(Loader).parameters.values())
    assert device.name == "device"


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"TorchLoader has no parameter num_workers: samples are read by native"):
        TorchLoader(arrays(), num_workers=2)
    with pytest.raises(TypeError, match=r"TorchLoader has no parameter devices: did you mean device\?"):
        TorchLoader(arrays(), devices="cpu")
    with pytest.raises(TypeError, match=r"Loader has no parameter device: .*fastbatch.torch.TorchLoader"):
        Loader(arrays(), device="cpu")
    with pytest.raises(RuntimeError, match="device"):
        TorchLoader(arrays(), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='device is "cuda:1", and torch finds no CUDA device here'):
            TorchLoader(arrays(), device="cuda:1")
    with TorchLoader(arrays(), batch_size=4, device="cpu") as loader:
        assert repr(loader) == "<fastbatch.TorchLoader of arrays: 3 batches of 4, epoch 0>"


# ---- DataLoader


def test_in_a_dataloader():
    with (
        TorchLoader(arrays(), batch_size=4, shuffle=True, seed=1, last_batch="pad") as loader,
        Loader(arrays(), batch_size=4, shuffle=True, seed=1, last_batch="pad") as plain,
    ):
        wrapped = torch.utils.data.DataLoader(loader, batch_size=None)
        assert len(wrapped) == 3
        for _ in range(2):
            for batch, expected in zip(wrapped, plain):
                assert batch.data.numpy().tobytes() == expected.data.tobytes()
                assert (batch.real, batch.sample_keys) == (expected.real, expected.sample_keys)


def test_not_in_the_workers_of_a_dataloader():
    with TorchLoader(arrays(), batch_size=4) as loader:
        words = "a TorchLoader cannot be used in a worker process of DataLoader: .* num_workers=0, its default"
        forked = torch.utils.data.DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="fork")
        with pytest.raises(RuntimeError, match=words):
            next(iter(forked))
        with pytest.raises(
            TypeError, match="a TorchLoader has threads of its own and cannot be pickled .* num_workers=0"
        ):
            pickle.dumps(loader)  # for other ways to start a process
        assert sum(len(batch.label) for batch in loader) == 10


# ---- the position, and a loader that is ahead of its caller. "meta" is a device that every torch has; its tensors have
# shapes, and no values.


@pytest.mark.parametrize("device", [None, "meta"])
def test_the_position_is_the_callers(device, tmp_path):
    options = {"batch_size": 4, "shuffle": True, "seed": 2}
    with Loader(arrays(), **options) as plain, TorchLoader(arrays(), device=device, **options) as loader:
        positions = [(loader.state_dict(), plain.state_dict())]
        keys = []
        for _ in range(2):
            for batch, expected in zip(loader, plain):
                assert batch["data"].device.type == (device or "cpu") and batch["data"].shape == expected.data.shape
                assert (batch.number, batch.sample_keys) == (expected.number, expected.sample_keys)
                positions.append((loader.state_dict(), plain.state_dict()))
                keys.append(batch.sample_keys)
            assert loader.epoch == plain.epoch
        for state, expected in positions:
            assert state == expected
        torch.save({"loader": positions[2][0]}, tmp_path / "checkpoint")
    with TorchLoader(arrays(), device=device, **options) as loader:
        loader.load_state_dict(torch.load(tmp_path / "checkpoint")["loader"])
        assert loader.state_dict() == positions[2][0]
        found = [batch.sample_keys for _ in range(2) for batch in loader]
        assert found == keys[2:]


def test_errors_come_in_their_turn_on_a_device():
    """While the caller uses a batch, the next one has failed."""
    source = PlannedSource("..r.")
    with TorchLoader(source, device="meta", threads=1, timeout=PATIENCE) as loader:
        iterator = iter(loader)
        assert next(iterator).number == 0
        assert next(iterator).number == 1
        assert loader.state_dict()["batch"] == 2 and loader.errors != []
        with pytest.raises(SampleError, match="sample 2"):
            next(iterator)
        assert loader.state_dict()["batch"] == 3
        assert next(iterator).number == 3
        assert next(iterator, None) is None and next(iterator, None) is None
        assert (loader.epoch, loader.state_dict()["epoch"]) == (1, 1)


def test_a_timeout_ahead_of_the_caller_is_none():
    """It counts once the caller waits, and nothing is lost."""
    source = PlannedSource(".w.")
    with TorchLoader(source, device="meta", threads=1, timeout=0.01) as loader:
        iterator = iter(loader)
        while True:
            with contextlib.suppress(DataTimeout):  # of a busy machine
                assert next(iterator).number == 0
                break
        with pytest.raises(DataTimeout):
            next(iterator)
        source.open_gate()
        found = []
        while len(found) < 2:
            with contextlib.suppress(DataTimeout):
                found.append(next(iterator).number)
        assert found == [1, 2]


def test_one_loop_at_a_time_on_a_device():

    def begun():
        iterator = iter(loader)
        next(iterator)
        return iterator

    with TorchLoader(np.arange(5), device="meta") as loader:
        first = begun()
        state = loader.state_dict()
        second = begun()
        with pytest.raises(RuntimeError, match="the rest of this epoch was given up"):
            next(first)
        assert loader.state_dict() == {**state, "epoch": 1}
        loader.load_state_dict(state)
        with pytest.raises(RuntimeError, match=r"this iterator is from before load_state_dict\(\)"):
            next(second)
        third = iter(loader)
        assert [batch.sample_keys for batch in third] == [[1], [2], [3], [4]]
        fourth = begun()
        loader.close()
        with pytest.raises(Closed):
            next(fourth)


@pytest.mark.parametrize("device", [None, "meta"])
def test_a_second_loop_in_the_body_of_the_first_is_refused(device):
    with TorchLoader(np.arange(4), device=device) as loader:
        for batch in loader:
            for again in loader.__iter__, lambda: loader.load_state_dict(loader.state_dict()):
                if batch.number < 3:
                    with pytest.raises(RuntimeError, match=r"an iterator .* is still open: .* or close\(\) it"):
                        again()
        assert [batch.epoch for batch in loader] == [1] * 4
        iterator = iter(loader)
        assert next(iterator).number == 0
        iterator.close()
        assert next(iterator, None) is None and loader.state_dict()["batch"] == 1
        assert [batch.epoch for batch in loader] == [3] * 4


@pytest.mark.parametrize("device", [None, "meta"])
def test_an_interrupt_anywhere_leaves_one_position(device):
    """After load_state_dict() had gone elsewhere, state_dict() still said where the caller had been."""
    with TorchLoader(np.arange(8), batch_size=2, seed=0, device=device, timeout=PATIENCE) as loader:

        def leave(number):
            for batch in loader:
                if batch.number == number:
                    return loader.state_dict()

        early = leave(0)

        def call():
            loader.load_state_dict(early)
            return next(iter(loader)).number

        for outcome in interrupted_everywhere(call):
            where = loader.state_dict()
            del outcome  # its traceback may hold an iterator
            loader.load_state_dict(where)
            assert [batch.number for batch in loader] == list(range(where["batch"], 4))
            leave(2)


def test_a_dropped_loader_is_closed_at_once():
    """Also if the next batch has failed already."""
    for device in None, "meta":
        for taken in 2, 3:
            source = PlannedSource("..r.")
            loader = TorchLoader(source, device=device, timeout=PATIENCE)
            iterator = iter(loader)
            for _ in range(taken):
                with contextlib.suppress(SampleError):
                    next(iterator)
            gc.disable()
            try:
                del loader, iterator
                assert source.deleted
            finally:
                gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    images = arrays(64)
    with (
        TorchLoader(images, batch_size=4, shuffle=True, seed=5, device="cuda") as loader,
        Loader(images, batch_size=4, shuffle=True, seed=5) as plain,
    ):
        assert loader.device == torch.device("cuda", torch.cuda.current_device())
        kept = []
        for _ in range(3):
            for batch, expected in zip(loader, plain):
                assert batch.data.device == loader.device
                kept.append((batch.data.float() * 2, expected.data.astype(np.float32) * 2))  # the caller's stream
        for found, expected in kept:
            np.testing.assert_array_equal(found.cpu().numpy(), expected)


# ---- several processes


@pytest.mark.slow
def test_ranks_of_torch_distributed(tmp_path):
    script = """
        import numpy as np, torch.distributed, sys
        from fastbatch.torch import TorchLoader
        rank = int(sys.stdin.readline())
        torch.distributed.init_process_group("gloo", init_method="file://{}", rank=rank, world_size=2)
        with TorchLoader(np.arange(20), batch_size=5, shuffle=True, seed=0, rank="auto") as loader:
            assert (loader.rank, loader.ranks) == (rank, 2)
            for batch in loader:
                both = [torch.empty_like(batch.data) for _ in range(2)]
                torch.distributed.all_gather(both, batch.data)
                print(torch.cat(both).tolist())
        torch.distributed.destroy_process_group()
    """.format(tmp_path / "meeting")
    children = [start_child(script) for _ in range(2)]
    for rank, child in enumerate(children):
        child.stdin.write(f"{rank}\n")
        child.stdin.flush()
    first, second = (finish_child(child) for child in children)
    steps = [eval(line) for line in first.splitlines()]
    assert first == second and len(steps) == 2 and sorted(itertools.chain(*steps)) == list(range(20))
    with Loader(np.arange(20), batch_size=10, shuffle=True, seed=0) as loader:
        assert [set(step) for step in steps] == [set(batch.data.tolist()) for batch in loader]


# ---- PyTorch's data sets as sources


@pytest.mark.parametrize("options", [{"kind": "thread"}, {"start_method": "fork"}], ids=["threads", "processes"])
@pytest.mark.parametrize("dataset", [torch_datasets.Images(), torch_datasets.Records()], ids=["tuple", "dict"])
def test_a_dataset_gives_the_batches_of_a_dataloader(dataset, options):
    expected = list(torch.utils.data.DataLoader(dataset, batch_size=4))
    with TorchLoader(PythonSource(dataset, workers=2, **options), batch_size=4, timeout=PATIENCE) as loader:
        found = list(zip(loader, expected))
        assert len(found) == len(expected) == 3
        for batch, collated in found:
            collated = collated if isinstance(collated, dict) else dict(zip(["data", "label"], collated))
            assert list(batch) == list(collated)
            for name, tensor in collated.items():
                assert batch[name].dtype == tensor.dtype and batch[name].shape == tensor.shape
                assert torch.equal(batch[name], tensor.detach())


def test_loaders_are_no_sources():
    """A DataLoader can be iterated over and has a length, but its samples are batches."""
    theirs = torch.utils.data.DataLoader(torch_datasets.Images(), batch_size=2)
    with TorchLoader(np.zeros((4, 2))) as ours:
        for make in Loader, TorchLoader, PythonSource:
            with pytest.raises(TypeError, match=r"is a DataLoader, .* give its data set \(loader.dataset\), and tell"):
                make(theirs)
        for make in Loader, TorchLoader:
            with pytest.raises(TypeError, match=r"not a TorchLoader, .* give its source \(loader.source\), and say"):
                make(ours)


def test_a_loader_makes_a_source_of_a_dataset():
    source = as_source(torch_datasets.Images())
    assert isinstance(source, PythonSource) and len(source) == 10 and source.kind == "process"
    with pytest.raises(
        TypeError, match=r"Stream, which does not say how many samples .*PythonSource\(..., count=...\)"
    ):
        TorchLoader(torch_datasets.Stream())


def test_an_iterable_dataset():
    source = PythonSource(torch_datasets.Stream(), count=10, kind="thread")
    with TorchLoader(source, batch_size=4, timeout=PATIENCE) as loader:
        for _ in range(2):
            assert labels(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_tensors_of_a_dataset_are_sent_to_each_worker():
    """torch sends a tensor to one process at a time."""
    dataset = torch.utils.data.TensorDataset(torch.arange(40.0).reshape(10, 4), torch.arange(10))
    with TorchLoader(PythonSource(dataset, workers=3), batch_size=10, timeout=PATIENCE) as loader:
        [batch] = loader
    assert batch["data"].tolist() == dataset.tensors[0].tolist()


def test_random_numbers_of_torch_belong_to_the_sample():
    """For any number of processes; each of them computes with one thread, as a DataLoader's worker."""

    def epochs(workers):
        source = PythonSource(torch_datasets.Randoms(), workers=workers, start_method="fork")
        with TorchLoader(source, batch_size=4, seed=6, timeout=PATIENCE) as loader:
            return [epoch(loader) for _ in range(2)]

    found = epochs(1)
    assert epochs(2) == found
    numbers = []
    for batch in itertools.chain(*found):
        drawn, own, threads = batch.values()
        assert drawn == own and set(threads) == {1}
        numbers += map(tuple, drawn)
    assert len(numbers) == len(set(numbers)) == 20


@pytest.mark.parametrize("seed", [0, 6, 2**32, 2**64 - 1])
def test_the_generator_of_torch_is_seeded_as_by_manual_seed(seed):
    seeder, before = Seeder(), torch.get_rng_state()
    try:
        torch.randn(7)  # an odd number: one more is kept for the next call
        state = torch.get_rng_state()
        seeder.seed(9)
        assert seeder.by_words == {"random", "numpy", "torch"}  # if not, it is slower
        torch.set_rng_state(state)
        seeder.seed(seed)
        assert torch.initial_seed() == seed
        state, drawn = torch.get_rng_state(), torch.randn(1001)
        torch.default_generator.manual_seed(seed)
        assert state.equal(torch.get_rng_state()) and drawn.equal(torch.randn(1001))
    finally:
        torch.set_rng_state(before)


def test_a_tensor_that_numpy_has_no_type_for():
    source = PythonSource(torch_datasets.Bfloats(), kind="thread")
    with pytest.raises(SourceError, match="data: a value is a tensor that cannot become an array: .*BFloat16"):
        source.fields


# ---- the example


@pytest.mark.slow
def test_the_example(tmp_path):
    command = [sys.executable, EXAMPLE, tmp_path / "checkpoint.pt"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [f"epoch {i}" for i in range(3)]
    assert float(result.stdout.splitlines()[-1].split()[-1].rstrip("%")) > 90


@pytest.mark.slow
def test_the_example_says_how_it_is_used():
    result = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, env=environment())
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "usage: python examples/torch_training.py checkpoint.pt\n"
