"""Loading code of a user's own, for python_source.py: the same for a PythonSource and for the usual recipe."""

import os
import time

import numpy

SHAPE = (3, 227, 227)
MEAN = numpy.array((104, 117, 123), dtype=numpy.float32).reshape(3, 1, 1)


class Small:
    """Samples of 64 bytes, which take no time."""

    def __init__(self):
        self.sample = numpy.arange(64, dtype=numpy.uint8)

    def __len__(self):
        return 2**30

    def __getitem__(self, index):
        return self.sample


class Photographs:
    """Crops of JPEG files, decoded and prepared with OpenCV and NumPy."""

    def __init__(self, folder):
        self.paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        import cv2  # not in every environment of the benchmarks

        cv2.setNumThreads(1)
        random = numpy.random.RandomState(index)
        image = cv2.imread(self.paths[index % len(self.paths)])
        top, left = random.randint(image.shape[0] - SHAPE[1] + 1), random.randint(image.shape[1] - SHAPE[2] + 1)
        image = image[top : top + SHAPE[1], left : left + SHAPE[2]]
        if random.randint(2):
            image = image[:, ::-1]
        return image.transpose(2, 0, 1).astype(numpy.float32) - MEAN, index


def put_items(item, queue):
    """A process of the recipe, as fast as it can be: the same item over and over."""
    while True:
        queue.put(item)


def put_samples(dataset, rank, ranks, queue):
    """A process of the recipe: every sample of its share, over and over."""
    while True:
        for index in range(rank, len(dataset), ranks):
            queue.put(dataset[index])


def load_only(dataset, rank, ranks, seconds, counts):
    """A process that loads, and gives the samples to nobody. Reports samples per second."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        dataset[rank + count * ranks % len(dataset)]
        count += 1
    counts.put(count / (time.perf_counter() - begin))
