"""CallbackSource: samples that a native function writes."""

import copy
import ctypes
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastbatch
from fastbatch import CallbackSource, Loader, SampleError, Transform
from planned import compile_c, new_capsule

PATIENCE = 60
PROTOTYPE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_char), ctypes.c_void_p
)
FIELDS = {"data": ("uint8", (3, 4, 5)), "label": ("int32", ()), "weight": ("float64", (2,))}
C = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int load(uint64_t index, void **arrays, char *error, void *context) {
    const double *weights = context;
    const double two[2] = {weights ? weights[0] : 1.5, (double)index};
    const int32_t label = (int32_t)index;
    if (index == 7) return snprintf(error, 512, "no sample %d", 7);
    if (index == 8) return -3;
    memset(arrays[0], (int)index, 60);
    memcpy(arrays[1], &label, sizeof label);
    memcpy(arrays[2], two, sizeof two);
    return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = tmp_path_factory.mktemp("callback") / "load.c"
    source.write_text(C)
    return ctypes.CDLL(compile_c(source))


def address(library):
    return ctypes.cast(library.load, ctypes.c_void_p).value


@pytest.mark.parametrize(
    "function",
    [
        lambda library: library.load,
        lambda library: ctypes.cast(library.load, PROTOTYPE),
        lambda library: ctypes.cast(ctypes.cast(library.load, ctypes.c_void_p), PROTOTYPE),
        lambda library: PROTOTYPE(("load", library)),
        lambda library: PROTOTYPE(address(library)),
        address,
        lambda library: new_capsule(address(library), b"load", None),
    ],
)
def test_a_c_function(library, function):
    source = CallbackSource(function(library), FIELDS, 7, owner=library)
    assert len(source) == 7 and source.shape == (3, 4, 5)
    assert repr(source) == "CallbackSource(data: uint8 (3, 4, 5), label: int32 (), weight: float64 (2,))"
    with Loader(source, batch_size=7, threads=3, timeout=PATIENCE) as loader:
        batch = next(iter(loader))
    assert (batch.data.dtype, batch.label.dtype, batch.weight.dtype) == (np.uint8, np.int64, np.float64)
    assert (batch.data == np.arange(7).reshape(7, 1, 1, 1)).all()
    assert batch.label.tolist() == list(range(7))
    assert batch.weight.tolist() == [[1.5, index] for index in range(7)]


def test_a_transform_and_a_context(library):
    context = ctypes.c_double(0.25)
    source = CallbackSource(library.load, FIELDS, 5, context=ctypes.addressof(context), owner=context)
    with Loader(source, Transform(crop_size=2, scale=2), batch_size=5, timeout=PATIENCE) as loader:
        batch = next(iter(loader))
    assert batch.data.shape == (5, 3, 2, 2) and (batch.data == 2 * np.arange(5).reshape(5, 1, 1, 1)).all()
    assert batch.weight[:, 0].tolist() == [0.25] * 5


def test_a_function_that_refuses_a_sample(library):
    with Loader(CallbackSource(library.load, FIELDS, 9), timeout=PATIENCE) as loader:
        batches, reasons = iter(loader), []
        for _ in range(9):
            try:
                next(batches)
            except SampleError as error:
                reasons.append((error.index, error.reason))
    assert reasons == [(7, "no sample 7"), (8, "the function returned -3")]


@pytest.mark.parametrize("disguise", [lambda function: function, lambda function: ctypes.cast(function, PROTOTYPE)])
def test_a_python_function_behind_ctypes_is_refused(disguise):
    """It would run under the GIL; and if it raised, ctypes would print that and return 0, for samples of zeros."""
    with pytest.raises(TypeError, match="was made of a Python function, which needs the GIL.*to PythonSource"):
        CallbackSource(disguise(PROTOTYPE(lambda *_: 0)), FIELDS, 5)


def documented(language, word):
    """The block of docs/sources.md in this language that has this word in it."""
    text = (Path(__file__).parents[1] / "docs/sources.md").read_text()
    [block] = [block for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if word in block]
    return block


def check_documented(source):
    with Loader(source[:20], batch_size=10, timeout=PATIENCE, on_error="skip") as loader:
        first, second = loader
        assert first.data[3].tolist() == [3, 3.25, 3.5, 3.75] and first.label.tolist() == list(range(10))
        assert second.label.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        return loader.errors[0].reason


def test_the_c_function_of_the_documentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ramps.c").write_text(documented("c", "there is no sample 13"))
    shutil.copy(compile_c(tmp_path / "ramps.c"), "ramps.so")
    names = {"ctypes": ctypes, "fastbatch": fastbatch}
    exec(documented("python", "./ramps.so"), names)
    assert check_documented(names["source"]) == "there is no sample 13"


def test_the_numba_function_of_the_documentation():
    numba = pytest.importorskip("numba")
    fields = {"data": ("float32", (4,)), "label": ("int64", ())}
    names = {"numba": numba, "numpy": np, "fastbatch": fastbatch, "fields": fields}
    exec(documented("python", "numba.cfunc"), names)
    assert check_documented(names["source"]) == "the function returned 1"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(function=print), "is a Python function, which needs the GIL: PythonSource is for those"),
        (dict(function=0), "the function has the address 0"),
        (dict(count=0), "count must be at least 1, not 0"),
        (dict(fields={}), "0 fields; a sample has 1 to 16"),
        (dict(fields={"data": ("S3", ())}), "data has elements of type"),
        (dict(fields={"data": ("uint8", (1,) * 9)}), "at most 8 dimensions"),
        (dict(fields={"data": ("uint8", (-1,))}), r"data cannot have shape \(-1,\)"),
        (dict(fields={"data": ("uint8", (2**40, 2**40))}), "data cannot have shape"),
        (dict(fields=None), r'fields must be a dict of names, types and shapes, such as \{"data": .*, not None'),
        (dict(fields=[("data", "uint8")]), "fields must be a dict"),
        (dict(fields={3: ("uint8", ())}), "fields must be a dict"),
        (dict(fields={"": ("uint8", ())}), "fields has the name ''"),
        (dict(fields={"a\0b": ("uint8", ())}), "a batch's arrays need printable strings for names"),
        (dict(fields={"data": "uint8"}), "fields gives data 'uint8': say its type and its shape"),
        (dict(fields={"data": ("uint8",)}), r"fields gives data \('uint8',\): say its type and its shape"),
        (dict(fields={"data": ("uint8", (1,), 2)}), "say its type and its shape, such as"),
        (dict(fields={"data": ("uint8", 4)}), "fields gives data the shape 4, and a shape is a tuple of integers"),
        (dict(fields={"data": ("uint8", (1.5,))}), r"the shape \(1.5,\), and a shape is a tuple of integers"),
        (dict(fields={"data": ("number", ())}), "fields gives data the type 'number', which is none; batches hold"),
        (dict(fields={"data": (None, ())}), "the type None, which is none"),
        (dict(count=None), "a native function does not say how many samples there are: give count="),
        (dict(count="5"), "count must be the number of samples, an integer, not '5'"),
        (dict(count=True), "an integer, not True"),
        (dict(count=2**63), r"count must be less than 2\*\*63, not 9223372036854775808"),
        (dict(function=None), "function must be a function of a library that ctypes has loaded, .*, not None"),
        (dict(function="load"), "or an address, not 'load'"),
        (dict(context=None), "context must be an address, an integer, not None"),
    ],
)
def test_arguments_that_make_no_source(change, message):
    arguments = dict(function=1, fields=FIELDS, count=1)
    with pytest.raises((TypeError, ValueError), match=message):
        CallbackSource(**{**arguments, **change})


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cannot_be_pickled(copied):
    with pytest.raises(TypeError, match="a CallbackSource has the address of a function, .*: make another one there"):
        copied(CallbackSource(1, FIELDS, 1))


def test_fields_cannot_be_changed():
    """Their sizes are checked once."""
    source = CallbackSource(1, FIELDS, 1)
    with pytest.raises(TypeError, match="does not support item assignment"):
        source.fields["data"] = ("uint8", (2**40,))
