"""The help text of each tool."""

import os
import subprocess

import pytest

from tooling import TOOLS

PROGRAMS = sorted(path.name for path in TOOLS.iterdir() if path.is_file() and os.access(path, os.X_OK))


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_shown_and_nothing_done(name, tmp_path):
    """For some, any other word is what they start to work with."""
    done = subprocess.run([TOOLS / name, "--help"], capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and len(said.splitlines()) >= 4, said
    assert "#" not in said and os.listdir(tmp_path / "home") == []
