"""What the parsers promise for any bytes, by the checks of fuzz_targets.py.

The bytes are the seeds, and seeds damaged at random. tools/fuzz runs the same checks guided by coverage, millions of
times. FASTBATCH_EXAMPLES=N damages N times, differently in every run.
"""

import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz_targets import TARGETS

MANY = int(os.environ.get("FASTBATCH_EXAMPLES", 0))
TOOL = Path(__file__).resolve().parents[1] / "tools" / "fuzz"


def damaged(pick, target):
    """One of a target's seeds, with up to four damages."""
    content = bytearray(pick.choice(target.seeds))
    for _ in range(pick.randint(1, 4)):
        at = pick.randint(0, len(content))
        damage = pick.randrange(5)
        if damage == 0:
            content[at : at + 1] = bytes([pick.randrange(256)])
        elif damage == 1:
            content[at : at + pick.choice([0, 1, 4])] = pick.choice(target.words)
        elif damage == 2:
            del content[at : at + pick.randint(1, 8)]
        elif damage == 3:  # a piece moves
            other = pick.choice(target.seeds)
            begin = pick.randint(0, len(other))
            content[at:at] = other[begin : begin + pick.randint(1, 20)]
        elif content:
            content[at % len(content)] ^= 1 << pick.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_parsers_keep_what_is_promised(name):
    target = TARGETS[name]
    if target.needs_caffe:
        pytest.importorskip("caffe._caffe")
    check = target.load()
    pick = random.Random(None if MANY else name)
    damages = (damaged(pick, target) for _ in range(MANY or 1500))
    for content in itertools.chain([b""], target.seeds, damages):
        try:
            check(content)
        except Exception as problem:
            raise AssertionError(f"the promise is broken for {content[:1000]!r}") from problem


@pytest.mark.skipif(not TOOL.exists(), reason="the tools are in the checkout only")
@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang")
def test_the_tool_runs_a_target(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOL), "datum", "--runs", "2000"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
    )
    if done.returncode == 69:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 0 and "2,000 executions" in done.stdout, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not TOOL.exists(), reason="the tools are in the checkout only")
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nothing"], "there is no target nothing"),
        (["--input", "x"], "--input needs exactly one target"),
    ],
)
def test_the_tool_says_what_it_wants(arguments, words):
    done = subprocess.run([sys.executable, str(TOOL), *arguments], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.skipif(not TOOL.exists(), reason="the tools are in the checkout only")
def test_the_tool_without_clang(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOL), "datum"],
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": str(tmp_path), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 69 and "there is no clang" in done.stderr and "apt-get install clang" in done.stderr
    assert list(tmp_path.iterdir()) == []
