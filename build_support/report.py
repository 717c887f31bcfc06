"""The framed report at the end of a build, and the module that keeps it with the package."""

from pprint import pformat


def report(version, python, compiler, mode, findings):
    """Return the report as text: the versions, and a line for the core and each optional library."""
    rows = [("core", "yes", "", "")]
    for found in findings:
        rows.append((found.library.name, "yes" if found.version else "NO", found.version or "", found.how))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"fastbatch {version}, built for Python {python} with {compiler}{mode and ', ' + mode}"]
    for row in rows:
        lines.append("  " + "  ".join([cell.ljust(width) for cell, width in zip(row, widths)] + [row[3]]).rstrip())
    missing = {}
    for found in findings:
        if not found.version:
            missing.setdefault(found.missing.install, []).append(found.library.title)
    for install, titles in missing.items():
        lines.append(f"To have {' and '.join(titles)}, install this and build again:")
        lines += [f"  {line}" for line in install]
    rule = "-" * min(100, max(map(len, lines)))
    return "\n".join([rule, *lines, rule])


def build_info(version, python, compiler, mode, findings):
    """Return the source of fastbatch/_build_info.py."""
    libraries = {
        found.library.name: {
            "title": found.library.title,
            "extension": found.library.extension,
            "version": found.version,
            "how": found.how,
            "missing": found.missing.title,
            "install": "; ".join(found.missing.install),
        }
        for found in findings
    }
    text = report(version, python, compiler, mode, findings)
    return "\n".join(
        [
            '"""What fastbatch was built with. Written by the build; not part of the source."""',
            "",
            "from typing import Optional, TypedDict",
            "",
            "",
            "class Library(TypedDict):",
            "    title: str",
            "    extension: str",
            "    version: Optional[str]",
            "    how: str",
            "    missing: str  # what to install where this one is not used",
            "    install: str",
            "",
            "",
            f"VERSION = {version!r}",
            f"MODE = {mode!r}  # empty in an ordinary build",
            f"LIBRARIES: dict[str, Library] = {pformat(libraries, width=120, sort_dicts=False)}",
            f"REPORT = {pformat(text, width=120)}",
            "",
        ]
    )
