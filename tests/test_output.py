"""How the command line writes files: an overwritten file keeps its owner, mode, links and other attributes."""

import os
import stat
import subprocess
import sys

import pytest

from fastbatch.cli import _output

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file another owner")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(b"the old one, and long")
    return path


def left_in(folder):
    return sorted(os.listdir(folder))


def test_a_new_file(tmp_path):
    old_mask = os.umask(0o027)
    try:
        _output.write(b"new", str(tmp_path / "new"))
    finally:
        os.umask(old_mask)
    assert (tmp_path / "new").read_bytes() == b"new" and left_in(tmp_path) == ["new"]
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_an_old_file_is_replaced_at_once(file, tmp_path):
    file.chmod(0o604)
    with open(file, "rb") as before:
        _output.write(b"new", str(file))
        assert before.read() == b"the old one, and long"  # whoever has it open has the old one
    assert file.read_bytes() == b"new" and left_in(tmp_path) == ["net.prototxt"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o604


def test_its_attributes_stay(file):
    try:
        os.setxattr(file, "user.origin", b"by hand")
    except OSError:
        pytest.skip("this file system has no attributes")
    _output.write(b"new", str(file))
    assert file.read_bytes() == b"new" and os.getxattr(file, "user.origin") == b"by hand"


def test_links_stay_links(file, tmp_path):
    (tmp_path / "symbolic").symlink_to("net.prototxt")
    _output.write(b"new", str(tmp_path / "symbolic"))
    assert file.read_bytes() == b"new" and (tmp_path / "symbolic").is_symlink()
    os.link(file, tmp_path / "hard")
    _output.write(b"newer", str(file))
    assert (tmp_path / "hard").read_bytes() == b"newer" and file.stat().st_nlink == 2


def test_a_link_to_nothing_makes_what_it_names(tmp_path):
    (tmp_path / "link").symlink_to("file")
    _output.write(b"new", str(tmp_path / "link"))
    assert (tmp_path / "file").read_bytes() == b"new" and (tmp_path / "link").is_symlink()


@root
def test_the_owner_stays(file, tmp_path):
    os.chown(file, 12345, 54321)
    file.chmod(0o640)
    _output.write(b"new", str(file))
    new = file.stat()
    assert (new.st_uid, new.st_gid, stat.S_IMODE(new.st_mode)) == (12345, 54321, 0o640)
    assert file.read_bytes() == b"new" and left_in(tmp_path) == ["net.prototxt"]


def test_an_owner_that_cannot_be_given(file, tmp_path, monkeypatch):
    """The file is written over, as by a shell's >."""

    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(_output.os, "chown", refuse)
    monkeypatch.setattr(_output.shutil, "copystat", refuse)
    number = file.stat().st_ino
    _output.write(b"new", str(file))
    assert file.read_bytes() == b"new" and file.stat().st_ino == number and left_in(tmp_path) == ["net.prototxt"]


def test_a_folder_that_takes_no_new_file(file, tmp_path, monkeypatch):
    def refuse(**arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_output.tempfile, "mkstemp", refuse)
    _output.write(b"new", str(file))
    assert file.read_bytes() == b"new"
    with pytest.raises(PermissionError):
        _output.write(b"new", str(tmp_path / "another"))


def test_what_fails_leaves_the_old_file(file, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_output.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        _output.write(b"new", str(file))
    assert file.read_bytes() == b"the old one, and long" and left_in(tmp_path) == ["net.prototxt"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_names_of_standard_output(name, mode, tmp_path):
    """Each into a pipe, and into a file that others write to, too."""
    if not os.path.exists(name):
        pytest.skip(f"there is no {name} here")
    program = f"from fastbatch.cli import _output; _output.write(b'new', {name!r})"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"new")
    (tmp_path / "log").write_bytes(b"before ")
    with open(tmp_path / "log", mode) as log:
        assert subprocess.run([sys.executable, "-c", program], stdout=log, timeout=60).returncode == 0
        log.seek(0, os.SEEK_CUR)
        os.write(log.fileno(), b" after")
    assert (tmp_path / "log").read_bytes() == (b"new after" if mode == "wb" else b"before new after")


def test_a_pipe_with_a_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    _output.write(b"new", str(tmp_path / "pipe"))
    assert os.read(reading, 100) == b"new"
    os.close(reading)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        _output.write(b"new", str(tmp_path))
