"""Intermediate metrics of running attempts: the newest of each (lease, step) is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select

from harvester.central.port import Report
from harvester.model import LeaseId
from harvester.steering import feed
from harvester.steering.leases import Grant, parse_lease
from harvester.steering.tables import LEASES, REPORTS
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
    return stop


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


_FORGET = delete(REPORTS).where(
    REPORTS.c.task_id == bindparam("of_task"),
    REPORTS.c.point == bindparam("of_point"),
    REPORTS.c.grant_no == bindparam("of_grant"),
    REPORTS.c.step == bindparam("of_step"),
)


def _replace(connection: Connection, rows: Mapping[_Key, dict[str, Any]]) -> None:
    if not rows:
        return
    keys = [
        {
            "of_task": grant.task,
            "of_point": grant.point,
            "of_grant": grant.number,
            "of_step": step,
        }
        for grant, step in rows
    ]
    connection.execute(_FORGET, keys)
    connection.execute(insert(REPORTS), list(rows.values()))
