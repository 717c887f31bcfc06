"""tools/bootstrap: what it finds missing, installs and prints."""

import os
import sys

import pytest

from tooling import bootstrap, machine, program

# Instead of installing: says how it was called, and provides what some packages would.
APT_GET = """
echo "apt-get $*, $DEBIAN_FRONTEND"
case $2 in
    update) exit {update} ;;
    install) printf '#!/bin/sh\\n' > {bin}/cc && chmod +x {bin}/cc && touch {keys} ;;
esac
"""


OF_THE_MACHINE = "Python.h", "Python's ensurepip and venv", "certificates"


class Fresh:
    """A machine with Python and nothing else on its PATH, where apt-get is what `apt` makes it."""

    def __init__(self, monkeypatch, folder):
        self.bin, self.keys = folder / "bin", folder / "keys.gpg"
        self.bin.mkdir()
        needs = [need for need in bootstrap.NEEDS if need[0] not in OF_THE_MACHINE]
        here = {"Debian's keys": self.keys.exists, "hdf5.h": lambda: bootstrap.has_header("hdf5.h")}  # not in /usr
        needs = [(what, here.get(what, check), *rest) for what, check, *rest in needs]
        monkeypatch.setattr(bootstrap, "NEEDS", needs)  # what is left is the same on each machine that runs this test
        monkeypatch.setattr(machine, "PATH", str(self.bin))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", f"{self.bin}:/usr/bin:/bin")  # for the commands in the scripts

    def apt(self, update=0):
        program(self.bin / "apt-get", APT_GET.format(bin=self.bin, keys=self.keys, update=update))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    return Fresh(monkeypatch, tmp_path)


MISSING = (
    "bootstrap: missing: a C compiler, the C library's headers, pkg-config, lmdb.h, leveldb/c.h, jpeglib.h, png.h, "
    "libdeflate.h, hdf5.h, debootstrap, Debian's keys"
)
PACKAGES = (
    "gcc libc6-dev pkg-config liblmdb-dev libleveldb-dev libjpeg62-turbo-dev libpng-dev libdeflate-dev libhdf5-dev "
    "debootstrap debian-archive-keyring"
)
INSTALL = f"apt-get install --no-install-recommends {PACKAGES}"


def printed(capfd, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tools/bootstrap"])
    status = bootstrap.main(list(arguments))
    return status, capfd.readouterr().out.splitlines()


def test_check_only_says_what_is_missing(fresh, monkeypatch, capfd):
    fresh.apt()
    assert printed(capfd, monkeypatch, "--check") == (1, [MISSING])
    program(fresh.bin / "cc", "exit 0")
    for name in "pkg-config", "debootstrap":
        program(fresh.bin / name, "exit 0")
    assert printed(capfd, monkeypatch, "--check") == (0, ["bootstrap: missing: Debian's keys"])
    fresh.keys.touch()
    assert printed(capfd, monkeypatch, "--check") == (0, [])
    program(fresh.bin / "cc", "grep -q lmdb.h && exit 1 || exit 0")  # a compiler that does not find this header
    assert printed(capfd, monkeypatch, "--check") == (0, ["bootstrap: missing: lmdb.h"])


def test_packages_are_named_before_they_are_installed(fresh, monkeypatch, capfd):
    fresh.apt()
    status, lines = printed(capfd, monkeypatch)
    assert status == 0 and lines == [
        MISSING,
        f"bootstrap: going to install these Debian packages, with what they depend on: {PACKAGES}",
        "apt-get -qq update, noninteractive",
        f"apt-get -qq install --yes --no-install-recommends {PACKAGES}, noninteractive",
        "bootstrap: pkg-config (pkg-config) is still missing: C libraries are looked for in /usr only.",
        "bootstrap: debootstrap (debootstrap) is still missing: there is no real Caffe.",
    ]


def test_apt_that_fails(fresh, monkeypatch, capfd):
    fresh.apt(update=100)
    status, lines = printed(capfd, monkeypatch)
    assert status == 1 and lines[2:5] == [
        "apt-get -qq update, noninteractive",
        f"bootstrap: apt-get update failed: the reason is above. When it is gone, run: {INSTALL}",
        "bootstrap: a C compiler (gcc) is still missing: nothing can be built.",
    ]
    assert lines[-1] == "bootstrap: Debian's keys (debian-archive-keyring) is still missing: there is no real Caffe."


def test_an_ordinary_user_is_told_what_to_run(fresh, monkeypatch, capfd):
    fresh.apt()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, lines = printed(capfd, monkeypatch)
    assert status == 1
    assert lines[:2] == [MISSING, f"bootstrap: only root may install Debian packages. Run: sudo {INSTALL}"]
    assert not any(line.startswith("apt-get") for line in lines)


def test_a_machine_without_apt(fresh, monkeypatch, capfd):
    status, lines = printed(capfd, monkeypatch)
    packages = PACKAGES.replace(" ", ", ")
    assert status == 1
    assert lines[:2] == [MISSING, f"bootstrap: this machine has no apt: install what your system calls {packages}"]


@pytest.mark.parametrize("debians", [True, False])
def test_pythons_packages_are_debians_where_its_python_is(fresh, monkeypatch, capfd, debians):
    fresh.apt()
    monkeypatch.setattr(bootstrap, "DEBIANS_PYTHON", debians)
    monkeypatch.setattr(bootstrap, "NEEDS", [("Python.h", lambda: False, ["python3-dev"], None)])
    status, lines = printed(capfd, monkeypatch)
    assert status == 1 and lines[0] == "bootstrap: missing: Python.h"
    installed = "apt-get -qq install --yes --no-install-recommends python3-dev, noninteractive" in lines
    assert installed == debians
    assert lines[-1] == "bootstrap: Python.h (python3-dev) is still missing: nothing can be built."


def test_bootstrap_takes_no_other_word(fresh, capfd):
    assert bootstrap.main(["--chek"]) == 2
    assert capfd.readouterr().err == bootstrap.__doc__.strip() + "\n"
