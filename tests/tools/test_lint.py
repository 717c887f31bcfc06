"""tools/lint: what it runs and prints, and that git's hooks run the same."""

import re
import shutil
import subprocess
import sys

import pytest

from tooling import CHECKOUT, ended, environment, lint, program, write

CHECKED = [
    "ruff check --quiet .",
    "ruff format --check --quiet .",
    "clang-format --dry-run --Werror a.h with space.c",
    "cython-lint b.pyx",
    "check-manifest --no-build-isolation --quiet",
]


@pytest.fixture
def checkout(place_of, monkeypatch, tmp_path):
    """A checkout with files of each kind, and linters that find fault with what a test puts into `faulty`."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    place = place_of({})
    for name in ("a.h", "with space.c", "b.pyx", "c.py", "generated.c", "removed.c"):
        write(place.checkout / name, "")
    write(place.checkout / ".gitignore", "generated.c\n")
    for command in (["init", "--quiet"], ["add", "--all"]):
        subprocess.run(["git", *command], cwd=place.checkout, check=True)
    (place.checkout / "removed.c").unlink()
    for name in ("ruff", "clang-format", "cython-lint", "check-manifest"):
        program(
            tmp_path / "venv/bin" / name,
            f'echo "{name} $*" >> "{tmp_path}/calls"; ! grep -qx {name} "{tmp_path}/faulty"',
        )
    monkeypatch.setattr(lint, "Python", lambda executable, requirements: place)
    monkeypatch.setattr(sys, "argv", ["tools/lint"])
    write(tmp_path / "faulty", "")
    return place.checkout


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def test_everything_is_checked(checkout, tmp_path, capfd):
    assert ended(capfd, lint) == (0, "lint: nothing to be mended.\n")
    assert calls(tmp_path) == CHECKED


def test_files_that_git_does_not_know_yet_are_checked_too(checkout, tmp_path):
    write(checkout / "sub/new.pxd", "")
    assert lint.files(checkout, lint.CYTHON) == ["b.pyx", "sub/new.pxd"]


def test_all_that_find_fault_are_named(checkout, tmp_path, capfd):
    write(tmp_path / "faulty", "ruff\ncython-lint\n")
    assert ended(capfd, lint) == (1, "lint: to be mended, see above: ruff check, ruff format, cython-lint.\n")
    assert calls(tmp_path) == CHECKED


def test_fix_mends_and_then_checks(checkout, tmp_path, capfd):
    assert ended(capfd, lint, "--fix") == (0, "lint: nothing to be mended.\n")
    fixes = ["ruff check --fix-only --quiet .", "ruff format --quiet .", "clang-format -i a.h with space.c"]
    assert calls(tmp_path) == fixes + CHECKED


def test_where_the_linters_cannot_be_had(checkout, monkeypatch, capfd):
    def fails(place):
        raise environment.Unavailable("pip could not install requirements-lint.txt")

    monkeypatch.setattr(environment, "virtual_environment", fails)
    assert ended(capfd, lint) == (69, "lint: pip could not install requirements-lint.txt.\n")


def test_gits_hooks_run_the_same_versions():
    pinned = set(re.findall(r"^[\w-]+==[\d.]+$", (CHECKOUT / "tools/requirements-lint.txt").read_text(), re.MULTILINE))
    hooks = (CHECKOUT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"[\w-]+==[\d.]+", hooks)) == pinned and len(pinned) == 4
    programs = {command[0] for command, _ in lint.CHECKS}
    assert set(re.findall(r"entry: (\S+)", hooks)) == programs == {name.partition("==")[0] for name in pinned}
