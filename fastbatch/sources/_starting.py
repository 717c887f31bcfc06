"""Starting the worker processes of a `PythonSource`."""

from __future__ import annotations

import time
from typing import Any

from fastbatch.sources._serving import serve_in_process

__all__ = ["PATIENCE", "launch", "process_of"]

PATIENCE = 5.0  # seconds that a worker may take to leave
_PAUSES = (0.01, 0.1, 0.5)  # seconds before a worker is started again, while there is no forkserver


def launch(process: Any) -> None:
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


def process_of(context: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    return context.Process(target=serve_in_process, args=arguments, name=f"fastbatch-{name}", daemon=True)
