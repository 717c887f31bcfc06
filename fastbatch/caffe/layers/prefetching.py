"""The base of the layers whose native threads prepare batches ahead: their random draws, and the ring of batches.

It follows Caffe's base_data_layer.cpp.
"""

import sys

import caffe

from fastbatch._batches import BatchRing
from fastbatch.caffe.layers.base import Layer
from fastbatch.caffe.layers.params import cache_options, parsed_error_policy, prefetch_of, text_of
from fastbatch.caffe.runtime.embedded import EMBEDDED
from fastbatch.caffe.runtime.tool_run import tool_run
from fastbatch.cores import usable_cores
from fastbatch.errors import DataTimeout
from fastbatch.stats import Stats
from fastbatch.timeline import write_timeline

_REPORT_PERIOD = 1000  # forward() calls between two looks at whether the net waits; Caffe logs as many waits at a time
_UNCOUNTED = 2**64 - 1  # FB_UNCOUNTED in fastbatch.h
_PATIENCE = 10  # seconds that forward() waits in the `caffe` tool before it prints what it waits for


class PrefetchingLayer(Layer):
    """A data layer on a ring of batches. The `_open` of a derived layer ends with `_start`.

    Building the net raises ValueError, `fastbatch.SourceError`, or `fastbatch.SampleError`. The last is raised if the
    first sample, which determines the shape of the tops, or an image that is cached in memory cannot be read.
    forward() raises `fastbatch.SampleError` once, in place of the batch; the next forward() shows the following batch.
    With on_error: "replace" it logs the error instead, and shows another sample.
    """

    _ring = None
    _source = None
    _made_of = None
    _errors_logged = 0
    _replaced_logged = 0
    _forwards = 0
    _mark = None

    # For _open()

    @classmethod
    def check(cls, parsed):
        """Reject also numbers with which Caffe would abort, wait forever, or exhaust memory."""
        batch_size, prefetch = cls._own(parsed).batch_size, prefetch_of(parsed.data_param)
        if batch_size < 1:
            raise ValueError(
                f"batch_size must be 1 or more, not {batch_size} (in Caffe's words: Check failed: top_shape[0] > 0)"
            )
        if prefetch < 1:
            raise ValueError(f"prefetch must be 1 or more, not {prefetch}: Caffe itself would wait for ever")
        for name, value, most in ("prefetch", prefetch, 2**16), ("threads", parsed.threads, 4096):
            if value > most:
                raise ValueError(f"{name} must be at most {most}, not {value}")
        cls._error_policy(parsed)
        super().check(parsed)

    @classmethod
    def _error_policy(cls, parsed):
        """What becomes of samples that cannot be loaded, as parameters of BatchRing, in a layer with these options."""
        return parsed_error_policy(parsed) if "on_error" in cls.schema.options else {}

    @classmethod
    def _own(cls, parsed):
        """Caffe's message for this layer, which the schema names first."""
        return getattr(parsed, next(iter(cls.schema.messages)))

    def _where(self, parsed):
        return text_of(self._own(parsed).source)

    def _draw_seed(self, draws, transform, between=lambda: None):
        """The seed of this layer's random stream. Takes exactly as many draws from Caffe's stream as Caffe's own layer.

        between() makes the draws of the layer's own DataLayerSetUp.
        """
        needed = transform.mirror or (transform.phase == "TRAIN" and transform.crop_size)
        if needed:
            # DataTransformer::InitRand of BaseDataLayer::LayerSetUp; that of the prefetching layer overrides it.
            draws.skip()
        between()
        seed = draws.take() if needed else 0
        draws.skip()  # InternalThread::StartInternalThread, for a thread that never uses it
        return seed

    def _start(self, parsed, top, shapes, *, where, prefetch, source=None, **ring):
        """Give the tops their first shapes and start the threads. They read `source`, by default the layer's.

        `ring` holds further parameters of BatchRing.
        """
        self._give_tops(top, shapes, parsed, where=where)
        self._log_shape(shapes[0])
        batch_size, first = shapes[0][0], self._first_batch(parsed)
        self._made_of = [batch_size, *self._drawn]
        self._ring = BatchRing(
            source or self._source,
            batch_size=batch_size,
            batch=first,
            slots=prefetch + 1,
            threads=parsed.threads if parsed.HasField("threads") else usable_cores(),
            label_dtype="float32",
            # A user may hold arrays from earlier forward() calls. With Caffe's own layers they show later batches;
            # here, too, reading them must not crash.
            stays_mapped=any(each.zero_copy for each in self._tops),
            **self._error_policy(parsed),
            **(cache_options(parsed) if "cache_bytes" in self.schema.options else {}),
            **ring,
        )

    def _first_batch(self, parsed):
        """The number of batches that were shown before: by the run that `caffe train` goes on with, if it resumes."""
        run = tool_run() if parsed.resume and EMBEDDED else None
        first = 0 if run is None else run.batches(self.phase == caffe.TEST)
        if first:
            self._log(f"Resuming behind batch {first - 1}, as of iteration {run.iteration}.")
            self._jumped()
        return first

    def _jumped(self):
        """Called when the layer leaves out batches, before the first one is shown that follows."""

    def _log_shape(self, shape):
        self._log("output data size: " + ",".join(map(str, shape)))

    # For forward()

    def _next(self):
        batch = self._batch()
        self._log_errors()
        if self._forwards % _REPORT_PERIOD == 0:
            self._log_waiting()
        self._forwards += 1
        return batch, [(batch.address(number), self._shape(batch, number)) for number in range(len(self._tops))]

    def _log_waiting(self):
        """Log what limits if the net had to wait, where Caffe would log "Waiting for data"."""
        now = self._stats()
        if self._mark is not None:
            lately = now.since(self._mark)
            if lately.waited_for_data > 0.1 * lately.elapsed:
                self._log("Waiting for data. " + lately.report("the net"))
        self._mark = now

    def _log_errors(self):
        """Log the errors of samples that were replaced: each once, and then only their number."""
        replaced = self._ring.replaced
        if replaced == self._replaced_logged:
            return
        errors = self._ring.errors
        new = [error for error in errors[self._errors_logged :] if error.outcome == "replaced"]
        for error in new:
            self._log(str(error), all_solvers=True)
        more = replaced - self._replaced_logged - len(new)
        if more:
            text = f"{more} more samples were replaced. Only the first {len(errors)} errors are named."
            self._log(text, all_solvers=True)
        self._errors_logged, self._replaced_logged = len(errors), replaced

    def _shape(self, batch, number):
        """The shape that this top has while it shows this batch."""
        return batch.shape_of(number)

    def _batch(self):
        """The next batch."""
        if not EMBEDDED:
            return self._showing.take(self._ring.next)
        while True:
            # In the `caffe` tool, nobody can interrupt the wait and inspect it, so it reports what it waits for.
            try:
                return self._showing.take(self._ring.next, _PATIENCE)
            except DataTimeout as waiting:
                print(f"fastbatch is still waiting in {self._param}: {waiting}", file=sys.stderr, flush=True)

    # For snapshot() and restore()

    def _position(self):
        """The number of batches that were shown or lost, and what the layer's order and draws were made from."""
        return {
            "batches": self._ring.taken - self._showing.pending,
            "made_of": self._made_of,
            "samples": self._samples(),
        }

    def _samples(self):
        """The number of samples in the source; None if nobody has counted them."""
        count = self._ring.samples
        return None if count == _UNCOUNTED else count

    def _go_to(self, position):
        """Show the batch next that was next in this position."""
        self._showing.give_up()
        self._ring.start_epoch(0, position["batches"])
        self._jumped()

    # For users. After setup() only.

    def stats(self):
        """The loader's counters (see `fastbatch.Stats`) as a dict."""
        return self._ring.stats()

    def report(self):
        """A sentence or two that says what limits: the net, or which step of the loader, and what to do about it."""
        return self._stats().report("the net")

    @property
    def errors(self):
        """The samples that could not be loaded, in the order of delivery: the first 1000 of them, as `SampleError`."""
        return self._ring.errors

    def timeline(self, path):
        """Write what the workers, the batches and the net did lately, as `fastbatch.Loader.timeline` does.

        path: a file that ends in ".json" (for chrome://tracing and ui.perfetto.dev), or in ".png", ".pdf" or ".svg".
        """
        write_timeline(path, self._ring.traces(), self._ring.stats()["elapsed"])

    def _stats(self):
        return Stats(seed=0, **self._ring.stats())

    def _end(self):
        if self._ring is not None:
            self._ring.close()
        if self._source is not None:
            self._source.close()
