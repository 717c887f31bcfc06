"""The tools as modules, and a machine that is replaced at its edges.

The edges are programs on the PATH, an HTTP server, and a place for a root.
"""

import contextlib
import http.server
import importlib.machinery
import importlib.util
import os
import sys
import threading
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TOOLS = CHECKOUT / "tools"


def script(name):
    """One of the tools that are programs, as a module."""
    loader = importlib.machinery.SourceFileLoader(f"tool_{name.replace('-', '_')}", str(TOOLS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


before = sys.path[:], sys.dont_write_bytecode
sys.path.insert(0, str(TOOLS))
sys.dont_write_bytecode = True
import caffe_root
import debian_root
import environment
import machine
import newest_root  # noqa: F401 (for the tests)

bootstrap, caffe_env, demo, lint, test_all = map(script, ("bootstrap", "caffe-env", "demo", "lint", "test"))
sys.path[:], sys.dont_write_bytecode = before

MAY_MOUNT = os.geteuid() == 0 and debian_root.own_mounts() is not None
NO_ROOT = environment.Unavailable("entering a root takes the rights of root")


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
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


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
        monkeypatch.setattr(caffe_root.CaffeRoot, "packages", self.packages)
        if not MAY_MOUNT:
            monkeypatch.setattr(debian_root, "own_mounts", lambda: ["unshare", "--mount"])

    def variables(self):
        return {
            "FASTBATCH_CAFFE": "root",
            "FASTBATCH_CAFFE_ROOT": str(self.root),
            "FASTBATCH_DEBIAN_MIRROR": self.mirror,
        }

    def beside_root(self):
        """What there is in the cache: the root, and what was left of others."""
        return sorted(path.name for path in self.root.parent.iterdir() if path.is_dir())


def ended(capfd, tool, *arguments):
    """(exit status, what was said on stderr) of a tool that is run in this process."""
    capfd.readouterr()
    return tool.main(list(arguments)), capfd.readouterr().err
