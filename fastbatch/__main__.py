"""The command line: ``python -m fastbatch info``."""

import argparse

from fastbatch._features import info


def main(arguments=None):
    """Run one command; `arguments` are those of the process unless given. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fastbatch", description="Batches for Caffe and Python, from native threads."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="print what this fastbatch was built with and what it runs on")
    parser.parse_args(arguments)
    print(info())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
