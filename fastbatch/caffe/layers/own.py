"""`Layer`: a Caffe layer for any source, such as the user's own loading code."""

import ast
import json

import caffe

from fastbatch._batches import BatchRing
from fastbatch._text import counted
from fastbatch.caffe.layers.draws import Draws
from fastbatch.caffe.layers.params import error_policy
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.cores import usable_cores
from fastbatch.loader import as_source, check_cache_folder, check_count, check_flag, check_seed
from fastbatch.orders import Linear, Permuted, in_batches
from fastbatch.transforms import Transform

__all__ = ["Layer"]


class Layer(PrefetchingLayer):
    """A data layer for your own source. Derive from it, and say what the source is.

    ::

        class Faces(fastbatch.caffe.Layer):
            def source(self, split):
                return FaceDataset(split)  # with len() and [index]: loaded by worker processes

    and in the prototxt::

        layer {
          name: "faces"  type: "Python"  top: "data"  top: "label"  top: "box"
          python_param { module: "my_layers"  layer: "Faces"
                         param_str: "{'split': 'train', 'batch_size': 64, 'shuffle': True}" }
        }

    `source()` returns what a `fastbatch.Loader` takes: a source, a data set with `len()` and `[index]`, or arrays. The
    tops are its arrays, in order; the last ones may be left out. Caffe's blobs are float32, and so is each top. If
    samples have different shapes, such as images that are not resized, the tops have the shape of each batch.

    `param_str` is a dict, as Python or JSON writes it. `source()` gets what is in it, except these:

    batch_size : int
        Samples in a batch. Must be given. At the end of an epoch, the next one begins in the same batch, as in Caffe.
    shuffle : bool
        Whether every epoch has a new order. False by default.
    seed : int
        For the shuffle, crops and mirrors. By default a draw from Caffe's stream, which the solver's random_seed fixes.
    threads, prefetch : int
        As for `fastbatch.Loader`; by default one thread for each worker or usable core, and 4 batches.
    on_error, error_budget : str, int or float
        As for `fastbatch.Loader`; on_error is "raise" or "replace".
    cache_bytes : int
        As for `fastbatch.Loader`; by default, decoded images are not kept.
    cache_folder : str
        As for `fastbatch.Loader`; by default, they are kept in memory.
    resume : bool
        Whether `caffe train --snapshot` goes on at the batch where the snapshot was made; False by default.
    transform : dict
        The parameters of a `fastbatch.Transform`, except `phase`, which is the net's.

    With several solvers, each has its share of every epoch in phase TRAIN, and everything in TEST.
    """

    top_counts = (1, None)

    def source(self, **parameters):
        """Return the source. `self.phase` is caffe.TRAIN or caffe.TEST."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say where its samples come from: define source(), which returns a "
            "source, a data set with len() and [index], or arrays"
        )

    def _parse(self):
        if self._param.message is not None:
            self._check_layer_param(self._param.message)
        try:
            return _Options(self.param_str)
        except (TypeError, ValueError) as problem:
            raise type(problem)(f"{type(self).__name__}: {problem}") from None

    def _check_layer_param(self, message):
        """Reject Caffe's messages beside python_param { }: all of them would be ignored."""
        for field, value in message.ListFields():
            if not field.name.endswith("_param") or field.name == "python_param":
                continue
            if value.ListFields():  # otherwise it says nothing
                raise ValueError(
                    f"{self._param} ({type(self).__name__}), in its layer parameter: this layer does not read "
                    f"{field.name}, and would ignore it. {_instead_of(field.name, value)}"
                )

    def _check_counts(self, bottoms, tops):
        if bottoms:
            raise ValueError(f"{type(self).__name__} takes no bottom blobs; this one has {bottoms}")

    def _open(self, parsed, top):
        self._source = source = as_source(self.source(**parsed.others))
        phase = "TEST" if self.phase == caffe.TEST else "TRAIN"
        transform = None if parsed.transform is None else Transform(**parsed.transform, phase=phase)
        varies = parsed.shuffle or transform is not None
        draws = Draws(parsed.seed, self._log, parsed.resume and varies)
        seed = draws.take()
        self._made_of = [parsed.batch_size, seed, parsed.shuffle]
        every = phase == "TEST"  # every rank tests on everything
        order = in_batches(
            Permuted(seed) if parsed.shuffle else Linear(seed),
            parsed.batch_size,
            "wrap",
            rank=0 if every else caffe.solver_rank(),
            ranks=1 if every else caffe.solver_count(),
        )
        self._ring = BatchRing(
            source,
            batch_size=parsed.batch_size,
            batch=self._first_batch(parsed),
            slots=parsed.prefetch + 1,
            threads=parsed.threads or getattr(source, "workers", None) or usable_cores(),
            transform=transform,
            order=order,
            float32=True,
            stays_mapped=True,
            seed=seed,
            cache_bytes=parsed.cache_bytes,
            cache_folder=parsed.cache_folder,
            **parsed.error_policy,
        )
        if parsed.resume and self._ring.seeded:
            draws.check_fixed()
        names = self._ring.names
        if len(top) > len(names):
            raise ValueError(
                f"{type(self).__name__} has {counted(len(top), 'top')}, and its source only "
                f"{counted(len(names), 'array')}: " + ", ".join(names)
            )
        shapes = [None if shape is None else (parsed.batch_size, *shape) for shape in self._ring.shapes]
        self._give_tops(top, [shape or (parsed.batch_size,) for shape in shapes], parsed, where=type(self).__name__)
        if None in shapes:  # known with the first batch, which is the first to be shown
            batch = self._batch()
            shapes = [batch.shape_of(number) for number in range(len(names))]
            for number in range(len(top)):
                self._check_size(type(self).__name__, shapes[number])
                top[number].reshape(*shapes[number])
        self._log_shape(shapes[0])

    def _end(self):
        if self._ring is not None:
            self._ring.close()
        if hasattr(self._source, "close"):
            self._source.close()


# The fields of Caffe's messages that mean the same in a param_str.
_IN_TRANSFORM = ("scale", "mirror", "crop_size", "mean_file", "mean_value")
_IN_PARAM_STR = ("batch_size", "shuffle", "prefetch")


class _Options:
    """The parameters in a param_str. Raises ValueError or TypeError."""

    zero_copy = True

    def __init__(self, text):
        found = _dict(text)
        if "batch_size" not in found:
            raise ValueError("its param_str has no batch_size, such as \"{'batch_size': 64}\"")
        self.batch_size = check_count("batch_size", found.pop("batch_size"), 2**31 - 1)
        self.shuffle = check_flag("shuffle", found.pop("shuffle", False))
        self.seed = check_seed(found.pop("seed")) if "seed" in found else None
        self.threads = check_count("threads", found.pop("threads"), 4096) if "threads" in found else None
        self.prefetch = check_count("prefetch", found.pop("prefetch", 4), 2**16)
        self.error_policy = error_policy(found.pop("on_error", "raise"), found.pop("error_budget", None))
        cache_bytes = found.pop("cache_bytes", None)
        self.cache_bytes = None if cache_bytes is None else check_count("cache_bytes", cache_bytes, 2**62)
        self.cache_folder = check_cache_folder(found.pop("cache_folder", None), self.cache_bytes)
        self.resume = check_flag("resume", found.pop("resume", False))
        self.transform = found.pop("transform", None)
        if self.transform is not None and not isinstance(self.transform, dict):
            raise TypeError(f"transform must be a dict of a Transform's parameters, not {self.transform!r}")
        self.others = found


def _instead_of(name, message):
    """What to write in a param_str instead of one of Caffe's messages."""
    found = {
        field.name: list(value) if hasattr(value, "append") else value
        for field, value in message.ListFields()
        if field.name in (_IN_TRANSFORM if name == "transform_param" else _IN_PARAM_STR)
    }
    if name == "transform_param":
        example = {"transform": found or {"crop_size": 227, "mirror": True}}
        return f"Write it into param_str, in the names of a fastbatch.Transform: {str(example)[1:-1]}."
    example = str(found or {"batch_size": 64})[1:-1]
    return f"Write into param_str what is for the layer, such as {example}. What to read is for source() to say."


def _dict(text):
    """The dict that a param_str holds, written as Python or JSON."""
    for read in ast.literal_eval, json.loads:
        try:
            found = read(text.strip() or "{}")
        except (ValueError, SyntaxError):
            continue
        if isinstance(found, dict):
            return found
    raise ValueError(f"its param_str is not a dict, as Python or JSON writes it: {text!r}")
