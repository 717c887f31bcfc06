"""A data layer as many have written it: forward() loads a batch of PASCAL VOC images, one after the other.

Net and solver stand still meanwhile. after.py is the same layer on fastbatch.
"""

import os
import random
import xml.etree.ElementTree as ElementTree

import caffe
import numpy as np
from PIL import Image

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


class MultilabelLayer(caffe.Layer):
    """Images, and for each of the 20 classes whether the image shows one."""

    def setup(self, bottom, top):
        params = eval(self.param_str)
        self.batch_size = params.pop("batch_size")
        self.loader = BatchLoader(**params)
        top[0].reshape(self.batch_size, 3, *params["im_shape"])
        top[1].reshape(self.batch_size, len(CLASSES))

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        for row in range(self.batch_size):
            top[0].data[row], top[1].data[row] = self.loader.load_next_image()

    def backward(self, top, propagate_down, bottom):
        pass


class BatchLoader:
    """Loads the images of a split, such as "train", in a new order each time it has shown all of them."""

    def __init__(self, pascal_root, split, im_shape):
        self.root = pascal_root
        self.shape = im_shape
        with open(os.path.join(self.root, "ImageSets/Main", f"{split}.txt")) as file:
            self.names = file.read().split()
        self.current = len(self.names)

    def load_next_image(self):
        if self.current == len(self.names):
            self.current = 0
            random.shuffle(self.names)
        name = self.names[self.current]
        self.current += 1
        image = Image.open(os.path.join(self.root, "JPEGImages", f"{name}.jpg")).convert("RGB")
        pixels = np.asarray(image.resize(self.shape[::-1], Image.BILINEAR), dtype=np.float32)
        pixels = pixels[:, :: random.choice((1, -1)), ::-1] - (104, 117, 123)  # mirror, BGR, mean
        return pixels.transpose(2, 0, 1).astype(np.float32), self.load_labels(name)

    def load_labels(self, name):
        labels = np.zeros(len(CLASSES), dtype=np.float32)
        for shown in ElementTree.parse(os.path.join(self.root, "Annotations", f"{name}.xml")).iter("object"):
            labels[CLASSES.index(shown.findtext("name"))] = 1
        return labels
