"""Intermediate metrics of running attempts: the newest of each (lease, step) is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from harvester.central.port import Report
from harvester.model import LeaseId
from harvester.steering import feed
from harvester.steering.leases import Grant, parse_lease
from harvester.steering.pruning import hopeless_points
from harvester.steering.tables import LEASES, POINTS, REPORTS, TASKS
from harvester.steering.tokens import Principal, Role

_Key = tuple[Grant, int]


def take_reports(
    connection: Connection, principal: Principal, reports: Sequence[Report]
) -> dict[LeaseId, str]:
    """Keep what is reported; the answer names the leases that should stop, and why.

    Reports of leases that the caller does not hold are left aside: metrics never hold up a
    harvester.
    """
    grants = {report.lease: parse_lease(report.lease) for report in reports}
    held = _held(connection, principal, [grant for grant in grants.values() if grant is not None])
    rows: dict[_Key, dict[str, Any]] = {}
    stop: dict[LeaseId, str] = {}
    for report in reports:
        grant = grants[report.lease]
        if grant is None or grant not in held:
            continue
        for values in report.values:
            rows[grant, int(values["step"])] = _row(grant, report, values)
        reason = held[grant]
        if reason is not None:
            stop[report.lease] = reason
    _replace(connection, rows)
    return stop | _prune(connection, {grant for grant, _ in rows})


def _held(
    connection: Connection, principal: Principal, grants: Sequence[Grant]
) -> dict[Grant, str | None]:
    """The leases among these that are the caller's, with the reason to stop, if there is one."""
    points: dict[int, list[int]] = {}
    for grant in grants:
        points.setdefault(grant.task, []).append(grant.point)
    found = {}
    for task, numbers in points.items():
        query = select(LEASES).where(LEASES.c.task_id == task, LEASES.c.point.in_(numbers))
        if principal.role is not Role.ADMIN:
            query = query.where(LEASES.c.holder == principal.user)
        for row in connection.execute(query):
            found[Grant(task, row.point, row.grant_no)] = row.stop
    return found


def _row(grant: Grant, report: Report, values: Mapping[str, Any]) -> dict[str, Any]:
    loss = values.get("loss")
    is_number = isinstance(loss, (int, float)) and not isinstance(loss, bool)
    return {
        "task_id": grant.task,
        "point": grant.point,
        "grant_no": grant.number,
        "step": int(values["step"]),
        "attempt": report.attempt,
        "loss": float(loss) if loss is not None and is_number and math.isfinite(loss) else None,
        "fields": feed.dump(values),
    }


def _prune(connection: Connection, reported: set[Grant]) -> dict[LeaseId, str]:
    """Mark the leases that the median rule stops, where their task asks for it."""
    query = select(TASKS.c.id).where(
        TASKS.c.id.in_({grant.task for grant in reported}), TASKS.c.early_stopping == "median"
    )
    stop: list[Grant] = []
    for task in connection.scalars(query).all():
        grants = {grant.point: grant for grant in reported if grant.task == task}
        for curves in _curves(connection, task).values():
            candidates = [point for point in grants if point in curves]
            stop += [grants[point] for point in hopeless_points(curves, candidates)]
    if stop:
        connection.execute(_STOP, [{**_key(grant), "reason": "pruned"} for grant in stop])
    return {LeaseId(str(grant)): "pruned" for grant in stop}


def _curves(connection: Connection, task: int) -> dict[int, dict[int, list[tuple[int, float]]]]:
    """What was reported of a task's points, by segment."""
    query = (
        select(POINTS.c.segment, REPORTS.c.point, REPORTS.c.step, REPORTS.c.loss)
        .join(
            POINTS, (POINTS.c.task_id == REPORTS.c.task_id) & (POINTS.c.number == REPORTS.c.point)
        )
        # A point's newest lease may have resumed what an earlier one began: its word counts last.
        .where(REPORTS.c.task_id == task, REPORTS.c.loss.is_not(None))
        .order_by(REPORTS.c.point, REPORTS.c.step, REPORTS.c.grant_no)
    )
    found: dict[int, dict[int, dict[int, float]]] = {}
    for segment, point, step, loss in connection.execute(query):
        found.setdefault(segment, {}).setdefault(point, {})[step] = loss
    return {
        segment: {point: list(curve.items()) for point, curve in points.items()}
        for segment, points in found.items()
    }


def _key(grant: Grant) -> dict[str, int]:
    return {"of_task": grant.task, "of_point": grant.point, "of_grant": grant.number}


_STOP = (
    update(LEASES)
    .where(
        LEASES.c.task_id == bindparam("of_task"),
        LEASES.c.point == bindparam("of_point"),
        LEASES.c.grant_no == bindparam("of_grant"),
    )
    .values(stop=bindparam("reason"))
)
_FORGET = delete(REPORTS).where(
    REPORTS.c.task_id == bindparam("of_task"),
    REPORTS.c.point == bindparam("of_point"),
    REPORTS.c.grant_no == bindparam("of_grant"),
    REPORTS.c.step == bindparam("of_step"),
)


def _replace(connection: Connection, rows: Mapping[_Key, dict[str, Any]]) -> None:
    if not rows:
        return
    connection.execute(_FORGET, [{**_key(grant), "of_step": step} for grant, step in rows])
    connection.execute(insert(REPORTS), list(rows.values()))
