"""Starting and ending the worker processes of a `PythonSource`."""

from __future__ import annotations

import _thread
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from multiprocessing import current_process, forkserver
from typing import Any, Optional

from fastbatch.errors import SourceError
from fastbatch.sources._serving import serve_in_process

__all__ = ["PATIENCE", "WITHOUT_IMPORTS", "end_process", "launch", "process_of", "said_of_end", "way_out_of_main"]

PATIENCE = 5.0  # seconds that a worker may take to leave
WITHOUT_IMPORTS = 'or use start_method="fork", or kind="thread"'  # where workers can import nothing
_PAUSE = 0.02  # seconds before a worker is started again, while there is no forkserver
_START_PATIENCE = 20.0  # seconds for that; a new forkserver may import the main program first

# multiprocessing imports these when it starts and ends its first process. Ours are started in threads, which must not
# import anything together: the import of a module in two threads may fail (python/cpython#83065).
for _part in ("connection", "popen_fork", "popen_forkserver", "popen_spawn_posix"):
    importlib.import_module(f"multiprocessing.{_part}")


def process_of(context: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    """A worker process, not yet started."""
    return context.Process(target=serve_in_process, args=arguments, name=f"fastbatch-{name}", daemon=True)


def _missing_main() -> Optional[str]:
    """The path of the main program, if it has one that is no file's, such as "<stdin>"."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return path if path is not None and not os.path.exists(path) else None


def way_out_of_main() -> str:
    """What to do if worker processes cannot begin. They import the main program, if that is a file."""
    path = _missing_main()
    if path is not None:
        return f"They would import the main program, which is no file ({path}): write it to one, {WITHOUT_IMPORTS}"
    return 'A program that starts processes needs the line `if __name__ == "__main__":` before what it does'


def launch(process: Any, connection: socket.socket, method: str) -> None:
    """Start a worker process, and close the end of the connection that is the process's.

    An exception that comes in the middle of multiprocessing's own code, as that of Ctrl-C may, breaks it: its
    forkserver, of which a process has one, ends with a traceback on stderr. So another thread starts the process,
    because signal handlers run in the main thread only. If this one is interrupted meanwhile, that one ends what it
    has started.

    With "fork", this thread does it: the user's code expects its thread's context.

    Parameters
    ----------
    process : multiprocessing.Process
    connection : socket.socket
    method : "forkserver", "spawn" or "fork"
    """
    if current_process().daemon:
        connection.close()
        raise RuntimeError(
            "a PythonSource cannot start worker processes in a process that must not have any: one that is daemonic, "
            'such as those of multiprocessing.Pool. Use kind="thread" there'
        )
    if method == "fork":
        with connection:
            process.start()
        return
    outcome: queue.SimpleQueue[Optional[BaseException]] = queue.SimpleQueue()
    work = [connection]  # Who takes it does it.
    awaited = [outcome]  # Who takes it decides whether somebody waits.

    def start() -> None:
        error: Optional[BaseException] = None
        try:
            with work.pop():
                _start(process)
        except BaseException as raised:
            error = raised
        try:
            waiting = awaited.pop()
        except IndexError:
            if error is None:
                end_process(process, PATIENCE)
        else:
            waiting.put(error)
        error = None  # its traceback has this frame

    try:
        try:
            _thread.start_new_thread(start, ())
        except RuntimeError:  # none can be started: the interpreter is ending, or there are too many
            start()
        error = outcome.get()
    except BaseException:
        awaited.clear()
        while work:
            work.pop().close()
        raise
    if error is not None:
        raise error


def _start(process: Any) -> None:
    """Start a process, and try again if something is ending that multiprocessing asks.

    That is its forkserver, after an interrupted start of somebody else's; or a process that another thread closes.

    Raises SourceError if the forkserver never starts: since Python 3.14 it imports the main program itself.
    """
    end = time.monotonic() + (_START_PATIENCE if _missing_main() is None else 1)
    while True:
        try:
            return process.start()
        except (ConnectionError, EOFError, AttributeError) as error:  # the last one: it is closed already
            if time.monotonic() > end:
                if isinstance(error, AttributeError):
                    raise
                raise SourceError(
                    "no worker process can be started: multiprocessing's forkserver has ended; see above for what it "
                    f"printed. {way_out_of_main()}"
                ) from error
        time.sleep(_PAUSE)


def said_of_end(exitcode: Optional[int]) -> str:
    """How a process ended, for messages."""
    if exitcode is None:
        return "ended"
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:  # a real-time signal
        name = f"signal {-exitcode}"
    return f"was ended by {name}" + (", as the kernel does when memory runs out" if name == "SIGKILL" else "")


def end_process(process: Any, patience: float, codes: Optional[dict[int, int]] = None) -> bool:
    """End a process, if it was started and has not ended, and say whether it is gone within so many seconds.

    If so, nothing of it is left to callbacks when it is collected, in which an interrupt would be lost.

    The process counts as closed then. But its close() is not called, which deletes `_popen` while active_children() or
    start() in another thread may be about to ask it: up to Python 3.10, that raises AttributeError there.

    codes: where its exit code is noted, by its id.
    """
    try:
        if process.pid is None:
            return True
        process.kill()
        process.join(patience)
        if process.exitcode is None:
            return False
        if codes is not None:
            codes[process.pid] = process.exitcode
        process._popen.close()
        process._closed = True
    except ValueError:  # it is closed: the thread that started it ended it, too
        pass
    return True


def _forget_forkserver() -> None:
    """In a forked child, makes multiprocessing forget the parent's forkserver, so that it starts another one.

    It would wait for that one as for a child of its own. Another thread may have had the lock. The server ends when
    nobody has the other end of its pipe, so it would outlive the parent.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None
    server._lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_forkserver)
