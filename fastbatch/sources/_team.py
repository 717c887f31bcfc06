"""The workers of a loader over a `PythonSource`: they are replaced when they end, and end with the loader."""

from __future__ import annotations

import multiprocessing.process
import os
import socket
import sys
import threading
import time
import warnings
from typing import Any, Optional

from fastbatch.errors import SampleError, SourceError
from fastbatch.sources import _channels
from fastbatch.sources._exceptions import caused
from fastbatch.sources._known import Known
from fastbatch.sources._recipe import Recipe, payload_of, said_of
from fastbatch.sources._samples import Layout
from fastbatch.sources._serving import connections, serve_in_thread
from fastbatch.sources._starting import PATIENCE, end_process, launch, process_of, said_of_end

__all__ = ["Team", "teams"]

_STARTS = 3  # that may fail, one after the other
_ID_BYTES = 4  # of a process's id, in place of a pickled exception
_KNOWN_ENDS = 1000  # of processes whose samples' errors may still come

teams = Known()


def _disown() -> None:
    """In a forked child, makes multiprocessing forget the parent's workers: it would end them when the child exits.

    The workers end with the parent, so the child keeps no connection to them.
    """
    for team in teams:
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
        self.started = [False] * workers  # of each, whether its start was not interrupted
        self.leaving: list[Any] = []  # processes that were killed, and that the kernel has not let go of
        self.codes: dict[int, int] = {}  # the exit codes of the latest processes that have ended
        self.closed = False
        self.in_vain = [0] * workers  # of each, how many ended before they began, one after the other
        self.payload = payload_of(recipe, context) if kind == "process" else None
        teams.add(self)
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
        self.started[number] = False
        with _channels.MemoryFile(self.channels.size, bool(self.layout.varying)) as channel:
            ours, theirs = socket.socketpair()
            with ours:
                connections.add(ours, theirs)
                socket.send_fds(ours, [b"c"], [channel.fileno()])
                worker: Any
                if self.kind == "thread":
                    arguments = (self.recipe, self.layout, theirs)
                    worker = threading.Thread(
                        target=serve_in_thread, args=arguments, name=f"fastbatch-{number}", daemon=True
                    )
                    self.workers[number] = worker
                    try:
                        self.channels.open(number, channel.fileno(), ours.fileno(), 0)
                        worker.start()
                    except BaseException:
                        if worker.ident is None:  # nobody answers: tend() starts another one
                            theirs.close()
                        raise
                else:
                    process = (self.payload, self.layout, os.getpid(), theirs)
                    self.workers[number] = worker = process_of(self.context, str(number), process)
                    launch(worker, theirs, self.context.get_start_method())
                    self.channels.open(number, channel.fileno(), ours.fileno(), worker.pid)
        self.started[number] = True
        if self.closed:  # by a signal handler, before there was a process to be ended
            self.workers[number] = worker
            self.close()

    def tend(self) -> None:
        """Replaces the workers that ended. Called now and then by the thread that waits for a batch."""
        self._forget_ended()
        for number in self.channels.lost:
            if not self.closed:
                self._check_begun(number)
                self._reap(number)
                self._start(number)

    def _check_begun(self, number: int) -> None:
        """Raises SourceError if one worker after the other ends before it begins: nobody knows of which sample."""
        worker, begun = self.workers[number], self.channels.has_begun(number)
        if begun:
            self.in_vain[number] = 0
        if begun or worker is None or not self.started[number]:
            return
        self.started[number] = False  # it counts once
        self.in_vain[number] += 1
        if self.in_vain[number] < _STARTS:
            return
        self.in_vain[number] = 0
        what = "thread"
        if self.kind == "process":
            worker.join(PATIENCE)
            what = f"process, which {said_of_end(worker.exitcode)}"
        raise SourceError(
            f"{_STARTS} workers of {said_of(self.recipe.load)} ended before they could load a sample. The last one was "
            f"a {what}. See above for what they printed. If you take another batch, more are started"
        )

    def add_cause(self, error: SampleError, cause: bytes) -> bool:
        """Gives the error of a sample the worker's exception, from `channels`, as its cause.

        If the worker ended instead, the error's reason says how. Returns whether this was a worker of this team.
        """
        if len(cause) > _ID_BYTES:  # as a pickled exception is
            caused(error, cause)
            return True
        process = int.from_bytes(cause, sys.byteorder)
        code = self._exit_code(process)
        if code is None:
            return False
        said = _channels.said_of_ended
        error.reason = error.reason.replace(said(process), said(process, said_of_end(code)))
        error.args = (*error.args[:4], error.reason, *error.args[5:])
        return True

    def _exit_code(self, process: int) -> Optional[int]:
        """The exit code of the process of this id. None: it is none of this team's, or the kernel does not say."""
        for worker in [] if self.kind == "thread" else [*self.workers, *self.leaving]:
            if worker is not None and worker.pid == process:
                worker.join(PATIENCE)
                return worker.exitcode
        return self.codes.get(process)

    def close(self) -> None:
        """Ends the workers. May be called twice."""
        self.closed = True
        if not self.channels.end(PATIENCE) and self.kind == "thread":
            warnings.warn(
                f"a thread of {said_of(self.recipe.load)} is still loading a sample, and is left behind",
                RuntimeWarning,
                stacklevel=2,
            )
        end = time.monotonic() + PATIENCE
        for number in range(len(self.workers)):
            self._reap(number)
        self._forget_ended(end)

    def _forget_ended(self, end: float = 0) -> None:
        """Drop the processes that have left at last, or leave until then."""
        self.leaving = [
            each for each in self.leaving if not end_process(each, max(0, end - time.monotonic()), self.codes)
        ]
        while len(self.codes) > _KNOWN_ENDS:
            del self.codes[next(iter(self.codes))]

    def _reap(self, number: int) -> None:
        """Gives up a worker that has ended, or is left behind."""
        worker = self.workers[number]
        if worker is not None and self.kind == "process":
            self.leaving.append(worker)
        self.workers[number] = None
        self._forget_ended()
        self.channels.shut(number)
