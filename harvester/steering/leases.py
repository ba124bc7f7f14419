"""Who holds which point, and until when.

A lease is ``<task>.<point>.<grant>``. When it runs out its point goes back to the waiting ones;
a result that comes later still counts if the point is not settled by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from harvester.central.port import LeaseReply, LeaseRequest, LeaseStanding
from harvester.model import LeasedPoint, LeaseId, PayloadSpec, PointId, TaskId
from harvester.steering import books, feed
from harvester.steering.progress import (
    PointState,
    TaskState,
    points_in_reach,
    points_to_lease,
)
from harvester.steering.tables import LEASES, PAYLOADS, POINTS, REQUESTS, SEGMENTS, TASKS
from harvester.steering.tokens import Principal, Role
from payload_runner.protocol import from_fields

LEASE_S = 3600.0  # an hour: a harvester that restarts or loses its network keeps its points
LEASES_AT_ONCE = 10_000  # of one request
_LEASE = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})")


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease id taken apart."""

    task: int
    point: int
    number: int

    def __str__(self) -> str:
        return f"{self.task}.{self.point}.{self.number}"


def parse_lease(lease: str) -> Grant | None:
    """The parts of a lease id, or None if it is not one."""
    found = _LEASE.fullmatch(lease)
    return None if found is None else Grant(*(int(part) for part in found.groups()))


def lease_points(
    connection: Connection, principal: Principal, request: LeaseRequest, now: float
) -> LeaseReply:
    """Give waiting points to a harvester; a key that got points before gets the same ones."""
    expire_leases(connection, now)
    if _known_request(connection, principal, request):
        points = _leased_before(connection, principal, request, now)
    else:
        points = _grant(connection, principal, request, now)
    reach, more = _left_over(connection, principal, request.site)
    return LeaseReply(
        points=tuple(points),
        payloads=_payloads(connection, points, request.known_payloads),
        more=more,
        waiting=reach,
    )


def expire_leases(connection: Connection, now: float) -> None:
    """Put the points of leases that have run out back to the waiting ones."""
    overdue = (LEASES.c.state == "live") & (LEASES.c.expires_at <= now)
    rows = connection.execute(
        select(LEASES.c.task_id, LEASES.c.point, LEASES.c.grant_no, POINTS.c.segment)
        .join(POINTS, _point_of_lease())
        .where(overdue)
    ).all()
    if not rows:
        return
    connection.execute(update(LEASES).where(overdue).values(state="expired"))
    back_to = _task_states(connection, {row.task_id for row in rows})
    moves = books.Moves()
    points = []
    for row in rows:
        state = back_to[row.task_id]
        moves.add(row.task_id, row.segment, PointState.LEASED, state)
        points.append({"of_task": row.task_id, "of_number": row.point, "to_state": state.value})
    connection.execute(_SET_POINT_STATE, points)
    moves.write(connection)
    expired: dict[int, list[str]] = {}
    for row in rows:
        expired.setdefault(row.task_id, []).append(str(_grant_of(row)))
    feed.record(
        connection,
        now,
        [feed.Change(task, "expired", {"leases": leases}) for task, leases in expired.items()],
    )
    books.end_tasks(connection, {row.task_id for row in rows}, now)


def renew_leases(
    connection: Connection, principal: Principal, leases: Sequence[str], now: float
) -> LeaseStanding:
    """Prolong leases; one that ran out is taken up again while nobody else has its point."""
    expire_leases(connection, now)
    wanted = {lease: parse_lease(lease) for lease in leases}
    rows = _lease_rows(connection, [grant for grant in wanted.values() if grant is not None])
    gone: list[LeaseId] = []
    stop: dict[LeaseId, str] = {}
    prolonged: list[Row[Any]] = []
    for lease, grant in wanted.items():
        row = None if grant is None else rows.get(grant)
        if row is not None and not _may_hold(principal, row.holder):
            row = None
        if row is not None and row.stop is not None:
            stop[LeaseId(lease)] = row.stop
        if row is not None and (row.state == "live" or _may_revive(row)):
            prolonged.append(row)
        elif row is None or row.stop is None:
            gone.append(LeaseId(lease))
    _prolong(connection, prolonged, now)
    return LeaseStanding(gone=tuple(gone), stop=stop)


def owner_filter(principal: Principal) -> Any:
    """The condition on tasks that a harvester with this token may work on."""
    return True if principal.role is Role.ADMIN else TASKS.c.owner == principal.user


_SET_POINT_STATE = (
    update(POINTS)
    .where(POINTS.c.task_id == bindparam("of_task"), POINTS.c.number == bindparam("of_number"))
    .values(state=bindparam("to_state"))
)
_PROLONG = (
    update(LEASES)
    .where(
        LEASES.c.task_id == bindparam("of_task"),
        LEASES.c.point == bindparam("of_point"),
        LEASES.c.grant_no == bindparam("of_grant"),
    )
    .values(state="live", expires_at=bindparam("until"))
)


def _point_of_lease() -> Any:
    return (LEASES.c.task_id == POINTS.c.task_id) & (LEASES.c.point == POINTS.c.number)


def _grant_of(row: Any) -> Grant:  # a row of any query that has these columns
    return Grant(row.task_id, row.point, row.grant_no)


def _task_states(connection: Connection, tasks: Iterable[int]) -> dict[int, PointState]:
    """Where a point goes that comes back unevaluated."""
    query = select(TASKS.c.id, TASKS.c.state).where(TASKS.c.id.in_(tuple(tasks)))
    ending = TaskState.FINISHING.value
    return {
        row.id: PointState.CANCELLED if row.state == ending else PointState.WAITING
        for row in connection.execute(query)
    }


def _lease_rows(connection: Connection, grants: Iterable[Grant]) -> dict[Grant, Row[Any]]:
    by_task: dict[int, list[int]] = {}
    for grant in grants:
        by_task.setdefault(grant.task, []).append(grant.point)
    found = {}
    for task, points in by_task.items():
        query = (
            select(
                LEASES,
                POINTS.c.segment,
                POINTS.c.state.label("point_state"),
                POINTS.c.grants,
                TASKS.c.state.label("task_state"),
            )
            .join(POINTS, _point_of_lease())
            .join(TASKS, TASKS.c.id == LEASES.c.task_id)
            .where(LEASES.c.task_id == task, LEASES.c.point.in_(points))
        )
        found.update({_grant_of(row): row for row in connection.execute(query)})
    return found


def _may_hold(principal: Principal, holder: str) -> bool:
    return principal.role is Role.ADMIN or principal.user == holder


def _may_revive(row: Row[Any]) -> bool:
    return (
        row.state == "expired"
        and row.point_state == PointState.WAITING.value
        and row.grants == row.grant_no
        and row.task_state in (TaskState.RUNNING.value, TaskState.PAUSED.value)
    )


def _prolong(connection: Connection, rows: Sequence[Row[Any]], now: float) -> None:
    if not rows:
        return
    connection.execute(
        _PROLONG,
        [
            {
                "of_task": row.task_id,
                "of_point": row.point,
                "of_grant": row.grant_no,
                "until": now + LEASE_S,
            }
            for row in rows
        ],
    )
    revived = [row for row in rows if row.state == "expired"]
    moves = books.Moves()
    for row in revived:
        moves.add(row.task_id, row.segment, PointState.WAITING, PointState.LEASED)
    if revived:
        connection.execute(
            _SET_POINT_STATE,
            [
                {"of_task": row.task_id, "of_number": row.point, "to_state": "leased"}
                for row in revived
            ],
        )
    moves.write(connection)


# --- granting ---


def _grant(
    connection: Connection, principal: Principal, request: LeaseRequest, now: float
) -> list[LeasedPoint]:
    points: list[LeasedPoint] = []
    tasks = _open_tasks(connection, principal, request.site)
    counts = books.task_counts(connection, [task.id for task in tasks])
    for task in tasks:
        asked = request.points - len(points)
        wanted = points_to_lease(books.rules_of(task), counts[task.id], asked)
        if wanted:
            points += _take(connection, principal, request, task, wanted, now)
    if points:
        _remember_request(connection, principal, request, len(points), now)
    return points


def _open_tasks(connection: Connection, principal: Principal, site: str) -> list[Row[Any]]:
    """Running tasks that this caller's site may evaluate, the most urgent first."""
    query = (
        select(TASKS)
        .where(TASKS.c.state == TaskState.RUNNING.value, owner_filter(principal))
        .order_by(TASKS.c.priority.desc(), TASKS.c.id)
    )
    rows = connection.execute(query).all()
    return [
        row
        for row in rows
        if (row.sites is None or site in json.loads(row.sites))
        and (row.owner == principal.user or _is_contained(connection, row.id))
    ]


def _is_contained(connection: Connection, task: int) -> bool:
    """Whether all that a task runs runs in containers.

    A bare payload has the user id of the harvester that runs it and could read its tokens: no role
    makes one user's harvester run what another one submitted.
    """
    found = connection.execute(
        select(PAYLOADS.c.fields)
        .join(SEGMENTS, SEGMENTS.c.payload_id == PAYLOADS.c.payload_id)
        .where(SEGMENTS.c.task_id == task)
        .distinct()
    ).scalars()
    return all(json.loads(fields).get("container") for fields in found)


def _take(
    connection: Connection,
    principal: Principal,
    request: LeaseRequest,
    task: Row[Any],
    n: int,
    now: float,
) -> list[LeasedPoint]:
    rows = connection.execute(
        select(POINTS)
        .where(POINTS.c.task_id == task.id, POINTS.c.state == PointState.WAITING.value)
        .order_by(POINTS.c.number)
        .limit(n)
    ).all()
    connection.execute(
        update(POINTS)
        .where(POINTS.c.task_id == task.id, POINTS.c.number.in_([row.number for row in rows]))
        .values(state=PointState.LEASED.value, grants=POINTS.c.grants + 1)
    )
    connection.execute(
        insert(LEASES),
        [
            {
                "task_id": task.id,
                "point": row.number,
                "grant_no": row.grants + 1,
                "holder": principal.user,
                "harvester": request.harvester,
                "request_key": request.key,
                "state": "live",
                "granted_at": now,
                "expires_at": now + LEASE_S,
            }
            for row in rows
        ],
    )
    moves = books.Moves()
    for row in rows:
        moves.add(task.id, row.segment, PointState.WAITING, PointState.LEASED)
    moves.write(connection)
    fields = {"points": len(rows), "harvester": request.harvester}
    feed.record(connection, now, [feed.Change(task.id, "leased", fields)])
    segments = _segments(connection, [task.id])
    return [
        _leased_point(row, row.grants + 1, segments[task.id, row.segment], task.priority, LEASE_S)
        for row in rows
    ]


def _segments(connection: Connection, tasks: Iterable[int]) -> dict[tuple[int, int], Row[Any]]:
    query = select(SEGMENTS).where(SEGMENTS.c.task_id.in_(tuple(tasks)))
    return {(row.task_id, row.number): row for row in connection.execute(query)}


def _leased_point(
    point: Row[Any], grant: int, segment: Row[Any], priority: int, expires_s: float
) -> LeasedPoint:
    return LeasedPoint(
        lease=LeaseId(f"{point.task_id}.{point.number}.{grant}"),
        task=TaskId(str(point.task_id)),
        point=PointId(str(point.number)),
        parameters=point_parameters(point.parameters, segment.model_id),
        payload_id=segment.payload_id,
        segment=segment.name,
        priority=priority,
        expires_s=expires_s,
        attempts_before=point.attempts,
    )


def point_parameters(parameters: str, model_id: str | None) -> Any:
    """What goes into ``input.json``: the bare point, paired with its model id in segments."""
    value = json.loads(parameters)
    return value if model_id is None else [json.loads(model_id), value]


def _payloads(
    connection: Connection, points: Sequence[LeasedPoint], known: Sequence[str]
) -> tuple[PayloadSpec, ...]:
    wanted = {point.payload_id for point in points} - set(known)
    if not wanted:
        return ()
    query = select(PAYLOADS).where(PAYLOADS.c.payload_id.in_(sorted(wanted)))
    return tuple(
        from_fields(PayloadSpec, json.loads(row.fields)) for row in connection.execute(query)
    )


def _left_over(connection: Connection, principal: Principal, site: str) -> tuple[int, bool]:
    """Points that could be handed out now or soon, and whether there are some right now."""
    tasks = _open_tasks(connection, principal, site)
    counts = books.task_counts(connection, [task.id for task in tasks])
    reach, now = 0, 0
    for task in tasks:
        rules = books.rules_of(task)
        reach += points_in_reach(rules, counts[task.id])
        now += points_to_lease(rules, counts[task.id], counts[task.id].waiting)
    return reach, now > 0


# --- replayed requests ---


def _known_request(connection: Connection, principal: Principal, request: LeaseRequest) -> bool:
    query = select(REQUESTS.c.at).where(
        REQUESTS.c.owner == principal.user,
        REQUESTS.c.sender == request.harvester,
        REQUESTS.c.key == request.key,
    )
    return connection.execute(query).first() is not None


def _remember_request(
    connection: Connection, principal: Principal, request: LeaseRequest, n: int, now: float
) -> None:
    connection.execute(
        insert(REQUESTS).values(
            owner=principal.user,
            sender=request.harvester,
            key=request.key,
            answer=feed.dump({"points": n}),
            at=now,
        )
    )


def _leased_before(
    connection: Connection, principal: Principal, request: LeaseRequest, now: float
) -> list[LeasedPoint]:
    """What the request got; without the leases that have come to their end since."""
    query = (
        select(POINTS, LEASES.c.grant_no, LEASES.c.expires_at, TASKS.c.priority)
        .join(LEASES, _point_of_lease())
        .join(TASKS, TASKS.c.id == POINTS.c.task_id)
        .where(
            LEASES.c.holder == principal.user,
            LEASES.c.harvester == request.harvester,
            LEASES.c.request_key == request.key,
            LEASES.c.state == "live",
        )
        .order_by(TASKS.c.priority.desc(), POINTS.c.task_id, POINTS.c.number)
    )
    rows = connection.execute(query).all()
    segments = _segments(connection, {row.task_id for row in rows})
    return [
        _leased_point(
            row,
            row.grant_no,
            segments[row.task_id, row.segment],
            row.priority,
            row.expires_at - now,
        )
        for row in rows
    ]
