"""Attempts as rows: how a told result is kept, and how a point's attempts are shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from harvester.central.port import Result
from harvester.steering.leases import Grant
from harvester.steering.tables import ATTEMPTS

_SHOWN = (
    "n",
    "attempt",
    "allocation",
    "node",
    "state",
    "blame",
    "reason",
    "started",
    "ended",
    "loss",
    "counted",
    "stdout",
    "stderr",
)


def attempt_row(
    grant: Grant, result: Result, n: int, counted: bool, harvester: str, now: float
) -> dict[str, Any]:
    """The row of a told result; ``n`` is its number in the point's own sequence."""
    return {
        "attempt": result.attempt,
        "task_id": grant.task,
        "point": grant.point,
        "n": n,
        "state": result.state,
        "final": result.final,
        "counted": counted,
        "blame": result.blame,
        "reason": result.reason,
        "loss": result.loss,
        "message": result.message,
        "allocation": result.allocation,
        "node": result.node,
        "started": result.started,
        "ended": result.ended,
        "resumed_from": result.resumed_from,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "harvester": harvester,
        "told_at": now,
    }


def attempts_of(
    connection: Connection, task: int, points: Iterable[int]
) -> dict[int, list[dict[str, Any]]]:
    """The attempts of some points, by point, in the protocol's form."""
    query = (
        select(ATTEMPTS)
        .where(ATTEMPTS.c.task_id == task, ATTEMPTS.c.point.in_(tuple(points)))
        .order_by(ATTEMPTS.c.point, ATTEMPTS.c.n)
    )
    found: dict[int, list[dict[str, Any]]] = {}
    numbers: dict[str, int] = {}
    for row in connection.execute(query):
        numbers[row.attempt] = row.n
        attempt = {name: row._mapping[name] for name in _SHOWN}
        attempt["resumed_from"] = numbers.get(row.resumed_from or "")
        found.setdefault(row.point, []).append(attempt)
    return found
