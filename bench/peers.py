"""JPEG photographs, cropped or resized, against other loaders with native threads: tf.data, DALI and TurboLoader.

It needs no Caffe: `pytest bench/peers.py`, where one of them is installed. All have two threads, and give float32
images less the mean, mirrored at random. Where a loader can decode a region, it does. All decode with the accurate
DCT, except TurboLoader, which has no such option. It does not crop without resizing: for the crop it makes its random
resized crop of the same size, and for resize and crop, it resizes only. No loader has a filter that smooths.
"""

import random
import tarfile
from pathlib import Path

import pytest

from database import photographs
from fastbatch import ImageListSource, Loader, Transform
from interleave import Loop, in_turns

THREADS = 2
BATCH = 64
CROP = 227
RESIZED = 256
MEAN = (104.0, 117.0, 123.0)
TASKS = ["crop", "resize and crop"]
AT_LEAST = {"crop": 5, "resize and crop": 3}


def files():
    """The paths of the photographs, in another order than they were written in."""
    found = sorted(str(path) for path in Path(photographs()[2]).iterdir())
    random.Random(0).shuffle(found)
    return found


def tf_data(task, paths):
    """A function that returns the next batch."""
    tf = pytest.importorskip("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    mean = tf.constant(MEAN)

    def cropped(path):
        encoded = tf.io.read_file(path)
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(encoded))
        top = tf.random.uniform((), 0, height - CROP + 1, tf.int32)
        left = tf.random.uniform((), 0, width - CROP + 1, tf.int32)
        window = tf.stack([top, left, CROP, CROP])
        return tf.image.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_ACCURATE")

    def resized(path):
        image = tf.image.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")
        return tf.image.random_crop(tf.image.resize(image, (RESIZED, RESIZED)), (CROP, CROP, 3))

    def prepared(path):
        image = cropped(path) if task == "crop" else resized(path)
        return tf.image.random_flip_left_right(tf.cast(image, tf.float32) - mean)

    data = tf.data.Dataset.from_tensor_slices(paths).repeat()
    data = data.map(prepared, num_parallel_calls=THREADS, deterministic=False).batch(BATCH, drop_remainder=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = THREADS
    batches = iter(data.prefetch(4).with_options(options))
    return lambda: next(batches)


def dali(task, paths):
    """A function that returns the next batch."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=4, seed=1)
    def pipeline():
        encoded, _ = fn.readers.file(files=paths)
        x, y = fn.random.uniform(range=(0.0, 1.0)), fn.random.uniform(range=(0.0, 1.0))
        place = {"crop_pos_x": x, "crop_pos_y": y}
        if task == "crop":
            images = fn.decoders.image_crop(encoded, crop=(CROP, CROP), output_type=types.RGB, **place)
            place = {}
        else:
            images = fn.decoders.image(encoded, output_type=types.RGB)
            images = fn.resize(images, size=(RESIZED, RESIZED), antialias=False)
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(images, crop=(CROP, CROP), mean=list(MEAN), mirror=mirror, **place)

    made = pipeline()
    made.build()

    def batch():
        (images,) = made.run()
        return images.as_array()

    return batch


def turboloader(task, paths):
    """A function that returns the next batch."""
    module = pytest.importorskip("turboloader")
    archive = Path(photographs()[2]).with_suffix(".tar")
    if not archive.exists():
        with tarfile.open(archive, "w") as tar:
            for number, path in enumerate(paths):
                tar.add(path, f"{number}.jpg")
    loader = module.DataLoader(
        str(archive),
        batch_size=BATCH,
        num_workers=THREADS,
        image_size=CROP if task == "crop" else RESIZED,
        train_aug=task == "crop",
        output_format="numpy_chw",
        drop_last=True,
    )

    batches = endless(loader)
    return lambda: next(batches)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("peer", [tf_data, dali, turboloader], ids=lambda peer: peer.__name__)
def bench_peer(benchmark, report, peer, task):
    paths = files()
    theirs = peer(task, paths)
    resize = {} if task == "crop" else {"resize": (RESIZED, RESIZED)}
    transform = Transform(crop_size=CROP, mirror=True, mean_value=MEAN, color="rgb", **resize)
    source = ImageListSource([(path, 0) for path in paths])
    with Loader(source, transform, batch_size=BATCH, threads=THREADS, last_batch="drop") as loader:
        ours = endless(loader)
        for _ in range(len(loader)):  # the first epoch, in which an index of the images is made
            next(ours)
        sides = {"theirs": Loop(theirs, BATCH, skip=8)}
        rates = in_turns(benchmark, Loop(lambda: next(ours), BATCH, skip=8), sides)
    name = f"{task}, {THREADS} threads"
    report.ratio(f"{name}: against {peer.__name__}", rates["ours"], rates["theirs"], at_least=AT_LEAST[task])
    report.values(f"{name}: ours", rates["ours"], "img/s")
    report.values(f"{name}: {peer.__name__}", rates["theirs"], "img/s")


def endless(loader):
    """Epoch after epoch."""
    while True:
        yield from loader
