"""What our layers share that prepare batches ahead, in native threads: their life, their random draws, and forward().

It follows Caffe's base_data_layer.cpp.
"""

import functools
import math
import sys
import warnings

import caffe

from fastbatch._batches import BatchRing
from fastbatch.caffe.runtime._blob import Showing, Top, random_draw
from fastbatch.caffe.runtime.layer_param import BlockLayer
from fastbatch.caffe.runtime.lifetime import registry
from fastbatch.caffe.runtime.embedded import EMBEDDED, tell
from fastbatch.cores import usable_cores
from fastbatch.errors import DataTimeout

_INT_MAX = 2**31 - 1
_PATIENCE = 10  # seconds that a forward() in the `caffe` tool waits before it says what for


class PrefetchingLayer(BlockLayer):
    """A data layer on a ring of batches. A layer derived from it implements `_setup`, which ends with `_start`.

    Errors are Python exceptions with Caffe's words in them. From building the net: ValueError, `fastbatch.SourceError`, and
    `fastbatch.SampleError` if the first sample, whose shape the tops take, or an image that is kept in memory cannot be read. From forward():
    `fastbatch.SampleError`, once, when the batch's turn comes; the next forward() gives the following batch.

    Thread-safety: a layer belongs to the thread that runs its net; close() may be called from any thread.
    """

    # What close() and the registry find before setup() has come that far.
    _ring = None
    _source = None
    _showing = None
    _tops = ()

    def setup(self, bottom, top):
        if self._source is not None:
            raise RuntimeError("setup() of this layer was called before: Caffe does so once, when it builds the net")
        registry.add(self)
        self._root = caffe.solver_rank() == 0
        try:
            self._setup(bottom, top)
        except BaseException:
            self.close()
            tell()
            raise

    # For _setup()

    def _parse(self, schema, bottom, top):
        """The parameters, from the layer's own block and from param_str."""
        if len(bottom):
            raise ValueError(f"{schema.layer} Layer takes 0 bottom blob(s) as input; this one has {len(bottom)}")
        self._block = self._read_block(top)
        return schema.parse(self.param_str, self._block)

    def _check_counts(self, where, batch_size, prefetch, threads):
        """Refuses numbers with which Caffe would abort, wait for ever, or take all memory. `where` names the source."""
        if batch_size < 1:
            raise ValueError(f"{where}: batch_size must be 1 or more, not {batch_size} (in Caffe's words: Check failed: "
                             "top_shape[0] > 0)")
        if prefetch < 1:
            raise ValueError(f"{where}: prefetch must be 1 or more, not {prefetch}: Caffe itself would wait for ever")
        for name, value, most in ("prefetch", prefetch, 2**16), ("threads", threads, 4096):
            if value > most:
                raise ValueError(f"{where}: {name} must be at most {most}, not {value}")

    def _draw_seed(self, parsed, transform, between=lambda: None):
        """The seed of this layer's random stream, and no draw of Caffe's stream more or less than its own layer takes.

        between() makes the draws of the layer's own DataLayerSetUp.
        """
        seed = 0
        needed = transform.mirror or (transform.phase == "TRAIN" and transform.crop_size)
        if needed:
            random_draw()  # DataTransformer::InitRand of BaseDataLayer::LayerSetUp; the one of the prefetching layer overrides it
        between()
        if needed:
            seed = random_draw()
            if seed is None:
                warn_of_own_seeds()
                seed = parsed.seed
        random_draw()  # InternalThread::StartInternalThread, for a thread that never uses it
        return seed

    def _start(self, parsed, top, shapes, *, where, prefetch, source=None, **ring):
        """Gives the tops their first shapes, and starts the threads, which read `source`, or else the layer's.

        `ring` are further parameters of BatchRing.
        """
        for shape in shapes:
            if math.prod(shape) > _INT_MAX:
                raise ValueError(f"{where}: batch_size {shape[0]} makes batches of shape {shape}, more values than a Blob can hold "
                                 "(in Caffe's words: blob size exceeds INT_MAX)")
        blobs = [top[number] for number in range(len(top))]  # what pycaffe passes cannot be iterated over
        self._tops = [Top(blob, parsed.zero_copy) for blob in blobs]
        self._showing = Showing(self._tops)
        for blob, shape in zip(blobs, shapes):
            blob.reshape(*shape)
        self._log_shape(shapes[0])
        self._ring = BatchRing(
            source or self._source, batch_size=shapes[0][0], slots=prefetch + 1,
            threads=parsed.threads if parsed.HasField("threads") else usable_cores(), label_dtype="float32",
            # Arrays of earlier forward()s may be kept, and show in a net of Caffe's what comes later. Here they must not crash either.
            stays_mapped=any(each.zero_copy for each in self._tops), **ring)

    def _log_shape(self, shape):
        self._log("output data size: " + ",".join(map(str, shape)))

    def _log(self, text, all_solvers=False):
        """A line in Caffe's log, where it has one; as Caffe does, from the first solver only, but for what every solver logs."""
        if (self._root or all_solvers) and hasattr(caffe, "log"):
            caffe.log(text)

    # What Caffe calls

    def reshape(self, bottom, top):
        """Nothing: Caffe calls it before every forward(), which knows the batch's shape."""

    def forward(self, bottom, top):
        registry.seen(self)
        try:
            # An exception of a signal's handler may come between any two steps: the batch stays taken until it is shown.
            batch = self._next()
            self._showing.show(batch, [(batch.address(number), self._shape(batch, number)) for number in range(len(self._tops))])
            self._shows(batch)
        except BaseException:
            tell()
            raise

    def _shape(self, batch, number):
        """The shape that this top has while it shows this batch."""
        return batch.shape_of(number)

    def _shows(self, batch):
        """The tops show this batch now: for layers that have something to say then."""

    def _next(self):
        if not EMBEDDED:
            return self._showing.take(self._ring.next)
        while True:
            # Nobody can interrupt a wait in the `caffe` tool and ask, so it says by itself what it waits for.
            try:
                return self._showing.take(self._ring.next, _PATIENCE)
            except DataTimeout as waiting:
                print(f"fastbatch is still waiting in {self._block}: {waiting}", file=sys.stderr, flush=True)

    def backward(self, top, propagate_down, bottom):
        """Nothing, but it must be there: `caffe time` and force_backward call it."""

    # For users

    def stats(self):
        """The loader's counters (see `fastbatch.Stats`) as a dict. After setup() only."""
        return self._ring.stats()

    def close(self):
        """Stop the threads, close the source and free the batches but the last one, which stays readable. May be called twice.

        forward() raises `fastbatch.Closed` afterwards.
        """
        if self._ring is not None:
            self._ring.close()
            self._showing.give_up()
        if self._source is not None:
            self._source.close()


@functools.lru_cache(maxsize=None)  # once in a process is enough
def warn_of_own_seeds():
    """Says that random_seed has no effect on our layers."""
    warnings.warn("fastbatch cannot reach the random numbers of this Caffe, so random_seed has no effect on its layers: each takes the seed "
                  "that its option seed gives, or 0; write seed: N beside data_param for another", RuntimeWarning, stacklevel=2)
