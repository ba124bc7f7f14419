"""What ran when on which GPU of an allocation, as lines of text. Pure: events in, text out.

One row per GPU (per node where payloads name no GPU), more where several share one; one column per
span of time; one character per attempt, and a legend. Clocks of the leader only: all events of an
allocation are written by it.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harvester.views.text import WIDTH, clean, columns

_MARKS = string.ascii_uppercase + string.ascii_lowercase + string.digits
_IDLE, _ENDED = ".", " "


@dataclass(frozen=True, slots=True)
class Happened:
    """One event of a runner: its kind, seconds since the epoch, and its fields."""

    kind: str
    at: float
    fields: Mapping[str, Any]


@dataclass(slots=True)
class _Stay:
    """An attempt on one GPU of one node, for a while."""

    place: tuple[str, str]  # node, GPU
    begin: float
    end: float | None = None


@dataclass(slots=True)
class _Run:
    attempt: str
    begin: float
    nodes: tuple[str, ...]
    gpus: tuple[str, ...]  # numbers on its first node, for nodes that join later
    stays: list[_Stay] = field(default_factory=list)
    end: float | None = None
    state: str = "running"


def timeline(events: Iterable[Happened], width: int = WIDTH) -> str:
    """The chart with its legend, at most ``width`` columns wide; a sentence when nothing ran."""
    ordered = sorted(events, key=lambda event: event.at)
    runs = _runs(ordered)
    if not runs:
        return "No payload has started in this allocation."
    opened = [event.at for event in ordered if event.kind == "allocation_started"]
    begin, end = min([runs[0].begin, *opened]), max(event.at for event in ordered)
    rows = _rows(runs, end)
    label = max(len(name) for name, _ in rows)
    cells = max(10, width - label - 2)
    span = max(end - begin, 1e-3) / cells
    marks = {run.attempt: _MARKS[place % len(_MARKS)] for place, run in enumerate(runs)}
    lines = [f"{'':{label}}  0 s{f'{end - begin:.0f} s':>{cells - 3}}"]
    for name, stays in rows:
        drawn = _draw(stays, marks, begin, span, cells, end)
        lines.append(f"{name:<{label}}  {drawn}")
    return "\n".join([*lines, "", _legend(runs, marks, begin, end)])


def _runs(events: Sequence[Happened]) -> list[_Run]:
    runs: dict[str, _Run] = {}
    for event in events:
        attempt = clean(event.fields.get("attempt", ""))
        run = runs.get(attempt)
        if event.kind == "attempt_started" and run is None:
            runs[attempt] = _started(attempt, event)
        elif event.kind == "attempt_resized" and run is not None:
            _resize(run, _texts(event.fields.get("nodes")), event.at)
        elif event.kind == "attempt_ended" and run is not None and run.end is None:
            run.end, run.state = event.at, clean(event.fields.get("state"))
            _resize(run, (), event.at)
    return list(runs.values())


def _started(attempt: str, event: Happened) -> _Run:
    nodes = _texts(event.fields.get("nodes"))
    labels = [text.partition("/")[0].rpartition(":") for text in _texts(event.fields.get("gpus"))]
    places = [(node, gpu) for node, _, gpu in labels] or [(node, "") for node in nodes]
    gpus = tuple(gpu for node, gpu in places if node == places[0][0]) if places else ("",)
    run = _Run(attempt, event.at, nodes, gpus)
    run.stays = [_Stay(place, event.at) for place in places]
    return run


def _resize(run: _Run, nodes: tuple[str, ...], at: float) -> None:
    """End its stays on nodes that it has no more, begin those on new ones."""
    open_stays = [stay for stay in run.stays if stay.end is None]
    for stay in open_stays:
        if stay.place[0] not in nodes:
            stay.end = at
    here = {stay.place[0] for stay in open_stays}
    run.stays += [_Stay((node, gpu), at) for node in nodes if node not in here for gpu in run.gpus]
    run.nodes += tuple(node for node in nodes if node not in run.nodes)


def _rows(runs: Sequence[_Run], end: float) -> list[tuple[str, list[tuple[_Stay, str]]]]:
    """Rows by place, and of one place as many as run there at once."""
    lanes: dict[tuple[str, str], list[list[tuple[_Stay, str]]]] = {}
    found = [(stay, run.attempt) for run in runs for stay in run.stays]
    for stay, attempt in sorted(found, key=lambda item: item[0].begin):
        mine = lanes.setdefault(stay.place, [])
        free = next((lane for lane in mine if _until(lane[-1][0], end) <= stay.begin), None)
        if free is None:
            mine.append([(stay, attempt)])
        else:
            free.append((stay, attempt))
    return [
        (":".join(filter(None, place)), lane) for place in sorted(lanes) for lane in lanes[place]
    ]


def _draw(
    stays: Sequence[tuple[_Stay, str]],
    marks: Mapping[str, str],
    begin: float,
    span: float,
    cells: int,
    end: float,
) -> str:
    row = [_IDLE] * cells
    for stay, attempt in stays:
        first = min(cells - 1, int((stay.begin - begin) / span))
        last = min(cells, max(first + 1, int((_until(stay, end) - begin) / span)))
        row[first:last] = marks[attempt] * (last - first)
    return "".join(row).rstrip(_ENDED)


def _legend(runs: Sequence[_Run], marks: Mapping[str, str], begin: float, end: float) -> str:
    rows = [
        (
            marks[run.attempt],
            run.attempt,
            len(run.nodes),
            f"{run.begin - begin:.1f}",
            f"{(run.end or end) - run.begin:.1f}",
            run.state,
        )
        for run in runs
    ]
    return columns(("", "ATTEMPT", "NODES", "FROM (S)", "FOR (S)", "STATE"), rows)


def _until(stay: _Stay, end: float) -> float:
    return end if stay.end is None else stay.end


def _texts(value: object) -> tuple[str, ...]:
    return tuple(clean(item) for item in value) if isinstance(value, (list, tuple)) else ()
