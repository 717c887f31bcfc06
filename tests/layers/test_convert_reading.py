"""`python -m fastbatch convert` reads text as Caffe does."""

import json
import random
import subprocess
import sys

import pytest

caffe = pytest.importorskip("caffe._caffe") and pytest.importorskip("caffe")

from caffe.proto import caffe_pb2
from google.protobuf import text_format

from fastbatch.caffe.convert import (
    _parser,
    convert,
    reading,
)
from fastbatch.caffe.convert import text as prototxt
from fastbatch.caffe.convert.reading import read

LAYER = 'layer {{ name: "x" type: "Data" data_param {{ source: "db" batch_size: 3 }} transform_param {{ {} }} }}'

# Runs the parser of Caffe on many texts: [[status, bytes or None], ...] of them.
MANY = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("parser", sys.argv[1])
parser = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parser)
found = []
for text in json.load(sys.stdin):
    with open("text", "wb") as file:
        file.write(text.encode("latin-1"))
    status = parser.main(sys.argv[2], "NetParameter", "text", "binary")
    found.append(None if status else open("binary", "rb").read().decode("latin-1"))
json.dump(found, sys.stdout)
"""


@pytest.fixture
def by_caffe(tmp_path):
    """by_caffe(texts): of each, a character for a byte, the NetParameter that Caffe reads in it, or None."""

    def by_caffe(texts):
        done = subprocess.run(
            [sys.executable, "-c", MANY, _parser.__file__, caffe._caffe.__file__],
            cwd=tmp_path,
            check=True,
            input=json.dumps(texts),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return [
            None if found is None else caffe_pb2.NetParameter.FromString(found.encode("latin-1"))
            for found in json.loads(done.stdout)
        ]

    return by_caffe


NUMBERS = [
    "1",
    "-1",
    "- 1",
    "-\t1",
    "-\n1",
    "-# a\n1",
    "+1",
    "01",
    "010",
    "08",
    "00",
    "0x10",
    "-0x1F",
    "0X1f",
    "0xg",
    "0b1",
    "1_000",
    "1.",
    ".5",
    "-.5",
    "1.5f",
    "1.5F",
    "117.0F",
    "1f",
    "1e3",
    "1E+3",
    "1e-3f",
    "1e",
    "1e+",
    "1.5.5",
    "1..",
    ".",
    "-",
    "--1",
    "1e400",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "infinity",
    "Infinity",
    "NaN",
    "true",
    "t",
    "1,",
    "1;",
    "1 ,",
    "1,;",
    "\xa01",
    "1\xa0",
    "1\x0b",
    "\x0c1",
    "\x1c1",
    "1\x00",
    "4294967295",
    "4294967296",
    "1 f",
    "1f f",
    "0f",
    "00f",
    "0x1f f",
    "0 x1",
    "[1",
    "[1]",
    "1]",
    "'1'",
    "1 # 2",
    "1#2",
]
BOOLS = [
    "true",
    "false",
    "t",
    "f",
    "True",
    "False",
    "TRUE",
    "0",
    "1",
    "2",
    "00",
    "01",
    "0x1",
    "-1",
    "1.0",
    "'true'",
    "yes",
    "true1",
]
STRINGS = [
    '""',
    "''",
    '"a" "b"',
    "'a'\"b\"",
    '"a"#"\n\'b\'',
    '"a\n"',
    '"\\n"',
    '"\\a\\b\\f\\r\\t\\v\\?"',
    '"\\""',
    "'\\''",
    '"\\101"',
    '"\\1"',
    '"\\8"',
    '"\\x41"',
    '"\\x4"',
    '"\\xg"',
    '"\\u00e4"',
    '"\\u00e"',
    '"\\U0001F600"',
    '"\\U00110000"',
    '"\\ud83d\\ude00"',
    '"\\q"',
    '"caf\xe9"',
    '"caf\xc3\xa9"',
    '"#"',
    '"{"',
    '"a',
    "a",
    "1",
    '"\x01"',
    '"\x85"',
    '"a";',
    '"a",',
    '"a"b',
    '"\\\n"',
]


def literals():
    """(field, literal): those above, and many more of the same stuff."""
    chance = random.Random(1701)
    found = [
        *(("scale", one) for one in NUMBERS),
        *(("crop_size", one) for one in NUMBERS),
        *(("mean_value", one) for one in NUMBERS),
        *(("mirror", one) for one in BOOLS),
        *(("mean_file", one) for one in STRINGS),
    ]
    for field, stuff in [
        ("scale", "0123.eEfF-+ "),
        ("crop_size", "0123456789xXaf-. "),
        ("mean_file", "\"'\\\\nux01aé# "),
    ]:
        for _ in range(150):
            middle = "".join(chance.choice(stuff) for _ in range(chance.randrange(1, 6)))
            found.append((field, f'"{middle}"' if field == "mean_file" else middle))
    return [(field, one) for field, one in dict.fromkeys(found)]


def test_what_caffe_reads_is_found_where_it_stands(by_caffe):
    """Each field begins and ends where Caffe's parser sees it begin and end: it can be taken out of the text."""
    pairs = literals()
    texts = [LAYER.format(f"{field}: {one} force_gray: true") for field, one in pairs]
    nets = by_caffe(texts)
    accepted = [(pair, text, net) for pair, text, net in zip(pairs, texts, nets) if net is not None]
    assert 200 < len(accepted) < len(pairs) - 200
    cut = []
    for (field, one), text, _ in accepted:
        [layer] = prototxt.fields(text)
        [param] = layer.named("transform_param")
        assert [found.name for found in param.fields if found.name != field] == ["force_gray"], text
        [found] = param.named(field)
        written = text[found.value_start : found.value_end]
        assert one.strip(prototxt.SPACE + ",;[]") == written, text
        cut.append(prototxt.replaced(text, prototxt.replacing(text, [found])))
    for (_, _, expected), text, net in zip(accepted, cut, by_caffe(cut)):
        expected.layer[0].transform_param.ClearField("scale"), expected.layer[0].transform_param.ClearField("crop_size")
        for field in "mean_value", "mirror", "mean_file":
            expected.layer[0].transform_param.ClearField(field)
        assert net.SerializeToString() == expected.SerializeToString(), text


@pytest.mark.slow
def test_text_is_converted_where_caffe_reads_it_and_refused_where_it_does_not(by_caffe):
    pairs = random.Random(2).sample(literals(), 30)
    texts = [LAYER.format(f"{field}: {one}") for field, one in pairs]
    for text, net in zip(texts, by_caffe(texts)):
        whole = text.encode("latin-1").decode("utf-8", "surrogateescape")
        if net is None:
            with pytest.raises(ValueError, match="would not read it as a net: |it is a binary file"):
                convert(whole)
            continue
        for param_str in False, True:
            conversion = convert(whole, param_str)
            assert (
                conversion.layers
                or "infinite, not a number" in conversion.notes[0]
                or "is not UTF-8, and param_str holds only UTF-8" in conversion.notes[0]
            ), text


@pytest.mark.parametrize(
    "written, meant",
    [
        ("scale: 117.0F", dict(scale=117)),
        ("scale: - 0.5", dict(scale=-0.5)),
        ("mirror: 01", dict(mirror=True)),
        (r'mean_file: "b\u00e4se"', dict(mean_file="b\u00e4se")),
        ("crop_size: 010", dict(crop_size=8)),
        ("mean_value: [1f, - 2 , .5F]", dict(mean_value=[1, -2, 0.5])),
    ],
)
def test_what_only_caffe_reads(written, meant):
    text = LAYER.format(f"{written} force_gray: false")
    expected = caffe_pb2.TransformationParameter(force_gray=False, **meant)
    in_place, in_param_str = convert(text), convert(text, param_str=True)
    assert written in in_place.text and read(in_place.text, caffe_pb2.NetParameter).layer[0].transform_param == expected
    param_str = read(in_param_str.text, caffe_pb2.NetParameter).layer[0].python_param.param_str
    assert text_format.Parse(param_str, caffe_pb2.LayerParameter()).transform_param == expected


@pytest.mark.parametrize(
    "written, why",
    [
        ("scale: +0.5", "Expected double, got: +"),
        ("scale: 010", "Expect a decimal number, got: 010"),
        ("scale:\u00a01", "Interpreting non ascii codepoint 194"),
        ("\u2003scale: 1", "Interpreting non ascii codepoint 226"),
        ("mean_value: [1, 0xf]", "Expect a decimal number, got: 0xf"),
        ("crop_size: 1_0", ""),
        ("mirror: yes", 'Invalid value for boolean field "mirror". Value: "yes"'),
    ],
)
def test_what_caffe_refuses(written, why):
    with pytest.raises(ValueError, match=f"Caffe would not read it as a net: line 1, column [0-9]+: {why}"):
        convert(LAYER.format(written))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400"])
def test_a_scale_that_is_no_number_leaves_the_layer(number):
    text = LAYER.format(f"scale: {number}")
    conversion = convert(text)
    assert conversion.text == text and conversion.layers == ()
    assert conversion.notes == (
        (
            'layer "x" (Data, line 1) is left unchanged: transform_param.scale: it is infinite, not a '
            "number, or too large for a float."
        ),
    )


def test_a_path_of_other_bytes_than_utf8():
    text = LAYER.format("mirror: true").replace("db", "caf\udce9")
    assert convert(text).text == text.replace(
        'type: "Data"', 'type: "Python" python_param { module: "fastbatch.caffe" layer: "Data" }'
    )
    assert convert(text, param_str=True).notes == (
        'layer "x" (Data, line 1) is left unchanged: one of its strings is not UTF-8, and param_str holds only UTF-8.',
    )


def test_without_caffes_parser_protobufs_is_asked(monkeypatch):
    """As where libcaffe shows none of its functions."""
    monkeypatch.setattr(reading, "_parser", type("", (), dict(__file__="/dev/null/none", UNREACHABLE=2, WRONG=1)))
    assert read("name: 'x'", caffe_pb2.NetParameter).name == "x"
    with pytest.raises(
        ValueError, match='^line 1, column 1: Message type "caffe.NetParameter" has no field named "nme"$'
    ):
        read("nme: 'x'", caffe_pb2.NetParameter)


@pytest.mark.parametrize(
    "program, why",
    [
        ("import os, sys; print('Oh.', file=sys.stderr, flush=True); os.abort()", "^its parser ended by SIGABRT: Oh$"),
        ("raise SystemExit(7)", "^its parser ended by exit status 7: $"),
    ],
)
def test_a_parser_that_breaks_down(program, why, tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(reading._parser, "__file__", str(tmp_path / "program.py"))
    with pytest.raises(ValueError, match=why):
        read("name: 'x'", caffe_pb2.NetParameter)


def test_a_library_without_caffe_is_said_to_be_unreachable(tmp_path):
    import lmdb.cpython as another

    (tmp_path / "broken.so").write_bytes(b"")
    for library in another.__file__, str(tmp_path / "broken.so"):
        done = subprocess.run(
            [sys.executable, "-I", "-S", _parser.__file__, library, "NetParameter", "a", "b"], stderr=subprocess.DEVNULL
        )
        assert done.returncode == _parser.UNREACHABLE
