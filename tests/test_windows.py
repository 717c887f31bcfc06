"""Window files and windows in the plain Python way.

What Caffe does with them, tests/layers/test_window_data.py compares.
"""

import contextlib
import os

import numpy as np
import pytest

from children import anonymous_memory, run_child
from contracts import PATIENCE, assert_samples, check_in_order, check_ranks, check_shared, loader_of
from fastbatch import MissingLibraryError, SampleError, SourceError, _features, features
from fastbatch._batches import BatchRing
from fastbatch.orders import Permuted, Positions
from fastbatch.orders.caffe import CaffeSampling
from fastbatch.sources._windows import COLUMNS, CaffeWindows, parse_windows
from jpegs import encode_png

decodes = pytest.mark.skipif(features()["jpeg"] is None or features()["png"] is None, reason="built without decoders")

GOOD = b"# 0\na.png\n3\n4\n5\n3\n7 0.5 0 1 4 3\n8 0.49999999 1 1 1 1\n9 0.4999999 2 2 2 3\n# 1\nb/b.png\n3\n6\n6\n0\n"


def test_a_list():
    images, foreground, background = parse_windows(GOOD, "x", b"root/")
    assert images == [(b"root/a.png", 4, 5, 3), (b"root/b/b.png", 6, 6, 0)]
    assert COLUMNS == ("image", "line", "label", "x1", "y1", "x2", "y2")
    assert foreground.dtype == background.dtype == np.int32
    # 0.49999999 is 0.5 as a float, as in Caffe.
    assert foreground.tolist() == [[0, 7, 7, 0, 1, 4, 3], [0, 8, 8, 1, 1, 1, 1]]
    assert background.tolist() == [[0, 9, 0, 2, 2, 2, 3]]


def test_thresholds():
    for fg, bg, counts in (0.6, 0.4, (0, 0)), (0, 0.5, (3, 0)), (0.6, 0.5, (0, 1)), (-1, -1, (3, 0)), (2, 2, (0, 3)):
        _, foreground, background = parse_windows(GOOD, "x", fg_threshold=fg, bg_threshold=bg)
        assert (len(foreground), len(background)) == counts
        assert foreground.shape[1] == background.shape[1] == len(COLUMNS)


def test_a_list_that_is_large():
    """As many windows as make arrays grow many times."""
    windows = b"".join(b"%d 0.%d 0 0 %d 9\n" % (j + 1, j % 10, j % 100) for j in range(200))
    lines = [b"# %d i%d.png 3 100 100 200\n" % (i, i) + windows for i in range(500)]
    images, foreground, background = parse_windows(b"".join(lines), "x")
    assert len(images) == 500 and images[499] == (b"i499.png", 100, 100, 200)
    assert (len(foreground), len(background)) == (50000, 50000)
    assert foreground[-1].tolist() == [499, 500 * 201, 200, 0, 0, 99, 9]


HEAD = b"# 0\na.png\n3\n4\n5\n"


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "x: Window file is empty"),
        (b" \r\n\t\n", "x: Window file is empty"),
        (b"\xef\xbb\xbf" + GOOD, "x is not a plain text file: it begins with a byte order mark"),
        (GOOD.decode().encode("utf-16"), "x is not a plain text file"),
        (GOOD.decode().encode("utf-16-le"), "x is not a plain text file"),
        (GOOD + b"\0", "x is not a plain text file"),
        (
            b"a.jpg 1\nb.jpg 2\n",
            (
                "x: line 1: 'a.jpg' is where # should be, with which each image begins (in Caffe's words: Check "
                "failed: hashtag"
            ),
        ),
        (b"#0 a.png 3 4 5 0", "x: line 1: '#0' is where # should be"),
        (b"\n\n## 0", "x: line 3: '##' is where # should be"),
        (b"# x", "x: line 1: 'x' is where the index of image 0 should be, which is an integer"),
        (b"# 1 a.png 3 4 5 0", "x: line 1: image 0 has the index 1; indices must be 0, 1, 2"),
        (b"# -1 a.png 3 4 5 0", "x: line 1: image 0 has the index -1"),
        (HEAD + b"0\n# 0 b 3 1 1 0", "x: line 7: image 1 has the index 0"),
        (b"# 0", "x: it ends where the path of image 0 should be: it is truncated"),
        (
            b"# 0 my a.png 3 4 5 0",
            (
                "x: line 1: 'a.png' is where the number of channels of image 0 should be, which is an integer "
                "after the path; a path must not contain spaces"
            ),
        ),
        (
            b"# 0 a.png 1 4 5 0",
            "x: line 1: image 0 has 1 channels according to the list; write 3: Caffe reads every image in color",
        ),
        (b"# 0 a.png 3 0 5 0", "x: line 1: image 0 is 5 x 0 pixels wide and high according to the list"),
        (b"# 0 a.png 3 4 -5 0", "x: line 1: image 0 is -5 x 4 pixels"),
        (b"# 0 a.png 3 1048577 1 0", "sides are 1 to 1048576"),
        (b"# 0 a.png 3 1048576 1025 0", "with 1073741824 pixels in all"),
        (
            b"# 0 a.png 3 4294967300 5 0",
            "x: line 1: '4294967300' is where the height of image 0 should be, which is not a 32-bit integer",
        ),
        (
            b"# 0 a.png 3 " + b"9" * 5000 + b" 5 0",
            "x: line 1: '" + "9" * 40 + "' is where the height of image 0 should be, which is not a 32-bit integer",
        ),
        (b"# 0 a.png 3 4.0 5 0", "'4.0' is where the height"),
        (b"# 0 a.png 3 0x4 5 0", "'0x4' is where the height"),
        (b"# 0 a.png 3 - 5 0", "'-' is where the height"),
        (HEAD + b"-1\n", "x: line 6: image 0 has -1 windows"),
        (
            HEAD + b"2147483647\n1 1 0 0 1 1",
            (
                "x: it ends where the class of a window of image 0 should be: it is truncated, or image 0 has fewer "
                "windows than it says"
            ),
        ),
        (HEAD + b"1\n1 1 0 0 1", "x: it ends where the y2 of a window of image 0 should be"),
        (
            HEAD + b"2\n1 1 0 0 1 1\n# 1 b 3 1 1 0",
            (
                "x: line 8: '#' is where the class of a window of image 0 should be, which is an integer; the "
                "image has fewer windows than it says"
            ),
        ),
        (
            HEAD + b"1\n1 1 0 0 1 1\n1 1 0 0 1 1",
            (
                "x: line 8: '1' is where # should be, with which each image begins after the windows that the "
                "previous image says it has"
            ),
        ),
        (
            HEAD + b"1\n1 nan 0 0 1 1",
            "x: line 7: 'nan' is where the overlap of a window of image 0 should be, which is a number such as 0.5",
        ),
        (HEAD + b"1\n1 -inf 0 0 1 1", "'-inf' is where the overlap"),
        (
            HEAD + b"1\n1 1e39 0 0 1 1",
            "'1e39' is where the overlap of a window of image 0 should be, which is too large for a float",
        ),
        (HEAD + b"1\n1 0,5 0 0 1 1", "'0,5' is where the overlap"),
        (HEAD + b"1\n1 1e 0 0 1 1", "'1e' is where the overlap"),
        (HEAD + b"1\n1 . 0 0 1 1", "'.' is where the overlap"),
        (HEAD + b"1\n1 0x1 0 0 1 1", "'0x1' is where the overlap"),
        (HEAD + b"1\n1 \xff\xfe 0 0 1 1", "'\\xff\\xfe' is where the overlap"),
        (
            HEAD + b"1\n0 0.5 0 0 1 1",
            (
                "x: line 7: a window of image 0 with overlap 0.5, so of the foreground, has class 0; classes are 1 to "
                "16777216 (in Caffe's words: Check failed: label > 0)"
            ),
        ),
        (HEAD + b"1\n16777217 0.5 0 0 1 1", "has class 16777217"),
        (HEAD + b"1\n1 0.5 2 0 1 1", "x: line 7: the window 2 0 1 1 (x1 y1 x2 y2) of image 0 is inside out"),
        (HEAD + b"1\n1 0.5 0 2 1 1", "is inside out"),
        (
            HEAD + b"1\n1 0.5 -1 0 1 1",
            (
                "x: line 7: the window -1 0 1 1 (x1 y1 x2 y2) is not inside of image 0, which is 5 x 4 pixels wide "
                "and high"
            ),
        ),
        (HEAD + b"1\n1 0.5 0 -1 1 1", "is not inside of image 0"),
        (HEAD + b"1\n1 0.5 0 0 5 1", "is not inside of image 0"),
        (HEAD + b"1\n1 0.5 0 0 1 4", "is not inside of image 0"),
    ],
)
def test_lists_that_are_wrong(content, words):
    with pytest.raises(SourceError) as caught:
        parse_windows(content, "x")
    assert words in str(caught.value) and str(caught.value).startswith("x")


# ---- windows of images

SIZE = 6


@pytest.fixture
def folder(tmp_path):
    """Two images of 4 x 5 and 6 x 6, and their pixels, blue first."""
    pixels = [
        np.random.RandomState(i).randint(0, 256, (*size, 3)).astype(np.uint8)
        for i, size in enumerate([(4, 5), (SIZE, SIZE)])
    ]
    for i, image in enumerate(pixels):
        (tmp_path / f"{i}.png").write_bytes(encode_png(image, 2, 8))
    return tmp_path, [image[..., ::-1].transpose(2, 0, 1).astype(np.float32) for image in pixels]


LIST = b"# 0 0.png 3 4 5 2 3 0.9 1 1 3 3 0 0 2 0 2 0 # 1 1.png 3 6 6 1 0 0 0 0 5 5"


def windows_of(path, content=LIST, **options):
    found = parse_windows(content, "list", bytes(path) + b"/")
    return CaffeWindows(*found, **{**dict(source="list", crop_size=SIZE), **options})


@contextlib.contextmanager
def sampling(source, threads=2, foreground_count=2, mirror=False):
    """A function that gives the next batch of 4, as WindowData would."""
    order = CaffeSampling(1, 2, 1, 4, foreground_count, mirror)
    ring = BatchRing(source, batch_size=4, slots=3, threads=threads, order=order)
    try:
        yield lambda: ring.next(PATIENCE)
    finally:
        ring.close()


def batches_of(source, count, **options):
    with sampling(source, **options) as next_batch:
        return [
            (batch.sample_keys, batch.data.copy(), batch.label.copy()) for batch in (next_batch() for _ in range(count))
        ]


@decodes
def test_windows_of_the_background_come_first(folder):
    path, pixels = folder
    seen = set()
    for keys, data, label in batches_of(windows_of(path), 10):
        assert label.tolist() == [0, 0, 3, 3] and label.dtype == np.int64
        assert data.shape == (4, 3, SIZE, SIZE) and data.dtype == np.float32
        assert keys[2:] == 2 * [bytes(path / "0.png")]
        for key, square in zip(keys[:2], data):
            seen.add(key)
            # One pixel fills the square; a window as large as it is not resized.
            expected = pixels[1] if key.endswith(b"1.png") else np.broadcast_to(pixels[0][:, :1, 2:3], (3, SIZE, SIZE))
            np.testing.assert_array_equal(square, expected)
    assert len(seen) == 2


@decodes
@pytest.mark.usefixtures("each_kernel")
def test_mean_and_scale(folder):
    path, pixels = folder
    mean = np.random.RandomState(5).rand(3, SIZE + 3, SIZE + 2).astype(np.float32)
    for options, less in [
        ({"mean_values": (1, 2, 3)}, np.float32([1, 2, 3]).reshape(3, 1, 1)),
        ({"mean_image": mean}, mean[:, 1:7, 1:7]),
        ({}, 0),
    ]:
        batches = batches_of(windows_of(path, scale=0.3, **options), 5, foreground_count=0)
        found = [square for keys, data, _ in batches for key, square in zip(keys, data) if key.endswith(b"1.png")]
        assert found
        for square in found:
            np.testing.assert_array_equal(square, (pixels[1] - less) * np.float32(0.3))


@decodes
def test_every_window_is_two_samples(folder):
    """In any order, as every source: as it is, and mirrored; those of the background first."""
    path, pixels = folder
    source = windows_of(path)
    whole = pixels[1]
    samples = [np.broadcast_to(pixels[0][:, :1, 2:3], (3, SIZE, SIZE))] * 2 + [whole, whole[..., ::-1]]
    keys = 2 * [bytes(path / "0.png")] + 2 * [bytes(path / "1.png")] + 2 * [bytes(path / "0.png")]
    with loader_of(source, batch_size=6, threads=2) as loader:
        (batch,) = loader
        samples += [batch.data[4].copy(), batch.data[5].copy()]
    np.testing.assert_allclose(
        samples[4][..., ::-1], samples[5], atol=1
    )  # a window that is resized rounds otherwise when mirrored
    expected = {"data": samples, "label": [np.int64(label) for label in (0, 0, 0, 0, 3, 3)]}
    check_in_order(source, expected, keys)
    check_shared(source, expected)
    check_ranks(source, keys)
    with loader_of(source, batch_size=1, shuffle=True, seed=3, threads=2) as loader:
        for position, batch in enumerate(loader):
            assert_samples(batch, expected, [Positions(Permuted(3), 6).at(position)[0]])


def test_sampling_that_cannot_be():
    with pytest.raises(ValueError, match="of 4 windows 5 cannot be foreground"):
        CaffeSampling(0, 1, 1, 4, 5)
    with pytest.raises(ValueError, match="there must be windows of the background and of the foreground, not 0 and 3"):
        CaffeSampling(0, 0, 3, 4, 2)
    with pytest.raises(
        ValueError, match="2 windows of the background and 1 of the foreground are 6 samples, and the source has 7"
    ):
        Positions(CaffeSampling(0, 2, 1, 4, 2), 7)


@decodes
def test_any_number_of_threads_and_loaders_give_the_same(folder):
    path, _ = folder
    source = windows_of(path, context_pad=1, square=True, cache_images=True)
    expected = batches_of(source, 20, threads=1, mirror=True)
    for threads in 2, 5:
        for (keys, data, label), (other_keys, other_data, other_label) in zip(
            expected, batches_of(source, 20, threads=threads, mirror=True)
        ):
            assert (
                keys == other_keys and data.tobytes() == other_data.tobytes() and label.tolist() == other_label.tolist()
            )
    assert repr(source) == "CaffeWindows('list', 2 images)"


@decodes
def test_files_that_are_missing(folder):
    path, _ = folder
    (path / "0.png").unlink()
    with pytest.raises(
        SampleError, match=r"list, sample 0 .*: Could not open or find file .*/0.png: No such file"
    ) as caught:
        batches_of(windows_of(path), 1)
    assert "It was needed for the window" in str(caught.value) and caught.value.key == bytes(path / "0.png")
    with pytest.raises(SampleError, match="Could not open or find file .*/0.png: No such file"):
        windows_of(path, cache_images=True)


@decodes
@pytest.mark.parametrize("cache_images", [False, True])
def test_a_root_folder_that_does_not_end_in_a_slash(folder, cache_images):
    root = bytes(folder[0])
    with pytest.raises(
        SampleError,
        match="Could not open .*: No such file or directory; root_folder is prepended .*: a folder must end in a slash",
    ):
        batches_of(
            CaffeWindows(
                *parse_windows(LIST, "list", root),
                source="list",
                crop_size=SIZE,
                root_folder=root,
                cache_images=cache_images,
            ),
            1,
        )


@decodes
def test_what_is_no_file_is_not_waited_for(folder):
    path, _ = folder
    (path / "0.png").unlink()
    os.mkfifo(path / "0.png")
    with pytest.raises(SampleError, match="/0.png is not a file"):
        batches_of(windows_of(path), 1)
    with pytest.raises(SampleError, match="/0.png is not a file"):
        windows_of(path, cache_images=True)


@decodes
@pytest.mark.usefixtures("counts_memory")
def test_closing_frees_the_files_that_are_cached(folder):
    """When no loader reads them any more. Later loaders read from the disk."""
    path, _ = folder
    size = 60_000_000
    os.truncate(path / "0.png", size)
    source = windows_of(path, cache_images=True)
    expected = batches_of(source, 5)
    with sampling(source) as next_batch:
        next_batch()
        source.close()
        before = anonymous_memory()
        (path / "0.png").rename(path / "away.png")
        for _, data, label in expected[1:]:
            batch = next_batch()
            assert batch.data.tobytes() == data.tobytes() and batch.label.tolist() == label.tolist()
        assert abs(before - anonymous_memory()) < size / 2
    assert before - anonymous_memory() > size / 2
    (path / "away.png").rename(path / "0.png")
    for found, batch in zip(batches_of(source, 5), expected):
        assert found[0] == batch[0] and found[1].tobytes() == batch[1].tobytes()


@decodes
def test_signals_are_seen_while_files_are_cached(folder):
    """So is Ctrl-C, which would raise KeyboardInterrupt here. The last file is gone by the time it is read."""
    path, _ = folder
    run_child(f"""
        import os, signal
        import numpy as np
        from fastbatch import SampleError
        from fastbatch.sources._windows import CaffeWindows
        rows = np.zeros((1, 7), np.int32)
        names = [{str(path)!r} + i % 300 * "/." + i // 300 * "/" + "/0.png" for i in range(100_000)]
        names.append({str(path / "1.png")!r})
        images = [(name.encode(), 4, 5, 1) for name in names]
        signal.signal(signal.SIGALRM, lambda *_: os.unlink(names[-1]))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            CaffeWindows(images, rows, rows, source="x", crop_size=1, cache_images=True)
        except SampleError as error:
            assert "1.png: No such file" in str(error), error
        else:
            raise AssertionError("the signal was not seen")
    """)


@decodes
def test_a_folder_with_a_very_long_name(tmp_path):
    """The reason still names the window; only the path, which is the key, is cut off."""
    path = tmp_path / ("x" * 250) / ("y" * 250)
    with pytest.raises(SampleError) as caught:
        batches_of(windows_of(path), 1)
    assert "(x1 y1 x2 y2) of line 1" in caught.value.reason
    assert len(caught.value.key) == 511 and bytes(path).startswith(caught.value.key)


@decodes
@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"context_pad": 3}, ValueError, "a context of 3 pixels on each side leaves nothing of 6"),
        ({"mean_image": np.zeros((1, 9, 9), np.float32)}, ValueError, "the mean image is 1 x 9 x 9"),
        ({"mean_image": np.zeros((3, 9, 5), np.float32)}, ValueError, "the mean image is 3 x 9 x 5"),
        ({"mean_image": np.zeros((3, 6, 9), np.float32)}, ValueError, "1 from its left and from its top"),
        (
            {"content": LIST.replace(b"0.9", b"0.5").replace(b"3 0.5", b"0 0.4")},
            SourceError,
            "list has no foreground windows",
        ),
        ({"content": LIST.replace(b" 0 0 ", b" 1 0.9 ")}, SourceError, "list has no background windows"),
    ],
)
def test_arguments_that_make_no_sense(folder, options, error, words):
    with pytest.raises(error, match=words):
        windows_of(folder[0], **options)


def test_without_decoders(monkeypatch):
    monkeypatch.setattr(_features, "problem", lambda name: f"built without {name}")
    with pytest.raises(MissingLibraryError, match="built without jpeg"):
        CaffeWindows(*parse_windows(LIST, "list"), source="list", crop_size=1)
