"""Writes images from scikit-learn as LMDB databases of Datum records, like those that Caffe's own tools write.

python examples/digits/databases.py FOLDER     writes the digits; needs no Caffe
"""

import os
import shutil
import sys

import lmdb
import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

TEST_SIZE = 450  # also the batch_size of the TEST nets: one batch is the whole test set
PHOTOS = 128


def write_digits(folder):
    """Writes `folder`/train_lmdb and `folder`/test_lmdb; returns how many digits are in each.

    Beside them, train.npz and test.npz hold the same as arrays, for a fastbatch that was built without LMDB. The split
    has a fixed seed, and all ten digits in the same proportion. The training digits are in random order, which is the
    order in which a Data layer reads them.
    """
    digits = load_digits()
    images = [enlarged(image) for image in digits.images]
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=TEST_SIZE, random_state=0, stratify=digits.target
    )
    for name, part, labels in ("train", train, train_labels), ("test", test, test_labels):
        write(os.path.join(folder, f"{name}_lmdb"), part, labels)
        np.savez(os.path.join(folder, f"{name}.npz"), data=np.stack(part), label=labels)
    return len(train), len(test)


def enlarged(image):
    """8x8 values from 0 to 16 as bytes, 1x32x32: each pixel becomes 4x4. LeNet reads crops of 28x28."""
    return np.kron(np.round(image * 255 / 16), np.ones((1, 4, 4))).astype(np.uint8)


def write_photos(folder):
    """Writes `folder`/photos_lmdb: pieces of two photographs, 3x256x256, the input size of ImageNet nets."""
    photographs = load_sample_images().images
    random = np.random.RandomState(0)
    pieces, labels = [], []
    for number in range(PHOTOS):
        label = number % 2
        photo = photographs[label]
        top, left = random.randint(photo.shape[0] - 255), random.randint(photo.shape[1] - 255)
        piece = photo[top : top + 256, left : left + 256, ::-1]  # blue, green, red, as Caffe has them
        pieces.append(np.ascontiguousarray(piece.transpose(2, 0, 1)))
        labels.append(label)
    write(os.path.join(folder, "photos_lmdb"), pieces, labels)


def write(path, images, labels):
    """A new database of images, each channels x height x width, with their labels."""
    shutil.rmtree(path, ignore_errors=True)
    with lmdb.open(path, map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for number, (image, label) in enumerate(zip(images, labels)):
            transaction.put(b"%08d" % number, datum(image, int(label)))


def datum(image, label):
    """The Datum of an image, channels x height x width, as caffe.io.array_to_datum(...).SerializeToString() returns it.

    The fields in caffe.proto are: 1 channels, 2 height, 3 width, 4 data, 5 label. A field begins with its number times
    8, plus 2 if the value is bytes, which follow their length.
    """
    fields = b"".join(bytes([8 * number]) + varint(size) for number, size in enumerate(image.shape, 1))
    return fields + b"\x22" + varint(image.size) + image.tobytes() + b"\x28" + varint(label)


def varint(value):
    """A nonnegative integer as a protobuf varint: 7 bits per byte, lowest first, plus 128 if another byte follows."""
    head = b""
    while value >= 128:
        head += bytes([value % 128 + 128])
        value //= 128
    return head + bytes([value])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/digits/databases.py FOLDER")
    os.makedirs(sys.argv[1], exist_ok=True)
    write_digits(sys.argv[1])
