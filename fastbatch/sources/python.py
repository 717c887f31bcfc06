"""`PythonSource`: samples that your own Python code loads."""

from __future__ import annotations

import inspect
import multiprocessing
import numbers
import operator
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Optional, Union

import numpy

from fastbatch._keywords import unknown_keyword
from fastbatch._text import counted
from fastbatch.cores import usable_cores
from fastbatch.sources._iteration import InOrder
from fastbatch.sources._probe import probe
from fastbatch.sources._recipe import Question, Recipe, said_of
from fastbatch.sources._samples import Layout, are_names, declared_fields, sample_count
from fastbatch.sources._subset import Subset
from fastbatch.sources._team import Team

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PythonSource"]

_MOST_SECONDS = 10**6
_TRIES = 16  # samples of which one says what samples look like
_LOADERS = "it belongs to the loader, such as Loader(PythonSource(dataset, workers=4), {}=...)"
# Keywords of the Loader and of PyTorch, and what to use instead.
_ELSEWHERE = {
    **{
        name: _LOADERS.format(name)
        for name in (
            *("batch_size", "cache_bytes", "error_budget", "even", "last_batch", "on_error", "prefetch", "rank"),
            *("ranks", "seed", "shuffle", "threads", "transform"),
        )
    },
    "batch_sampler": "source[indices] are chosen samples, in this order; batch_size= belongs to the Loader",
    "collate_fn": "the loader puts the samples side by side; padded= and varying= are for samples of different shapes",
    "drop_last": 'it belongs to the loader, as Loader(..., last_batch="drop")',
    "generator": "the samples' random numbers are fixed by the seed of the Loader",
    "multiprocessing_context": 'start_method="forkserver", "spawn" or "fork" says how processes are started',
    "num_workers": "workers= is the number of processes or threads",
    "persistent_workers": "workers live as long as their loader",
    "prefetch_factor": "prefetch= of the Loader is the number of batches prepared ahead",
    "sampler": "source[indices] are chosen samples, in this order; shuffle= and rank= belong to the Loader",
    "worker_init_fn": "each worker process imports the module of the data set: what is to be set up, do there",
}


class PythonSource:
    """Samples that your own Python code loads, in worker processes or threads.

    ::

        source = PythonSource(dataset, workers=4)          # anything with len() and [index], as a PyTorch Dataset
        source = PythonSource(iterable, count=60000)       # anything with iter(), in its own order
        source = PythonSource(load, count=60000)           # load(index) returns a sample
        source = PythonSource(load, count=60000, fields={"data": ("uint8", (3, 32, 32)), "label": ("int64", ())})
                                                           # load(index, out) fills out["data"] and out["label"]

    A sample is a value or a tuple, list, namedtuple or dict of values. A value is a NumPy array, a torch tensor, a PIL
    image, a number, or a list of numbers. All samples have the same names and types, and the same shapes except for
    `padded` and `varying`.

    Parameters
    ----------
    dataset
        The data set, an iterable, a generator function without parameters, or a function of an index.
    count : int, optional
        The number of samples of an epoch, for what has no `len()`, and for an iterable of which an epoch does not take
        all. Part of a data set with `[index]` is a `Subset`, such as `source[:1000]`.
    names : sequence of str, optional
        The names of the values of samples that are tuples. By default "data", "label", "field2", "field3", ...; a
        namedtuple and a dict have their own.
    fields : dict of str to (dtype, shape), optional
        The arrays that load(index, out) fills, by out["data"][...] = value. `out` is a dict of arrays in the batch's
        own memory, which hold zeros at first. To return something, or to put it in the place of an array, is an error.
    padded : dict of str to int, optional
        For values that are arrays with different numbers of rows, the rows that each has in the batch, such as
        {"boxes": 20}. The rows behind a sample's own are zeros. A field "boxes_count" follows, with the sample's own
        number of rows. For a sample without rows, return an array that says what a row is, such as
        numpy.zeros((0, 4), "float32").
    varying : sequence of str, or bool
        The names of values whose shape may differ from sample to sample, such as ("data",) for images that are not
        resized; True for all arrays. Their type and number of dimensions stay the same. A `Transform` that crops makes
        images of one shape of them. Otherwise all samples of a batch need one shape, so leave batch_size at 1.
    workers : int, optional
        Worker processes or threads; by default one for each usable core, and one for an iterable.
    kind : {"process", "thread"}
        "process": each worker is a process, which writes its samples into the batch's memory itself. No sample is
        pickled or copied, and no Python code runs in this process. "thread": each is a Python thread of this process;
        they run one at a time wherever they need the GIL.
    start_method : {"forkserver", "spawn", "fork"}, optional
        How processes are started, by default "forkserver": see `multiprocessing`. The data set is pickled once for
        each worker, except for "fork". An interrupt (Ctrl-C) in the moment of a fork may be lost, and leave `logging`
        locked for other threads: Python's own code is interrupted there.
    timeout : float, optional
        Seconds that a worker process may take for a sample, also for the first one. One that takes longer is ended
        and replaced. A process that is only starting has a minute more.

    Raises
    ------
    TypeError, ValueError
        A parameter is out of range or of the wrong type, or the data set cannot be pickled. What samples look like is
        known when the first loader is made: then ValueError is raised if `padded` or `varying` names a value that they
        do not have, or that is a number.

    Notes
    -----
    The first loader that is made of the source, or of a subset of it, loads that one's first sample in a process of its
    own, to see what samples look like. If it cannot be loaded, the loader is an error, except with another `on_error`
    than "raise": then the first one that can be, of 16, says it. So it does where the first one has no rows in a value
    that is padded.

    In a worker process, every sample has random numbers of its own: before it is loaded, the generators of `random`,
    `numpy.random` and, once it is imported, `torch` are seeded from the loader's seed, the epoch and the index. So the
    samples are the same for any number of workers, and differ from epoch to epoch. `current_sample()` gives that
    seed to your code, for generators of its own; in threads, which share the global ones, this is the way.

    Every epoch iterates over an iterable anew. The samples after `count` are not used. An epoch that begins in the
    middle, as a shard or a restored position does, passes the samples before it.

    An exception in your code is a `SampleError` of its batch; its `__cause__` is the exception, whose own cause is its
    traceback. A worker process that ends or takes too long is a `SampleError` too, and is replaced.

    Worker processes end with the loader, and with this process, however it ends. They ignore Ctrl-C. What they print
    goes where this process prints.

    The source is immutable; any number of loaders may read it at once, each with its own workers.
    """

    def __init__(
        self,
        dataset: Any,
        count: Optional[int] = None,
        *,
        names: Optional[Sequence[str]] = None,
        fields: Optional[Mapping[str, tuple[Any, tuple[int, ...]]]] = None,
        padded: Optional[Mapping[str, int]] = None,
        varying: Union[bool, Sequence[str]] = False,
        workers: Optional[int] = None,
        kind: str = "process",
        start_method: Optional[str] = None,
        timeout: Optional[float] = None,
        **others: NoReturn,
    ) -> None:
        if others:
            raise unknown_keyword("PythonSource", next(iter(others)), PythonSource, _ELSEWHERE)
        load, in_order = _loading(dataset)
        if fields is not None and load is not dataset:
            raise ValueError("fields is for a function load(index, out), and this is a data set; leave it out")
        self._count = _number_of_samples(dataset, load, count, in_order)
        if self._count < 1:
            raise ValueError(f"{said_of(load)} has {counted(self._count, 'sample')}; a loader needs at least one")
        if kind not in ("process", "thread"):
            raise ValueError(f'kind must be "process" or "thread", not {kind!r}')
        if start_method is not None and start_method not in multiprocessing.get_all_start_methods():
            raise ValueError(f'start_method must be "forkserver", "spawn" or "fork", not {start_method!r}')
        if start_method is not None and kind == "thread":
            raise ValueError('start_method is for kind="process": no process is started for a thread; leave it out')
        if timeout is not None and kind == "thread":
            raise ValueError('timeout is for kind="process": a thread cannot be ended')
        if timeout is not None:
            _check_timeout(timeout)
        if workers is None:
            workers = 1 if in_order else usable_cores()
        self._workers = _number_of_workers(workers)
        if in_order and self._workers > 1:
            raise ValueError(
                f"{said_of(load)} is an iterable, which one worker reads in order; several workers need a "
                f"data set with [index]. workers is {workers}"
            )
        if fields is not None and names is not None:
            raise ValueError("fields already has the names; leave names out")
        if fields is not None and (padded is not None or varying):
            raise ValueError("fields already has the shape of each array; leave padded and varying out")
        self._kind = kind
        self._start_method = start_method or "forkserver"
        self._timeout = timeout
        most = _padded(padded)
        self._recipe = Recipe(
            load, None if names is None else _names(names), fields is not None, in_order, most, _varying(varying, most)
        )
        self._layout = None if fields is None else Layout(declared_fields(fields))
        if load is dataset:
            _check_parameters(load, fields is not None)

    def __len__(self) -> int:
        """The number of samples."""
        return self._count

    def __getitem__(self, indices: Any, /) -> Subset:
        """The `Subset` of these samples: of a slice, an array of indices, or a mask."""
        return Subset(self, indices)

    @property
    def _in_order(self) -> bool:
        """Whether it iterates, so that one thread must ask for the samples, in order."""
        return self._recipe.in_order

    @property
    def workers(self) -> int:
        """Worker processes or threads of each loader."""
        return self._workers

    @property
    def kind(self) -> str:
        """What workers are: "process" or "thread"."""
        return self._kind

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample's "data", or of its first value if none has that name.

        Loads sample 0 the first time.
        """
        return _shape(self._known_layout())

    def shape_of(self, index: int) -> tuple[int, ...]:
        """The shape of "data", or of the first value if none has that name, of sample `index`.

        Loads that sample if shapes vary, and otherwise the first time.

        Raises SourceError if it cannot be loaded.
        """
        index = operator.index(index)
        if not 0 <= index < self._count:
            raise IndexError(f"the source has {counted(self._count, 'sample')}, and no {index}")
        layout = self._known_layout([index])
        if layout.varying and layout.index != index:
            layout = self._probe([index], False)
        return _shape(layout)

    @property
    def fields(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """The types and shapes of the arrays of a sample by name. Loads sample 0 the first time.

        Where shapes vary, they are those of the sample that was loaded first.

        Raises SourceError if sample 0 cannot be loaded.
        """
        return {name: (dtype, shape) for name, dtype, shape in self._known_layout().fields}

    def _context(self) -> Any:
        return multiprocessing.get_context(self._start_method)

    def _known_layout(self, indices: Sequence[int] = (), tolerant: bool = False) -> Layout:
        """What samples look like. Loads one of these samples the first time; of an iterable, of the first ones."""
        if self._layout is None:
            if self._recipe.in_order or len(indices) == 0:  # an iteration comes by the first ones in any case
                indices = range(self._count)
            layout = self._probe(indices[:_TRIES], tolerant)
            _check_names(self._recipe, layout)
            self._layout = layout
        return self._layout

    def _probe(self, indices: Sequence[int], tolerant: bool) -> Layout:
        """The layout of one of these samples, which a worker loads."""
        question = Question([int(index) for index in indices], tolerant)
        return probe(self._recipe, question, self._kind, self._context(), self._timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: workers end with the loaders that use them."""

    def __repr__(self) -> str:
        return (
            f"PythonSource({said_of(self._recipe.load)}, {counted(self._count, 'sample')}, workers={self._workers}, "
            f"kind={self._kind!r})"
        )

    def __fastbatch_source__(self, random_access: bool) -> Any:
        """Return a PyCapsule that holds an fb_source (include/fastbatch.h), and start the workers behind it."""
        return self.__fastbatch_team__(random_access, self._workers).channels.capsule()

    def __fastbatch_team__(
        self, random_access: bool, threads: int, tolerant: bool = False, indices: Sequence[int] = ()
    ) -> Team:
        """Start the workers.

        tolerant: whether the loader takes it if a sample cannot be loaded. indices: samples that the loader will ask
        for; by default, the first ones.
        """
        if self._recipe.in_order and random_access:
            raise ValueError(
                f"{said_of(self._recipe.load)} is an iterable, whose samples come in its own order: "
                'without shuffle=True, weights= and on_error="replace"; or give a data set with [index]'
            )
        if self._recipe.in_order and threads != 1:
            raise ValueError(
                f"{said_of(self._recipe.load)} is an iterable, whose samples one thread asks for, in order; "
                f"leave threads out, which is {threads}"
            )
        return Team(
            said_of(self._recipe.load),
            self._count,
            self._recipe,
            self._known_layout(indices, tolerant),
            self._workers,
            self._kind,
            self._context(),
            self._timeout,
        )


def _loading(dataset: Any) -> tuple[Any, bool]:
    """The function of an index that loads samples, and whether it must be called for one after the other."""
    # Whoever has one has imported torch.
    if isinstance(dataset, getattr(sys.modules.get("torch.utils.data"), "DataLoader", ())):
        raise TypeError(
            "this is a DataLoader, each of whose batches would be one sample: give its data set (loader.dataset), and "
            "tell fastbatch's loader anew what you told it, such as batch_size and shuffle"
        )
    if hasattr(dataset, "__getitem__") and not _is_iterable_dataset(dataset):
        return dataset.__getitem__, False
    if hasattr(dataset, "__next__"):
        raise TypeError(
            f"{type(dataset).__name__} can be iterated over only once, and every epoch begins anew: give what makes "
            "it, such as the generator function, or an object whose __iter__() does"
        )
    if inspect.isgeneratorfunction(dataset) or hasattr(dataset, "__iter__"):
        return InOrder(dataset), True
    if callable(dataset):
        return dataset, False
    raise TypeError(
        f"{type(dataset).__name__} has neither [index] nor can it be iterated over, and it is no function of an index "
        "either: it gives no samples"
    )


def _check_parameters(load: Any, fills: bool) -> None:
    """Raise TypeError if a function cannot be called with an index; or, if it fills arrays, with them too.

    Nothing is known about functions whose parameters Python cannot tell, such as some of extensions.
    """
    try:
        signature = inspect.signature(load)
    except (TypeError, ValueError):
        return
    if _takes(signature, 2 if fills else 1):
        return
    name, meant = said_of(load), "load(index) returns a sample, and load(index, out) with fields= fills arrays"
    if fills and _takes(signature, 1):
        raise TypeError(
            f"fields is for a function that fills the arrays of out, and {name}{signature} is not given "
            f"them: {meant}. Leave fields out, or take out"
        )
    if not fills and _takes(signature, 2):
        raise TypeError(
            f"{name}{signature} needs fields=, which says what the arrays of its second parameter are, such "
            f'as fields={{"data": ("uint8", (3, 32, 32))}}: {meant}'
        )
    raise TypeError(f"{name}{signature} cannot be called for a sample: {meant}")


def _takes(signature: inspect.Signature, number: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        signature.bind(*range(number))
    except TypeError:
        return False
    return True


def _number_of_samples(dataset: Any, load: Any, count: Any, in_order: bool) -> int:
    """The number of samples of an epoch. Raise TypeError or ValueError if `count` cannot be it."""
    if not hasattr(dataset, "__len__") and count is None:
        name = "a function" if load is dataset else type(dataset).__name__
        raise TypeError(f"{name} does not say how many samples there are: give count=")
    try:
        length = len(dataset)
    except (TypeError, NotImplementedError):  # it has none, or no answer, as some iterables
        if count is None:
            raise
        return sample_count(count)
    if count is not None and in_order:
        return sample_count(count)
    if count is not None and sample_count(count) != length:
        raise ValueError(
            f"count is {count}, and {said_of(load)} has {counted(length, 'sample')} by its len(): leave count out. "
            "PythonSource(...)[:n] are n of the samples, and workers= is the number of workers"
        )
    return length


def _number_of_workers(workers: Any) -> int:
    """`workers` as an int. Raise TypeError or ValueError if there cannot be so many."""
    if isinstance(workers, bool) or not hasattr(workers, "__index__"):
        raise TypeError(f"workers must be the number of processes or threads, an integer, not {workers!r}")
    number = operator.index(workers)
    if number == 0:
        raise ValueError('workers must be 1 to 4096, not 0; kind="thread" loads samples in this process')
    if not 1 <= number <= 4096:
        raise ValueError(f"workers must be 1 to 4096, not {number}")
    return number


def _is_iterable_dataset(dataset: Any) -> bool:
    """Whether it is PyTorch's IterableDataset, which has a [index] that only raises an error."""
    torch = sys.modules.get("torch.utils.data")
    return torch is not None and isinstance(dataset, torch.IterableDataset)


def _shape(layout: Layout) -> tuple[int, ...]:
    """The shape of the data of the sample that the layout was made of."""
    fields = {name: shape for name, _, shape in layout.fields}
    return fields.get("data", next(iter(fields.values())))


def _check_names(recipe: Recipe, layout: Layout) -> None:
    """Raise ValueError if a parameter names a value that samples do not have, or that is a number."""
    has = f"samples have {', '.join(layout.names)}"
    for name in recipe.padded:
        if name not in layout.names:
            raise ValueError(f"padded has {name!r}, and {has}")
        if name not in layout.padded:
            raise ValueError(f"padded has {name!r}, which is a number, and has no rows: leave it out")
    if recipe.varying is True and not layout.varying:
        raise ValueError(f"varying=True has no effect: {has}, of which none is an array that is not padded")
    for name in [] if isinstance(recipe.varying, bool) else recipe.varying:
        if name not in layout.names:
            raise ValueError(f"varying has {name!r}, and {has}")
        if name not in layout.varying:
            raise ValueError(f"varying has {name!r}, which is a number, and has always the same shape: leave it out")


def _varying(varying: Union[bool, Sequence[str]], padded: Mapping[str, int]) -> Union[bool, list[str]]:
    """`varying` as True, or as a list of names."""
    if isinstance(varying, (bool, numpy.bool_)):
        return True if varying else []
    if not are_names(varying):
        raise TypeError(f'varying must be a tuple of names, such as ("data",), or True or False, not {varying!r}')
    for name in varying:
        if name in padded:
            raise ValueError(f"{name} is both padded, to one shape, and varying: leave it out of one of the two")
    return list(varying)


def _names(names: Any) -> list[str]:
    """`names` as a list."""
    if not are_names(names):
        raise TypeError(f'names must be a tuple of names, such as ("data", "label"), not {names!r}')
    found = list(names)
    for name in found:
        if not name or not name.isprintable():
            raise ValueError(f"names has {name!r}, and a batch's arrays need printable strings for names")
        if found.count(name) > 1:
            raise ValueError(f"names has {name!r} {found.count(name)} times: each value needs a name of its own")
    return found


def _padded(padded: Any) -> dict[str, int]:
    """`padded` with its numbers of rows as ints."""
    if padded is None:
        return {}
    if not isinstance(padded, Mapping) or not are_names(padded):
        raise TypeError(f'padded must be a dict of names and numbers of rows, such as {{"boxes": 20}}, not {padded!r}')
    found = {}
    for name, most in padded.items():
        if isinstance(most, bool) or not hasattr(most, "__index__"):
            raise TypeError(f"padded gives {name} {most!r} rows, and the number of rows must be an integer")
        found[name] = operator.index(most)
        if not 1 <= found[name] < 2**31:
            raise ValueError(f"padded gives {name} {counted(most, 'row')}; it can have 1 to {2**31 - 1}")
    return found


def _check_timeout(timeout: Any) -> None:
    """Raise TypeError or ValueError if it is no number of seconds in which a sample can be loaded."""
    problem = f"timeout must be more than 0 seconds and at most {_MOST_SECONDS}, not {timeout!r}"
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real):
        raise TypeError(problem)
    if not 0 < float(timeout) <= _MOST_SECONDS:
        raise ValueError(problem)
