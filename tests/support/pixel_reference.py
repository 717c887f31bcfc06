"""What `Transform` makes of an image beyond Caffe's four steps, as docs/transforms.md defines it, slowly in NumPy."""

import numpy as np

SINGLE = np.float32


def colored(image, color):
    """The image (channels, height, width), blue first, with the channels of the output."""
    if color is None or (color == "gray" and len(image) == 1):
        return image
    if color != "gray":
        three = np.repeat(image, 3, axis=0) if len(image) == 1 else image
        return three[::-1] if color == "rgb" else three
    if image.dtype == np.uint8:
        blue, green, red = image.astype(np.int64)
        return ((3735 * blue + 19235 * green + 9798 * red + 16384) >> 15).astype(np.uint8)[None]
    blue, green, red = image
    return ((blue * SINGLE(0.114) + green * SINGLE(0.587)) + red * SINGLE(0.299))[None]


def computed(image, mean=(), std=(), mean_value=(), scale=1.0):
    """The values of the image's channels: float32, each operation rounded once."""
    values = image.astype(SINGLE)
    if len(mean) or len(std):
        unit = 255.0 if image.dtype == np.uint8 else 1.0
        count = len(image)
        mean = np.broadcast_to(np.array(mean if len(mean) else 0.0, np.float64), count)
        std = np.broadcast_to(np.array(std if len(std) else 1.0, np.float64), count)
        shift, factor = (unit * mean).astype(SINGLE), (1 / (unit * std)).astype(SINGLE)
    else:
        shift = np.broadcast_to(np.array(mean_value if len(mean_value) else 0.0, SINGLE), len(image))
        factor = np.full(len(image), scale, SINGLE)
    return (values - shift[:, None, None]) * factor[:, None, None]


def finished(image, color=None, dtype="float32", layout="NCHW", **arithmetic):
    """The image in its form in the batch."""
    image = colored(image, color)
    with np.errstate(over="ignore"):
        values = image if dtype == "uint8" else computed(image, **arithmetic).astype(dtype)
    return values.transpose(1, 2, 0) if layout == "NHWC" else values
