"""A layer of one's own whose source() returns a Loader: the layer's batches are those of the Loader."""

import itertools
import multiprocessing
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
import caffe
import cv2
from caffe.proto import caffe_pb2

import datasets
import fastbatch.caffe.layers.draws
from fastbatch import Closed, ImageListSource, Loader, PythonSource, Transform
from fastbatch.caffe import Layer, close_all
from fastbatch.caffe.runtime.tool_run import ToolRun
from nets import native_threads
from pictures import picture

pytestmark = pytest.mark.usefixtures("leaves_nothing")

COUNT = 11
DATA = {"data": np.stack([datasets.image(index) for index in range(COUNT)]), "label": np.arange(COUNT)}


class Handed(Layer):
    def source(self, **parameters):
        return self.make(**parameters)


class Derived(Loader):
    pass


@pytest.fixture(autouse=True)
def module(monkeypatch):
    """The module of the layer, as a prototxt names it."""
    found = types.ModuleType("loader_layers")
    found.Handed = Handed
    monkeypatch.setitem(sys.modules, "loader_layers", found)
    yield
    close_all()


@pytest.fixture
def layer_of(build, monkeypatch):
    """layer_of(make, phase, **parameters): a net with a layer of this param_str, whose source() is make()."""

    def layer_of(make, phase=caffe.TRAIN, **parameters):
        monkeypatch.setattr(Handed, "make", staticmethod(make), raising=False)
        return build(
            'layer { name: "own" type: "Python" top: "data" top: "label" python_param { module: "loader_layers" '
            f'layer: "Handed" param_str: "{parameters}" }} }}',
            phase,
        )

    return layer_of


def batches_of(net, count):
    found = []
    for _ in range(count):
        net.forward()
        found.append((net.blobs["data"].data.copy(), net.blobs["label"].data.tolist()))
    return found


def batches_in_loops(loader, count):
    """The same of a Loader, through as many epochs as it takes."""
    epochs = itertools.chain.from_iterable(loader for _ in itertools.count())
    return [(batch["data"].astype(np.float32), batch["label"].tolist()) for batch in itertools.islice(epochs, count)]


def assert_same(found, expected):
    assert [labels for _, labels in found] == [labels for _, labels in expected]
    for (data, _), (other, _) in zip(found, expected):
        assert data.shape == other.shape and (data == other).all()


TOLD = [
    {"batch_size": 4},
    {},  # a Loader's batches have one sample then
    {"batch_size": 4, "last_batch": "wrap", "threads": 3, "prefetch": 7},
    {"batch_size": 4, "shuffle": True, "seed": 2**63},
    {"batch_size": 25, "shuffle": True, "seed": 5},
    {"batch_size": 4, "shuffle": True, "shuffle_window": 3, "seed": 5},
    {"batch_size": 4, "weights": np.arange(COUNT), "seed": 5},
    {"batch_size": 4, "seed": 5, "transform": Transform(crop_size=5, mirror=True, scale=0.1)},
    {"batch_size": 4, "seed": 5, "transform": Transform(crop_size=5, phase="TEST"), "phase": caffe.TEST},
    {"batch_size": 4, "seed": 5, "transform": Transform(mirror=True, mean_value=9), "phase": caffe.TEST},
]


@pytest.mark.parametrize("told", TOLD)
def test_the_batches_are_those_of_the_loader(layer_of, told):
    """To the bit, as the same Loader with last_batch="wrap" has them."""
    told = dict(told)
    phase = told.pop("phase", caffe.TRAIN)
    net = layer_of(lambda: Loader(DATA, **told), phase)
    with Loader(DATA, **{**told, "last_batch": "wrap"}) as loader:
        assert_same(batches_of(net, 12), batches_in_loops(loader, 12))


def test_without_a_seed_it_is_a_draw_from_caffes_stream(layer_of):
    """As for a layer whose param_str says the same."""
    found = []
    for make, parameters in (
        (lambda: Loader(DATA, batch_size=4, shuffle=True), {}),
        (lambda: DATA, {"batch_size": 4, "shuffle": True}),
    ):
        caffe.set_random_seed(17)
        found.append(batches_of(layer_of(make, **parameters), 6))
    assert_same(*found)


def test_the_log_says_that_the_loaders_seed_is_used(layer_of, monkeypatch):
    said = []
    monkeypatch.setattr(caffe, "log", said.append, raising=False)
    layer_of(lambda: Loader(DATA, seed=8))
    assert "The Loader's seed: 8 takes the place of the layer's draws from Caffe's random numbers." in said


def test_the_loader_is_closed(layer_of):
    """Its threads, its processes and its cache are gone before the layer has its own."""
    made = []

    def make():
        source = PythonSource(datasets.Images(), workers=2)
        made.append(Loader(source, batch_size=4, threads=3, seed=1))
        return made[-1]

    net = layer_of(make)
    assert made[0].closed and native_threads() == ["fastbatch-0", "fastbatch-1", "fastbatch-2"]
    assert len(multiprocessing.active_children()) == 2
    with pytest.raises(Closed):
        next(iter(made[0]))
    net.forward()
    assert net.blobs["label"].data.tolist() == [0, 1, 2, 3]


def test_its_cache_becomes_the_layers(layer_of, tmp_path):
    paths = [(tmp_path / f"{number}.png", number) for number in range(5)]
    for path, number in paths:
        cv2.imwrite(str(path), picture(number, 12, 10))
    folder = tmp_path / "cache"
    folder.mkdir()
    told = {"batch_size": 5, "cache_bytes": 10**6, "cache_folder": folder}
    net = layer_of(lambda: Loader(ImageListSource(paths), **told))
    assert Path("/proc/self/maps").read_text().count(str(folder)) == 1
    batches_of(net, 4)
    assert net.layers[0].stats()["cache_hits"] >= 5


def test_bad_samples_are_replaced(layer_of):
    source = PythonSource(datasets.Images(6, raises=3), workers=2)
    net = layer_of(lambda: Loader(source, batch_size=3, on_error="replace", error_budget=4))
    labels = [label for _, labels in batches_of(net, 4) for label in labels]
    assert [label for place, label in enumerate(labels) if place % 6 != 3] == 2 * [0, 1, 2, 4, 5] and 3 not in labels


def test_source_gets_its_parameters(layer_of):
    net = layer_of(lambda batch: Loader(DATA, batch_size=batch), batch=3)
    assert batches_of(net, 1)[0][1] == [0, 1, 2]


@pytest.mark.parametrize(
    "told, words",
    [
        (
            {"last_batch": "drop"},
            "source() returned a Loader with last_batch='drop'. The batches of a net have a fixed size, and go on into",
        ),
        ({"last_batch": "pad"}, "into the next epoch. Make the Loader without last_batch"),
        (
            {"rank": 1, "ranks": 2},
            "a Loader with ranks=2. A net's rank is Caffe's own: in phase TRAIN, each solver has",
        ),
        ({"rank": 1, "ranks": 2}, "its share. Make the Loader without rank and ranks"),
        ({"rank": 0, "ranks": 1, "even": "pad"}, "a Loader with even='pad'. A net's rank is Caffe's own"),
        ({"timeout": 60}, "a Loader with timeout=60. forward() waits as long as it takes. Make the Loader without"),
        ({"on_error": "skip"}, 'on_error cannot be "skip" in a layer, because the batches of a net have a fixed size'),
        ({"on_error": lambda error: "skip"}, 'on_error must be "raise" or "replace", not <function'),
        ({"transform": Transform(crop_size=5, dtype="float16")}, "leave dtype out of the transform"),
    ],
)
def test_what_a_layer_cannot_take_over(layer_of, told, words):
    """It is named, and the Loader leaves no thread."""
    with pytest.raises((TypeError, ValueError)) as caught:
        layer_of(lambda: Loader(DATA, **told))
    assert str(caught.value).startswith('layer "own" (Handed): ') and words in str(caught.value)
    assert native_threads() == []


@pytest.mark.parametrize(
    "beside, has",
    [
        ({"batch_size": 64}, "batch_size=64, and source() returned a Loader, which has batch_size=4"),
        ({"batch_size": 4}, "batch_size=4, and source() returned a Loader, which has batch_size=4"),
        ({"shuffle": False}, "shuffle=False, and source() returned a Loader, which has shuffle=True"),
        (
            {"shuffle": True, "shuffle_window": 9},
            "shuffle=True, and source() returned a Loader, which has shuffle=True",
        ),
        ({"seed": 5}, "seed=5, and source() returned a Loader, which has seed=None"),
        ({"threads": 5}, "threads=5, and source() returned a Loader, which has threads=2"),
        ({"prefetch": 5}, "prefetch=5, and source() returned a Loader, which has prefetch=3"),
        ({"on_error": "replace"}, "on_error='replace', and source() returned a Loader, which has on_error='raise'"),
        ({"cache_bytes": 5}, "cache_bytes=5, and source() returned a Loader, which has cache_bytes=None"),
        ({"transform": {"scale": 2}}, "transform={'scale': 2}, and source() returned a Loader, which has transform=T"),
    ],
)
def test_nothing_is_said_in_two_places(layer_of, beside, has):
    told = {"batch_size": 4, "shuffle": True, "threads": 2, "transform": Transform(scale=3)}
    with pytest.raises(ValueError) as caught:
        layer_of(lambda: Loader(DATA, **told), **beside)
    assert f"its param_str has {has}" in str(caught.value)
    name = next(iter(beside))
    words = f"Beside a Loader, only resume and the parameters of source() belong there: say {name} to the Loader"
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "transform, phase, named",
    [
        (Transform(crop_size=5), caffe.TEST, "'TRAIN', and the net's is 'TEST', in which crop_size does"),
        (Transform(crop_size=5, phase="TEST"), caffe.TRAIN, "'TEST', and the net's is 'TRAIN', in which crop_size"),
        (Transform(random_resized_crop=5), caffe.TEST, "in which random_resized_crop does something else"),
        (Transform(brightness=0.5), caffe.TEST, "in which brightness does something else"),
    ],
)
def test_a_transform_for_the_other_phase_is_refused(layer_of, transform, phase, named):
    """It would test on random crops, or train on none."""
    with pytest.raises(ValueError, match="say Transform\\(..., phase=self.phase\\)") as caught:
        layer_of(lambda: Loader(DATA, transform), phase)
    assert named in str(caught.value)


def test_the_phase_of_the_net_for_a_transform(layer_of, monkeypatch):
    monkeypatch.setattr(Handed, "source", lambda self: Loader(DATA, Transform(crop_size=5, phase=self.phase), seed=1))
    for phase in caffe.TRAIN, caffe.TEST:
        net = layer_of(None, phase)
        with Loader(DATA, Transform(crop_size=5, phase=phase), seed=1) as loader:
            assert_same(batches_of(net, 3), batches_in_loops(loader, 3))


def test_a_loader_in_use_is_refused_and_stays_open(layer_of):
    with Loader(DATA, batch_size=4) as loader:
        batches = iter(loader)
        next(batches)
        with pytest.raises(ValueError, match=r"a Loader that is at batch 1 of epoch 0, and .*: make a new one in sou"):
            layer_of(lambda: loader)
        assert next(batches)["label"].tolist() == [4, 5, 6, 7]
    with Loader(DATA, batch_size=4) as loader:
        loader.load_state_dict({**loader.state_dict(), "epoch": 2})
        with pytest.raises(ValueError, match="at batch 0 of epoch 2, and"):
            layer_of(lambda: loader)


def test_a_loader_is_of_one_net(layer_of):
    loader = Loader(DATA, batch_size=4)
    first = layer_of(lambda: loader)
    with pytest.raises(ValueError, match="a Loader that is closed, as a layer closes the one that it gets: make a new"):
        layer_of(lambda: loader)
    assert batches_of(first, 1)[0][1] == [0, 1, 2, 3]


def test_a_loader_of_another_class_is_refused(layer_of):
    words = r"source\(\) returned a Derived, and the layer's batches .*: return a fastbatch.Loader with the same param"
    with pytest.raises(TypeError, match=words):
        layer_of(lambda: Derived(DATA))
    assert native_threads() == []


# ---- going on where a run was


SOLVER = 'net: "{}" base_lr: 0.01 lr_policy: "fixed" max_iter: 90 snapshot_prefix: "{}/x" random_seed: 3 display: 0'


@pytest.fixture
def solver_of(tmp_path, monkeypatch):
    """solver_of(**told): a solver on a net whose layer has a Loader of this."""

    def solver_of(**told):
        monkeypatch.setattr(Handed, "make", staticmethod(lambda: Loader(DATA, **told)), raising=False)
        (tmp_path / "net.prototxt").write_text(
            'layer { name: "own" type: "Python" top: "data" top: "label" python_param { module: "loader_layers" '
            'layer: "Handed" param_str: "{\'resume\': True}" } }'
            'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 11 } }'
            'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
        )
        (tmp_path / "solver.prototxt").write_text(SOLVER.format(tmp_path / "net.prototxt", tmp_path))
        return caffe.SGDSolver(str(tmp_path / "solver.prototxt"))

    return solver_of


@pytest.mark.parametrize("order", [{"shuffle": True}, {"shuffle": True, "shuffle_window": 4}, {"weights": range(11)}])
def test_a_restored_solver_goes_on(solver_of, order):
    told = {**order, "batch_size": 4, "transform": Transform(crop_size=5, mirror=True)}
    solver = solver_of(**told)
    solver.step(5)
    path = fastbatch.caffe.snapshot(solver)

    def next_batches(solver):
        found = []
        for _ in range(5):
            solver.step(1)
            found.append((solver.net.blobs["data"].data.copy(), solver.net.blobs["label"].data.tolist()))
        return found

    expected = next_batches(solver)
    other = solver_of(**told)
    fastbatch.caffe.restore(other, path)
    assert_same(next_batches(other), expected)
    for change in {"shuffle": True, "shuffle_window": 5, "weights": None}, {"shuffle": False, "weights": range(1, 12)}:
        with pytest.raises(ValueError, match="train/own has another batch_size or order"):
            fastbatch.caffe.restore(solver_of(**{**told, "shuffle_window": None, **change}), path)


def test_resume_needs_a_seed(layer_of, monkeypatch):
    """In the tool, where another run would draw another one: the Loader's, or the solver's."""
    run = ToolRun(caffe_pb2.SolverParameter(), 0)
    monkeypatch.setattr(fastbatch.caffe.layers.draws, "EMBEDDED", True)
    monkeypatch.setattr(fastbatch.caffe.layers.draws, "tool_run", lambda: run)
    layer_of(lambda: Loader(DATA, shuffle=True, seed=1), resume=True)
    layer_of(lambda: Loader(DATA), resume=True)
    for told in {"shuffle": True}, {"weights": np.ones(COUNT)}, {"transform": Transform(mirror=True)}:
        with pytest.raises(ValueError, match="write random_seed into the solver, or give the Loader a seed"):
            layer_of(lambda told=told: Loader(DATA, **told), resume=True)
