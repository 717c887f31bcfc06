"""The command line, without anything that needs Caffe."""

import importlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys

import pytest

import fastbatch
from children import environment
from fastbatch import _build_info, _features, cli
from fastbatch.cli import main


def test_info(capsys):
    assert main(["info"]) == 0
    assert "fastbatch" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code in (None, 0)
    assert capsys.readouterr().out == f"fastbatch {fastbatch.__version__}\n"


def test_info_says_no_for_a_library_that_cannot_be_loaded(capsys, monkeypatch):
    report = "  core   yes\n  first  yes  1.0  pkg-config\n  other  yes  2.0  pkg-config\n  none   NO        not found"
    row = dict(title="First", how="pkg-config", missing="First", install="Debian: first", version="1.0")
    monkeypatch.setattr(_build_info, "REPORT", report)
    monkeypatch.setattr(
        _build_info,
        "LIBRARIES",
        {
            "first": dict(row, extension="fastbatch._nothing"),
            "other": dict(row, extension="fastbatch._core", title="Other", version="2.0"),
            "none": dict(row, extension="fastbatch._none", version=None),
        },
    )
    monkeypatch.setattr(_features, "_loaded", set())
    assert main(["info"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [
        "  core   yes",
        "  first  NO   1.0  pkg-config, cannot be loaded now",
        "  other  yes  2.0  pkg-config",
        "  none   NO        not found",
    ]
    assert said[-1].startswith(
        "fastbatch was built with First 1.0, which cannot be loaded now: No module named 'fastbatch._nothing'."
    )


def python_m_fastbatch(*arguments, **settings):
    """The command as a process of its own."""
    command = [sys.executable, "-m", "fastbatch", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, universal_newlines=True, **settings)


def test_a_reader_that_has_enough_ends_the_command_quietly():
    """As in `python -m fastbatch info | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = python_m_fastbatch("info", stdout=writing)
    os.close(writing)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        process = python_m_fastbatch("info", stdout=full)
        said = process.communicate(timeout=60)[1]
    assert (said, process.returncode) == ("Standard output cannot be written: No space left on device.\n", 2)


def test_closed_standard_output_is_no_error():
    process = python_m_fastbatch("info", preexec_fn=lambda: os.close(1))
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)


def test_a_folder_that_the_locale_cannot_say(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "executable", "/home/b\u00e4r/caf\udce9/python")
    assert main(["info"]) == 0
    assert rb"/home/b\xe4r/caf\udce9/python" in output.buffer.getvalue()


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.info, "run", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr() == ("", "")


def test_in_the_folder_of_the_sources_it_says_why_it_does_not_work(tmp_path):
    """Where README.md's first command leaves its reader: Python finds the sources before what is installed."""
    (tmp_path / "fastbatch").mkdir()
    shutil.copy(fastbatch.__file__, tmp_path / "fastbatch")
    command = [sys.executable, "-S", "-m", "fastbatch", "info"]  # without the packages that are installed
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert f"{tmp_path} holds the sources of fastbatch, which are not compiled there for Python 3." in done.stderr
    assert (
        f"start Python in another folder, since it looks in that one first; else install it: pip install {tmp_path}"
        in done.stderr
    )


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
    with pytest.raises(
        ModuleNotFoundError, match="fastbatch.caffe needs Caffe's own .* Debian's package python3-caffe"
    ) as caught:
        importlib.import_module("fastbatch.caffe")
    assert caught.value.name == "caffe"


def test_the_layers_beside_a_folder_named_caffe(tmp_path):
    """Python takes it for a package where there is no other: Caffe's own comes first where it can be imported."""
    (tmp_path / "caffe").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import fastbatch.caffe"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    caffe = importlib.util.find_spec("caffe")
    if caffe is not None and caffe.origin is not None:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    assert f"`import caffe` finds something else here: {tmp_path}/caffe" in done.stderr
    assert "Rename that, or take its folder off the PYTHONPATH" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["convert"], ["convert", "net", "another"], ["unknown"]])
def test_wrong_use_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m fastbatch" in capsys.readouterr().err
