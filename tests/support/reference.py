"""What Loader must deliver, computed slowly in NumPy, without any code of fastbatch."""

import numpy as np

ROUNDS = 8
TRANSFORM, SHUFFLE, REPLACEMENT, WINDOWS, WINDOW, WEIGHTED = range(6)  # what draws are for


def philox4x32(counter, key):
    """Philox4x32-10 (Salmon and others, SC 2011). Four arrays and two key words give four arrays of uint32."""
    c0, c1, c2, c3 = [np.asarray(word, np.uint64) for word in counter]
    k0, k1 = [int(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    for _ in range(10):
        even = c0 * np.uint64(0xD2511F53)
        odd = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (odd >> half) ^ c1 ^ np.uint64(k0), odd & low, (even >> half) ^ c3 ^ np.uint64(k1), even & low
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [word.astype(np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3)]


def key_of(seed):
    return seed & 0xFFFFFFFF, seed >> 32


def permute(seed, epoch, count, positions):
    """The indices at these positions of the epoch's shuffle: uint64 numbers below count."""
    values = np.array(positions, np.uint64)
    if count < 2:
        return np.zeros_like(values)
    bits = max(8, (count - 1).bit_length())
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << (np.uint64(bits) - low_bits)) - np.uint64(1)

    def network(numbers):
        high, low = numbers >> low_bits, numbers & low_mask
        for step in range(0, ROUNDS, 2):
            high = high ^ philox4x32((low, step, epoch, SHUFFLE), key_of(seed))[0] & high_mask
            low = low ^ philox4x32((high, step + 1, epoch, SHUFFLE), key_of(seed))[0] & low_mask
        return high << low_bits | low

    step = network
    if bits <= 16:
        step = network(np.arange(2**bits, dtype=np.uint64)).__getitem__  # as a table: small counts take many steps
    outside = np.ones(len(values), bool)
    while outside.any():
        values[outside] = step(values[outside])
        outside = values >= count
    return values


def draws(seed, epoch, count):
    """The four raw draws of each sample in one epoch: `count` lists of Python ints."""
    samples = np.arange(count, dtype=np.uint64)
    counter = (samples & np.uint64(0xFFFFFFFF), samples >> np.uint64(32), epoch, TRANSFORM)
    return np.stack(philox4x32(counter, key_of(seed)), axis=1).tolist()


def draw64(seed, epoch, number, purpose):
    low, high, _, _ = philox4x32((number & 0xFFFFFFFF, number >> 32, epoch, purpose), key_of(seed))
    return int(high) << 32 | int(low)


def windowed(seed, epoch, count, window):
    """The indices of an epoch that is shuffled in windows."""
    whole, rest = divmod(count, window)
    order = [int(number) for number in permute(seed, epoch, whole, range(whole))] + [whole] * (rest > 0)
    begin = draw64(seed, epoch, 0, WINDOWS) % count
    indices = []
    for number in order:
        size = window if number < whole else rest
        inside = permute(draw64(seed, epoch, number, WINDOW), epoch, size, range(size))
        indices += [(begin + number * window + int(offset)) % count for offset in inside]
    return indices


def weighted(seed, epoch, weights):
    """The indices of an epoch that is drawn by weights."""
    sums = np.cumsum(weights)
    drawn = [(draw64(seed, epoch, i, WEIGHTED) >> 11) * 2.0**-53 * sums[-1] for i in range(len(weights))]
    return [int(np.searchsorted(sums, min(each, np.nextafter(sums[-1], 0)), side="right")) for each in drawn]


def scale_draw(raw, n):
    return raw * n >> 32


def transformed(
    image, raw, reduce=scale_draw, crop_size=0, mirror=False, scale=1.0, mean_value=(), mean_image=None, phase="TRAIN"
):
    """Caffe's transform of one image (channels, height, width): (value - mean) * scale in float32, cropped, mirrored.

    raw: the sample's draws for the mirror, the crop's first row and its first column. reduce(draw, n) gives 0 .. n - 1.
    """
    channels, height, width = image.shape
    values = image.astype(np.float32)
    if mean_image is not None:
        values = values - mean_image
    elif len(mean_value):
        values = values - np.broadcast_to(np.array(mean_value, np.float32), channels)[:, None, None]
    values = values * np.float32(scale)
    if crop_size:
        spare = height - crop_size, width - crop_size
        top, left = spare[0] // 2, spare[1] // 2
        if phase == "TRAIN":
            top, left = reduce(raw[1], spare[0] + 1), reduce(raw[2], spare[1] + 1)
        values = values[:, top : top + crop_size, left : left + crop_size]
    if mirror and reduce(raw[0], 2):
        values = values[:, :, ::-1]
    assert values.dtype == np.float32
    return values


def epoch_of_batches(images, labels, epoch, batch_size, shuffle, seed, drop_last, transform):
    """The epoch's batches as (indices, data, labels). `transform`: keyword arguments of transformed(), or None."""
    count = len(images)
    order = permute(seed, epoch, count, range(count)) if shuffle else range(count)
    order = [int(index) for index in order]
    raw = draws(seed, epoch, count)
    batches = []
    for first in range(0, count, batch_size):
        indices = order[first : first + batch_size]
        if drop_last and len(indices) < batch_size:
            break
        data = [images[i] if transform is None else transformed(images[i], raw[i], **transform) for i in indices]
        batches.append((indices, np.stack(data), np.array([labels[i] for i in indices], np.int64)))
    return batches


class CaffeStream:
    """Caffe's own draws: one MT19937 stream, in the order of the samples; raw % n."""

    def __init__(self, seed):
        self.generator = np.random.RandomState(seed)

    def __call__(self, transform):
        """The draws of the next sample: one for the mirror, then two for the crop, if they are asked for."""
        raw = [0, 0, 0]
        if transform.get("mirror"):
            raw[0] = self.next()
        if transform.get("crop_size") and transform.get("phase", "TRAIN") == "TRAIN":
            raw[1], raw[2] = self.next(), self.next()
        return raw

    def next(self):
        return int(self.generator.randint(0, 2**32, dtype=np.uint32))

    @staticmethod
    def reduce(raw, n):
        return raw % n
