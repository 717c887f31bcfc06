"""README.md's loops in Python, as the scripts that its readers make of them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from children import HANG, environment
from databases import datum, write_lmdb

README = Path(__file__).resolve().parents[1] / "README.md"
USERS_OWN = """
import fastbatch

class FaceDataset:
    def __init__(self, folder):
        assert folder == "faces/"
    def __len__(self):
        return 100
    def __getitem__(self, index):
        return [index] * 3, index

seen = []

def train(data, label):
    assert data.shape[1:] == SHAPE, data.shape
    seen.extend(label.tolist())
"""


def example(with_words):
    """The block of Python in the README that has these words."""
    [found] = [
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if with_words in block
    ]
    return found


@pytest.mark.parametrize(
    "words, shape, epochs", [('Loader(FaceDataset("faces/")', (3,), 1), ("LMDBSource(", (3, 227, 227), 10)]
)
def test_a_loop_runs_as_a_script(tmp_path, words, shape, epochs):
    write_lmdb(tmp_path / "train_lmdb", [datum(np.zeros((3, 230, 240), np.uint8), label) for label in range(100)])
    script = tmp_path / "script.py"
    script.write_text(
        f"SHAPE = {shape}\n{USERS_OWN}\n{example(words)}\n"
        f'if __name__ == "__main__":\n    assert sorted(seen) == sorted({epochs} * list(range(100)))\n'
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stderr) == (0, "")
