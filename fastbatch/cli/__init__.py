"""The command line, ``python -m fastbatch COMMAND``: one module of this package for each command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from fastbatch._build_info import VERSION
from fastbatch.cli import convert, index, info
from fastbatch.cli._status import CLOSED_PIPE, FAILED, INTERRUPTED

_COMMANDS = (info, convert, index)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command and its arguments, those of the process by default.

    Returns
    -------
    int
        The exit status: 0 on success; 1 if the check of ``convert --check`` failed; 2 if the command could not be
        carried out. As a shell reports programs that a signal ends: 130 after Ctrl-C, and 141 if the reader of the
        output has closed it.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version``, and with status 2 after a usage error.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `python -m fastbatch info | head -1`
        _drop_output()
        return CLOSED_PIPE
    except OSError as problem:
        print(f"Standard output cannot be written: {problem.strerror or problem}.", file=sys.stderr)
        _drop_output()
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastbatch",
        description="Batches for Caffe and Python, from native threads.",
        epilog="Exit status: 0 done; 1 the check of `convert --check` failed; 2 nothing could be done; "
        "130 interrupted; 141 the output was closed.",
    )
    parser.add_argument("--version", action="version", version=f"fastbatch {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


def _drop_output() -> None:
    """Discard the buffer of standard output, which the interpreter would otherwise write again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
