"""The benchmarks run and report figures; the figures themselves are not checked."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent.parent / "bench"


@pytest.mark.slow
def test_benchmarks_run_and_report_figures(tmp_path):
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--benchmark-json={output}"]
    environment = {**os.environ, "FASTBATCH_BENCH_QUICK": "1", "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run(
        [*command, "data_layer.py", "wakeup.py", "closing.py"],
        cwd=BENCH,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    benchmarks = {each["name"]: each["extra_info"] for each in json.loads(output.read_text())["benchmarks"]}
    interrupts = {
        f"bench_interrupt[{what}-waiting_{call}]" for what in ("a signal", "close()") for call in ("queue", "loader")
    }
    assert set(benchmarks) == {
        "bench_data_layer[2-5]",
        "bench_data_layer[1-3.5]",
        "bench_wakeup",
        "bench_close[working-100]",
        "bench_close[full-100]",
        "bench_close[slow_sample-150.0]",
        *interrupts,
    }
    for extra_info in benchmarks.values():
        assert len(extra_info["figures"]) >= 1
        for figure in extra_info["figures"]:
            assert figure["p10"] <= figure["median"] <= figure["p90"] <= figure["maximum"] < math.inf
            assert figure["name"] in run.stdout
    names = [figure["name"] for figure in benchmarks["bench_data_layer[2-5]"]["figures"]]
    assert (
        "Data layer, 2 threads: against Caffe's own" in names and "Data layer, 2 threads: of the bare C loop" in names
    )
