"""Whether fastbatch can be built on this machine, and its C compiler, for short programs."""

import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

NO_COMPILER = """\
fastbatch is compiled from C, and no working C compiler was found: gcc 9 or newer, or clang.
  tried:  {command}
  error:  {error}
  Debian, Ubuntu:  apt-get install gcc libc6-dev python3-dev
  Fedora:          dnf install gcc glibc-devel python3-devel
  conda:           conda install -c conda-forge c-compiler
To use another compiler, set CC."""

NO_PYTHON_H = """\
fastbatch is compiled from C; the C compiler works, but the headers of Python {version} were not found.
  tried:  {command}
  error:  {error}
  Debian, Ubuntu:  apt-get install python3-dev    (python{version}-dev if python3 is another version)
  Fedora:          dnf install python3-devel
  Looked for Python.h in {where}, for {executable}."""

OLD_CYTHON = """\
fastbatch is translated to C by Cython 3.3, and the build found Cython {version}, in {where}.
  pip installs the right one for the build, but an old pip lets that of the system stand before it.
  Try:  python -m pip install --upgrade pip
  and then again what you did. (Without pip's build isolation:  pip install "Cython>=3.3,<3.4")"""

# What the core needs from the compiler and the C library: nothing newer than gcc 9 and glibc 2.28. The newest feature
# is the builtin with which native/pixels/transform.c converts pixels to floats.
COMPILER_PROBE = """\
#include <pthread.h>
#include <stdint.h>
typedef float float4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
float4 floats(int4 pixels) { return __builtin_convertvector(pixels, float4); }
static int *nothing(int *p) { return p; }
int probe(void) { pthread_mutex_t lock; int i = pthread_mutex_init(&lock, 0); return *nothing(&i); }
"""
PYTHON_PROBE = """\
#include <Python.h>
PyObject *probe(void) { return 0; }
"""


def unsupported(system=None, machine=None, bits=None, libc=None, implementation=None):
    """Return the sentence that says why fastbatch cannot be built here, or None. The arguments are for tests."""
    system = system or sys.platform
    machine = machine or platform.machine()
    bits = bits or (64 if sys.maxsize > 2**32 else 32)
    implementation = implementation or sys.implementation.name
    if libc is None and system.startswith("linux"):
        libc = _libc()
    if (
        system.startswith("linux")
        and machine in ("x86_64", "aarch64")
        and bits == 64
        and libc.startswith("glibc")
        and implementation == "cpython"
    ):
        return None
    here = f"{implementation}, {bits} bits, {system} on {machine}" + (f" with {libc}" if libc else "")
    return f"fastbatch runs under CPython on 64-bit Linux with glibc, on x86-64 and arm64; this is {here}."


def check_cython(version, where):
    """Exit with one clear message if this is not the Cython that pyproject.toml asks for."""
    if tuple(version.split(".")[:2]) != ("3", "3"):
        raise SystemExit(OLD_CYTHON.format(version=version, where=where))


def _libc():
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or "another C library than glibc"
    except (OSError, ValueError):  # musl does not know the name
        return "another C library than glibc"


class Compiler:
    """Runs the commands with which setuptools compiles and links extensions, and captures their output.

    Parameters
    ----------
    compile, link : list of str
        `compiler_so` and `linker_so` of setuptools' compiler, which include CC, CFLAGS and LDFLAGS.
    """

    def __init__(self, compile, link):
        self.compile = list(compile)
        self.link = list(link)

    def failure(self, program, compile_args=(), link_args=None):
        """Compile `program`; link it unless `link_args` is None. Return None, or (command, error) of what failed."""
        with tempfile.TemporaryDirectory() as directory:
            source, compiled = Path(directory, "probe.c"), Path(directory, "probe.o")
            source.write_text(program, encoding="utf-8")
            failure = _failure([*self.compile, *compile_args, "-c", str(source), "-o", str(compiled)])
            if failure or link_args is None:
                return failure
            # A shared object may have undefined symbols; -z defs makes the linker look each of them up.
            return _failure(
                [*self.link, str(compiled), "-o", str(Path(directory, "probe.so")), *link_args, "-Wl,-z,defs"]
            )

    def expand(self, header, expression, compile_args=()):
        """Return what the preprocessor makes of `expression` after `#include <header>`, without spaces."""
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "probe.c")
            source.write_text(f"#include <{header}>\n{expression}\n", encoding="utf-8")
            text = _run([*self.compile, *compile_args, "-E", "-P", str(source)]).stdout
        return "".join(text.strip().splitlines()[-1].split())

    def read(self, header, compile_args=()):
        """Return the text of `header` itself, which may be one of C++; "" if it is not found."""
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "probe.c")
            source.write_text(f"#include <{header}>\n", encoding="utf-8")
            # Lists the files that it would read. With -MG, missing headers of C++ are not an error.
            words = _run([*self.compile, *compile_args, "-M", "-MG", str(source)]).stdout.split()
        paths = [word for word in words if word.endswith(f"/{header}")]
        return Path(paths[0]).read_text(encoding="utf-8", errors="replace") if paths else ""

    def version(self):
        """Return the name and the version of the compiler. What runs it, such as ccache, may answer for itself only."""
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "probe.c")
            source.write_text("__clang__ __VERSION__\n", encoding="utf-8")
            words = _run([*self.compile, "-E", "-P", str(source)]).stdout.strip()
        clang, _, version = words.partition(" ")
        return ("gcc " if clang == "__clang__" else "") + version.strip('" ')

    def check(self, flags):
        """Exit with one clear message if C cannot be compiled and linked here, or Python.h is missing."""
        failure = self.failure(COMPILER_PROBE, flags, ["-pthread"])
        if failure:
            raise SystemExit(NO_COMPILER.format(command=failure[0], error=failure[1]))
        paths = sysconfig.get_paths()
        where = list(dict.fromkeys([paths["include"], paths["platinclude"]]))
        failure = self.failure(PYTHON_PROBE, [*flags, *(f"-I{path}" for path in where)])
        if failure:
            raise SystemExit(
                NO_PYTHON_H.format(
                    version="{}.{}".format(*sys.version_info),
                    command=failure[0],
                    error=failure[1],
                    where=" or ".join(where),
                    executable=sys.executable,
                )
            )


def _run(command):
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )


def _failure(command):
    """Run `command`; return None on success, else the command and the line of its output that says why not."""
    try:
        result = _run(command)
    except OSError as error:
        return " ".join(command), str(error)
    if result.returncode == 0:
        return None
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or [f"exit code {result.returncode}"]
    errors = [line for line in lines if any(text in line for text in ("undefined reference", "cannot find", " error:"))]
    return " ".join(command), (errors or lines)[0]
