"""PyTorch data sets, for tests of `PythonSource` and `TorchLoader`. Worker processes import this file."""

import numpy as np
import torch

import fastbatch
from datasets import image, photo


class Images(torch.utils.data.Dataset):
    """Tensors of uint8 with labels."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.from_numpy(image(index)), index


class Records(Images):
    """Dicts of all that default_collate takes and that has one size."""

    def __getitem__(self, index):
        return {
            "image": torch.from_numpy(image(index)).float(),
            "weight": torch.tensor(index / 3, requires_grad=True),
            "box": torch.arange(4) + index,
            "mask": np.full((2, 3), index % 2 == 0),
            "id": index,
            "score": index / 7,
        }


class Randoms(Images):
    """What torch draws by its global generator, and with the sample's seed; and the worker's number of threads."""

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(fastbatch.current_sample().seed)
        return torch.rand(3), torch.rand(3, generator=generator), torch.get_num_threads()


class Stream(torch.utils.data.IterableDataset):
    """Samples one after the other."""

    def __iter__(self):
        for index in range(10):
            yield torch.full((2,), index), index


class Photos(Images):
    """Images of different sizes, with channels last in memory, shown with channels first."""

    def __getitem__(self, index):
        return torch.from_numpy(photo(index)).permute(1, 2, 0).contiguous().permute(2, 0, 1), index


class Bfloats(Images):
    """Of a type that NumPy has not."""

    def __getitem__(self, index):
        return torch.zeros(2, dtype=torch.bfloat16)
