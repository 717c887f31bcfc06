r"""Reads prototxts with Caffe's own parser, which decides what they mean.

protobuf's Python parser differs from it. It rejects `117.0F`, `- 0.5` and escapes as in `b\u00e4se`, which Caffe
accepts; it accepts `+0.5`, `010` for a float, and spaces that are not ASCII, which Caffe rejects.
"""

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import caffe
from google.protobuf import text_format

from fastbatch.caffe.convert import _parser

_LONGEST = 200  # characters of protobuf's message that are passed on
_WRONG = re.compile(r"Error parsing text-format [\w.]+: (.*)")
_POSITION = re.compile(r"(\d+):(\d+) ?: ")


def read(text, message_class):
    """Return the message that Caffe reads in a text.

    Parameters
    ----------
    text : str
        Bytes that are not UTF-8 are represented as by decode("utf-8", "surrogateescape").
    message_class : type
        A class of caffe_pb2.

    Raises
    ------
    ValueError
        If Caffe would reject it. The message says where and why, without a final period.

    Thread-safety: any thread may call this.
    """
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark, which no editor shows; save it as UTF-8 without one")
    message = message_class()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "text"), Path(folder, "binary")
        source.write_bytes(text.encode("utf-8", "surrogateescape"))
        program = [sys.executable, "-I", "-S", _parser.__file__, caffe._caffe.__file__]
        done = subprocess.run(
            [*program, message.DESCRIPTOR.name, str(source), str(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if done.returncode == 0:
            message.MergeFromString(target.read_bytes())
            return message
    said = done.stderr.decode("utf-8", "replace")
    if done.returncode == _parser.WRONG:
        wrong = _WRONG.search(said)
        raise ValueError(_describe(wrong[1] if wrong else said.strip()))
    if done.returncode != _parser.UNREACHABLE:
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit status {done.returncode}"
        raise ValueError(f"its parser ended by {ended}: {_describe(said.strip())}")
    return _by_python(text, message)


def _by_python(text, message):
    """The same with protobuf's Python parser, for a Caffe whose own parser cannot be called."""
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise ValueError(_describe(str(error))) from None
    except RecursionError:
        raise ValueError("its messages are nested too deeply") from None


def _describe(what):
    """A message of protobuf, shortened, without its final period, and with unprintable characters escaped."""
    position = _POSITION.match(what)
    if position:
        what = what[position.end() :]
    what = what.rstrip(".") if len(what) <= _LONGEST else what[:_LONGEST] + "..."
    what = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in what)
    return f"line {position[1]}, column {position[2]}: {what}" if position else what
