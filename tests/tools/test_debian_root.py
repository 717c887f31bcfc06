"""tools/debian_root.py: where a Debian release comes from, and how a root (here Caffe's) becomes ready or fails."""

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tooling import (
    MAY_MOUNT,
    TOOLS,
    caffe_root,
    debian_root,
    environment,
    http_server,
    machine,
    newest_root,
    program,
    write,
)

# ---- where Debian comes from ----


def find_mirror():
    return debian_root.find_mirror("bullseye", "Debian 11")


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_mirror_of_the_setting_comes_before_apts(monkeypatch, mirror, slash):
    monkeypatch.setattr(machine, "apt_mirrors", lambda: ["http://never.invalid/debian"])
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", mirror + slash)
    assert find_mirror() == mirror + slash


def test_the_first_of_apts_mirrors_that_has_the_suite(monkeypatch, mirror):
    with http_server("/debian/dists/bookworm/InRelease") as newer:
        monkeypatch.setattr(machine, "apt_mirrors", lambda: [f"{newer}/debian", mirror, "http://never.invalid/debian"])
        assert find_mirror() == mirror


def test_a_mirror_that_is_a_folder(monkeypatch, tmp_path):
    write(tmp_path / "debian/dists/bullseye/InRelease", "")
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", f"file://{tmp_path}/debian")
    assert find_mirror() == f"file://{tmp_path}/debian"


def test_the_reasons_of_all_mirrors_are_told(monkeypatch, mirror):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}/debian"
        monkeypatch.setattr(machine, "apt_mirrors", lambda: [f"{mirror}-security", refusing, "no URL"])
        with pytest.raises(environment.Unavailable) as caught:
            find_mirror()
    text = str(caught.value)
    assert text.startswith(f"Debian 11 was not found: {mirror}-security has no bullseye (404); {refusing} cannot ")
    assert " be reached ([Errno 111] Connection refused); no URL cannot be reached (unknown url type: " in text
    assert "set FASTBATCH_DEBIAN_MIRROR to a mirror that has it" in text and "a mirror of the archive" in text


def test_a_setting_that_has_no_suite_is_not_replaced_by_apts(monkeypatch, mirror):
    monkeypatch.setattr(machine, "apt_mirrors", lambda: [mirror])
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", f"{mirror}-archive")
    with pytest.raises(environment.Unavailable, match=r"-archive has no bullseye \(404\)\. "):
        find_mirror()


def test_no_mirror_at_all(monkeypatch):
    monkeypatch.setattr(machine, "apt_mirrors", list)
    with pytest.raises(environment.Unavailable, match="apt names no mirror: set FASTBATCH_DEBIAN_MIRROR to one of"):
        find_mirror()


# ---- the root ----


def record_makes(monkeypatch):
    """Instead of Debian, a root is a file that names its packages. Returns the list of all that were made."""
    made = []

    def make(root, mirror, packages, log):
        made.append((mirror, packages))
        write(root.outside("/etc/packages"), " ".join(packages))

    monkeypatch.setattr(debian_root.DebianRoot, "make", make)
    return made


def test_a_root_is_made_once_and_again_when_the_list_of_packages_changes(monkeypatch, able, capfd):
    made = record_makes(monkeypatch)
    caffe_root.CaffeRoot().prepare()
    assert made == [(able.mirror, ["one", "two"])]
    assert (able.root / "etc/packages").read_text() == "one two" and able.beside_root() == ["root"]
    assert f"the root is {able.root}\n" in capfd.readouterr().err

    write(able.root / "home/of the first", "")
    able.packages.write_text("# another comment\none\ntwo\n")
    caffe_root.CaffeRoot().prepare()
    assert len(made) == 1 and (able.root / "home/of the first").exists()

    able.packages.write_text("one\ntwo\nthree\n")
    caffe_root.CaffeRoot().prepare()
    assert len(made) == 2 and (able.root / "etc/packages").read_text() == "one two three"
    assert able.beside_root() == ["root"] and not (able.root / "home/of the first").exists()
    caffe_root.CaffeRoot().prepare()
    assert len(made) == 2


def test_a_complete_root_needs_no_mirror_and_no_debootstrap(monkeypatch, able):
    made = record_makes(monkeypatch)
    caffe_root.CaffeRoot().prepare()
    monkeypatch.setattr(machine, "PATH", "/nonexistent")
    able.keyring.unlink()
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", f"{able.mirror}-moved")
    caffe_root.CaffeRoot().prepare()
    assert len(made) == 1


def test_a_root_that_fails_leaves_the_one_before_and_nothing_else(monkeypatch, able):
    record_makes(monkeypatch)
    caffe_root.CaffeRoot().prepare()
    able.packages.write_text("one\ntwo\nthree\n")

    def make(root, mirror, packages, log):
        write(root.outside("/etc/half"), "")
        raise environment.Unavailable("the power of the mirror failed")

    monkeypatch.setattr(debian_root.DebianRoot, "make", make)
    for _ in range(2):  # the second time, too, since the old root has not become one with three packages
        with pytest.raises(environment.Unavailable, match="the power of the mirror failed"):
            caffe_root.CaffeRoot().prepare()
        assert able.beside_root() == ["root"] and (able.root / "etc/packages").read_text() == "one two"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import caffe_root, debian_root, machine
caffe_root.CaffeRoot.packages, machine.DEBIAN_KEYRING, machine.PATH = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
debian_root.own_mounts = lambda: ["unshare", "--mount"]

def make(root, mirror, packages, log):
    root.outside("/etc/half").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)

debian_root.DebianRoot.make = make
caffe_root.CaffeRoot().prepare()
"""


def test_a_root_whose_maker_was_killed_is_never_used_and_is_removed(monkeypatch, able):
    command = [sys.executable, "-c", KILLED, TOOLS, able.packages, able.keyring, machine.PATH]
    for _ in range(2):
        killed = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        [left] = able.beside_root()  # the second run has removed what the first one left
        assert re.fullmatch(r"root\.partial\.\d+", left) and (able.root.parent / left / "etc/half").exists()
    made = record_makes(monkeypatch)
    caffe_root.CaffeRoot().prepare()
    assert len(made) == 1 and able.beside_root() == ["root"] and not (able.root / "etc/half").exists()


def test_a_folder_without_the_stamp_is_no_root(monkeypatch, able):
    """Whatever is in it, and though it has the final name: it was not made by this tool, or not to its end."""
    write(able.root / "etc/half", "")
    made = record_makes(monkeypatch)
    caffe_root.CaffeRoot().prepare()
    assert len(made) == 1 and not (able.root / "etc/half").exists()


def test_two_pythons_share_the_newest_root(monkeypatch, able, tmp_path):
    monkeypatch.setattr(newest_root, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(newest_root.NewestRoot, "packages", able.packages)
    monkeypatch.setattr(debian_root, "find_mirror", lambda suite, release: f"{suite}, {release}")
    made = record_makes(monkeypatch)
    first, second = (newest_root.NewestRoot(version) for version in [(3, 14), (3, 15)])
    for place in (first, second):
        place.check()
        place.prepare()
    assert made == [("forky, Debian 14", ["one", "two"])] and able.beside_root() == ["newest-root"]
    assert (first.folder, str(first.python), str(first.home)) == (
        second.folder,
        "/usr/bin/python3.14",
        "/opt/fastbatch/python3.14",
    )
    assert first.home != second.home and not first.beside_caffe


def test_each_newest_python_is_in_the_list_of_packages():
    packages = newest_root.NewestRoot.packages.read_text().splitlines()
    for version in newest_root.VERSIONS:
        assert {"python{}.{}-dev".format(*version), "python{}.{}-venv".format(*version)} <= set(packages)


needs_mounts = pytest.mark.skipif(not MAY_MOUNT, reason="takes the rights of root, and to mount")


@needs_mounts
@pytest.mark.parametrize("what", ["debootstrap fails", "debootstrap makes no system"])
def test_the_reason_of_a_failed_debootstrap_is_shown_and_kept(able, capfd, what):
    text = 'printf "<%s>\\n" "$@"; echo the reason'
    end = "exit 1" if "fails" in what else 'mkdir -p "$4/etc/dpkg/dpkg.cfg.d"'
    program(able.bin / "debootstrap", f"{text}; {end}")
    with pytest.raises(environment.Unavailable) as caught:
        caffe_root.CaffeRoot().prepare()
    log = able.root.with_name("root.log")
    where = f"the reason is above, and the full output is in {log}"
    shown, said = capfd.readouterr().err, log.read_text()
    if "fails" in what:
        assert str(caught.value) == f"debootstrap could not make the root from {able.mirror}: {where}"
    else:  # then there is nothing in it that apt could be run with
        assert str(caught.value) == f"apt could not install Caffe and compilers from {able.mirror}: {where}"
        assert "chroot: " in said
    assert said in shown and "the reason\n" in said
    given = re.findall("^<(.*)>$", said, re.MULTILINE)
    assert given[:3] == ["--variant=minbase", f"--keyring={able.keyring}", "bullseye"] and given[4:] == [able.mirror]
    assert re.fullmatch(re.escape(str(able.root)) + r"\.partial\.\d+", given[3])
    assert able.beside_root() == []
    assert given[3] not in Path("/proc/self/mountinfo").read_text()


@needs_mounts
def test_debootstrap_is_told_how_to_make_a_suite_that_it_does_not_know(monkeypatch, able, tmp_path):
    monkeypatch.setattr(newest_root, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(debian_root, "find_mirror", lambda suite, release: able.mirror)
    program(able.bin / "debootstrap", 'printf "<%s>\\n" "$@"; exit 1')
    with pytest.raises(environment.Unavailable, match="debootstrap could not make the root from "):
        newest_root.NewestRoot((3, 14)).prepare()
    given = re.findall("^<(.*)>$", (tmp_path / "cache/newest-root.log").read_text(), re.MULTILINE)
    assert given[2] == "forky" and given[4:] == [able.mirror, "/usr/share/debootstrap/scripts/sid"]
