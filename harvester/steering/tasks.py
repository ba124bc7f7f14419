"""Tasks: submitted, listed, shown, acted upon and deleted."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from harvester.clock import iso
from harvester.errors import InputError, NotFound, Problem, Refused
from harvester.steering import books, feed, points
from harvester.steering.definition import TaskDefinition
from harvester.steering.payloadspec import payload_specs
from harvester.steering.progress import Action, Counts, PointState, TaskState, act
from harvester.steering.tables import (
    LEASES,
    OF_A_TASK,
    PAYLOADS,
    POINTS,
    REQUESTS,
    SEGMENTS,
    TASKS,
)
from harvester.steering.tokens import Principal, Role
from harvester.steering.uploads import FileStore
from payload_runner.protocol import to_fields

_SUBMIT = "submit"  # sender of submissions in the table of requests


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked task, with the key that makes repeating its submission harmless."""

    definition: TaskDefinition
    key: str | None = None


def submit(
    connection: Connection,
    principal: Principal,
    submission: Submission,
    files: FileStore,
    now: float,
) -> int:
    """Enter a task; its number. The same key gives the same number.

    Raises:
        InputError: files of the task have not been uploaded.
    """
    before = _submitted_before(connection, principal, submission.key)
    if before is not None:
        return before
    definition = submission.definition
    _require_files(connection, definition, files)
    task = _insert_task(connection, principal, definition, now)
    _insert_segments(connection, task, definition)
    if submission.key is not None:
        connection.execute(
            insert(REQUESTS).values(
                owner=principal.user,
                sender=_SUBMIT,
                key=submission.key,
                answer=feed.dump({"task": task}),
                at=now,
            )
        )
    feed.log(connection, now, task, f"submitted by {principal.user}")
    feed.record(connection, now, [feed.Change(task, "submitted", {"name": definition.name})])
    return task


def find(connection: Connection, principal: Principal, task: str) -> Row[Any]:
    """The row of a task that the caller may see.

    Raises:
        NotFound: there is no such task.
        Forbidden: it is another user's.
    """
    row = None
    if task.isascii() and task.isdigit() and len(task) <= 9:
        row = connection.execute(select(TASKS).where(TASKS.c.id == int(task))).one_or_none()
    if row is None:
        raise NotFound(f"there is no task {task[:80]!r}; see: harvester task list")
    principal.require_owner(row.owner, f"task {task}")
    return row


def visible(connection: Connection, principal: Principal) -> list[int] | None:
    """The tasks that the caller may see; None for all of them."""
    if principal.role is Role.ADMIN:
        return None
    query = select(TASKS.c.id).where(TASKS.c.owner == principal.user)
    return list(connection.scalars(query))


def summaries(
    connection: Connection, principal: Principal, state: str | None, owner: str | None
) -> list[dict[str, Any]]:
    """Every task that the caller may see, the newest last."""
    query = select(TASKS).order_by(TASKS.c.id)
    if principal.role is not Role.ADMIN:
        query = query.where(TASKS.c.owner == principal.user)
    if state is not None:
        query = query.where(TASKS.c.state == state)
    if owner is not None:
        query = query.where(TASKS.c.owner == owner)
    return _summarise(connection, connection.execute(query).all())


def summary(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    """One task's TaskSummary."""
    (found,) = _summarise(connection, [row])
    return found


def details(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    """The summary with the definition, the segments and the newest of the log."""
    document = json.loads(row.document)
    query = select(SEGMENTS).where(SEGMENTS.c.task_id == row.id).order_by(SEGMENTS.c.number)
    segments = connection.execute(query).all()
    return summary(connection, row) | {
        "config": document.get("config"),
        "search_space": document.get("search_space"),
        "payload": document.get("payload"),
        "sampler": {"name": row.sampler, "options": json.loads(row.sampler_options)},
        "seed": row.seed,
        "files": document.get("files"),
        "segments": [_segment(connection, row, segment) for segment in segments],
        "log": feed.newest_log(connection, row.id),
    }


def apply(
    connection: Connection, row: Row[Any], action: Action, user: str, now: float
) -> dict[str, Any]:
    """Do what a user asks of a task; asking again changes nothing. Answers its summary.

    Raises:
        IllegalTransition: the task is past that.
    """
    before = TaskState(row.state)
    after = act(before, action)
    if action is Action.RETRY:
        _put_back(connection, row, now)
    if after is not before:
        books.set_task_state(connection, row.id, after, now, f"{action.value} by {user}")
    if action is Action.FINISH:
        books.cancel_points(connection, row.id, (PointState.WAITING,), now)
    if action is Action.KILL:
        _stop_leases(connection, row.id)
        books.cancel_points(connection, row.id, (PointState.WAITING, PointState.LEASED), now)
    books.end_tasks(connection, [row.id], now)
    fresh = connection.execute(select(TASKS).where(TASKS.c.id == row.id)).one()
    return summary(connection, fresh)


def remove(connection: Connection, row: Row[Any], now: float) -> None:
    """Delete a task that has ended, with all that belongs to it except uploaded files.

    Raises:
        Refused: it has not ended.
    """
    if not TaskState(row.state).is_over:
        raise Refused(f"task {row.id} is {row.state}; finish or kill it before deleting it")
    for table, task_id in OF_A_TASK:
        connection.execute(delete(table).where(task_id == row.id))
    connection.execute(delete(TASKS).where(TASKS.c.id == row.id))
    feed.record(connection, now, [feed.Change(row.id, "deleted", {"name": row.name})])


# --- submission ---


def _submitted_before(connection: Connection, principal: Principal, key: str | None) -> int | None:
    if key is None:
        return None
    query = select(REQUESTS.c.answer).where(
        REQUESTS.c.owner == principal.user, REQUESTS.c.sender == _SUBMIT, REQUESTS.c.key == key
    )
    answer = connection.scalar(query)
    return None if answer is None else int(json.loads(answer)["task"])


def _require_files(connection: Connection, definition: TaskDefinition, files: FileStore) -> None:
    missing = files.missing(connection, {file.sha256 for file in definition.files})
    problems = [
        Problem("task document", f"files[{at}]", file.name, f"upload its content first: {hint}")
        for at, file in enumerate(definition.files)
        if file.sha256 in missing and (hint := f"PUT /api/v1/files/{file.sha256}")
    ]
    if problems:
        raise InputError(problems)


def _insert_task(
    connection: Connection, principal: Principal, definition: TaskDefinition, now: float
) -> int:
    seed = definition.seed if definition.seed is not None else secrets.randbits(62)
    early_stopping = definition.payload.early_stopping
    values = {
        "name": definition.name,
        "owner": principal.user,
        "state": TaskState.RUNNING.value,
        "created_at": now,
        "document": feed.dump(definition.to_document()),
        "seed": seed,
        "priority": definition.payload.priority,
        "sampler": definition.sampler.name,
        "sampler_options": feed.dump(dict(definition.sampler.options)),
        "max_points": definition.max_points,
        "parallel": definition.parallel,
        "max_jobs": definition.charge_limit,
        "charge_limit": definition.charge_limit,
        "per_iteration": definition.points_per_iteration,
        "min_unevaluated": definition.min_unevaluated_points,
        "segments": len(definition.spaces),
        "sites": feed.dump(list(definition.sites)) if definition.sites else None,
        "early_stopping": early_stopping if early_stopping != "none" else None,
    }
    task = connection.scalar(insert(TASKS).returning(TASKS.c.id), values)
    return int(task)


def _insert_segments(connection: Connection, task: int, definition: TaskDefinition) -> None:
    specs = payload_specs(definition)
    _insert_payloads(connection, {spec.payload_id: to_fields(spec) for spec in specs.values()})
    connection.execute(
        insert(SEGMENTS),
        [
            {
                "task_id": task,
                "number": number,
                "name": name,
                # phpo numbers the models as the segments stand in segmentSpecFile.
                "model_id": None if name is None else feed.dump(number),
                "payload_id": spec.payload_id,
                "search_space": feed.dump(space.to_json()),
            }
            for number, ((name, spec), space) in enumerate(
                zip(specs.items(), definition.spaces, strict=True)
            )
        ],
    )


def _insert_payloads(connection: Connection, payloads: Mapping[str, Any]) -> None:
    query = select(PAYLOADS.c.payload_id).where(PAYLOADS.c.payload_id.in_(sorted(payloads)))
    known = set(connection.scalars(query))
    rows = [
        {"payload_id": payload_id, "fields": feed.dump(fields)}
        for payload_id, fields in payloads.items()
        if payload_id not in known
    ]
    if rows:
        connection.execute(insert(PAYLOADS), rows)


# --- actions ---


def _put_back(connection: Connection, row: Row[Any], now: float) -> None:
    """Failed points, and in a task that has ended cancelled ones too, wait again, as if new."""
    states = [PointState.FAILED]
    if TaskState(row.state).is_over:
        states.append(PointState.CANCELLED)
    moves, n = books.Moves(), 0
    for state in states:
        chosen = (POINTS.c.task_id == row.id) & (POINTS.c.state == state.value)
        for segment, size in books.segment_sizes(connection, chosen).items():
            moves.add(row.id, segment, state, PointState.WAITING, size)
            n += size
        fresh = {"tries": 0, "loss": None, "message": None, "metadata": None, "settled_at": None}
        connection.execute(
            update(POINTS).where(chosen).values(state=PointState.WAITING.value, **fresh)
        )
    moves.write(connection)
    if n:
        limit = row.charged_attempts + row.max_jobs
        connection.execute(update(TASKS).where(TASKS.c.id == row.id).values(charge_limit=limit))
        feed.log(connection, now, row.id, f"{n} points are tried again")


def _stop_leases(connection: Connection, task: int) -> None:
    connection.execute(
        update(LEASES)
        .where(LEASES.c.task_id == task, LEASES.c.state == "live")
        .values(state="cancelled", stop="cancelled")
    )


# --- views ---


def _summarise(connection: Connection, rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    counts = books.task_counts(connection, [row.id for row in rows])
    best = _best(connection, [row.id for row in rows])
    return [
        {
            "task": str(row.id),
            "name": row.name,
            "owner": row.owner,
            "state": row.state,
            "created": iso(row.created_at),
            "ended": None if row.ended_at is None else iso(row.ended_at),
            "points": _shown_counts(row.max_points * row.segments, counts[row.id]),
            "attempts": row.attempts,
            "charged_attempts": row.charged_attempts,
            "best": best.get(row.id),
            "parallel": row.parallel,
            "segments": row.segments,
        }
        for row in rows
    ]


def _shown_counts(most: int, counts: Counts) -> dict[str, int]:
    return {
        "max": most,
        "waiting": counts.waiting,
        "leased": counts.leased,
        "done": counts.done,
        "failed": counts.failed,
        "pruned": counts.pruned,
        "cancelled": counts.cancelled,
    }


def _best(connection: Connection, tasks: Sequence[int]) -> dict[int, dict[str, Any]]:
    query = (
        select(SEGMENTS.c.task_id, SEGMENTS.c.best_point, SEGMENTS.c.best_loss)
        .where(SEGMENTS.c.task_id.in_(tasks), SEGMENTS.c.best_loss.is_not(None))
        .order_by(SEGMENTS.c.task_id, SEGMENTS.c.best_loss)
    )
    found: dict[int, dict[str, Any]] = {}
    for row in connection.execute(query):
        if row.task_id not in found:
            found[row.task_id] = _best_point(connection, row.task_id, row)
    return found


def _best_point(connection: Connection, task: int, segment: Any) -> dict[str, Any]:
    return {
        "point": str(segment.best_point),
        "loss": segment.best_loss,
        "parameters": points.parameters(connection, task, segment.best_point),
    }


def _segment(connection: Connection, task: Row[Any], segment: Row[Any]) -> dict[str, Any]:
    best = None
    if segment.best_point is not None:
        best = _best_point(connection, task.id, segment)
    return {
        "name": segment.name,
        "points": _shown_counts(task.max_points, books.counts_of(segment)),
        "asks": segment.n_asks,
        "best": best,
    }
