"""Fixtures of the benchmarks, the machine's facts in the JSON, and the table of figures at the end."""

import json
import os
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

os.environ.setdefault("GLOG_minloglevel", "2")  # before Caffe is imported: no line for each layer that it builds

import fastbatch
from database import image_database
from facts import facts, load_average
from interleave import QUICK, TURN, Report, Reported, table

HERE = Path(__file__).resolve().parent
FIGURES = pytest.StashKey()


def pytest_configure(config):
    config.stash[FIGURES] = []


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["fastbatch"] = facts()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if config.stash[FIGURES]:
        terminalreporter.section("figures and targets")
        terminalreporter.write_line(", ".join(f"{name}: {value}" for name, value in facts().items()))
        for line in table(config.stash[FIGURES]):
            terminalreporter.write_line(line)
        if QUICK:
            terminalreporter.write_line("FASTBATCH_BENCH_QUICK is set: the figures mean nothing.")


@pytest.fixture
def report(request, benchmark):
    """A Report, whose final content goes into the JSON (extra_info) and the table."""
    report = Report()
    before = load_average()
    yield report
    benchmark.extra_info["figures"] = [{**asdict(figure), "verdict": figure.verdict} for figure in report.figures]
    benchmark.extra_info["load_average"] = [before, load_average()]
    request.config.stash[FIGURES] += report.figures


@pytest.fixture(scope="session")
def database():
    """The path of the database of images 3 x 256 x 256."""
    return image_database()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """A function that compiles bench/<name>.c for this processor and returns the path of the program or library."""
    folder = tmp_path_factory.mktemp("compiled")
    flags = "-O3 -std=gnu11 -march=native -ffp-contract=off -pthread"
    compiler = shlex.split(f"{os.environ.get('CC', 'cc')} {flags}")

    def compile_c(name, *options):
        output = str(folder / name)
        source = str(HERE / f"{name}.c")
        subprocess.run([*compiler, "-I", fastbatch.get_include(), "-o", output, source, *options], check=True)
        return output

    return compile_c


@pytest.fixture(scope="session")
def limit(compiled):
    """A function of a database and a number of threads: limit.c as a side, in images per second."""
    program = compiled("limit", "-DWITH_LMDB", "-llmdb")

    def side(database, threads):
        command = [program, "--lmdb", database, "--threads", str(threads), "--rounds", "1", "--seconds", str(TURN / 2)]

        def images_per_second():
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["images_per_second"]

        return Reported(images_per_second)

    return side
