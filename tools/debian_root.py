"""A release of Debian in a folder of the user's cache: the packages of a list, and Pythons to run commands with.

debootstrap makes the root, and chroot enters it. The mounts that this requires are made in a private mount namespace of
the command, so that they disappear with the command, however it ends.
"""

import copy
import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import machine
from environment import CHECKOUT, Python, Unavailable, digest, remove, say, see, step


class DebianRoot(Python):
    """One Python in such a root. Derived classes describe a particular root, which several Pythons can share."""

    release = ""  # "Debian 11"
    suite = ""
    script = None  # debootstrap's script, for a suite that an older debootstrap does not know
    packages = None  # a file with the name of a package on each line
    contents = ""  # what the packages are, in a few words
    size = ""  # of the root, in words
    apt_options = ()
    first_use = ()  # a command that shows that the installed packages work
    instead = ""  # what to do if there can be no root
    bundle = Path("/etc/fastbatch-certificates.crt")

    def __init__(self, executable, requirements, folder, home="/opt/fastbatch", beside_caffe=False):
        super().__init__(executable, requirements, beside_caffe)
        self.home, self.checkout, self.folder = Path(home), Path("/fastbatch"), Path(folder).absolute()

    def outside(self, path):
        return self.folder / Path(path).relative_to("/")

    def search_path(self):
        return "/usr/local/bin:/usr/bin:/bin"

    def check(self):
        instead = f", or {self.instead}" if self.instead else ""
        if platform.system() != "Linux":
            raise Unavailable(f"a root with {self.release} needs Linux: run it there{instead}")
        if os.geteuid() != 0:
            raise Unavailable(f"entering a root takes the rights of root: run it with sudo{instead}")
        if own_mounts() is None:
            raise Unavailable(
                "this machine does not let root mount anything (a container without the right SYS_ADMIN?): "
                f"give it that right{instead}"
            )

    def prepare(self):
        """Makes the root, unless it is complete and was made from the same list of packages."""
        packages = [line.strip() for line in self.packages.read_text().splitlines() if line.strip() and line[0] != "#"]
        stamp = digest(self.suite, packages)
        stamp_file = self.outside("/etc/fastbatch-stamp")
        if stamp_file.exists() and stamp_file.read_text() == stamp:
            return
        if shutil.which("debootstrap", path=machine.PATH) is None:
            raise Unavailable("debootstrap is missing: install it (tools/bootstrap does)")
        if not machine.DEBIAN_KEYRING.exists():
            package = "debian-archive-keyring (tools/bootstrap does)"
            raise Unavailable(f"{machine.DEBIAN_KEYRING} is missing: install the package {package}")
        mirror = find_mirror(self.suite, self.release)
        for leftover in self.folder.parent.glob(f"{self.folder.name}.partial.*"):
            remove_root(leftover)
        partial = copy.copy(self)
        partial.folder = self.folder.with_name(f"{self.folder.name}.partial.{os.getpid()}")
        try:
            partial.make(mirror, packages, log=self.folder.with_name(f"{self.folder.name}.log"))
            partial.outside("/etc/fastbatch-stamp").write_text(stamp)
            remove_root(self.folder)
            unmount_leaked(partial.folder)
            partial.folder.rename(self.folder)
        finally:
            remove_root(partial.folder)
        say(f"the root is {self.folder}")

    def make(self, mirror, packages, log):
        log.unlink(missing_ok=True)
        say(f"a root with {self.release} and its {self.contents} will be in {self.folder.parent}: {self.size}, once")
        proxies = machine.proxies()
        settings = {**os.environ, "PATH": machine.PATH, **proxies}
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ["--variant=minbase", f"--keyring={machine.DEBIAN_KEYRING}"]
        words = [self.suite, self.folder, mirror, *([self.script] if self.script else [])]
        debootstrap = self.with_own_mounts([], ["debootstrap", *options, *words])
        if not step(self.release, debootstrap, log, env=settings):
            raise Unavailable(f"debootstrap could not make the root from {mirror}: {see(log)}")
        dpkg = self.outside("/etc/dpkg/dpkg.cfg.d/fastbatch")
        # The root can be remade at any time: it need not survive a power failure, and needs no manuals.
        excluded = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
        dpkg.write_text("\n".join(["force-unsafe-io", *excluded, ""]))
        variables = {**proxies, "DEBIAN_FRONTEND": "noninteractive"}
        options = ["Acquire::Retries=3", *self.apt_options]
        if machine.ca_bundle():
            options.append(f"Acquire::https::CAInfo={self.bundle}")
        apt = shlex.join(["apt-get", "-qq", *(word for option in options for word in ("-o", option))])
        script = f"{apt} update && {apt} install --yes --no-install-recommends {shlex.join(packages)} && apt-get clean"
        if not step(self.contents, self.command(["sh", "-ec", script], variables, "/"), log):
            raise Unavailable(f"apt could not install {self.contents} from {mirror}: {see(log)}")
        if not step("a first use", self.command(self.first_use, {}, "/"), log):
            raise Unavailable(f"what was installed in the new root does not work: {see(log)}")

    def command(self, command, variables, cwd):
        """The command line that runs `command` inside, by exec throughout: signals and the status pass through."""
        inside = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        binds = [(path, Path(path)) for path in ("/proc", "/sys", "/dev", "/tmp")] + [(CHECKOUT, self.checkout)]
        binds += [(path, Path(path)) for path in ("/etc/resolv.conf", "/etc/hosts") if Path(path).exists()]
        binds += [(path, path) for path in machine.local_package_folders()]
        inside.update(machine.pip_settings())
        bundle = machine.ca_bundle()
        if bundle:
            # Not over the root's own bundle: the package ca-certificates must be able to replace that.
            binds.append((bundle, self.bundle))
            inside.update(PIP_CERT=self.bundle, SSL_CERT_FILE=self.bundle)
        for source, target in binds:
            point = self.outside(target)
            (point if Path(source).is_dir() else point.parent).mkdir(parents=True, exist_ok=True)
            if not Path(source).is_dir() and not point.exists():
                point.touch()
        settings = [f"{name}={value}" for name, value in {**inside, **variables}.items()]
        mounts = [["mount", "--rbind", source, self.outside(target)] for source, target in binds]
        return self.with_own_mounts(mounts, ["chroot", self.folder, "env", "-i", "-C", cwd, *settings, *command])

    def with_own_mounts(self, mounts, command):
        """The command line that runs `command` after `mounts`, which only it sees and which end with it."""
        folder = shlex.quote(str(self.folder))
        private = f"mountpoint -q {folder} || mount --bind {folder} {folder}; mount --make-rprivate {folder}"
        script = ["set -e", private, *(shlex.join(map(str, mount)) for mount in mounts), 'exec "$@"']
        return [*own_mounts(), "sh", "-c", "; ".join(script), Path(sys.argv[0]).name, *map(str, command)]


@functools.lru_cache
def own_mounts():
    """How to give a command a private mount namespace here; None if that is not allowed."""
    usual = ["unshare", "--mount"]
    # In a chroot, unshare cannot make later mounts private, because the root of the file system is not a mount there.
    in_chroot = [*usual, "--propagation", "unchanged"]
    for command in (usual, in_chroot):
        if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            return command
    return None


def unmount_leaked(folder):
    """In a chroot, the mount that makes a root private (of the root on itself, with_own_mounts) may be seen outside."""
    if "--propagation" in own_mounts():
        subprocess.run(["umount", "--lazy", str(folder)], stderr=subprocess.DEVNULL)


def remove_root(folder):
    unmount_leaked(folder)
    remove(folder)


def find_mirror(suite, release):
    """Returns the first mirror that has the suite. `release` is its name in messages."""
    chosen = os.environ.get("FASTBATCH_DEBIAN_MIRROR")
    mirrors = [chosen] if chosen else machine.apt_mirrors()
    if not mirrors:
        raise Unavailable("this machine's apt names no mirror: set FASTBATCH_DEBIAN_MIRROR to one of Debian's")
    reasons = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(f"{mirror.rstrip('/')}/dists/{suite}/InRelease", timeout=30):
                return mirror
        except urllib.error.HTTPError as error:
            error.close()
            reasons.append(f"{mirror} has no {suite} ({error.code})")
        except (OSError, ValueError) as error:
            reasons.append(f"{mirror} cannot be reached ({getattr(error, 'reason', error)})")
    raise Unavailable(
        f"{release} was not found: {'; '.join(reasons)}. With a network, set FASTBATCH_DEBIAN_MIRROR to a mirror that "
        "has it; when Debian has moved it to the archive, to a mirror of the archive"
    )
