"""`Stats`: counters and times that add up, and reports that say what limits."""

import dataclasses
import threading

import numpy as np
import pytest

import datasets
from fastbatch import DataTimeout, ImageListSource, Joined, Loader, PythonSource, Transform
from fastbatch import stats as stats_module
from fastbatch.stats import StageTimes, Stats
from jpegs import encode_jpeg, noise
from planned import PATIENCE, PlannedSource, planned_loader, wait_until

STAGES = [
    "wait for its turn",
    "wait for a free batch",
    "locate",
    "read",
    "decode",
    "wait for the batch's first sample",
    "collate",
    "write",
]
NONE = StageTimes(0.0, (0,) * 160)


def idle(loader):
    """Whether all batches are full, and all workers wait."""
    stats = loader.stats()
    return stats.ready == stats.slots and all("wait for" in sentence for sentence in loader._ring.activity())


def test_every_sample_is_counted_once_in_each_stage():
    with planned_loader("." * 50, batch_size=8, threads=3, prefetch=3) as (source, loader):
        for _ in range(3):
            for batch in loader:
                batch.release()
        wait_until(lambda: idle(loader))
        stats = loader.stats()
        assert list(stats.stages) == STAGES
        counts = {name: times.count for name, times in stats.stages.items()}
        assert counts["locate"] == counts["read"] == counts["collate"] == stats.samples == source.reads
        assert counts["decode"] == counts["write"] == 0
        assert stats.batches >= 21 and stats.bytes == stats.samples * 20
        for times in stats.stages.values():
            assert 0 <= times.p50 <= times.p90 <= times.p99
            assert times.seconds <= stats.threads * stats.elapsed


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("joined", [False, True])
def test_what_a_python_source_computes_counts_as_processor_time(kind, joined):
    source = PythonSource(datasets.Computes(), workers=2, kind=kind)
    if joined:
        source = Joined(np.zeros((20, 2)), number=source)
    with Loader(source, batch_size=5, timeout=PATIENCE) as loader:
        for _batch in loader:
            pass
        stats = loader.stats()
    assert stats.cpu >= 0.15  # of at least 0.2: the last samples may not be counted yet


def test_a_sample_that_enters_a_stage_twice_is_one_sample(tmp_path):
    """Its header is read first, and its pixels are decoded when their place is known."""
    (tmp_path / "a.jpg").write_bytes(encode_jpeg(noise(20, 24)))
    source = ImageListSource([(tmp_path / "a.jpg", number) for number in range(10)])
    with Loader(source, Transform(crop_size=8), batch_size=5, threads=2, timeout=PATIENCE) as loader:
        list(map(len, loader))
        wait_until(lambda: idle(loader))
        stats = loader.stats()
        assert stats.stages["decode"].count == stats.stages["collate"].count == stats.samples >= 10
        assert stats.stages["decode"].seconds > 0


def test_since_a_mark():
    with planned_loader("." * 24 + "r", batch_size=5, threads=2, prefetch=1, on_error="skip") as (_, loader):
        list(map(len, loader))
        wait_until(lambda: idle(loader))
        mark = loader.stats()
        list(map(len, loader))
        wait_until(lambda: idle(loader))
        stats = loader.stats(since=mark)
        assert (stats.samples, stats.batches, stats.skipped, stats.errors) == (24, 5, 1, 1)
        assert stats.stages["read"].count == 25 and stats.bytes == 24 * 20 + 20  # as large as before it is closed up
        assert 0 < stats.elapsed < loader.stats().elapsed
        assert (stats.slots, stats.threads, stats.seed) == (2, 2, loader.seed)


def test_marks_that_are_none():
    with Loader(np.arange(4), batch_size=2) as loader, Loader(np.arange(8), batch_size=2) as other:
        list(map(len, other))
        for use in loader.stats, loader.report:
            for wrong in 3, "mark", {}, loader:
                with pytest.raises(TypeError, match="since must be a Stats, as an earlier .* returned it, not "):
                    use(since=wrong)
            with pytest.raises(ValueError, match="this one counts more than there was"):
                use(since=dataclasses.replace(other.stats(), samples=1000))


def test_what_lasts_counts_before_it_ends():
    """Otherwise, a wait that began before a mark would be counted behind it."""
    with planned_loader("..w.", batch_size=2, threads=2, prefetch=1) as (source, loader):
        wait_until(lambda: loader.stats().stages["read"].count == 3)
        wait_until(lambda: loader.stats().stages["read"].seconds > 0.02, "that the read that waits counts")
        marks = [loader.stats() for _ in range(3)]
        assert [mark.stages["read"].count for mark in marks] == [3, 3, 3]
        reading = [mark.stages["read"].seconds for mark in marks]
        assert reading == sorted(set(reading))
        batches = iter(loader)
        next(batches).release()
        found = []
        taker = threading.Thread(target=lambda: found.append(len(next(batches))))
        taker.start()
        wait_until(lambda: loader.stats().waited_for_data > 0.02, "that the wait for a batch counts")
        source.open_gate()
        taker.join(PATIENCE)
        assert found == [2]
        wait_until(lambda: idle(loader))
        wait_until(lambda: loader.stats().stages["wait for a free batch"].seconds > loader.stats().elapsed / 2)
        assert sum(times.seconds for times in loader.stats().stages.values()) <= 2 * loader.stats().elapsed
        loader.close()
        stages = loader.stats().stages
        assert stages == loader.stats().stages and sum(each.seconds for each in stages.values()) > 0


@pytest.mark.parametrize("value", [0, 1, 3, 4, 5, 7, 8, 1000, 20_000, 123_456_789, 10**12])
def test_classes_of_times(value):
    """A class of trace.h, computed here again, has its value within an eighth."""
    power = max(value.bit_length() - 1, 1)
    number = value if value < 4 else (power - 1) * 4 + (value >> (power - 2) & 3)
    classes = [0] * 160
    classes[number] = 3
    times = StageTimes(3e-9 * value, tuple(classes))
    assert times.count == 3
    assert times.p50 == times.p99 == pytest.approx(value * 1e-9, rel=0.126, abs=1e-12)


def test_percentiles():
    classes = [0] * 160
    classes[1], classes[2], classes[3] = 90, 9, 1
    times = StageTimes(0.0, tuple(classes))
    nanoseconds = [times.percentile(percent) * 1e9 for percent in (50, 90, 91, 99, 100)]
    assert [round(each) for each in nanoseconds] == [1, 1, 2, 2, 3]
    assert NONE.p50 == 0


def made(cores, monkeypatch, threads=2, waited=9.0, cpu=0.0, **seconds):
    """Stats of 10 seconds."""
    monkeypatch.setattr(stats_module, "usable_cores", lambda: cores)
    stages = {name: dataclasses.replace(NONE, seconds=seconds.get(name.split()[-1], 0.0)) for name in STAGES}
    counts = {each.name: 0 for each in dataclasses.fields(Stats)}
    known = dict(threads=threads, elapsed=10.0, batches=5, samples=5000, waited_for_data=waited, cpu=cpu, stages=stages)
    return Stats(**{**counts, **known})


@pytest.mark.parametrize(
    "cores, figures, words",
    [
        (
            2,
            {"waited": 0.2, "batch": 16.0},
            "Your loop limits: it waited for batches for 2% of the time (500 samples/s",
        ),
        (2, {"waited": 0.2, "batch": 16.0}, "the workers waited for a free batch for 80% of theirs"),
        (
            2,
            {"decode": 18.0, "collate": 2.0, "cpu": 19.0},
            "Decoding takes 90% of the workers' working time on 1.9 busy",
        ),
        (2, {"decode": 18.0, "cpu": 19.0}, "busy cores of 2: more threads won't help"),
        (8, {"decode": 18.0, "cpu": 19.0}, "all 2 workers compute: threads=8 uses all cores"),
        (2, {"read": 18.0, "cpu": 2.0}, "Reading takes 100% of the workers' working time, but they use only 0.2 of 2"),
        (2, {"read": 18.0, "cpu": 2.0}, "they wait for the disk or the network"),
        (
            2,
            {"write": 18.0, "cpu": 0.1},
            "More processes of a PythonSource (workers=), or more threads= for a CallbackSource, may help",
        ),
        (2, {"decode": 18.0, "cpu": 2.0}, "other threads or programs of this machine use the rest"),
        (2, {"turn": 10.0, "locate": 9.0, "cpu": 10.0}, "waited for their turn to find samples for 50% of their time"),
        (2, {"sample": 8.0, "read": 9.0}, "waited for the first sample of a batch for 40% of their time"),
        (2, {"batch": 8.0, "collate": 9.0}, "Use more prefetch"),
    ],
)
def test_reports(monkeypatch, cores, figures, words):
    assert words in made(cores, monkeypatch, **figures).report()


def test_reports_of_a_cache(monkeypatch):
    decoding = made(2, monkeypatch, decode=18.0, cpu=19.0)
    stats = dataclasses.replace(decoding, cache_hits=30, cache_misses=10, cache_used=1_234_000_000)
    assert "The cache had 75% of the images. It holds 1.23 GB: if that is near cache_bytes, more" in stats.report()
    assert stats.cache_hit_rate == 0.75
    assert "cache" not in dataclasses.replace(stats, cache_misses=0).report()
    assert "cache" not in decoding.report()


def test_the_report_of_a_loader():
    with Loader(np.zeros((100, 8)), batch_size=10, timeout=PATIENCE) as loader:
        list(map(len, loader))
        mark = loader.stats()
        assert loader.report().endswith(".") and "samples/s" in loader.report()
        loader.close()
        assert loader.report(since=mark) == loader.stats(since=mark).report()
    assert dataclasses.replace(mark, batches=0).report() == "No batch was prepared."


def test_a_timeout_names_the_sample_by_its_key():
    """By the end of a long one."""
    source = PlannedSource("k")
    with Loader(source, threads=1, timeout=0) as loader:
        wait_until(lambda: source.waiting)
        with pytest.raises(DataTimeout, match=r"fastbatch-0: read sample 0 \(key '\.\.\.[0-9]{127}6'\) for "):
            next(iter(loader))
        source.open_gate()


def test_a_timeout_names_stage_and_sample():
    source = PlannedSource("..w")
    with Loader(source, batch_size=3, threads=1, timeout=0) as loader:
        wait_until(lambda: source.waiting)
        with pytest.raises(DataTimeout, match="thread fastbatch-0: read sample 2 for "):
            next(iter(loader))
        source.open_gate()
