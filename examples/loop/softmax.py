"""A plain Python loop over an LMDB database: softmax regression in NumPy, on handwritten digits.

pip install -r tools/requirements-demo.txt         what writing them needs
python examples/digits/databases.py build/demo     writes them, as `make demo` does
python examples/loop/softmax.py [build/demo]
"""

import sys
from pathlib import Path

import numpy as np

import fastbatch

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo")
transform = fastbatch.Transform(scale=1 / 256)
weights = np.zeros((32 * 32, 10), np.float32)


def digits(name):
    """The digits for training ("train") or for testing ("test"). Without LMDB, the same digits as arrays."""
    if fastbatch.features()["lmdb"]:
        return fastbatch.LMDBSource(folder / f"{name}_lmdb")
    with np.load(folder / f"{name}.npz") as arrays:
        return fastbatch.ArraySource(arrays["data"], arrays["label"])


with fastbatch.Loader(digits("train"), transform, batch_size=64, shuffle=True, seed=1) as loader:
    for _epoch in range(20):
        for batch in loader:  # one `for` is one epoch
            data = batch["data"].reshape(len(batch["data"]), -1)  # float32, of shape (64, 1, 32, 32) before
            scores = np.exp(data @ weights)
            scores /= scores.sum(axis=1, keepdims=True)
            scores[np.arange(len(scores)), batch["label"]] -= 1
            weights -= 0.01 * data.T @ scores / len(scores)

right = 0
test = digits("test")
with fastbatch.Loader(test, transform, batch_size=64) as loader:
    for batch in loader:
        data = batch["data"].reshape(len(batch["data"]), -1)
        right += np.count_nonzero((data @ weights).argmax(axis=1) == batch["label"])
print(f"{right / len(test):.1%} of {len(test)} digits never trained on are recognized")
