"""What this build of fastbatch can do, and what it runs on."""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from types import ModuleType
from typing import Optional

import numpy

from fastbatch import _build_info
from fastbatch.cores import usable_cores
from fastbatch.errors import MissingLibraryError


def features() -> dict[str, Optional[str]]:
    """Return which optional C libraries can be used here, and whether fastbatch's own JPEG decoder is in use.

    Returns
    -------
    dict of str to str or None
        Maps a library's name (``"lmdb"``) to the version that fastbatch was built with. None: the library was not found
        when fastbatch was built, or cannot be loaded now. ``"jpeg_decoder"`` is the instructions that the own JPEG
        decoder uses: ``"AVX2"``, ``"SSE2"`` or ``"NEON"``. None: libjpeg-turbo decodes all JPEG images.

    Thread-safety: any thread may call this.
    """
    found = {
        name: library["version"] if problem(name) is None else None for name, library in _build_info.LIBRARIES.items()
    }
    return {**found, "jpeg_decoder": _jpeg_kernels() if found["jpeg"] else None}


_loaded: set[str] = set()  # already imported: a signal handler must not run into import locks


def require(name: str) -> ModuleType:
    """Return the extension of the optional library `name`, or raise MissingLibraryError, which says what to install."""
    text = problem(name)
    if text is not None:
        raise MissingLibraryError(text)
    return sys.modules[_build_info.LIBRARIES[name]["extension"]]


def problem(name: str) -> Optional[str]:
    """Return why the optional library `name` cannot be used and what to do about it; None if it can."""
    if name in _loaded:
        return None
    library = _build_info.LIBRARIES[name]
    if library["version"] is None:
        return (
            f"This fastbatch was built without {library['title']} ({library['how']}). Install "
            f"{library['missing']} ({library['install']}), then build fastbatch again: "
            "pip install --force-reinstall --no-deps --no-cache-dir, from where you installed it before."
        )
    try:
        importlib.import_module(library["extension"])
    except ImportError as error:
        needed = [other for other in _build_info.LIBRARIES.values() if other["extension"] == library["extension"]]
        return (
            "fastbatch was built with "
            + " and ".join(f"{other['title']} {other['version']}" for other in needed)
            + f", which cannot be loaded now: {error}. Install what is missing: "
            + " or ".join(f"{other['title']} ({other['install']})" for other in needed)
            + "."
        )
    _loaded.add(name)
    return None


def _jpeg_kernels() -> Optional[str]:
    from fastbatch.images._codec import jpeg_kernels

    return jpeg_kernels()


def _jpeg_decoder() -> str:
    kernels = _jpeg_kernels()
    return f"own decoder ({kernels}), and libjpeg-turbo" if kernels else "libjpeg-turbo"


def info() -> str:
    """Return the text of ``python -m fastbatch info``: the build's own report, then what is found here and now."""
    from fastbatch._transform import kernel_name

    # The build's report lists what it left out; what it found may be gone by now.
    built = [name for name, library in _build_info.LIBRARIES.items() if library["version"] is not None]
    problems = {name: text for name in built if (text := problem(name)) is not None}
    report = _build_info.REPORT
    for name in problems:
        report = re.sub(rf"^(  {name} +)yes( .*)$", r"\1NO \2, cannot be loaded now", report, flags=re.MULTILINE)
    lines = [
        report,
        f"Python   {platform.python_version()}  {sys.executable}",
        f"NumPy    {numpy.__version__}",
        f"kernels  {kernel_name()}, on {platform.machine()}",
        *([f"JPEG     {_jpeg_decoder()}"] if "jpeg" in built and "jpeg" not in problems else []),
        f"cores    {usable_cores()} usable of {os.cpu_count()}",
        f"package  {os.path.dirname(os.path.abspath(__file__))}",
    ]
    return "\n".join([*lines, *dict.fromkeys(problems.values())])
