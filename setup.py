"""Builds fastbatch's extensions.

pyproject.toml describes the package; build_support/ examines the machine.

Settings, as environment variables:

FASTBATCH_LMDB=0|1|/prefix     leave LMDB out; fail without it; take it from there (each library in
                               build_support/libraries.py has such a setting)
FASTBATCH_DEBUG=1              C assertions on, Cython code can be traced and its coverage measured, annotated HTML
FASTBATCH_SANITIZE=LIST        of address, undefined, thread: instrumented C for the sanitizers of gcc and clang;
                               fuzzer-no-link (clang): with coverage, for tools/fuzz
"""

import copy
import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
import Cython  # after setuptools, which replaces distutils
from Cython.Build import cythonize

sys.path.insert(0, str(Path(__file__).resolve().parent))  # pip does not add it
from build_support.extensions import extensions
from build_support.libraries import find_all
from build_support.mode import COMPILE, Mode
from build_support.report import build_info, report
from build_support.toolchain import Compiler, check_cython, unsupported


HEADERS = sorted(path.as_posix() for path in Path("fastbatch").rglob("*.h"))


class BuildExtensions(build_ext):
    """Compiles the extensions whose libraries are here, reports them, and writes _build_info.py beside them."""

    def run(self):
        self.left_out = []
        sentence = unsupported()
        if sentence:
            raise SystemExit(sentence)
        check_cython(Cython.__version__, os.path.dirname(Cython.__file__))
        self.parallel = self.parallel or len(os.sched_getaffinity(0))
        super().run()

    def build_extensions(self):
        mode = Mode(os.environ)
        compiler = Compiler(self.compiler.compiler_so, self.compiler.linker_so)
        compiler.check(COMPILE)
        findings = find_all(compiler)
        self.keep_only(findings)

        translated = cythonize(  # a list of copies
            self.extensions,
            build_dir="build/cython-debug" if mode.debug else "build/cython",  # never C beside the .pyx
            compiler_directives=mode.directives,
            annotate=mode.debug,
        )
        c_sources = {each.name: each.sources for each in translated}
        for each in self.extensions:
            each.sources = c_sources[each.name]
            each.extra_compile_args += mode.compile_args
            each.extra_link_args += mode.link_args
            each.define_macros += mode.macros
        super().build_extensions()

        facts = (self.distribution.get_version(), sys.version.split()[0], compiler.version(), mode.name, findings)
        Path(self.info_path).write_text(build_info(*facts), encoding="utf-8")
        print(report(*facts), file=sys.stderr, flush=True)

    def keep_only(self, findings):
        """Add the libraries' flags; drop extensions without libraries, and their files from an earlier build."""
        by_name = {each.name: each for each in self.extensions}
        for found in findings:
            each = by_name[found.library.extension]
            each.extra_compile_args += found.compile_args
            each.extra_link_args += found.link_args
            if found.version and found.library.macro:
                each.define_macros.append((found.library.macro, "1"))
            if not found.version and not found.library.macro and each in self.extensions:
                self.extensions.remove(each)
                self.left_out.append(each.name)
                Path(self.get_ext_fullpath(each.name)).unlink(missing_ok=True)

    def build_extension(self, ext):
        # setuptools compares only times, but changed flags also require compiling again.
        settings = repr(
            (
                self.compiler.compiler_so,
                self.compiler.linker_so,
                ext.extra_compile_args,
                ext.extra_link_args,
                ext.define_macros,
                ext.sources,
            )
        )
        stamp = Path(self.build_temp, f"{ext.name}.settings")
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != settings:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        # A folder of objects for each: extensions that share a C file are compiled at the same time.
        each = copy.copy(self)
        each.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(each, ext)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(settings, encoding="utf-8")

    @property
    def info_path(self):
        return os.path.join(self.build_lib, "fastbatch", "_build_info.py")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        for name in self.left_out:
            Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
        self.copy_file(self.info_path, os.path.join("fastbatch", "_build_info.py"))

    def get_outputs(self):
        return [*super().get_outputs(), self.info_path]


setup(ext_modules=extensions(HEADERS), cmdclass={"build_ext": BuildExtensions})
