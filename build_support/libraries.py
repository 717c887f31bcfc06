"""The optional C libraries, one row each in LIBRARIES, and the search for them.

To add a library, add a row. The search uses the first of these places with which a short program compiles and links:

1. The prefix in the environment: FASTBATCH_LMDB=/prefix (=0 leaves LMDB out, =1 makes the build fail without it).
2. The place that pkg-config reports.
3. The compiler's default paths.
4. The place where a distribution hides the library, from the library's row.
"""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple


class Library(NamedTuple):
    name: str  # as in features(); FASTBATCH_<NAME> is its setting
    title: str  # as its authors write it
    extension: str  # the module that is built with it; a module that needs several libraries is in several rows
    pkg_config: "tuple[str, ...]"  # its names there, which differ between distributions
    header: str
    call: str  # an expression that calls the library, to test linking
    link: str  # for the linker, if pkg-config does not know the library
    version: str  # an expression that the preprocessor turns into the version
    install: "tuple[str, ...]"  # the package to install, by distribution
    version_header: str = ""  # a header of C++ whose constants `version` names, where the preprocessor knows none
    hidden: "tuple[str, ...]" = ()  # a folder of headers where only pkg-config looks, and what to link with then
    macro: str = ""  # of a library that its extension can do without: the macro that is defined where it is found


LIBRARIES = (
    Library(
        name="lmdb",
        title="LMDB",
        extension="fastbatch.sources._lmdb",
        pkg_config=("lmdb",),
        header="lmdb.h",
        call="mdb_strerror(0) != 0",
        link="-llmdb",
        version="MDB_VERSION_MAJOR.MDB_VERSION_MINOR.MDB_VERSION_PATCH",
        install=(
            "Debian, Ubuntu: apt-get install liblmdb-dev",
            "Fedora: dnf install lmdb-devel",
            "Arch: pacman -S lmdb",
            "conda: conda install -c conda-forge lmdb",
        ),
    ),
    Library(
        name="leveldb",
        title="LevelDB",
        extension="fastbatch.sources._leveldb",
        pkg_config=("leveldb",),
        header="leveldb/c.h",
        call="leveldb_major_version()",
        link="-lleveldb",
        version="kMajorVersion.kMinorVersion",
        version_header="leveldb/db.h",
        install=(
            "Debian, Ubuntu: apt-get install libleveldb-dev",
            "Fedora: dnf install leveldb-devel",
            "Arch: pacman -S leveldb",
            "conda: conda install -c conda-forge leveldb",
        ),
    ),
    Library(
        name="jpeg",
        title="libjpeg-turbo",
        extension="fastbatch.images._codec",
        pkg_config=("libjpeg",),
        header="jpeglib.h",
        call="(int)jpeg_skip_scanlines(0, 0) + (jpeg_crop_scanline(0, 0, 0), 0)",  # since 1.5; not in other libjpegs
        link="-ljpeg",
        version="LIBJPEG_TURBO_VERSION",
        install=(
            "Debian, Ubuntu: apt-get install libjpeg-dev",
            "Fedora: dnf install libjpeg-turbo-devel",
            "Arch: pacman -S libjpeg-turbo",
            "conda: conda install -c conda-forge libjpeg-turbo",
        ),
    ),
    Library(
        name="png",
        title="libpng",
        extension="fastbatch.images._codec",
        pkg_config=("libpng",),
        header="png.h",
        call="(int)png_access_version_number()",
        link="-lpng",
        version="PNG_LIBPNG_VER_MAJOR.PNG_LIBPNG_VER_MINOR.PNG_LIBPNG_VER_RELEASE",
        install=(
            "Debian, Ubuntu: apt-get install libpng-dev",
            "Fedora: dnf install libpng-devel",
            "Arch: pacman -S libpng",
            "conda: conda install -c conda-forge libpng",
        ),
    ),
    Library(
        name="deflate",
        title="libdeflate",
        extension="fastbatch.images._codec",
        pkg_config=("libdeflate",),
        header="libdeflate.h",
        call="libdeflate_crc32(0, 0, 0) != 0",
        link="-ldeflate",
        version="LIBDEFLATE_VERSION_MAJOR.LIBDEFLATE_VERSION_MINOR",
        macro="FB_LIBDEFLATE",
        install=(
            "Debian, Ubuntu: apt-get install libdeflate-dev",
            "Fedora: dnf install libdeflate-devel",
            "Arch: pacman -S libdeflate",
            "conda: conda install -c conda-forge libdeflate",
        ),
    ),
    Library(
        name="hdf5",
        title="HDF5",
        extension="fastbatch.sources._hdf5",
        pkg_config=("hdf5-serial", "hdf5"),
        header="hdf5.h",
        call="(int)H5is_library_threadsafe(0)",  # since 1.8.16
        link="-lhdf5",
        version="H5_VERS_MAJOR.H5_VERS_MINOR.H5_VERS_RELEASE",
        hidden=(
            "/usr/include/hdf5/serial",
            "-lhdf5_serial",
        ),  # Debian's, which has others for MPI; pkg-config may be missing
        install=(
            "Debian, Ubuntu: apt-get install libhdf5-dev",
            "Fedora: dnf install hdf5-devel",
            "Arch: pacman -S hdf5",
            "conda: conda install -c conda-forge hdf5",
        ),
    ),
)


class Finding(NamedTuple):
    """The result of the search for one library. `version` is None if it will not be used."""

    library: Library
    version: "str | None"
    how: str  # how it was found, or why it is not used
    compile_args: "tuple[str, ...]" = ()
    link_args: "tuple[str, ...]" = ()
    other: "Library | None" = None  # the missing library because of which it is not used

    @property
    def missing(self):
        """The library to install if this one is not used."""
        return self.other or self.library


def find_all(compiler, environ=os.environ, libraries=LIBRARIES):
    """Look for all libraries. One whose only extension lacks another library counts as not found."""
    findings = [find(library, compiler, environ) for library in libraries]
    missing = {
        found.library.extension: found.library for found in findings if not found.version and not found.library.macro
    }
    for number, found in enumerate(findings):
        other = missing.get(found.library.extension)
        if found.version and other:
            if environ.get(_variable(found.library), "") not in ("", "0"):
                raise SystemExit(
                    f"{_variable(found.library)} asks for {found.library.title}, but {found.library.extension} needs "
                    f"{other.title} as well, which was not found.\n  " + "\n  ".join(other.install)
                )
            how = f"found, but of no use without {other.title}"
            findings[number] = Finding(found.library, None, how, other=other)
    return findings


def _variable(library):
    return f"FASTBATCH_{library.name.upper()}"


def find(library, compiler, environ=os.environ):
    """Look for `library` with `compiler` (a toolchain.Compiler). Exits if it was requested and is missing."""
    variable = _variable(library)
    setting = environ.get(variable, "")
    if setting == "0":
        return Finding(library, None, f"left out: {variable}=0")
    header = Path(setting, "include", library.header)
    if setting not in ("", "1") and not header.is_file():
        raise SystemExit(
            f"{variable} is {setting!r}. It can be 0 (build without {library.title}), 1 (fail without it), or the "
            f"directory that {library.title} is installed in; and there is no {header}."
        )
    places = [_prefix(Path(setting), library)] if setting not in ("", "1") else _usual_places(library, environ)
    program = f"#include <stdio.h>\n#include <{library.header}>\nint probe(void) {{ return {library.call}; }}\n"
    for how, compile_args, link_args in places:
        failure = compiler.failure(program, compile_args, link_args)
        if failure is None:
            version = version_of(library, compiler, compile_args)
            return Finding(library, version, how, tuple(compile_args), tuple(link_args))
    command, error = failure
    if setting:
        raise SystemExit(
            f"{variable}={setting} asks for {library.title}, which was not found.\n"
            f"  tried:  {command}\n  error:  {error}\n  " + "\n  ".join(library.install)
        )
    return Finding(library, None, f"not found: {error}")


def version_of(library, compiler, compile_args):
    """The version that a library's headers state, with a question mark for each part that they lack."""
    version = compiler.expand(library.header, library.version, compile_args)
    if library.version_header:
        text = compiler.read(library.version_header, compile_args)
        version = re.sub(r"\w+", lambda name: re.search(rf"\b{name[0]} = (\d+);|$", text)[1] or "?", version)
    return version


def _usual_places(library, environ):
    places = [(how, *flags) for how, flags in _pkg_config(library, environ)]
    places.append(("found by the compiler", [], [library.link]))
    if library.hidden and Path(library.hidden[0], library.header).is_file():
        folder, link = library.hidden
        places.append((f"found in {folder}", [f"-I{folder}"], [link]))
    return places


def _pkg_config(library, environ):
    """(how, (compile_args, link_args)) for each of the library's names that pkg-config knows."""
    for name in library.pkg_config:
        command = [*shlex.split(environ.get("PKG_CONFIG", "pkg-config")), "--cflags", "--libs", name]
        try:
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return
        if result.returncode == 0:
            flags = shlex.split(result.stdout)
            link_args = [flag for flag in flags if flag.startswith(("-l", "-L", "-Wl,"))]
            # The directory that it is linked from must also be searched when it is loaded.
            link_args += [f"-Wl,-rpath,{flag[2:]}" for flag in flags if flag.startswith("-L")]
            yield "pkg-config", ([flag for flag in flags if flag.startswith(("-I", "-D"))], link_args)


def _prefix(prefix, library):
    directories = [prefix.resolve() / name for name in ("lib", "lib64") if (prefix / name).is_dir()]
    link_args = [argument for path in directories for argument in (f"-L{path}", f"-Wl,-rpath,{path}")]
    return str(prefix), [f"-I{prefix.resolve() / 'include'}"], [*link_args, library.link]
