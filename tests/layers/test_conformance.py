"""Our Data layer against Caffe's own in one process: the same bits, draws and training."""

import itertools
import os
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

from databases import datum, image_database, image_lmdb, images, varint, write_lmdb
from fastbatch.caffe.layers import draws
from fastbatch.caffe.runtime.lifetime import registry
from nets import assert_same_bits, caffes, labels, ours, params, run

RECORDS, BATCH = 17, 5  # which don't come out even
FORWARDS = 11  # three epochs, and a bit of the fourth
SHAPE = (3, 24, 37)

# Layers that draw from Caffe's stream too: the first when the net is built, the second in every forward().
DRAWING = """
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
            inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
    layer { name: "dropout" type: "Dropout" bottom: "ip" top: "dropout" }
"""

TRANSFORMS = {
    "none": "",
    "crop": "crop_size: 19",
    "mirror": "mirror: true",
    "scale": "scale: 0.017",
    "1 mean value": "mean_value: 117.3",
    "3 mean values": "mean_value: 104.007 mean_value: 116.669 mean_value: 122.679",
    "mean file": "MEAN_FILE",
    "all, mean values": "crop_size: 19 mirror: true scale: 0.017 mean_value: 104.1 mean_value: 116.7 mean_value: 122.7",
    "all, mean file": "crop_size: 19 mirror: true scale: 0.017 MEAN_FILE",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, write):
    """A database of uint8 images, one of float images, their backend, and a mean file."""
    folder = tmp_path_factory.mktemp("data")
    mean = caffe.io.array_to_blobproto(images(1, SHAPE, np.float32, seed=9))
    (folder / "mean.binaryproto").write_bytes(mean.SerializeToString())
    uint8, _ = image_database(write, folder / "uint8", RECORDS, SHAPE)
    floats, _ = image_database(write, folder / "float", RECORDS, SHAPE, np.float32)
    backend = "LMDB" if write is write_lmdb else "LEVELDB"
    return {"uint8": uint8, "float_data": floats, "mean": str(folder / "mean.binaryproto"), "backend": backend}


def assert_conforms(
    build, param_str, options="", forwards=FORWARDS, seeds=(1701, 4), phase=caffe.TRAIN, more="", after=DRAWING
):
    """In otherwise equal nets, both layers show the same, and so do the layers that draw after them."""
    for seed in seeds:
        results = []
        for text in ours(f"{param_str} {options}", more=more), caffes(param_str, more=more):
            names = ["data", "label"] + (["dropout"] if after else [])
            results.append(run(build, text + after, forwards, seed=seed, phase=phase, names=names))
            caffe.set_random_seed(seed)
            net = build(text + after, phase)
            results[-1] += [blobs[0].data.copy() for blobs in net.params.values()]
            del net
            registry.sweep()
        assert_same_bits(*results)


def param_str_of(made, kind, transform):
    mean_file = f'mean_file: "{made["mean"]}"'
    return params(made[kind], BATCH, TRANSFORMS[transform].replace("MEAN_FILE", mean_file))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("kind", ["uint8", "float_data"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_same_bits_and_same_draws(build, made, phase, transform, kind, threads):
    assert_conforms(build, param_str_of(made, kind, transform), f"threads: {threads}", phase=getattr(caffe, phase))


@pytest.mark.parametrize("zero_copy", ["true", "false"])
def test_zero_copy_or_not_is_the_same(build, made, zero_copy):
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true")
    assert_conforms(build, param_str, f"zero_copy: {zero_copy} threads: 2")


@pytest.mark.parametrize("prefetch", [1, 2, 20])
def test_prefetch_is_caffes_and_changes_nothing(build, made, prefetch):
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true", f"prefetch: {prefetch}")
    assert_conforms(build, param_str)
    net = build(ours(param_str))
    assert net.layers[0].stats()["slots"] == prefetch + 1


def test_without_a_seed_the_stream_of_the_process_goes_on(build, made):
    """What is drawn by a second net follows what was drawn by the first."""
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true")
    results = []
    for layer in ours, caffes:
        first = run(build, layer(param_str) + DRAWING, FORWARDS, seed=7)
        second = run(build, layer(param_str) + DRAWING, FORWARDS)
        assert any((a != b).any() for a, b in zip(first, second))
        results.append(first + second)
    assert_same_bits(*results)


def test_where_caffes_stream_cannot_be_reached(build, made, monkeypatch):
    """The seed is 0, and a warning says so once, unless the option seed gives another."""
    draws._warn_of_own_seeds.cache_clear()
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true")
    second_draw_of_1701 = 2227967492
    expected = run(build, caffes(param_str), FORWARDS, seed=1701)
    monkeypatch.setattr(draws, "random_draw", lambda: None)
    seeded = run(build, ours(f"{param_str} seed: {second_draw_of_1701}"), FORWARDS)
    assert_same_bits(seeded, expected)
    with pytest.warns(
        RuntimeWarning,
        match="cannot access the random numbers of this Caffe.* write seed: N at the top level of the .* param_str",
    ):
        without = run(build, ours(param_str), FORWARDS)
    run(build, ours(param_str), 1)  # no second warning, which would be an error here
    assert_same_bits(without, run(build, ours(f"{param_str} seed: 0"), FORWARDS))
    assert any((a != b).any() for a, b in zip(without, expected))


def test_the_option_seed_takes_the_place_of_caffes_stream(build, made, monkeypatch):
    """What comes after the layer takes the same draws as ever, and the log says so."""
    said = []
    monkeypatch.setattr(caffe, "log", said.append)
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true")
    second_draw_of_1701 = 2227967492
    expected = run(build, caffes(param_str) + DRAWING, 3, seed=1701, names=["data", "label", "ip"])
    seeded = [
        run(
            build,
            ours(f"{param_str} seed: {second_draw_of_1701}") + DRAWING,
            3,
            seed=seed,
            names=["data", "label", "ip"],
        )
        for seed in (1701, 9)
    ]
    assert_same_bits(seeded[0], expected)
    for number, (found, right) in enumerate(zip(seeded[1], expected)):
        assert (found == right).all() == (number % 3 < 2)  # the fillers' draws are those of 9
    sentence = (
        f"The option seed: {second_draw_of_1701} takes the place of the layer's draws from Caffe's random numbers."
    )
    assert said.count(sentence) == 2


def test_the_net_is_shown_the_batch_itself(build, made):
    net = build(ours(params(made["uint8"], BATCH)))
    addresses = set()
    for _ in range(10):
        net.forward()
        batch = net.layers[0]._showing.shown
        assert [net.blobs[name].data.ctypes.data for name in ("data", "label")] == [batch.address(0), batch.address(1)]
        addresses.add(batch.address(0))
    assert len(addresses) <= net.layers[0].stats()["slots"]


def test_param_str_as_json_and_as_a_dict(build, made):
    expected = run(build, caffes(params(made["uint8"], BATCH, "crop_size: 19 mirror: true mean_value: 3")), 3, seed=5)
    for true in "true", "True":
        param_str = f"""{{"data_param": {{"source": "{made["uint8"]}", "backend": "{made["backend"]}",
                                        "batch_size": {BATCH}}},
                         "transform_param": {{"crop_size": 19, "mirror": {true}, "mean_value": [3]}}, "threads": 2}}"""
        assert_same_bits(run(build, ours(param_str), 3, seed=5), expected)


def test_a_net_made_by_net_spec(build, made):
    spec = caffe.NetSpec()
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true")
    spec.data, spec.label = caffe.layers.Python(module="fastbatch.caffe", layer="Data", param_str=param_str, ntop=2)
    assert_same_bits(run(build, str(spec.to_proto()), 3, seed=5), run(build, caffes(param_str), 3, seed=5))


def test_a_layers_own_phase_wins(build, made):
    param_str = params(made["uint8"], BATCH, "crop_size: 19")
    for phase, net_phase in itertools.permutations(["TRAIN", "TEST"]):
        assert_conforms(build, param_str, phase=getattr(caffe, net_phase), more=f"phase: {phase}")


@pytest.mark.parametrize("number", range(60))
def test_any_parameters(build, tmp_path, number, write):
    """Everything at random. (By hand: Hypothesis would first parse the sources of all that Caffe imports.)"""
    random = np.random.RandomState(number)

    def among(*values):
        return values[random.randint(len(values))]

    channels, height, width = random.randint(1, 5), random.randint(1, 41), random.randint(1, 71)
    shape = channels, height, width
    path, _ = image_database(
        write, tmp_path / "db", random.randint(1, 13), shape, among(np.uint8, np.float32), seed=number
    )
    transform = f"mirror: {among('true', 'false')} scale: {np.float32(random.uniform(-8, 8))!r} "
    transform += among("", f"crop_size: {random.randint(0, min(height, width) + 1)} ")
    mean = among("", "1 value", "values", "file")
    for value in random.uniform(-300, 300, {"1 value": 1, "values": channels}.get(mean, 0)):
        transform += f"mean_value: {np.float32(value)!r} "
    if mean == "file":
        blob = caffe.io.array_to_blobproto(images(1, shape, np.float32, seed=number))
        (tmp_path / "mean.binaryproto").write_bytes(blob.SerializeToString())
        transform += f'mean_file: "{tmp_path}/mean.binaryproto" '
    param_str = params(path, random.randint(1, 9), transform, f"prefetch: {random.randint(1, 7)}")
    assert_conforms(
        build,
        param_str,
        f"threads: {random.randint(1, 6)}",
        forwards=random.randint(1, 13),
        seeds=[number],
        phase=among(caffe.TRAIN, caffe.TEST),
    )


# Records that are not all alike


def test_a_batch_of_one_takes_the_shape_of_its_image(build, tmp_path, write):
    shapes = [(3, 10, 12), (3, 4, 5), (1, 30, 2), (3, 1, 1), (4, 40, 40)]
    records = [datum(images(1, shape, seed=i)[0], label=i) for i, shape in enumerate(shapes)]
    param_str = params(write(tmp_path / "db", records), 1, "mirror: true scale: 0.5")
    assert_conforms(build, param_str, "threads: 3", forwards=13, after="")
    net = build(ours(param_str))
    for i in range(13):
        net.forward()
        assert net.blobs["data"].data.shape == (1, *shapes[i % 5])


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_images_of_all_sizes_in_a_batch_when_they_are_cropped(build, tmp_path, phase, write):
    sizes = [(24, 24), (19, 19), (40, 20), (19, 64), (33, 21), (20, 20), (50, 50)]
    records = [datum(images(1, (3, *size), seed=i)[0], label=i) for i, size in enumerate(sizes)]
    param_str = params(write(tmp_path / "db", records), 4, "crop_size: 19 mirror: true mean_value: 9")
    assert_conforms(build, param_str, "threads: 3", phase=getattr(caffe, phase))


def test_bytes_and_floats_mixed_in_a_batch(build, tmp_path, write):
    kinds = [np.uint8, np.float32, np.float32, np.uint8]
    records = [datum(images(1, SHAPE, kind, seed=i)[0], label=i) for i, kind in enumerate(kinds)]
    assert_conforms(build, params(write(tmp_path / "db", records), 3, "scale: 0.3"))


def test_odd_records_that_caffe_reads(build, tmp_path, write):
    """Fields in another order, twice or unknown, packed floats, both kinds of pixels, too many of them, no label."""
    image, other = images(2, (2, 3, 5))
    floats = images(1, (2, 3, 5), np.float32)[0]
    size = b"\x08\x02\x10\x03\x18\x05"
    pixels = b"\x22" + varint(image.size) + image.tobytes()
    single = b"".join(b"\x35" + struct.pack("<f", value) for value in range(17))
    packed = b"\x32" + varint(4 * 13) + struct.pack("<13f", *range(13))
    records = [
        pixels + b"\x28\x07" + size,
        b"\x28\x01" + datum(other, 2) + pixels + b"\x28\x03",
        b"\xfa\x07\x04null" + datum(image, 4) + b"\xf8\x07\x05",
        datum(floats, 5, packed=True),
        datum(floats, 6) + pixels,
        size + b"\x22" + varint(image.size + 9) + image.tobytes() + b"\xff" * 9,
        datum(image),
        size + b"\x22\x00" + datum(floats, 8)[6:],
        size + single + packed,
    ]
    param_str = params(write(tmp_path / "db", records), 4)
    assert_conforms(build, param_str, "threads: 2")
    assert labels(build, ours(param_str), 3) == [7, 3, 4, 5, 6, 0, 0, 8, 0, 7, 3, 4]


def test_numbers_that_are_none(build, tmp_path, write):
    values = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3.4e38, -3.4e38, 1.0, 255.0]
    image = np.array(values * 8, np.float32).reshape(2, 6, 8)
    path = write(tmp_path / "db", [datum(image, 0)])
    for transform in "", "scale: -0.5 mirror: true", "scale: 1e-3 mean_value: 1", "scale: 1e38":
        assert_conforms(build, params(path, 2, transform), after="", forwards=3)


def test_labels_are_int32_as_floats(build, tmp_path, write):
    values = [0, 1, -1, -7, 2**24, 2**24 + 1, -(2**24) - 1, 2**31 - 1, -(2**31)]
    param_str = params(write(tmp_path / "db", [datum(images(1)[0], value) for value in values]), 3)
    assert_conforms(build, param_str)
    expected = [0, 1, -1, -7, 2**24, 2**24, -(2**24), 2**31, -(2**31)]
    assert labels(build, ours(param_str), 3) == expected


def test_keys_decide_the_order(build, tmp_path, write):
    """Bytewise, whatever the order of writing."""
    keys = [b"b", b"a", b"ab", b"\xff", b"00000010", b"9", b"00000009", b"k" * 511]
    path = write(tmp_path / "db", [(key, datum(images(1)[0], i)) for i, key in enumerate(keys)])
    assert_conforms(build, params(path, 3))
    assert labels(build, ours(params(path, 8)), 2) == 2 * [keys.index(key) for key in sorted(keys)]


# Tops


def test_data_without_labels(build, made):
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true")
    results = [
        run(build, layer(param_str, tops=["data"]) + DRAWING, FORWARDS, seed=2, names=["data", "dropout"])
        for layer in (ours, caffes)
    ]
    assert_same_bits(*results)


def test_tops_have_their_shapes_before_the_first_forward(build, made):
    for transform, shape in ("", SHAPE), ("crop_size: 19", (3, 19, 19)):
        net = build(ours(params(made["uint8"], BATCH, transform)))
        assert net.blobs["data"].data.shape == (BATCH, *shape)
        assert net.blobs["label"].data.shape == (BATCH,)


TWICE = """
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
            inner_product_param { num_output: 17 weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
    layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }
    layer { name: "halved" type: "Power" bottom: "data" top: "halved" power_param { scale: 0.5 } }
"""


def test_tops_that_several_layers_read(build, made):
    """Caffe puts Split layers after them, which share the memory that they are shown."""
    param_str = params(made["uint8"], BATCH, "crop_size: 19 mirror: true scale: 0.01")
    results = [
        run(build, layer(param_str) + TWICE, FORWARDS, seed=2, names=["label", "loss", "accuracy", "halved"])
        for layer in (ours, caffes)
    ]
    assert_same_bits(*results)
    assert len({loss.item() for loss in results[0][1::4]}) == FORWARDS


# Training

LENET = """
    layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 } param { lr_mult: 2 }
            convolution_param { num_output: 6 kernel_size: 5 weight_filler { type: "xavier" } } }
    layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
            pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    layer { name: "ip1" type: "InnerProduct" bottom: "pool1" top: "ip1"
            inner_product_param { num_output: 20 weight_filler { type: "gaussian" std: 0.05 } } }
    layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
    layer { name: "dropout" type: "Dropout" bottom: "ip1" top: "ip1" }
    layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
            inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
    layer { name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include { phase: TEST } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }
"""


@pytest.fixture(scope="module")
def patterns(tmp_path_factory, write):
    """(training database, test database) of noisy bars, ten classes."""
    folder = tmp_path_factory.mktemp("patterns")
    paths = []
    for name, count in ("train", 70), ("test", 33):
        pixels = images(count, (1, 20, 20), seed=count) // 2
        for i, image in enumerate(pixels):
            image[:, :, 2 * (i % 10) : 2 * (i % 10) + 2] += 120
        paths.append(write(folder / name, [datum(image, i % 10) for i, image in enumerate(pixels)]))
    return paths


def train(tmp_path, layer, patterns, settings, steps=25):
    """[[train loss, test loss, test accuracy] of each step], final parameters."""
    net = tmp_path / "net.prototxt"
    net.write_text(
        "".join(
            layer(
                params(path, size, "crop_size: 16 mirror: true scale: 0.0039 mean_value: 60"),
                more=f"include {{ phase: {phase} }}",
            )
            for path, size, phase in zip(patterns, (8, 5), ("TRAIN", "TEST"))
        )
        + LENET
    )
    solver_file = tmp_path / "solver.prototxt"
    solver_file.write_text(f"""
        net: "{net}" test_iter: 3 test_interval: 4 base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" max_iter: 1000
        display: 0 snapshot_after_train: false solver_mode: CPU {settings}
    """)
    solver = caffe.get_solver(str(solver_file))
    course = []
    for _ in range(steps):
        solver.step(1)
        tested = solver.test_nets[0].blobs
        course.append([blob.data.item() for blob in (solver.net.blobs["loss"], tested["loss"], tested["accuracy"])])
    parameters = [blob.data.copy() for blobs in solver.net.params.values() for blob in blobs]
    del solver, tested
    registry.sweep()
    return course, parameters


@pytest.mark.parametrize(
    "settings", ["random_seed: 1701", "random_seed: 5 iter_size: 2", 'random_seed: 11 type: "Adam" momentum2: 0.999']
)
def test_the_same_training_digit_for_digit(tmp_path, patterns, settings):
    course, parameters = train(tmp_path, ours, patterns, settings)
    expected, expected_parameters = train(tmp_path, caffes, patterns, settings)
    assert course == expected
    assert_same_bits(parameters, expected_parameters)
    assert len({loss for loss, _, _ in course}) == len(course)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("transform", ["none", "all, mean values", "all, mean file"])
@pytest.mark.parametrize("kind", ["uint8", "float_data"])
def test_every_kernel_that_runs_here(build, made, kind, transform):
    assert_conforms(build, param_str_of(made, kind, transform), seeds=[1701])


@pytest.mark.parametrize("files", [["data.mdb", "lock.mdb"], ["data.mdb"]], ids=["with a lock file", "without"])
def test_a_medium_that_cannot_be_written(tmp_path, files):
    """A DVD, a snapshot, a read-only volume: here a folder that a child process has mounted like one."""
    path, _ = image_lmdb(tmp_path / "db", RECORDS, SHAPE)
    for name in {"data.mdb", "lock.mdb"} - set(files):
        os.unlink(os.path.join(path, name))
    (tmp_path / "net.prototxt").write_text(ours(params(path, BATCH)))
    (tmp_path / "labels.py").write_text(
        textwrap.dedent(f"""\
        import os, caffe
        assert os.statvfs({path!r}).f_flag & os.ST_RDONLY
        net = caffe.Net("net.prototxt", caffe.TRAIN)
        print(*[int(label) for _ in range(4) for label in net.forward()["label"]])
    """)
    )
    mount = f"mount --bind {path} {path} && mount -o remount,bind,ro {path} && exec {sys.executable} labels.py"
    command = ["unshare", "--mount", "sh", "-c", mount]
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("nothing can be mounted here")
    child = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    assert child.stdout.split() == [str(i % RECORDS) for i in range(4 * BATCH)]
    assert sorted(os.listdir(path)) == files
