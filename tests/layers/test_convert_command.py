"""`python -m fastbatch convert` as a command, and training with what it writes."""

import os
import subprocess
import sys

import pytest

caffe = pytest.importorskip("caffe._caffe") and pytest.importorskip("caffe")

from fastbatch.caffe.convert import convert
from fastbatch.cli import main
from prototxts import (
    CONVERTED,
    IN_PLACE,
    REST,
    REST_V1,
    TRAIN_AND_TEST,
    V1,
    V2,
    command,
    save,
)


def test_to_standard_output(folder):
    save(TRAIN_AND_TEST)
    done = command("net.prototxt")
    assert (done.returncode, done.stdout, done.stderr) == (0, IN_PLACE, "")
    done = command("net.prototxt", "--param-str")
    assert (done.returncode, done.stdout, done.stderr) == (0, CONVERTED, "")


def test_bytes_that_are_no_utf8_survive_in_comments(folder):
    save("# caf\udce9\n" + V2)
    assert main(["convert", "net.prototxt", "-o", "new.prototxt"]) == 0
    assert (folder / "new.prototxt").read_bytes().startswith(b"# caf\xe9\nlayer { ")


def test_names_of_standard_output(folder):
    save(V2)
    for name in "/dev/stdout", "/dev/fd/1":
        done = command("net.prototxt", "-o", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, convert(V2).text, "")


@pytest.mark.parametrize("out", [[], ["-o", "/dev/stdout"]])
def test_a_reader_that_has_enough_ends_the_command_quietly(out, folder):
    save(V2)
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-m", "fastbatch", "convert", "net.prototxt", *out]
    done = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=600)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_over_the_old_net(folder, capsys):
    save(TRAIN_AND_TEST)
    (folder / "net.prototxt").chmod(0o640)
    (folder / "link").symlink_to("net.prototxt")
    before = sorted(folder.iterdir())
    assert main(["convert", "net.prototxt", "-o", "link"]) == 0
    assert (folder / "net.prototxt").read_text() == IN_PLACE and (folder / "link").is_symlink()
    assert (folder / "net.prototxt").stat().st_mode & 0o777 == 0o640 and sorted(folder.iterdir()) == before
    assert capsys.readouterr() == ("", "")
    assert main(["convert", "net.prototxt", "-o", "net.prototxt", "--check"]) == 0
    assert (folder / "net.prototxt").read_text() == IN_PLACE
    assert capsys.readouterr().err == "net.prototxt: it has no data layer to rewrite, and is left unchanged.\n"


def test_what_cannot_be_done_ends_with_2(folder, capsys):
    save('net: "x.prototxt"', "solver.prototxt")
    save(V2)
    with open("large", "wb") as file:
        file.truncate(1 << 40)  # more than there is memory
    for arguments, why in [
        (["missing"], "missing cannot be converted: No such file or directory."),
        (
            ["solver.prototxt"],
            "solver.prototxt cannot be converted: it is a solver, not a net; its net is in x.prototxt.",
        ),
        (
            ["db/data.mdb"],
            (
                "db/data.mdb cannot be converted: it is a binary file or text in UTF-16, and a net is "
                "a prototxt, in UTF-8."
            ),
        ),
        (
            ["large"],
            ("large cannot be converted: it is a binary file or text in UTF-16, and a net is a prototxt, in UTF-8."),
        ),
        (["net.prototxt", "-o", "no/net"], "no/net cannot be written: No such file or directory."),
        (["net.prototxt", "-o", "."], ". cannot be written: Is a directory."),
    ]:
        assert main(["convert", *arguments]) == 2
        assert capsys.readouterr() == ("", why + "\n")


def losses(net, iterations=25):
    """The losses of a training run, and of a test after it."""
    save(
        f'net: "{net}" base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" max_iter: 100 random_seed: 7 solver_mode: CPU '
        "test_iter: 3 test_interval: 1000 test_initialization: false snapshot_after_train: false",
        "solver.prototxt",
    )
    solver = caffe.SGDSolver("solver.prototxt")
    found = []
    for _ in range(iterations):
        solver.step(1)
        found.append(solver.net.blobs["loss"].data.tobytes())
    for _ in range(3):
        solver.test_nets[0].forward()
        found.append(solver.test_nets[0].blobs["loss"].data.tobytes())
    return found


@pytest.mark.parametrize("text", [TRAIN_AND_TEST + REST, V1 + REST_V1])
def test_training_gives_the_same_losses_digit_for_digit(text, folder):
    save(text)
    assert main(["convert", "net.prototxt", "-o", "new.prototxt"]) == 0
    theirs, ours = losses("net.prototxt"), losses("new.prototxt")
    assert ours == theirs and len(set(theirs)) == 28
