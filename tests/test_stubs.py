"""Types: stubs and annotations match the modules, and a user's type checker sees them."""

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy
import pytest

import fastbatch
from databases import image_lmdb

pytest.importorskip("mypy.stubtest", reason="needs mypy")
if not (Path(numpy.__file__).parent / "py.typed").exists():
    pytest.skip("this NumPy, older than 1.20, has no type hints of its own", allow_module_level=True)

pytestmark = pytest.mark.slow
PACKAGE = Path(fastbatch.__file__).resolve().parent
PROGRAM = Path(__file__).with_name("typed_program.py")


def run(cwd, *arguments, package=PACKAGE):
    """Runs Python in a folder that is not the checkout, where it and mypy find this very package."""
    variables = {**os.environ, "PYTHONPATH": str(package.parent)}
    variables.pop("MYPYPATH", None)
    if str(package.parent) not in site.getsitepackages():  # where mypy looks anyway, and wants no MYPYPATH
        variables["MYPYPATH"] = str(package.parent)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A function: mypy --strict on the program.

    Its cache of other packages is kept, so that only the first run is slow.
    """
    cache = tmp_path_factory.mktemp("mypy")
    options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--no-pretty", "--no-color-output"]
    return lambda package: run(cache, "-m", "mypy", *options, PROGRAM, package=package)


def test_every_extension_has_a_stub():
    extensions = sorted(PACKAGE.rglob("*" + sysconfig.get_config_var("EXT_SUFFIX")))
    stems = [path.with_name(path.name.partition(".")[0]) for path in extensions]
    assert {"_arrays", "_batches", "_core", "_queue", "_ring"} <= {stem.name for stem in stems}
    assert [stem.name for stem in stems if not stem.with_suffix(".pyi").exists()] == []


def test_stubs_and_annotations_match_the_modules(tmp_path):
    """All names and signatures, except what cannot be imported here and what belongs to the standard library."""
    # Older mypys compare what a module imports, too, and typeshed is not exact there.
    names = "Any|Callable|Iterable|Mapping|ModuleType|NamedTuple|Protocol|Self|Sequence|TypedDict"
    differences = [rf"fastbatch\.[\w.]+\.({names})(\..*)?"]
    caffe = importlib.util.find_spec("caffe")
    if caffe is None or caffe.origin is None:  # without an origin, it is some folder of that name
        differences.append(r"fastbatch\.caffe(\..*)?")
    differences.append(
        r"fastbatch\.sources\._database\.\w+"
    )  # "a disjoint base", which the stubs of older mypys cannot say
    for library, extension in (
        ("lmdb", "sources._lmdb"),
        ("leveldb", "sources._leveldb"),
        ("jpeg", "images._codec"),
        ("hdf5", "sources._hdf5"),
    ):
        if fastbatch.features()[library] is None:
            differences.append("fastbatch." + extension)
    if importlib.util.find_spec("torch") is None:
        differences.append(r"fastbatch\.torch")
    differences.append(r"fastbatch\.torch\.TorchLoader")  # its metaclass is that of a class of torch, which mypy skips
    if sys.version_info < (3, 12):
        differences.append(r"fastbatch(\.\w+)?\.(Batch|Field)\.__buffer__")  # the C slot is no method before
    (tmp_path / "differences").write_text("".join(line + "\n" for line in differences))
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\n[mypy-caffe.*,google.*]\nignore_missing_imports = True\n"
        "[mypy-torch.*]\nignore_missing_imports = True\nfollow_imports = skip\n"  # it takes mypy a minute
    )

    options = ["--mypy-config-file", "mypy.ini", "--allowlist", "differences", "--ignore-unused-allowlist"]
    result = run(tmp_path, "-m", "mypy.stubtest", *options, "fastbatch")
    assert result.returncode == 0, result.stdout


def test_a_users_program_gets_every_type(strict):
    result = strict(PACKAGE)
    assert result.returncode == 0, result.stdout
    assert result.stdout == "Success: no issues found in 1 source file\n"


@pytest.mark.once(group="lost types")
@pytest.mark.parametrize(
    "file, typed, lost",
    [
        ("_epoch.pyi", "def __next__(self) -> Batch:", "def __next__(self) -> Any:"),
        ("loader.py", "since: Optional[Stats] = None) -> Stats:", "since: Optional[Stats] = None):"),
        ("loader.py", "        source: Samples,\n", "        source: Any,\n"),
        ("transforms.py", "mean_value: tuple[float, ...]", "mean_value: Any"),
        ("errors.py", "key: Union[bytes, int]", "key: Any"),
        (
            "_batch.pyi",
            "def __getitem__(self, name: str) -> numpy.ndarray[Any, Any]",
            "def __getitem__(self, name: str) -> Any",
        ),
        ("_queue.pyi", "timeout: Optional[float] = None) -> _T:", "timeout: Optional[float] = None) -> Any:"),
        ("sources/_database.pyi", "def shape(self) -> tuple[int, int, int]", "def shape(self) -> Any"),
    ],
)
def test_the_program_fails_when_a_type_gets_lost(strict, tmp_path, file, typed, lost):
    copy = shutil.copytree(
        PACKAGE, tmp_path / "fastbatch", ignore=shutil.ignore_patterns("*.so", "*.pyx", "__pycache__")
    )
    text = (copy / file).read_text(encoding="utf-8")
    assert typed in text
    (copy / file).write_text(text.replace(typed, lost), encoding="utf-8")
    result = strict(copy)
    assert result.returncode == 1, result.stdout
    assert "typed_program.py:" in result.stdout, result.stdout


@pytest.mark.skipif(fastbatch.features()["lmdb"] is None, reason="needs LMDB")
def test_the_users_program_runs(tmp_path):
    path, _ = image_lmdb(tmp_path / "database", 5)
    result = run(tmp_path, PROGRAM, path)
    assert (result.returncode, result.stdout) == (0, "10 10 5 5 BlockingQueuefirst True\n")
