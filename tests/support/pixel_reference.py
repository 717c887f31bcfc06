"""What `Transform` makes of an image beyond Caffe's four steps, as docs/transforms.md defines it: slowly, in NumPy."""

import math

import numpy as np

from reference import philox4x32, scale_draw

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


def jittered(image, raw, brightness=(1, 1), contrast=(1, 1), saturation=(1, 1)):
    """Brightness, contrast and saturation: float32 of an uint8 image, blue first, with the sample's four raw draws."""
    words = [int(word) for word in philox4x32((0, 1, raw[3], 0), raw[1:3])]
    bounds = brightness, contrast, saturation
    factors = [SINGLE(low + (high - low) * (word / 2**32)) for (low, high), word in zip(bounds, words)]
    values = np.clip(np.arange(256, dtype=SINGLE) * factors[0], 0, 255)

    def mean(channel):
        counts = np.bincount(channel.ravel(), minlength=256)
        return sum(float(count) * float(value) for count, value in zip(counts, values)) / channel.size

    if factors[1] != 1:
        weights = [0.114, 0.587, 0.299] if len(image) == 3 else [1.0]
        means = [weight * mean(channel) for weight, channel in zip(weights, image)]
        shift = SINGLE(means[0] + means[1] + means[2] if len(image) == 3 else means[0]) * (SINGLE(1) - factors[1])
        values = np.clip(values * factors[1] + shift, 0, 255)
    found = values[image]
    if len(image) == 3 and factors[2] != 1:
        gray = (found[0] * SINGLE(0.114) + found[1] * SINGLE(0.587)) + found[2] * SINGLE(0.299)
        found = np.clip(found * factors[2] + gray * (SINGLE(1) - factors[2]), 0, 255)
    return found


def computed(image, mean=(), std=(), mean_value=(), scale=1.0, unit=None):
    """The values of the image's channels: float32, each operation rounded once."""
    values = image.astype(SINGLE)
    if len(mean) or len(std):
        unit = unit or (255.0 if image.dtype == np.uint8 else 1.0)
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
        values = np.rint(image).astype(np.uint8) if dtype == "uint8" else computed(image, **arithmetic).astype(dtype)
    return values.transpose(1, 2, 0) if layout == "NHWC" else values


def resized(image, height, width):
    """OpenCV's linear resize of 8 bits (height, width, channels): weights of 11 bits, 16 bits between the passes."""

    def weights(source, target):
        position = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
        first = np.floor(position)
        fraction = position - first
        return (
            first.astype(int),
            np.rint((np.float32(1) - fraction) * 2048).astype(int),
            np.rint(fraction * 2048).astype(int),
        )

    first, w0, w1 = weights(image.shape[1], width)
    outside = (first < 0) | (first >= image.shape[1] - 1)
    w0[outside], w1[outside] = 2048, 0
    columns = [np.clip(first + i, 0, image.shape[1] - 1) for i in (0, 1)]
    rows = (image[:, columns[0]].astype(int) * w0[:, None] + image[:, columns[1]].astype(int) * w1[:, None]) >> 4
    first, w0, w1 = weights(image.shape[0], height)
    above, below = (rows[np.clip(first + i, 0, image.shape[0] - 1)] for i in (0, 1))
    return ((above * w0[:, None, None] >> 16) + (below * w1[:, None, None] >> 16) + 2) >> 2


def linear(planes, height, width):
    return resized(planes.transpose(1, 2, 0), height, width).transpose(2, 0, 1).astype(planes.dtype)


def nearest(planes, height, width):
    """The value nearest to the center of each value of the result."""
    rows, columns = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip((height, width), planes.shape[1:]))
    return planes[:, rows[:, None], columns]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def random_region(raw, height, width, area, ratio):
    """The region of random_resized_crop: its top, left, height and width."""
    for attempt in range(10):
        words = [int(word) for word in philox4x32((attempt, 0, raw[3], 0), raw[1:3])]
        target = height * width * (area[0] + (area[1] - area[0]) * (words[0] / 2**32))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * (words[1] / 2**32))
        columns, rows = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 1 <= columns <= width and 1 <= rows <= height:
            top, left = scale_draw(words[2], height - rows + 1), scale_draw(words[3], width - columns + 1)
            return top, left, rows, columns
    rows, columns = height, width
    if width / height < ratio[0]:
        rows = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        columns = max(round(height * ratio[1]), 1)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def axes_of(
    height,
    width,
    raw,
    resize=0,
    padding=0,
    crop_size=0,
    phase="TRAIN",
    mirror=False,
    random_resized_crop=0,
    crop_area=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
):
    """The geometry as numbers: for y and for x, (first, used, size, shift, out), and whether x is mirrored.

    Of the image, `used` values from `first` on are resized to `size`; `shift` is added, and the output shows `out`.
    """
    first, used = (0, 0), (height, width)
    if random_resized_crop:
        region = random_region(raw, height, width, crop_area, crop_ratio)
        first, used = region[:2], region[2:]
    size = random_resized_crop or resize
    if isinstance(size, int) and resize:
        size = tuple(resize * side // min(used) for side in used)
    size = pair(size or used)
    shift, out = pair(padding), tuple(side + 2 * pad for side, pad in zip(size, pair(padding)))
    if crop_size:
        spare = [side - cut for side, cut in zip(out, pair(crop_size))]
        cut = [scale_draw(raw[1 + i], spare[i] + 1) if phase == "TRAIN" else spare[i] // 2 for i in (0, 1)]
        shift, out = [pad - begin for pad, begin in zip(shift, cut)], pair(crop_size)
    return tuple(zip(first, used, size, shift, out)), bool(mirror and scale_draw(raw[0], 2))


def moved(values, axis, mirrored=False):
    """Where coordinates along an axis are in the output."""
    first, used, size, shift, out = axis
    values = values + (shift - first) if used == size else (values - first) * size / used + shift
    return out - values if mirrored else values


def kept(rows, coordinates, keep, dtype, counted):
    """The rows to keep, with these coordinates, and zeros: in their places, or one after another if counted."""
    found = np.zeros(rows.shape, dtype)
    columns = len(coordinates)
    chosen = np.flatnonzero(keep)
    place = np.arange(len(chosen)) if counted else chosen
    found[place, :columns] = np.stack(coordinates, axis=1)[chosen]
    found[place, columns:] = rows[chosen, columns:]
    return found, len(chosen)


def moved_boxes(boxes, geometry, count=None, least_visible=0, dtype=None):
    """What becomes of rows that begin with x1, y1, x2, y2, of which `count` are boxes; and the number that is left."""
    (y_axis, x_axis), mirrored = geometry
    x1, y1, x2, y2 = boxes[:, :4].astype(np.float64).T
    x1, x2, y1, y2 = *(moved(x, x_axis, mirrored) for x in (x1, x2)), *(moved(y, y_axis) for y in (y1, y2))
    if mirrored:
        x1, x2 = x2, x1
    area = (x2 - x1) * (y2 - y1)
    x1, x2 = (np.clip(x, 0.0, x_axis[-1]) for x in (x1, x2))
    y1, y2 = (np.clip(y, 0.0, y_axis[-1]) for y in (y1, y2))
    visible = (x2 - x1) * (y2 - y1)
    keep = (visible > 0) & (visible / np.where(visible > 0, area, 1) >= least_visible)
    keep[count:] &= count is None
    return kept(boxes, (x1, y1, x2, y2), keep, dtype or boxes.dtype, count is not None)


def moved_points(points, geometry, count=None, dtype=None):
    """The same for rows that begin with x, y."""
    (y_axis, x_axis), mirrored = geometry
    x, y = points[:, :2].astype(np.float64).T
    x, y = moved(x, x_axis, mirrored), moved(y, y_axis)
    keep = np.ones(len(x), bool)
    if count is not None:
        keep = (x >= 0) & (x <= x_axis[-1]) & (y >= 0) & (y <= y_axis[-1])
        keep[count:] = False
    return kept(points, (x, y), keep, dtype or points.dtype, count is not None)


def placed(
    planes,
    raw,
    resize_by=linear,
    fill=0,
    resize=0,
    padding=0,
    crop_size=0,
    phase="TRAIN",
    mirror=False,
    random_resized_crop=0,
    crop_area=(0.08, 1.0),
    crop_ratio=(3 / 4, 4 / 3),
):
    """The geometry: what an array (channels, height, width) shows, with the sample's four raw draws."""
    if random_resized_crop:
        top, left, rows, columns = random_region(raw, *planes.shape[1:], crop_area, crop_ratio)
        planes = resize_by(planes[:, top : top + rows, left : left + columns], *pair(random_resized_crop))
    if isinstance(resize, tuple):
        planes = resize_by(planes, *resize)
    elif resize:
        shorter = min(planes.shape[1:])
        planes = resize_by(planes, *(resize * side // shorter for side in planes.shape[1:]))
    rows, columns = pair(padding)
    planes = np.pad(planes, ((0, 0), (rows, rows), (columns, columns)), constant_values=fill)
    if crop_size:
        spare = [side - cut for side, cut in zip(planes.shape[1:], pair(crop_size))]
        top, left = [scale_draw(raw[1 + i], spare[i] + 1) if phase == "TRAIN" else spare[i] // 2 for i in (0, 1)]
        planes = planes[:, top : top + pair(crop_size)[0], left : left + pair(crop_size)[1]]
    return planes[:, :, ::-1] if mirror and scale_draw(raw[0], 2) else planes
