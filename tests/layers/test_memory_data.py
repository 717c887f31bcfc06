"""Our MemoryData layer against Caffe's own on the same arrays, the cases of Caffe's tests, and how long arrays live."""

import gc
import os
import weakref

import numpy as np
import pytest

pytest.importorskip("caffe._caffe")

import caffe

import fastbatch
from databases import datum, images, write_lmdb
from fastbatch.caffe import MemoryData, close_all, set_input_arrays
from fastbatch.caffe.runtime._blob import random_draw
from fastbatch.caffe.runtime.lifetime import registry
from nets import anonymous_kb, assert_same_bits, caffes, params, run, shown

SHAPE = (3, 5, 4)
REST = """
    layer { name: "doubled" type: "Power" bottom: "data" top: "doubled" power_param { scale: 2 } }
    layer { name: "negated" type: "Power" bottom: "data" top: "negated" power_param { scale: -1 } }
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
            inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
"""


def memory_params(batch_size=4, shape=SHAPE, transform=None):
    sizes = "channels: {} height: {} width: {}".format(*shape)
    transform_param = "" if transform is None else f"transform_param {{ {transform} }}"
    return f"memory_data_param {{ batch_size: {batch_size} {sizes} }} {transform_param}"


def native(text):
    return f'layer {{ name: "data" type: "MemoryData" top: "data" top: "label" {text} }}\n'


def our(text="", param_str="", tops='top: "data" top: "label"', name="data"):
    python = f'python_param {{ module: "fastbatch.caffe" layer: "MemoryData" param_str: \'{param_str}\' }}'
    return f'layer {{ name: "{name}" type: "Python" {tops} {python} {text} }}\n'


def arrays(count, shape=SHAPE, seed=0, labels=(1, 1, 1)):
    random = np.random.RandomState(seed)
    return random.randn(count, *shape).astype(np.float32), random.randn(count, *labels).astype(np.float32)


def refill(net, data, labels):
    """In the way of the layer that the net has."""
    if net.layers[0].type == "Python":
        set_input_arrays(net, data, labels)
    else:
        net.set_input_arrays(data, labels)


@pytest.fixture(params=["ours", "Caffe's"])
def either(request, build):
    """Builds a net with our layer or with Caffe's own."""

    def either(*arguments, **more):
        return build((our if request.param == "ours" else native)(memory_params(*arguments, **more)) + REST)

    return either


# What Caffe's own tests (test_memory_data_layer.cpp) look at


def test_setup(either):
    net = either(12, (4, 7, 11))
    assert net.blobs["data"].data.shape == (12, 4, 7, 11)
    assert net.blobs["label"].data.shape == (12,)


def test_forward(either):
    net = either(8)
    data, labels = arrays(96)
    refill(net, data, labels)
    for number in range(72):
        net.forward()
        first = 8 * number % 96
        assert_same_bits(shown(net), [data[first : first + 8], labels[first : first + 8]])


def test_add_like_add_datum_vector(build):
    net = build(our(memory_params(8)))
    layer = net.layers[0]
    for dtype in np.uint8, np.float32:
        pictures = images(24, SHAPE, dtype)
        layer.add(pictures, range(24))
        for number in range(6):
            net.forward()
            first = 8 * number % 24
            assert_same_bits([net.blobs["data"].data], [pictures[first : first + 8].astype(np.float32)])
            assert net.blobs["label"].data.ravel().tolist() == list(range(first, first + 8))


def test_set_batch_size(build):
    net = build(our(memory_params(8)) + REST)
    layer = net.layers[0]
    first, second = images(24, SHAPE), images(32, SHAPE, seed=1)
    layer.add(first, range(24))
    with pytest.raises(RuntimeError, match="Can't change batch_size until current data has been consumed"):
        layer.set_batch_size(16)
    for _ in range(3):
        net.forward()
    layer.set_batch_size(16)
    with pytest.raises(RuntimeError, match="must be a multiple of batch size, and not 0; .* 24 and 16"):
        net.forward()
    layer.add(second, range(32))
    for first in 0, 16:
        net.forward()
        assert_same_bits([net.blobs["doubled"].data], [2 * second[first : first + 16].astype(np.float32)])
    layer.set_batch_size(8)
    net.forward()
    assert_same_bits([net.blobs["data"].data], [second[:8].astype(np.float32)])
    for size, error in (0, "1 or more, not 0"), (2**31, "blob size exceeds INT_MAX"):
        with pytest.raises(ValueError, match=error):
            layer.set_batch_size(size)


def test_set_batch_size_before_other_arrays_come(build):
    """As Caffe's own test does: 40 images in batches of 8, then 80 in batches of 16."""
    net = build(our(memory_params(8)) + REST)
    net.layers[0].add(images(40, SHAPE), range(40))
    for _ in range(5):
        net.forward()
    net.layers[0].set_batch_size(16)
    pictures = images(80, SHAPE, seed=1)
    net.layers[0].add(pictures, range(80))
    for first in range(0, 80, 16):
        net.forward()
        assert net.blobs["doubled"].data.shape == (16, *SHAPE)
        assert_same_bits([net.blobs["data"].data], [pictures[first : first + 16].astype(np.float32)])
        assert net.blobs["label"].data.ravel().tolist() == list(range(first, first + 16))


def test_set_batch_size_in_the_middle_of_arrays(build):
    """Caffe would go on reading beyond their end."""
    net = build(our(memory_params(4)))
    data, labels = arrays(24)
    refill(net, data, labels)
    net.forward()
    net.layers[0].set_batch_size(12)
    net.forward()
    assert_same_bits(shown(net), [data[4:16], labels[4:16]])
    with pytest.raises(
        RuntimeError, match=r"is at image 16 of 24, and batches have 12 since set_batch_size\(\): give it other arrays"
    ):
        net.forward()
    assert_same_bits(shown(net), [data[4:16], labels[4:16]])
    refill(net, data, labels)
    net.forward()
    assert_same_bits(shown(net), [data[:12], labels[:12]])


# Both layers


def test_both_layers_show_the_same(build):
    """Shapes, bits, and later fillers' draws stay equal while arrays are replaced, including 1-D labels."""
    found = []
    for text in our(memory_params()), our(param_str=memory_params()), native(memory_params()):
        caffe.set_random_seed(5)
        net = build(text + REST)
        results = shown(net, ["label"]) + [blob.data.copy() for blob in net.params["ip"]]
        for seed, (count, forwards) in enumerate([(4, 3), (12, 5), (8, 1), (40, 12), (4, 1)]):
            refill(net, *arrays(count, seed=seed, labels=(1, 1, 1) if seed % 2 else ()))
            for _ in range(forwards):
                net.forward()
                results += shown(net, ["data", "label", "doubled", "negated", "ip"])
        found.append(results)
    assert_same_bits(found[0], found[2])
    assert_same_bits(found[1], found[2])


def test_the_arrays_themselves_are_shown(either):
    net = either()
    data, labels = arrays(8)
    refill(net, data, labels)
    for first in 0, 4, 0:
        net.forward()
        assert net.blobs["data"].data.ctypes.data == data[first:].ctypes.data
        assert net.blobs["label"].data.ctypes.data == labels[first:].ctypes.data
    data[4:] = 7  # what is written into them is seen
    net.forward()
    assert net.blobs["doubled"].data.min() == net.blobs["doubled"].data.max() == 14
    flat = arrays(4, labels=())[1]
    refill(net, data[:4], flat)
    net.forward()
    assert net.blobs["label"].data.ctypes.data == flat.ctypes.data


def test_read_only_arrays_are_not_written_into(build, tmp_path):
    """In-place layers get copies; writing into a file mapped read-only would end the process."""
    in_place = 'layer { name: "doubled" type: "Power" bottom: "data" top: "data" power_param { scale: 2 } }'
    data, labels = arrays(24)
    np.save(tmp_path / "data.npy", data)
    locked = data.copy()
    locked.flags.writeable = labels.flags.writeable = False
    net = build(our(memory_params()) + in_place)
    for given in locked, np.load(tmp_path / "data.npy", mmap_mode="r"):
        net.layers[0].set_batch_size(4)
        set_input_arrays(net, given, labels)
        for size, forwards in (4, 6), (8, 6), (12, 2):
            net.layers[0].set_batch_size(size)
            for number in range(forwards):
                net.forward()
                first = size * number % 24
                assert_same_bits(shown(net), [2 * data[first : first + size], labels[first : first + size]])
        assert_same_bits([given], [data])


def test_without_zero_copy(build):
    net = build(our(memory_params(), "zero_copy: false"))
    data, labels = arrays(8)
    refill(net, data, labels)
    net.forward()
    assert net.blobs["data"].data.ctypes.data != data.ctypes.data
    assert_same_bits(shown(net), [data[:4], labels[:4]])


@pytest.mark.parametrize(
    "transform, phase, draws",
    [
        (None, "TRAIN", 0),
        ("", "TRAIN", 0),
        ("scale: 2 mean_value: 3", "TRAIN", 0),
        ("mirror: true", "TRAIN", 1),
        ("mirror: true", "TEST", 1),
        ("crop_size: 4", "TRAIN", 1),
        ("crop_size: 4", "TEST", 0),
    ],
)
def test_the_layers_draw_alike(build, transform, phase, draws):
    following = []
    for layer in our, native:
        caffe.set_random_seed(9)
        build(layer(memory_params(transform=transform)), getattr(caffe, phase))
        following.append(random_draw())
    caffe.set_random_seed(9)
    assert following == 2 * [[random_draw() for _ in range(draws + 1)][-1]]


def wrong_arrays():
    data, labels = arrays(8)
    return [
        (data[:, :, :, ::-1], labels),
        (data, labels[::2]),
        (np.asfortranarray(data), labels),
        (data[0], labels),
        (data, labels[:, :, :, 0]),
        (data.astype(np.float64), labels),
        (data.astype(np.uint8), labels),
        (data, labels.astype(np.int64)),
        (data, np.arange(8)),
        (data[:, :2].copy(), labels),
        (data[:, :, :4].copy(), labels),
        (data[:, :, :, :3].copy(), labels),
        (data, np.concatenate([labels, labels], axis=1)),
        (data, np.concatenate([labels, labels], axis=2)),
        (data, np.concatenate([labels, labels], axis=3)),
        (data[:4], labels),
        (data[:6], labels[:6]),
        (data[:1], labels[:1]),
    ]


@pytest.mark.parametrize("number", range(len(wrong_arrays())))
def test_wrong_arrays_are_refused_in_pycaffes_words(build, number):
    data, labels = wrong_arrays()[number]
    said = []
    for text in native(memory_params()), our(memory_params()):
        with pytest.raises(RuntimeError) as caught:
            refill(build(text), data, labels)
        said.append(str(caught.value))
    assert said[0] in said[1]


@pytest.mark.parametrize(
    "data, labels, words",
    [
        (lambda data: data.tolist(), None, "data array must be a NumPy array, not list"),
        (None, lambda labels: labels.tolist(), "labels array must be a NumPy array, not list"),
        (lambda data: data[:0], lambda labels: labels[:0], "must be a multiple of batch size, and not 0; .* 0 and 4"),
        (lambda data: data.astype(">f4"), None, "data array must be float32; it is >f4"),
        (
            lambda data: np.frombuffer(b"x" + data.tobytes(), np.uint8)[1:].view(np.float32).reshape(data.shape),
            None,
            "aligned",
        ),
    ],
)
def test_arrays_that_would_crash_caffe(build, data, labels, words):
    net = build(our(memory_params()))
    good = arrays(8)
    with pytest.raises(RuntimeError, match=words):
        refill(net, *(change(array) if change else array for change, array in zip((data, labels), good)))
    refill(net, *good)
    net.forward()  # nothing of it is left
    assert_same_bits(shown(net), [array[:4] for array in good])


# What is wrong


def test_forward_before_there_are_arrays(build):
    net = build(our(memory_params()))
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match='MemoryDataLayer needs to be initialized by calling Reset: .*layer "data"'
        ):
            net.forward()
    refill(net, *arrays(4))
    net.forward()


@pytest.mark.parametrize(
    "text, error",
    [
        ("", "batch_size, channels, height, and width must be specified and positive in memory_data_param"),
        (memory_params(0), "must be specified and positive"),
        (
            memory_params(4, (3, 0, 4)),
            'layer "data".*must be specified and positive in memory_data_param; they are 4, 3, 0, 4',
        ),
        ("memory_data_param { batch_size: 4 channels: 3 width: 4 }", "must be specified and positive"),
        (memory_params(2**16, (2**16, 2**16, 1)), "blob size exceeds INT_MAX"),
        (memory_params() + "data_param { prefetch: 4 }", "data_param: this layer does not read data_param"),
        (
            memory_params(transform='mean_value: 1 mean_file: "x"'),
            "Cannot specify mean_file and mean_value at the same time",
        ),
    ],
)
def test_wrong_parameters(build, text, error):
    with pytest.raises(ValueError, match=error):
        build(our(text))


@pytest.mark.parametrize("tops", [[], ["data"], ["data", "label", "more"]])
def test_wrong_number_of_tops(build, tops):
    words = f"MemoryData Layer produces 2 top blob.* this one has {len(tops)}"
    with pytest.raises(ValueError, match=words):
        build(our(memory_params(), tops=" ".join(f'top: "{top}"' for top in tops)))


def test_a_bottom(build):
    text = 'layer { name: "in" type: "Input" top: "in" input_param { shape { dim: 1 } } }'
    with pytest.raises(ValueError, match="MemoryData Layer takes 0 bottom blob.* this one has 1"):
        build(text + our(memory_params() + 'bottom: "in"'))


def test_set_input_arrays_of_a_net_with_several_or_none(build):
    net = build(our(memory_params()) + our(memory_params(2), tops='top: "other" top: "labels"', name="other"))
    with pytest.raises(RuntimeError, match="set_input_arrays may only be called if .* this net has 2"):
        set_input_arrays(net, *arrays(4))
    assert [isinstance(layer, MemoryData) for layer in net.layers] == [True, True]
    net.layers[0].set_input_arrays(*arrays(4))
    net.layers[1].set_input_arrays(*arrays(2, seed=1))
    net.forward()
    assert_same_bits(shown(net, ["other", "labels"]), arrays(2, seed=1))
    with pytest.raises(RuntimeError, match="this net has 0"):
        set_input_arrays(build(native(memory_params())), *arrays(4))


def test_a_transform_param_has_no_effect_on_arrays(build):
    """Caffe says so in its log."""
    net = build(our(memory_params(transform="scale: 2")))
    with pytest.warns(RuntimeWarning, match=r"MemoryData does not transform array data on Reset\(\)"):
        refill(net, *arrays(4))
    net.forward()
    assert_same_bits(shown(net), arrays(4))


def test_setup_again(build):
    net = build(our(memory_params()))
    with pytest.raises(RuntimeError, match="called before"):
        net.layers[0].setup([], [])


# add()

TRANSFORMS = [
    "",
    "scale: 0.017",
    "mirror: true",
    "crop_size: 4",
    "mean_value: 12.5",
    "mean_value: 1 mean_value: -7.1 mean_value: 99",
    "crop_size: 4 mirror: true scale: 0.3 mean_value: 104.007 mean_value: 1 mean_value: 3",
    "crop_size: 4 mirror: true scale: 0.3 MEAN_FILE",
    "MEAN_FILE",
]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_add_transforms_as_caffe_does(build, tmp_path, transform, kind, phase):
    """The reference is Caffe's Data layer, whose transformer is the same, with the seed that is drawn second."""
    shape, batch = (3, 7, 9), 4
    mean = caffe.io.array_to_blobproto(images(1, shape, np.float32, seed=9))
    (tmp_path / "mean").write_bytes(mean.SerializeToString())
    transform = transform.replace("MEAN_FILE", f'mean_file: "{tmp_path}/mean"')
    pictures = images(24, shape, kind)
    path = write_lmdb(tmp_path / "db", [datum(picture, label) for label, picture in enumerate(pictures)])
    expected = run(build, caffes(params(path, batch, transform)), 6, seed=11, phase=phase)

    caffe.set_random_seed(11)
    random_draw()
    net = build(our(memory_params(batch, (3, 4, 4) if "crop" in transform else shape, transform=transform)), phase)
    found = []
    for first in 0, 8, 16:  # the stream of draws goes on
        net.layers[0].add(pictures[first : first + 8], np.arange(first, first + 8))
        for _ in range(2):
            net.forward()
            found += [net.blobs["data"].data.copy(), net.blobs["label"].data.ravel().copy()]
    assert_same_bits(found, expected)


def test_add_images_of_all_sizes_when_they_are_cropped(build):
    net = build(our(memory_params(4, (3, 4, 4), "crop_size: 4")), caffe.TEST)
    pictures = [images(1, (3, *size), seed=i)[0] for i, size in enumerate([(4, 4), (5, 9), (30, 4), (8, 7)])]
    net.layers[0].add(pictures, [1, 2, 3, 4])
    net.forward()
    for picture, found in zip(pictures, net.blobs["data"].data):
        top, left = (picture.shape[1] - 4) // 2, (picture.shape[2] - 4) // 2
        np.testing.assert_array_equal(found, picture[:, top : top + 4, left : left + 4])


@pytest.mark.parametrize(
    "transform, shape, pictures, labels, error, words",
    [
        (None, SHAPE, [], [], ValueError, "There is no datum to add"),
        (
            None,
            SHAPE,
            images(3, SHAPE),
            [1, 2, 3],
            ValueError,
            "The added data must be a multiple of the batch size.* 3 and 4",
        ),
        (None, SHAPE, images(4, SHAPE), [1, 2, 3], ValueError, r"4 images and labels of shape \(3,\)"),
        (None, SHAPE, images(4, SHAPE), np.ones((4, 1)), ValueError, "one number for each image"),
        (None, SHAPE, images(4, SHAPE).astype(np.int16), range(4), TypeError, "image 0: its type is int16"),
        (None, SHAPE, images(4, SHAPE)[:, 0], range(4), ValueError, r"image 0: its shape is \(5, 4\)"),
        (None, SHAPE, images(4, (2, 5, 4)), range(4), ValueError, "it has 2 channels, memory_data_param says 3"),
        (
            None,
            SHAPE,
            images(4, (3, 5, 5)),
            range(4),
            ValueError,
            r"its shape is \(3, 5, 5\), memory_data_param says \(3, 5, 4\)",
        ),
        ("crop_size: 3", SHAPE, images(4, SHAPE), range(4), ValueError, "crop_size == height"),
        ("crop_size: 6", (3, 6, 6), images(4, SHAPE), range(4), ValueError, "smaller than crop_size 6"),
        (
            "mean_value: 1 mean_value: 2",
            SHAPE,
            images(4, SHAPE),
            range(4),
            ValueError,
            "Specify either 1 mean_value or as many as",
        ),
    ],
)
def test_what_cannot_be_added(build, transform, shape, pictures, labels, error, words):
    net = build(our(memory_params(4, shape, transform)))
    with pytest.raises(error, match=words):
        net.layers[0].add(pictures, labels)


def test_no_more_is_added_before_all_was_shown(build):
    net = build(our(memory_params()))
    layer = net.layers[0]
    layer.add(images(8, SHAPE), range(8))
    net.forward()
    with pytest.raises(
        RuntimeError, match="Can't add data until current data has been consumed; .* 4 images added before"
    ):
        layer.add(images(8, SHAPE), range(8))
    net.forward()
    layer.add(images(4, SHAPE, seed=1), range(4))
    net.forward()
    np.testing.assert_array_equal(net.blobs["data"].data, images(4, SHAPE, seed=1))


# How long the arrays live


def filled(net, count=4, seed=0):
    """Fills the net's layer with new arrays and returns weak references to them."""
    data, labels = arrays(count, seed=seed)
    refill(net, data, labels)
    return [weakref.ref(data), weakref.ref(labels)]


def alive(references):
    return [reference() is not None for reference in references]


def test_arrays_live_while_they_are_shown_and_no_longer(build):
    net = build(our(memory_params()) + REST)
    first = filled(net)
    unshown = filled(net, seed=1)
    assert alive(first) == [False, False]  # replaced before they were shown
    net.forward()
    second = filled(net, seed=2)
    assert alive(unshown) == [True, True]  # the net shows them until its next forward()
    assert_same_bits(shown(net), arrays(4, seed=1))
    net.forward()
    assert alive(unshown) == [False, False] and alive(second) == [True, True]
    del net
    gc.collect()
    assert alive(second) == [False, False]


def test_a_kept_blob_keeps_what_it_shows(build):
    net = build(our(memory_params()) + REST)
    references = filled(net)
    net.forward()
    blob = net.blobs["data"]
    del net
    gc.collect()
    assert alive(references) == [True, True]
    assert_same_bits([blob.data], arrays(4)[:1])
    del blob
    gc.collect()
    assert alive(references) == [False, False]


def test_arrays_that_a_split_still_shows(build):
    """A new size gives the top new memory; a Split layer's blob keeps the old memory until it runs."""
    net = build(our(memory_params()) + REST)
    references = filled(net)
    net.forward()
    split = net.blobs["data_data_0_split_0"]
    net.layers[0].set_batch_size(2)
    filled(net, 2, seed=1)
    net.forward(end="data")
    assert alive(references) == [True, True]
    assert_same_bits([split.data], arrays(4)[:1])
    net.forward()
    net.forward()
    assert alive(references) == [False, False]
    assert_same_bits(shown(net), arrays(2, seed=1))


def test_1000_refills_leave_nothing(build):
    """Caffe's own keeps all arrays for the life of the net: these were 240 MB."""
    shape = (3, 100, 50)
    net = build(our(memory_params(4, shape)))
    references = []

    def refills(count):
        for number in range(count):
            data, labels = np.full((4, *shape), number, np.float32), np.full(4, number, np.float32)
            references.append(weakref.ref(data))
            refill(net, data, labels)
            net.forward()
            assert net.blobs["data"].data[3, 2, 99, 49] == net.blobs["label"].data[0, 0, 0, 0] == number
            if number % 3 == 0:
                net.forward()

    refills(50)
    before = anonymous_kb()
    refills(1000)
    assert anonymous_kb() - before < 2048
    del net
    gc.collect()
    assert sum(alive(references)) == 0


def test_100_nets_leave_nothing(build):
    def nets(count):
        for _ in range(count):
            net = build(our(memory_params(4, (3, 100, 100))))
            net.layers[0].add(images(8, (3, 100, 100)), range(8))
            net.forward()

    nets(20)
    before = anonymous_kb()
    nets(100)
    gc.collect()
    assert anonymous_kb() - before < 3072  # what was added had 960 KB each time


def test_close(build):
    net = build(our(memory_params()) + REST)
    references = filled(net)
    net.forward()
    unshown = filled(net, seed=1)
    net.layers[0].close()
    close_all()
    assert (alive(references), alive(unshown)) == ([True, True], [False, False])
    assert_same_bits(shown(net), arrays(4))
    for call in (
        net.forward,
        lambda: filled(net),
        lambda: net.layers[0].add(images(4, SHAPE), range(4)),
        lambda: net.layers[0].set_batch_size(1),
    ):
        with pytest.raises(fastbatch.Closed, match="this MemoryData layer was closed"):
            call()
    del net
    gc.collect()
    assert alive(references) == [False, False]


def test_in_a_forked_child(build):
    """It has no threads that would stay behind."""
    net = build(our(memory_params()) + REST)
    filled(net)
    net.forward()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            net.forward()
            references = filled(net, seed=1)
            net.forward()
            assert_same_bits(shown(net), arrays(4, seed=1))
            del net
            gc.collect()
            assert alive(references) == [False, False]
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    net.forward()
    assert_same_bits(shown(net), arrays(4))
    assert registry.detects


def test_training_gives_the_same_losses(tmp_path):
    """A solver's steps with both layers, digit for digit."""
    rest = """
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
                inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
    """
    data, labels = arrays(16)[0], (np.arange(16) % 3).astype(np.float32)
    losses = []
    for layer in our, native:
        (tmp_path / "net.prototxt").write_text(layer(memory_params()) + rest)
        (tmp_path / "solver.prototxt").write_text(f"""
            net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 20 random_seed: 3 display: 0
            snapshot_after_train: false
        """)
        solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
        refill(solver.net, data, labels)
        losses.append([])
        for _ in range(20):
            solver.step(1)
            losses[-1].append(solver.net.blobs["loss"].data.copy())
    assert_same_bits(*losses)
    assert losses[0][-1] < losses[0][0]
