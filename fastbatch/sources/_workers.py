"""The workers of a `PythonSource`: starting, replacing and ending them, and what runs in one."""

from __future__ import annotations

import mmap
import multiprocessing.process
import os
import pickle
import signal
import socket
import threading
import time
import warnings
import weakref
from multiprocessing.reduction import ForkingPickler
from typing import Any, Callable, Optional

import numpy

from fastbatch._contract import DTYPES
from fastbatch.errors import SampleError, SourceError
from fastbatch.sources import _python
from fastbatch.sources._samples import Layout, layout_of

__all__ = ["Team", "WorkerTraceback", "probe"]

_PATIENCE = 5.0  # seconds that a worker may take to leave


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
    """

    def __init__(self, load: Callable[..., Any], names: Optional[list[str]], fills: bool):
        self.load = load
        self.names = names
        self.fills = fills

    def loader(self, layout: Layout) -> Callable[[int, list[Any]], None]:
        """A function of an index and a list of arrays, which loads that sample into them."""
        load, put, names = self.load, layout.put, layout.names
        if self.fills:
            return lambda index, arrays: load(index, dict(zip(names, arrays)))
        return lambda index, arrays: put(load(index), arrays)


# ---- In a worker -----------------------------------------------------------------------------------------------------


def _serve(recipe: Recipe, layout: Layout, channel: int, receive: Callable[[int], int]) -> None:
    """Loads samples until the loader is closed. receive(number) returns the descriptor of a file by its number."""
    mailbox = _python.Mailbox(channel)
    memories: dict[int, Any] = {}

    def memory(file: int) -> Any:
        found = memories.get(file)
        if found is None:
            descriptor = channel if file == 0 else receive(file)
            found = memories[file] = mmap.mmap(descriptor, 0)
        return found

    def arrays_of(file: int, offsets: list[int], dtypes: list[int]) -> list[Any]:
        whole = memory(file)
        return [
            numpy.ndarray(shape, DTYPES[dtype], whole, offset)
            for (_, _, shape), offset, dtype in zip(layout.fields, offsets, dtypes)
        ]

    mailbox.serve(recipe.loader(layout), arrays_of)


def _process(payload: Any, layout: Optional[Layout], parent: int, connection: socket.socket) -> None:
    """The main function of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    _python.end_with(parent)
    if layout is None:
        _send(connection, _probed(payload))
        return
    recipe = _unpickled(payload)
    files: list[int] = []

    def receive(number: int) -> int:
        while len(files) < number:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            files.extend(descriptors)
        return files[number - 1]

    _, [channel], _, _ = socket.recv_fds(connection, 1, 1)
    _serve(recipe, layout, channel, receive)


def _probed(payload: Any) -> Any:
    """The layout of sample 0, or the exception that loading it raised, as `described` gives it."""
    try:
        recipe = _unpickled(payload)
        return layout_of(recipe.load(0), recipe.names)
    except Exception as error:
        return _python.described(error)


def _unpickled(payload: Any) -> Recipe:
    return payload if isinstance(payload, Recipe) else pickle.loads(payload)


def _send(connection: socket.socket, answer: Any) -> None:
    content = pickle.dumps(answer)
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
    owner = getattr(load, "__self__", None)
    return type(owner).__name__ if owner is not None else getattr(load, "__qualname__", repr(load))


def probe(recipe: Recipe, kind: str, context: Any) -> Layout:
    """The layout of sample 0, loaded by a worker of that kind: this process does not run the user's code."""
    if kind == "thread":
        answer = _probed(recipe)
    else:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = _process_of(context, "probe", (_payload(recipe, context), None, os.getpid(), theirs))
                process.start()
            content = _received(ours)
            process.join(_PATIENCE)
            if content is None:
                raise SourceError(
                    f"the worker process of {said_of(recipe.load)} ended with exit code {process.exitcode} before it "
                    "had loaded sample 0; see above for what it printed. A program that starts processes needs the "
                    'line `if __name__ == "__main__":` before what it does'
                )
            answer = pickle.loads(content)
    if isinstance(answer, Layout):
        return answer
    text, cause = answer
    raise caused(SourceError(f"sample 0 of {said_of(recipe.load)} cannot be loaded: {text.decode()}"), cause)


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


def _process_of(context: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    return context.Process(target=_process, args=arguments, name=f"fastbatch-{name}", daemon=True)


def _received(connection: socket.socket) -> Optional[bytes]:
    """What the process at the other end sent; None if it ended before."""
    content = b""
    while len(content) < 8 or len(content) < 8 + int.from_bytes(content[:8], "little"):
        try:
            more = connection.recv(1 << 16)
        except ConnectionError:
            return None
        if not more:
            return None
        content += more
    return content[8:]


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


def _disown() -> None:
    """In a forked child, makes multiprocessing forget the parent's workers: it would end them when the child exits."""
    for team in _teams:
        for worker in team.workers:
            multiprocessing.process._children.discard(worker)  # type: ignore[attr-defined]


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
        self.recipe, self.layout, self.kind, self.context = recipe, layout, kind, context
        self.channels = _python.Channels(name, count, layout.fields, workers, timeout)
        self.workers: list[Any] = [None] * workers
        self.sockets: list[Optional[socket.socket]] = [None] * workers
        self.owner = os.getpid()
        self.payload = _payload(recipe, context) if kind == "process" else None
        _teams.add(self)
        try:
            for number in range(workers):
                self._start(number)
        except BaseException:
            self.close()
            raise

    def capsule(self) -> Any:
        """A PyCapsule of the fb_source. The workers end when it is deleted."""
        return self.channels.capsule(self)

    @property
    def processes(self) -> list[int]:
        """The ids of the worker processes."""
        return [worker.pid for worker in self.workers if worker is not None] if self.kind == "process" else []

    def _start(self, number: int) -> None:
        # Whatever is made is noted before it is used: a signal handler may raise anywhere.
        channel = _python.new_file(self.channels.size)
        try:
            if self.kind == "thread":
                own = os.dup(channel)
                worker = threading.Thread(target=self._thread, args=(own,), name=f"fastbatch-{number}", daemon=True)
                self.workers[number] = worker
                worker.start()
                self.channels.open(number, channel, -1, 0)
            else:
                ours, theirs = socket.socketpair()
                self.sockets[number] = ours
                with theirs:
                    socket.send_fds(ours, [b"c"], [channel])
                    arguments = (self.payload, self.layout, self.owner, theirs)
                    self.workers[number] = process = _process_of(self.context, str(number), arguments)
                    process.start()
                self.channels.open(number, channel, ours.fileno(), process.pid)
        finally:
            os.close(channel)

    def _thread(self, channel: int) -> None:
        try:
            _serve(self.recipe, self.layout, channel, lambda number: number - 1)
        finally:
            os.close(channel)

    def tend(self) -> None:
        """Replaces the workers that ended. Called now and then by the thread that waits for a batch."""
        for number in self.channels.lost:
            self._end(number)
            self._start(number)

    def add_cause(self, error: SampleError) -> None:
        """Gives the error of a sample the worker's exception as its cause."""
        caused(error, self.channels.cause(error.index))

    def close(self) -> None:
        """Ends the workers. May be called twice."""
        if os.getpid() != self.owner:
            return
        self.channels.quit()
        deadline = time.monotonic() + _PATIENCE
        for worker in self.workers:
            if worker is not None and worker.ident is not None:  # it was started
                worker.join(max(0.0, deadline - time.monotonic()))
        for number in range(len(self.workers)):
            self._end(number)

    def _end(self, number: int) -> None:
        worker, self.workers[number] = self.workers[number], None
        connection, self.sockets[number] = self.sockets[number], None
        if worker is not None and self.kind == "process":
            if worker.pid is not None:  # it was started
                worker.kill()
                worker.join()
            worker.close()
        elif worker is not None and worker.is_alive():
            warnings.warn(
                f"a thread of {said_of(self.recipe.load)} is still loading a sample, and is left behind",
                RuntimeWarning,
                stacklevel=2,
            )
        if connection is not None:
            connection.close()
