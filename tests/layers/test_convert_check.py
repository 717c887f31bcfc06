"""`python -m fastbatch convert --check`: the comparison in Caffe."""

import os

import pytest

caffe = pytest.importorskip("caffe._caffe") and pytest.importorskip("caffe")

import fastbatch
from databases import datum, images, write_leveldb, write_lmdb
from fastbatch.caffe.convert import compare, convert
from prototxts import (
    CONVERTED,
    REST,
    REST_V1,
    TRAIN_AND_TEST,
    V0,
    V1,
    V2,
    command,
    needs_tool,
    save,
)


@pytest.mark.parametrize(
    "text",
    [
        TRAIN_AND_TEST + REST,
        V1 + REST_V1,
        # two layers in one net, one of which draws for itself; names in quotes of both kinds
        V2.replace("} }", "} transform_param { crop_size: 5 } }")
        + "layer { name: 'more' type: 'Data' top: 'more' data_param { source: 'db' backend: LMDB batch_size: 3 } "
        "transform_param { mirror: true } }",
    ],
)
def test_the_check_says_that_batches_are_identical(text, folder):
    save(text)
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 0 and done.stdout == "", done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "--check: 20 batches of each data layer in Caffe, random seed 1701"
    assert lines[-1] == "The batches are identical to the last bit."
    assert len(lines) - 2 == (4 if "more" in text else 2) and all(": identical: " in line for line in lines[1:-1]), (
        lines
    )
    assert convert(text).text == (folder / "new.prototxt").read_text()


@pytest.mark.parametrize("text", [TRAIN_AND_TEST + REST, V1 + REST_V1], ids=["V2", "V1"])
def test_the_check_of_parameters_in_param_str(text, folder):
    save(text)
    done = command("net.prototxt", "-o", "new.prototxt", "--check", "--param-str")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": identical: ") == 2 and "param_str: '" in (folder / "new.prototxt").read_text()


def leveldb_of(net):
    """The net on the same records in LevelDB: Caffe's default, and the only backend of V0 nets."""
    pictures = images(11, (3, 10, 9), seed=3)
    write_leveldb("leveldb", [datum(picture, label % 5) for label, picture in enumerate(pictures)])
    return net.replace("backend: LMDB", "").replace('"db"', '"leveldb"')


@pytest.mark.parametrize(
    "text", [TRAIN_AND_TEST + REST, V1 + REST_V1, pytest.param(V0, marks=needs_tool)], ids=["V2", "V1", "V0"]
)
def test_the_check_of_a_leveldb(text, folder):
    """Which can be open once on a machine: one net after the other."""
    save(leveldb_of(text))
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 0, done.stderr
    compared = [line for line in done.stderr.splitlines() if line.startswith("phase ")]
    assert len(compared) == 2 and all(": identical: " in line for line in compared), done.stderr
    assert "LMDB" not in (folder / "new.prototxt").read_text()
    assert os.listdir("leveldb").count("LOCK") == 1


def test_the_check_where_the_leveldb_is_in_use(folder):
    save(leveldb_of(V2))
    with fastbatch.LevelDBSource("leveldb"):
        done = command("net.prototxt", "--check")
    assert done.returncode == 1
    for words in (
        "phase TRAIN: Caffe cannot run the original net: it ended by SIGABRT. Check failed: status.ok() ",
        (
            "phase TRAIN: Caffe cannot run the converted net: fastbatch.errors.SourceError: Failed to open "
            f"leveldb leveldb: IO error: lock leveldb/LOCK: Resource temporarily unavailable; "
            f"process {os.getpid()} has it open"
        ),
    ):
        assert words in done.stderr


def test_the_check_reports_shapes(folder):
    save(TRAIN_AND_TEST + REST)
    said = []
    save(CONVERTED + REST, "new.prototxt")
    assert compare.check("net.prototxt", "new.prototxt", convert(TRAIN_AND_TEST), said.append)
    assert said[1:3] == [
        'phase TRAIN, layer "data": identical: data 4x3x7x7, label 4',
        'phase TEST, layer "data": identical: data 3x3x7x7, label 3',
    ]


MEMORY = (
    'layer { name: "in" type: "MemoryData" top: "data" top: "label" '
    "memory_data_param { batch_size: 4 channels: 2 height: 3 width: 5 } transform_param { scale: 2 } }\n"
)


def test_the_check_of_arrays_in_memory(folder):
    save(MEMORY)
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[2:] == [
        'phase TRAIN, layer "in": identical: data 4x2x3x5, label 4x1x1x1',
        'phase TEST, layer "in": identical: data 4x2x3x5, label 4x1x1x1',
        "The batches are identical to the last bit.",
    ]
    save(convert(MEMORY).text.replace("batch_size: 4", "batch_size: 2"), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(MEMORY), said.append)
    assert "has shape 4x2x3x5 in the original net, 2x2x3x5 in the converted one" in said[1]


def test_the_check_of_arrays_that_pycaffe_cannot_give(folder):
    """To a net's first layer only."""
    more = (
        MEMORY.replace('"in"', '"more"')
        .replace('"data"', '"more"')
        .replace('"label"', '"others"')
        .replace("scale: 2", "mirror: true")
    )
    text = V2.replace('"label"', '"number"') + MEMORY.replace('"data"', '"other"') + more
    save(text)
    save(convert(text).text, "new.prototxt")
    said = []
    assert compare.check("net.prototxt", "new.prototxt", convert(text), said.append)
    assert said[1:] == [
        *(
            line
            for phase in ("TRAIN", "TEST")
            for line in (
                f'phase {phase}, layer "data": identical: data 4x3x10x9, number 4',
                f'phase {phase}, layer "in": identical: other 4x2x3x5, label 4x1x1x1',
                f'phase {phase}, layer "more": identical: more 4x2x3x5, others 4x1x1x1',
            )
        ),
        "The batches are identical to the last bit.",
    ]


@pytest.mark.parametrize(
    "old, new, difference",
    [
        (
            "batch_size: 4",
            "batch_size: 5",
            (
                'phase TRAIN, layer "data": DIFFERENT: top 0 ("data") of batch 0 has shape 4x3x7x7 in the original '
                "net, 5x3x7x7 in the converted one"
            ),
        ),
        (
            "mirror: true",
            "mirror: false",
            'phase TRAIN, layer "data": DIFFERENT: top 0 ("data") of batch 0 differs in ',
        ),
        (
            "mean_value: 2 ",
            "mean_value: 2.0000005 ",
            (
                'phase TEST, layer "data": DIFFERENT: top 0 ("data") of batch 0 differs in 3 of 3 items, '
                "the first of them item 0"
            ),
        ),
        (
            'top: "data"\n  top: "label"\n  include { phase: TEST }',
            'top: "data"\n  include { phase: TEST }',
            'phase TEST, layer "data": DIFFERENT: 2 tops in the original net, 1 in the converted one',
        ),
        (
            "include { phase: TEST }",
            'include { phase: TEST stage: "no" }',
            'phase TEST: Caffe cannot run the converted net: RuntimeError: Caffe did not build layer "data" (Python)',
        ),
    ],
)
def test_the_check_finds_what_differs(old, new, difference, folder):
    save(TRAIN_AND_TEST)
    save(CONVERTED.replace(old, new), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(TRAIN_AND_TEST), said.append)
    assert [line for line in said if line.startswith(difference)], said
    assert len([line for line in said if "identical: " in line]) == 1
    assert said[-1] == "The batches are not shown to be identical."


def test_a_label_that_differs_is_found_in_its_batch(folder):
    pictures = images(11, (3, 10, 9), seed=3)
    write_lmdb("other", [datum(picture, label % 5 + (label == 9)) for label, picture in enumerate(pictures)])
    save(V2)
    save(convert(V2).text.replace('"db"', '"other"'), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(V2), said.append)
    assert (
        said[1] == 'phase TRAIN, layer "data": DIFFERENT: top 1 ("label") of batch 2 differs in 1 of 4 items, the '
        "first of them item 1"
    )


def test_stages_and_levels(folder):
    rules = ['include { stage: "deploy" }', "include { phase: TEST min_level: 2 }", "exclude { phase: TRAIN }"]
    text = "".join(
        V2.replace('"data"', f'"data{number}"').replace('"label"', f'"label{number}"').replace("} }", f"}} {rule} }}")
        for number, rule in enumerate(rules)
    )
    save(text)
    said = []
    save(convert(text).text, "new.prototxt")
    assert compare.check("net.prototxt", "new.prototxt", convert(text), said.append)
    assert [line.split(": identical: ")[0] for line in said[1:-1]] == [
        'phase TEST, layer "data2"',
        'phase TRAIN, stage deploy, layer "data0"',
        'phase TEST, stage deploy, layer "data0"',
        'phase TEST, stage deploy, layer "data2"',
        'phase TEST, level 2, layer "data1"',
        'phase TEST, level 2, layer "data2"',
    ]


def test_a_layer_in_no_state_is_no_success(folder):
    text = V2.replace("} }", "} exclude { } }")
    save(text)
    said = []
    assert not compare.check("net.prototxt", "net.prototxt", convert(text), said.append)
    assert len(said) == 3
    assert (
        said[1] == 'layer "data": its include and exclude rules keep it out of every state that was tried, so it '
        "was not compared"
    )


def test_where_caffe_aborts_nothing_is_written(folder):
    save(V2.replace('"db"', '"missing"'))
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 1 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[1].startswith(
        "phase TRAIN: Caffe cannot run the original net: it ended by SIGABRT. Check failed: mdb_status == 0 "
    )
    assert "No such file or directory" in lines[1]
    assert lines[2].startswith("phase TRAIN: Caffe cannot run the converted net: ")
    assert "missing" in lines[2]
    assert lines[5:] == [
        (
            f"Paths in a net are relative to the folder in which Caffe is started, here {folder}: start the "
            f"check where you train"
        ),
        "The batches are not shown to be identical.",
        "The new net is not written.",
    ]
    assert not (folder / "new.prototxt").exists()


def test_what_caffe_reads_past_its_end_fails_the_check(folder):
    write_lmdb("short", [datum(images(1, (3, 10, 9))[0], 1), b"\x08\x03\x10\x0a\x18\x09\x22\x04abcd"])
    save(V2.replace('"db"', '"short"'))
    done = command("net.prototxt", "--check")
    assert (done.returncode, done.stdout) == (1, "")
    assert ("phase TRAIN: Caffe cannot run the converted net: fastbatch.errors.SampleError: short") in done.stderr
    assert "Paths in a net" not in done.stderr and "its include and exclude rules" not in done.stderr


@pytest.mark.parametrize(
    "layer",
    [
        'type: "Data" data_param { source: "db" backend: LMDB batch_size: 4 } transform_param { mean_file: "missing" }',
        'type: "Data" data_param { source: "missing" backend: LEVELDB batch_size: 4 }',
        'type: "ImageData" image_data_param { source: "missing" batch_size: 4 }',
        'type: "HDF5Data" hdf5_data_param { source: "missing" batch_size: 4 }',
        'type: "WindowData" window_data_param { source: "missing" batch_size: 4 } transform_param { crop_size: 4 }',
    ],
)
def test_where_a_file_is_missing_the_check_says_where_it_looks(layer, folder):
    text = f'layer {{ name: "data" top: "data" top: "label" {layer} include {{ phase: TRAIN }} }}'
    save(text)
    save(convert(text).text, "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(text), said.append)
    assert [line.split(" net: ")[0] for line in said[1:3]] == [
        "phase TRAIN: Caffe cannot run the original",
        "phase TRAIN: Caffe cannot run the converted",
    ]
    assert said[3].startswith("Paths in a net are relative to the folder in which Caffe is started") and len(said) == 5


def test_layers_of_one_name_are_told_apart(folder):
    other = V2.replace('top: "data" top: "label"', 'top: "more"').replace("batch_size: 4", "batch_size: 3")
    save(V2 + other)
    save(convert(V2 + other).text, "new.prototxt")
    said = []
    assert compare.check("net.prototxt", "new.prototxt", convert(V2 + other), said.append)
    assert said[1:3] == [
        'phase TRAIN, layer "data", with tops data, label: identical: data 4x3x10x9, label 4',
        'phase TRAIN, layer "data", with tops more: identical: more 3x3x10x9',
    ]
    save(convert(V2 + other.replace("batch_size: 3", "batch_size: 2")).text, "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(V2 + other), said.append)
    assert ": identical: " in said[1]
    assert said[2].startswith(
        'phase TRAIN, layer "data", with tops more: DIFFERENT: top 0 ("more") of batch 0 has shape'
    )


BROKEN = (
    'layer { name: "conv" type: "Convolution" bottom: "data" top: "c" '
    "convolution_param { num_output: 2 kernel_size: 99 } }\n"
)


@pytest.mark.parametrize(
    "more", ["", MEMORY.replace('"data"', '"m"').replace('"label"', '"n"')], ids=["alone", "with arrays"]
)
def test_a_net_that_caffe_cannot_build_behind_its_data(more, folder):
    text = 'input: "x" input_shape { dim: [1, 2] }\nstate { stage: "s" }\n'
    text += (V2 + more).replace("} }\n", "} include { phase: TRAIN } }\n") + BROKEN
    save(text)
    done = command("net.prototxt", "-o", "new.prototxt", "--check")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("phase TRAIN")]
    assert lines[0].startswith(
        "phase TRAIN: Caffe cannot run the original net, so its data layers alone are compared: it "
        "ended by SIGABRT. Check failed: "
    )
    assert lines[1:] == [
        'phase TRAIN, layer "data": identical: data 4x3x10x9, label 4',
        *(['phase TRAIN, layer "in": identical: m 4x2x3x5, n 4x1x1x1'] if more else []),
    ]
    assert (folder / "new.prototxt").exists()


def test_where_data_differ_behind_a_net_that_caffe_cannot_build(folder):
    save(V2 + BROKEN)
    save(convert(V2 + BROKEN).text.replace("batch_size: 4", "batch_size: 5"), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(V2 + BROKEN), said.append)
    assert 'phase TRAIN, layer "data": DIFFERENT: top 0 ("data") of batch 0 has shape 4x3x10x9' in said[2]


@pytest.mark.parametrize(
    "written, reason",
    [
        # what Caffe takes and our layer refuses in the new net: the reason, not the example that follows it
        (
            "scale: 2",
            (
                'ValueError: layer "data" (Data), in its layer parameter, data_param.scale: Caffe ignores it there. '
                "Write it in transform_param { }, where it works."
            ),
        ),
        ("prefetch: 70000", "ValueError: db: prefetch must be at most 65536, not 70000"),
    ],
)
def test_the_reason_is_given_and_not_an_example(written, reason, folder):
    save(V2)
    save(convert(V2).text.replace("batch_size: 4", f"batch_size: 4 {written}"), "new.prototxt")
    said = []
    assert not compare.check("net.prototxt", "new.prototxt", convert(V2), said.append)
    assert said[1] == f"phase TRAIN: Caffe cannot run the converted net: {reason}"


def test_layers_after_splits(folder):
    """A top that two layers take is copied by a layer that Caffe puts in between."""
    more = V2.replace('"data"', '"other"').replace('"label"', '"number"')
    sums = 'layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "data" top: "sum" }\n'
    save(V2 + sums + more)
    save(convert(V2 + sums + more).text, "new.prototxt")
    said = []
    assert compare.check("net.prototxt", "new.prototxt", convert(V2 + sums + more), said.append)
    assert said[1:3] == [
        'phase TRAIN, layer "data": identical: data 4x3x10x9, label 4',
        'phase TRAIN, layer "other": identical: other 4x3x10x9, number 4',
    ]
