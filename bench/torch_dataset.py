"""A PyTorch Dataset through PythonSource, against torch's own DataLoader with as many workers.

The samples cost next to nothing to make, so that what remains is their way into the batch.
"""

import pytest

pytest.importorskip("torch")
import torch

from fastbatch import PythonSource
from fastbatch.torch import TorchLoader
from interleave import Loop, in_turns

WORKERS = 2


class Tensors(torch.utils.data.Dataset):
    """Samples of this shape, float32, with a label."""

    def __init__(self, shape):
        self.shape = shape

    def __len__(self):
        return 20_000

    def __getitem__(self, index):
        return torch.full(self.shape, float(index)), index


@pytest.mark.parametrize(
    "name, shape, batch, at_least",
    [("600 KB", (3, 224, 224), 32, 1.5), ("64 bytes", (16,), 256, 1)],
    ids=["600_kb", "64_bytes"],
)
def bench_torch_dataset(benchmark, report, name, shape, batch, at_least):
    dataset = Tensors(shape)
    theirs = torch.utils.data.DataLoader(dataset, batch_size=batch, num_workers=WORKERS, persistent_workers=True)
    usual = endless(theirs)
    with TorchLoader(PythonSource(dataset, workers=WORKERS), batch_size=batch) as loader:
        batches = endless(loader)
        # DataLoader prepares two batches for each worker, which are used up before a turn.
        sides = {"torch": Loop(lambda: next(usual), batch, skip=2 * WORKERS + 1)}
        rates = in_turns(benchmark, Loop(lambda: next(batches), batch, skip=5), sides)
    report.ratio(f"a Dataset, {name}: against DataLoader", rates["ours"], rates["torch"], at_least=at_least)
    report.values(f"a Dataset, {name}, 2 processes", rates["ours"], "samples/s")
    report.values(f"DataLoader, {name}, 2 processes", rates["torch"], "samples/s")


def endless(loader):
    """Epoch after epoch."""
    while True:
        yield from loader
