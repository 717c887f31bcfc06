"""``python -m fastbatch convert``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fastbatch.cli._status import FAILED

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "convert",
        help="rewrite the data layers of a Caffe net to fastbatch's",
        description="Rewrites the data layers of a Caffe net to fastbatch's and keeps the rest as it is, comments included. What "
        "cannot be rewritten is left, and said so. Exit status: 0, 1 if the check failed, 2 if nothing could be done.",
    )
    parser.add_argument("net", metavar="NET", help="the net's prototxt, of any of Caffe's formats")
    parser.add_argument(
        "-o", metavar="OUT", dest="out", help="where to write the new net, NET itself if you like; else standard output"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="first run both nets' data layers in Caffe, from this folder; write nothing unless their batches are identical",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry out the command. Returns its exit status."""
    try:
        import fastbatch.caffe  # noqa: F401
    except ImportError as problem:
        print(f"{problem}.", file=sys.stderr)
        return FAILED
    from fastbatch.caffe.convert import run

    return run(options.net, options.out, options.check)
