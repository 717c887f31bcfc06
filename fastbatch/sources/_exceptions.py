"""Exceptions that workers of a `PythonSource` raised, as causes of errors."""

from __future__ import annotations

import pickle
from typing import Optional

__all__ = ["WorkerTraceback", "caused"]


class WorkerTraceback(Exception):
    """The traceback of an exception that a worker raised, as text: the `__cause__` of that exception."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def caused(error: Exception, cause: Optional[bytes]) -> Exception:
    """The error with a worker's pickled exception as its `__cause__`, unless it cannot be one here."""
    if cause is not None:
        try:
            exception, lines = pickle.loads(cause)
            exception.__cause__ = WorkerTraceback(lines)
        except Exception:  # its class cannot be imported here, allows no attributes, or makes something else
            return error
        if isinstance(exception, BaseException):
            error.__cause__ = exception
    return error
