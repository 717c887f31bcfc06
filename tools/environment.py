"""Environments outside the checkout: packages from pip, and fastbatch built from the current checkout.

A place is a Python and the folder of its environments. Here it is a Python of this machine; in debian_root.py, one in a
root. Paths are as the place's own programs see them; outside() returns them as this machine sees them. Uses the
standard library only.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import machine

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastbatch"
INSTALLED_FIRST = CHECKOUT / "tools/sitecustomize.py"
UNAVAILABLE = 69  # the exit status if something is not available on this machine: EX_UNAVAILABLE of sysexits.h
KEPT = 4  # environments, and builds of fastbatch in each
# Caffe's extension was compiled against these packages, so pip must not replace them beside Caffe.
HELD = "import numpy, google.protobuf as p; print('numpy==' + numpy.__version__); print('protobuf==' + p.__version__)"
REQUIREMENTS = """
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
print(*project["build-system"]["requires"], *project["project"]["dependencies"], sep="\\n")
"""
# If there is no h5py wheel for a Python yet, pip compiles h5py, and needs to be shown where Debian has HDF5.
DEBIANS_HDF5 = (
    'for folder in /usr/lib/*/hdf5/serial; do [ ! -d "$folder" ] || export HDF5_DIR="${HDF5_DIR:-$folder}"; done'
)


class Unavailable(Exception):
    """The environment is not available on this machine. The text is a sentence for the user."""


class BuildFailed(Exception):
    """The environment is available, but fastbatch does not build in it. The text is a sentence for the user."""


class Python:
    """A Python of this machine. With `beside_caffe`, its own packages are visible too, and its NumPy is kept.

    What is `optional` may fail to install. Once the place is ready, `left_out` has the names of such files.
    """

    def __init__(self, executable, requirements, beside_caffe=False, optional=()):
        self.python = executable
        self.requirements = [CHECKOUT / "tools" / name for name in requirements]
        self.optional = [CHECKOUT / "tools" / name for name in optional]
        self.left_out = []
        self.beside_caffe = beside_caffe
        self.home = self.folder = CACHE / f"python-{digest(executable, beside_caffe)}"
        self.checkout = CHECKOUT
        self.python_path = []

    def check(self):
        """Raises Unavailable if this machine can never provide the place."""

    def prepare(self):
        """Makes the prerequisites of a virtual environment."""
        self.home.mkdir(parents=True, exist_ok=True)

    def outside(self, path):
        return Path(path)

    def command(self, command, variables, cwd):
        """The command line that runs `command` in the place, with `variables` set."""
        return ["env", "-C", str(cwd), *(f"{name}={value}" for name, value in variables.items()), *map(str, command)]

    def search_path(self):
        return os.environ["PATH"]


def say(text):
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def step(text, command, log, **keywords):
    """Runs a command with its output in `log`. Returns True if it succeeded, else prints the end of the log."""
    say(f"{text} ...")
    start = time.monotonic()
    with open(log, "ab") as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        process = subprocess.Popen(command, start_new_session=True, **streams, **keywords)
    try:
        status = process.wait()
    except BaseException:  # Ctrl-C, SIGTERM: nothing that the command started may continue without us
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status == 0:
        say(f"{text}: done, {time.monotonic() - start:.0f} s")
    else:
        print(*log.read_text(errors="replace").splitlines()[-40:], sep="\n", file=sys.stderr)
    return status == 0


def see(log):
    return f"the reason is above, and the full output is in {log}"


@contextlib.contextmanager
def locked(path):
    """Holds a lock between processes. The system releases it when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")  # noqa: SIM115 (the `with` is below)
    except OSError as error:
        raise Unavailable(
            f"the cache cannot be written ({error}): set XDG_CACHE_HOME to a folder that you may write to"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is setting up; waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def remove(path):
    """Removes a folder including device nodes, but never across a mount."""
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)


def remove_unused(home, pattern):
    """Removes all but the most recently used folders, which may still be in use."""
    folders = sorted((path for path in home.glob(pattern) if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in folders[:-KEPT]:
        if time.time() - old.stat().st_mtime > 2 * 3600:
            remove(old)
            old.with_suffix(".log").unlink(missing_ok=True)


def passed_on():
    """The part of the caller's environment that a command in any place sees."""
    prefixes = ("FASTBATCH_", "GLOG_", "PYTEST_")
    names = ("CI", "TERM", "COLUMNS", "NO_COLOR", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", *machine.PROXY_VARIABLES)
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes) or name in names}


def virtual_environment(place):
    """A virtual environment with what building, tests and examples need. Returns its folder."""
    text = (CHECKOUT / "pyproject.toml").read_text()
    project = re.findall(r"^(?:requires|dependencies) = \[.*?\]$", text, re.MULTILINE | re.DOTALL)
    texts = [path.read_text() for path in place.requirements + place.optional]
    venv = place.home / f"venv-{digest(project, texts)}"
    complete = place.outside(venv / "complete")  # in it: what could not be installed
    if not complete.exists():
        make_virtual_environment(place, venv)
        remove_unused(place.outside(place.home), "venv-*")
    os.utime(place.outside(venv))
    place.left_out = complete.read_text().split()
    if place.left_out:
        say(f"without {', '.join(place.left_out)}, which pip could not install; to try again, remove {complete.parent}")
    return venv


def make_virtual_environment(place, venv):
    remove(place.outside(venv))
    place.outside(place.home).mkdir(parents=True, exist_ok=True)
    log = place.outside(venv).with_suffix(".log")
    log.unlink(missing_ok=True)
    q = shlex.quote
    python, pip = q(str(place.python)), f"{q(str(venv))}/bin/python -m pip install --quiet"
    pip_with = f"{pip} --constraint {q(str(venv))}/held.txt"

    def files(paths):
        return " ".join("-r " + q(str(place.checkout / path.relative_to(CHECKOUT))) for path in paths)

    script = f"""
    {DEBIANS_HDF5}
    {python} -m venv {"--system-site-packages" if place.beside_caffe else ""} {q(str(venv))}
    {f"{python} -c {q(HELD)}" if place.beside_caffe else ":"} > {q(str(venv))}/held.txt
    {pip} --upgrade pip
    {q(str(venv))}/bin/python -c {q(REQUIREMENTS)} > {q(str(venv))}/project.txt
    {pip_with} -r {q(str(venv))}/project.txt {files(place.requirements)}
    """

    def done(text, script):
        return step(text, place.command(["sh", "-ec", script], passed_on(), place.checkout), log)

    if not done("packages from pip", script):
        raise Unavailable(f"pip could not install {', '.join(path.name for path in place.requirements)}: {see(log)}")
    left_out = [
        path.name for path in place.optional if not done(f"{path.name} from pip", f"{pip_with} {files([path])}")
    ]
    place.outside(venv / "complete").write_text("\n".join(left_out))


def sources():
    """The files that fastbatch is built from, without the products of a build in the checkout."""
    for name in ("fastbatch", "build_support"):
        for path in sorted((CHECKOUT / name).rglob("*")):
            compiled = path.suffix in (".so", ".pyc") or (path.suffix == ".c" and path.with_suffix(".pyx").exists())
            if path.is_file() and not compiled and path.name != "_build_info.py":
                yield path
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        if (CHECKOUT / name).is_file():
            yield CHECKOUT / name


def installed_fastbatch(place, venv):
    """Builds fastbatch from the checkout and installs it in a folder that no later build changes. Returns it."""
    names = [name for name in os.environ if name.startswith("FASTBATCH_") and "CAFFE" not in name]
    files = [(str(path.relative_to(CHECKOUT)), path.read_bytes()) for path in sources()]
    settings = sorted((name, os.environ[name]) for name in names)
    site = place.home / f"fastbatch-{digest(files, venv, settings, INSTALLED_FIRST.read_bytes())}"
    if place.outside(site).exists():
        os.utime(place.outside(site))
        return site
    build, log = site.with_suffix(".build"), place.outside(site).with_suffix(".log")
    remove(place.outside(build))
    log.unlink(missing_ok=True)
    for name, content in files:
        copy = place.outside(build / "sources" / name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    pip = [venv / "bin/python", "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command = place.command([*pip, "--target", build / "site", "."], passed_on(), build / "sources")
    if not step("building fastbatch", command, log):
        raise BuildFailed(f"fastbatch could not be built: {see(log)}")
    shutil.copy(INSTALLED_FIRST, place.outside(build / "site/sitecustomize.py"))
    place.outside(build / "site").rename(place.outside(site))
    remove(place.outside(build))
    remove_unused(place.outside(place.home), "fastbatch-*")
    return site


def ready(place, with_fastbatch=True):
    """Sets up what is missing. Returns the environment variables of a command that runs in the place."""
    place.check()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))  # clean up, and no traceback
    with locked(place.folder.with_name(f"{place.folder.name}.lock")):
        place.prepare()
        venv = virtual_environment(place)
        site = installed_fastbatch(place, venv) if with_fastbatch else ""
    # The caffe tool embeds the Python that Caffe was built with, not that of the environment: PYTHONPATH shows it both.
    version = next(place.outside(venv / "lib").glob("python3*")).name
    python_path = [site, venv / "lib" / version / "site-packages", *place.python_path]
    return {
        **passed_on(),
        "PATH": f"{venv}/bin:{place.search_path()}",
        "PYTHONPATH": os.pathsep.join(filter(None, map(str, python_path))),
        "VIRTUAL_ENV": str(venv),
    }


def become(command):
    """Replaces this program by another, so that signals and the exit status are the other's."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and the command would inherit that
    os.execvp(command[0], command)
