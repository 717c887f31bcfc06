"""``python -m fastbatch index``."""

from __future__ import annotations

import argparse
import contextlib
import os
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

from fastbatch.cli._status import DONE, FAILED

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_MAGIC = b"\x8afbindex"
_IMAGES_AT = 24  # in the file's header, see native/images/jpeg_index_file.h
_BATCH = 64
_EVERY = 0.2  # seconds between two lines of progress


def add_to(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of the parser."""
    parser = commands.add_parser(
        "index",
        help="make the index of the JPEG files in a data set",
        description="Notes where decoding can begin in the JPEG files of a data set, and writes this index to a file "
        "for index_file=, so that crops are decoded faster from the first epoch on. The file is made anew.",
        epilog="Exit status: 0 done, also if some images have no entry; 2 nothing could be done.",
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="an LMDB or LevelDB database of encoded images, a list file of ImageListSource, ImageData or WindowData, "
        "or a folder, whose .jpg and .jpeg files are found at any depth",
    )
    parser.add_argument("-o", metavar="FILE", dest="out", help="the file to write; SOURCE.index by default")
    parser.add_argument("--root", metavar="FOLDER", default="", help="the folder that holds the paths of a list")
    parser.add_argument(
        "--labels", metavar="N", type=int, help="how many numbers end each line of a list; 1 by default"
    )
    parser.add_argument("--threads", metavar="N", type=int, help="by default that of the usable cores")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry out the command. Returns its exit status."""
    from fastbatch._features import require
    from fastbatch.errors import FastbatchError

    try:
        if require("jpeg").jpeg_decoder() != "own":
            return _fail("JPEG files are decoded by libjpeg here (see `python -m fastbatch info`), without an index.")
        for out, sources in _tasks(options).items():
            _make(out, sources, options)
    except (FastbatchError, TypeError, ValueError) as problem:
        return _fail(f"{str(problem).rstrip('.')}.")
    except OSError as problem:
        return _fail(f"{problem.filename} cannot be read or written: {problem.strerror}.")
    return DONE


def _tasks(options: argparse.Namespace) -> dict[str, list[str]]:
    """The files to write, and the sources of each."""
    if options.out is not None:
        return {options.out: options.sources}
    return {os.path.normpath(source) + ".index": [source] for source in options.sources}


def _make(out: str, sources: list[str], options: argparse.Namespace) -> None:
    """Make one file of an index."""
    _check_old(out)
    part = f"{out}.{os.getpid()}.part"
    begin, images, decoded = time.monotonic(), 0, 0
    try:
        for source in sources:
            count, own = _add(part, source, options)
            images += count
            decoded += own
        if not os.path.exists(part):
            why = "the images are small, and gain nothing by an index" if decoded else "no image is baseline JPEG"
            raise ValueError(f"{out} is not written: {why}, or the sentence above says what happened")
        os.replace(part, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    size, entries = os.path.getsize(out), _entries(out)
    print(
        f"{out}: {entries:,} entries for {images:,} images; {size:,} bytes, {size / entries:.0f} for each entry; made "
        f"in {time.monotonic() - begin:.1f} s"
    )


def _check_old(out: str) -> None:
    """Raise an exception if the file cannot be written, or if another file has this name."""
    if not os.path.isdir(os.path.dirname(out) or "."):
        raise ValueError(f"{out} cannot be written: there is no folder {os.path.dirname(out)}")
    with contextlib.suppress(FileNotFoundError), open(out, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{out} is not an index of JPEG files, and is left as it is: name another file with -o")


def _entries(out: str) -> int:
    with open(out, "rb") as file:
        file.seek(_IMAGES_AT)
        return int(struct.unpack("=Q", file.read(8))[0])


def _add(part: str, name: str, options: argparse.Namespace) -> tuple[int, int]:
    """Add the images of a source. Returns how many it has, and how many fastbatch's own decoder has read."""
    from fastbatch.loader import Loader
    from fastbatch.transforms import Transform

    # The smallest crop: all of an image's codes are read for its entry, and next to no pixel is computed.
    with (
        _open(part, name, options) as source,
        Loader(source, Transform(crop_size=1), batch_size=_BATCH, threads=options.threads, on_error="skip") as loader,
    ):
        shows = sys.stderr is not None and sys.stderr.isatty()
        next_line = time.monotonic()
        for batch in loader:
            if shows and time.monotonic() >= next_line:
                done = min(_BATCH * (batch.number + 1), len(source))
                print(f"\r{name}: {done:,} of {len(source):,} images", end="", file=sys.stderr, flush=True)
                next_line = time.monotonic() + _EVERY
        if shows:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        if loader.errors:
            first, count = loader.errors[0], loader.stats().skipped
            _say(
                f"{name}: {count:,} of {len(source):,} images cannot be read, and have no entry. The first is "
                f"{_text(first.key)}: {first.reason}."
            )
        return len(source), loader.stats().images["own"] + loader.stats().images["index"]


def _text(key: Any) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)


def _open(part: str, name: str, options: argparse.Namespace) -> Any:
    from fastbatch.sources import ImageListSource, LevelDBSource, LMDBSource

    index: dict[str, Any] = {"index_bytes": 2**62, "index_file": part}
    if os.path.exists(os.path.join(name, "data.mdb")):
        return LMDBSource(name, "color", **index)
    if os.path.exists(os.path.join(name, "CURRENT")):
        return LevelDBSource(name, "color", **index)
    if os.path.isdir(name):
        return ImageListSource(_images_below(name), **index)
    with open(name, "rb") as file:
        content = file.read()
    if content.startswith(b"# "):
        from fastbatch.sources._windows import parse_windows

        images, _, _ = parse_windows(content, name, os.fsencode(options.root))
        paths: list[bytes] = sorted({path for path, *_ in images})
        return ImageListSource(paths, **index)
    return ImageListSource(name, options.root, labels=options.labels, **index)


def _images_below(folder: str) -> list[str]:
    """The paths of the JPEG files in a folder and in its folders, without hidden ones."""
    from fastbatch.sources.image_folder import files_below

    names = [name for name in files_below(folder, "") if name.lower().endswith((".jpg", ".jpeg"))]
    found = [os.path.join(folder, name) for name in names]
    if not found:
        raise ValueError(f"the folder {folder} has neither a database nor JPEG files in it")
    return sorted(found)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(text: str) -> int:
    _say(text)
    return FAILED
