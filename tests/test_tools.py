"""The tools behind `make`: what they read of the machine's settings, and what they do where something is missing.

They run here with the machine replaced at its edges: folders, variables, programs on the PATH and an HTTP server that
belong to the test. Nothing is installed, and no test needs the rights of root, though some look closer with them.
"""

import contextlib
import http.server
import importlib.machinery
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = CHECKOUT / "tools"
if not (TOOLS / "bootstrap").exists():
    pytest.skip("there is no checkout with tools around these tests", allow_module_level=True)


def script(name):
    """One of the tools that are programs, as a module."""
    loader = importlib.machinery.SourceFileLoader(f"tool_{name.replace('-', '_')}", str(TOOLS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


before = sys.path[:], sys.dont_write_bytecode
sys.path.insert(0, str(TOOLS))
sys.dont_write_bytecode = True
import caffe_root  # noqa: E402
import environment  # noqa: E402
import machine  # noqa: E402

bootstrap, caffe_env, demo, test_all = map(script, ("bootstrap", "caffe-env", "demo", "test"))
sys.path[:], sys.dont_write_bytecode = before

MAY_MOUNT = os.geteuid() == 0 and caffe_root.own_mounts() is not None


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    """The user's own settings are out of sight, and the tools' signal handlers are gone after the test."""
    for name in os.environ:
        if name.startswith(("FASTBATCH_", "PIP_", "PYTEST_")) and name != "PYTEST_CURRENT_TEST":
            monkeypatch.delenv(name)
    for name in (*machine.PROXY_VARIABLES, "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def program(path, text):
    """A shell script that can be run by its name where its folder is on the PATH."""
    write(path, f"#!/bin/sh\n{text}\n").chmod(0o755)
    return path


@contextlib.contextmanager
def http_server(*paths):
    """Its address. It has these paths, and says 404 to all others."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in paths else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield "http://127.0.0.1:{}".format(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def mirror():
    """The address of a mirror that has Debian 11."""
    with http_server("/debian/dists/bullseye/InRelease") as address:
        yield f"{address}/debian"


# ---- the machine's settings ----


def test_mirrors_of_one_line_lists(tmp_path):
    write(tmp_path / "sources.list", """\
# deb http://commented.invalid/debian bookworm main
deb http://first.invalid/debian bookworm main contrib # deb http://behind.invalid/debian bookworm main
deb-src http://sources-only.invalid/debian bookworm main
deb [ arch=amd64 signed-by=/a/key.gpg ] https://options.invalid/debian bookworm contrib main
deb http://no-main.invalid/debian bookworm contrib
deb http://main.invalid/main main
deb cdrom:[Debian_12]/ bookworm main

deb http://first.invalid/debian bookworm-updates main
""")
    write(tmp_path / "sources.list.d/b.list", "deb file:/local/debian bookworm main\n")
    write(tmp_path / "sources.list.d/a.list", "deb [trusted=yes] http://a.invalid/debian bookworm main")
    write(tmp_path / "sources.list.d/c.list.save", "deb http://saved.invalid/debian bookworm main\n")
    assert machine.apt_mirrors(tmp_path) == [
        "http://first.invalid/debian", "https://options.invalid/debian", "http://a.invalid/debian",
        "file:/local/debian"]


def test_mirrors_of_deb822_files(tmp_path):
    write(tmp_path / "sources.list", "deb http://list.invalid/debian bookworm main\n")
    write(tmp_path / "sources.list.d/debian.sources", """\
# The first stanza
Types: deb deb-src
URIs: http://one.invalid/debian
# a comment within a field's lines
 http://two.invalid/debian
Suites: bookworm bookworm-updates
Components:
 main
 contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 URIs: http://key.invalid/debian
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://off.invalid/debian
Suites: bookworm
Components: main
Enabled: no

types: deb
uris: http://list.invalid/debian http://lower.invalid/debian
suites: bookworm
components: main
enabled: yes
\t
Types: deb-src
URIs: http://sources-only.invalid/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://no-main.invalid/debian
Suites: bookworm
Components: contrib""")
    assert machine.apt_mirrors(tmp_path) == [
        "http://list.invalid/debian", "http://one.invalid/debian", "http://two.invalid/debian",
        "http://lower.invalid/debian"]


def test_no_apt_means_no_mirrors(tmp_path):
    assert machine.apt_mirrors(tmp_path / "etc/apt") == []


def test_proxies_are_those_of_the_variables(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:2")
    monkeypatch.setenv("https_proxy", "")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert machine.proxies() == {
        "http_proxy": "http://proxy.invalid:1", "HTTPS_PROXY": "http://proxy.invalid:2", "no_proxy": "127.0.0.1"}


def test_without_a_variable_the_proxy_is_apts(monkeypatch, tmp_path):
    answer = """[ "$*" = "shell proxy Acquire::http::Proxy" ] && echo "proxy='http://apt.invalid:3'\""""
    program(tmp_path / "bin/apt-config", answer)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert machine.proxies() == {"http_proxy": "http://apt.invalid:3", "no_proxy": "127.0.0.1"}
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    assert machine.proxies()["http_proxy"] == "http://proxy.invalid:1"
    monkeypatch.delenv("http_proxy")
    program(tmp_path / "bin/apt-config", "exit 0")  # apt is told of none
    assert machine.proxies() == {"no_proxy": "127.0.0.1"}


def test_pip_settings_override_each_other_as_in_pip(monkeypatch, tmp_path):
    home = tmp_path / "home"
    write(home / ".pip/pip.conf", """\
[global]
index-url = http://legacy.invalid/simple
timeout = 1
cert = /legacy
retries = 1
""")
    write(home / ".config/pip/pip.conf", """\
[global]
index-url = http://global.invalid/simple
timeout = 2
cert = /user
find-links =
    /wheels/one
    /wheels/two
progress-bar = off
[install]
index-url = http://install.invalid/simple
[download]
trusted-host = download.invalid
""")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(write(tmp_path / "third.conf", "[global]\ntimeout = 3\ncert = /third\n")))
    monkeypatch.setenv("PIP_CERT", "/variable")
    settings = machine.pip_settings()
    expected = {
        "PIP_INDEX_URL": "http://install.invalid/simple", "PIP_TIMEOUT": "3", "PIP_CERT": "/variable",
        "PIP_RETRIES": "1", "PIP_FIND_LINKS": "/wheels/one /wheels/two",
    }
    assert {name: settings.get(name) for name in expected} == expected
    assert set(settings) <= {f"PIP_{name}" for name in machine.PIP_OPTIONS.split()}  # no progress-bar, no config file
    assert settings.get("PIP_TRUSTED_HOST") != "download.invalid"
    write(tmp_path / "xdg/pip/pip.conf", "[global]\nretries = 4\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    settings = machine.pip_settings()
    assert settings["PIP_RETRIES"] == "4" and settings.get("PIP_FIND_LINKS") != "/wheels/one /wheels/two"


def test_local_package_folders_are_those_that_exist(monkeypatch, tmp_path):
    names = ["wheels", "more wheels", "index/simple", "extra/simple", "debian", "unused"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", f"file://{tmp_path}/debian")
    monkeypatch.setenv("PIP_INDEX_URL", f"file://{tmp_path}/index/simple/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://a.invalid/simple file://{tmp_path}/extra/simple")
    here = f"{tmp_path}/wheels", f"file://{tmp_path}/more%20wheels"
    links = [*here, f"{tmp_path}/none", f"{tmp_path}/a-file", "file:///", "unused"]
    monkeypatch.setenv("PIP_FIND_LINKS", " ".join(links))
    monkeypatch.chdir(tmp_path)
    found = machine.local_package_folders()
    assert found == sorted(found) and Path("/") not in found
    here = [str(path.relative_to(tmp_path)) for path in found if tmp_path in path.parents]
    assert here == ["debian", "extra", "index", "more wheels", "wheels"]  # an index's packages are beside it


def test_certificates_are_those_that_pip_is_told_of_first(monkeypatch, tmp_path):
    ours = write(tmp_path / "ours.crt", "")
    monkeypatch.setattr(machine, "SYSTEM_BUNDLE", str(write(tmp_path / "system.crt", "")))
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "missing.crt"))
    assert machine.ca_bundle() == str(tmp_path / "system.crt")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ours))
    assert machine.ca_bundle() == str(ours)
    monkeypatch.setenv("PIP_CERT", str(write(tmp_path / "pips.crt", "")))
    assert machine.ca_bundle() == str(tmp_path / "pips.crt")


# ---- where Debian 11 comes from ----


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_mirror_of_the_setting_comes_before_apts(monkeypatch, mirror, slash):
    monkeypatch.setattr(machine, "apt_mirrors", lambda: ["http://never.invalid/debian"])
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", mirror + slash)
    assert caffe_root.find_mirror() == mirror + slash


def test_the_first_of_apts_mirrors_that_has_the_suite(monkeypatch, mirror):
    with http_server("/debian/dists/bookworm/InRelease") as newer:
        monkeypatch.setattr(machine, "apt_mirrors", lambda: [f"{newer}/debian", mirror, "http://never.invalid/debian"])
        assert caffe_root.find_mirror() == mirror


def test_a_mirror_that_is_a_folder(monkeypatch, tmp_path):
    write(tmp_path / "debian/dists/bullseye/InRelease", "")
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", f"file://{tmp_path}/debian")
    assert caffe_root.find_mirror() == f"file://{tmp_path}/debian"


def test_the_reasons_of_all_mirrors_are_told(monkeypatch, mirror):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        refusing = "http://127.0.0.1:{}/debian".format(closed.getsockname()[1])
        monkeypatch.setattr(machine, "apt_mirrors", lambda: [f"{mirror}-security", refusing, "no URL"])
        with pytest.raises(environment.Unavailable) as caught:
            caffe_root.find_mirror()
    text = str(caught.value)
    assert text.startswith(f"Debian 11 was not found: {mirror}-security has no bullseye (404); {refusing} cannot ")
    assert " be reached ([Errno 111] Connection refused); no URL cannot be reached (unknown url type: " in text
    assert "set FASTBATCH_DEBIAN_MIRROR to a mirror that has it" in text and "a mirror of the archive" in text


def test_a_setting_that_has_no_suite_is_not_replaced_by_apts(monkeypatch, mirror):
    monkeypatch.setattr(machine, "apt_mirrors", lambda: [mirror])
    monkeypatch.setenv("FASTBATCH_DEBIAN_MIRROR", f"{mirror}-archive")
    with pytest.raises(environment.Unavailable, match=r"-archive has no bullseye \(404\)\. "):
        caffe_root.find_mirror()


def test_no_mirror_at_all(monkeypatch):
    monkeypatch.setattr(machine, "apt_mirrors", lambda: [])
    with pytest.raises(environment.Unavailable, match="apt names no mirror: set FASTBATCH_DEBIAN_MIRROR to one of"):
        caffe_root.find_mirror()


# ---- the root ----


class Machine:
    """One where a root could be made: root's rights, debootstrap, Debian's keys, a mirror, a list of packages."""

    def __init__(self, monkeypatch, folder, mirror):
        self.mirror = mirror
        self.bin = folder / "bin"
        self.root = folder / "cache/root"
        self.packages = write(folder / "packages.txt", "# a list\none\n\ntwo\n")
        self.keyring = write(folder / "keys.gpg", "")
        program(self.bin / "debootstrap", "exit 1")
        for key, value in self.variables().items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(machine, "PATH", f"{self.bin}:{os.environ['PATH']}")
        monkeypatch.setattr(machine, "DEBIAN_KEYRING", self.keyring)
        monkeypatch.setattr(caffe_root, "PACKAGES", self.packages)
        if not MAY_MOUNT:
            monkeypatch.setattr(caffe_root, "own_mounts", lambda: ["unshare", "--mount"])

    def variables(self):
        return {
            "FASTBATCH_CAFFE": "root", "FASTBATCH_CAFFE_ROOT": str(self.root), "FASTBATCH_DEBIAN_MIRROR": self.mirror}

    def beside_root(self):
        """What there is in the cache: the root, and what was left of others."""
        return sorted(path.name for path in self.root.parent.iterdir() if path.is_dir())


@pytest.fixture
def able(monkeypatch, tmp_path, mirror):
    return Machine(monkeypatch, tmp_path, mirror)


def record_makes(monkeypatch):
    """Instead of Debian, a root is a file that names its packages. Returns the list of all that were made."""
    made = []

    def make(root, mirror, packages, log):
        made.append((mirror, packages))
        write(root.outside("/etc/packages"), " ".join(packages))

    monkeypatch.setattr(caffe_root.CaffeRoot, "make", make)
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

    monkeypatch.setattr(caffe_root.CaffeRoot, "make", make)
    for _ in range(2):  # the second time, too, since the old root has not become one with three packages
        with pytest.raises(environment.Unavailable, match="the power of the mirror failed"):
            caffe_root.CaffeRoot().prepare()
        assert able.beside_root() == ["root"] and (able.root / "etc/packages").read_text() == "one two"


KILLED = """
import os, signal, sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import caffe_root, machine
caffe_root.PACKAGES, machine.DEBIAN_KEYRING, machine.PATH = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
caffe_root.own_mounts = lambda: ["unshare", "--mount"]

def make(root, mirror, packages, log):
    root.outside("/etc/half").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)

caffe_root.CaffeRoot.make = make
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
    where = f"the reason is above, and all that was said is in {log}"
    shown, said = capfd.readouterr().err, log.read_text()
    if "fails" in what:
        assert str(caught.value) == f"debootstrap could not make the root from {able.mirror}: {where}"
    else:  # then there is nothing in it that apt could be run with
        assert str(caught.value) == f"apt could not install Caffe from {able.mirror}: {where}"
        assert "chroot: " in said
    assert said in shown and "the reason\n" in said
    given = re.findall("^<(.*)>$", said, re.MULTILINE)
    assert given[:3] == ["--variant=minbase", f"--keyring={able.keyring}", "bullseye"] and given[4:] == [able.mirror]
    assert re.fullmatch(re.escape(str(able.root)) + r"\.partial\.\d+", given[3])
    assert able.beside_root() == []
    assert given[3] not in Path("/proc/self/mountinfo").read_text()


# ---- tools/caffe-env where there is no way to Caffe ----


def ended(capfd, tool, *arguments):
    """(exit status, what was said on stderr) of a tool that is run in this process."""
    capfd.readouterr()
    return tool.main(list(arguments)), capfd.readouterr().err


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
    monkeypatch.setattr(caffe_root, "own_mounts", lambda: None)
    status, said = ended(capfd, caffe_env, "setup")
    assert status == 69 and said.startswith("caffe-env: this machine does not let root mount anything (a container ")
    assert said.endswith("give it that right, or use the Dockerfile.\n")


def test_where_the_system_is_another(monkeypatch, able, as_caffe_env, capfd):
    monkeypatch.setattr(caffe_root.platform, "system", lambda: "Darwin")
    said = "caffe-env: the root with Debian's Caffe needs Linux; the Dockerfile gives the same elsewhere.\n"
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
    assert (status, said) == (69, f"caffe-env: FASTBATCH_CAFFE is current, but {bare} cannot use Caffe: "
                                  "ModuleNotFoundError: No module named 'caffe'.\n")
    monkeypatch.delenv("FASTBATCH_CAFFE")
    assert isinstance(caffe_root.choose(), caffe_root.CaffeRoot)
    monkeypatch.setenv("FASTBATCH_CAFFE", "elsewhere")
    said = "caffe-env: FASTBATCH_CAFFE is 'elsewhere', and can be root or current.\n"
    assert ended(capfd, caffe_env, "path") == (69, said)


@pytest.mark.parametrize("arguments, status", [
    ([], 2), (["run"], 2), (["run", "--"], 2), (["setup", "now"], 2), (["other"], 2), (["--help"], 0)])
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


# ---- tools/bootstrap ----

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
        needs = [(*need[:1], self.keys.exists, *need[2:]) if need[0] == "Debian's keys" else need for need in needs]
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
    "bootstrap: missing: a C compiler, the C library's headers, pkg-config, lmdb.h, leveldb/c.h, jpeglib.h, png.h, debootstrap, "
    "Debian's keys"
)
PACKAGES = "gcc libc6-dev pkg-config liblmdb-dev libleveldb-dev libjpeg62-turbo-dev libpng-dev debootstrap debian-archive-keyring"
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
    program(fresh.bin / "cc", 'grep -q lmdb.h && exit 1 || exit 0')  # a compiler that does not find this header
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


# ---- tools/test ----


@pytest.fixture
def place_of(monkeypatch, tmp_path):
    """place_of(tests, beside_caffe): a place whose checkout is these files, and whose pytest is that of this Python.

    It is made ready as every place is, but for the virtual environment and fastbatch: its tests need neither.
    """
    pytest.importorskip("pytest_timeout")
    venv = tmp_path / "venv"
    (venv / "lib/python3").mkdir(parents=True)
    pytest_here = f'"{sys.executable}" -m pytest -p pytest_timeout "$@"'
    program(venv / "bin/pytest", f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 exec {pytest_here}")  # others take time to load
    monkeypatch.setattr(environment, "virtual_environment", lambda place: venv)
    monkeypatch.setattr(environment, "installed_fastbatch", lambda place, venv: "")
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")

    def place_of(tests, beside_caffe=False):
        place = environment.Python(sys.executable, [], beside_caffe)
        place.checkout = tmp_path / f"checkout-{environment.digest(tests)}"
        place.python_path = [os.environ.get("PYTHONPATH", "")]
        for name, text in tests.items():
            write(place.checkout / name, f"import pytest\n{text}\n")
        return place

    return place_of


PASSES = {"tests/test_a.py": "def test_a(): pass"}
FAILS = {"tests/test_a.py": "def test_a(): pass\ndef test_b(): assert 1 == 2"}


def table(monkeypatch, capfd, pythons, caffe, arguments=()):
    """(exit status, {name: (result, words)}) of tools/test where these are the places, or why they are none."""

    def get(place):
        if isinstance(place, Exception):
            raise place
        return place

    versions = [((3, 9 + i), None if isinstance(place, str) else i, place) for i, place in enumerate(pythons)]
    monkeypatch.setattr(test_all, "pythons", lambda: versions)
    monkeypatch.setattr(test_all, "Python", lambda i, requirements: get(pythons[i]))
    monkeypatch.setattr(test_all, "choose", lambda: get(caffe))
    capfd.readouterr()
    status = test_all.main(list(arguments))
    last = capfd.readouterr().out.rpartition("\n\n")[2]
    rows = [re.fullmatch(r"(.{12}) (.{9}) (.*)", line).groups() for line in last.splitlines()]
    return status, {name.strip(): (result.strip(), re.sub(r"\d+ s\b", "N s", words)) for name, result, words in rows}


NO_ROOT = environment.Unavailable("entering a root takes the rights of root")


def test_the_table_says_what_ran_and_what_did_not(place_of, monkeypatch, capfd):
    status, rows = table(monkeypatch, capfd, [place_of(PASSES), "not on this machine"], NO_ROOT)
    assert status == 0 and rows == {
        "Python 3.9": ("ok", "1 passed, 0 failed, 0 skipped, N s"),
        "Python 3.10": ("not run", "not on this machine."),
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
        "real Caffe": ("ok", "1 passed, 0 failed, 0 skipped, N s"),
    }


def test_nothing_that_ran_is_a_failure(monkeypatch, capfd):
    status, rows = table(monkeypatch, capfd, ["not on this machine"], NO_ROOT)
    assert status == 1 and [result for result, _ in rows.values()] == ["not run", "left out"]


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
    {"tests/caffe/test_b.py": "pytest.importorskip('caffe._no_such_part')\ndef test_b(): pass"},
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
        "real Caffe": ("FAILED", f"{words}; some were skipped for lack of Caffe, which is there"),
    }


def test_other_skips_are_none_of_that(place_of, monkeypatch, capfd):
    """Also in a folder that is called caffe."""
    other = {
        "tests/caffe/test_b.py": "pytest.importorskip('no_such_package')",
        "tests/caffe/test_c.py": "@pytest.mark.skip(reason='takes four cores')\ndef test_c(): pass",
    }
    status, rows = table(monkeypatch, capfd, [], place_of({**PASSES, **other}, beside_caffe=True))
    assert (status, rows) == (0, {"real Caffe": ("ok", "1 passed, 0 failed, 2 skipped, N s")})


def test_a_place_where_all_files_are_skipped_has_not_run(place_of, monkeypatch, capfd):
    """As with TEST_ARGS=tests/caffe, in a Python without Caffe. That alone is no failure, and no success."""
    place = place_of({**PASSES, **LACKS_CAFFE[0]})
    status, rows = table(monkeypatch, capfd, [place], NO_ROOT, arguments=["tests/caffe"])
    assert status == 1 and rows["Python 3.9"] == ("not run", "0 passed, 0 failed, 1 skipped, N s")
    caffe = place_of(PASSES, beside_caffe=True)
    status, rows = table(monkeypatch, capfd, [place], caffe, arguments=["tests", "-k", "no_such"])
    assert status == 1 and {result for result, _ in rows.values()} == {"not run"}


def test_programs_without_python_run_once_on_the_host(place_of, monkeypatch, tmp_path, capfd):
    place = place_of({}), place_of({}, beside_caffe=True)
    program(tmp_path / "venv/bin/pytest", f'echo "$*" >> {tmp_path}/calls')
    own = sys.version_info[:2]
    monkeypatch.setattr(test_all, "pythons", lambda: [(own, "/own", ""), ((2, 7), "/other", "")])
    monkeypatch.setattr(test_all, "Python", lambda executable, requirements: place[0])
    monkeypatch.setattr(test_all, "choose", lambda: place[1])
    place[0].checkout.mkdir()
    assert test_all.main([]) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    options, words = zip(*(call.split(" -p no:cacheprovider ") for call in calls))
    assert words == ("tests", "tests --ignore tests/test_native.py", "tests")
    assert all(option.startswith("--timeout 600 --junitxml /tmp/") for option in options)
    assert (TOOLS.parent / test_all.WITHOUT_PYTHON).exists()


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


# ---- tools/demo where there is no Caffe ----


@pytest.fixture
def no_caffe(monkeypatch, place_of, tmp_path):
    """A demo without Caffe, whose environment has a `python` that says what it was asked to run, and ends as told."""

    def refuse():
        raise NO_ROOT

    python = tmp_path / "venv/bin/python"

    def answers(*cases):
        program(python, "\n".join(['echo "python $*" >&2', 'case "$*" in', *cases, "esac"]))

    answers()
    place = place_of({})
    place.checkout = tmp_path
    monkeypatch.setattr(sys, "argv", ["tools/demo"])
    monkeypatch.setattr(demo, "choose", refuse)
    monkeypatch.setattr(demo, "Python", lambda executable, requirements: place)
    return answers


FIRST = ["demo: entering a root takes the rights of root.",
         "demo: the real Caffe cannot be had here: a plain Python loop learns the digits, through fastbatch's Loader"]
TWO = ["python examples/digits/databases.py build/demo", "python examples/loop/softmax.py build/demo"]


def test_the_demo_does_what_it_can_and_says_what_it_left_out(no_caffe, capfd):
    status, said = ended(capfd, demo)
    lines = said.splitlines()
    assert status == 0 and lines[:4] == FIRST + TWO
    left_out = [line for line in lines if "left out" in line]
    assert left_out == ["demo: left out: LeNet in the real Caffe, through fastbatch's layer and through Caffe's own, "
                        "and the picture of it. The reason: entering a root takes the rights of root."]
    assert lines[-3].startswith("demo: to get that, run `make demo` as root on Debian") and "docker build" in lines[-2]
    for words in TWO:
        assert (CHECKOUT / words.split()[1]).is_file()


def test_the_demo_says_so_where_lmdb_is_missing_too(no_caffe, capfd):
    no_caffe('"-c import fastbatch"*) exit 1 ;;')
    status, said = ended(capfd, demo)
    left_out = [line for line in said.splitlines() if "left out" in line]
    assert status == 0 and len(left_out) == 2
    assert left_out[0].startswith("demo: left out: reading the digits from LMDB, which this fastbatch was built with")
    assert "install LMDB's headers (Debian: liblmdb-dev)" in said


def test_a_loop_that_fails_is_a_failure_of_the_demo(no_caffe, capfd):
    no_caffe("examples/loop/*) exit 3 ;;")
    status, said = ended(capfd, demo)
    assert status == 1 and said.splitlines()[2:] == [
        *TWO, "demo: examples/loop/softmax.py ended with status 3: the reason is above."]


@pytest.mark.parametrize("error, status", [(environment.Unavailable, 69), (environment.BuildFailed, 1)])
def test_a_demo_that_can_do_nothing(no_caffe, monkeypatch, capfd, error, status):
    def fails(place, venv=None):
        raise error("it cannot be done")

    monkeypatch.setattr(environment, "virtual_environment", fails)
    assert ended(capfd, demo) == (status, "\n".join([*FIRST, "demo: it cannot be done.\n"]))


def test_a_fastbatch_that_does_not_build_beside_caffe_is_no_lack_of_caffe(no_caffe, monkeypatch, place_of, capfd):
    def fails(place, venv):
        raise environment.BuildFailed("fastbatch could not be built")

    monkeypatch.setattr(demo, "choose", lambda: place_of({}, beside_caffe=True))
    monkeypatch.setattr(environment, "installed_fastbatch", fails)
    assert ended(capfd, demo) == (1, "demo: fastbatch could not be built.\n")
