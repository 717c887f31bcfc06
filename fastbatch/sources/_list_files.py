"""Reading list files: a check that those of all Caffe layers share, and lists with several labels in a line."""

from __future__ import annotations

import re
from typing import Any

import numpy

from fastbatch._files import quoted
from fastbatch._text import counted
from fastbatch.errors import SourceError

_INTEGER = re.compile(rb"[+-]?[0-9]{1,64}")
_NUMBER = re.compile(rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf)", re.IGNORECASE)


def require_text(content: bytes, source: object, what: str) -> None:
    """Raise SourceError if a list file's bytes are not plain text. `what` says what the file lists, for the message."""
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise SourceError(
            f"{source} is not a plain text file: it begins with a byte order mark, is UTF-16, or is not text at all; "
            f"it should list {what}, in UTF-8 without a byte order mark"
        )


def parse_labels(content: bytes, source: object, count: int, dtype: Any) -> tuple[list[bytes], Any]:
    """The names and labels of a list whose lines hold an image's name and `count` numbers, with white space between.

    The labels are an array of this dtype: n x count, n values if count is 1, or None if it is 0. A name may contain
    spaces.

    Raises SourceError, with the number of the line that is wrong.
    """
    require_text(content, source, "names of images and their labels")
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()  # the file ends in a line end
    names: list[bytes] = []
    labels: list[float] = []
    for number, line in enumerate(lines, start=1):
        words = line.rsplit(None, count)
        if not words:
            raise SourceError(f"{source}: line {number} is blank")
        if len(words) <= count:
            raise SourceError(
                f"{source}: line {number} has too few words: it needs an image's path and {counted(count, 'label')}"
            )
        names.append(words[0])
        try:
            labels.extend([_number(word, dtype) for word in words[1:]])
        except ValueError as problem:
            raise SourceError(
                f"{source}: line {number} should end in {counted(count, 'label')}, and has {problem}"
            ) from None
    if not names:
        raise SourceError(f"{source}: File is empty")
    if count == 0:
        return names, None
    return names, numpy.array(labels, dtype).reshape((len(names), count) if count > 1 else len(names))


def _number(word: bytes, dtype: Any) -> float:
    """A word as a number of this dtype. Raises ValueError, whose text continues a sentence."""
    value: float
    if dtype.kind in "iu":
        if not _INTEGER.fullmatch(word):
            more = '; for other numbers say label_dtype="float32"' if _NUMBER.fullmatch(word) else ""
            raise ValueError(f"{quoted(word)}, which is not an integer{more}")
        limits = numpy.iinfo(dtype)
        value = int(word)
        fits = limits.min <= value <= limits.max
    else:
        if not _NUMBER.fullmatch(word):
            raise ValueError(f"{quoted(word)}, which is not a number")
        value = float(word)
        fits = word[-1:] in b"fF" or not abs(value) > float(numpy.finfo(dtype).max)  # "inf" is meant
    if not fits:
        raise ValueError(f"{quoted(word)[1:-1]}, which {dtype} cannot hold")
    return value
