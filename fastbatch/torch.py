"""PyTorch: a `Loader` whose batches are tensors. Needs torch, which fastbatch itself does not."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Optional, SupportsIndex, Union

from fastbatch._batch import Batch
from fastbatch._epoch import Epoch, is_running
from fastbatch.errors import MissingLibraryError
from fastbatch.loader import Loader, OnError
from fastbatch.sources import Samples
from fastbatch.transforms import Transform

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ModuleNotFoundError as _error:
    if _error.name is None or _error.name.partition(".")[0] != "torch":
        raise
    raise MissingLibraryError(
        "fastbatch.torch needs PyTorch, which is not installed for this Python: pip install torch. Without it, "
        "fastbatch.Loader gives the same batches as NumPy arrays."
    ) from None

if TYPE_CHECKING:
    import numpy.typing

__all__ = ["TensorBatch", "TorchLoader"]

_IN_WORKERS = (
    "fastbatch loads with native threads, and for your own Python code with the worker processes of a PythonSource. "
    "Give DataLoader num_workers=0, its default"
)


class TensorBatch(dict[str, torch.Tensor]):
    """A dict of names to tensors, whose first axis counts the samples. `batch["data"]` is also `batch.data`.

    The tensors share the memory of the loader's ring, unless the loader copies to a device. That memory is reused only
    when the last tensor or view of it is gone.

    Attributes
    ----------
    epoch, number, real, sample_keys
        As those of `Batch`. A dict that other code has made of this one has none of them.

    Thread-safety: that of a dict.
    """

    def __init__(self, tensors: Any = (), batch: Optional[Batch] = None) -> None:
        super().__init__(tensors)
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        if name in ("epoch", "number", "real", "sample_keys") and self.__dict__.get("_batch") is not None:
            return getattr(self._batch, name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the batch has no attribute or tensor {name!r}; it has {', '.join(self)}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), "epoch", "number", "real", "sample_keys", *self]

    def __copy__(self) -> TensorBatch:
        return type(self)(self, self._batch)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and deep copies have the tensors only."""
        return type(self), (dict(self),)


class TorchLoader(Loader, IterableDataset[TensorBatch]):
    """A `Loader` that yields `TensorBatch`es: dicts of tensors.

    ::

        with TorchLoader(source, Transform(crop_size=224), batch_size=64, shuffle=True, device="cuda") as loader:
            for epoch in range(90):
                for batch in loader:
                    loss = criterion(net(batch["data"]), batch["label"])

    All that `Loader` has is here, too: `rank="auto"`, `state_dict()`, `stats()`, `close()`. As an `IterableDataset`, it
    may also be wrapped: `DataLoader(loader, batch_size=None)`.

    Parameters
    ----------
    source, transform, batch_size, ...
        As those of `Loader`, to the last one.
    device : torch.device, str or int, optional
        Where the tensors are. None and "cpu": in the memory that the loader's threads fill, without a copy. A CUDA
        device: each batch is copied into pinned memory, and from there by a stream of its own, while the caller uses
        the batch before it. Any other device: each batch is copied there while the caller waits.

    Raises
    ------
    ValueError
        torch finds no CUDA device, and `device` is one.
    TypeError
        An array has a type for which this torch has no tensors, such as uint16 before torch 2.3: when a batch is taken.

    Notes
    -----
    With a device, the loader is one batch ahead of the caller. `state_dict()` nevertheless says where the caller is,
    and the error of a batch is raised when its turn comes.

    Thread-safety: as `Loader`. It has threads, so it cannot be pickled or used after a fork, and in particular not in
    the worker processes of a `DataLoader`: give that num_workers=0.
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
        device: Union[torch.device, str, int, None] = None,
        **others: NoReturn,
    ) -> None:
        self._device = _checked(device)
        self._copies = None if self._device.type == "cpu" else _Copies(self._device)
        self._ahead: Optional[weakref.ref[_Ahead]] = None  # the latest iterator, if there is a device
        # The caller's position, if the loader is ahead of it, and how often the ring had been restored then.
        self._shown: Optional[tuple[tuple[int, int], int]] = None
        super().__init__(
            source,
            transform,
            batch_size=batch_size,
            shuffle=shuffle,
            shuffle_window=shuffle_window,
            weights=weights,
            seed=seed,
            threads=threads,
            prefetch=prefetch,
            last_batch=last_batch,
            rank=rank,
            ranks=ranks,
            even=even,
            timeout=timeout,
            on_error=on_error,
            error_budget=error_budget,
            cache_bytes=cache_bytes,
            cache_folder=cache_folder,
            **others,
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._device

    def __iter__(self) -> Iterator[TensorBatch]:  # type: ignore[override]
        """An iterator over the batches of the next epoch, with the rules of `Loader`."""
        if get_worker_info() is not None:
            raise RuntimeError(f"a TorchLoader cannot be used in a worker process of DataLoader: {_IN_WORKERS}")
        epoch = super().__iter__()
        if self._copies is None:
            return epoch  # type: ignore[return-value] # which passes each batch through _deliver()
        ahead = _Ahead(self, epoch)
        self._shown = super()._position(), self._ring.restored
        self._ahead = weakref.ref(ahead)
        return ahead

    def _deliver(self, batch: Batch) -> Any:
        if self._copies is not None:
            return batch  # to _Ahead
        return TensorBatch({name: _tensor(name, array) for name, array in batch.items()}, batch)

    def _position(self) -> tuple[int, int]:
        shown = self._shown
        return super()._position() if shown is None or shown[1] != self._ring.restored else shown[0]

    def _is_running(self, latest: Epoch) -> bool:
        ahead = None if self._ahead is None else self._ahead()
        return super()._is_running(latest) if ahead is None else ahead.running

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a TorchLoader has threads of its own and cannot be pickled or copied: {_IN_WORKERS}")


def _checked(device: Union[torch.device, str, int, None]) -> torch.device:
    """`device` as a torch.device, with its number if it is of CUDA."""
    found = torch.device("cpu" if device is None else device)
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ValueError(
            f'device is "{found}", and torch finds no CUDA device here; without device=, batches are in the memory of '
            "the CPU"
        )
    return torch.device("cuda", torch.cuda.current_device()) if found.index is None else found


def _tensor(name: str, array: Any) -> torch.Tensor:
    """A tensor that shares the array's memory, and holds it."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise TypeError(
            f'the array "{name}" has dtype {array.dtype}, for which torch {torch.__version__} has no tensors: use '
            "another dtype, a newer torch (2.3 has uint16, uint32 and uint64), or a Loader, whose arrays are NumPy's"
        ) from None


class _Copies:
    """Copies batches to a device, which need not have arrived when `begin` returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: Batch) -> tuple[TensorBatch, Any]:
        """The batch on the device, and the event of its arrival. The batch given is released."""
        arrived = None
        if self.stream is None:
            tensors = {name: _tensor(name, array).to(self.device) for name, array in batch.items()}
        else:
            with torch.cuda.stream(self.stream):
                # torch keeps each block of pinned memory until its copy is done.
                tensors = {
                    name: _tensor(name, array).pin_memory().to(self.device, non_blocking=True)
                    for name, array in batch.items()
                }
                arrived = self.stream.record_event()
        found = TensorBatch(tensors, batch)
        batch.sample_keys  # noqa: B018 (kept by the batch, and known only until it is released)
        batch.release()
        return found, arrived

    def end(self, batch: TensorBatch, arrived: Any) -> None:
        """Makes what the caller does with the batch wait for its arrival; the calling thread does not wait."""
        if arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(arrived)
            for tensor in batch.values():
                tensor.record_stream(stream)  # they are of another stream, which must not reuse them before this one


class _Ahead:
    """The iterator over an epoch on a device: the next batch is on its way while the caller uses one."""

    def __init__(self, loader: TorchLoader, epoch: Epoch) -> None:
        self._loader, self._epoch = loader, epoch
        self._restored = loader._ring.restored
        self._first: Any = None  # (TensorBatch or exception, its event, the position behind it)
        self._second: Any = None
        self._caller: Any = None  # the frame that called next() last: its id, because it must not be kept, and its code
        self._raised = False  # the latest next() did not return
        self._closed = False

    @property
    def running(self) -> bool:
        """See `Epoch.running`."""
        open_ = self._current() and (self._first is not None or self._epoch.open)
        return open_ and not self._raised and self._caller is not None and is_running(*self._caller)

    def _current(self) -> bool:
        """Whether it is open, and the latest iterator of a loader that is open and was not restored since."""
        loader = self._loader
        return (
            not self._closed
            and not loader.closed
            and loader._ahead is not None
            and loader._ahead() is self
            and loader._ring.restored == self._restored
        )

    def __iter__(self) -> _Ahead:
        return self

    def close(self) -> None:
        """See `Epoch.close`."""
        self._closed = True
        self._first = self._second = None
        self._epoch.close()

    def __next__(self) -> TensorBatch:
        loader, frame = self._loader, sys._getframe(1)
        self._caller, self._raised = (id(frame), frame.f_code), True
        del frame
        if not self._current():
            self._first = self._second = None
            return next(self._epoch)  # type: ignore[return-value] # raises an error that says why there is none
        # An interrupt anywhere leaves both where they are, for the next call.
        if self._first is None:
            self._first = self._pull()
        if self._second is None and self._epoch.open:
            ahead = self._pull()
            if not isinstance(ahead[0], Exception) or ahead[2] != self._first[2]:
                self._second = ahead  # else the error took no batch, as a timeout does: ask again in its turn
        (found, arrived, position), self._first, self._second = self._first, self._second, None
        loader._shown = None if position is None else (position, self._restored)
        if isinstance(found, Exception):
            try:
                raise found
            finally:
                del found  # the exception has this frame, which has the loader
        loader._copies.end(found, arrived)  # type: ignore[union-attr]
        self._raised = False
        return found  # type: ignore[no-any-return]

    def _pull(self) -> Any:
        try:
            found = self._loader._copies.begin(next(self._epoch))  # type: ignore[union-attr, arg-type]
        except Exception as error:
            position = None if isinstance(error, StopIteration) else self._loader._ring.position
            return error.with_traceback(None), None, position  # this frame would hold the loader for as long
        return (*found, self._loader._ring.position)
