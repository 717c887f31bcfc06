"""Fixtures for the tests of what `make` runs.

The tests check what the tools read of the machine's settings, and what they do if something is missing.

They run with the machine replaced at its edges: folders, variables, programs on the PATH and an HTTP server that belong
to the test. Nothing is installed, and no test needs root, though some check more as root.
"""

import os
import signal
import sys

import pytest

from tooling import Machine, environment, http_server, machine, program, write


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


@pytest.fixture
def mirror():
    """The address of a mirror that has Debian 11."""
    with http_server("/debian/dists/bullseye/InRelease") as address:
        yield f"{address}/debian"


@pytest.fixture
def able(monkeypatch, tmp_path, mirror):
    return Machine(monkeypatch, tmp_path, mirror)


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
