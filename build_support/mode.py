"""How the extensions are compiled: flags for the C compiler, directives for Cython."""

# No fused multiply-add where Caffe has none: it would change bits. Hidden symbols: extensions may share C files.
COMPILE = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
LINK = ["-pthread"]
DIRECTIVES = {
    "language_level": 3,
    "binding": True,
    "auto_pickle": False,  # objects with threads and locks inside cannot be pickled
    "autotestdict": False,
    # As in C. Python's rule for negative numbers and its ZeroDivisionError would make workers take the GIL.
    "cdivision": True,
    "show_performance_hints": True,
}
SANITIZERS = ("address", "undefined", "thread", "fuzzer-no-link")  # the last is clang's: coverage for tools/fuzz


class Mode:
    """The flags and directives that FASTBATCH_DEBUG and FASTBATCH_SANITIZE in `environ` request."""

    def __init__(self, environ):
        self.debug = environ.get("FASTBATCH_DEBUG", "0") not in ("", "0")
        self.sanitizers = [name.strip() for name in environ.get("FASTBATCH_SANITIZE", "").split(",") if name.strip()]
        unknown = sorted(set(self.sanitizers) - set(SANITIZERS))
        if unknown:
            raise SystemExit(f"FASTBATCH_SANITIZE names {', '.join(unknown)}; it can name {', '.join(SANITIZERS)}.")
        self.name = " and ".join(["debug"] * self.debug + [f"sanitizer {name}" for name in self.sanitizers])
        self.compile_args, self.link_args, self.macros = list(COMPILE), list(LINK), []
        self.directives = dict(DIRECTIVES)
        if self.debug:
            self.compile_args += ["-O1", "-g", "-UNDEBUG"]
            self.directives["linetrace"] = True
            # Workers take the GIL for each line that they report, so promises about a held GIL do not apply.
            # With sys.monitoring (Python 3.13), Cython's coverage plugin sees no .pyx file.
            self.macros = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
        if self.sanitizers:
            # As arguments of each extension, after -O3: CFLAGS come before it, and do not reach every command.
            flags = ["-fsanitize=" + ",".join(self.sanitizers)]
            self.compile_args += [*flags, "-O1", "-g", "-fno-omit-frame-pointer"]
            self.link_args += flags
