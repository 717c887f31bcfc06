"""Our Data layer against Caffe's own, bit for bit, on JPEG and PNG records from convert_imageset --encoded."""

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("fastbatch.images._codec")

import caffe

import fastbatch
from databases import datum, encoded, images
from layer_contracts import check_same_batches, trained
from nets import assert_same_bits, caffes, ours, params
from pictures import JPEG, PROGRESSIVE, encode, picture

BATCH, FORWARDS = 5, 9
PICTURES = 13


@pytest.fixture(scope="module")
def made(tmp_path_factory, write):
    """Databases by name, and a mean file."""
    folder = tmp_path_factory.mktemp("encoded")
    size = (61, 83)
    one_size = [
        encode(picture(i, *size), *kind) for i, kind in zip(range(PICTURES), (JPEG, (".png",), PROGRESSIVE) * 5)
    ]
    sizes = [
        encode(picture(i, 40 + 7 * i, 95 - 3 * i), *kind) for i, kind in zip(range(PICTURES), (JPEG, (".png",)) * 7)
    ]
    gray = [encode(picture(i, *size, channels=1), *(JPEG if i % 2 else (".png",))) for i in range(PICTURES)]
    records = {
        name: [encoded(data, i) for i, data in enumerate(files)]
        for name, files in (("one size", one_size), ("sizes", sizes), ("gray", gray))
    }
    # Color and gray in turns: of one shape with force_color or force_gray only.
    records["both"] = [records["gray" if i % 3 == 0 else "one size"][i] for i in range(PICTURES)]
    # Raw records between encoded ones.
    records["raw too"] = [
        datum(images(1, (3, *size), seed=i)[0], i) if i % 2 else each for i, each in enumerate(records["one size"])
    ]
    made = {name: write(folder / name.replace(" ", "-"), each) for name, each in records.items()}
    mean = caffe.io.array_to_blobproto(images(1, (3, *size), np.float32, seed=9))
    (folder / "mean.binaryproto").write_bytes(mean.SerializeToString())
    made["mean"] = str(folder / "mean.binaryproto")
    return made


def assert_conforms(build, param_str, options="", phase=caffe.TRAIN, seeds=(1701, 5)):
    check_same_batches(build, [ours(f"{param_str} {options}"), caffes(param_str)], FORWARDS, seeds, phase)


TRANSFORMS = {
    "none": "",
    "crop": "crop_size: 37",
    "crop of all but a column": "crop_size: 61",
    "mirror": "mirror: true",
    "all, mean values": "crop_size: 37 mirror: true scale: 0.017 mean_value: 104.1 mean_value: 116.7 mean_value: 122.7",
    "all, mean file": "crop_size: 37 mirror: true scale: 0.017 MEAN_FILE",
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST], ids=["TRAIN", "TEST"])
def test_same_bits_and_same_draws(build, made, phase, transform, threads):
    text = TRANSFORMS[transform].replace("MEAN_FILE", f'mean_file: "{made["mean"]}"')
    assert_conforms(build, params(made["one size"], BATCH, text), f"threads: {threads}", phase)


@pytest.mark.parametrize("name, transform", [("one size", "crop_size: 37 mirror: true"), ("raw too", ""), ("gray", "")])
def test_images_that_are_kept(build, made, name, transform):
    """From the second of four epochs on, none is decoded; raw records are not among them."""
    text = params(made[name], BATCH, transform)
    assert_conforms(build, text, "threads: 2 cache_bytes: 100000000")
    net = build(ours(f"{text} threads: 1 cache_bytes: 100000000"))
    for _ in range(FORWARDS):
        net.forward()
    stats = net.layers[0].stats()
    count = PICTURES // 2 + 1 if name == "raw too" else PICTURES
    assert stats["cache_misses"] == count and stats["cache_hits"] > count


def test_images_that_are_kept_in_a_file(build, made, tmp_path):
    options = f'threads: 2 cache_bytes: 100000000 cache_folder: "{tmp_path}"'
    assert_conforms(build, params(made["one size"], BATCH, "crop_size: 37 mirror: true"), options)
    with pytest.raises(OSError, match="no file for the cache can be made in cache_folder=.*/no': No such file"):
        build(ours(params(made["one size"], BATCH) + options.replace(f"{tmp_path}", f"{tmp_path}/no")))
    with pytest.raises(ValueError, match="cache_folder has no effect without cache_bytes"):
        build(ours(params(made["one size"], BATCH) + f'cache_folder: "{tmp_path}"'))


def test_raw_records_are_not_kept(build, write, tmp_path):
    path = write(tmp_path / "raw", [datum(each, 0) for each in images(3)])
    with pytest.raises(ValueError, match=f"cache_bytes has no effect on {path}"):
        build(ours(params(path, 2) + "cache_bytes: 1000000"))


COLORS = [
    (name, force) for name in ("one size", "sizes", "gray") for force in ("", "force_color: true", "force_gray: true")
]
COLORS += [("raw too", ""), ("raw too", "force_color: true")]  # not gray: raw records keep their three channels


@pytest.mark.parametrize("name, force", COLORS)
def test_colors(build, made, name, force):
    assert_conforms(build, params(made[name], BATCH, f"{force} crop_size: 37 mirror: true"), "threads: 2")


@pytest.mark.parametrize("force", ["force_color: true", "force_gray: true"])
def test_gray_and_color_in_one_database(build, made, force):
    assert_conforms(build, params(made["both"], BATCH, f"{force} crop_size: 37"))


def test_each_its_own_size_with_a_batch_of_one(build, made):
    assert_conforms(build, params(made["sizes"], 1), "threads: 3", caffe.TEST)


def test_gray_and_color_in_one_batch_is_an_error(build, made):
    """Caffe aborts. Our layer names the record and quotes Caffe's words; the next batch follows."""
    net = build(ours(params(made["both"], BATCH, "crop_size: 37")))
    with pytest.raises(fastbatch.SampleError, match=r"channels == datum_channels") as caught:
        net.forward()
    assert caught.value.key == b"00000001"


def test_training_is_the_same(tmp_path, made):
    """A whole little training: every loss, digit for digit, and every weight."""
    param_str = params(made["sizes"], BATCH, "crop_size: 37 mirror: true mean_value: 120")
    assert_same_bits(*(trained(tmp_path, layer(param_str), PICTURES) for layer in (ours, caffes)))
