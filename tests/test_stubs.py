"""The type stubs say what the compiled modules have: mypy's stubtest compares them."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy
import pytest

import fastbatch

pytest.importorskip("mypy.stubtest", reason="needs mypy")
if not (Path(numpy.__file__).parent / "py.typed").exists():
    pytest.skip("this NumPy, older than 1.20, has no type hints of its own", allow_module_level=True)


@pytest.mark.slow
def test_stubs_match_the_extensions(tmp_path):
    """Every extension has a stub, with the same names and signatures. Caffe's can only be compared where Caffe is."""
    package = Path(fastbatch.__file__).resolve().parent
    extensions = sorted(package.rglob("*" + sysconfig.get_config_var("EXT_SUFFIX")))
    stems = [path.with_name(path.name.partition(".")[0]) for path in extensions]
    assert [stem.name for stem in stems if not stem.with_suffix(".pyi").exists()] == [], "extensions without a stub"

    modules = [".".join(stem.relative_to(package.parent).parts) for stem in stems]
    caffe = importlib.util.find_spec("caffe")
    if caffe is None or caffe.origin is None:  # without origin, it is only a directory of that name: tests/caffe
        modules = [name for name in modules if not name.startswith("fastbatch.caffe.")]
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *modules],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "MYPYPATH": str(package.parent), "PYTHONPATH": str(package.parent)},
    )
    assert result.returncode == 0, result.stdout
