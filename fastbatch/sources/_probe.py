"""What samples look like: a worker loads one, and says so."""

from __future__ import annotations

import os
import pickle
import socket
from typing import Any, Optional

from fastbatch.errors import SourceError
from fastbatch.sources._exceptions import caused
from fastbatch.sources._recipe import Question, Recipe, payload_of, said_of
from fastbatch.sources._samples import Layout
from fastbatch.sources._serving import BEGUN, connections, probed
from fastbatch.sources._starting import (
    PATIENCE,
    WITHOUT_IMPORTS,
    end_process,
    launch,
    process_of,
    said_of_end,
    way_out_of_main,
)

__all__ = ["probe"]


def probe(recipe: Recipe, question: Question, kind: str, context: Any, timeout: Optional[float]) -> Layout:
    """The layout of a sample, loaded by a worker of that kind: this process does not run the user's code.

    Raises SourceError for the first sample if none says it.
    """
    first_error: Optional[SourceError] = None
    left = question
    while left.indices:
        answer, begun = (
            (probed(recipe.own(), left, False), 0) if kind == "thread" else _ask(recipe, left, context, timeout)
        )
        if isinstance(answer, Layout):
            return answer
        if not isinstance(answer, SourceError):
            index, text, cause = answer
            name, said = said_of(recipe.load), text.decode("utf-8", "replace")  # may end in the middle of a character
            if index is not None:
                said = f"sample {index} of {name} cannot be loaded: {said}"
            else:
                said = (
                    f"{name} cannot be loaded in a worker process: {said}. Define it, and what it refers to, in a "
                    f"module that can be imported, and not in an interactive session; {WITHOUT_IMPORTS}"
                )
            answer = caused(SourceError(said), cause)
            begun = len(left.indices)
        first_error = first_error or answer
        if not question.tolerant or begun == 0:
            break
        left = Question(left.indices[begun:], True)  # without those that ended a process, or took too long
    assert first_error is not None
    raise first_error


def _ask(recipe: Recipe, question: Question, context: Any, timeout: Optional[float]) -> tuple[Any, int]:
    """What a worker process answers, or the SourceError if it does not, and how many samples it began to load."""
    payload = payload_of(recipe, context)
    ours, theirs = socket.socketpair()
    connections.add(ours, theirs)
    process = process_of(context, "probe", (payload, question, os.getpid(), theirs))
    begun, exitcode = 0, None
    with ours:
        try:
            launch(process, theirs, context.get_start_method())
            content = _message(ours)
            while content == BEGUN:
                begun += 1
                ours.settimeout(timeout)
                content = _message(ours)
            if content is None:
                process.join(PATIENCE)
                exitcode = process.exitcode
        except socket.timeout:  # another class than TimeoutError before Python 3.10
            return SourceError(
                f"sample {question.indices[begun - 1]} of {said_of(recipe.load)} was not loaded within {timeout:.3g} "
                "s, so nobody knows what samples look like; its worker process was ended. If it needs longer, give a "
                "longer timeout="
            ), begun
        finally:
            end_process(process, PATIENCE)
        if content is None:
            return SourceError(
                f"the worker process of {said_of(recipe.load)} {said_of_end(exitcode)} before it had loaded sample "
                f"{question.indices[max(begun, 1) - 1]}; see above for what it printed"
                + ("" if begun else f". {way_out_of_main()}")
            ), begun
    return pickle.loads(content), begun


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
