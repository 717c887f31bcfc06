"""tools/caffe-env on machines where Caffe cannot be had."""

import os
import re
import subprocess
import sys

import pytest

from tooling import TOOLS, caffe_env, caffe_root, debian_root, ended, machine, program, write


@pytest.fixture
def as_caffe_env(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/caffe-env"])


@pytest.mark.parametrize("arguments", [["setup"], ["shell"], ["run", "true"], ["run", "--", "true"]])
def test_an_ordinary_user_is_told_what_it_takes(monkeypatch, able, as_caffe_env, capfd, arguments):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = "caffe-env: entering a root takes the rights of root: run it with sudo, or use the Dockerfile.\n"
    assert ended(capfd, caffe_env, *arguments) == (69, said)
    assert not able.root.parent.exists()


def test_where_nothing_can_be_mounted(monkeypatch, able, as_caffe_env, capfd):
    monkeypatch.setattr(debian_root, "own_mounts", lambda: None)
    status, said = ended(capfd, caffe_env, "setup")
    assert status == 69 and said.startswith("caffe-env: this machine does not let root mount anything (a container ")
    assert said.endswith("give it that right, or use the Dockerfile.\n")


def test_where_the_system_is_another(monkeypatch, able, as_caffe_env, capfd):
    monkeypatch.setattr(debian_root.platform, "system", lambda: "Darwin")
    said = "caffe-env: a root with Debian 11 needs Linux: run it there, or use the Dockerfile.\n"
    assert ended(capfd, caffe_env, "setup") == (69, said)


def test_where_debootstrap_is_missing(monkeypatch, able, as_caffe_env, capfd):
    monkeypatch.setattr(machine, "PATH", "/nonexistent")
    said = "caffe-env: debootstrap is missing: install it (tools/bootstrap does).\n"
    assert ended(capfd, caffe_env, "run", "true") == (69, said)
    assert able.beside_root() == []


def test_where_debians_keys_are_missing(able, as_caffe_env, capfd):
    able.keyring.unlink()
    package = "install the package debian-archive-keyring (tools/bootstrap does)"
    assert ended(capfd, caffe_env, "run", "true") == (69, f"caffe-env: {able.keyring} is missing: {package}.\n")


def test_where_the_mirror_has_no_debian_11(monkeypatch, able, as_caffe_env, capfd):
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", f"{able.mirror}-moved")
    status, said = ended(capfd, caffe_env, "run", "true")
    assert status == 69
    assert said.startswith(f"caffe-env: Debian 11 was not found: {able.mirror}-moved has no bullseye (404).")


def test_where_the_cache_cannot_be_written(monkeypatch, able, as_caffe_env, tmp_path, capfd):
    monkeypatch.setenv("FASTBATCH_CAFFE_ROOT", str(write(tmp_path / "a file", "") / "cache/root"))
    status, said = ended(capfd, caffe_env, "run", "true")
    assert status == 69 and said.startswith("caffe-env: the cache cannot be written ([Errno 20] Not a directory: ")
    assert said.endswith(": set XDG_CACHE_HOME to a folder that you may write to.\n")


def test_where_the_current_python_has_no_caffe(monkeypatch, as_caffe_env, tmp_path, capfd):
    bare = program(tmp_path / "python", f'exec "{sys.executable}" -I -S "$@"')  # with the standard library only
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.setenv("FASTBATCH_CAFFE", "current")
    status, said = ended(capfd, caffe_env, "run", "true")
    reason = f"{bare} cannot use Caffe: ModuleNotFoundError: No module named 'caffe'."  # Python 3.15 goes on
    assert status == 69 and said.startswith(f"caffe-env: FASTBATCH_CAFFE is current, but {reason}")
    monkeypatch.delenv("FASTBATCH_CAFFE")
    assert isinstance(caffe_root.choose(), caffe_root.CaffeRoot)
    monkeypatch.setenv("FASTBATCH_CAFFE", "elsewhere")
    said = "caffe-env: FASTBATCH_CAFFE is 'elsewhere', and can be root or current.\n"
    assert ended(capfd, caffe_env, "path") == (69, said)


@pytest.mark.parametrize(
    "arguments, status",
    [([], 2), (["run"], 2), (["run", "--"], 2), (["setup", "now"], 2), (["other"], 2), (["--help"], 0)],
)
def test_wrong_words_get_the_usage(capfd, arguments, status):
    assert ended(capfd, caffe_env, *arguments) == (status, caffe_env.__doc__.strip() + "\n")


def test_the_program_itself(able):
    """As a program, not as a module: the root's folder, the usage, and the exit status where Caffe cannot be had."""
    command = [sys.executable, str(TOOLS / "caffe-env")]
    environ = {**os.environ, **able.variables()}
    path = subprocess.run([*command, "path"], env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert path == f"{able.root}\n"
    refused = subprocess.run([*command, "fetch"], env=environ, capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "") and "tools/caffe-env run" in refused.stderr
    environ["FASTBATCH_CAFFE_ROOT"] = str(able.keyring / "root")  # below a file: not even root can make that
    unavailable = subprocess.run([*command, "run", "true"], env=environ, capture_output=True, text=True)
    assert unavailable.returncode == 69 and re.fullmatch(r"caffe-env: .*\.\n", unavailable.stderr)
