"""The output of `python -m fastbatch convert` can be built, and shows what the old net shows."""

import random

import numpy as np
import pytest

caffe = pytest.importorskip("caffe._caffe") and pytest.importorskip("caffe")
h5py = pytest.importorskip("h5py")

from caffe.proto import caffe_pb2
from google.protobuf import text_format

import fastbatch.caffe
from databases import datum, images, write_lmdb
from fastbatch.caffe.convert import convert
from jpegs import encode_png
from nets import assert_same_bits, run

COUNT, SHAPE = 11, (3, 24, 20)

# Of each type: what it needs, with a crop of 16; what Caffe obeys besides; what Caffe reads and ignores.
DEPRECATED = ["scale: 2", 'mean_file: "no such file"', "crop_size: 5", "mirror: true"]
PREFETCH_ALONE = [
    (
        "data_param",
        [
            "prefetch: 2",
            'source: "x"',
            "batch_size: 9",
            "backend: LMDB",
            "rand_skip: 3",
            *DEPRECATED,
            "force_encoded_color: true",
        ],
    )
]
KINDS = {
    "Data": (
        {"data_param": ['source: "db"', "backend: LMDB", "batch_size: 4"]},
        [
            ("data_param", ["prefetch: 3"]),
            ("transform_param", ["scale: 0.5", "mirror: true", "crop_size: 16", "mean_value: 7"]),
        ],
        [("data_param", [*DEPRECATED, "rand_skip: 3", "force_encoded_color: true"])],
    ),
    "ImageData": (
        {"image_data_param": ['source: "images.txt"', "batch_size: 4"]},
        [
            (
                "image_data_param",
                [
                    "shuffle: true",
                    "rand_skip: 5",
                    "new_height: 18 new_width: 17",
                    "is_color: false",
                    "root_folder: './'",
                ],
            ),
            ("transform_param", ["scale: 0.5", "mirror: true", "crop_size: 16", "mean_value: 7"]),
        ],
        [
            ("image_data_param", DEPRECATED),
            ("transform_param", ["force_color: true", "force_gray: true"]),
            *PREFETCH_ALONE,
        ],
    ),
    "HDF5Data": (
        {"hdf5_data_param": ['source: "rows.txt"', "batch_size: 4"]},
        [("hdf5_data_param", ["shuffle: false"])],
        PREFETCH_ALONE,
    ),
    "WindowData": (
        {
            "window_data_param": ['source: "windows.txt"', "batch_size: 4", "root_folder: './'"],
            "transform_param": ["crop_size: 16"],
        },
        [
            (
                "window_data_param",
                ["scale: 0.25", "fg_threshold: 0.4", "context_pad: 2", 'crop_mode: "square"', "cache_images: true"],
            ),
            ("transform_param", ["mirror: true", "mean_value: 7"]),
        ],
        [
            ("window_data_param", DEPRECATED[1:]),
            ("transform_param", ["scale: 3", "force_color: true", "force_gray: true"]),
            *PREFETCH_ALONE,
        ],
    ),
    "MemoryData": (
        {"memory_data_param": ["batch_size: 4", "channels: 3", "height: 24", "width: 20"]},
        [("transform_param", ["scale: 0.5", "mirror: true", "crop_size: 16", "mean_value: 7"])],
        [],
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pictures = images(COUNT, SHAPE, seed=5)
    write_lmdb(str(folder / "db"), [datum(picture, label) for label, picture in enumerate(pictures)])
    listed, windows = [], []
    for number, picture in enumerate(pictures):
        (folder / f"{number}.png").write_bytes(encode_png(picture.transpose(1, 2, 0), 2, 8))
        listed.append(f"{number}.png {number}\n")
        boxes = [(1, 0.8, 2, 3, 15, 17), (0, 0.1, 1, 1, 9, 12), (2, 0.6, 0, 0, 19, 23)]
        windows.append(
            f"# {number}\n{number}.png\n3\n24\n20\n{len(boxes)}\n"
            + "".join("{} {} {} {} {} {}\n".format(*box) for box in boxes)
        )
    (folder / "images.txt").write_text("".join(listed))
    (folder / "windows.txt").write_text("".join(windows))
    with h5py.File(folder / "rows.h5", "w") as file:
        file["data"], file["label"] = np.arange(66, dtype="f4").reshape(11, 6), np.arange(11, dtype="f4")
    (folder / "rows.txt").write_text("rows.h5\n")
    return folder


def layer(kind, chance):
    """A layer of this type with its required fields and, at random, the optional ones that Caffe reads."""
    needed, more, ignored = KINDS[kind]
    messages = {name: list(fields) for name, fields in needed.items()}
    for name, fields in [*more, *ignored]:
        messages.setdefault(name, []).extend(field for field in fields if chance.random() < 0.5)
    parts = []
    for name, wanted in messages.items():
        fields = list({field.split(":")[0]: field for field in reversed(wanted)}.values())  # what is needed wins
        chance.shuffle(fields)
        between = chance.choice([" ", "\n    "])
        parts.append(f"{name} {{{between}{between.join(fields)}{between}}}" if fields else f"{name} {{ }}")
    chance.shuffle(parts)
    between = chance.choice([" ", "\n  "])
    written = ['name: "data"', 'top: "data"', 'top: "label"', f'type: "{kind}"', *parts]
    return f"layer {{{between}{between.join(written)}{between}}}\n"


@pytest.mark.parametrize("param_str", [False, True], ids=["in place", "param_str"])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_shows_what_was_shown(kind, seed, param_str, data, build, monkeypatch):
    monkeypatch.chdir(data)
    text = layer(kind, random.Random(f"{kind} {seed}"))
    conversion = convert(text, param_str)
    assert [one.type for one in conversion.layers] == [kind], conversion.notes
    if kind == "MemoryData":
        assert isinstance(build(conversion.text).layers[0], fastbatch.caffe.MemoryData)
        return
    old, new = (run(build, net, 6, seed=3) for net in (text, conversion.text))
    assert_same_bits(new, old)


@pytest.mark.parametrize("kind", KINDS)
def test_each_ignored_field_is_said_and_gone(kind):
    needed, _, ignored = KINDS[kind]
    text = (
        f'layer {{ name: "x" type: "{kind}" '
        + " ".join(f"{name} {{ {' '.join(fields)} }}" for name, fields in needed.items())
        + " }"
    )
    net = text_format.Parse(text, caffe_pb2.NetParameter())
    paths = []
    for name, fields in ignored:
        for field in fields:
            if not field.startswith("prefetch"):
                text_format.Merge(f"{name} {{ {field} }}", net.layer[0])
                paths.append(f"{name}.{field.split(':')[0]}")
    conversion = convert(text_format.MessageToString(net))
    said = [
        note.split(": ")[1].split()[0]
        for note in conversion.notes
        if " is left out, because Caffe ignores it there." in note
    ]
    assert sorted(said) == sorted(paths)
    new = text_format.Parse(conversion.text, caffe_pb2.NetParameter()).layer[0]
    assert not any(getattr(new, path.split(".")[0]).HasField(path.split(".")[1]) for path in paths)


@pytest.mark.parametrize(
    "text, why",
    [
        (
            'type: "HDF5Data" hdf5_data_param { source: "x" batch_size: 2 } transform_param { }',
            "transform_param: HDF5Data does not transform data. Leave it out.",
        ),
        (
            'type: "Data" data_param { source: "x" batch_size: 2 } loss_param { normalize: true }',
            (
                "loss_param: this layer does not read loss_param, and would ignore it. It reads data_param, "
                "transform_param."
            ),
        ),
        ('type: "Data" data_param { batch_size: 2 }', "data_param.source is missing."),
        (
            (
                'type: "WindowData" window_data_param { source: "x" batch_size: 2 crop_mode: "cut" } '
                "transform_param { crop_size: 9 }"
            ),
            'crop_mode is "cut"; it can be "warp" or "square", and Caffe would take any other for "warp".',
        ),
        (
            'type: "Data" data_param { source: "x" batch_size: 0 }',
            "batch_size must be 1 or more, not 0 (in Caffe's words: Check failed: top_shape[0] > 0).",
        ),
        (
            'type: "HDF5Data" hdf5_data_param { source: "x" batch_size: 2 } data_param { prefetch: 0 }',
            "prefetch must be 1 or more, not 0: Caffe itself would wait for ever.",
        ),
        (
            'type: "ImageData" image_data_param { source: "x" new_width: 5 }',
            "Current implementation requires new_height and new_width to be set at the same time; they are 0 and 5.",
        ),
        (
            'type: "MemoryData" memory_data_param { batch_size: 2 channels: 3 width: 4 }',
            (
                "batch_size, channels, height, and width must be specified and positive in memory_data_param; they are "
                "2, 3, 0, 4."
            ),
        ),
        (
            (
                'type: "Data" data_param { source: "x" batch_size: 2 } '
                "transform_param { force_color: true force_gray: true }"
            ),
            "cannot set both force_color and force_gray.",
        ),
        ('type: "AnnotatedData" data_param { source: "x" batch_size: 2 }', "fastbatch has no layer of this type."),
        ('type: "DenseImageData" data_param { source: "x" batch_size: 2 }', "fastbatch has no layer of this type."),
    ],
)
def test_what_our_layer_would_refuse_is_left_with_the_reason(text, why):
    text = f'layer {{ name: "x" top: "data" {text} }}\n'
    conversion = convert(text)
    kind = text.split('type: "')[1].split('"')[0]
    assert (conversion.text, conversion.notes) == (text, (f'layer "x" ({kind}, line 1) is left unchanged: {why}',))


@pytest.mark.parametrize(
    "text",
    [
        'type: "Input" top: "x"',
        'type: "DummyData" top: "x"',
        'type: "Python" top: "x"',
        'type: "Silence" bottom: "x"',
        'type: "Custom" bottom: "x" top: "y"',
    ],
)
def test_of_layers_that_read_no_data_nothing_is_said(text):
    assert convert(f"layer {{ {text} }}").notes == ()
