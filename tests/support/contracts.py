"""What every source must be able to do. A test of a source is its data and one call of `check_source`."""

import numpy as np

from fastbatch import Loader, SampleError
from fastbatch._batches import BatchRing
from fastbatch.orders.caffe import CaffeRecords

PATIENCE = 20  # seconds before a batch counts as hung


def check_source(source, expected, keys=None):
    """Asserts that `source` delivers `expected` by every way of reading a source.

    source
        Any source. It is given to several loaders, one after the other and at the same time.
    expected : dict of str to sequence of arrays
        The fields in their order; of each, an array for every sample, of the type that batches have untransformed.
    keys : list, optional
        The samples' keys; their indices if the source has none.
    """
    count = len(next(iter(expected.values())))
    keys = list(range(count)) if keys is None else keys
    assert len(source) == count
    assert repr(source)
    check_in_order(source, expected, keys)
    check_shuffled(source, expected, keys)
    check_shared(source, expected)
    check_early_end(source, expected)
    check_ranks(source, keys)


def loader_of(source, **options):
    return Loader(source, timeout=PATIENCE, **options)


def counting(count, **options):
    """A loader of the numbers 0, 1, ..."""
    return Loader(np.arange(count), **{"timeout": PATIENCE, **options})


def assert_samples(batch, expected, indices):
    """Asserts that the batch holds these samples, bit for bit, in this order."""
    assert batch.names == tuple(expected)
    assert len(batch) == len(indices)
    for name, values in expected.items():
        array = batch[name]
        assert array.dtype == values[0].dtype, name
        assert array.flags.c_contiguous and array.ctypes.data % 64 == 0, name
        for row, index in zip(array, indices):
            assert row.shape == values[index].shape, f"{name} of sample {index}"
            assert row.tobytes() == values[index].tobytes(), f"{name} of sample {index}"


def chunks(count, size):
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def same_shapes(expected):
    return all(len({value.shape for value in values}) == 1 for values in expected.values())


def check_in_order(source, expected, keys):
    """Two epochs in order, for one thread and for many, for batches of one, of some, and of more than all."""
    count = len(keys)
    for threads, batch_size in ((1, 1), (1, 3), (2, 3), (5, 2), (2, count + 1)):
        if batch_size > 1 and not same_shapes(expected):
            continue
        with loader_of(source, threads=threads, batch_size=batch_size, prefetch=2) as loader:
            for epoch in range(2):
                wanted = chunks(count, batch_size)
                assert len(loader) == len(wanted)
                number = -1
                for number, batch in enumerate(loader):
                    assert (batch.epoch, batch.number) == (epoch, number)
                    assert_samples(batch, expected, wanted[number])
                    assert batch.sample_keys == [keys[index] for index in wanted[number]]
                assert number == len(wanted) - 1


def check_shuffled(source, expected, keys):
    """Every sample once in each epoch, with its own key and values."""
    order = {key: index for index, key in enumerate(keys)}
    with loader_of(source, shuffle=True, seed=5, threads=3, batch_size=1) as loader:
        for _ in range(2):
            seen = []
            for batch in loader:
                (index,) = indices = [order[key] for key in batch.sample_keys]
                assert_samples(batch, expected, indices)
                seen.append(index)
            assert sorted(seen) == list(range(len(keys)))


def check_shared(source, expected):
    """Two loaders alternate on one source, each at its own position."""
    with loader_of(source, threads=2) as first, loader_of(source, threads=2) as second:
        ahead = iter(first)
        for index in range(len(source) // 2):
            assert_samples(next(ahead), expected, [index])
        for index, batch in enumerate(second):
            assert_samples(batch, expected, [index])
        for index in range(len(source) // 2, len(source)):
            assert_samples(next(ahead), expected, [index])


def check_early_end(source, expected):
    """After an epoch is left early, the next begins with the first sample."""
    with loader_of(source, threads=2, prefetch=1) as loader:
        for epoch in range(5):
            for batch in loader:
                assert batch.epoch == epoch
                assert_samples(batch, expected, [0])
                break


def check_ranks(source, keys):
    """Asked for every third sample, over and over, from each of three starts."""
    for rank in range(3):
        ring = BatchRing(source, batch_size=1, slots=3, threads=2, order=CaffeRecords(0, rank=rank, ranks=3))
        try:
            for step in range(2 * len(keys)):
                assert ring.next(PATIENCE).sample_keys == [keys[(rank + 3 * step) % len(keys)]]
        finally:
            ring.close()


def stack(images, labels):
    """`expected` of images with integer labels."""
    return {"data": list(images), "label": [np.int64(label) for label in labels]}


def outcomes(epoch):
    """What every batch of an epoch is: its keys, or its error."""
    found = []
    while True:
        try:
            found.append(next(epoch).sample_keys)
        except StopIteration:
            return found
        except SampleError as error:
            found.append(error)


class Holder:
    """Something that refers to itself: only the garbage collector frees it."""

    def __init__(self, held):
        self.held = held
        self.me = self
