"""The layer of before.py on fastbatch: worker processes load the images ahead, while the net computes.

`diff before.py after.py` shows the lines that changed. The order is now that of the layer: with 'shuffle': True in its
param_str it is a new one in each epoch, as before.
"""

import os
import random
import xml.etree.ElementTree as ElementTree

import numpy as np
from PIL import Image

import fastbatch.caffe

CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


class MultilabelLayer(fastbatch.caffe.Layer):
    """Images, and for each of the 20 classes whether the image shows one."""

    def source(self, **params):
        loader = BatchLoader(**params)
        return fastbatch.PythonSource(loader.load_image, len(loader.names))


class BatchLoader:
    """Loads the images of a split, such as "train"."""

    def __init__(self, pascal_root, split, im_shape):
        self.root = pascal_root
        self.shape = im_shape
        with open(os.path.join(self.root, "ImageSets/Main", f"{split}.txt")) as file:
            self.names = file.read().split()

    def load_image(self, index):
        name = self.names[index]
        image = Image.open(os.path.join(self.root, "JPEGImages", f"{name}.jpg")).convert("RGB")
        pixels = np.asarray(image.resize(self.shape[::-1], Image.BILINEAR), dtype=np.float32)
        pixels = pixels[:, :: random.choice((1, -1)), ::-1] - (104, 117, 123)  # mirror, BGR, mean
        return pixels.transpose(2, 0, 1).astype(np.float32), self.load_labels(name)

    def load_labels(self, name):
        labels = np.zeros(len(CLASSES), dtype=np.float32)
        for shown in ElementTree.parse(os.path.join(self.root, "Annotations", f"{name}.xml")).iter("object"):
            labels[CLASSES.index(shown.findtext("name"))] = 1
        return labels
