"""Tells of tasks whose attempts the site fails, and that are tried one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from harvester.daemon.desk import Desk
from harvester.model import TaskId
from harvester.planning.facts import FaultSeries

REASON_SHOWN = 300
_CURE = "mend what the reason names; once a trial is sound all goes on by itself"


def tell_on_trial(desk: Desk, series: Mapping[TaskId, FaultSeries]) -> None:
    """Keep one problem for each task under trial."""
    for task, found in series.items():
        desk.problems.report(_key(task), _sentence(task, found), _CURE, since=found.since)
    desk.problems.clear_prefix("trial.", frozenset(map(_key, series)))


def _key(task: TaskId) -> str:
    return f"trial.{task}"


def _sentence(task: TaskId, series: FaultSeries) -> str:
    last = series.last
    reason = " ".join((last.reason or "no reason was told").split())[:REASON_SHOWN]
    due = datetime.fromtimestamp(series.trial_at, UTC).strftime("%H:%M:%S UTC")
    return (
        f"task {task}: the site failed its last {series.count} attempts, {last.attempt} by: "
        f"{reason}; one at a time is tried, not before {due}"
    )
