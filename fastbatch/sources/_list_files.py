"""A check that the list files of all Caffe layers share."""

from __future__ import annotations

from fastbatch.errors import SourceError


def require_text(content: bytes, source: object, what: str) -> None:
    """Raise SourceError if a list file's bytes are not plain text. `what` says what the file lists, for the message."""
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise SourceError(
            f"{source} is not a plain text file: it begins with a byte order mark, is UTF-16, or is not text at all; "
            f"it should list {what}, in UTF-8 without a byte order mark"
        )
