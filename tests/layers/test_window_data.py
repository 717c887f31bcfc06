"""Our WindowData layer against Caffe's own in one process: the same windows, bits and draws."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("fastbatch.images._codec")

import caffe
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fastbatch
from databases import images
from jpegs import with_exif
from layer_contracts import DRAWING, SPOILT, check_in_a_forked_child, check_same_batches, spoil, trained
from nets import anonymous_kb, assert_same_bits, native_threads, open_files, run, shown
from pictures import JPEG, PROGRESSIVE, encode, picture
from windows import window_file, windows_of

pytestmark = pytest.mark.usefixtures("leaves_nothing")

BATCH, FORWARDS = 7, 6
CROP = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with windows.txt, its images of every kind, and mean.binaryproto."""
    folder = tmp_path_factory.mktemp("windows")
    listed = []

    def add(name, data, size):
        (folder / name).write_bytes(data)
        listed.append((name, size, windows_of(*size, seed=len(listed))))

    for i, kind in enumerate([JPEG, (".png",), PROGRESSIVE, JPEG, (".png",)]):
        size = (61 + 7 * i, 113 - 9 * i)
        add(f"{i}{kind[0]}", encode(picture(i, *size), *kind), size)
    add("gray.jpg", encode(picture(6, 53, 67, channels=1), *JPEG), (53, 67))
    add("gray.png", encode(picture(7, 53, 67, channels=1), ".png"), (53, 67))
    add("alpha.png", encode(picture(8, 30, 91, channels=4), ".png"), (30, 91))
    add("low.jpg", encode(picture(9, 9, 50), *JPEG), (9, 50))
    add("crop.png", encode(picture(10, CROP, CROP), ".png"), (CROP, CROP))
    add("twice.jpg", encode(picture(11, 2 * CROP, 2 * CROP), *JPEG), (2 * CROP, 2 * CROP))
    for orientation in range(1, 9):
        size = (48, 71) if orientation < 5 else (71, 48)
        add(f"oriented{orientation}.jpg", with_exif(encode(picture(orientation, 48, 71), *JPEG), orientation), size)
    window_file(folder, listed)
    for name, shape in ("mean", (CROP + 9, CROP + 9)), ("high", (CROP + 30, CROP + 5)), ("exact", (CROP, CROP)):
        mean = caffe.io.array_to_blobproto(images(1, (3, *shape), np.float32, seed=9))
        (folder / f"{name}.binaryproto").write_bytes(mean.SerializeToString())
    return folder


def ours(param, transform="", options="", more="", tops=("data", "label")):
    python = f'python_param {{ module: "fastbatch.caffe" layer: "WindowData" param_str: "{options}" }}'
    return layer("Python", python, param, transform, more, tops)


def caffes(param, transform="", options="", more="", tops=("data", "label")):
    return layer("WindowData", "", param, transform, more, tops)


def layer(kind, python, param, transform, more, tops):
    tops = " ".join(f'top: "{top}"' for top in tops)
    if "crop_size" not in transform:
        transform = f"crop_size: {CROP} {transform}"
    transform = f"transform_param {{ {transform} }}"
    return (
        f'layer {{ name: "data" type: "{kind}" {tops} {python} window_data_param {{ {param} }} {transform} {more} }}\n'
    )


def of(made, more="", batch_size=BATCH):
    return f'source: "{made}/windows.txt" root_folder: "{made}/" batch_size: {batch_size} {more}'


def assert_conforms(
    build, param, transform="", options="", phase=caffe.TRAIN, seeds=(1701,), after=DRAWING, forwards=FORWARDS
):
    texts = [kind(param, transform, options) + after for kind in (ours, caffes)]
    check_same_batches(build, texts, forwards, seeds, phase)


MEANS = {
    "none": "",
    "one value": "mean_value: 117.3",
    "three values": "mean_value: 104.1 mean_value: 116.7 mean_value: 122.7",
    "file": 'mean_file: "FOLDER/mean.binaryproto"',
    "high file": 'mean_file: "FOLDER/high.binaryproto"',
    "exact file": 'mean_file: "FOLDER/exact.binaryproto"',
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("mirror", ["false", "true"])
@pytest.mark.parametrize("context_pad", [0, 16])
@pytest.mark.parametrize("mode", ["warp", "square"])
def test_same_windows_same_bits_same_draws(build, made, mode, context_pad, mirror, mean, threads):
    param = of(made, f'crop_mode: "{mode}" context_pad: {context_pad} fg_fraction: 0.4 scale: 0.017')
    transform = f"mirror: {mirror} {MEANS[mean].replace('FOLDER', str(made))}"
    assert_conforms(build, param, transform, f"threads: {threads}")


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("mean", ["three values", "file"])
@pytest.mark.parametrize("mode", ["warp", "square"])
def test_every_kernel_that_runs_here(build, made, mode, mean):
    param = of(made, f'crop_mode: "{mode}" context_pad: 3 scale: 0.017')
    assert_conforms(build, param, f"mirror: true {MEANS[mean].replace('FOLDER', str(made))}")


@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST], ids=["TRAIN", "TEST"])
@pytest.mark.parametrize("cache", ["false", "true"])
@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 0.9999999, 1])
def test_shares_of_the_foreground(build, made, fraction, cache, phase):
    param = of(made, f"fg_fraction: {fraction} context_pad: 5 cache_images: {cache}", batch_size=10)
    assert_conforms(build, param, "mirror: true mean_value: 100", "threads: 3", phase, forwards=3)


@pytest.mark.parametrize("crop_size, context_pad", [(1, 0), (2, 0), (3, 1), (17, 8), (80, 39), (227, 16)])
@pytest.mark.parametrize("mode", ["warp", "square"])
def test_sizes(build, made, mode, crop_size, context_pad):
    param = of(made, f'crop_mode: "{mode}" context_pad: {context_pad}')
    transform = f"crop_size: {crop_size} mirror: true"
    try:
        # Ours alone first, as far as the thread of Caffe's layer may be ahead: there such a window ends the process.
        run(build, ours(param, transform, "") + DRAWING, 4 + 8, seed=1701)
    except fastbatch.SampleError as degenerate:
        assert "nothing of it is left after the resize" in str(degenerate)
    else:
        assert_conforms(build, param, transform, forwards=4)


@pytest.mark.parametrize("scale", ["1", "0", "-3", "0.00390625", "1e30", "1e-44"])
def test_scales(build, made, scale):
    assert_conforms(build, of(made, f"scale: {scale} context_pad: 3"), "mean_value: 128", forwards=3)


@pytest.mark.parametrize(
    "thresholds",
    ["", "fg_threshold: 0.7 bg_threshold: 0.3", "fg_threshold: 0.2", "bg_threshold: 0.9", "bg_threshold: -0.5"],
)
def test_thresholds_and_overlaps_at_them(build, made, tmp_path, thresholds):
    overlaps = [
        "0.5",
        ".5",
        "5e-1",
        "0.69999999",
        "0.7",
        "0.70000001",
        "0.3",
        "0.30000001",
        "0.29999999",
        "1.",
        "+0.2",
        "-1",
        "1e-60",
        "0.1E1",
        "0.200000002980232238769531250000000000001",
        "0.20000000298023223876953125",
        "0.2000000029802322387695312499999999999",
    ]
    windows = [(i + 1, overlap, i, i, 2 * i + 1, i + 3) for i, overlap in enumerate(overlaps)]
    path = window_file(tmp_path, [(made / "0.jpg", (61, 113), windows)])
    assert_conforms(build, f'source: "{path}" batch_size: 20 fg_fraction: 0.6 {thresholds}', forwards=3)


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\t \f\v\n\n", " "])
def test_any_white_space(build, made, tmp_path, ending):
    listed = [(made / "0.jpg", (61, 113), windows_of(61, 113, 0)), (made / "1.png", (68, 104), [])]
    assert_conforms(build, f'source: "{window_file(tmp_path, listed, ending=ending)}" batch_size: 3')


def test_numbers_with_signs_and_zeros(build, made, tmp_path):
    (tmp_path / "windows.txt").write_text(f"# +00 {made}/0.jpg 03 0061 +113 002 +7 0.6 +0 -0 0009 11 -3 0.1 0 0 5 5")
    assert_conforms(build, f'source: "{tmp_path}/windows.txt" batch_size: 6', forwards=2)


def test_names_in_any_encoding(build, made, tmp_path):
    for name in "\u00e4\u732b.jpg".encode(), b"\xff\xfe.jpg":
        os.symlink(bytes(made / "0.jpg"), os.path.join(bytes(tmp_path), name))
        (tmp_path / "windows.txt").write_bytes(b"# 0 %s 3 61 113 2 1 0.6 0 0 9 9 0 0.1 0 0 5 5" % name)
        assert_conforms(build, f'source: "{tmp_path}/windows.txt" root_folder: "{tmp_path}/" batch_size: 2', forwards=2)


def test_large_classes(build, made, tmp_path):
    windows = [(2**24, 1, 0, 0, 3, 3), (2**24 - 1, 1, 0, 0, 3, 3), (-9, 0, 1, 1, 4, 4)]
    path = window_file(tmp_path, [(made / "0.jpg", (61, 113), windows)])
    assert_conforms(build, f'source: "{path}" batch_size: 6 fg_fraction: 0.5', forwards=3)


def test_prefetch_is_read_from_data_param(build, made):
    layer = ours(of(made), more="data_param { prefetch: 2 }")
    assert build(layer).layers[0].stats()["slots"] == 3


def test_with_a_copy_and_without(build, made):
    net = build(ours(of(made)))
    net.forward()
    assert net.blobs["data"].data.ctypes.data == net.layers[0]._showing.shown.address(0)
    assert_conforms(build, of(made), options="zero_copy: false")


def test_every_rank_samples_from_everything(build, made):
    caffe.set_multiprocess(True)
    caffe.set_solver_count(3)
    caffe.set_solver_rank(2)
    try:
        assert_conforms(build, of(made), "mirror: true")
    finally:
        caffe.set_solver_rank(0)
        caffe.set_solver_count(1)
        caffe.set_multiprocess(False)


def test_two_layers_in_one_net(build, made):
    """Their draws at setup follow each other, and each has a stream of its own."""
    results = []
    for kind in ours, caffes:
        other = kind(of(made, "context_pad: 4"), tops=("data2", "label2")).replace('name: "data"', 'name: "other"', 1)
        results.append(
            run(
                build,
                kind(of(made), "mirror: true") + other + DRAWING,
                FORWARDS,
                seed=5,
                names=["data", "label", "data2", "label2", "ip"],
            )
        )
    assert_same_bits(*results)


@pytest.mark.parametrize("cache", ["false", "true"])
def test_training_is_the_same(tmp_path, made, cache):
    """A short training with tests in between: every loss, digit for digit, and every weight."""
    param, transform = of(made, f"context_pad: 4 cache_images: {cache}", batch_size=16), "mirror: true mean_value: 120"
    results = []
    for kind in ours, caffes:
        text = "".join(kind(param, transform, more=f"include {{ phase: {phase} }}") for phase in ("TRAIN", "TEST"))
        solver = "test_iter: 2 test_interval: 3 max_iter: 100"
        results.append(trained(tmp_path, text, 21, solver=solver, steps=15))
    assert_same_bits(*results)


# Lists and parameters at random


@st.composite
def lists(draw):
    """[((height, width), kind, [windows])] with something of the foreground and of the background."""
    listed = []
    for _i in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
        windows = []
        for _ in range(draw(st.integers(0, 4))):
            x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            windows.append(
                (
                    draw(st.integers(1, 9)),
                    draw(st.sampled_from([0, 0.3, 0.5, 0.51, 1])),
                    x1,
                    y1,
                    draw(st.integers(x1, width - 1)),
                    draw(st.integers(y1, height - 1)),
                )
            )
        listed.append(((height, width), draw(st.sampled_from([JPEG, (".png",), PROGRESSIVE])), windows))
    assume(len({window[1] >= 0.5 for _, _, windows in listed for window in windows}) == 2)
    return listed


@given(lists(), st.integers(1, 60), st.data())
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
def test_lists_and_parameters_at_random(build, made, tmp_path, listed, crop_size, data):
    pad = data.draw(st.integers(0, (crop_size - 1) // 2), "pad")
    mode, cache, mirror = (
        data.draw(st.sampled_from(choice)) for choice in (["warp", "square"], ["true", "false"], ["true", "false"])
    )
    fraction, batch_size = (
        data.draw(st.floats(0, 1, width=32), "fg_fraction"),
        data.draw(st.integers(1, 9), "batch_size"),
    )
    means = data.draw(
        st.lists(st.floats(-300, 300, width=32), max_size=3).filter(lambda means: len(means) != 2), "means"
    )
    scale, seed = data.draw(st.floats(-100, 100, width=32), "scale"), data.draw(st.integers(0, 2**31), "seed")
    entries = []
    for i, (size, kind, windows) in enumerate(listed):
        path = tmp_path / f"{i}{kind[0]}"
        path.write_bytes(encode(picture(i, *size), *kind))
        entries.append((path, size, windows))
    param = (
        f'source: "{window_file(tmp_path, entries)}" batch_size: {batch_size} fg_fraction: {fraction!r} context_pad: '
        f'{pad} crop_mode: "{mode}" cache_images: {cache} scale: {scale!r}'
    )
    transform = f"crop_size: {crop_size} mirror: {mirror} " + " ".join(f"mean_value: {mean!r}" for mean in means)
    try:  # Caffe's own layer ends the process when it comes to such a window, and prepares batches ahead
        run(build, ours(param, transform), 3 + 6, seed=seed)
    except fastbatch.SampleError as degenerate:
        assert "nothing of it is left after the resize" in str(degenerate)
        assume(False)
    assert_conforms(build, param, transform, f"threads: {data.draw(st.integers(1, 3))}", seeds=[seed], forwards=3)


# What Caffe says

LOG = """
    import os, sys
    os.environ["GLOG_minloglevel"] = "0"
    import caffe
    caffe.set_random_seed(1)
    for net in sys.argv[1:]:
        print("net", net, file=sys.stderr, flush=True)
        caffe.Net(net, caffe.TRAIN).forward()
"""


def test_the_log_is_caffes(made, tmp_path, start):
    listed = [
        (f"{i}.png", (68, 104), [(i % 4 + 1, 0.5 + i / 1000, 0, 0, i % 60, 9), (3, 0.2, 0, 0, 5, 5)][: 1 + i % 2])
        for i in range(207)
    ]
    path = window_file(tmp_path, listed)
    for i in range(207):
        os.symlink(str(made / "1.png"), str(tmp_path / f"{i}.png"))
    param = (
        f'source: "{path}" root_folder: "{tmp_path}/" batch_size: 4 fg_threshold: 0.6 bg_threshold: 0.33333333 '
        'fg_fraction: 0.1 context_pad: 2 crop_mode: "square" cache_images: true'
    )
    for name, kind in ("ours", ours), ("caffes", caffes):
        (tmp_path / name).write_text(kind(param, f'mean_file: "{made}/mean.binaryproto"'))
    logs = []
    for name in "ours", "caffes":
        process = start(LOG.replace("sys.argv[1:]", f"['{name}']"))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        lines = [
            line[line.index("] ") + 2 :] if line[:1] in "IWE" and "] " in line else line for line in errors.splitlines()
        ]
        logs.append(lines[lines.index("data -> label") + 1 : lines.index("Setting up data")])
    assert logs[0] == logs[1]
    assert (
        "Number of images: 207" in logs[0]
        and "num: 200 " + str(tmp_path / "200.png") + " 3 68 104 windows to process: 1" in logs[0]
    )


# What is wrong


def test_parameters_that_make_no_sense(build, made):
    gray = made / "gray.binaryproto"
    for name, shape in ("gray", (1, 60, 60)), ("small", (3, 60, CROP - 1)), ("low", (3, CROP + 9, CROP + 20)):
        mean = caffe.io.array_to_blobproto(np.zeros((1, *shape), np.float32))
        (made / f"{name}.binaryproto").write_bytes(mean.SerializeToString())
    nowhere = "is not inside of it; Caffe would read whatever is around it"
    for param, transform, words in [
        ("batch_size: 0", "", "batch_size must be 1 or more, not 0"),
        ("", "crop_size: 0", "Check failed: crop_size > 0"),
        ("context_pad: 20", "", "context_pad 20 on each side leaves nothing of crop_size 40"),
        ("context_pad: 4294967295", "", "leaves nothing of crop_size 40"),
        ('crop_mode: "Square"', "", 'crop_mode is "Square"; it can be "warp" or "square"'),
        ("fg_fraction: 1.01", "", "fg_fraction is 1.01; it must lie between 0 and 1"),
        ("fg_fraction: -0.1", "", "fg_fraction is -0.1"),
        ("mirror: true", "", "window_data_param.mirror: Caffe ignores it there"),
        ("crop_size: 3", "", "window_data_param.crop_size: Caffe ignores it there"),
        ('mean_file: "x"', "", "window_data_param.mean_file: Caffe ignores it there"),
        ("", "scale: 2", "transform_param.scale: Caffe's WindowData ignores it: write scale in window_data_param"),
        ("", "force_color: true", "it reads all images in color"),
        ("", "force_gray: true", "it reads all images in color"),
        ("", "mean_value: 1 mean_value: 2", "Specify either 1 mean_value or as many as channels: 3 "),
        ("", f'mean_value: 1 mean_file: "{gray}"', "Cannot specify mean_file and mean_value at the same time"),
        ("", f'mean_file: "{gray}"', f"the mean image is 1 x 60 x 60 .*{nowhere}"),
        ("", f'mean_file: "{made}/small.binaryproto"', f"the mean image is 3 x 60 x 39 .*{nowhere}"),
        ("", f'mean_file: "{made}/low.binaryproto"', f"10 from its left and from its top, {nowhere}"),
        ("", 'mean_file: "/nowhere"', "File not found: /nowhere"),
        ("fg_threshold: 3", "", "has no foreground windows, .*Check failed: fg_windows_.size.. > 0"),
        ("bg_threshold: -1", "", "has no background windows, .*Check failed: bg_windows_.size.. > 0"),
        ("batch_size: 500000", "", "blob size exceeds INT_MAX"),
    ]:
        whole = of(made, param)
        if "batch_size" in param:
            whole = whole.replace(f"batch_size: {BATCH}", "")
        with pytest.raises((ValueError, OSError), match=words):
            build(ours(whole, transform))
    for text, words in [
        (ours(of(made), "scale: 1").replace(f"batch_size: {BATCH}", ""), "window_data_param.batch_size is missing"),
        (ours("batch_size: 1"), "window_data_param.source is missing"),
        (ours(of(made), more="data_param { prefetch: 0 }"), "prefetch must be 1 or more"),
        (ours(of(made), more="data_param { batch_size: 3 }"), "Write it in window_data_param"),
        (
            ours(of(made), tops=["data"]),
            "WindowData Layer produces 2 top blob.s. as output, data and label; this one has 1",
        ),
        (ours(of(made), options="thread: 2"), "Did you mean threads"),
    ]:
        with pytest.raises(ValueError, match=words):
            build(text)
    assert (native_threads(), open_files(str(made))) == ([], [])
    build(ours(of(made), "scale: 1"))


def test_a_list_that_is_not_there_or_wrong(build, tmp_path):
    param = f'source: "{tmp_path}/windows.txt" batch_size: 2'
    with pytest.raises(fastbatch.SourceError, match=f"Failed to open window file {tmp_path}/windows.txt: No such file"):
        build(ours(param))
    for content, words in [
        ("", "Window file is empty"),
        ("# 0 a.jpg 3 9 9 1 0 0.1 0 0 9 8", "line 1: the window 0 0 9 8 .* not inside of image 0"),
    ]:
        (tmp_path / "windows.txt").write_text(content)
        with pytest.raises(
            fastbatch.SourceError, match=f"{tmp_path}/windows.txt: {words}"
        ):  # tests/test_windows.py has the others
            build(ours(param))
    image = b"# 0 a.jpg 3 9 9 2 0 0.1 0 0 8 8 1 0.9 0 0 8 8"
    (tmp_path / "windows.txt").write_bytes(image)
    with pytest.raises(fastbatch.SampleError, match="Could not open or find file a.jpg: No such file") as caught:
        build(ours(f"{param} cache_images: true"))
    assert (caught.value.key, caught.value.index) == (b"a.jpg", 0) and "slash" not in str(caught.value)
    with pytest.raises(
        fastbatch.SampleError,
        match="imagesa.jpg: No such file or directory; root_folder is .*: a folder must end in a slash",
    ):
        build(ours(f'{param} cache_images: true root_folder: "images"'))
    assert native_threads() == []


CAFFE = """
    import caffe
    caffe.set_random_seed(3)
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    for _ in range(4):
        net.forward()
        print(abs(net.blobs["data"].data).sum(axis=(1, 2, 3)).tolist(), net.blobs["label"].data.tolist(), flush=True)
"""
GOOD = "# 0\na.png\n3\n30\n40\n2\n1 0.9 0 0 9 9\n0 0.1 5 5 20 20\n"


@pytest.mark.parametrize(
    "content, param, theirs, words",
    [
        # It goes on, and nobody notices.
        (GOOD.replace("a.png", "b.png"), "", "zeros", "Could not open or find file b.png: No such file"),
        (
            GOOD.replace("30\n40", "40\n30"),
            "",
            "something",
            "the image is 40 x 30 pixels wide and high, but 30 x 40 according to the list",
        ),
        (
            GOOD.replace("# 0", "# 1") + GOOD,
            "",
            "something",
            "line 1: image 0 has the index 1",
        ),  # it takes the other one's windows
        (GOOD, 'crop_mode: "warped"', "something", 'crop_mode is "warped"'),
        (GOOD.replace("20 20", "40 20"), "context_pad: 3", "something", "line 8: the window 5 5 40 20"),
        (GOOD.replace("20 20", "4 20"), "context_pad: 3", "something", "line 8: the window 5 5 4 20 .* inside out"),
        (GOOD.replace("\n3\n", "\n4\n"), "", "something", "line 3: image 0 has 4 channels"),
        (
            GOOD.replace("0.1", "nan"),
            "",
            "anything",
            "line 8: 'nan' is where the overlap of a window of image 0 should be",
        ),
        (GOOD.replace("0.1", "0x1p-4"), "", "anything", "line 8: '0x1p-4' is where the overlap"),
        (GOOD + "# 1\na.png\n3\n30\n40\n-5\n", "", "something", "line 14: image 1 has -5 windows"),
        (GOOD + "garbage", "", "something", "line 9: 'garbage' is where # should be"),
        (GOOD.replace("\n2\n", "\n3\n"), "", "anything", "it ends where the class of a window of image 0 should be"),
        # It ends the process.
        (GOOD.replace("20 20", "40 20"), "", "abort", "line 8: the window 5 5 40 20"),
        (GOOD.replace("20 20", "4 4"), "", "abort", "line 8: the window 5 5 4 4 .* inside out"),
        (
            GOOD.replace("a.png", "b.png"),
            "cache_images: true",
            "abort",
            "sample 0 .key 'b.png'.: Could not open or find file b.png",
        ),
        (GOOD.replace("a.png", "net.prototxt"), "cache_images: true", "abort", "neither JPEG nor PNG"),
        (
            GOOD.replace("1 0.9", "0 0.9"),
            "",
            "abort",
            "line 7: a window of image 0 with overlap 0.9, so of the foreground, has class 0",
        ),
        (
            GOOD.replace("a.png", "a b.png"),
            "",
            "abort",
            "line 2: 'b.png' is where the number of channels of image 0 should be",
        ),
        (GOOD.replace("# 0", "#0"), "", "abort", "line 1: '#0' is where # should be"),
        (
            "# 0 thin.png 3 1 40 2 1 0.9 0 0 39 0 0 0.1 0 0 39 0",
            'crop_mode: "square"',
            "abort",
            "so little lies in the image that nothing of it is left after the resize to 20 x 20",
        ),
    ],
)
def test_what_caffe_does_not_notice_or_does_not_survive(
    build, start, tmp_path, monkeypatch, content, param, theirs, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "windows.txt").write_text(content)
    (tmp_path / "a.png").write_bytes(encode(picture(1, 30, 40), ".png"))
    (tmp_path / "thin.png").write_bytes(encode(picture(1, 1, 40), ".png"))
    param = f'source: "windows.txt" batch_size: 3 fg_fraction: 0.4 {param}'
    (tmp_path / "net.prototxt").write_text(caffes(param, "crop_size: 20"))
    if theirs != "anything":  # what happens to be in memory
        process = start(CAFFE)
        output, _ = process.communicate(timeout=120)
        assert (process.returncode != 0) == (theirs == "abort")
    if theirs == "zeros":
        assert output.splitlines() == 4 * ["[0.0, 0.0, 0.0] [0.0, 0.0, 0.0]"]
    elif theirs == "something":
        assert len(output.splitlines()) == 4 and "[0.0, " not in output.split("]")[0]
    with pytest.raises((ValueError, OSError), match=words):
        build(ours(param, "crop_size: 20")).forward()


@pytest.mark.parametrize("what", ["missing", "truncated"])
@pytest.mark.parametrize("cache", ["false", "true"])
def test_windows_of_an_image_that_cannot_be_had_are_replaced(build, tmp_path, monkeypatch, cache, what):
    """By windows of the foreground in the foreground, and of the background in the background."""
    said = []
    monkeypatch.setattr(caffe, "log", said.append, raising=False)
    listed = []
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encode(picture(i, 50, 61), *JPEG))
        listed.append((f"{i}.jpg", (50, 61), [(i + 1, 0.9, 3, 4, 20, 30), (0, 0.1, i, i, 44, 45)]))
    param = f'source: "{window_file(tmp_path, listed)}" root_folder: "{tmp_path}/" batch_size: 4 cache_images: {cache}'
    good = run(build, ours(param + " fg_fraction: 0.5", "mirror: true"), 20, seed=8)
    spoil(tmp_path / "4.jpg", what)
    found = []
    for threads in 1, 3:
        options = f"threads: {threads} on_error: 'replace'"
        found.append(run(build, ours(param + " fg_fraction: 0.5", "mirror: true", options), 20, seed=8))
    assert_same_bits(*found)
    labels, wanted = np.concatenate(found[0][1::2]), np.concatenate(good[1::2])
    pixels, same = np.concatenate(found[0][::2]), np.concatenate(good[::2])
    bad = (pixels != same).any(axis=(1, 2, 3))
    assert ((labels == 0) == (wanted == 0)).all() and 5 not in labels
    assert bad[wanted == 5].all() and not bad[(wanted != 5) & (wanted != 0)].any()
    assert 0 < bad[wanted == 0].sum() < (wanted == 0).sum() / 2
    named = [line for line in said if "another sample takes its place" in line]
    assert len(named) >= 2 * bad.sum() and all("/4.jpg" in line for line in named)


def test_a_class_with_a_single_window_is_replaced_by_any(build, tmp_path):
    listed = []
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(encode(picture(i, 50, 61), *JPEG))
        listed.append((f"{i}.jpg", (50, 61), [(7, 0.9, 3, 4, 20, 30)] if i else [(0, 0.1, i, i, 44, 45)]))
    spoil(tmp_path / "1.jpg", "empty")
    param = f'source: "{window_file(tmp_path, listed)}" root_folder: "{tmp_path}/" batch_size: 4 fg_fraction: 0.5'
    labels = run(build, ours(param, "mirror: false", "on_error: 'replace'"), 3, seed=8, names=["label"])
    assert np.concatenate(labels).tolist() == 12 * [0]


@pytest.mark.parametrize(
    "what, words",
    [
        *SPOILT.items(),
        ("larger", "the image is 62 x 50 pixels wide and high, but 61 x 50 according to the list"),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_an_image_that_cannot_be_had(build, tmp_path, threads, what, words):
    """Each of its batches raises one error, with path, window and line; all other batches are unaffected."""
    listed = []
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encode(picture(i, 50, 61), *JPEG))
        listed.append((f"{i}.jpg", (50, 61), [(i + 1, 0.9, 3, 4, 20, 30), (0, 0.1, i, i, 44, 45)]))
    param = f'source: "{window_file(tmp_path, listed)}" root_folder: "{tmp_path}/" batch_size: 4'
    expected = run(build, ours(param, "mirror: true"), 30, seed=8)
    bad = tmp_path / "4.jpg"
    if what == "larger":
        bad.write_bytes(encode(picture(4, 50, 62), *JPEG))
    else:
        spoil(bad, what)
    caffe.set_random_seed(8)
    net = build(ours(param, "mirror: true", f"threads: {threads}"))
    failed = 0
    for number in range(30):
        try:
            net.forward()
        except fastbatch.SampleError as error:
            failed += 1
            assert (error.key, error.index, error.batch) == (os.fsencode(str(bad)), 4, number)
            assert words in str(error)
            assert ("window 3 4 20 30 (x1 y1 x2 y2) of line 39" in str(error)) != (
                "window 4 4 44 45 (x1 y1 x2 y2) of line 40" in str(error)
            )
            assert str(tmp_path / "windows.txt") in str(error)
        else:
            assert_same_bits(shown(net), expected[2 * number : 2 * number + 2])
    assert 5 < failed < 25


# Memory, and ends


def test_cached_images_go_with_their_net(build, made, tmp_path):
    large = encode(np.random.RandomState(0).randint(0, 256, (1000, 1300, 3)).astype(np.uint8), ".png")
    (tmp_path / "large.png").write_bytes(large)
    listed = [(tmp_path / "large.png", (1000, 1300), [(1, 1, 0, 0, 9, 9), (0, 0, 0, 0, 9, 9)])] * 50  # kept once
    param = f'source: "{window_file(tmp_path, listed)}" batch_size: 2 cache_images: true'
    before = anonymous_kb()
    for _ in range(12):
        net = build(ours(param, options="threads: 1"))
        net.forward()
        del net
    fastbatch.caffe.close_all()
    assert anonymous_kb() - before < 8 * len(large) // 1024


def test_close_frees_cached_images_while_the_net_lives(build, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture(1, 30, 40), ".png"))
    os.truncate(str(tmp_path / "a.png"), 100_000_000)
    (tmp_path / "windows.txt").write_text(GOOD)
    net = build(
        ours(
            f'source: "{tmp_path}/windows.txt" root_folder: "{tmp_path}/" batch_size: 2 fg_fraction: 0.5 '
            "cache_images: true"
        )
    )
    net.forward()
    before = anonymous_kb()
    fastbatch.caffe.close_all()
    assert before - anonymous_kb() > 90_000
    assert net.blobs["label"].data.tolist() == [0, 1]


def test_cached_images_need_their_files_no_more(build, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture(1, 30, 40), ".png"))
    (tmp_path / "windows.txt").write_text(GOOD)
    param = (
        f'source: "{tmp_path}/windows.txt" root_folder: "{tmp_path}/" batch_size: 2 fg_fraction: 0.5 cache_images: true'
    )
    net = build(ours(param))
    os.unlink(str(tmp_path / "a.png"))
    for _ in range(12):
        net.forward()
        assert net.blobs["label"].data.tolist() == [0, 1]


@pytest.mark.parametrize("zero_copy", ["true", "false"])
def test_after_close_the_last_batch_stays_readable(build, made, zero_copy):
    net = build(ours(of(made), options=f"threads: 2 zero_copy: {zero_copy}"))
    net.forward()
    before = shown(net)
    for _ in range(2):
        net.layers[0].close()
        assert (native_threads(), open_files(str(made))) == ([], [])
        assert_same_bits(shown(net), before)
        with pytest.raises(fastbatch.Closed):
            net.forward()


SCRIPT = """
    import caffe
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    net.forward()
"""


@pytest.fixture
def net_file(made, tmp_path):
    (tmp_path / "net.prototxt").write_text(ours(of(made, batch_size=300)))


@pytest.mark.parametrize("end", ["", "import ctypes; ctypes.CDLL(None).exit(0)", "fastbatch.caffe.close_all()"])
def test_a_process_that_ends_while_images_are_read(start, net_file, end):
    process = start(SCRIPT + f"    import fastbatch.caffe\n    {end}\n")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [line for line in errors.splitlines() if line[:1] not in "IW"] == []


def test_in_a_forked_child(start, net_file):
    check_in_a_forked_child(start, SCRIPT, childs=[0.0, 0.0, 0.0], parents=[0.0, 0.0, 0.0])


# convert

V1 = """
layers {
  name: "data" type: WINDOW_DATA top: "data" top: "label"
  window_data_param { PARAM scale: 0.5 crop_size: 40 mirror: true }
}
"""


@pytest.mark.parametrize(
    "text, notes",
    [
        (
            caffes("PARAM scale: 0.25", "mirror: true mean_value: 12 scale: 3 force_gray: true"),
            [
                "transform_param.scale is left out, because Caffe ignores it there",
                "transform_param.force_gray is left out",
            ],
        ),
        (V1, ["transform_param.scale is left out, because Caffe ignores it there"]),
    ],
)
def test_convert_and_its_check(made, tmp_path, text, notes):
    (tmp_path / "net.prototxt").write_text(text.replace("PARAM", of(made, "context_pad: 3 fg_fraction: 0.4")))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "fastbatch",
            "convert",
            str(tmp_path / "net.prototxt"),
            "-o",
            str(tmp_path / "new.prototxt"),
            "--check",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for note in notes:
        assert note in done.stderr
    assert "The batches are identical to the last bit." in done.stderr
    assert 'layer: "WindowData"' in (tmp_path / "new.prototxt").read_text()
