"""The workers of a `PythonSource`: starting, replacing and ending them, and what runs in one."""

from __future__ import annotations

import math
import multiprocessing.process
import os
import pickle
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, Callable, Optional, Union

import numpy

from fastbatch._contract import DTYPES
from fastbatch.errors import SampleError, SourceError
from fastbatch.sources import _channels, _mailbox
from fastbatch.sources._current import begin, end
from fastbatch.sources._iteration import InOrder
from fastbatch.sources._samples import Layout, layout_of

__all__ = ["Recipe", "Team", "WorkerTraceback", "probe", "said_of"]

_PATIENCE = 5.0  # seconds that a worker may take to leave
_PAUSES = (0.01, 0.1, 0.5)  # seconds before a worker is started again, while there is no forkserver
_BEGUN = b""  # what a process sends before it loads a sample, to see what samples look like


class WorkerTraceback(Exception):
    """The traceback of an exception that a worker raised, as text: the `__cause__` of that exception."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class Recipe:
    """How samples are loaded: what a worker process gets.

    Parameters
    ----------
    load : callable
        load(index) returns a sample; with `fills`, load(index, out) fills the arrays of `out`.
    names : sequence of str or None
        See `layout_of`.
    fills : bool
    in_order : bool
        Whether one sample must be loaded after the other.
    padded : dict of str to int
    varying : bool or list of str
        See `layout_of`.
    """

    def __init__(
        self,
        load: Callable[..., Any],
        names: Optional[list[str]],
        fills: bool,
        in_order: bool = False,
        padded: Optional[dict[str, int]] = None,
        varying: Union[bool, Sequence[str]] = (),
    ):
        self.load = load
        self.names = names
        self.fills = fills
        self.in_order = in_order
        self.padded = padded or {}
        self.varying = varying

    def own(self) -> Recipe:
        """The same recipe, with an iteration of its own: that of an iterable belongs to one loader."""
        load = InOrder(self.load.iterable) if isinstance(self.load, InOrder) else self.load
        return Recipe(load, self.names, self.fills, self.in_order, self.padded, self.varying)

    def layout_of(self, index: int) -> Layout:
        """The layout of a sample."""
        layout = layout_of(self.load(index), self.names, self.padded, self.varying)
        layout.index = index
        return layout

    def loader(self, layout: Layout) -> Callable[[int, Any], None]:
        """A function of an index and a list of arrays, which loads that sample into them.

        If shapes vary, a function of an index and of a function of the shapes, which gives the arrays.
        """
        load, names = self.load, layout.names
        put: Callable[[Any, Any], None] = layout.put_varying if layout.varying else layout.put
        if self.fills:
            return lambda index, arrays: load(index, dict(zip(names, arrays)))
        return lambda index, arrays: put(load(index), arrays)


class Question:
    """Which samples are loaded to see what samples look like.

    Parameters
    ----------
    indices : list of int
        The first one says it, unless it has nothing in a value that is padded.
    tolerant : bool
        Whether those that cannot be loaded are passed over.
    """

    def __init__(self, indices: list[int], tolerant: bool):
        self.indices = indices
        self.tolerant = tolerant


class Known:
    """The objects of a kind that exist. They are not kept alive.

    By weak references without callbacks, unlike a WeakSet. A callback would be a Python function, in which a signal
    handler may raise, and such an exception is lost.
    """

    def __init__(self) -> None:
        self.references: dict[int, weakref.ref[Any]] = {}

    def add(self, *objects: Any) -> None:
        """Note objects, and forget those that are gone."""
        for number, reference in list(self.references.items()):
            if reference() is None and self.references.get(number) is reference:
                self.references.pop(number, None)
        for each in objects:
            self.references[id(each)] = weakref.ref(each)

    def __iter__(self) -> Iterator[Any]:
        found = [reference() for reference in list(self.references.values())]
        return iter([each for each in found if each is not None])


_connections = Known()  # both ends, until the workers have theirs


# ---- In a worker -----------------------------------------------------------------------------------------------------


def _serve(recipe: Recipe, layout: Layout, connection: socket.socket, seeding: bool) -> None:
    """Loads samples until the loader is closed. seeding: whether the global random numbers are this worker's own.

    The loader sends the channel's file first, and the batches' files as they are needed. Each has the next number.
    """
    channel = _received_file(connection)
    load_into = recipe.loader(layout)

    def load(index: int, epoch: int, seed: int, arrays: Any) -> None:
        begin(index, epoch, seed, seeding)
        load_into(index, arrays)

    if layout.varying:
        with Room(channel, layout) as room:
            room.mailbox.serve(load, lambda *_: room.arrays_of)
        return
    memories: list[Any] = [_mailbox.Memory(channel)]  # type checkers do not know that they are buffers

    def arrays_of(file: int, offsets: list[int], dtypes: list[int]) -> list[Any]:
        while len(memories) <= file:
            memories.append(_mailbox.Memory(_received_file(connection)))
        return [
            numpy.ndarray(shape, DTYPES[dtype], memories[file], offset)
            for (_, _, shape), offset, dtype in zip(layout.fields, offsets, dtypes)
        ]

    _mailbox.Mailbox(memories[0]).serve(load, arrays_of)


class Room:
    """The room for a sample in the channel's file, behind the mailbox, where shapes vary. It grows with the samples.

    Parameters
    ----------
    file : int
        The descriptor. It belongs to this object, and is closed with it.
    layout : Layout
    """

    def __init__(self, file: int, layout: Layout):
        self.file = file
        self.layout = layout
        self.memory: Any = _mailbox.Memory(os.dup(file))
        self.mailbox = _mailbox.Mailbox(self.memory)

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self.file)

    def arrays_of(self, shapes: list[tuple[int, ...]]) -> list[Any]:
        """The arrays of the next sample, whose shapes the loader is told."""
        places, end = [], _mailbox.ROOM
        for number, ((_, dtype, _), shape) in enumerate(zip(self.layout.fields, shapes)):
            self.mailbox.say_shape(number, shape)
            places.append((shape, dtype, end))
            size = dtype.itemsize * math.prod(shape)
            end += -(-size // _mailbox.ALIGNMENT) * _mailbox.ALIGNMENT
        if end > self.memory.size:
            os.ftruncate(self.file, max(end, self.memory.size * 3 // 2))  # what grows once will grow again
            self.memory = _mailbox.Memory(os.dup(self.file))
        return [numpy.ndarray(shape, dtype, self.memory, offset) for shape, dtype, offset in places]


def _received_file(connection: socket.socket) -> int:
    _, files, _, _ = socket.recv_fds(connection, 1, 1)
    if not files:
        raise OSError("the memory of a batch cannot be shared: this process has too many open files (ulimit -n)")
    return files[0]


def _process(payload: Any, layout: Union[Layout, Question], parent: int, connection: socket.socket) -> None:
    """The main function of a worker process. layout: or a question for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler, by which a sample would seem to fail
    # Each end tells when the other one's process ends, so no further process may hold it: none that the user's code
    # makes, and none that was forked while the parent made this one.
    connection.set_inheritable(False)
    os.register_at_fork(after_in_child=connection.close)
    for other in _connections:
        if other is not connection:
            other.close()
    _mailbox.end_with(parent, connection.fileno())
    _mailbox.keep_memory()
    if not isinstance(layout, Layout):
        probed = _probed(payload, layout, True, lambda: _send(connection, _BEGUN))
        _send(connection, pickle.dumps(probed))
        return
    recipe = _unpickled(payload)
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)  # as in DataLoader's workers: they themselves are what runs in parallel
    _serve(recipe, layout, connection, True)


def _thread(recipe: Recipe, layout: Layout, connection: socket.socket) -> None:
    """The main function of a worker thread."""
    with connection:  # whose end is the thread's
        _serve(recipe, layout, connection, False)


def _probed(payload: Any, question: Question, seeding: bool, begun: Callable[[], None] = lambda: None) -> Any:
    """What `probe` asks for: a layout; or an index, and what loading it raised, as `described` gives it.

    begun() is called before each sample is loaded.
    """
    unsettled = problem = None
    try:
        recipe = _unpickled(payload)
        for index in question.indices:
            begun()
            begin(index, 0, 0, seeding)
            try:
                layout = recipe.layout_of(index)
            except Exception as error:
                problem = problem or (index, *_mailbox.described(error))
                if not question.tolerant:
                    break
            else:
                if layout.settled:
                    return layout
                unsettled = unsettled or layout
        return unsettled or problem
    except Exception as error:
        return question.indices[0], *_mailbox.described(error)
    finally:
        end()  # a thread's probe is run by the caller


def _unpickled(payload: Any) -> Recipe:
    return payload if isinstance(payload, Recipe) else pickle.loads(payload)


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(len(content).to_bytes(8, "little") + content)


# ---- In the loader's process -----------------------------------------------------------------------------------------


def pickled(recipe: Recipe) -> bytes:
    """The recipe for a worker process. Raises TypeError, with a way out, if it cannot be pickled."""
    try:
        return bytes(ForkingPickler.dumps(recipe))
    except Exception as error:
        raise TypeError(
            f"{said_of(recipe.load)} cannot be sent to worker processes: {error}. Define it, and what it refers to, at "
            'the top level of a module; or use start_method="fork", or kind="thread"'
        ) from error


def said_of(load: Any) -> str:
    """A function's or a data set's name, for messages."""
    if isinstance(load, InOrder):
        load = load.iterable
        return getattr(load, "__qualname__", type(load).__name__)
    owner = getattr(load, "__self__", None)
    return type(owner).__name__ if owner is not None else getattr(load, "__qualname__", repr(load))


def probe(recipe: Recipe, question: Question, kind: str, context: Any, timeout: Optional[float]) -> Layout:
    """The layout of a sample, loaded by a worker of that kind: this process does not run the user's code.

    Raises SourceError for the first sample if none says it.
    """
    first_error: Optional[SourceError] = None
    left = question
    while left.indices:
        answer, begun = (
            (_probed(recipe.own(), left, False), 0) if kind == "thread" else _ask(recipe, left, context, timeout)
        )
        if isinstance(answer, Layout):
            return answer
        if not isinstance(answer, SourceError):
            index, text, cause = answer
            said = text.decode("utf-8", "replace")  # it may end in the middle of a character
            answer = caused(SourceError(f"sample {index} of {said_of(recipe.load)} cannot be loaded: {said}"), cause)
            begun = len(left.indices)
        first_error = first_error or answer
        if not question.tolerant or begun == 0:
            break
        left = Question(left.indices[begun:], True)  # without those that ended a process, or took too long
    assert first_error is not None
    raise first_error


def _ask(recipe: Recipe, question: Question, context: Any, timeout: Optional[float]) -> tuple[Any, int]:
    """What a worker process answers, or the SourceError if it does not, and how many samples it began to load."""
    payload = _payload(recipe, context)
    ours, theirs = socket.socketpair()
    _connections.add(ours, theirs)
    process = _process_of(context, "probe", (payload, question, os.getpid(), theirs))
    begun = 0
    with ours, theirs:
        try:
            _launch(process)
            theirs.close()
            content = _message(ours)
            while content == _BEGUN:
                begun += 1
                ours.settimeout(timeout)
                content = _message(ours)
            if content is None:
                process.join(_PATIENCE)  # for its own exit code
        except socket.timeout:  # another class than TimeoutError before Python 3.10
            return SourceError(
                f"sample {question.indices[begun - 1]} of {said_of(recipe.load)} was not loaded within {timeout:.3g} "
                "s, so nobody knows what samples look like; its worker process was ended. If it needs longer, give a "
                "longer timeout="
            ), begun
        finally:
            exitcode = None
            if process.pid is not None:
                process.kill()
                process.join(_PATIENCE)
                exitcode = process.exitcode
                if exitcode is not None:
                    process.close()  # not by a callback when it is collected, in which an interrupt would be lost
        if content is None:
            return SourceError(
                f"the worker process of {said_of(recipe.load)} ended with exit code {exitcode} before it had "
                f"loaded sample {question.indices[max(begun, 1) - 1]}; see above for what it printed. A program that "
                'starts processes needs the line `if __name__ == "__main__":` before what it does'
            ), begun
    return pickle.loads(content), begun


def caused(error: Exception, cause: Optional[bytes]) -> Exception:
    """The error with a worker's pickled exception as its `__cause__`."""
    if cause is not None:
        try:
            exception, lines = pickle.loads(cause)
        except Exception:  # its class cannot be imported here
            return error
        exception.__cause__ = WorkerTraceback(lines)
        error.__cause__ = exception
    return error


def _payload(recipe: Recipe, context: Any) -> Any:
    return recipe if context.get_start_method() == "fork" else pickled(recipe)


def _launch(process: Any) -> None:
    """Start a worker process.

    multiprocessing's forkserver, of which a process has one, ends if an exception comes between connecting to it and
    telling it what to start, as that of Ctrl-C may. Other threads' requests then fail, until it was started again.
    """
    for pause in _PAUSES:
        try:
            process.start()
        except (ConnectionError, EOFError):
            time.sleep(pause)
        else:
            return
    process.start()


def _process_of(context: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    return context.Process(target=_process, args=arguments, name=f"fastbatch-{name}", daemon=True)


def _message(connection: socket.socket) -> Optional[bytes]:
    """What the process at the other end sent; None if it ended before. Raises socket.timeout."""
    size = _exactly(8, connection)
    return None if size is None else _exactly(int.from_bytes(size, "little"), connection)


def _exactly(size: int, connection: socket.socket) -> Optional[bytes]:
    """So many bytes; None if the process at the other end ended before."""
    content = b""
    while len(content) < size:
        try:
            more = connection.recv(min(size - len(content), 1 << 16))
        except ConnectionError:
            return None
        if not more:
            return None
        content += more
    return content


_teams = Known()


def _disown() -> None:
    """In a forked child, makes multiprocessing forget the parent's workers: it would end them when the child exits.

    The workers end with the parent, so the child keeps no connection to them.
    """
    for team in _teams:
        for number, worker in enumerate(team.workers):
            multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]
            team.channels.shut(number)


os.register_at_fork(after_in_child=_disown)


class Team:
    """The workers of one loader.

    Parameters
    ----------
    name, count : str, int
        Of the source.
    recipe, layout : Recipe, Layout
    workers : int
    kind : "process" or "thread"
    context
        Of multiprocessing, for processes.
    timeout : float or None
        Seconds that a process may take for a sample.
    """

    def __init__(
        self,
        name: str,
        count: int,
        recipe: Recipe,
        layout: Layout,
        workers: int,
        kind: str,
        context: Any,
        timeout: Optional[float],
    ):
        self.recipe, self.layout, self.kind, self.context = recipe.own(), layout, kind, context
        self.channels = _channels.Channels(name, count, layout.fields, workers, timeout, layout.varying)
        self.workers: list[Any] = [None] * workers
        self.leaving: list[Any] = []  # processes that were killed, and that the kernel has not let go of
        self.closed = False
        self.payload = _payload(recipe, context) if kind == "process" else None
        _teams.add(self)
        try:
            for number in range(workers):
                self._start(number)
        except BaseException:
            self.close()
            raise

    def capsule(self) -> Any:
        """A PyCapsule of the fb_source through which the workers are asked."""
        return self.channels.capsule()

    @property
    def processes(self) -> list[int]:
        """The ids of the worker processes."""
        return [worker.pid for worker in self.workers if worker is not None] if self.kind == "process" else []

    def _start(self, number: int) -> None:
        # Whatever is made is noted before it is used: a signal handler may raise anywhere, and may close the loader.
        channel = _channels.new_file(self.channels.size, bool(self.layout.varying))
        try:
            ours, theirs = socket.socketpair()
            with ours:
                _connections.add(ours, theirs)
                socket.send_fds(ours, [b"c"], [channel])
                worker: Any
                if self.kind == "thread":
                    arguments = (self.recipe, self.layout, theirs)
                    worker = threading.Thread(target=_thread, args=arguments, name=f"fastbatch-{number}", daemon=True)
                    self.workers[number] = worker
                    try:
                        self.channels.open(number, channel, ours.fileno(), 0)
                        worker.start()
                    except BaseException:
                        if worker.ident is None:  # nobody answers: tend() starts another one
                            theirs.close()
                        raise
                else:
                    with theirs:
                        process = (self.payload, self.layout, os.getpid(), theirs)
                        self.workers[number] = worker = _process_of(self.context, str(number), process)
                        _launch(worker)
                    self.channels.open(number, channel, ours.fileno(), worker.pid)
        finally:
            os.close(channel)
        if self.closed:
            self.close()

    def tend(self) -> None:
        """Replaces the workers that ended. Called now and then by the thread that waits for a batch."""
        self._forget_ended()
        for number in self.channels.lost:
            if not self.closed:
                self._reap(number, 0)
                self._start(number)

    def add_cause(self, error: SampleError, cause: bytes) -> None:
        """Gives the error of a sample the worker's exception, from `channels`, as its cause."""
        caused(error, cause)

    def close(self) -> None:
        """Ends the workers. May be called twice."""
        self.closed = True
        if not self.channels.end(_PATIENCE) and self.kind == "thread":
            warnings.warn(
                f"a thread of {said_of(self.recipe.load)} is still loading a sample, and is left behind",
                RuntimeWarning,
                stacklevel=2,
            )
        end = time.monotonic() + _PATIENCE
        for number in range(len(self.workers)):
            self._reap(number, 0)
        for worker in self.leaving:
            worker.join(max(0.0, end - time.monotonic()))
        self._forget_ended()

    def _forget_ended(self) -> None:
        """Drop the processes that have left at last, and with them the descriptors that multiprocessing has of them."""
        ended = [worker for worker in self.leaving if worker.exitcode is not None]
        self.leaving = [worker for worker in self.leaving if worker not in ended]
        for worker in ended:
            worker.close()

    def _reap(self, number: int, patience: float) -> None:
        """Gives up a worker that has ended, or is left behind."""
        worker = self.workers[number]
        ended = False
        if worker is not None and self.kind == "process" and worker.pid is not None:
            worker.kill()
            worker.join(patience)
            ended = worker.exitcode is not None
            if not ended:
                self.leaving.append(worker)
        self.workers[number] = None
        self.channels.shut(number)
        if ended:
            worker.close()  # not by a callback when it is collected, in which an interrupt would be lost
