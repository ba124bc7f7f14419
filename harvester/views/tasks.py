"""Tasks and points of the central service as text, CSV and JSON. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harvester.central.result_files import PointFile
from harvester.views.text import clean, columns, indented, local_time, number, shorten

ATTEMPT_KEYS = (
    "n",
    "allocation",
    "node",
    "state",
    "blame",
    "reason",
    "started",
    "ended",
    "resumed_from",
)

Json = Mapping[str, Any]


def task_table(tasks: Sequence[Json]) -> str:
    """Tasks, one line each."""
    headers = ("task", "name", "state", "points", "leased", "failed", "best loss", "created")
    rows = [
        (
            item["task"],
            shorten(clean(item["name"]), 24),
            item["state"],
            _progress(item["points"]),
            item["points"].get("leased", 0),
            item["points"].get("failed", 0),
            number(_best_loss(item)),
            local_time(item.get("created")),
        )
        for item in tasks
    ]
    return columns(headers, rows) if rows else "No tasks."


def task_screen(task: Json, points: Sequence[Json]) -> str:
    """One task: its summary, then every attempt of every point."""
    counts = task["points"]
    lines = [
        f"Task {clean(task['task'])}: {clean(task['name'])} "
        f"({clean(task['state'])}, of {clean(task.get('owner'))})",
        f"  points    {_progress(counts)} settled: {counts.get('done', 0)} done, "
        f"{counts.get('failed', 0)} failed, {counts.get('pruned', 0)} pruned; "
        f"{counts.get('leased', 0)} leased, {counts.get('waiting', 0)} waiting",
        f"  attempts  {task.get('attempts', 0)}, of which {task.get('charged_attempts', 0)} "
        "charged to their points",
        f"  parallel  {task.get('parallel')} at a time",
        f"  best      {_best(task)}",
        *_segment_lines(task.get("segments")),
    ]
    attempts = [_attempt_row(point, attempt) for point in points for attempt in point["attempts"]]
    if attempts:
        headers = ("point", "n", "allocation", "node", "state", "blame", "from", "started")
        lines += ["", columns(headers, attempts)]
    return "\n".join(lines)


def point_table(points: Sequence[Json]) -> str:
    """Points, one line each, as they come."""
    headers = ("point", "segment", "state", "loss", "attempts", "parameters")
    rows = [
        (
            point["point"],
            point.get("segment"),
            point["state"],
            number(point.get("loss"), 6),
            len(point["attempts"]),
            _parameters_text(point["parameters"]),
        )
        for point in points
    ]
    return columns(headers, rows) if rows else "No points."


def point_screen(point: Json) -> str:
    """One point with its parameters and attempts."""
    loss = number(point.get("loss"), 6)
    lines = [
        f"Point {clean(point['point'])}: {clean(point['state'])}, loss {loss}",
        f"  sampler     {clean(point.get('sampler') or '-')}",
    ]
    if point.get("segment"):
        lines.append(f"  segment     {clean(point['segment'])}")
    if point.get("message"):
        first, *more = indented(point["message"], "              ") or [""]
        lines += [f"  message     {first.strip()}", *more]
    for name, value in named_parameters(point["parameters"]).items():
        lines.append(f"  {clean(name)} = {clean(json.dumps(value))}")
    for attempt in point["attempts"]:
        lines += _attempt_lines(attempt)
    return "\n".join(lines)


def file_table(files: Sequence[PointFile], placed: Mapping[PointFile, Path]) -> str:
    """Files of a point, one line each; with the places to which they were brought."""
    rows = [
        (file.attempt, file.role, placed.get(file, file.name), file.size, file.sha256)
        for file in files
    ]
    headers = ("attempt", "role", "file" if placed else "name", "bytes", "sha256")
    return columns(headers, rows) if rows else "No files."


def files_json(
    files: Sequence[PointFile], placed: Mapping[PointFile, Path]
) -> list[dict[str, Any]]:
    """The same for programs; ``path`` is null where a file was not brought."""
    return [
        {**asdict(file), "path": str(placed[file]) if file in placed else None} for file in files
    ]


def task_json(task: Json, points: Iterable[Json]) -> dict[str, Any]:
    """A task with its points; the summary's numbers of points are its ``counts``."""
    summary = {key: value for key, value in task.items() if key != "points"}
    return {**summary, "counts": task["points"], "points": [point_json(item) for item in points]}


def point_json(point: Json) -> dict[str, Any]:
    """A point, its attempts in their published form."""
    return {**point, "attempts": [attempt_json(attempt) for attempt in point["attempts"]]}


def attempt_json(attempt: Json) -> dict[str, Any]:
    """An attempt as every JSON of this project shows it."""
    return {key: attempt.get(key) for key in ATTEMPT_KEYS}


def results_csv(points: Sequence[Json]) -> str:
    """Results with a column for each parameter; columns in the order of appearance."""
    names: dict[str, None] = {}
    for point in points:
        names.update(dict.fromkeys(named_parameters(point["parameters"])))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["point", "segment", "state", "loss", *names, "message"])
    for point in points:
        parameters = named_parameters(point["parameters"])
        writer.writerow(
            [
                point["point"],
                point.get("segment") or "",
                point["state"],
                "" if point.get("loss") is None else repr(point["loss"]),
                *(_csv_value(parameters.get(name)) for name in names),
                point.get("message") or "",
            ]
        )
    return out.getvalue()


def named_parameters(parameters: object) -> Mapping[str, Any]:
    """A point's parameters by name; segmented searches of PanDA carry ``[model_id, {...}]``."""
    if isinstance(parameters, list) and len(parameters) == 2:
        parameters = parameters[1]
    return parameters if isinstance(parameters, dict) else {"value": parameters}


def _progress(counts: Json) -> str:
    settled = sum(counts.get(state, 0) for state in ("done", "failed", "pruned"))
    return f"{settled}/{counts['max']}"


def _best_loss(task: Json) -> float | None:
    best = task.get("best")
    return best["loss"] if best else None


def _best(task: Json) -> str:
    best = task.get("best")
    if not best:
        return "none yet"
    parameters = _parameters_text(best["parameters"])
    return f"loss {number(best['loss'], 6)} at point {clean(best['point'])}: {parameters}"


def _segment_lines(segments: object) -> list[str]:
    # A summary only counts them; the unnamed one is the whole task.
    named = [item for item in segments if item.get("name")] if isinstance(segments, list) else []
    return [
        f"  segment   {clean(item['name'])}: {_progress(item['points'])}, best {_best(item)}"
        for item in named
    ]


def _parameters_text(parameters: object) -> str:
    pairs = named_parameters(parameters).items()
    return clean(", ".join(f"{name}={_value_text(value)}" for name, value in pairs))


def _value_text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv_value(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _attempt_row(point: Json, attempt: Json) -> tuple[object, ...]:
    return (
        point["point"],
        attempt.get("n"),
        attempt.get("allocation"),
        attempt.get("node"),
        attempt.get("state"),
        attempt.get("blame"),
        attempt.get("resumed_from"),
        local_time(attempt.get("started")),
    )


def _attempt_lines(attempt: Json) -> list[str]:
    blame = f", blames the {attempt['blame']}" if attempt.get("blame") else ""
    resumed = f", resumed from {attempt['resumed_from']}" if attempt.get("resumed_from") else ""
    place = f"{clean(attempt.get('allocation') or '-')} on {clean(attempt.get('node') or '-')}"
    times = f"{local_time(attempt.get('started'))} to {local_time(attempt.get('ended'))}"
    lines = [f"  attempt {attempt.get('n')}: {clean(attempt.get('state'))}{blame}{resumed}"]
    lines.append(f"    {place}, {times}")
    if attempt.get("reason"):
        lines += indented(attempt["reason"], "    ")
    return lines
