"""A data layer of your own: worker processes load a data set in Python while the net computes. See net.prototxt."""

import numpy as np

import fastbatch.caffe


class Circles:
    """Images of circles: each sample is an image, and the circle's center and radius."""

    def __init__(self, count, size):
        self.count = count
        self.size = size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        random = np.random.default_rng(index)  # the same sample in whichever process
        radius = random.uniform(2, self.size / 4)
        y, x = random.uniform(radius, self.size - radius, 2)
        rows, columns = np.ogrid[: self.size, : self.size]
        image = (np.hypot(rows - y, columns - x) <= radius).astype(np.float32)
        return {"data": image[np.newaxis], "circle": np.array([y, x, radius], np.float32)}


class CirclesLayer(fastbatch.caffe.Layer):
    """What net.prototxt names. Its param_str says `count` and `size`."""

    def source(self, count, size):
        """Return the data set."""
        return fastbatch.PythonSource(Circles(count, size), workers=2)
