"""`MemoryData`, a drop-in for Caffe's own MemoryData layer: consecutive batches from the user's arrays.

The order of operations follows Caffe's memory_data_layer.cpp, base_data_layer.cpp and data_transformer.cpp, and what
its Python interface does around them in _caffe.cpp and pycaffe.py.
"""

import warnings

import numpy as np

from fastbatch._transform import NativeTransform
from fastbatch.caffe.layers import params
from fastbatch.caffe.layers.base import Layer
from fastbatch.caffe.layers.schema import Message, Schema
from fastbatch.caffe.layers.transform_param import transform_of
from fastbatch.errors import Closed

__all__ = ["MemoryData", "set_input_arrays"]


def set_input_arrays(net, data, labels):
    """Give these arrays to the net's only `fastbatch.caffe.MemoryData` layer, as `MemoryData.set_input_arrays` does.

    Replaces pycaffe's `net.set_input_arrays(data, labels)`, which supports Caffe's own layer only. Raises RuntimeError
    if the net has no such layer or several; for several, use `net.layers[i].set_input_arrays`.
    """
    layers = [layer for layer in net.layers if isinstance(layer, MemoryData)]
    if len(layers) != 1:
        raise RuntimeError(
            "set_input_arrays may only be called if one layer of the net is a MemoryData layer of fastbatch's; this "
            f"net has {len(layers)} (for several: net.layers[i].set_input_arrays)"
        )
    layers[0].set_input_arrays(data, labels)


class MemoryData(Layer):
    """Consecutive batches from arrays in memory, repeated indefinitely, without a copy.

    Tops: data, float32 (batch_size, channels, height, width), and label, float32 (batch_size,). From the first
    forward() on, label has shape (batch_size, 1, 1, 1), as in Caffe.

    Parameters: memory_data_param and transform_param, in the layer itself (as for Caffe's own layer) or in `param_str`.
    `param_str` also accepts the options seed and zero_copy (see docs/caffe-layer.md).

    The arrays come from `set_input_arrays` or `add`. The layer holds them while the net shows them, and releases them
    in the forward() after they were replaced.

    Errors are Python exceptions that quote Caffe's messages. Thread-safety: a layer belongs to the thread that runs its
    net.
    """

    schema = Schema(
        "MemoryData",
        messages={
            "memory_data_param": Message("MemoryDataParameter", ("batch_size", "channels", "height", "width")),
            "transform_param": params.TRANSFORM,
        },
        options=[params.SEED, params.ZERO_COPY],
        absent={
            **dict.fromkeys(
                ("on_error", "error_budget"),
                "MemoryData shows arrays that are in memory: no sample of them can fail. Leave it out.",
            ),
            **params.no_cache("MemoryData shows arrays that are in memory already"),
        },
        example="memory_data_param { batch_size: 64 channels: 3 height: 32 width: 32 }",
    )
    conversion_note = (
        "in your program, write fastbatch.caffe.set_input_arrays(net, data, labels) from now on, because "
        "net.set_input_arrays(data, labels) feeds Caffe's own layer only"
    )

    _arrays = None  # what the next forward() shows
    _closed = False
    _survives_fork = True  # it has neither threads nor locks

    @classmethod
    def check(cls, parsed):
        """Reject also a shape without values."""
        param = parsed.memory_data_param
        numbers = param.batch_size, param.channels, param.height, param.width
        if not all(numbers):
            raise ValueError(
                "batch_size, channels, height, and width must be specified and positive in memory_data_param; they are "
                f"{', '.join(map(str, numbers))}"
            )
        super().check(parsed)

    def _open(self, parsed, top):
        param, self._name = parsed.memory_data_param, str(self._param)
        self._batch_size, self._image = param.batch_size, (param.channels, param.height, param.width)
        self._transform = transform_of(parsed.transform_param, self.phase)
        self._pixels = NativeTransform(self._transform, caffe_draws=True)
        self._transforms = parsed.HasField("transform_param")
        self._random = None
        shapes = [(self._batch_size, *self._image), (self._batch_size,)]
        self._check_size(self._name, shapes[0])
        if self._transform.mirror or (self._transform.phase == "TRAIN" and self._transform.crop_size):
            # DataTransformer::InitRand of BaseDataLayer::LayerSetUp. This generator yields the same raw words as
            # Caffe's boost::mt19937.
            self._random = np.random.RandomState(self._stream(parsed).take())
        self._give_tops(top, shapes, parsed, where=self._name, keeps_older=True)

    def set_input_arrays(self, data, labels):
        """Replace the arrays. The next forward() shows the new ones from their beginning.

        data: float32 (n, channels, height, width), with the layer's own channels, height and width; n is a multiple of
        batch_size.
        labels: float32 (n,) or (n, 1, 1, 1).

        Both must be C contiguous. They are not copied: the next forward() shows what is written into them, and a layer
        that works in place writes into them. Only read-only arrays, such as those from np.load(mmap_mode="r"), are
        copied, one batch at a time. The arrays are not transformed; if there is a transform_param, a RuntimeWarning
        says so, as Caffe's log does.

        Raises RuntimeError with the same messages as pycaffe's `net.set_input_arrays`, and `fastbatch.Closed` after
        close().
        """
        self._check_open()
        if isinstance(labels, np.ndarray) and labels.ndim == 1:
            labels = np.ascontiguousarray(labels).reshape(-1, 1, 1, 1)
        self._check_array("data array", data, self._image)
        self._check_array("labels array", labels, (1, 1, 1))
        if len(data) != len(labels):
            raise RuntimeError(
                f"data and labels must have the same first dimension; in {self._name} they have {len(data)} and "
                f"{len(labels)}"
            )
        self._check_multiple(len(data), self._batch_size)
        if self._transforms:
            warnings.warn(
                f"MemoryData does not transform array data on Reset(), so the transform_param of {self._name} has no "
                "effect on arrays given to set_input_arrays()",
                RuntimeWarning,
                stacklevel=2,
            )
        self._arrays = _Arrays(data, labels, added=False)

    def add(self, images, labels):
        """Transform these images as transform_param says, and show the results from the next forward() on.

        images: an array (n, channels, height, width), or a sequence of n arrays (channels, height, width), of uint8 or
        float32; n is a multiple of batch_size. The size is the size before cropping. With a crop_size, it may differ
        between images.
        labels: n numbers.

        The arguments are not kept. The results and the random draws are those of AddDatumVector, which Caffe offers in
        C++ only.

        Raises RuntimeError while images added earlier have not all been shown, ValueError for images that don't fit,
        TypeError for another type, and `fastbatch.Closed` after close().
        """
        self._check_open()
        if self._unshown():
            raise RuntimeError(
                f"Can't add data until current data has been consumed; in {self._name}, {self._unshown()} "
                "images added before have not been shown yet: call forward() until they are"
            )
        count = len(images)
        if not count:
            raise ValueError(f"There is no datum to add to {self._name}: images is empty")
        if count % self._batch_size:
            raise ValueError(
                f"The added data must be a multiple of the batch size; in {self._name} they are {count} and "
                f"{self._batch_size}"
            )
        numbers = np.array(labels, np.float32)  # a copy
        if numbers.shape != (count,):
            raise ValueError(
                f"{self._name} was given {count} images and labels of shape {numbers.shape}: give it one number for "
                "each image"
            )
        images = [np.asarray(image) for image in images]
        for index, image in enumerate(images):  # all of them before the first draw
            self._check_image(index, image)
        data = np.empty((count, *self._image), np.float32)
        for image, out in zip(images, data):
            self._pixels.apply(image, self._draws(), out)
        self._arrays = _Arrays(data, numbers.reshape(-1, 1, 1, 1), added=True)

    def set_batch_size(self, batch_size):
        """Set the batch size from the next forward() on. Caffe offers this in C++ only.

        As in Caffe, arrays are checked against the batch size when they are set or shown. If the length of the current
        arrays is not a multiple of it, give the layer other arrays.

        Raises RuntimeError while images added earlier have not all been shown, ValueError for a size that no batch can
        have, and `fastbatch.Closed` after close().
        """
        self._check_open()
        if self._unshown():
            raise RuntimeError(
                f"Can't change batch_size until current data has been consumed; {self._name} is at image "
                f"{self._position()[0]} of {self._arrays.count}, which were added"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        self._check_size(self._name, (batch_size, *self._image))
        self._batch_size = batch_size

    def _next(self):
        self._check_open()
        if self._arrays is None:
            raise RuntimeError(
                f"MemoryDataLayer needs to be initialized by calling Reset: call set_input_arrays() of {self._name} "
                "before forward()"
            )
        arrays, (first, all_shown, number), batch_size = self._arrays, self._position(), self._batch_size
        self._check_multiple(arrays.count, batch_size)
        if first + batch_size > arrays.count:
            raise RuntimeError(
                f"{self._name} is at image {first} of {arrays.count}, and batches have {batch_size} since "
                "set_batch_size(): give it other arrays"
            )
        parts = arrays.batch(first, batch_size, number)
        at_end = first + batch_size == arrays.count
        # The position is stored together with what is shown, so an interrupt cannot separate them.
        return (
            arrays,
            [(part.__array_interface__["data"][0], part.shape) for part in parts],
            (0 if at_end else first + batch_size, all_shown or at_end, number + 1),
        )

    def _end(self):
        self._closed = True
        self._arrays = None

    def _check_open(self):
        if self._closed:
            raise Closed("this MemoryData layer was closed: build a new net")

    def _check_array(self, name, array, image):
        if not isinstance(array, np.ndarray):
            raise RuntimeError(f"{name} must be a NumPy array, not {type(array).__name__}")
        if not array.flags.c_contiguous or not array.flags.aligned:
            raise RuntimeError(f"{name} must be C contiguous, and aligned: numpy.ascontiguousarray() makes it so")
        if array.ndim != 4:
            raise RuntimeError(f"{name} must be 4-d; it has shape {array.shape}")
        if array.dtype != np.float32:  # in native byte order
            raise RuntimeError(f"{name} must be float32; it is {array.dtype}")
        for what, found, expected in zip(("channels", "height", "width"), array.shape[1:], image):
            if found != expected:
                wrong = f"wrong number of {what}" if what == "channels" else f"wrong {what}"
                raise RuntimeError(f"{name} has {wrong}: {found}, where {self._name} expects {expected}")

    def _check_multiple(self, count, batch_size):
        if count % batch_size or not count:
            raise RuntimeError(
                f"first dimensions of input arrays must be a multiple of batch size, and not 0; in {self._name} they "
                f"are {count} and {batch_size}"
            )

    def _check_image(self, index, image):
        """The checks of one image that DataTransformer makes."""
        where = f"{self._name}, image {index}"
        if image.dtype not in (np.uint8, np.float32):
            raise TypeError(f"{where}: its type is {image.dtype}; convert it to uint8 or float32")
        if image.ndim != 3:
            raise ValueError(f"{where}: its shape is {image.shape}, expected (channels, height, width)")
        crop, shape = self._transform.crop_size, self._image
        if image.shape[0] != shape[0]:
            raise ValueError(
                f"{where}: it has {image.shape[0]} channels, memory_data_param says {shape[0]} (in Caffe's words: "
                "Check failed: channels == datum_channels)"
            )
        if crop and shape[1:] != (crop, crop):
            raise ValueError(
                f"{where}: memory_data_param says height {shape[1]} and width {shape[2]}, but crop_size {crop} makes "
                "images of that size: write it into memory_data_param (in Caffe's words: Check failed: "
                "crop_size == height)"
            )
        if min(image.shape[1:]) < crop or (not crop and image.shape != shape):
            raise ValueError(
                f"{where}: its shape is {image.shape}, "
                + (
                    f"smaller than crop_size {crop} (in Caffe's words: Check failed: height <= datum_height)"
                    if crop
                    else f"memory_data_param says {shape} (in Caffe's words: Check failed: datum_height == height)"
                )
            )
        try:
            self._pixels.check(image.shape)
        except ValueError as problem:
            raise ValueError(f"{where}: {problem}") from None

    def _draws(self):
        """The draws for an image, in the order of DataTransformer::Transform."""
        crops = self._transform.phase == "TRAIN" and self._transform.crop_size
        return [
            int(self._random.randint(0, 2**32, dtype=np.uint32)) if drawn else 0
            for drawn in (self._transform.mirror, crops, crops)
        ]

    def _position(self):
        """(the first image of the next forward(), whether all images have been shown, number of batches shown)."""
        return self._showing.progress if self._showing.shown is self._arrays else (0, False, 0)

    def _unshown(self):
        """The number of added images that have not been shown yet."""
        if self._arrays is None or not self._arrays.added:
            return 0
        first, all_shown, _ = self._position()
        return 0 if all_shown else self._arrays.count - first


class _Arrays:
    """The user's arrays, or the results of add(). The layer holds them while tops show them."""

    def __init__(self, data, labels, added):
        self.data, self.labels, self.added = data, labels, added
        self.count = len(data)
        self._buffers = {}

    def batch(self, first, size, number):
        """The arrays of batch `number`. Read-only ones are copied, because layers that work in place write into them.

        Odd and even batches use separate memory for copies, because the net still shows the previous batch.
        """
        batch = []
        for top, array in enumerate((self.data, self.labels)):
            part = array[first : first + size]
            if not array.flags.writeable:
                buffer = self._buffers.get((top, size, number % 2))
                if buffer is None:
                    buffer = self._buffers[top, size, number % 2] = np.empty_like(part)
                buffer[...] = part
                part = buffer
            batch.append(part)
        return batch
