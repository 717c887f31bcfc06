"""The two places where the real Caffe can be: the Python that runs this, or a root with Debian 11's own Caffe in it.

The root is made by debootstrap and entered with chroot. What has to be mounted for that is mounted in a mount namespace
of the command's own, so that it is gone when the command is, whatever ended it.
"""

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
from pathlib import Path

import machine
from environment import CACHE, CHECKOUT, Python, Unavailable, digest, remove, say, see, step

PACKAGES = CHECKOUT / "tools/caffe-packages.txt"
REQUIREMENTS = ["requirements-test.txt", "requirements-demo.txt"]
SUITE = "bullseye"
# Asked of a Python in a process of its own: can it be used?
HAS_CAFFE = "import caffe; assert 'Python' in caffe.layer_type_list(), 'this Caffe was built without Python layers'"


class CurrentCaffe(Python):
    """The Caffe of the Python that runs this script."""

    def __init__(self):
        super().__init__(sys.executable, REQUIREMENTS, beside_caffe=True)
        # Where this Python is a virtual environment itself, one made from it does not see what is in it: Caffe, say.
        self.python_path = [sysconfig.get_path("purelib"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]


class CaffeRoot(Python):
    """Debian 11 with its Caffe, in a folder."""

    bundle = Path("/etc/fastbatch-certificates.crt")

    def __init__(self):
        super().__init__("/usr/bin/python3", REQUIREMENTS, beside_caffe=True)
        self.home, self.checkout = Path("/opt/fastbatch"), Path("/fastbatch")
        self.folder = Path(os.environ.get("FASTBATCH_CAFFE_ROOT") or CACHE / "caffe-root").absolute()

    def outside(self, path):
        return self.folder / Path(path).relative_to("/")

    def search_path(self):
        return "/usr/local/bin:/usr/bin:/bin"

    def check(self):
        if platform.system() != "Linux":
            raise Unavailable("the root with Debian's Caffe needs Linux; the Dockerfile gives the same elsewhere")
        if os.geteuid() != 0:
            raise Unavailable("entering a root takes the rights of root: run it with sudo, or use the Dockerfile")
        if own_mounts() is None:
            raise Unavailable(
                "this machine does not let root mount anything (a container without the right SYS_ADMIN?): "
                "give it that right, or use the Dockerfile"
            )

    def prepare(self):
        """Makes the root, or leaves it alone when it is complete and made from the same list of packages."""
        packages = [line.strip() for line in PACKAGES.read_text().splitlines() if line.strip() and line[0] != "#"]
        stamp = digest(SUITE, packages)
        stamp_file = self.outside("/etc/fastbatch-stamp")
        if stamp_file.exists() and stamp_file.read_text() == stamp:
            return
        if shutil.which("debootstrap", path=machine.PATH) is None:
            raise Unavailable("debootstrap is missing: install it (tools/bootstrap does)")
        if not machine.DEBIAN_KEYRING.exists():
            package = "debian-archive-keyring (tools/bootstrap does)"
            raise Unavailable(f"{machine.DEBIAN_KEYRING} is missing: install the package {package}")
        mirror = find_mirror()
        for leftover in self.folder.parent.glob(f"{self.folder.name}.partial.*"):
            remove_root(leftover)
        partial = CaffeRoot()
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
        say(f"a root with Debian 11's own Caffe will be in {self.folder.parent}: 1.3 GB, once, a few minutes")
        proxies = machine.proxies()
        settings = {**os.environ, "PATH": machine.PATH, **proxies}
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ["--variant=minbase", f"--keyring={machine.DEBIAN_KEYRING}"]
        debootstrap = self.with_own_mounts([], ["debootstrap", *options, SUITE, self.folder, mirror])
        if not step("Debian 11", debootstrap, log, env=settings):
            raise Unavailable(f"debootstrap could not make the root from {mirror}: {see(log)}")
        dpkg = self.outside("/etc/dpkg/dpkg.cfg.d/fastbatch")
        # The root can be made again at any time: it need not survive a power cut, and nobody reads manuals in it.
        excluded = [f"path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")]
        dpkg.write_text("\n".join(["force-unsafe-io", *excluded, ""]))
        variables = {**proxies, "DEBIAN_FRONTEND": "noninteractive"}
        apt = "apt-get -qq -o Acquire::Retries=3"
        if machine.ca_bundle():
            apt += f" -o Acquire::https::CAInfo={self.bundle}"
        script = f"{apt} update && {apt} install --yes --no-install-recommends {shlex.join(packages)} && apt-get clean"
        if not step("Caffe and compilers", self.command(["sh", "-ec", script], variables, "/"), log):
            raise Unavailable(f"apt could not install Caffe from {mirror}: {see(log)}")
        if not step("a first import", self.command(["python3", "-c", HAS_CAFFE], {}, "/"), log):
            raise Unavailable(f"the Caffe in the new root does not work: {see(log)}")

    def command(self, command, variables, cwd):
        """The command line that runs `command` inside: exec all the way, so signals and the status pass through."""
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
        """The command line that runs `command` after `mounts`, which are seen by it alone and gone with it."""
        folder = shlex.quote(str(self.folder))
        private = f"mountpoint -q {folder} || mount --bind {folder} {folder}; mount --make-rprivate {folder}"
        script = ["set -e", private, *(shlex.join(map(str, mount)) for mount in mounts), 'exec "$@"']
        return [*own_mounts(), "sh", "-c", "; ".join(script), "caffe-env", *map(str, command)]


@functools.lru_cache
def own_mounts():
    """How a command gets a mount namespace of its own here; None where that is not allowed."""
    usual = ["unshare", "--mount"]
    # In a chroot, unshare cannot keep to itself what is mounted later: the root of the file system is no mount there.
    in_chroot = [*usual, "--propagation", "unchanged"]
    for command in (usual, in_chroot):
        if subprocess.run([*command, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            return command
    return None


def unmount_leaked(folder):
    """In a chroot, what makes a root private (with_own_mounts) may be seen outside: a mount of the root on itself."""
    if "--propagation" in own_mounts():
        subprocess.run(["umount", "--lazy", str(folder)], stderr=subprocess.DEVNULL)


def remove_root(folder):
    unmount_leaked(folder)
    remove(folder)


def find_mirror():
    """The first mirror that has Debian 11."""
    chosen = os.environ.get("FASTBATCH_DEBIAN_MIRROR")
    mirrors = [chosen] if chosen else machine.apt_mirrors()
    if not mirrors:
        raise Unavailable("this machine's apt names no mirror: set FASTBATCH_DEBIAN_MIRROR to one of Debian's")
    reasons = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(f"{mirror.rstrip('/')}/dists/{SUITE}/InRelease", timeout=30):
                return mirror
        except urllib.error.HTTPError as error:
            error.close()
            reasons.append(f"{mirror} has no {SUITE} ({error.code})")
        except (OSError, ValueError) as error:
            reasons.append(f"{mirror} cannot be reached ({getattr(error, 'reason', error)})")
    raise Unavailable(
        f"Debian 11 was not found: {'; '.join(reasons)}. With a network, set FASTBATCH_DEBIAN_MIRROR to a mirror that "
        "has it; when Debian has moved it to the archive, to a mirror of the archive"
    )


def choose():
    """Which Caffe: the current Python's where there is one, or else the root."""
    choice = os.environ.get("FASTBATCH_CAFFE", "")
    if choice not in ("", "root", "current"):
        raise Unavailable(f"FASTBATCH_CAFFE is {choice!r}, and can be root or current")
    if choice == "root":
        return CaffeRoot()
    found = subprocess.run([sys.executable, "-c", HAS_CAFFE], capture_output=True, text=True)
    if found.returncode == 0:
        return CurrentCaffe()
    if choice == "current":
        reason = found.stderr.strip().splitlines()[-1:] or [f"it ended with status {found.returncode}"]
        raise Unavailable(f"FASTBATCH_CAFFE is current, but {sys.executable} cannot use Caffe: {reason[0]}")
    return CaffeRoot()
