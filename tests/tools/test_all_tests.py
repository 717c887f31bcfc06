"""tools/test: the Pythons that it finds, and its final table."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tooling import NO_ROOT, TOOLS, environment, program, test_all, write

pytestmark = pytest.mark.once

PASSES = {"tests/test_a.py": "def test_a(): pass"}
FAILS = {"tests/test_a.py": "def test_a(): pass\ndef test_b(): assert 1 == 2"}


NO_DEBIAN = environment.Unavailable("this machine's apt names no mirror")
NEWEST = "Python 3.14, Debian 14", "Python 3.15, Debian 14"
LEFT_OUT = dict.fromkeys(NEWEST, ("left out", "this machine's apt names no mirror."))


def table(monkeypatch, capfd, pythons, caffe, arguments=(), newest=NO_DEBIAN):
    """(exit status, {name: (result, words)}) of tools/test where these are the places, or why they are none."""

    def get(place):
        if isinstance(place, Exception):
            raise place
        return place

    if pythons is not None:
        versions = [((3, 9 + i), None if isinstance(place, str) else i, place) for i, place in enumerate(pythons)]
        monkeypatch.setattr(test_all, "pythons", lambda: versions)
        monkeypatch.setattr(test_all, "Python", lambda i, requirements, optional: get(pythons[i]))
    monkeypatch.setattr(test_all, "choose", lambda: get(caffe))
    monkeypatch.setattr(test_all.newest_root, "NewestRoot", lambda version: get(newest))
    capfd.readouterr()
    status = test_all.main(list(arguments))
    last = capfd.readouterr().out.rpartition("\n\n")[2]
    rows = [re.fullmatch(r"(.{23}) (.{9}) (.*)", line).groups() for line in last.splitlines()]
    return status, {name.strip(): (result.strip(), re.sub(r"\d+ s\b", "N s", words)) for name, result, words in rows}


def test_the_table_says_what_ran_and_what_did_not(place_of, monkeypatch, capfd):
    status, rows = table(monkeypatch, capfd, [place_of(PASSES), "not on this machine"], NO_ROOT)
    assert status == 0 and rows == {
        "Python 3.9": ("ok", "1 passed, 0 failed, 0 skipped, N s"),
        "Python 3.10": ("not run", "not on this machine."),
        **LEFT_OUT,
        "real Caffe": ("left out", "entering a root takes the rights of root."),
    }


def test_a_failure_anywhere_is_the_exit_status(place_of, monkeypatch, capfd):
    broken = environment.BuildFailed("fastbatch could not be built: see the log")
    offline = environment.Unavailable("pip could not install requirements-test.txt")
    status, rows = table(monkeypatch, capfd, [place_of(FAILS), broken, offline], place_of(PASSES, beside_caffe=True))
    assert status == 1 and rows == {
        "Python 3.9": ("FAILED", "1 passed, 1 failed, 0 skipped, N s"),
        "Python 3.10": ("FAILED", "fastbatch could not be built: see the log."),
        "Python 3.11": ("left out", "pip could not install requirements-test.txt."),
        **LEFT_OUT,
        "real Caffe": ("ok", "1 passed, 0 failed, 0 skipped, N s"),
    }


def test_nothing_that_ran_is_a_failure(monkeypatch, capfd):
    status, rows = table(monkeypatch, capfd, ["not on this machine"], NO_ROOT)
    assert status == 1 and [result for result, _ in rows.values()] == ["not run"] + 3 * ["left out"]


def test_newest_pythons_of_this_machine_are_run_beside_debians(place_of, monkeypatch, capfd):
    """Where it has them. Where it has not, there is one row for each, not two."""
    versions = [((3, 14), 0, ""), ((3, 15), None, "not on this machine")]
    place = place_of(PASSES)
    monkeypatch.setattr(test_all, "pythons", lambda: versions)
    monkeypatch.setattr(test_all, "Python", lambda i, requirements, optional: place)
    status, rows = table(monkeypatch, capfd, None, NO_ROOT, newest=place)
    assert status == 0 and list(rows) == ["Python 3.14", *NEWEST, "real Caffe"]
    assert {rows[name][0] for name in ("Python 3.14", *NEWEST)} == {"ok"}


def test_an_error_outside_the_tests_counts_as_failed(place_of, monkeypatch, capfd):
    """A file that cannot be imported; and a pytest that dies without a report."""
    dying = {"tests/test_a.py": "import os, signal\ndef test_a(): os.kill(os.getpid(), signal.SIGKILL)"}
    places = [place_of({**PASSES, "tests/test_b.py": "1 / 0"}), place_of(dying)]
    status, rows = table(monkeypatch, capfd, places, NO_ROOT)
    assert status == 1
    assert rows["Python 3.9"] == ("FAILED", "0 passed, 1 failed, 0 skipped, N s")
    assert rows["Python 3.10"] == ("FAILED", "0 passed, 0 failed, 0 skipped, N s")


# Whole files, or single tests: in the root they are skipped when Caffe is broken, and on the host always.
LACKS_CAFFE = [
    {"tests/layers/test_b.py": "pytest.importorskip('caffe._no_such_part')\ndef test_b(): pass"},
    {"tests/test_b.py": "@pytest.mark.skipif(True, reason='needs the real Caffe')\ndef test_b(): pass"},
    {"tests/test_b.py": "@pytest.fixture\ndef f(): pytest.importorskip('caffe._no_such_part')\ndef test_b(f): pass"},
]


@pytest.mark.parametrize("tests", LACKS_CAFFE, ids=["file", "test", "fixture"])
def test_a_skip_for_lack_of_caffe_is_a_failure_where_caffe_is(place_of, monkeypatch, capfd, tests):
    tests = {**PASSES, **tests}
    status, rows = table(monkeypatch, capfd, [place_of(tests)], place_of(tests, beside_caffe=True))
    words = "1 passed, 0 failed, 1 skipped, N s"
    assert status == 1 and rows == {
        "Python 3.9": ("ok", words),
        **LEFT_OUT,
        "real Caffe": ("FAILED", f"{words}; some were skipped for lack of Caffe, which is there"),
    }


def test_other_skips_are_none_of_that(place_of, monkeypatch, capfd):
    """Also in a folder that is called caffe."""
    other = {
        "tests/layers/test_b.py": "pytest.importorskip('no_such_package')",
        "tests/layers/test_c.py": "@pytest.mark.skip(reason='takes four cores')\ndef test_c(): pass",
    }
    status, rows = table(monkeypatch, capfd, [], place_of({**PASSES, **other}, beside_caffe=True))
    assert (status, rows) == (0, {**LEFT_OUT, "real Caffe": ("ok", "1 passed, 0 failed, 2 skipped, N s")})


def test_a_place_where_all_files_are_skipped_has_not_run(place_of, monkeypatch, capfd):
    """As with TEST_ARGS=tests/layers, in a Python without Caffe. That alone is no failure, and no success."""
    place = place_of({**PASSES, **LACKS_CAFFE[0]})
    status, rows = table(monkeypatch, capfd, [place], NO_ROOT, arguments=["tests/layers"])
    assert status == 1 and rows["Python 3.9"] == ("not run", "0 passed, 0 failed, 1 skipped, N s")
    caffe = place_of(PASSES, beside_caffe=True)
    status, rows = table(monkeypatch, capfd, [place], caffe, ["tests", "-k", "no_such"], newest=place)
    assert status == 1 and {result for result, _ in rows.values()} == {"not run"}


def test_shared_tests_are_shared_out(place_of, monkeypatch, tmp_path, capfd):
    """`once`: among the Pythons of this machine. `once_a_system`: also among those of Debian 14, and all with Caffe."""
    place = place_of({})
    variables = "$FASTBATCH_TESTS_ONCE $FASTBATCH_TESTS_ONCE_A_SYSTEM"
    program(tmp_path / "venv/bin/pytest", f'echo "{variables} $*" >> {tmp_path}/calls')
    monkeypatch.setattr(test_all, "Python", lambda executable, requirements, optional: place)
    monkeypatch.setattr(test_all.newest_root, "NewestRoot", lambda version: place)
    monkeypatch.setattr(test_all, "choose", lambda: place)
    place.checkout.mkdir()
    there = [((3, 9), "/3.9", ""), ((3, 10), None, "not on this machine"), ((3, 11), "/3.11", "")]
    for versions, shares in (
        (there, ["0/1 1/1", "0/1 1/2", "0/1 2/2", "1/2 1/2", "2/2 2/2"]),
        ([], ["0/1 1/2", "0/1 2/2", "1/1 1/1"]),
    ):
        monkeypatch.setattr(test_all, "pythons", lambda versions=versions: versions)
        (tmp_path / "calls").write_text("")
        assert test_all.main([]) == 0
        calls = (tmp_path / "calls").read_text().splitlines()
        assert sorted(call[:7] for call in calls) == shares
        assert all(call[7:].startswith(" --timeout 600 --junitxml /tmp/") for call in calls)
        assert all(call.endswith(" -p no:cacheprovider tests") for call in calls)


SHARED = """
import pytest

@pytest.mark.once
@pytest.mark.parametrize("i", range(20))
def test_a(i): pass

@pytest.mark.once_a_system(group="g")
@pytest.mark.parametrize("i", range(20))
def test_b(i): pass

def test_c(): pass
"""


def test_each_shared_test_is_in_one_part(tmp_path):
    for name in "conftest.py", "../pyproject.toml":
        write(tmp_path / "tests" / name, (TOOLS.parent / "tests" / name).read_text())
    write(tmp_path / "tests/test_shared.py", SHARED)

    def tests_of(once, once_a_system):
        shares = {"FASTBATCH_TESTS_ONCE": once, "FASTBATCH_TESTS_ONCE_A_SYSTEM": once_a_system}
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests"],
            cwd=tmp_path,
            env={**os.environ, **shares, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # plugins take time to load
            capture_output=True,
            text=True,
            check=True,
        )
        return Counter(re.findall(r"::test_(\w)", run.stdout))

    parts = [tests_of(f"{number}/2", f"{number}/2") for number in (1, 2)]
    assert sum(parts, Counter()) == {"a": 20, "b": 20, "c": 2}
    assert all(part["a"] > 0 and part["b"] in (0, 20) for part in parts)
    assert tests_of("0/1", "1/1") == {"b": 20, "c": 1}
    assert tests_of("", "") == {"a": 20, "b": 20, "c": 1}


@pytest.mark.parametrize("pyenv", ["home/.pyenv", "elsewhere"])
def test_pythons_are_those_that_can_be_used(monkeypatch, tmp_path, pyenv):
    own = sys.version_info[:2]
    minors = [minor for _, minor in test_all.VERSIONS if (3, minor) != own]
    usable, wrapper, bare, *none = [minor for minor in minors if not Path(f"/usr/bin/python3.{minor}").exists()]
    program(tmp_path / f"bin/python3.{usable}", f"printf '3\\n{usable}\\n/behind/the/wrapper\\n\\n'")
    program(tmp_path / f"bin/python3.{wrapper}", "echo no such version >&2; exit 127")
    for minor, name in ((usable, "later"), (bare, "bare")):
        answer = f"printf '3\\n{minor}\\n/{name}\\nensurepip and Python.h\\n'"
        program(tmp_path / f"{pyenv}/versions/{name}/bin/python3.{minor}", answer)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if pyenv == "elsewhere":
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path / pyenv))
    else:
        monkeypatch.delenv("PYENV_ROOT", raising=False)
    found = {version: (executable, reason) for version, executable, reason in test_all.pythons()}
    assert list(found) == test_all.VERSIONS
    assert found[3, usable][0] == "/behind/the/wrapper"
    assert found[3, wrapper] == (None, "not on this machine")
    assert found[3, bare] == (None, "/bare has no ensurepip and Python.h")
    assert all(found[3, minor] == (None, "not on this machine") for minor in none)
    if own in found:
        executable, reason = found[own]
        assert " has no " in reason if executable is None else os.path.samefile(executable, sys.executable)


def test_one_python_has_torch(monkeypatch, capfd):
    made = {}

    def python(executable, requirements, optional):
        made[executable] = (requirements, optional)
        raise environment.Unavailable("no")

    versions = [((3, minor), minor, "") for minor in (9, 11, 13)]
    monkeypatch.setattr(test_all, "pythons", lambda: versions)
    monkeypatch.setattr(test_all, "Python", python)
    table(monkeypatch, capfd, None, NO_ROOT)
    assert made == {
        9: (["requirements-test.txt"], []),
        11: (["requirements-test.txt"], ["requirements-torch.txt"]),
        13: (["requirements-test.txt"], []),
    }


def test_what_is_optional_and_cannot_be_installed_is_left_out(monkeypatch, tmp_path, capfd):
    """Every run says so, and only the first one tries."""
    pip = "case $* in *requirements-torch.txt) echo no torch here; exit 1;; esac"
    makes = f'mkdir -p "$3/bin" && echo \'#!/bin/sh\n{pip}\' > "$3/bin/python" && chmod +x "$3/bin/python"'
    python = program(tmp_path / "python", makes)
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")
    for said in "no torch here", "":
        place = environment.Python(str(python), ["requirements-test.txt"], optional=["requirements-torch.txt"])
        venv = environment.virtual_environment(place)
        assert place.left_out == ["requirements-torch.txt"]
        words = capfd.readouterr().err
        assert ("no torch here" in words) == bool(said)
        assert f"without requirements-torch.txt, which pip could not install; to try again, remove {venv}\n" in words


def test_the_table_says_what_was_left_out(place_of, monkeypatch, capfd):
    place = place_of(PASSES)
    place.left_out = ["requirements-torch.txt"]
    status, rows = table(monkeypatch, capfd, [place], NO_ROOT)
    words = "1 passed, 0 failed, 0 skipped, N s; without requirements-torch.txt, which pip could not install"
    assert status == 0 and rows["Python 3.9"] == ("ok", words)
