"""`Loader`: batches for a plain Python loop."""

from __future__ import annotations

import numbers
import operator
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Optional, SupportsIndex, TypeVar, Union, cast

import numpy

from fastbatch._batches import BatchRing, Closer
from fastbatch._epoch import Epoch
from fastbatch._keywords import unknown_keyword
from fastbatch._state import OrderKey, check_state
from fastbatch._text import counted
from fastbatch.cores import usable_cores
from fastbatch.errors import SampleError
from fastbatch.orders import Linear, Order, Permuted, Weighted, Windowed, in_batches
from fastbatch.ranks import find_rank
from fastbatch.sources import PythonSource, Samples, Source
from fastbatch.sources._arrays import ArraySource
from fastbatch.stats import Stats
from fastbatch.timeline import write_timeline
from fastbatch.transforms import Transform

if TYPE_CHECKING:
    import numpy.typing
    from typing_extensions import Self

__all__ = ["Loader"]

_Choice = TypeVar("_Choice")
OnError = Union[str, Callable[[SampleError], str]]

_ORDER = (
    "shuffle=True gives a new order for each epoch, fixed by seed; weights= draws samples by their weights; for an "
    "order of your own, make a loader of source[indices]"
)
_WINDOW = "shuffle=True, shuffle_window=... shuffles within windows of consecutive samples"
_THREADS = (
    "samples are read by native threads of this process: threads=, by default one for each usable core. Processes are "
    "for your own Python code: PythonSource(dataset, workers=...)"
)
_PINNED = 'fastbatch.torch.TorchLoader(..., device="cuda") copies batches to the device by way of pinned memory'
# Keywords of PyTorch, and what to use instead.
_ELSEWHERE = {
    "batch_sampler": _ORDER,
    "buffer_size": _WINDOW,
    "collate_fn": "native threads put the samples side by side; what is to happen to a batch, do in your loop",
    "dataset": "the first parameter is source",
    "device": "batches are NumPy arrays; fastbatch.torch.TorchLoader(..., device=) gives tensors on a device",
    "drop_last": 'last_batch="drop" leaves out a smaller last batch',
    "generator": "the order and the random crops are fixed by seed",
    "in_order": "batches come in order, always",
    "multiprocessing_context": _THREADS,
    "num_threads": _THREADS,
    "num_workers": _THREADS,
    "persistent_workers": "the threads of a loader live as long as it does",
    "pin_memory": _PINNED,
    "pin_memory_device": _PINNED,
    "prefetch_factor": "prefetch= is the number of batches prepared ahead, by all threads together",
    "replacement": "weights= draws samples with replacement",
    "sampler": _ORDER + '; rank="auto", or rank= and ranks=, divides epochs among processes',
    "shuffle_buffer": _WINDOW,
    "shuffle_buffer_size": _WINDOW,
    "worker_init_fn": _THREADS,
    "workers": _THREADS,
}


class Loader:
    """Batches of samples, assembled ahead of time by native threads.

    ::

        source = LMDBSource("train_lmdb")
        with Loader(source, Transform(crop_size=227, mirror=True), batch_size=64, shuffle=True) as loader:
            for epoch in range(10):
                for batch in loader:
                    train(batch["data"], batch["label"])

    One `for` loop is one epoch. The next loop continues with the next epoch, whose first batches are already prepared.
    Leaving a loop early discards the rest of its epoch.

    Parameters
    ----------
    source
        An `LMDBSource`, a `LevelDBSource`, an `ImageListSource`, an `ArraySource`, a `PythonSource`, or any other
        object with `__fastbatch_source__` (include/fastbatch.h). Alternatively arrays: one, a tuple (data, label), or a
        dict; or a data set with `len()` and `[index]`, or `iter()`, of which a `PythonSource` is made.
    transform : Transform, optional
        What happens to the image, which is the array "data", and to the arrays named beside it. Without a transform,
        all arrays keep their type and size.
    batch_size : int
        Samples in a batch. The last batch of an epoch may have fewer: see `last_batch`.
    shuffle : bool
        Whether every epoch has a new order: a keyed permutation of all samples, which takes no memory.
    shuffle_window : int, optional
        With `shuffle`: how many consecutive samples are read before the next ones, for media on which far jumps are
        slow. These windows come in a new order in each epoch, and so do the samples in each. None: one window.
    weights : sequence of float, optional
        How often each sample is drawn, in proportion: finite, at least 0, one for each sample. Each place of an epoch
        draws anew, so that a sample may come several times or not at all; an epoch has as many places as there are
        samples. A sample that comes again has other random crops. Without `shuffle`, which it takes the place of.
    seed : int, optional
        0 <= seed < 2**64, for the shuffle and the random crops and mirrors. None draws a seed; `loader.seed` and
        `stats()` report it. Source, seed and epoch determine every byte of every batch, whatever the number of threads.
    threads : int, optional
        Worker threads; by default one for each worker of a `PythonSource`, otherwise one for each usable core, by
        affinity and control group.
    prefetch : int
        Batches prepared ahead. The ring has one more, for the batch that the caller is using.
    last_batch : "partial", "drop", "pad" or "wrap"
        What becomes of the samples of an epoch that do not fill a batch. "partial": the last batch is smaller. "drop":
        they are left out. "pad": samples from the beginning of the epoch fill the batch; `batch.real` says how many
        samples are no repetitions. "wrap": the next epoch begins in the same batch.
    rank, ranks : int, optional
        Which of how many processes this one is, 0 <= rank < ranks, if they share the epochs: each sample of an epoch is
        read by one of them. They need the same source and seed. rank="auto" finds both: from torch.distributed, a
        pycaffe with several solvers, or the environment of torchrun, MPI or SLURM.
    even : None, "pad" or "drop"
        If `ranks` does not divide the number of samples, some ranks have one sample more. "pad" gives it to all:
        samples from the beginning of the epoch occur twice. "drop" leaves out the last samples, fewer than `ranks`.
    timeout : float, optional
        Seconds to wait for a batch before `DataTimeout` is raised; None waits as long as it takes.
    on_error : "raise", "skip", "replace", or callable
        What becomes of a sample that cannot be loaded. "raise": next() raises its `SampleError` in place of the batch.
        "skip": the batch is delivered without it, and is smaller. "replace": another sample of the epoch takes its
        place. A function gets the `SampleError` and returns one of these words; it runs in the thread that takes
        batches. `errors` lists the offenders. A source that is lost as a whole always raises `SourceError`.
    error_budget : int or float, optional
        How many samples may be skipped or replaced, or, below 1, which share of them. Beyond it, next() raises
        `TooManyErrors`. None: any number.
    cache_bytes : int, optional
        Memory for decoded images, which later epochs then need not read and decode, such as 4 * 2**30. It is filled
        with images as they come, whole, and resized if they are resized to a fixed size. Nothing is evicted: if the
        images need twice as much, half of them are there in every epoch. It should leave room for everything else in
        this machine's memory, with which it is not compared. None: no cache.
    cache_folder : str or path-like, optional
        A folder, on a fast disk, for a file that holds these images instead of memory. It has no name, takes all of
        `cache_bytes` at once, and is gone with the loader.

    Raises
    ------
    OSError
        `cache_folder` is no folder that can be written, or has no room for `cache_bytes`.
    ValueError, TypeError
        A parameter is out of range or has the wrong type, or a transform does not fit the type or shape of the arrays.
        If shapes vary from sample to sample, as in a database, a crop larger than an image is an error of its batch
        instead (`SampleError`).

    Thread-safety: one thread at a time may iterate; any thread may call `close`, `stats` and `len`. A loader does not
    survive a fork: the child gets `ForkedError` and must create its own.
    """

    def __init__(
        self,
        source: Samples,
        transform: Optional[Transform] = None,
        *,
        batch_size: SupportsIndex = 1,
        shuffle: bool = False,
        shuffle_window: Optional[SupportsIndex] = None,
        weights: Optional[numpy.typing.ArrayLike] = None,
        seed: Optional[SupportsIndex] = None,
        threads: Optional[SupportsIndex] = None,
        prefetch: SupportsIndex = 3,
        last_batch: Literal["partial", "drop", "pad", "wrap"] = "partial",
        rank: Union[SupportsIndex, Literal["auto"], None] = None,
        ranks: Optional[SupportsIndex] = None,
        even: Optional[Literal["pad", "drop"]] = None,
        timeout: Optional[float] = None,
        on_error: OnError = "raise",
        error_budget: Union[int, float, None] = None,
        cache_bytes: Optional[SupportsIndex] = None,
        cache_folder: Union[str, bytes, os.PathLike[str], os.PathLike[bytes], None] = None,
        **others: NoReturn,
    ) -> None:
        if others:
            raise unknown_keyword(type(self).__name__, next(iter(others)), type(self), _ELSEWHERE)
        source = as_source(source)
        if transform is not None and not isinstance(transform, Transform):
            raise TypeError(
                f"transform must be a fastbatch.Transform or None, not {type(transform).__name__}{meant_by(transform)}"
            )
        self._batch_size = check_count("batch_size", batch_size, 2**31 - 1)
        self._prefetch = check_count("prefetch", prefetch, 2**16)
        self._threads = (
            getattr(source, "workers", None) or usable_cores()
            if threads is None
            else check_count("threads", threads, 4096)
        )
        self._seed_drawn = seed is None
        self._seed = secrets.randbits(64) if seed is None else check_seed(seed)
        shuffle = check_shuffle(shuffle)
        self._shuffle_window = check_shuffle_window(shuffle_window, shuffle)
        if weights is not None and shuffle:
            raise ValueError("weights draws samples at random already: leave out shuffle")
        self._weights = None if weights is None else Weighted(self._seed, weights)
        self._rank, self._ranks = check_ranks(rank, ranks)
        self._even = check_choice("even", even, (None, "pad", "drop"))
        if even is not None and rank is None:
            raise ValueError(f"even={even!r} has no effect without rank= and ranks=, among which samples are divided")
        if even is not None and last_batch == "wrap":
            raise ValueError(f'even={even!r} has no effect with last_batch="wrap", which gives all ranks full batches')
        if seed is None and (shuffle or weights is not None) and self._ranks > 1:
            raise ValueError(
                "several ranks that shuffle, or draw by weights, need the same seed: without seed=, each would draw "
                "its own, and some samples of an epoch would be read by several ranks, and others by none. Give all of "
                "them the same seed=, such as seed=0"
            )
        self._last_batch = check_choice("last_batch", last_batch, ("partial", "drop", "pad", "wrap"))
        self._on_error = check_on_error(on_error)
        self._error_budget = check_error_budget(error_budget, on_error)
        self._timeout = check_timeout(timeout)
        self._cache_bytes = None if cache_bytes is None else check_count("cache_bytes", cache_bytes, 2**62)
        self._cache_folder = check_cache_folder(cache_folder, self._cache_bytes)
        self._source: Optional[Source] = source
        self._transform = transform
        self._shuffle = shuffle
        self._lock = threading.RLock()  # of __iter__
        self._iterator: Optional[weakref.ref[Epoch]] = None  # a weak reference to the latest Epoch
        self._begun: Optional[int] = None  # its number
        self._restored: Optional[tuple[int, int]] = None  # where load_state_dict() went
        self._ring = BatchRing(
            source,
            batch_size=self._batch_size,
            slots=self._prefetch + 1,
            threads=self._threads,
            transform=transform,
            order=self._order(),
            on_error=self._on_error,
            error_budget=self._error_budget,
            seed=self._seed,
            cache_bytes=self._cache_bytes,
            cache_folder=self._cache_folder,
        )
        self._samples = self._ring.samples  # a database may have grown since `source` was made
        self._closer = Closer(
            self._ring
        )  # is gone with the loader; a batch that the caller holds would keep the threads

    def _order(self) -> Order:
        """Which samples this rank reads in which order."""
        return in_batches(
            order_of(self._seed, self._shuffle, self._shuffle_window, self._weights),
            self._batch_size,
            self._last_batch,
            rank=self._rank,
            ranks=self._ranks,
            even=self._even,
        )

    def __len__(self) -> int:
        """Batches in an epoch. With `last_batch="wrap"`, epochs may differ by one; this is for the one in `epoch`."""
        return self._ring.batches(self.epoch)

    def __iter__(self) -> Epoch:
        """An iterator over the batches of the next epoch.

        Discards the rest of an earlier iterator's epoch; next() of that iterator then raises RuntimeError.

        Raises RuntimeError while a loop over this loader is running: a loader has one at a time. A loop that ended with
        an exception does not count, even if somebody keeps the exception. Neither does an iterator whose latest next()
        raised, nor one left behind by a function that has returned.
        """
        self._ring.check()
        with self._lock:
            latest = self._latest()
            if latest is not None:
                latest.supersede()
            number = self._begin_epoch()
            epoch = Epoch(self, self._ring, number)
            self._iterator = weakref.ref(epoch)
            self._begun = number
            return epoch

    def _begin_epoch(self) -> int:
        """Has the ring begin the epoch of the next iterator. Returns its number."""
        if self._restored is not None and self._restored == self._position():
            epoch, batch = self._restored
            if self._begun is not None:  # an iterator of this epoch was made, and its end may have moved the ring on
                self._ring.restore(epoch, batch)
            self._begun = epoch
            return epoch
        self._restored = None
        if self._begun is not None:
            self._ring.end_epoch(self._begun)  # does nothing, unless that epoch has batches to come
        return self._ring.begin_epoch()

    def _position(self) -> tuple[int, int]:
        """Where the consumer is: an epoch, and the number of its batches that were taken."""
        return self._ring.position

    # In a derived class, a method that returns what `for` gets for a batch of the ring. Not one that returns the batch
    # itself here: it would be Python code, where a signal handler may raise and lose the batch.
    _deliver: Any = None

    def _latest(self) -> Optional[Epoch]:
        """The latest iterator, if it still exists. Raises RuntimeError while its loop is running."""
        latest = None if self._iterator is None else self._iterator()
        if latest is not None and self._is_running(latest):
            raise RuntimeError(
                "an iterator of this loader is still open: a loader has one at a time. End its loop or close() it, or "
                "make a second Loader (sources can be shared)"
            )
        return latest

    def _is_running(self, latest: Epoch) -> bool:
        """Whether the loop over the latest iterator is running."""
        return latest.running

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer is: behind the last batch that it took, whatever is prepared ahead.

        A dict of less than 100 bytes, which can be pickled and written as JSON. Taking it takes microseconds. Call it
        between two batches: in the body of the loop (the batch at hand counts as taken), after the loop, or before the
        first one. After a loop that was left early, the state is where it was left.

        Returns
        -------
        dict
            "epoch": the epoch. "batch": how many of its batches were taken. "order": what they were taken from, as
            [samples in the data set, samples in a batch of all ranks, seed, 1 if it is shuffled (or the samples in a
            window), 1 if epochs wrap], with a number made of the weights, if there are some, behind them.
        """
        epoch, batch = self._position()
        return {"epoch": epoch, "batch": batch, "order": self._order_key().as_list()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where the consumer was when `state_dict()` returned this state, in this or another process.

        The next `for` yields the rest of the epoch: none, if all of its batches were taken. The position holds until
        the first batch is taken, or the rest is over: a `for` that Ctrl-C ends before that can be run again. What
        follows has the same bytes as it would have had, for any number of threads. Takes no longer at the end of an
        epoch than at its beginning. A loader that has drawn its seed, because it was given none, takes over that of the
        state.

        The number of ranks may have changed, if `batch_size * ranks` has not. `last_batch` and `even` may have changed
        too, except to or from "wrap".

        Raises
        ------
        ValueError
            The state is of another data set size, seed or order, or is no state. The loader stays where it is.
        RuntimeError
            A loop over this loader is running.
        """
        self._ring.check()
        epoch, batch, seed = check_state(state, self._order_key(), self._ranks, self._seed_drawn)
        with self._lock:
            self._latest()
            before = self._seed, self._iterator, self._begun, self._restored
            restored = self._ring.restored
            try:
                # First, so that nothing is left to do after the ring was restored.
                self._seed, self._iterator, self._begun, self._restored = seed, None, None, (epoch, batch)
                self._ring.restore(epoch, batch, None if seed == before[0] else self._order(), seed)
            except BaseException:
                if self._ring.restored == restored:  # otherwise a signal handler raised afterwards
                    self._seed, self._iterator, self._begun, self._restored = before
                raise

    def _order_key(self) -> OrderKey:
        step = self._batch_size * self._ranks
        shuffle = self._shuffle_window or int(self._shuffle)
        weights = 0 if self._weights is None else self._weights.check
        return OrderKey(self._samples, step, self._seed, shuffle, int(self._last_batch == "wrap"), weights)

    @property
    def source(self) -> Optional[Source]:
        """The source given, or an `ArraySource` of the arrays given.

        None once the loader is closed.
        """
        return self._source

    @property
    def transform(self) -> Optional[Transform]:
        """The transform given, or None."""
        return self._transform

    @property
    def names(self) -> tuple[str, ...]:
        """The names of each batch's arrays."""
        return self._ring.names

    @property
    def batch_size(self) -> int:
        """Samples in a batch; with `last_batch="partial"`, the last batch of an epoch may have fewer."""
        return self._batch_size

    @property
    def shuffle(self) -> bool:
        """Whether each epoch has a new order."""
        return self._shuffle

    @property
    def shuffle_window(self) -> Optional[int]:
        """How many consecutive samples are read before the next ones; None: all of them are one window."""
        return self._shuffle_window

    @property
    def weights(self) -> Optional[numpy.ndarray[Any, Any]]:
        """How often each sample is drawn, in proportion, as a read-only float64 array. None: there are no weights."""
        return None if self._weights is None else self._weights.weights

    @property
    def last_batch(self) -> Literal["partial", "drop", "pad", "wrap"]:
        """What becomes of the samples of an epoch that do not fill a batch."""
        return self._last_batch

    @property
    def rank(self) -> int:
        """Which of the processes that share the epochs this one is: the rank given or found, or 0."""
        return self._rank

    @property
    def ranks(self) -> int:
        """How many processes share the epochs."""
        return self._ranks

    @property
    def even(self) -> Optional[Literal["pad", "drop"]]:
        """How all ranks get the same number of samples; None: they need not."""
        return self._even

    @property
    def threads(self) -> int:
        """Worker threads."""
        return self._threads

    @property
    def prefetch(self) -> int:
        """Batches prepared ahead."""
        return self._prefetch

    @property
    def on_error(self) -> OnError:
        """What becomes of a sample that cannot be loaded: "raise", "skip", "replace", or the function given."""
        return self._on_error

    @property
    def error_budget(self) -> Union[int, float, None]:
        """How many samples may be skipped or replaced, or which share of them; None: any number."""
        return self._error_budget

    @property
    def cache_bytes(self) -> Optional[int]:
        """The most memory that decoded images take; None: they are not kept. `stats()` says what is in use."""
        return self._cache_bytes

    @property
    def cache_folder(self) -> Optional[str]:
        """The folder of the file that holds them; None: they are in memory."""
        return None if self._cache_folder is None else os.fsdecode(self._cache_folder)

    @property
    def errors(self) -> list[SampleError]:
        """The samples that could not be loaded, in the order of delivery: the first 1000 of them.

        The `outcome` of each says what became of it. Errors of batches that are still to come are not among them.
        `stats()` counts what was skipped and replaced.
        """
        return self._ring.errors

    @property
    def timeout(self) -> Optional[float]:
        """Seconds that next() waits for a batch; None: as long as it takes."""
        return self._timeout

    @property
    def seed(self) -> int:
        """The seed in use: the one given, or the one drawn."""
        return self._seed

    @property
    def epoch(self) -> int:
        """The epoch of the latest iterator, from 0.

        Once its loop is over or it is closed, the epoch of the next iterator.
        """
        iterator = None if self._iterator is None else self._iterator()
        if self._restored is not None and self._restored == self._position():
            return self._restored[0]
        return self._ring.epoch if iterator is None or iterator.over else iterator.number

    @property
    def closed(self) -> bool:
        """Whether the loader was closed."""
        return self._ring.closed

    def stats(self, since: Optional[Stats] = None) -> Stats:
        """The loader's counters, as a `Stats`. Callable at any time, also after close().

        Parameters
        ----------
        since : Stats, optional
            An earlier one. Only what was added after it is counted: `mark = loader.stats()` before an epoch, and
            `loader.stats(since=mark)` behind it.
        """
        stats = Stats(seed=self._seed, **self._ring.stats())
        return stats if since is None else stats.since(since)

    def report(self, since: Optional[Stats] = None) -> str:
        """A sentence or two that says what limits: your loop, or which step of the loader, and what to do about it.

        Parameters
        ----------
        since : Stats, optional
            Only what happened after an earlier `stats()` counts.
        """
        return self.stats(since).report()

    def timeline(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes what the workers, the batches and your loop did lately: the last 4096 steps of each thread.

        Parameters
        ----------
        path : str or path
            Its ending says what: ".json" for chrome://tracing and ui.perfetto.dev; ".png", ".pdf" or ".svg" for a
            picture, which needs matplotlib.

        Notes
        -----
        Each worker has a row. Gray is waiting: for a free batch, while your loop limits; for its turn, if finding
        samples does. Each slot of the ring has a row, too: long stretches of "ready" mean that your loop limits. In the
        row of your loop, gray is what a faster loader would save.
        """
        write_timeline(path, self._ring.traces(), self._ring.stats()["elapsed"])

    def close(self) -> None:
        """Stops the threads and releases the source and all memory that no batch holds.

        May be called twice, from any thread. A thread that waits for a batch gets `Closed`. Batches and arrays that the
        caller holds stay valid.
        """
        self._ring.close()
        self._source = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Loader has threads of its own and cannot be pickled or copied: make another one from the same source"
        )

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"epoch {self.epoch}"
        name = f"{type(self).__name__} of {self._ring.source_name}"
        return f"<fastbatch.{name}: {counted(len(self), 'batch')} of {self._batch_size}, {state}>"


def order_of(seed: int, shuffle: bool, window: Optional[int], weights: Optional[Weighted]) -> Order:
    """The order of the epochs that these parameters of a loader ask for, before it is divided into batches."""
    if weights is not None:
        return weights.with_seed(seed)
    if window is not None:
        return Windowed(seed, window)
    return Permuted(seed) if shuffle else Linear(seed)


def as_source(source: Any) -> Source:
    """`source` itself, or a source of the arrays or the data set that it is."""
    if isinstance(source, Loader):
        raise TypeError(
            f"source must be a source, not a {type(source).__name__}, which makes batches of one: give its source "
            "(loader.source), and say anew what you told it, such as transform, batch_size and shuffle"
        )
    if hasattr(source, "__fastbatch_source__"):
        return cast(Source, source)
    if isinstance(source, dict):
        for name in source:
            if not isinstance(name, str):
                raise TypeError(
                    f"the dict of arrays has the key {name!r}: keys are the arrays' names, and must be strings"
                )
        return ArraySource(**source)
    if isinstance(source, numpy.lib.npyio.NpzFile):
        return ArraySource(**source)
    if isinstance(source, tuple) and 1 <= len(source) <= 2:
        return ArraySource(*source)
    if hasattr(source, "__array__") or isinstance(source, memoryview):
        return ArraySource(source)
    if isinstance(source, (str, bytes, os.PathLike)):
        raise TypeError(f"source must be a source, not a path: {source_of_path(os.fsdecode(source))}")
    loads = hasattr(source, "__getitem__") or hasattr(source, "__iter__") or callable(source)
    if loads and hasattr(source, "__len__") and not isinstance(source, (list, tuple, set, frozenset)):
        return PythonSource(source)
    found = type(source).__name__
    if hasattr(source, "__next__"):
        found += (
            ", which can be iterated over only once, and every epoch begins anew: give what makes it, such as the "
            "generator function, to fastbatch.PythonSource(..., count=...)"
        )
    elif loads and not hasattr(source, "__len__"):
        found += ", which does not say how many samples there are: say fastbatch.PythonSource(..., count=...) of it"
    elif isinstance(source, tuple):
        found = f"a tuple of {len(source)}: more than two arrays go into a dict, by their names"
    elif isinstance(source, list) and source and is_file_and_label(source[0]):
        found += ": for pairs of a file's path and a label say fastbatch.ImageListSource(...) of this list"
    elif isinstance(source, list):
        found += (
            ": make one array of its samples by numpy.asarray(), or say fastbatch.ArraySource(*arrays) if it holds "
            "arrays (data, label), or fastbatch.PythonSource(...) of this list if it holds samples (data, label)"
        )
    raise TypeError(
        "source must be a source such as ArraySource or LMDBSource, an array, a tuple (data, label) or a dict of "
        f"arrays, not {found}"
    )


def source_of_path(path: str) -> str:
    """How to load the samples in this file or folder."""
    end = os.path.splitext(path)[1].lower()
    if os.path.isdir(path):
        for file, kind in ("data.mdb", "LMDBSource"), ("CURRENT", "LevelDBSource"):
            if os.path.exists(os.path.join(path, file)):
                return f"for the database say fastbatch.{kind}({path!r})"
        if any(name.endswith(".npy") for name in names_in(path)):
            return (
                "for arrays, in a file each, say fastbatch.ArraySource(**{file.stem: numpy.load(file, mmap_mode='r') "
                f"for file in pathlib.Path({path!r}).glob('*.npy')}})"
            )
        if any(os.path.isdir(os.path.join(path, name)) for name in names_in(path)):
            return f"for images, with a folder for each class, say fastbatch.ImageFolderSource({path!r})"
        return (
            f"{path} is a folder without a database. For image files say fastbatch.ImageListSource of a list of pairs "
            "(path, label)"
        )
    if not os.path.exists(path):
        return (
            f"there is no {path}, either. A source of a database is fastbatch.LMDBSource(path) or "
            "fastbatch.LevelDBSource(path)"
        )
    if os.path.basename(path) == "data.mdb":
        return f"for the database say fastbatch.LMDBSource({os.path.dirname(path) or '.'!r})"
    if end == ".npy":
        return f"give the array: numpy.load({path!r}, mmap_mode='r') reads it from the file as it is needed"
    if end == ".npz":
        return f"give the arrays: dict(numpy.load({path!r}))"
    if end in (".h5", ".hdf5"):
        return f"give the arrays, such as h5py.File({path!r})['data'][:]; in Caffe there is fastbatch.caffe.HDF5Data"
    if end in (".jpg", ".jpeg", ".png"):
        return f"for image files say fastbatch.ImageListSource([({path!r}, label), ...])"
    return f"for a list of image files, a line for each, say fastbatch.ImageListSource({path!r})"


def meant_by(transform: Any) -> str:
    """What to write instead of what was given for a Transform."""
    if isinstance(transform, numbers.Integral):
        return f": the size of a batch is batch_size={transform}"
    if callable(transform):
        return (
            ": call it where your data set loads a sample, in its worker processes; or have native threads do the "
            "same, such as fastbatch.Transform.imagenet(train=True)"
        )
    return ""


def names_in(path: str) -> list[str]:
    """The names in a folder, without hidden ones."""
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError:  # it cannot be read
        return []


def is_file_and_label(item: Any) -> bool:
    """Whether `item` looks like an entry of a list of image files."""
    return isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], (str, bytes, os.PathLike))


def check_integer(name: str, value: SupportsIndex) -> int:
    """`value` as an int; rejects a bool or a float, which are not counts."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def check_flag(name: str, value: bool) -> bool:
    """`value` as a bool; rejects other types, such as "no" and [], whose truth value is seldom the intended one."""
    if not isinstance(value, (bool, numpy.bool_)):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_shuffle(value: bool) -> bool:
    """`value` as a bool; a number, as tf.data's shuffle() takes one, gets an error that says how to say it."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 1:
        raise TypeError(
            f"shuffle must be True or False, not {value!r}: to shuffle within windows of {value} consecutive samples, "
            f"say shuffle=True, shuffle_window={value}"
        )
    return check_flag("shuffle", value)


def check_shuffle_window(value: Optional[SupportsIndex], shuffle: bool) -> Optional[int]:
    """`value` as an int of at least 2, or None."""
    if value is None:
        return None
    if not shuffle:
        raise ValueError("shuffle_window has no effect without shuffle=True")
    window = check_integer("shuffle_window", value)
    if not 2 <= window < 2**63:
        raise ValueError(f"shuffle_window must be at least 2 samples, not {window}")
    return window


def check_count(name: str, value: SupportsIndex, most: int) -> int:
    """`value` as an int between 1 and `most`."""
    count = check_integer(name, value)
    if not 1 <= count <= most:
        raise ValueError(f"{name} must be between 1 and {most}, not {count}")
    return count


def check_cache_folder(
    folder: Union[str, bytes, os.PathLike[str], os.PathLike[bytes], None], cache_bytes: Optional[int]
) -> Optional[bytes]:
    """The path of `cache_folder` as bytes, or None."""
    if folder is None:
        return None
    if cache_bytes is None:
        raise ValueError("cache_folder has no effect without cache_bytes, which says how many bytes it may take there")
    try:
        path = os.fsencode(folder)
    except TypeError:
        raise TypeError(f"cache_folder must be the path of a folder, not {type(folder).__name__}") from None
    if not path or b"\0" in path:
        raise ValueError(f"cache_folder must be the path of a folder, not {folder!r}")
    return path


def check_choice(name: str, value: _Choice, choices: tuple[_Choice, ...]) -> _Choice:
    """`value` itself if it is one of the choices."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        *others, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")
    return value


def check_ranks(rank: Union[SupportsIndex, Literal["auto"], None], ranks: Optional[SupportsIndex]) -> tuple[int, int]:
    """The rank of this process, and the number of ranks."""
    if isinstance(rank, str):
        if rank != "auto":
            raise ValueError(f'rank must be an integer or "auto", not {rank!r}')
        if ranks is not None:
            raise ValueError('rank="auto" finds the number of ranks as well: leave ranks out')
        return find_rank()
    if (rank is None) != (ranks is None):
        raise ValueError('rank and ranks belong together: give both, or rank="auto" alone')
    if rank is None or ranks is None:
        return 0, 1
    number, count = check_integer("rank", rank), check_count("ranks", ranks, 2**31 - 1)
    if not 0 <= number < count:
        raise ValueError(f"rank must be between 0 and {count - 1} with ranks={count}, not {number}")
    return number, count


def check_on_error(value: OnError) -> OnError:
    """`value` itself if it is a policy."""
    if not callable(value) and not (isinstance(value, str) and value in ("raise", "skip", "replace")):
        raise ValueError(f'on_error must be "raise", "skip", "replace", or a function of an error, not {value!r}')
    return value


def check_error_budget(value: Union[int, float, None], on_error: OnError) -> Union[int, float, None]:
    """`value` itself if it is None, a number of samples, or a share below 1."""
    problem = (
        f"error_budget must be a number of samples, a share between 0 and 1, or None for any number; not {value!r}"
    )
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(problem)
    if not value >= 0 or (value >= 1 and not isinstance(value, numbers.Integral)):
        raise ValueError(problem)
    if on_error == "raise":
        raise ValueError('error_budget has no effect with on_error="raise": say "skip", "replace", or give a function')
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_timeout(value: Optional[float]) -> Optional[float]:
    """`value` itself if it is None or a number of seconds."""
    problem = f"timeout must be seconds, 0 or more, or None to wait as long as it takes; not {value!r}"
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(problem)
    if value is not None and not value >= 0:
        raise ValueError(problem)
    return value


def check_seed(value: SupportsIndex) -> int:
    """`value` as an unsigned 64-bit int."""
    seed = check_integer("seed", value)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be between 0 and 2**64 - 1, not {seed}")
    return seed
