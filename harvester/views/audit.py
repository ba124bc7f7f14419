"""An audit for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harvester.views.text import clean, columns, number

Json = Mapping[str, Any]

SHOWN = 50


def audit_json(report: Json) -> dict[str, Any]:
    """The audit as JSON values."""
    left_out = ("own",)
    return {name: value for name, value in report.items() if name not in left_out}


def audit_screen(report: Json) -> str:
    """What could not be proven, each with its reason, and what could, counted."""
    doubtful = [entry for entry in report["entries"] if entry["doubt"]]
    proven = len(report["entries"]) - len(doubtful)
    losses = sum(entry["loss"] is not None and not entry["doubt"] for entry in report["entries"])
    retired = sum(entry["retired"] for entry in report["entries"])
    lines = [
        f"Task {clean(report['task'])}: {proven} of {len(report['entries'])} delivered outcomes "
        f"proven ({losses} with a loss), {report['waiting']} not delivered yet."
    ]
    if retired:
        lines.append(f"For {retired} the books alone vouch: their logs left the spool in time.")
    if report["central"] is None:
        lines.append("Not compared with the central service.")
    else:
        others = (
            f" ({report['strangers']} of other harvesters, or forgotten here)"
            if report["strangers"]
            else ""
        )
        lines.append(f"The central service has {report['central']} attempts{others}.")
    lines += [
        f"{clean(log)} has {count} unreadable stretches."
        for log, count in sorted(report["damaged"].items())
    ]
    lines += [
        f"Point {clean(point)} has a loss at the central service that no attempt at it had."
        for point in report["odd_points"]
    ]
    if doubtful:
        rows = [
            (entry["attempt"], number(entry["loss"]), entry["doubt"]) for entry in doubtful[:SHOWN]
        ]
        lines += ["", "Not proven:", columns(("attempt", "loss", "why"), rows, "  ")]
        if len(doubtful) > SHOWN:
            lines.append(f"  and {len(doubtful) - SHOWN} more; --json lists all")
    return "\n".join(lines)
