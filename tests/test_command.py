"""The command line, where nothing of Caffe's is needed."""

import sys

import pytest

from fastbatch.__main__ import main


def test_info(capsys):
    assert main(["info"]) == 0
    assert "fastbatch" in capsys.readouterr().out


def test_convert_without_caffe_says_what_is_needed(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "caffe", None)  # what Python itself leaves where an import is forbidden
    assert main(["convert", "net.prototxt"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "this Python cannot import it" in err and "Debian's package python3-caffe" in err


@pytest.mark.parametrize("arguments", [[], ["convert"], ["convert", "net", "another"], ["unknown"]])
def test_wrong_use_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m fastbatch" in capsys.readouterr().err
