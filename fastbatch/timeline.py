"""What a loader's threads did lately, as a picture or for a trace viewer: see `Loader.timeline`."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional, Union

__all__ = ["write_timeline"]

# Colors by stage: work is strong, waits are pale.
_COLORS = {
    "locate": "#8c564b",
    "read": "#1f77b4",
    "decode": "#d62728",
    "collate": "#2ca02c",
    "write": "#9467bd",
    "filling": "#98df8a",
    "ready": "#bcbd22",
    "has a batch": "#ff7f0e",
}
_PALE = "#e4e4e4"
_BETWEEN = ("start", "wait for its turn", "wait for a free batch")  # of workers that have no sample
_PICTURES = (".png", ".pdf", ".svg")


class Span(NamedTuple):
    """Something that lasted from `begin` to `end`, in seconds."""

    row: str
    what: str
    begin: float
    end: float
    number: Optional[int]  # of the sample or batch; None: it belongs to none


def write_timeline(path: Union[str, os.PathLike[str]], traces: list[list[tuple[float, str, int]]], end: float) -> None:
    """Writes the events of BatchRing.traces(), until `end`, to a .json, .png, .pdf or .svg file."""
    name = os.fspath(path)
    kind = os.path.splitext(name)[1].lower()
    if kind != ".json" and kind not in _PICTURES:
        raise ValueError(f"the name of a timeline ends in .json, .png, .pdf or .svg, and {name!r} does not")
    # Where a thread's older events are lost, those of the others mean little.
    begin = max((trace[0][0] for trace in traces if len(trace) > 4000), default=0.0)
    traces = [[event for event in trace if event[0] >= begin] for trace in traces]
    spans = [*_of_workers(traces[:-1], end), *_of_consumer(traces[-1], end), *_of_slots(traces, end)]
    if kind == ".json":
        with open(name, "w") as file:
            json.dump({"traceEvents": list(_chrome(spans)), "displayTimeUnit": "ms"}, file)
        return
    _draw(name, spans)


def _of_workers(traces: list[list[tuple[float, str, int]]], end: float) -> Iterator[Span]:
    for worker, trace in enumerate(traces):
        stages = [event for event in trace if not event[1].startswith("slot ")]
        for (begin, what, number), (until, _, _) in zip(stages, [*stages[1:], (end, "", 0)]):
            if what != "stopped":
                yield Span(f"fastbatch-{worker}", what, begin, until, None if what in _BETWEEN else number)


def _of_consumer(trace: list[tuple[float, str, int]], end: float) -> Iterator[Span]:
    for (begin, what, number), (until, _, _) in zip(trace, [*trace[1:], (end, "", 0)]):
        taken = what == "batch taken"
        yield Span("your loop", "has a batch" if taken else what, begin, until, number & 0xFFFFFFFF if taken else None)


def _of_slots(traces: list[list[tuple[float, str, int]]], end: float) -> Iterator[Span]:
    """A slot is filled, ready, and taken. Then it is free, or in the caller's hands."""
    names = {"slot begun": "filling", "slot full": "ready", "batch taken": ""}
    slots: dict[int, list[tuple[float, str, int]]] = {}
    for begin, what, number in sorted(event for trace in traces for event in trace):
        if what in names:
            slots.setdefault(number >> 32, []).append((begin, names[what], number & 0xFFFFFFFF))
    for slot, events in sorted(slots.items()):
        for (begin, what, number), (until, _, _) in zip(events, [*events[1:], (end, "", 0)]):
            if what:
                yield Span(f"slot {slot}", what, begin, until, number)


def _chrome(spans: list[Span]) -> Iterator[dict[str, Any]]:
    """Events in the format of Chrome's chrome://tracing, which Perfetto and Speedscope read too."""
    rows = {row: place for place, row in enumerate(dict.fromkeys(span.row for span in spans))}
    for row, place in rows.items():
        yield {"name": "thread_name", "ph": "M", "pid": 1, "tid": place, "args": {"name": row}}
        yield {"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": place, "args": {"sort_index": place}}
    for row, what, begin, end, number in spans:
        unit = "sample" if row.startswith("fastbatch-") else "batch"
        yield {
            "name": what,
            "ph": "X",
            "pid": 1,
            "tid": rows[row],
            "ts": round(begin * 1e6, 3),
            "dur": round((end - begin) * 1e6, 3),
            "args": {} if number is None else {unit: number},
        }


def _draw(name: str, spans: list[Span]) -> None:
    try:
        # In this way, type checkers need no matplotlib.
        canvas, figures, patches = (
            importlib.import_module(f"matplotlib.{part}") for part in ("backends.backend_agg", "figure", "patches")
        )
    except ImportError as error:
        raise ImportError(
            "a picture of a timeline needs matplotlib (pip install matplotlib); a .json file needs nothing, and "
            "chrome://tracing or ui.perfetto.dev show it"
        ) from error
    rows = list(dict.fromkeys(span.row for span in spans))
    figure = figures.Figure(figsize=(12, 1.5 + 0.4 * len(rows)))
    canvas.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for span in spans:
        bars.setdefault((span.row, _COLORS.get(span.what, _PALE)), []).append((span.begin, span.end - span.begin))
    for number, row in enumerate(rows):
        for color in dict.fromkeys([_PALE, *_COLORS.values()]):
            if (row, color) in bars:
                axes.broken_barh(bars[row, color], (number - 0.4, 0.8), facecolors=color, rasterized=True)
    axes.set_yticks(range(len(rows)))
    axes.set_yticklabels(rows)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the loader was made")
    shown = {span.what for span in spans}
    known = [patches.Patch(color=color, label=what) for what, color in _COLORS.items() if what in shown]
    known.append(patches.Patch(color=_PALE, label="waits"))
    axes.legend(handles=known, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=len(known), frameon=False)
    figure.savefig(name, dpi=150, bbox_inches="tight")
