"""tools/demo without Caffe."""

import sys

import pytest

from tooling import CHECKOUT, NO_ROOT, demo, ended, environment, program


@pytest.fixture
def no_caffe(monkeypatch, place_of, tmp_path):
    """A demo without Caffe, whose environment has a `python` that says what it was asked to run, and ends as told."""

    def refuse():
        raise NO_ROOT

    python = tmp_path / "venv/bin/python"

    def answers(*cases):
        program(python, "\n".join(['echo "python $*" >&2', 'case "$*" in', *cases, "esac"]))

    answers()
    place = place_of({})
    place.checkout = tmp_path
    monkeypatch.setattr(sys, "argv", ["tools/demo"])
    monkeypatch.setattr(demo, "choose", refuse)
    monkeypatch.setattr(demo, "Python", lambda executable, requirements: place)
    return answers


FIRST = [
    "demo: entering a root takes the rights of root.",
    "demo: the real Caffe is not available here: a plain Python loop learns the digits, through fastbatch's Loader",
]
TWO = ["python examples/digits/databases.py build/demo", "python examples/loop/softmax.py build/demo"]


def test_the_demo_does_what_it_can_and_says_what_it_left_out(no_caffe, capfd):
    status, said = ended(capfd, demo)
    lines = said.splitlines()
    assert status == 0 and lines[:4] == FIRST + TWO
    left_out = [line for line in lines if "left out" in line]
    assert left_out == [
        (
            "demo: left out: LeNet in the real Caffe, through fastbatch's layer and through Caffe's own, "
            "and the picture of it. The reason: entering a root takes the rights of root."
        )
    ]
    assert lines[-3].startswith("demo: to get that, run `make demo` as root on Debian") and "docker build" in lines[-2]
    for words in TWO:
        assert (CHECKOUT / words.split()[1]).is_file()


def test_the_demo_says_so_where_lmdb_is_missing_too(no_caffe, capfd):
    no_caffe('"-c import fastbatch"*) exit 1 ;;')
    status, said = ended(capfd, demo)
    left_out = [line for line in said.splitlines() if "left out" in line]
    assert status == 0 and len(left_out) == 2
    assert left_out[0].startswith("demo: left out: reading the digits from LMDB, which this fastbatch was built with")
    assert "install LMDB's headers (Debian: liblmdb-dev)" in said


def test_a_loop_that_fails_is_a_failure_of_the_demo(no_caffe, capfd):
    no_caffe("examples/loop/*) exit 3 ;;")
    status, said = ended(capfd, demo)
    assert status == 1 and said.splitlines()[2:] == [
        *TWO,
        "demo: examples/loop/softmax.py ended with status 3: the reason is above.",
    ]


@pytest.mark.parametrize("error, status", [(environment.Unavailable, 69), (environment.BuildFailed, 1)])
def test_a_demo_that_can_do_nothing(no_caffe, monkeypatch, capfd, error, status):
    def fails(place, venv=None):
        raise error("it cannot be done")

    monkeypatch.setattr(environment, "virtual_environment", fails)
    assert ended(capfd, demo) == (status, "\n".join([*FIRST, "demo: it cannot be done.\n"]))


def test_a_fastbatch_that_does_not_build_beside_caffe_is_no_lack_of_caffe(no_caffe, monkeypatch, place_of, capfd):
    def fails(place, venv):
        raise environment.BuildFailed("fastbatch could not be built")

    monkeypatch.setattr(demo, "choose", lambda: place_of({}, beside_caffe=True))
    monkeypatch.setattr(environment, "installed_fastbatch", fails)
    assert ended(capfd, demo) == (1, "demo: fastbatch could not be built.\n")
