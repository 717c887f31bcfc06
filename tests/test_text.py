"""Words of messages."""

import numpy as np
import pytest

from fastbatch import ArraySource, Loader, PythonSource, Subset
from fastbatch._text import counted, there_are


@pytest.mark.parametrize(
    "number, noun, words",
    [(0, "sample", "0 samples"), (1, "sample", "1 sample"), (2, "batch", "2 batches"), (1, "class", "1 class")],
)
def test_numbers_with_their_nouns(number, noun, words):
    assert counted(number, noun) == words
    assert there_are(number, noun) == f"there {'is' if number == 1 else 'are'} {words}"


def test_one_is_no_plural():
    one = ArraySource(np.arange(1))
    assert repr(one[:]).endswith(", 1 sample)")
    assert repr(PythonSource([3], workers=1)) == "PythonSource(list, 1 sample, workers=1, kind='process')"
    with Loader(one) as loader:
        assert repr(loader) == "<fastbatch.Loader of arrays: 1 batch of 1, epoch 0>"
        batch = next(iter(loader))
        with pytest.raises(IndexError, match="the batch has 1 array, numbered from 0; there is no 1"):
            batch.address(1)
        with pytest.raises(ValueError, match="a data set of 2 samples, and this one has 1"):
            loader.load_state_dict({"epoch": 0, "batch": 0, "order": [2, 1, loader.seed, 0, 0]})
    with pytest.raises(IndexError, match=r"is out of range: there is 1 sample$"):
        Subset(one, [1])
    with pytest.raises(IndexError, match="the mask has 2 values, and the source 1 sample"):
        Subset(one, [True, False])
    with pytest.raises(ValueError, match="there is 1 sample, so shard 1 of 2 is empty"):
        Loader(one, rank=1, ranks=2)
