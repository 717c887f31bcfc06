"""`Loader.timeline`: what threads, batches and the consumer did, as a trace and as a picture."""

import json
import sys

import pytest

from fastbatch.timeline import _of_consumer, _of_slots, _of_workers
from planned import planned_loader, wait_until

SLOT = 1 << 32

TRACES = [
    [
        (0.0, "wait for its turn", 0),
        (0.1, "slot begun", SLOT),
        (0.1, "read", 7),
        (0.3, "collate", 7),
        (0.4, "stopped", 7),
    ],
    [(0.2, "read", 8), (0.5, "slot full", SLOT), (0.6, "wait for its turn", 8)],
    [(0.0, "wait for a batch", 0), (0.7, "batch taken", SLOT), (0.9, "wait for a batch", 0)],
]


def test_the_rows_of_workers():
    assert list(_of_workers(TRACES[:2], 1.0)) == [
        ("fastbatch-0", "wait for its turn", 0.0, 0.1, None),
        ("fastbatch-0", "read", 0.1, 0.3, 7),
        ("fastbatch-0", "collate", 0.3, 0.4, 7),
        ("fastbatch-1", "read", 0.2, 0.6, 8),
        ("fastbatch-1", "wait for its turn", 0.6, 1.0, None),
    ]


def test_the_rows_of_slots_and_of_the_loop():
    assert list(_of_slots(TRACES, 1.0)) == [("slot 1", "filling", 0.1, 0.5, 0), ("slot 1", "ready", 0.5, 0.7, 0)]
    assert list(_of_consumer(TRACES[2], 1.0)) == [
        ("your loop", "wait for a batch", 0.0, 0.7, None),
        ("your loop", "has a batch", 0.7, 0.9, 0),
        ("your loop", "wait for a batch", 0.9, 1.0, None),
    ]


def test_a_trace_of_a_loader(tmp_path):
    with planned_loader("." * 12, batch_size=4, threads=2, prefetch=2) as (_, loader):
        for batch in loader:
            batch.release()
        wait_until(lambda: loader.stats().ready == 3 and all(loader._ring.traces()), "that both threads began")
        loader.timeline(tmp_path / "out.json")
    events = json.loads((tmp_path / "out.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert list(names.values())[:3] == ["fastbatch-0", "fastbatch-1", "your loop"]
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 for event in spans)
    read = sorted(event["args"]["sample"] for event in spans if event["name"] == "read")
    assert read == sorted(2 * list(range(12)))  # the second epoch is ready
    located = sorted(event["args"]["sample"] for event in spans if event["name"] == "locate")
    assert located == read
    between = ("start", "wait for its turn", "wait for a free batch", "wait for a batch")
    assert all((event["args"] == {}) == (event["name"] in between) for event in spans)
    taken = [event["args"]["batch"] for event in spans if event["name"] == "has a batch"]
    assert taken == [0, 1, 2]
    for thread in 0, 1:  # one stage follows the other
        own = [event for event in spans if event["tid"] == thread]
        for earlier, later in zip(own, own[1:]):
            assert later["ts"] == pytest.approx(earlier["ts"] + earlier["dur"], abs=0.01)
    filled = [(names[event["tid"]], event["args"]["batch"]) for event in spans if event["name"] == "filling"]
    assert sorted(batch for _, batch in filled) == [0, 0, 1, 1, 2, 2]


def test_only_the_latest_steps_are_kept(tmp_path):
    with planned_loader("." * 5000, batch_size=100, threads=1) as (_, loader):
        list(map(len, loader))
        wait_until(lambda: loader.stats().ready == loader.stats().slots)  # nothing is overwritten meanwhile
        steps = loader._ring.traces()[0]
        assert 4000 < len(steps) <= 4096
        assert [time for time, _, _ in steps] == sorted(time for time, _, _ in steps)


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    with planned_loader("." * 12, batch_size=4, threads=2) as (_, loader):
        list(map(len, loader))
        for kind, head in ("png", b"\x89PNG"), ("svg", b"<?xml"):
            loader.timeline(str(tmp_path / f"out.{kind}"))
            assert (tmp_path / f"out.{kind}").read_bytes().startswith(head)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with planned_loader("..") as (_, loader):
        with pytest.raises(ValueError, match=r"ends in \.json, \.png, \.pdf or \.svg"):
            loader.timeline("out.txt")
        with pytest.raises(
            ImportError, match=r"needs matplotlib \(pip install matplotlib\); a \.json file needs nothing"
        ):
            loader.timeline(tmp_path / "out.png")
        with pytest.raises(FileNotFoundError):
            loader.timeline(tmp_path / "nowhere" / "out.json")
