"""`Data`, a drop-in for Caffe's own Data layer: the same tops, shapes, order, wrap-around, ranks and random draws.

What it does in which order follows Caffe's data_layer.cpp, base_data_layer.cpp and data_transformer.cpp.
"""

import functools
import math
import sys
import traceback
import warnings

import caffe

from fastbatch._batches import BatchRing
from fastbatch.caffe._blob import Top, random_draw
from fastbatch.caffe.block import BlockLayer
from fastbatch.caffe.lifetime import embedded, registry
from fastbatch.caffe.params import DATA
from fastbatch.cores import usable_cores
from fastbatch.errors import DataTimeout
from fastbatch.sources import LMDBSource
from fastbatch.transforms import Transform

__all__ = ["Data"]

_EMBEDDED = embedded()
_INT_MAX = 2**31 - 1
_PATIENCE = 10  # seconds that a forward() in the `caffe` tool waits before it says what for


class Data(BlockLayer):
    """Batches of Datum records from an LMDB database, transformed as Caffe would, by native threads that run while the net computes.

    Tops: data, float32 (batch_size, channels, height, width), and, if there are two, label, float32 (batch_size,). data_param and
    transform_param stand in the layer's own block, as for Caffe's own layer, or in `param_str`; there these options may stand too:
    threads, seed, zero_copy (see docs/caffe-layer.md).

    Errors are Python exceptions with Caffe's words in them: ValueError and `fastbatch.SourceError` from building the net,
    `fastbatch.SampleError` from forward(), once, when the batch's turn comes; the next forward() gives the following batch.

    Thread-safety: a layer belongs to the thread that runs its net; close() may be called from any thread.
    """

    # What close() and the registry find before setup() has come that far.
    _ring = None
    _source = None
    _batch = None
    _tops = ()

    def setup(self, bottom, top):
        if self._source is not None:
            raise RuntimeError("setup() of this layer was called before: Caffe does so once, when it builds the net")
        registry.add(self)
        try:
            self._setup(bottom, top)
        except BaseException:
            self.close()
            _tell()
            raise

    def _setup(self, bottom, top):
        if len(bottom):
            raise ValueError(f"Data Layer takes 0 bottom blob(s) as input; this one has {len(bottom)}")
        if not 1 <= len(top) <= 2:
            raise ValueError("Data Layer produces at least 1 and at most 2 top blob(s) as output, data and label; this one has "
                             f"{len(top)}")
        self._block = self._read_block(top)
        parsed = DATA.parse(self.param_str, self._block)
        param = parsed.data_param
        if param.backend != param.LMDB:
            raise ValueError(f"{param.source}: backend LEVELDB, Caffe's default, is not supported by this version of fastbatch: write "
                             "backend: LMDB if the database is one")
        if param.batch_size < 1:
            raise ValueError(f"{param.source}: batch_size must be 1 or more, not {param.batch_size} (in Caffe's words: Check failed: "
                             "top_shape[0] > 0)")
        if param.prefetch < 1:
            raise ValueError(f"{param.source}: prefetch must be 1 or more, not {param.prefetch}: Caffe itself would wait for ever")
        for name, value, most in ("prefetch", param.prefetch, 2**16), ("threads", parsed.threads, 4096):
            if value > most:
                raise ValueError(f"{param.source}: {name} must be at most {most}, not {value}")
        try:
            transform = _transform(parsed.transform_param, self.phase)
        except ValueError as problem:
            raise ValueError(f"{param.source}: {problem}") from None
        rank, ranks = caffe.solver_rank(), caffe.solver_count()
        self._root = rank == 0
        color = "color" if parsed.transform_param.force_color else "gray" if parsed.transform_param.force_gray else "unchanged"
        self._source = LMDBSource(param.source, color)
        self._log(f"Opened lmdb {param.source}")
        seed = self._draw_seed(parsed, transform)

        channels, height, width = self._source.shape
        crop = transform.crop_size
        _check_image(self._source, transform)
        shapes = [(param.batch_size, channels, crop or height, crop or width), (param.batch_size,)]
        if math.prod(shapes[0]) > _INT_MAX:
            raise ValueError(f"{param.source}: batch_size {param.batch_size} makes batches of shape {shapes[0]}, more values than a Blob "
                             "can hold (in Caffe's words: blob size exceeds INT_MAX)")
        blobs = [top[number] for number in range(len(top))]  # what pycaffe passes cannot be iterated over
        self._tops = [Top(blob, parsed.zero_copy) for blob in blobs]
        for blob, shape in zip(blobs, shapes):
            blob.reshape(*shape)
        self._log("output data size: " + ",".join(map(str, shapes[0])))

        if self.phase == caffe.TEST:
            rank, ranks = 0, 1  # every rank tests on everything
        self._epoch = 0
        self._ring = BatchRing(
            self._source, batch_size=param.batch_size, slots=param.prefetch + 1,
            threads=parsed.threads if parsed.HasField("threads") else usable_cores(), transform=transform, label_dtype="float32",
            caffe_seed=seed, rank=rank, ranks=ranks,
            # Arrays of earlier forward()s may be kept, and show in a net of Caffe's what comes later. Here they must not crash either.
            stays_mapped=any(each.zero_copy for each in self._tops))

    def _draw_seed(self, parsed, transform):
        """The seed of this layer's random stream, and no draw of Caffe's stream more or less than its own layer takes."""
        seed = 0
        if transform.mirror or (transform.phase == "TRAIN" and transform.crop_size):
            random_draw()  # DataTransformer::InitRand of BaseDataLayer::LayerSetUp; the one of the prefetching layer overrides it
            seed = random_draw()
            if seed is None:
                _warn_of_own_seeds()
                seed = parsed.seed
        random_draw()  # InternalThread::StartInternalThread, for a thread that never uses it
        return seed

    def _log(self, text):
        """A line in Caffe's log, where it has one; from the first solver only, as Caffe does."""
        if self._root and hasattr(caffe, "log"):
            caffe.log(text)

    def reshape(self, bottom, top):
        """Nothing: Caffe calls it before every forward(), which knows the batch's shape."""

    def forward(self, bottom, top):
        registry.seen(self)
        try:
            batch = self._next()
            for number, blob in enumerate(self._tops):
                blob.set(batch.address(number), batch.shape(number))
            self._batch = batch  # its predecessor, which no top shows any more, is free now
            while self._epoch < batch.epoch:
                self._epoch += 1
                self._log("Restarting data prefetching from start.")
        except BaseException:
            _tell()
            raise

    def _next(self):
        if not _EMBEDDED:
            return self._ring.next()
        while True:
            # Nobody can interrupt a wait in the `caffe` tool and ask, so it says by itself what it waits for.
            try:
                return self._ring.next(_PATIENCE)
            except DataTimeout as waiting:
                print(f"fastbatch is still waiting in {self._block}: {waiting}", file=sys.stderr, flush=True)

    def backward(self, top, propagate_down, bottom):
        """Nothing, but it must be there: `caffe time` and force_backward call it."""

    def stats(self):
        """The loader's counters (see `fastbatch.Stats`) as a dict. After setup() only."""
        return self._ring.stats()

    def close(self):
        """Stop the threads, close the database and free the batches but the last one, which stays readable. May be called twice.

        forward() raises `fastbatch.Closed` afterwards.
        """
        if self._ring is not None:
            self._ring.close()
        if self._source is not None:
            self._source.close()


def _transform(param, phase):
    """The Transform that a transform_param describes."""
    if param.force_color and param.force_gray:
        raise ValueError("cannot set both force_color and force_gray")
    if param.HasField("mean_file") and param.mean_value:
        raise ValueError("Cannot specify mean_file and mean_value at the same time: choose one of them")
    return Transform(crop_size=param.crop_size, mirror=param.mirror, scale=param.scale, mean_value=tuple(param.mean_value),
                     mean_file=param.mean_file if param.HasField("mean_file") else None, phase=phase)


def _check_image(source, transform):
    """Refuses at once what cannot be done to the source's first image; on others it is an error of their batch."""
    shape = channels, height, width = source.shape
    crop, means, mean_image = transform.crop_size, len(transform.mean_value), transform.mean_image()
    if crop > min(height, width):
        raise ValueError(f"{source.path}: crop_size {crop} is larger than its first image, {height} x {width} (in Caffe's words: "
                         f"Check failed: {'datum_height' if crop > height else 'datum_width'} >= crop_size)")
    if means > 1 and means != channels:
        raise ValueError(f"{source.path}: Specify either 1 mean_value or as many as channels: {channels}, not {means}")
    if mean_image is not None and mean_image.shape != shape:
        which = next(name for name, mean, own in zip(("channels", "height", "width"), mean_image.shape, shape) if mean != own)
        raise ValueError(f"{source.path}: its first image has shape {shape}, before cropping, but the mean image in {transform.mean_file} "
                         f"has {mean_image.shape} (in Caffe's words: Check failed: datum_{which} == data_mean_.{which}()); make the mean "
                         "file from this data")


@functools.lru_cache(maxsize=None)  # once in a process is enough
def _warn_of_own_seeds():
    warnings.warn("fastbatch cannot reach the random numbers of this Caffe, so random_seed has no effect on its layers: each takes the seed "
                  "that its option seed gives, or 0; write seed: N beside data_param for another", RuntimeWarning, stacklevel=2)


def _tell():
    """In the `caffe` tool, prints the exception in hand before it is lost: the tool aborts without showing it."""
    if _EMBEDDED:
        traceback.print_exc()
        sys.stderr.flush()
