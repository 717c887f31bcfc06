"""Data layers for lists of image files: with masks, and with several labels. See the two nets beside this file."""

import fastbatch.caffe
from fastbatch import ImageListSource, Joined


class ImagesAndMasks(fastbatch.caffe.Layer):
    """Images and masks of the same size, as FCN and SegNet take them: the path of each, in a line of a list."""

    def source(self, images_and_masks):
        """Return the images, with the masks as "label": gray images of the numbers of classes."""
        with open(images_and_masks) as lines:
            images, masks = zip(*[line.split() for line in lines if line.strip()])
        return Joined(ImageListSource(images), label=ImageListSource(masks, color="gray"))


class ManyLabels(fastbatch.caffe.Layer):
    """Images with several labels, as convert_imageset cannot take them: lines such as `cats/1.jpg 0 1 0 1`."""

    def source(self, images, labels, size):
        """Return the images, resized, and their labels."""
        return ImageListSource(images, size=size, labels=labels)
