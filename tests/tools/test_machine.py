"""tools/machine.py: what the tools read of this machine's settings."""

from pathlib import Path

from tooling import machine, program, write


def test_mirrors_of_one_line_lists(tmp_path):
    write(
        tmp_path / "sources.list",
        """\
# deb http://commented.invalid/debian bookworm main
deb http://first.invalid/debian bookworm main contrib # deb http://behind.invalid/debian bookworm main
deb-src http://sources-only.invalid/debian bookworm main
deb [ arch=amd64 signed-by=/a/key.gpg ] https://options.invalid/debian bookworm contrib main
deb http://no-main.invalid/debian bookworm contrib
deb http://main.invalid/main main
deb cdrom:[Debian_12]/ bookworm main

deb http://first.invalid/debian bookworm-updates main
""",
    )
    write(tmp_path / "sources.list.d/b.list", "deb file:/local/debian bookworm main\n")
    write(tmp_path / "sources.list.d/a.list", "deb [trusted=yes] http://a.invalid/debian bookworm main")
    write(tmp_path / "sources.list.d/c.list.save", "deb http://saved.invalid/debian bookworm main\n")
    assert machine.apt_mirrors(tmp_path) == [
        "http://first.invalid/debian",
        "https://options.invalid/debian",
        "http://a.invalid/debian",
        "file:/local/debian",
    ]


def test_mirrors_of_deb822_files(tmp_path):
    write(tmp_path / "sources.list", "deb http://list.invalid/debian bookworm main\n")
    write(
        tmp_path / "sources.list.d/debian.sources",
        """\
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
Components: contrib""",
    )
    assert machine.apt_mirrors(tmp_path) == [
        "http://list.invalid/debian",
        "http://one.invalid/debian",
        "http://two.invalid/debian",
        "http://lower.invalid/debian",
    ]


def test_no_apt_means_no_mirrors(tmp_path):
    assert machine.apt_mirrors(tmp_path / "etc/apt") == []


def test_proxies_are_those_of_the_variables(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:2")
    monkeypatch.setenv("https_proxy", "")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert machine.proxies() == {
        "http_proxy": "http://proxy.invalid:1",
        "HTTPS_PROXY": "http://proxy.invalid:2",
        "no_proxy": "127.0.0.1",
    }


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
    write(
        home / ".pip/pip.conf",
        """\
[global]
index-url = http://legacy.invalid/simple
timeout = 1
cert = /legacy
retries = 1
""",
    )
    write(
        home / ".config/pip/pip.conf",
        """\
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
""",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(write(tmp_path / "third.conf", "[global]\ntimeout = 3\ncert = /third\n")))
    monkeypatch.setenv("PIP_CERT", "/variable")
    settings = machine.pip_settings()
    expected = {
        "PIP_INDEX_URL": "http://install.invalid/simple",
        "PIP_TIMEOUT": "3",
        "PIP_CERT": "/variable",
        "PIP_RETRIES": "1",
        "PIP_FIND_LINKS": "/wheels/one /wheels/two",
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
