"""`python -m fastbatch index`: what it makes, of what; and what it says."""

import os
import re
import shutil

import numpy as np
import pytest

codec = pytest.importorskip("fastbatch.images._codec")

from databases import datum, encoded, images, write_leveldb, write_lmdb
from fastbatch import ImageListSource, Loader, Transform
from fastbatch.cli import main
from jpegs import PROGRESSIVE, encode_jpeg, encode_png, noise
from planned import PATIENCE
from windows import window_file

if codec.jpeg_decoder() != "own":
    pytest.skip("the own JPEG decoder is not in use here", allow_module_level=True)

COUNT = 5
CONTENTS = [encode_jpeg(noise(200, 300, seed=number)) for number in range(COUNT)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with photographs in images/."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("images/a/b")
    for number, content in enumerate(CONTENTS):
        (tmp_path / f"images/a/b/{number}.JPG").write_bytes(content)
    return tmp_path


def unknown(index, paths=None):
    """How many of the photographs have no entry, in the first epoch."""
    paths = [f"images/a/b/{number}.JPG" for number in range(COUNT)] if paths is None else paths
    with Loader(ImageListSource(paths, index_file=index), Transform(crop_size=40), timeout=PATIENCE) as loader:
        for _batch in loader:
            pass
        return loader.stats().images["own"]


def make_list(folder):
    (folder / "images/list.txt").write_text("".join(f"a/b/{number}.JPG {number}\n" for number in range(COUNT)))
    return ["images/list.txt", "--root", "images"]


def make_list_of_boxes(folder):
    (folder / "images/list.txt").write_text("".join(f"a/b/{number}.JPG 1 2 3 4\n" for number in range(COUNT)))
    return ["images/list.txt", "--root", "images/", "--labels", "4", "--threads", "1"]


def make_windows(folder):
    window_file(folder, [(f"a/b/{i}.JPG", (200, 300), [(1, 1.0, 0, 0, 9, 9)] * 2) for i in range(COUNT)])
    return ["windows.txt", "--root", "images/"]


def make_lmdb(folder):
    write_lmdb("made", [encoded(each, 3) for each in CONTENTS])
    return ["made"]


def make_leveldb(folder):
    write_leveldb("made", [encoded(each, 3) for each in CONTENTS])
    return ["made/"]


@pytest.mark.parametrize(
    "make", [make_list, make_list_of_boxes, make_windows, make_lmdb, make_leveldb, lambda folder: ["images/"]]
)
def test_what_it_can_be_made_of(folder, capsys, make):
    arguments = make(folder)
    out = f"{arguments[0].rstrip('/')}.index"
    assert main(["index", *arguments]) == 0
    size = os.path.getsize(out)
    said = capsys.readouterr()
    begin = rf"{out}: {COUNT} entries for {COUNT} images; {size:,} bytes, {size / COUNT:.0f} for each entry; made in "
    assert re.fullmatch(begin + r"\d+\.\d s\n", said.out) and said.err == ""
    assert unknown(out) == 0


def test_several_sources_each_with_a_file_or_all_with_one(folder, capsys):
    shutil.copytree("images", "others")
    (folder / "others/more.jpeg").write_bytes(encode_jpeg(noise(200, 300, seed=50)))
    assert main(["index", "images", "others"]) == 0
    assert [line.split(";")[0] for line in capsys.readouterr().out.splitlines()] == [
        "images.index: 5 entries for 5 images",
        "others.index: 6 entries for 6 images",
    ]
    assert main(["index", "images", "others", "-o", "all"]) == 0
    assert capsys.readouterr().out.startswith("all: 6 entries for 11 images; ")  # five are the same
    assert unknown("all") == 0
    assert sorted(os.listdir()) == ["all", "images", "images.index", "others", "others.index"]


def test_it_is_made_anew(folder, capsys):
    """What is not in the source any more is not in the file."""
    assert main(["index", "images"]) == 0
    os.unlink("images/a/b/0.JPG")
    assert main(["index", "images"]) == 0
    assert "4 entries for 4 images" in capsys.readouterr().out


def test_what_has_no_entry(folder, capsys):
    made = folder / "images"
    (made / "progressive.jpg").write_bytes(encode_jpeg(noise(200, 300, seed=7), flags=PROGRESSIVE))
    (made / "small.jpg").write_bytes(encode_jpeg(noise(20, 30, seed=8)))
    (made / "png.jpg").write_bytes(encode_png(noise(100, 120), 2, 8))
    (made / "bad.jpg").write_bytes(b"no image")
    assert main(["index", "images"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("images.index: 5 entries for 9 images; ")
    assert re.fullmatch(
        r"images: 1 of 9 images cannot be read, and have no entry. The first is images/bad.jpg: .*neither JPEG nor PNG"
        r".*[^.]\.\n",
        said.err,
    )


def error(capsys, *arguments):
    assert main(["index", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith(".\n") and not said.err.endswith("..\n")
    return said.err


def test_what_cannot_be_done(folder, capsys):
    assert error(capsys, "none") == "none cannot be read or written: No such file or directory.\n"
    assert "there is no folder no" in error(capsys, "images", "-o", "no/index")
    assert "images/a/b/0.JPG is not an index of JPEG files, and is left as it is" in error(
        capsys, "images", "-o", "images/a/b/0.JPG"
    )
    (folder / "list.txt").write_text("a.jpg\n")
    assert "list.txt: line 1 has no label" in error(capsys, "list.txt")
    (folder / "list.txt").write_text("a.jpg 1\n")
    assert "no sample of epoch 0 of list.txt could be loaded" in error(capsys, "list.txt")
    write_lmdb("raw", [datum(each, 0) for each in images(3)])
    assert "index_file has no effect: the first record of raw is no image file" in error(capsys, "raw")
    os.makedirs("empty/of/images")
    assert "the folder empty has neither a database nor JPEG files in it" in error(capsys, "empty")
    (folder / "empty/of/itself").symlink_to(folder / "empty")
    assert "empty/of/itself leads back, through a link, to a folder that it lies in" in error(capsys, "empty")
    (folder / "empty/of/itself").unlink()
    (folder / "empty/small.jpg").write_bytes(encode_jpeg(noise(20, 30)))
    assert "empty.index is not written: the images are small, and gain nothing by an index" in error(capsys, "empty")
    (folder / "empty/small.jpg").write_bytes(encode_jpeg(noise(200, 300), flags=PROGRESSIVE))
    assert "empty.index is not written: no image is baseline JPEG" in error(capsys, "empty")
    assert sorted(os.listdir()) == ["empty", "images", "list.txt", "raw"]


def test_without_the_own_decoder(folder, capsys):
    codec.use_jpeg_decoder("libjpeg")
    try:
        assert error(capsys, "images").startswith("JPEG files are decoded by libjpeg here")
    finally:
        codec.use_jpeg_decoder("own")


def test_progress_on_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["index", "images"]) == 0
    assert re.fullmatch(r"(\rimages: 5 of 5 images)+\r\x1b\[K", capsys.readouterr().err)


def test_the_pixels_are_those_without_it(folder):
    assert main(["index", "images"]) == 0
    shown = []
    for options in {"index_file": "images.index"}, {"index_bytes": 0}:
        source = ImageListSource([f"images/a/b/{number}.JPG" for number in range(COUNT)], **options)
        with Loader(source, Transform(crop_size=100), batch_size=COUNT, seed=3, timeout=PATIENCE) as loader:
            shown += [np.array(batch["data"]) for batch in loader]
    assert np.array_equal(*shown)
