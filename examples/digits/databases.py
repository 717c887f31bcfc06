"""Real images out of scikit-learn's package, as LMDB databases of Datum records like those of Caffe's own tools."""

import os
import shutil

import caffe
import lmdb
import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

TEST_SIZE = 450  # the batch_size of the TEST nets: one batch is the whole test set
PHOTOS = 128


def write_digits(folder):
    """Writes `folder`/train_lmdb and `folder`/test_lmdb; returns how many digits are in each.

    The split is drawn with a fixed seed and has all ten digits in the same proportion. It leaves the training digits in
    a random order, in which a Data layer reads them.
    """
    digits = load_digits()
    images = [enlarged(image) for image in digits.images]
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=TEST_SIZE, random_state=0, stratify=digits.target)
    write(os.path.join(folder, "train_lmdb"), train, train_labels)
    write(os.path.join(folder, "test_lmdb"), test, test_labels)
    return len(train), len(test)


def enlarged(image):
    """8x8 values from 0 to 16 as bytes, 1x32x32: each pixel becomes 4x4. LeNet sees crops of 28x28."""
    return np.kron(np.round(image * 255 / 16), np.ones((1, 4, 4))).astype(np.uint8)


def write_photos(folder):
    """Writes `folder`/photos_lmdb: pieces of two photographs, 3x256x256, what nets for ImageNet read."""
    photographs = load_sample_images().images
    random = np.random.RandomState(0)
    pieces, labels = [], []
    for number in range(PHOTOS):
        label = number % 2
        photo = photographs[label]
        top, left = random.randint(photo.shape[0] - 255), random.randint(photo.shape[1] - 255)
        piece = photo[top:top + 256, left:left + 256, ::-1]  # blue, green, red, as Caffe has them
        pieces.append(np.ascontiguousarray(piece.transpose(2, 0, 1)))
        labels.append(label)
    write(os.path.join(folder, "photos_lmdb"), pieces, labels)


def write(path, images, labels):
    """A new database of images, each channels x height x width, with their labels."""
    shutil.rmtree(path, ignore_errors=True)
    with lmdb.open(path, map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for number, (image, label) in enumerate(zip(images, labels)):
            transaction.put(b"%08d" % number, caffe.io.array_to_datum(image, int(label)).SerializeToString())
