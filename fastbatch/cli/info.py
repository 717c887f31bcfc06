"""``python -m fastbatch info``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from fastbatch._features import info
from fastbatch.cli._status import DONE

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser("info", help="print what this fastbatch was built with and what it runs on")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry out the command. Returns its exit status."""
    text = info()
    if sys.stdout is not None and sys.stdout.encoding:  # a path may contain characters that this locale cannot encode
        text = text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)
    print(text)
    return DONE
