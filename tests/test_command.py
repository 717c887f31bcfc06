"""The command line, where nothing of Caffe's is needed."""

import importlib
import shutil
import subprocess
import sys

import pytest

import fastbatch
from fastbatch.__main__ import main


def test_info(capsys):
    assert main(["info"]) == 0
    assert "fastbatch" in capsys.readouterr().out


def test_in_the_folder_of_the_sources_it_says_why_it_does_not_work(tmp_path):
    """Where README.md's first command leaves its reader: Python finds the sources before what is installed."""
    (tmp_path / "fastbatch").mkdir()
    shutil.copy(fastbatch.__file__, tmp_path / "fastbatch")
    command = [sys.executable, "-S", "-m", "fastbatch", "info"]  # without the packages that are installed
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"{tmp_path} holds the sources of fastbatch, which are not compiled there for Python 3." in done.stderr
    assert done.stderr.endswith(f"start Python in another folder, since it looks in that one first; else install it: pip install {tmp_path}\n")


def test_convert_without_caffe_says_what_is_needed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "caffe", None)  # what Python itself leaves where an import is forbidden
    monkeypatch.delitem(sys.modules, "fastbatch.caffe", raising=False)
    assert main(["convert", "net.prototxt"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "this Python cannot import it" in err and "Debian's package python3-caffe" in err
    assert err.endswith("on the PYTHONPATH.\n") and err.count("\n") == 1


def test_the_layers_without_caffe_say_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "caffe", None)
    monkeypatch.delitem(sys.modules, "fastbatch.caffe", raising=False)
    with pytest.raises(ModuleNotFoundError, match="fastbatch.caffe needs Caffe's own .* Debian's package python3-caffe") as caught:
        importlib.import_module("fastbatch.caffe")
    assert caught.value.name == "caffe"


@pytest.mark.parametrize("arguments", [[], ["convert"], ["convert", "net", "another"], ["unknown"]])
def test_wrong_use_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m fastbatch" in capsys.readouterr().err
