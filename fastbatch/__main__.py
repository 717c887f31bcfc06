"""The command line: ``python -m fastbatch info`` and ``python -m fastbatch convert``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from fastbatch._features import info


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command; `arguments` are those of the process unless given. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastbatch", description="Batches for Caffe and Python, from native threads."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="print what this fastbatch was built with and what it runs on")
    convert = commands.add_parser(
        "convert", help="rewrite the data layers of a Caffe net to fastbatch's",
        description="Rewrites the data layers of a Caffe net to fastbatch's and keeps the rest as it is, comments included. What "
                    "cannot be rewritten is left, and said so. Exit status: 0, 1 if the check failed, 2 if nothing could be done.",
    )
    convert.add_argument("net", metavar="NET", help="the net's prototxt, of any of Caffe's formats")
    convert.add_argument("-o", metavar="OUT", dest="out", help="where to write the new net, NET itself if you like; else standard output")
    convert.add_argument("--check", action="store_true",
                         help="first run both nets' data layers in Caffe, from this folder; write nothing unless their batches are "
                              "identical")
    options = parser.parse_args(arguments)
    if options.command == "convert":
        return _convert(options)
    print(info())
    return 0


def _convert(options):
    try:
        import fastbatch.caffe  # noqa: F401
    except ImportError as problem:
        print(f"{problem}.", file=sys.stderr)
        return 2
    from fastbatch.caffe.convert import run

    return run(options.net, options.out, options.check)


if __name__ == "__main__":
    raise SystemExit(main())
