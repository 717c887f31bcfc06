"""``python -m fastbatch convert``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastbatch.cli import _output
from fastbatch.cli._status import DIFFERENT, DONE, FAILED

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_BEGINNING = 65536  # bytes of a file to examine for whether it is text


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "convert",
        help="rewrite the data layers of a Caffe net to fastbatch's",
        description="Rewrites the data layers of a Caffe net to fastbatch's. Everything else, "
        "comments included, is left unchanged. A layer that cannot be rewritten stays, and a sentence says why.",
        epilog="Exit status: 0 done; 1 the check failed, nothing was written; 2 nothing could be done.",
    )
    parser.add_argument("net", metavar="NET", help="the net's prototxt, in any of Caffe's formats")
    parser.add_argument(
        "-o", metavar="OUT", dest="out", help="the file to write, which may be NET; standard output by default"
    )
    parser.add_argument(
        "--param-str",
        action="store_true",
        help="move the layers' parameters into param_str, where every build of Caffe shows them to a Python layer",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the data layers of both nets in Caffe first, from this folder; write nothing unless their batches "
        "are identical",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry out the command. Returns its exit status."""
    try:
        import fastbatch.caffe  # noqa: F401
    except ImportError as problem:
        return _fail(f"{problem}.")
    from fastbatch.caffe.convert import convert

    try:
        with open(options.net, "rb") as file:
            data = file.read(_BEGINNING)
            if b"\0" not in data:  # otherwise it is not a net, and may be a database larger than memory
                data += file.read()
        # Bytes that are not UTF-8 belong to a path or a comment; they are kept.
        conversion = convert(data.decode("utf-8", "surrogateescape"), options.param_str)
    except (OSError, ValueError) as problem:
        return _fail(f"{options.net} cannot be converted: {getattr(problem, 'strerror', None) or problem}.")
    for note in conversion.notes:
        _say(f"{options.net}: {note}")
    if not conversion.numbers:
        _say(f"{options.net}: it has no data layer to rewrite, and is left unchanged.")
    new = conversion.text.encode("utf-8", "surrogateescape")
    if options.check and conversion.numbers:
        from fastbatch.caffe.convert.compare import check

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "converted.prototxt")
            path.write_bytes(new)
            if not check(options.net, str(path), conversion, _say):
                _say("The new net is not written.")
                return DIFFERENT
    try:
        _output.write(new, options.out)
    except BrokenPipeError:
        raise
    except OSError as problem:
        return _fail(f"{options.out or 'standard output'} cannot be written: {problem.strerror}.")
    return DONE


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(text: str) -> int:
    _say(text)
    return FAILED
