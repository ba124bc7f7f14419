"""Points as clients see them: pages in the order they were asked for, and results by loss."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from harvester.steering.attempts import attempts_of
from harvester.steering.leases import point_parameters
from harvester.steering.tables import POINTS, RESULT_FILES, SEGMENTS


def page(connection: Connection, task: int, offset: int, limit: int) -> list[dict[str, Any]]:
    """Points ``offset + 1`` to ``offset + limit`` of a task, in the protocol's form."""
    query = (
        select(POINTS)
        .where(POINTS.c.task_id == task, POINTS.c.number > offset)
        .order_by(POINTS.c.number)
        .limit(limit)
    )
    return _shown(connection, task, connection.execute(query).all())


def best(connection: Connection, task: int, limit: int) -> list[dict[str, Any]]:
    """Points that have a loss, the lowest first; penalised ones come last with theirs."""
    query = (
        select(POINTS)
        .where(POINTS.c.task_id == task, POINTS.c.loss.is_not(None))
        .order_by(POINTS.c.loss, POINTS.c.number)
        .limit(limit)
    )
    return _shown(connection, task, connection.execute(query).all())


def total(connection: Connection, task: int) -> int:
    """How many points a task has."""
    # Numbered from 1 without gaps, and never deleted one by one.
    return connection.scalar(select(func.max(POINTS.c.number)).where(POINTS.c.task_id == task)) or 0


def parameters(connection: Connection, task: int, point: int) -> Any:
    """The parameters of one point."""
    query = (
        select(POINTS.c.parameters, SEGMENTS.c.model_id)
        .join(
            SEGMENTS,
            (SEGMENTS.c.task_id == POINTS.c.task_id) & (SEGMENTS.c.number == POINTS.c.segment),
        )
        .where(POINTS.c.task_id == task, POINTS.c.number == point)
    )
    row = connection.execute(query).one()
    return point_parameters(row.parameters, row.model_id)


def _shown(connection: Connection, task: int, rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    if not rows:
        return []
    numbers = [row.number for row in rows]
    segments = {
        row.number: row
        for row in connection.execute(select(SEGMENTS).where(SEGMENTS.c.task_id == task))
    }
    attempts = attempts_of(connection, task, numbers)
    files = _files(connection, task, numbers)
    return [
        {
            "point": str(row.number),
            "segment": segments[row.segment].name,
            "state": row.state,
            "parameters": point_parameters(row.parameters, segments[row.segment].model_id),
            "loss": row.loss,
            "message": row.message,
            "metadata": None if row.metadata is None else json.loads(row.metadata),
            "files": files.get(row.number, []),
            "sampler": row.sampler,
            "attempts": attempts.get(row.number, []),
        }
        for row in rows
    ]


def _files(
    connection: Connection, task: int, numbers: Iterable[int]
) -> dict[int, list[dict[str, Any]]]:
    query = (
        select(RESULT_FILES)
        .where(RESULT_FILES.c.task_id == task, RESULT_FILES.c.point.in_(tuple(numbers)))
        .order_by(RESULT_FILES.c.attempt, RESULT_FILES.c.role, RESULT_FILES.c.name)
    )
    found: dict[int, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        shown = {name: row._mapping[name] for name in ("attempt", "role", "name", "size", "sha256")}
        found.setdefault(row.point, []).append(shown)
    return found
