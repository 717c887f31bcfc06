"""Our ImageData layer against Caffe's own in one process: the same bits, order, shuffles and draws."""

import itertools

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("fastbatch.images._codec")

import caffe

import fastbatch
from databases import images
from layer_contracts import DRAWING, SPOILT, check_same_batches, spoil, trained
from nets import assert_same_bits, native_threads, open_files, run
from pictures import JPEG, PROGRESSIVE, encode, picture

pytestmark = pytest.mark.usefixtures("leaves_nothing")

COUNT, BATCH, FORWARDS = 13, 4, 9  # which don't come out even: two epochs, and a bit of the third
SIZE = (61, 83)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a folder with the list files one.txt, sizes.txt, gray.txt and their images, and mean.binaryproto)"""
    folder = tmp_path_factory.mktemp("images")
    kinds = itertools.cycle((JPEG, (".png",), PROGRESSIVE))

    def write(name, pictures):
        lines = []
        for i, (image, kind) in enumerate(zip(pictures, kinds)):
            file = f"{name} {i}{kind[0]}"  # names may contain spaces
            (folder / file).write_bytes(encode(image, *kind))
            lines.append(f"{file} {3 * i - 2}\n")
        (folder / f"{name}.txt").write_text("".join(lines))

    write("one", [picture(i, *SIZE) for i in range(COUNT)])
    write("sizes", [picture(i, 45 + 9 * i, 120 - 5 * i) for i in range(COUNT)])
    write("gray", [picture(i, *SIZE, channels=1) for i in range(COUNT)])
    mean = caffe.io.array_to_blobproto(images(1, (3, *SIZE), np.float32, seed=9))
    (folder / "mean.binaryproto").write_bytes(mean.SerializeToString())
    return folder


def ours(param, transform="", options="", tops=("data", "label")):
    return _layer(
        "Python",
        f'python_param {{ module: "fastbatch.caffe" layer: "ImageData" param_str: "{options}" }}',
        param,
        transform,
        tops,
    )


def caffes(param, transform="", options="", tops=("data", "label")):
    return _layer("ImageData", "", param, transform, tops)


def _layer(kind, python, param, transform, tops):
    tops = " ".join(f'top: "{top}"' for top in tops)
    transform = f"transform_param {{ {transform} }}" if transform else ""
    return f'layer {{ name: "data" type: "{kind}" {tops} {python} image_data_param {{ {param} }} {transform} }}\n'


def of(made, name, more=""):
    return f'source: "{made}/{name}.txt" root_folder: "{made}/" batch_size: {BATCH} {more}'


def assert_conforms(build, param, transform="", options="", phase=caffe.TRAIN, seeds=(1701, 4), after=DRAWING):
    texts = [layer(param, transform, options) + after for layer in (ours, caffes)]
    check_same_batches(build, texts, FORWARDS, seeds, phase)


TRANSFORMS = {
    "none": "",
    "crop": "crop_size: 37",
    "mirror": "mirror: true",
    "all, mean values": "crop_size: 37 mirror: true scale: 0.017 mean_value: 104.1 mean_value: 116.7 mean_value: 122.7",
    "all, mean file": "crop_size: 37 mirror: true scale: 0.017 MEAN_FILE",
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("order", ["", "shuffle: true", "rand_skip: 7", "shuffle: true rand_skip: 11"])
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST], ids=["TRAIN", "TEST"])
def test_same_bits_same_order_same_draws(build, made, phase, order, transform, threads):
    text = TRANSFORMS[transform].replace("MEAN_FILE", f'mean_file: "{made}/mean.binaryproto"')
    assert_conforms(build, of(made, "one", order), text, f"threads: {threads}", phase, seeds=[1701])


@pytest.mark.parametrize("color", ["", "is_color: false"])
@pytest.mark.parametrize("size", [(50, 50), (37, 90), (122, 166), (61, 83)])
@pytest.mark.parametrize("name", ["one", "sizes", "gray"])
@pytest.mark.parametrize("transform", ["", "crop_size: 31 mirror: true mean_value: 117"])
def test_resized(build, made, name, size, color, transform):
    more = f"new_height: {size[0]} new_width: {size[1]} shuffle: true {color}"
    assert_conforms(build, of(made, name, more), transform, "threads: 2")


def test_images_that_are_kept(build, made):
    param = of(made, "sizes", "new_height: 50 new_width: 40 shuffle: true")
    options = "threads: 1 cache_bytes: 100000000"
    assert_conforms(build, param, "crop_size: 31 mirror: true", options)
    net = build(ours(param, options=options))
    for _ in range(FORWARDS):
        net.forward()
    stats = net.layers[0].stats()
    assert stats["cache_misses"] == COUNT and stats["cache_hits"] > COUNT


def test_each_its_own_size_with_a_batch_of_one(build, made):
    assert_conforms(
        build, of(made, "sizes").replace(f"batch_size: {BATCH}", ""), options="threads: 3", phase=caffe.TEST, after=""
    )


def test_exif_orientation_is_applied(build, tmp_path):
    data = encode(picture(3, 40, 60), *JPEG)
    for orientation in range(1, 9):
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
        segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
        (tmp_path / f"{orientation}.jpg").write_bytes(data[:2] + segment + data[2:])
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg {i}\n" for i in range(1, 9)))
    for color in "true", "false":
        param = f'source: "{tmp_path}/list.txt" root_folder: "{tmp_path}/" is_color: {color}'
        assert_conforms(build, param, phase=caffe.TEST, after="")
        assert_conforms(build, f"{param} batch_size: 8 new_height: 30 new_width: 20", "crop_size: 11 mirror: true")


@pytest.mark.parametrize("ending, last", [("\n", "\n"), ("\n", ""), ("\r\n", "\r\n"), ("\r\n", "")])
def test_ends_of_lines(build, made, tmp_path, ending, last):
    lines = (made / "one.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_bytes((ending.join(lines) + last).encode())
    assert_conforms(build, f'source: "{tmp_path}/list.txt" root_folder: "{made}/" batch_size: 3')


def test_two_layers_with_one_seed_draw_alike(build, made):
    """As for images and their masks, in two lists of the same length.

    Caffe's own layers would shuffle and crop each list in its own way.
    """
    second = 'top: "mask" top: "number"'
    for options, alike in ("seed: 7", True), ("", False):
        text = ours(of(made, "one", "shuffle: true rand_skip: 5"), "crop_size: 21 mirror: true", options)
        net = build(text + text.replace('top: "data" top: "label"', second).replace('name: "data"', 'name: "masks"'))
        found = []
        for _ in range(FORWARDS):
            net.forward()
            found.append(
                (net.blobs["number"].data == net.blobs["label"].data).all()
                and (net.blobs["mask"].data == net.blobs["data"].data).all()
            )
        assert all(found) if alike else not any(found)


def test_prefetch_is_read_from_data_param(build, made):
    layer = ours(of(made, "one")).replace("image_data_param", "data_param { prefetch: 2 } image_data_param")
    assert build(layer).layers[0].stats()["slots"] == 3


def test_every_rank_reads_everything(build, made):
    caffe.set_multiprocess(True)
    caffe.set_solver_count(3)
    caffe.set_solver_rank(2)
    try:
        assert_conforms(build, of(made, "one"), "crop_size: 37 mirror: true")
        labels = run(build, ours(of(made, "one")), 3, names=["label"])
        assert np.concatenate(labels).tolist() == [3 * i - 2 for i in range(12)]
    finally:
        caffe.set_solver_rank(0)
        caffe.set_solver_count(1)
        caffe.set_multiprocess(False)


def test_training_is_the_same(tmp_path, made):
    """A whole little training: every loss, digit for digit, and every weight."""
    lines = (made / "one.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("".join(f"{line.rpartition(' ')[0]} {i}\n" for i, line in enumerate(lines)))
    param = (
        f'source: "{tmp_path}/list.txt" root_folder: "{made}/" batch_size: {BATCH} shuffle: true new_height: 48 '
        f"new_width: 48"
    )
    texts = [layer(param, "crop_size: 37 mirror: true mean_value: 120") for layer in (ours, caffes)]
    assert_same_bits(*(trained(tmp_path, text, 40) for text in texts))


# What is wrong


@pytest.mark.parametrize(
    "more, transform, error, words",
    [
        (
            "new_height: 3",
            "",
            ValueError,
            "requires new_height and new_width to be set at the same time; they are 3 and 0",
        ),
        ("batch_size: 0", "", ValueError, "batch_size must be 1 or more, not 0"),
        ("crop_size: 3", "", ValueError, "image_data_param.crop_size: Caffe ignores it there"),
        ("", "force_color: true", ValueError, "Write is_color in image_data_param"),
        ("", "crop_size: 99", ValueError, "is smaller than crop_size 99"),
        (
            "",
            "mean_value: 1 mean_value: 2",
            ValueError,
            "Specify either 1 mean_value or as many as channels: 3 (there are 2)",
        ),
    ],
)
def test_parameters_that_make_no_sense(build, made, more, transform, error, words):
    param = of(made, "one").replace(f"batch_size: {BATCH}", "") if "batch_size" in more else of(made, "one")
    with pytest.raises(error) as caught:
        build(ours(f"{param} {more}", transform))
    assert words in str(caught.value)
    assert (native_threads(), open_files(".jpg")) == ([], [])


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "list.txt: File is empty"),
        (b"a.jpg 1\n\nb.jpg 2\n", "list.txt: line 2 is blank"),
        (b"a.jpg 1\nb.jpg\n", "line 2 has no label"),
        (b"a.jpg\t1\n", "line 1 has a tab between name and label"),
        (b"a.jpg 1 \n", "line 1 ends in '', which is not an integer"),
        (b"a.jpg 3.7\n", "line 1 ends in '3.7', which is not an integer"),
        (b"a.jpg 4294967296\n", "line 1 has the label 4294967296"),
        ("\ufeffa.jpg 1\n".encode(), "byte order mark"),
        ("a.jpg 1\n".encode("utf-16"), "byte order mark, is UTF-16"),
    ],
)
def test_lists_that_are_wrong(build, tmp_path, content, words):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(fastbatch.SourceError) as caught:
        build(ours(f'source: "{tmp_path}/list.txt"'))
    assert words in str(caught.value)


def test_a_list_that_is_not_there(build, tmp_path):
    with pytest.raises(
        fastbatch.SourceError, match=f"cannot read the list of images {tmp_path}/list.txt: No such file"
    ):
        build(ours(f'source: "{tmp_path}/list.txt"'))


@pytest.mark.parametrize("what, words", SPOILT.items())
def test_an_image_in_the_middle_that_cannot_be_had(build, made, tmp_path, what, words):
    """Its batch raises one error with the path and the line, then reading continues; so in the next epoch."""
    for i in range(9):
        (tmp_path / f"{i}.jpg").write_bytes(encode(picture(i, *SIZE), *JPEG))
    bad = tmp_path / "4.jpg"
    spoil(bad, what)
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg {i}\n" for i in range(9)))
    param = f'source: "{tmp_path}/list.txt" root_folder: "{tmp_path}/" batch_size: 3'
    net = build(ours(param))
    for _epoch in range(3):
        net.forward()
        assert net.blobs["label"].data.tolist() == [0, 1, 2]
        with pytest.raises(fastbatch.SampleError) as caught:
            net.forward()
        assert (caught.value.key, caught.value.index) == (b"4.jpg", 4) and words in str(caught.value)
        net.forward()
        assert net.blobs["label"].data.tolist() == [6, 7, 8]


def test_a_first_image_that_cannot_be_had(build, tmp_path):
    (tmp_path / "list.txt").write_text("nowhere.jpg 1\n")
    with pytest.raises(
        fastbatch.SampleError, match=f"{tmp_path}/list.txt, sample 0 .key 'nowhere.jpg'.: Could not open or find file"
    ):
        build(ours(f'source: "{tmp_path}/list.txt"'))
    assert native_threads() == []


def test_a_root_folder_that_does_not_end_in_a_slash(build, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(encode(picture(0, *SIZE), *JPEG))
    (tmp_path / "list.txt").write_text("0.jpg 1\n")
    with pytest.raises(
        fastbatch.SampleError,
        match="images0.jpg: No such file or directory; root_folder is .*: a folder must end in a slash",
    ):
        build(ours(f'source: "{tmp_path}/list.txt" root_folder: "{tmp_path}/images"'))


def test_not_enough_points_to_skip(build, made):
    caffe.set_random_seed(1701)
    with pytest.raises(ValueError, match="Not enough points to skip: it has 13"):
        build(ours(of(made, "one", "rand_skip: 1000000")))
