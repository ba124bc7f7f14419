"""Leases of points, the payloads they name, and the requests for them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harvester.model import AttemptId, LeasedPoint, LeaseId, PayloadSpec, TaskId
from payload_runner.protocol import from_fields, to_fields


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease as the index holds it."""

    lease: LeaseId
    parameters: Any  # JSON from the central service
    payload_id: str
    segment: str | None
    priority: int
    attempts_before: int
    gone: bool
    stop: str | None
    settled_by: AttemptId | None


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for points whose answer is not in the ledger."""

    key: str
    points: int


class Leases:
    """The tables of leases, payloads and asks."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._specs: dict[str, PayloadSpec] = {}
        self._newest: tuple[TaskId, str] | None = None  # task and payload, where they are known

    def define(self, fields: dict[str, Any]) -> None:
        """Store a payload's definition."""
        spec = from_fields(PayloadSpec, fields)
        self._connection.execute(
            "INSERT OR REPLACE INTO payloads VALUES (?, ?)",
            (spec.payload_id, json.dumps(to_fields(spec))),
        )
        self._specs.pop(spec.payload_id, None)

    def payload(self, payload_id: str) -> PayloadSpec:
        """A payload's definition; KeyError if it was never given."""
        if payload_id not in self._specs:
            row = self._connection.execute(
                "SELECT spec FROM payloads WHERE payload_id = ?", (payload_id,)
            ).fetchone()
            if row is None:
                raise KeyError(payload_id)
            self._specs[payload_id] = from_fields(PayloadSpec, json.loads(row[0]))
        return self._specs[payload_id]

    def known_payloads(self) -> tuple[str, ...]:
        """The ids of all payloads defined here."""
        rows = self._connection.execute("SELECT payload_id FROM payloads ORDER BY payload_id")
        return tuple(row[0] for row in rows)

    def payloads_in_use(self) -> tuple[PayloadSpec, ...]:
        """The payloads of leases that are open."""
        rows = self._connection.execute("SELECT DISTINCT payload_id FROM leases WHERE closed = 0")
        return tuple(self.payload(payload_id) for (payload_id,) in rows.fetchall())

    def budgeted(self) -> tuple[tuple[TaskId, PayloadSpec], ...]:
        """Tasks with node-hours of their own that have open leases or sent the newest payload."""
        rows = self._connection.execute(
            "SELECT DISTINCT task, payload_id FROM leases WHERE closed = 0"
        )
        newest = self.newest_payload()
        found = {TaskId(task): self.payload(payload_id) for task, payload_id in rows.fetchall()}
        if newest is not None:
            found.setdefault(TaskId(newest[0]), newest[1])
        return tuple((task, spec) for task, spec in found.items() if spec.node_hours is not None)

    def newest_payload(self) -> tuple[str, PayloadSpec] | None:
        """Task and payload of the newest lease: what the next points will probably be like."""
        row = self._connection.execute(
            "SELECT value FROM meta WHERE key = 'newest_payload'"
        ).fetchone()
        if row is None:
            return None
        task, payload_id = json.loads(row[0])
        return task, self.payload(payload_id)

    def ask(self, key: str, points: int) -> None:
        """Remember that points are being asked for."""
        self._connection.execute("INSERT OR IGNORE INTO asks VALUES (?, ?, 0)", (key, points))

    def answer(self, key: str) -> None:
        """The answer of a request is in the ledger."""
        self._connection.execute("UPDATE asks SET answered = 1 WHERE key = ?", (key,))

    def open_asks(self) -> tuple[Ask, ...]:
        """Requests without an answer, oldest first."""
        rows = self._connection.execute(
            "SELECT key, points FROM asks WHERE answered = 0 ORDER BY rowid"
        )
        return tuple(Ask(*row) for row in rows)

    def asked(self) -> int:
        """How many requests were ever made, for the next one's key."""
        # None is ever removed, and the largest number is found without counting.
        return int(self._connection.execute("SELECT max(rowid) FROM asks").fetchone()[0] or 0)

    def grant(self, point: LeasedPoint) -> bool:
        """Store a lease; False if it is known already."""
        done = self._connection.execute(
            "INSERT OR IGNORE INTO leases (lease, task, point, parameters, payload_id, segment,"
            " priority, attempts_before, expires_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                point.lease,
                point.task,
                point.point,
                json.dumps(point.parameters),
                point.payload_id,
                point.segment,
                point.priority,
                point.attempts_before,
                point.expires_s,
            ),
        )
        if self._newest != (point.task, point.payload_id):
            self._newest = (point.task, point.payload_id)
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES ('newest_payload', ?)",
                (json.dumps(self._newest),),
            )
        return done.rowcount > 0

    def reread(self) -> None:
        """Forget what was read: a transaction was undone."""
        self._newest = None
        self._specs.clear()

    def get(self, lease: LeaseId) -> LeaseRow:
        """A lease by its id; KeyError if it was never granted."""
        row = self._connection.execute(
            "SELECT lease, parameters, payload_id, segment, priority, attempts_before, gone, stop,"
            " settled_by FROM leases WHERE lease = ?",
            (lease,),
        ).fetchone()
        if row is None:
            raise KeyError(lease)
        values = (row[0], json.loads(row[1]), *row[2:6], bool(row[6]), *row[7:])
        return LeaseRow(*values)

    def knows(self, lease: LeaseId) -> bool:
        """Whether the lease was granted to us."""
        query = "SELECT 1 FROM leases WHERE lease = ?"
        return self._connection.execute(query, (lease,)).fetchone() is not None

    def to_renew(self) -> tuple[LeaseId, ...]:
        """Leases that we hold and whose outcome the service does not have."""
        rows = self._connection.execute("SELECT lease FROM leases WHERE closed = 0 AND gone = 0")
        return tuple(LeaseId(row[0]) for row in rows)

    def shortest_expiry_s(self) -> float | None:
        """The shortest life of the leases to renew; None when there are none."""
        row = self._connection.execute(
            "SELECT min(expires_s) FROM leases WHERE closed = 0 AND gone = 0"
        ).fetchone()
        return None if row[0] is None else float(row[0])

    def mark_gone(self, leases: Sequence[LeaseId]) -> None:
        """The service no longer counts on us for these."""
        self._connection.executemany(
            "UPDATE leases SET gone = 1 WHERE lease = ?", [(lease,) for lease in leases]
        )

    def mark_stop(self, lease: LeaseId, why: str) -> None:
        """The service wants a point stopped: ``pruned`` or ``cancelled``."""
        self._connection.execute("UPDATE leases SET stop = ? WHERE lease = ?", (why, lease))

    def forget_settled(self, before: float) -> None:
        """Forget closed leases with all that is known of their attempts.

        Only those whose attempts are all delivered, have ended before that instant, and ran in
        allocations whose directories are gone. Of the requests that were answered the newest stays,
        for its number.
        """
        gone = self._connection.execute(
            "SELECT lease FROM leases l WHERE closed = 1 AND NOT EXISTS (SELECT 1 FROM attempts a"
            " LEFT JOIN allocations b ON b.tag = a.tag WHERE a.lease = l.lease AND (a.delivered < 2"
            " OR b.discard < 2 OR coalesce(a.ended_at, ?1) >= ?1))",
            (before,),
        ).fetchall()
        of_lease = "(SELECT attempt FROM attempts WHERE lease = ?)"
        for statement in (
            f"DELETE FROM reports WHERE attempt IN {of_lease}",
            f"DELETE FROM history WHERE name IN {of_lease}",
            "DELETE FROM attempts WHERE lease = ?",
            "DELETE FROM leases WHERE lease = ?",
        ):
            self._connection.executemany(statement, gone)
        self._connection.execute(
            "DELETE FROM asks WHERE answered = 1 AND rowid < (SELECT max(rowid) FROM asks)"
        )

    def settle(self, lease: LeaseId, attempt: AttemptId) -> None:
        """An attempt is the lease's outcome; the first one stays it."""
        self._connection.execute(
            "UPDATE leases SET settled_by = ? WHERE lease = ? AND settled_by IS NULL",
            (attempt, lease),
        )

    def close(self, attempt: AttemptId) -> None:
        """The service has taken the outcome of the lease that this attempt settled."""
        self._connection.execute(
            "UPDATE leases SET closed = 1 WHERE settled_by = ?1"
            " AND lease = (SELECT lease FROM attempts WHERE attempt = ?1)",  # by its key
            (attempt,),
        )
