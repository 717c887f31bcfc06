"""A training in PyTorch that goes on where it was stopped: a Dataset, loaded by processes, in batches of tensors.

python examples/torch_training.py checkpoint.pt

Stop it by Ctrl-C, in the middle of an epoch, and start it again.
"""

import os
import sys

import torch
from torch.utils.data import Dataset

from fastbatch import PythonSource
from fastbatch.torch import TorchLoader

EPOCHS = 3


class Shapes(Dataset):
    """Noisy pictures of bars: a task for a small net. Any other Dataset does as well."""

    def __len__(self):
        return 2000

    def __getitem__(self, index):
        label = index % 4  # which quarter of the picture is brighter
        image = torch.rand(1, 16, 16)  # seeded for each sample and epoch: the same in any process
        image[:, 4 * label : 4 * label + 4] += 0.5
        return image, label


def main(path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.to(device)

    source = PythonSource(Shapes(), names=("image", "label"), workers=2)
    with TorchLoader(source, batch_size=50, shuffle=True, seed=1, rank="auto", device=device) as loader:
        if os.path.exists(path):
            state = torch.load(path)
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
        try:
            for epoch in range(loader.epoch, EPOCHS):
                right = count = 0
                for batch in loader:
                    scores = net(batch["image"])
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(scores, batch["label"]).backward()
                    optimizer.step()
                    right += (scores.argmax(1) == batch["label"]).sum().item()
                    count += len(scores)
                print(f"epoch {epoch}: recognized {right / max(count, 1):.1%}", flush=True)
        finally:
            state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
            torch.save(state, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/torch_training.py checkpoint.pt")
    main(sys.argv[1])
