"""Measuring in turns, and figures against their targets.

A shared machine is faster in one minute than in the next, so a rate by itself says little. Here all sides of a
comparison run in every round, one after the other. The result is the ratio of two turns of the same round: its median
over all rounds, with the 10th and 90th percentile as the spread.

A missed target is not a failure: a benchmark measures, and reports whether the figure meets its target.
"""

import os
import statistics
import time
from dataclasses import dataclass
from typing import Optional

QUICK = os.environ.get("FASTBATCH_BENCH_QUICK", "0") not in ("", "0")
"""Whether to check only that the benchmarks run; their figures are then meaningless."""

ROUNDS = 2 if QUICK else 9
TURN = 0.05 if QUICK else 1.2
"""Seconds that a side works in one round."""
PAUSE = 0.02 if QUICK else 0.25
"""Seconds before each turn, in which the other sides' threads fill their queues and go to sleep."""


class Loop:
    """A side that calls `step` for about TURN seconds; every call does `units` of work, such as 64 images.

    prepare() makes `skip` calls that are not timed. They use up the batches that became ready during the other sides'
    turns, so that a turn measures work and not stock. run() returns the units per second of a turn, and appends the CPU
    seconds per unit, of all threads of this process, to `cpu`.
    """

    def __init__(self, step, units, skip):
        self.step, self.units, self.skip = step, units, skip
        self.cpu = []
        self.steps = 1
        for _ in range(skip + 1):
            step()
        while self._seconds() < TURN / 4:
            self.steps *= 2
        self.steps = max(1, round(self.steps * TURN / self._seconds()))

    def _seconds(self):
        begin = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        return time.perf_counter() - begin

    def prepare(self):
        for _ in range(self.skip):
            self.step()

    def run(self):
        cpu = time.process_time()
        seconds = self._seconds()
        self.cpu.append((time.process_time() - cpu) / (self.steps * self.units))
        return self.steps * self.units / seconds


class Single:
    """A side that is one call, made as soon as `ready()` returns. run() returns the seconds that the call took."""

    def __init__(self, call, ready=lambda: None):
        self.call, self.prepare = call, ready

    def run(self):
        begin = time.perf_counter()
        self.call()
        return time.perf_counter() - begin


class Reported:
    """A side that measures itself: run() returns what `call()` returns."""

    def __init__(self, call):
        self.run = call

    def prepare(self):
        pass


def in_turns(benchmark, ours, others, rounds=ROUNDS, pause=PAUSE):
    """Gives every side its turn in each round, ours last. Returns what they measured: {"ours": [...], other: [...]}.

    pytest-benchmark's own table shows how long our side's turns took.
    """
    measured = {name: [] for name in ("ours", *others)}

    def everyone_else():
        for name, side in others.items():
            time.sleep(pause)
            side.prepare()
            measured[name].append(side.run())
        time.sleep(pause)
        ours.prepare()

    benchmark.pedantic(lambda: measured["ours"].append(ours.run()), setup=everyone_else, rounds=rounds)
    return measured


def percentile(values, percent):
    """The smallest of `values` that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


@dataclass(frozen=True)
class Figure:
    """One line of the table: a median, its spread, and its target."""

    name: str
    unit: str
    median: float
    p10: float
    p90: float
    maximum: float
    count: int
    at_least: Optional[float] = None
    at_most: Optional[float] = None
    of_maximum: bool = False  # the target is for the largest value, not for the median

    @property
    def verdict(self):
        """ "met" or "MISSED", or nothing without a target."""
        value = self.maximum if self.of_maximum else self.median
        if self.at_least is None and self.at_most is None:
            return ""
        met = value >= self.at_least if self.at_least is not None else value <= self.at_most
        return "met" if met else "MISSED"

    @property
    def target(self):
        """The target in words."""
        if self.at_least is not None:
            return f">= {number(self.at_least)}"
        if self.at_most is not None:
            return f"<= {number(self.at_most)}{' always' if self.of_maximum else ''}"
        return ""


class Report:
    """The figures of one benchmark."""

    def __init__(self):
        self.figures = []

    def values(self, name, values, unit, **target):
        """A figure from repeated measurements. target: at_least=, at_most=, and of_maximum=True."""
        values = [float(value) for value in values]
        spread = percentile(values, 10), percentile(values, 90), max(values)
        self.figures.append(Figure(name, unit, statistics.median(values), *spread, len(values), **target))

    def ratio(self, name, above, below, unit="x", **target):
        """A figure from two sides that ran in turns: the ratio in each round; in percent if that is the unit."""
        factor = 100 if unit == "%" else 1
        self.values(name, [factor * a / b for a, b in zip(above, below)], unit, **target)


def number(value):
    """The value as text with three or four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def table(figures):
    """The figures as lines of text, in columns."""
    rows = [("figure", "median", "p10 .. p90", "max", "of", "target", "")]
    for each in figures:
        spread = f"{number(each.p10)} .. {number(each.p90)}" if each.count > 1 else ""
        largest = number(each.maximum) if each.count > 1 else ""
        median = f"{number(each.median)} {each.unit}"
        rows.append((each.name, median, spread, largest, str(each.count), each.target, each.verdict))
    names, *columns = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join([name.ljust(names), *map(str.rjust, cells, columns)]).rstrip() for name, *cells in rows]
