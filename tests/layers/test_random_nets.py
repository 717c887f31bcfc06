"""Our Data and ImageData layers against Caffe's own, bit for bit, with random parameters and images.

Hypothesis makes the nets, of any parameters and images that Caffe accepts; both layers run in one process.
FASTBATCH_EXAMPLES=5000 makes that many nets for each layer, different ones in every run (CONTRIBUTING.md).
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
pytest.importorskip("fastbatch.images._codec")

import caffe
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbatch
from databases import datum, images, varint, write_lmdb
from fastbatch.caffe.runtime._blob import random_draw
from jpegs import YCC
from nets import assert_same_bits, shown
from random_images import PNG_GRAY, PNG_RGB, ImageFile, image_files

MANY = int(os.environ.get("FASTBATCH_EXAMPLES", 0))
EXAMPLES = settings(max_examples=MANY or 150, derandomize=not MANY, print_blob=True)


# ---- What hypothesis makes


class Raw(NamedTuple):
    """Pixels in a Datum: bytes, floats, or floats of any 32 bits. `label` is None where the record has none."""

    shape: tuple[int, int, int]
    kind: str
    seed: int
    label: Optional[int]

    def content(self):
        if self.kind == "uint8":
            return datum(images(1, self.shape, seed=self.seed)[0], self.label)
        if self.kind == "bits":
            count = int(np.prod(self.shape))
            values = np.frombuffer(np.random.RandomState(self.seed).bytes(4 * count), np.float32).reshape(self.shape)
        else:
            values = images(1, self.shape, np.float32, seed=self.seed)[0]
        return datum(values, self.label, packed=self.kind == "packed")


class Encoded(NamedTuple):
    """An image file in a Datum."""

    file: ImageFile
    label: Optional[int]

    def content(self):
        data = self.file.content()
        return (
            b"\x22"
            + varint(len(data))
            + data
            + (b"" if self.label is None else b"\x28" + varint(self.label))
            + b"\x38\x01"
        )


class Listed(NamedTuple):
    """An image file, and how its line in the list ends."""

    file: ImageFile
    label: str


class Net(NamedTuple):
    """A data layer, and how it is used. FOLDER in its text is where its files are."""

    layer: str
    messages: str
    samples: tuple[Any, ...]  # Raw, Encoded or Listed
    mean: Optional[tuple[int, ...]]  # the shape of the mean file
    tops: int
    phase: int
    seed: int  # of Caffe's stream
    ranks: tuple[int, int]  # solver_rank, solver_count
    forwards: int
    options: str  # of ours
    in_layer: bool  # whether the messages are in our layer parameter, or in its param_str
    line_end: str = "\n"  # of a list


LABELS = st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**31), 2**31 - 1))
FLOATS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.017, 0.00390625]), st.floats(width=32, allow_nan=False, allow_infinity=False)
)
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 40), st.integers(41, 200))


def flag(name):
    """A boolean field: left out, true or false."""
    return st.sampled_from(["", f"{name}: true ", f"{name}: false "])


def number(name, values):
    """A field: left out, or a number."""
    return st.one_of(st.just(""), values.map(f"{name}: {{!r}} ".format))


@st.composite
def transforms(draw, crop, channels, size):
    """(transform_param, the shape of the mean file or None).

    size: None if the images have several sizes, so that no mean can fit all.
    """
    text = f"crop_size: {crop} " if crop or draw(st.booleans()) else ""
    text += draw(flag("mirror")) + draw(number("scale", FLOATS))
    mean = draw(st.sampled_from(["none", "one", "each", "file"] if size else ["none", "one", "each"]))
    for _ in range({"one": 1, "each": channels}.get(mean, 0)):
        text += f"mean_value: {draw(FLOATS)!r} "
    if mean == "file":
        text += 'mean_file: "FOLDER/mean" '
    return text, (channels, *size) if mean == "file" else None


@st.composite
def sizes(draw, crop, count, alike):
    """The (height, width) of so many images, none smaller than the crop."""
    side = SIDES.map(lambda side: max(side, crop))
    return [draw(st.tuples(side, side))] * count if alike else [draw(st.tuples(side, side)) for _ in range(count)]


@st.composite
def used(draw, layer, messages, samples, mean, tops, ranks, line_end="\n"):
    """A Net with these messages."""
    options = draw(st.sampled_from(["", "threads: 1 ", "threads: 2 ", "threads: 3 ", "threads: 5 "])) + draw(
        flag("zero_copy")
    )
    return Net(
        layer,
        messages,
        tuple(samples),
        mean,
        tops,
        draw(st.sampled_from([caffe.TRAIN, caffe.TEST])),
        draw(st.integers(0, 2**31 - 1)),
        ranks,
        draw(st.integers(1, 12)),
        options,
        draw(st.booleans()),
        line_end,
    )


@st.composite
def data_nets(draw):
    """Nets with a Data layer.

    Caffe requires the images of a batch to have equal channels, and equal sizes unless it crops them.
    """
    batch, count = draw(st.integers(1, 9)), draw(st.integers(1, 13))
    crop = draw(st.one_of(st.just(0), st.integers(1, 40)))
    alike = draw(st.booleans()) or not (crop or batch == 1)
    force = draw(
        st.sampled_from(["", "force_color: true ", "force_gray: true ", "force_color: false force_gray: false "])
    )
    kinds = draw(st.sampled_from([["uint8"], ["float", "packed", "bits"], ["encoded"], ["encoded", "uint8", "float"]]))
    stored = None  # the channels of an encoded image, if it is shown as it is stored
    if "encoded" not in kinds:
        channels = draw(st.integers(1, 5))
    elif "true" in force:
        channels = 3 if "color" in force else 1
    else:
        channels = stored = draw(st.sampled_from([1, 3, 4]))
    samples = []
    shapes = draw(sizes(crop, count, alike))
    for size in shapes:
        kind, label = draw(st.sampled_from(kinds)), draw(LABELS)
        if kind == "encoded":
            samples.append(Encoded(draw(image_files(*size, stored)), label))
        else:
            samples.append(Raw((channels, *size), kind, draw(st.integers(0, 2**16)), label))
    transform, mean = draw(transforms(crop, channels, shapes[0] if alike else None))
    count = draw(st.integers(1, 4))
    ranks = draw(st.integers(0, count - 1)), count
    messages = (
        f'data_param {{ source: "FOLDER/db" backend: LMDB batch_size: {batch} '
        f"{draw(number('prefetch', st.integers(1, 6)))}}} transform_param {{ {transform}{force}}}"
    )
    return draw(used("Data", messages, samples, mean, draw(st.integers(1, 2)), ranks))


@st.composite
def image_data_nets(draw):
    """Nets with an ImageData layer, whose images may have any sizes if they are resized, too."""
    batch, count = draw(st.integers(1, 9)), draw(st.integers(1, 13))
    resized = draw(st.one_of(st.none(), st.tuples(SIDES, SIDES)))
    crop = draw(st.one_of(st.just(0), st.integers(1, min(resized or (40,)))))
    alike = draw(st.booleans()) or not (crop or resized or batch == 1)
    shapes = draw(sizes(0 if resized else crop, count, alike))
    is_color = draw(flag("is_color"))
    channels = 1 if "false" in is_color else 3
    labels = st.one_of(st.integers(-(2**31), 2**31 - 1).map(str), st.sampled_from(["+7", "007", "-0"]))
    samples = [Listed(draw(image_files(*size)), draw(labels)) for size in shapes]
    transform, mean = draw(transforms(crop, channels, resized or (shapes[0] if alike else None)))
    more = draw(flag("shuffle")) + draw(number("rand_skip", st.integers(0, count))) + is_color
    if resized:
        more += f"new_height: {resized[0]} new_width: {resized[1]} "
    batch_size = f"batch_size: {batch} " if batch > 1 or draw(st.booleans()) else ""  # 1 is Caffe's default
    root = draw(st.sampled_from(["", "FOLDER/", "FOLDER/a b "]))
    messages = (
        f'image_data_param {{ source: "FOLDER/list" root_folder: "{root}" {batch_size}{more}}} transform_param {{ '
        f"{transform}}} data_param {{ {draw(number('prefetch', st.integers(1, 6)))}}}"
    )
    return draw(used("ImageData", messages, samples, mean, 2, (0, 1), draw(st.sampled_from(["\n", "\r\n"]))))


# ---- What both layers make of it


def write(net, folder):
    """Writes the net's files."""
    if net.mean:
        mean = caffe.io.array_to_blobproto(100 * images(1, net.mean, np.float32, seed=9))
        (folder / "mean").write_bytes(mean.SerializeToString())
    if net.layer == "Data":
        write_lmdb(folder / "db", [sample.content() for sample in net.samples])
        return
    root = net.messages.partition('root_folder: "')[2].partition('"')[0]
    lines = []
    for i, sample in enumerate(net.samples):
        path = f"{root or 'FOLDER/'}{i} x"
        lines.append(f"{path[len(root) :]} {sample.label}".replace("FOLDER", str(folder)))
        with open(path.replace("FOLDER", str(folder)), "wb") as file:
            file.write(sample.file.content())
    (folder / "list").write_bytes(net.line_end.join(lines + [""] * (net.seed % 2)).encode())


def write_net(net, folder, ours):
    """The net's prototxt, with our layer or Caffe's, in the file "net". Returns the names of its tops."""
    messages = net.messages.replace("FOLDER", str(folder))
    tops = ("data", "label")[: net.tops]
    if not ours:
        python = messages
    elif net.in_layer:
        python = (
            f'python_param {{ module: "fastbatch.caffe" layer: "{net.layer}" param_str: "{net.options}" }} {messages}'
        )
    else:
        python = (
            f'python_param {{ module: "fastbatch.caffe" layer: "{net.layer}" param_str: \'{messages} {net.options}\' }}'
        )
    text = " ".join(f'top: "{top}"' for top in tops)
    (folder / "net").write_text(f'layer {{ name: "data" type: "{"Python" if ours else net.layer}" {text} {python} }}')
    return tops


def shows(net, folder, ours):
    """What our layer or Caffe's shows in this net, and the draws from Caffe's stream after the net was built."""
    tops = write_net(net, folder, ours)
    caffe.set_random_seed(net.seed)
    built = caffe.Net(str(folder / "net"), net.phase)
    arrays = [np.array([random_draw() for _ in range(2)], np.uint32)]
    for _ in range(net.forwards):
        built.forward()
        arrays += shown(built, tops)
    return arrays


def check(net, folders):
    """Both layers show the same.

    Ours runs first: what it refuses is not tried with Caffe's, which would abort. If Caffe aborts nevertheless, the
    folder stays, with the net's files and the example as Python in "example".
    """
    folder = Path(tempfile.mkdtemp(dir=str(folders)))
    write(net, folder)
    (folder / "example").write_text(repr(net))
    rank, count = net.ranks
    caffe.set_multiprocess(True)
    caffe.set_solver_count(count)
    caffe.set_solver_rank(rank)
    try:
        assert_same_bits(shows(net, folder, ours=True), shows(net, folder, ours=False))
    finally:
        caffe.set_solver_rank(0)
        caffe.set_solver_count(1)
        caffe.set_multiprocess(False)
    shutil.rmtree(str(folder))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Where each net gets a folder of its own."""
    return tmp_path_factory.mktemp("nets")


@EXAMPLES
@given(net=data_nets())
def test_data(folders, net):
    check(net, folders)


@EXAMPLES
@given(net=image_data_nets())
def test_image_data(folders, net):
    check(net, folders)


# ---- What Caffe aborts on

COLOR = ImageFile("jpeg", 9, 12, 0, {"space": YCC, "sampling": "4:2:0", "quality": 90})
GRAY = ImageFile(
    "png", 9, 12, 0, {"color_type": PNG_GRAY, "depth": 8, "transparent": False, "interlaced": False, "filters": True}
)
DEEP = GRAY._replace(how={**GRAY.how, "color_type": PNG_RGB, "depth": 16})
RAW = Raw((3, 9, 12), "uint8", 0, 1)


def data_net(transform, *samples, mean=None):
    messages = f'data_param {{ source: "FOLDER/db" backend: LMDB batch_size: 3 }} transform_param {{ {transform} }}'
    return Net("Data", messages, samples, mean, 2, caffe.TRAIN, 1, (0, 1), 5, "threads: 2", True)


def image_data_net(more, *files, transform=""):
    messages = (
        f'image_data_param {{ source: "FOLDER/list" root_folder: "FOLDER/" batch_size: 3 {more} }} '
        f"transform_param {{ {transform} }}"
    )
    return Net(
        "ImageData",
        messages,
        [Listed(file, "1") for file in files],
        None,
        2,
        caffe.TRAIN,
        1,
        (0, 1),
        5,
        "threads: 2",
        True,
    )


WRONG = [  # a net, words of what Caffe says, and of what we say where these are others
    (data_net("crop_size: 10", RAW), "datum_height >= crop_size"),
    (data_net("crop_size: 10", Encoded(COLOR, 1)), "_height >= crop_size"),
    (
        data_net("crop_size: 9", RAW, RAW, RAW._replace(shape=(3, 9, 8))),
        "width <= datum_width (9 vs. 8)",
        "datum_width >= crop_size (8 vs. 9)",
    ),
    (data_net("mean_value: 1 mean_value: 2", RAW), "Specify either 1 mean_value or as many as channels: 3"),
    (
        data_net('mean_value: 1 mean_file: "FOLDER/mean"', RAW, mean=RAW.shape),
        "Cannot specify mean_file and mean_value at the same time",
    ),
    (data_net('mean_file: "FOLDER/mean"', RAW, mean=(3, 9, 11)), "datum_width == data_mean_.width()"),
    (data_net('mean_file: "FOLDER/mean"', RAW), "File not found: "),
    (data_net("force_color: true force_gray: true", Encoded(COLOR, 1)), "cannot set both force_color and force_gray"),
    (data_net("", RAW, RAW._replace(shape=(3, 8, 12))), "height <= datum_height", "datum_height == height"),
    (data_net("", RAW, RAW._replace(shape=(4, 9, 12))), "channels == datum_channels"),
    (data_net("", Encoded(COLOR, 1), Encoded(GRAY, 1)), "channels == "),
    (data_net("", Encoded(DEEP, 1)), "Image data type must be unsigned byte"),
    (image_data_net("", COLOR, COLOR._replace(width=11)), "width <= img_width", "datum_width == width"),
    (image_data_net("new_width: 5", COLOR), "requires new_height and new_width to be set at the same time"),
    (image_data_net("new_height: 5 new_width: 8", COLOR, transform="crop_size: 6"), "_height >= crop_size"),
    (image_data_net("rand_skip: 1000000", COLOR), "Not enough points to skip"),
    (image_data_net(""), "File is empty"),
]

ABORTS = """
    import os, caffe
    for folder in {folders}:
        child = os.fork()  # before there are threads
        if not child:
            os.dup2(os.open(folder + "/said", os.O_WRONLY | os.O_CREAT), 2)
            caffe.set_random_seed(1)
            net = caffe.Net(folder + "/net", caffe.TRAIN)
            for _ in range(5):
                net.forward()
            os._exit(0)
        print(os.waitpid(child, 0)[1], flush=True)
"""


def test_what_caffe_aborts_on_is_an_exception(start, tmp_path):
    folders, raised = [], []
    for number, (net, *_) in enumerate(WRONG):
        folder = tmp_path / str(number)
        folder.mkdir()
        folders.append(folder)
        write(net, folder)
        with pytest.raises((ValueError, OSError, fastbatch.SourceError)) as caught:
            shows(net, folder, ours=True)
        raised.append(str(caught.value))
        write_net(net, folder, ours=False)
    ends, _ = start(ABORTS.format(folders=[str(folder) for folder in folders])).communicate()
    assert ends.split() == [str(int(signal.SIGABRT))] * len(WRONG)
    said = [(folder / "said").read_text() for folder in folders]
    for (_, *words), ours, caffes in zip(WRONG, raised, said):
        assert words[0] in caffes and words[-1] in ours, (ours, caffes)
