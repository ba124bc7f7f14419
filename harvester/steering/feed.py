"""What happened: the change feed that clients follow, and each task's log for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, insert, select

from harvester.clock import iso
from harvester.steering.tables import CHANGES, TASK_LOG

# Made once: json.dumps makes a new encoder at each call that is not wholly at its defaults.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that changed. ``fields`` is JSON."""

    task: int
    what: str  # submitted state asked leased expired points deleted
    fields: Mapping[str, Any] = field(default_factory=dict)


def record(connection: Connection, at: float, changes: Iterable[Change]) -> None:
    """Append changes to the feed."""
    rows = [
        {"at": at, "task_id": item.task, "what": item.what, "fields": dump(item.fields)}
        for item in changes
    ]
    if rows:
        connection.execute(insert(CHANGES), rows)


def log(connection: Connection, at: float, task: int, *texts: str) -> None:
    """Append lines to a task's log."""
    if texts:
        connection.execute(
            insert(TASK_LOG), [{"task_id": task, "at": at, "text": text} for text in texts]
        )


def newest_log(connection: Connection, task: int, limit: int = 200) -> list[dict[str, str]]:
    """The newest lines of a task's log, oldest first."""
    query = (
        select(TASK_LOG.c.at, TASK_LOG.c.text)
        .where(TASK_LOG.c.task_id == task)
        .order_by(TASK_LOG.c.id.desc())
        .limit(limit)
    )
    rows = connection.execute(query).all()
    return [{"at": iso(row.at), "text": row.text} for row in reversed(rows)]


def changes_after(
    connection: Connection, since: int, limit: int, tasks: Iterable[int] | None
) -> list[dict[str, Any]]:
    """Changes with a higher sequence number, of the given tasks or of all (None)."""
    query = select(CHANGES).where(CHANGES.c.seq > since).order_by(CHANGES.c.seq).limit(limit)
    if tasks is not None:
        query = query.where(CHANGES.c.task_id.in_(tuple(tasks)))
    return [
        json.loads(row.fields)
        | {"seq": row.seq, "at": iso(row.at), "task": str(row.task_id), "what": row.what}
        for row in connection.execute(query)
    ]


def dump(value: Any) -> str:
    """JSON as the tables keep it: compact, finite numbers only."""
    return _ENCODER.encode(value)
