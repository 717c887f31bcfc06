"""Cython extensions, compiled against the installed fastbatch as a user would compile them."""

import importlib.util
import sysconfig
from pathlib import Path

import pytest

import fastbatch
from fastbatch import _build_info


def compile_extension(source, directory):
    """The module that a .pyx file becomes, built in `directory`. Skips the test without Cython or setuptools."""
    build = pytest.importorskip("Cython.Build", reason="needs Cython")
    setuptools = pytest.importorskip("setuptools", reason="needs setuptools")
    package = Path(fastbatch.__file__).parent
    if not (package / "_core.pxd").exists():
        pytest.skip("needs an installed _core.pxd")
    copy = directory / source.name
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    flags = ["-O1", "-w", *sanitizer_flags()]
    extension = setuptools.Extension(
        source.stem,
        [str(copy)],
        include_dirs=[fastbatch.get_include()],
        extra_compile_args=flags,
        extra_link_args=flags,
    )
    modules = build.cythonize([extension], include_path=[str(package.parent)], quiet=True)
    command = setuptools.Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(directory)
    command.ensure_finalized()
    command.run()
    path = directory / (source.stem + sysconfig.get_config_var("EXT_SUFFIX"))
    spec = importlib.util.spec_from_file_location(source.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sanitizer_flags():
    """Those with which fastbatch itself was built."""
    return [
        "-fsanitize=" + name for name in ("address", "undefined", "thread") if f"sanitizer {name}" in _build_info.MODE
    ]
