"""What runs in a worker of a `PythonSource`."""

from __future__ import annotations

import math
import os
import pickle
import signal
import socket
import sys
from typing import Any, Callable, Optional, Union

import numpy

from fastbatch._contract import DTYPES
from fastbatch.sources import _mailbox
from fastbatch.sources._current import begin, end
from fastbatch.sources._known import Known
from fastbatch.sources._recipe import Question, Recipe, unpacked
from fastbatch.sources._samples import Layout
from fastbatch.sources._seeding import Seeder

__all__ = ["BEGUN", "connections", "probed", "serve_in_process", "serve_in_thread"]

_INT_BYTES = 4  # of a descriptor, as the kernel passes it

BEGUN = b""  # what a process sends before it loads a sample, to see what samples look like

connections = Known()  # both ends, until the workers have theirs


def _serve(recipe: Recipe, layout: Layout, connection: socket.socket, seeder: Optional[Seeder]) -> None:
    """Loads samples until the loader is closed. seeder: if the global random numbers are this worker's own.

    The loader sends the channel's file first, and the batches' files as they are needed. Each has the next number.
    """
    channel = _received_file(connection)
    load_into = recipe.loader(layout)

    def load(index: int, epoch: int, seed: int, arrays: Any) -> None:
        begin(index, epoch, seed)
        if seeder is not None:
            seeder.seed(seed)
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

    _mailbox.Mailbox(memories[0]).serve(load, arrays_of, None if seeder is None else seeder.expect)


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
    # Not by socket.recv_fds(), which ignores its flags: a program that is started right now would inherit the file.
    _, messages, _, _ = connection.recvmsg(1, socket.CMSG_LEN(_INT_BYTES), socket.MSG_CMSG_CLOEXEC)
    file = messages[0][2] if messages else b""
    if len(file) != _INT_BYTES:
        raise OSError("the memory of a batch cannot be shared: this process has too many open files (ulimit -n)")
    return int.from_bytes(file, sys.byteorder)


def serve_in_process(payload: Any, layout: Union[Layout, Question], parent: int, connection: socket.socket) -> None:
    """The main function of a worker process. layout: or a question for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the parent's handler, by which a sample would seem to fail
    # Each end tells when the other one's process ends, so no further process may hold it: none that the user's code
    # makes, and none that was forked while the parent made this one.
    connection.set_inheritable(False)
    os.register_at_fork(after_in_child=connection.close)
    for other in connections:
        if other is not connection:
            other.close()
    _mailbox.end_with(parent, connection.fileno())
    _mailbox.keep_memory()
    if not isinstance(layout, Layout):
        answer = probed(payload, layout, True, lambda: _send(connection, BEGUN))
        _send(connection, pickle.dumps(answer))
        return
    recipe = unpacked(payload)
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "set_num_threads"):
        torch.set_num_threads(1)  # as in DataLoader's workers: they themselves are what runs in parallel
    _serve(recipe, layout, connection, Seeder())


def serve_in_thread(recipe: Recipe, layout: Layout, connection: socket.socket) -> None:
    """The main function of a worker thread."""
    with connection:  # whose end is the thread's
        _serve(recipe, layout, connection, None)


def probed(payload: Any, question: Question, seeding: bool, begun: Callable[[], None] = lambda: None) -> Any:
    """What `probe` asks for: a layout; or an index, and what loading it raised, as `described` gives it.

    The index is None if no sample can be loaded here, whichever it is.

    begun() is called before each sample is loaded.
    """
    unsettled = problem = None
    try:
        recipe = unpacked(payload)
    except Exception as error:
        return None, *_mailbox.described(error, "unpickling it raised")
    try:
        seeder = Seeder() if seeding else None
        for index in question.indices:
            begun()
            begin(index, 0, 0)
            if seeder is not None:
                seeder.seed(0)
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


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(len(content).to_bytes(8, "little") + content)
