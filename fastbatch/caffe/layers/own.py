"""`Layer`: a Caffe layer for any source, such as the user's own loading code."""

import ast
import contextlib
import inspect
import json

import caffe
import numpy

from fastbatch._batches import BatchRing
from fastbatch._text import counted
from fastbatch.caffe.layers import forks
from fastbatch.caffe.layers.draws import Draws
from fastbatch.caffe.layers.params import error_policy
from fastbatch.caffe.layers.prefetching import PrefetchingLayer
from fastbatch.caffe.layers.schema import did_you_mean
from fastbatch.cores import usable_cores
from fastbatch.loader import Loader, as_source, check_cache_folder, check_count, check_flag, check_seed
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
        The parameters of a `fastbatch.Transform`, except `phase`, which is the net's. Some names of SSD's and NVIDIA's
        Caffe for the same steps are understood: `crop_h` and `crop_w`, `short_side`, `resize_param`.

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
        with self._naming_the_layer():
            found = _dict(self.param_str)
            options = _Options(**{name: found.pop(name) for name in _OPTIONS if name in found})
            self._check_parameters(found)
        options.others = found
        return options

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
                known = [*_OPTIONS, *names]
                raise TypeError(
                    f"its param_str has {name!r}, which is neither an option of this layer nor a parameter of its "
                    f"source(). {_hint(name, known)}The options are {', '.join(_OPTIONS)}; source() takes "
                    f"{', '.join(names) or 'nothing'}"
                )
        for each in taken:
            if each.default is each.empty and each.name not in found:
                raise TypeError(
                    f"source() cannot have a parameter {each.name}, which is an option of the layer itself: give it "
                    "another name"
                    if each.name in _OPTIONS
                    else f"its param_str has no {each.name!r}, which its source() needs"
                )

    def _check_counts(self, bottoms, tops):
        if bottoms:
            raise ValueError(f"{self._name()} takes no bottom blobs; this one has {bottoms}")

    def _open(self, parsed, top):
        returned = self.source(**parsed.others)
        phase = "TEST" if self.phase == caffe.TEST else "TRAIN"
        with self._naming_the_layer():
            if isinstance(returned, Loader):
                raise TypeError(
                    f"source() returned a {type(returned).__name__}, and a layer makes its batches itself: return the "
                    "loader's source, and write into param_str what the loader was told, such as "
                    "{'batch_size': 64, 'shuffle': True, 'transform': {'crop_size': 227}}"
                )
            self._source = source = as_source(returned)
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
        with self._naming_the_layer():
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
                f"{self._name()} has {counted(len(top), 'top')}, and its source only "
                f"{counted(len(names), 'array')}: " + ", ".join(names)
            )
        shapes = [None if shape is None else (parsed.batch_size, *shape) for shape in self._ring.shapes]
        self._give_tops(top, [shape or (parsed.batch_size,) for shape in shapes], parsed, where=self._name())
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


class _Options:
    """The options in a param_str. Raises ValueError or TypeError."""

    zero_copy = True

    def __init__(
        self,
        batch_size=None,
        shuffle=False,
        seed=None,
        threads=None,
        prefetch=4,
        on_error="raise",
        error_budget=None,
        cache_bytes=None,
        cache_folder=None,
        resume=False,
        transform=None,
    ):
        if batch_size is None:
            raise ValueError("its param_str has no batch_size, such as \"{'batch_size': 64}\"")
        self.batch_size = check_count("batch_size", batch_size, 2**31 - 1)
        self.shuffle = check_flag("shuffle", shuffle)
        self.seed = None if seed is None else check_seed(seed)
        self.threads = None if threads is None else check_count("threads", threads, 4096)
        self.prefetch = check_count("prefetch", prefetch, 2**16)
        self.error_policy = error_policy(on_error, error_budget)
        self.cache_bytes = None if cache_bytes is None else check_count("cache_bytes", cache_bytes, 2**62)
        self.cache_folder = check_cache_folder(cache_folder, self.cache_bytes)
        self.resume = check_flag("resume", resume)
        if transform is not None and not isinstance(transform, dict):
            raise TypeError(f"transform must be a dict of a Transform's parameters, not {transform!r}")
        if transform is not None and "phase" in transform:
            raise ValueError("transform cannot have a phase, which is the net's own: leave it out")
        self.transform = None if transform is None else forks.translated(transform)


_OPTIONS = tuple(inspect.signature(_Options).parameters)
_RANK = "A net's rank is Caffe's own: in phase TRAIN, each solver has its share. "
# What a Loader has and a layer does not have.
_ELSEWHERE = {
    "even": _RANK,
    "last_batch": "The batches of a net have a fixed size, and go on into the next epoch. ",
    "rank": _RANK,
    "ranks": _RANK,
    "timeout": "forward() waits as long as it takes. ",
    "workers": "Their number is for source() to say: it may return fastbatch.PythonSource(..., workers=...). ",
}


def _hint(name, known):
    """What was meant by an unknown key of a param_str: a sentence with a space behind it, or ""."""
    name = str(name)
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
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
