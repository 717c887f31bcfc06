"""`Layer`: a Caffe layer for any source, such as the user's own loading code."""

import ast
import contextlib
import inspect
import json

import caffe
import numpy

from fastbatch._batches import BatchRing
from fastbatch._text import counted
from fastbatch.caffe.layers.draws import Draws
from fastbatch.caffe.layers.own_options import ABSENT, OPTIONS, Options, taken_over
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.caffe.layers.schema import did_you_mean
from fastbatch.cores import usable_cores
from fastbatch.loader import Loader, as_source, order_of
from fastbatch.orders import in_batches
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

    `source()` may also return a `fastbatch.Loader`, which the layer closes: it takes over the source and what the
    Loader was told. Of the options below, `param_str` then has `resume` only.

    `param_str` is a dict, as Python or JSON writes it. `source()` gets what is in it, except these:

    batch_size : int
        Samples in a batch. Must be given. At the end of an epoch, the next one begins in the same batch, as in Caffe.
    shuffle : bool
        Whether every epoch has a new order. False by default.
    shuffle_window : int
        As for `fastbatch.Loader`. Its `weights`, one for each sample, can only be given to a Loader.
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
        The parameters of a `fastbatch.Transform`, except `phase`, which is the net's. Some names of SSD's and NVIDIA's
        Caffe for the same steps are understood: `crop_h` and `crop_w`, `short_side`, `resize_param`.

    With several solvers, each has its share of every epoch in phase TRAIN, and everything in TEST.
    """

    top_counts = (1, None)

    def source(self, **parameters):
        """Return the source, or a `fastbatch.Loader`. `self.phase` is caffe.TRAIN or caffe.TEST."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say where its samples come from: define source(), which returns a "
            "source, a data set with len() and [index], arrays, or a fastbatch.Loader"
        )

    def _parse(self):
        if self._param.message is not None:
            self._check_layer_param(self._param.message)
        with self._naming_the_layer():
            found = _dict(self.param_str)
            given = {name: found.pop(name) for name in OPTIONS if name in found}
            options = Options(self._phase(), **given)
            self._check_parameters(found)
        options.given, options.others = given, found
        return options

    def _phase(self):
        return "TEST" if self.phase == caffe.TEST else "TRAIN"

    def _name(self):
        return f"{self._param} ({type(self).__name__})"

    @contextlib.contextmanager
    def _naming_the_layer(self):
        """Have fastbatch's errors begin with the layer's name."""
        try:
            yield
        except (TypeError, ValueError) as problem:
            if type(problem) not in (TypeError, ValueError):
                raise
            raise type(problem)(f"{self._name()}: {problem}") from problem.__cause__

    def _check_layer_param(self, message):
        """Reject Caffe's messages beside python_param { }: all of them would be ignored."""
        for field, value in message.ListFields():
            if not field.name.endswith("_param") or field.name == "python_param":
                continue
            if value.ListFields():  # otherwise it says nothing
                raise ValueError(
                    f"{self._name()}, in its layer parameter: this layer does not read {field.name}, and would ignore "
                    f"it. {_instead_of(field.name, value)}"
                )

    def _check_parameters(self, found):
        """Reject what is neither an option nor a parameter of source(), and what source() is not given."""
        parameters = inspect.signature(self.source).parameters.values()
        taken = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
        names = [each.name for each in taken]
        takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
        for name in found:
            if name not in names and not (takes_all and isinstance(name, str)):
                known = [*OPTIONS, *names]
                raise TypeError(
                    f"its param_str has {name!r}, which is neither an option of this layer nor a parameter of its "
                    f"source(). {_hint(name, known)}The options are {', '.join(OPTIONS)}; source() takes "
                    f"{', '.join(names) or 'nothing'}"
                )
        for each in taken:
            if each.default is each.empty and each.name not in found:
                raise TypeError(
                    f"source() cannot have a parameter {each.name}, which is an option of the layer itself: give it "
                    "another name"
                    if each.name in OPTIONS
                    else f"its param_str has no {each.name!r}, which its source() needs"
                )

    def _check_counts(self, bottoms, tops):
        if bottoms:
            raise ValueError(f"{self._name()} takes no bottom blobs; this one has {bottoms}")

    def _open(self, parsed, top):
        returned = self.source(**parsed.others)
        with self._naming_the_layer():
            if isinstance(returned, Loader):
                self._source, options = taken_over(returned, parsed.given, self._phase())
            elif parsed.batch_size is None:
                raise ValueError("its param_str has no batch_size, such as \"{'batch_size': 64}\"")
            else:
                self._source, options = as_source(returned), parsed
        varies = options.shuffle or options.weights is not None or options.transform is not None
        draws = Draws(options.seed, self._log, options.resume and varies, of_loader=isinstance(returned, Loader))
        seed = draws.take()
        self._made_of = [options.batch_size, seed, options.shuffle_window or options.shuffle]
        if options.weights is not None:
            self._made_of.append(options.weights.check)
        every = self.phase == caffe.TEST  # every rank tests on everything
        order = in_batches(
            order_of(seed, options.shuffle, options.shuffle_window, options.weights),
            options.batch_size,
            "wrap",
            rank=0 if every else caffe.solver_rank(),
            ranks=1 if every else caffe.solver_count(),
        )
        with self._naming_the_layer():
            self._ring = BatchRing(
                self._source,
                batch_size=options.batch_size,
                batch=self._first_batch(options),
                slots=options.prefetch + 1,
                threads=options.threads or getattr(self._source, "workers", None) or usable_cores(),
                transform=options.transform,
                order=order,
                float32=True,
                stays_mapped=True,
                seed=seed,
                cache_bytes=options.cache_bytes,
                cache_folder=options.cache_folder,
                **options.error_policy,
            )
        if options.resume and self._ring.seeded:
            draws.check_fixed()
        names = self._ring.names
        if len(top) > len(names):
            raise ValueError(
                f"{self._name()} has {counted(len(top), 'top')}, and its source only "
                f"{counted(len(names), 'array')}: " + ", ".join(names)
            )
        shapes = [None if shape is None else (options.batch_size, *shape) for shape in self._ring.shapes]
        self._give_tops(top, [shape or (options.batch_size,) for shape in shapes], options, where=self._name())
        if None in shapes:  # known with the first batch, which is the first to be shown
            batch = self._batch()
            shapes = [batch.shape_of(number) for number in range(len(names))]
            for number in range(len(top)):
                self._check_size(self._name(), shapes[number])
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


# What is neither an option nor a parameter of a Transform, and may be looked for in a param_str.
_ELSEWHERE = {
    **ABSENT,
    "weights": "They are one for each sample: source() may return fastbatch.Loader(..., weights=...).",
    "workers": "Their number is for source() to say: it may return fastbatch.PythonSource(..., workers=...).",
}


def _hint(name, known):
    """What was meant by an unknown key of a param_str: a sentence with a space behind it, or ""."""
    name = str(name)
    if name in _ELSEWHERE:
        return f"{_ELSEWHERE[name]} "
    if name in inspect.signature(Transform).parameters:
        return f"It belongs in 'transform': {{{name!r}: ...}}. "
    meant = did_you_mean(name, known)
    return meant and f"{meant} "


def _instead_of(name, message):
    """What to write in a param_str instead of one of Caffe's messages."""
    found = {
        field.name: [_shortest(each) for each in value] if hasattr(value, "append") else _shortest(value)
        for field, value in message.ListFields()
        if field.name in (_IN_TRANSFORM if name == "transform_param" else _IN_PARAM_STR)
    }
    if name == "transform_param":
        example = {"transform": found or {"crop_size": 227, "mirror": True}}
        return f"Write it into param_str, in the names of a fastbatch.Transform: {str(example)[1:-1]}."
    example = str(found or {"batch_size": 64})[1:-1]
    return f"Write into param_str what is for the layer, such as {example}. What to read is for source() to say."


def _shortest(value):
    """A value of a field of Caffe's. A float is the double with the fewest digits that becomes the same float32."""
    return float(str(numpy.float32(value))) if isinstance(value, float) else value


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
