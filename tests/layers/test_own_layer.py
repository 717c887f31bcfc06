"""fastbatch.caffe.Layer: a user's own source as a data layer."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
import caffe

import datasets
from children import HANG
from fastbatch import ArraySource, Closed, PythonSource, SampleError
from fastbatch.caffe import Layer, close_all
from fastbatch.caffe.layers import prefetching
from fastbatch.orders import Endless, Permuted, Positions, Windowed
from pixel_reference import axes_of, moved_boxes, moved_points
from reference import draws

ROOT = Path(__file__).resolve().parents[2]


class Arrays(Layer):
    def source(self, count=10, **others):
        assert not others
        numbers = np.arange(count)
        return {"data": np.stack([datasets.image(index) for index in numbers]), "label": numbers, "half": numbers / 2}


class Images(Layer):
    def source(self, **parameters):
        return datasets.Images(**parameters)


class Slow(Layer):
    def source(self):
        return PythonSource(datasets.slowly, count=100, workers=1)


class Pairs(Layer):
    """Images and their masks, which have the pixels of the image's first channel."""

    def source(self):
        images = np.random.RandomState(1).randint(0, 256, (6, 3, 12, 15)).astype(np.uint8)
        return {"data": images, "mask": images[:, 0].astype(np.int32)}


class Annotated(Layer):
    def source(self, **parameters):
        return PythonSource(datasets.Annotated(**parameters), workers=2)


class Scenes(Layer):
    def source(self):
        return PythonSource(datasets.Scenes(), varying=("data", "mask"), padded={"boxes": 4}, workers=2)


class Nothing(Layer):
    pass


class Named(Layer):
    def source(self, split, *, folder="."):
        raise AssertionError("is not called")


class Seeded(Layer):
    def source(self, seed):
        raise AssertionError("is not called")


class Half(Layer):
    def source(self):
        return ArraySource(np.zeros((4, 3), np.float16))


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """The module of these layers, as a prototxt names it."""
    found = types.ModuleType("own_layers")
    for each in (Arrays, Images, Pairs, Annotated, Scenes, Slow, Nothing, Named, Seeded, Half):
        setattr(found, each.__name__, each)
    monkeypatch.setitem(sys.modules, "own_layers", found)
    yield
    close_all()


def layer(name, tops, **parameters):
    named = " ".join(f'top: "{top}"' for top in tops)
    return (
        f'layer {{ name: "own" type: "Python" {named} python_param {{ module: "own_layers" layer: "{name}" '
        f'param_str: "{parameters}" }} }}'
    )


def test_the_sources_arrays_are_the_tops(build):
    net = build(layer("Arrays", ["data", "label", "half"], batch_size=4))
    assert [tuple(net.blobs[name].shape) for name in ("data", "label", "half")] == [(4, *datasets.SHAPE), (4,), (4,)]
    for first in (0, 4, 8, 2):  # epochs follow one another without a gap
        net.forward()
        indices = [index % 10 for index in range(first, first + 4)]
        assert net.blobs["label"].data.tolist() == indices
        assert net.blobs["half"].data.tolist() == [index / 2 for index in indices]
        assert (net.blobs["data"].data == [datasets.image(index) for index in indices]).all()


def test_a_mask_is_transformed_with_its_image(build):
    transform = {"fields": ["data", "mask"], "crop_size": [8, 10], "padding": 1, "mask_fill": -1, "mirror": True}
    net = build(layer("Pairs", ["data", "mask"], batch_size=6, seed=3, transform=transform))
    net.forward()
    data, mask = net.blobs["data"].data, net.blobs["mask"].data
    assert data.shape == (6, 3, 8, 10) and mask.shape == (6, 8, 10)
    assert (data[:, 0] == np.where(mask == -1, 0, mask)).all() and len(np.unique(mask)) > 100


@pytest.mark.parametrize("integers", [False, True])
def test_boxes_and_points_move_with_their_image(build, integers):
    """Their tops are float32, whatever the source has: each coordinate is rounded once."""
    geometry = {"resize": [9, 20], "crop_size": [8, 11], "mirror": True}
    transform = {**geometry, "boxes": ["boxes"], "points": ["points"], "least_visible": 0.25}
    tops = ["data", "points", "boxes", "boxes_count"]
    net = build(layer("Annotated", tops, batch_size=6, seed=3, integers=integers, transform=transform))
    net.forward()
    geometry = {**geometry, "resize": (9, 20), "crop_size": (8, 11)}
    for index, raw in enumerate(draws(3, 0, 6)):
        sample, axes = datasets.Annotated(integers=integers)[index], axes_of(12, 15, raw, **geometry)
        boxes, left = moved_boxes(sample["boxes"], axes, sample["boxes_count"], 0.25, np.float32)
        assert (net.blobs["boxes"].data[index] == boxes).all() and net.blobs["boxes_count"].data[index] == left
        assert (net.blobs["points"].data[index] == moved_points(sample["points"], axes, dtype=np.float32)[0]).all()
    assert net.blobs["data"].data.shape == (6, 3, 8, 11)


def test_worker_processes_fill_the_tops(build):
    net = build(layer("Images", ["data", "label"], batch_size=5, count=10, threads=2))
    for _ in range(3):
        net.forward()
        indices = net.blobs["label"].data.astype(int)
        assert (net.blobs["data"].data == [datasets.image(index) for index in indices]).all()


def test_samples_of_different_shapes_and_counts(build):
    """Each forward() gives the tops the shape of its sample; or a transform makes one of all."""
    tops = ["data", "label", "mask", "boxes", "boxes_count"]
    net = build(layer("Scenes", tops, batch_size=1))
    for index in (*range(12), 0):
        net.forward()
        assert (net.blobs["data"].data[0] == datasets.photo(index)).all()
        assert (net.blobs["mask"].data[0] == datasets.photo(index)[0]).all()
        own = datasets.boxes(index)
        assert net.blobs["boxes_count"].data[0] == len(own) and net.blobs["boxes"].data.shape == (1, 4, 4)
        assert (net.blobs["boxes"].data[0, : len(own)] == own).all()
    net = build(layer("Scenes", tops, batch_size=6, transform={"fields": ["data", "mask"], "crop_size": 8}))
    net.forward()
    assert net.blobs["data"].data.shape == (6, 3, 8, 8) and net.blobs["mask"].data.shape == (6, 8, 8)
    assert (net.blobs["data"].data[:, 0] == net.blobs["mask"].data).all()


def test_order_and_transform(build):
    options = dict(batch_size=3, shuffle=True, seed=7, transform=dict(crop_size=4, scale=2.0))
    net = build(layer("Arrays", ["data", "label"], **options), phase=caffe.TEST)
    positions = Positions(Endless(Permuted(7)), 10)
    for first in (0, 3, 6, 9):
        net.forward()
        indices = [positions.at(position)[0] for position in range(first, first + 3)]
        assert net.blobs["label"].data.tolist() == indices
        height, width = ((size - 4) // 2 for size in datasets.SHAPE[1:])
        crops = [datasets.image(index)[:, height : height + 4, width : width + 4] * 2.0 for index in indices]
        assert (net.blobs["data"].data == crops).all()


def test_a_shuffle_within_windows(build):
    net = build(layer("Arrays", ["data", "label"], batch_size=3, shuffle=True, shuffle_window=4, seed=7))
    positions = Positions(Endless(Windowed(7, 4)), 10)
    for first in range(0, 30, 3):
        net.forward()
        assert net.blobs["label"].data.tolist() == [positions.at(first + place)[0] for place in range(3)]


def test_json_is_as_good(build):
    text = layer("Arrays", ["data"], batch_size=2).replace(
        "\"{'batch_size': 2}\"", '\'{"batch_size": 2, "shuffle": false}\''
    )
    net = build(text)
    net.forward()
    assert (net.blobs["data"].data == [datasets.image(0), datasets.image(1)]).all()


def test_a_sample_that_cannot_be_loaded_is_replaced(build):
    options = dict(batch_size=3, count=6, threads=2, raises=3, seed=1, on_error="replace", error_budget=4)
    net = build(layer("Images", ["data", "label"], **options))
    found = []
    for _ in range(4):
        net.forward()
        found += net.blobs["label"].data.astype(int).tolist()
    others = [index for position, index in enumerate(found) if position % 6 != 3]
    assert others == 2 * [0, 1, 2, 4, 5] and 3 not in found
    with pytest.raises(ValueError, match=r'layer "own" \(Images\): on_error cannot be "skip" in a layer'):
        build(layer("Images", ["data"], batch_size=3, on_error="skip"))


def test_the_log_says_why_the_net_waits(build, monkeypatch):
    said = []
    monkeypatch.setattr(caffe, "log", said.append, raising=False)
    monkeypatch.setattr(prefetching, "_REPORT_PERIOD", 20)
    net = build(layer("Slow", ["data"], batch_size=2))
    for _ in range(41):
        net.forward()
    words = "Waiting for data. The loader limits: the net waited for batches for "
    assert [line[: len(words)] for line in said if line.startswith("Waiting")] == [words, words]


def test_a_layer_says_what_a_loader_says(build, tmp_path):
    options = dict(batch_size=3, count=6, threads=2, raises=3, on_error="replace")
    net = build(layer("Images", ["data", "label"], **options))
    for _ in range(4):
        net.forward()
    own = net.layers[0]
    assert own.report().startswith(("The net limits: it waited for", "The loader limits: the net waited for"))
    assert [(error.index, error.outcome) for error in own.errors] == 2 * [(3, "replaced")]
    own.timeline(tmp_path / "out.json")
    assert {"fastbatch-0", "fastbatch-1", "your loop"} <= names_in((tmp_path / "out.json").read_text())


def names_in(timeline):
    """The names of a timeline's rows."""
    events = json.loads(timeline)
    return {event["args"]["name"] for event in events["traceEvents"] if event["name"] == "thread_name"}


def test_an_error_is_one_of_its_batch(build):
    net = build(layer("Images", ["data", "label"], batch_size=2, count=6, threads=1, raises=3))
    net.forward()
    with pytest.raises(SampleError, match="sample 3: loading it raised LookupError") as caught:
        net.forward()
    assert type(caught.value.__cause__) is LookupError
    net.forward()
    assert net.blobs["label"].data.tolist() == [4, 5]
    close_all()
    with pytest.raises(Closed):
        net.forward()


@pytest.mark.parametrize(
    "text, message",
    [
        (
            layer("Nothing", ["data"], batch_size=1),
            r"Nothing does not say where its samples come from: define source\(\)",
        ),
        (layer("Arrays", ["data"]), r'layer "own" \(Arrays\): its param_str has no batch_size'),
        (layer("Arrays", ["data"], batch_size=0), r"Arrays\): batch_size must be between 1 and"),
        (layer("Arrays", ["data"], batch_size=1, shuffle=2), r"Arrays\): shuffle"),
        (
            layer("Arrays", ["data"], batch_size=1, shuffle=9),
            r"Arrays\): shuffle must be True or False, not 9: to shuffle within windows of 9 consecutive samples",
        ),
        (
            layer("Arrays", ["data"], batch_size=1, shuffle_window=3),
            r"Arrays\): shuffle_window has no effect without shuffle=True",
        ),
        (
            layer("Arrays", ["data"], batch_size=1, shuffle=True, shuffle_window=1),
            r"Arrays\): shuffle_window must be at least 2 samples, not 1",
        ),
        (layer("Arrays", ["data"], batch_size=1, transform=3), r"Arrays\): transform must be a dict"),
        (layer("Arrays", ["data"], batch_size=1, transform=dict(zoom=2)), r"Arrays\): Transform has no parameter zoom"),
        (
            layer("Arrays", ["a", "b", "c", "d"], batch_size=1),
            r"Arrays\) has 4 tops, and its source only 3 arrays: data,",
        ),
        (layer("Half", ["data"], batch_size=1), r"Half\): data is float16, and is needed as float32"),
        (layer("Arrays", ["data"], batch_size=1).replace("{'batch_size': 1}", "1"), "its param_str is not a dict"),
    ],
)
def test_what_makes_no_layer(build, text, message):
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=message):
        build(text)


OPTIONS = (
    "The options are batch_size, shuffle, shuffle_window, seed, threads, prefetch, on_error, error_budget, "
    "cache_bytes, cache_folder, resume, transform; source() takes "
)


@pytest.mark.parametrize(
    "name, parameters, words",
    [
        ("Named", dict(split=1, suffle=True), "has 'suffle', which is neither an option of this layer nor a parameter"),
        ("Named", dict(split=1, suffle=True), f"its source(). Did you mean shuffle? {OPTIONS}split, folder"),
        ("Named", dict(split=1, foldr=2), "Did you mean folder?"),
        ("Named", dict(split=1, xyz=2), f"its source(). {OPTIONS}split, folder"),
        ("Slow", {"xyz": 2}, f"{OPTIONS}nothing"),
        ("Arrays", {5: 2}, "has 5, which is neither"),
        ("Named", dict(split=1, last_batch="drop"), "The batches of a net have a fixed size, and go on into the next"),
        ("Named", dict(split=1, rank=1), "A net's rank is Caffe's own"),
        (
            "Named",
            dict(split=1, workers=2),
            "Their number is for source() to say: it may return fastbatch.PythonSource(",
        ),
        (
            "Named",
            dict(split=1, weights=[1]),
            "source() may return fastbatch.Loader(..., weights=...). The options are",
        ),
        ("Named", dict(split=1, crop_size=227), "It belongs in 'transform': {'crop_size': ...}"),
        ("Named", {}, "its param_str has no 'split', which its source() needs"),
        ("Seeded", {}, "source() cannot have a parameter seed, which is an option of the layer itself"),
        ("Slow", dict(transform=dict(phase="TEST")), "transform cannot have a phase, which is the net's own"),
    ],
)
def test_what_a_param_str_may_not_say(build, name, parameters, words):
    text = layer(name, ["data"]).replace("{}", str({"batch_size": 1, **parameters}))
    with pytest.raises((TypeError, ValueError)) as caught:
        build(text)
    assert str(caught.value).startswith(f'layer "own" ({name}): ') and words in str(caught.value)


@pytest.mark.parametrize(
    "written, same",
    [
        ({"crop_h": 3, "crop_w": 5}, {"crop_size": [3, 5]}),
        ({"short_side": 6, "crop_size": 3}, {"resize": 6, "crop_size": 3}),
        ({"resize_param": {"height": 6, "width": 7}}, {"resize": [6, 7]}),
        (
            {"resize_param": {"height": 6, "width": 7, "prob": 1, "resize_mode": "WARP", "interp_mode": ["LINEAR"]}},
            {"resize": [6, 7]},
        ),
    ],
)
def test_names_of_other_caffes_for_the_same_steps(build, written, same):
    first, second = (build(layer("Arrays", ["data"], batch_size=4, seed=1, transform=each)) for each in (written, same))
    for _ in range(3):
        for net in first, second:
            net.forward()
        assert first.blobs["data"].data.shape == second.blobs["data"].data.shape
        assert (first.blobs["data"].data == second.blobs["data"].data).all()


@pytest.mark.parametrize(
    "written, words",
    [
        ({"crop_h": 3}, "transform has no crop_w: crop_h and crop_w belong together"),
        (
            {"crop_h": 3, "crop_w": 3, "crop_size": 3},
            "transform has crop_size and crop_h and crop_w, which say the same",
        ),
        ({"short_side": 3, "resize": 3}, "transform has resize and short_side, which say the same"),
        ({"resize_param": 3}, "resize_param must be a dict, such as {'height': 300, 'width': 300}, not 3"),
        ({"resize_param": {"height": 3}}, "resize_param has no width"),
        (
            {"resize_param": {"height": 3, "width": 3, "prob": 0.5}},
            "resize_param has prob: 0.5, which fastbatch does not do: every image is resized to height and width",
        ),
        ({"expand_param": {"prob": 1}}, "SSD's Caffe has it, and fastbatch does not do it"),
    ],
)
def test_names_of_other_caffes_that_do_not_fit(build, written, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        build(layer("Arrays", ["data"], batch_size=1, transform=written))
    assert str(caught.value).startswith('layer "own" (Arrays): ') and words in str(caught.value)


@pytest.mark.parametrize(
    "beside, name, instead",
    [
        (
            "transform_param { crop_size: 4 mirror: true mean_value: [104.007, 117, 123] scale: 0.017 }",
            "transform_param",
            "'transform': {'scale': 0.017, 'mirror': True, 'crop_size': 4, 'mean_value': [104.007, 117.0, 123.0]}.",
        ),
        (
            "transform_param { force_color: true }",
            "transform_param",
            "'transform': {'crop_size': 227, 'mirror': True}.",
        ),
        (
            'data_param { source: "x" batch_size: 8 prefetch: 2 }',
            "data_param",
            "such as 'batch_size': 8, 'prefetch': 2.",
        ),
        ("image_data_param { shuffle: true }", "image_data_param", "such as 'shuffle': True. What to read"),
        ('window_data_param { source: "x" }', "window_data_param", "such as 'batch_size': 64. What to read"),
        ("hdf5_data_param { batch_size: 8 }", "hdf5_data_param", "such as 'batch_size': 8."),
        ("memory_data_param { batch_size: 8 height: 3 }", "memory_data_param", "such as 'batch_size': 8."),
    ],
)
def test_parameters_beside_python_param_are_refused(build, beside, name, instead):
    """They would be ignored: batches without a crop, a mean, or a mirror."""
    text = layer("Arrays", ["data"], batch_size=2)
    with pytest.raises(ValueError) as caught:
        build(text.replace("python_param", f"{beside} python_param"))
    message = str(caught.value)
    assert f'layer "own" (Arrays), in its layer parameter: this layer does not read {name}, and would' in message
    assert instead in message and "param_str" in message


def test_what_says_nothing_may_stand_beside_python_param(build):
    others = "transform_param { } include { phase: TRAIN } "
    net = build(layer("Arrays", ["data"], batch_size=2).replace("python_param", others + "python_param"))
    net.forward()
    assert (net.blobs["data"].data == [datasets.image(0), datasets.image(1)]).all()


def test_the_example_trains(tmp_path, monkeypatch):
    folder = ROOT / "examples/own_layer"
    monkeypatch.syspath_prepend(str(folder))
    solver = tmp_path / "solver.prototxt"
    solver.write_text(
        f'net: "{folder}/net.prototxt" base_lr: 0.0005 lr_policy: "fixed" max_iter: 60 display: 0 random_seed: 1 '
        "snapshot_after_train: false"
    )
    solver = caffe.SGDSolver(str(solver))
    losses = []
    for _ in range(60):
        solver.step(1)
        losses.append(float(solver.net.blobs["loss"].data))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.skipif(not shutil.which("caffe"), reason="the caffe tool is not installed")
def test_worker_processes_in_the_tool():
    """The tool embeds Python, and is not the program that multiprocessing starts workers with."""
    folder = ROOT / "examples/own_layer"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["caffe", "time", f"--model={folder}/net.prototxt", "--iterations=3"],
        env={**os.environ, "PYTHONPATH": path, "GLOG_minloglevel": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stdout
    assert "Average Forward-Backward" in done.stdout
