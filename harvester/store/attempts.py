"""Attempts: their lives, outcomes, and what is still to be done about them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harvester import lifecycle
from harvester.errors import IllegalTransition
from harvester.model import (
    Attempt,
    AttemptId,
    AttemptState,
    Blame,
    FileRef,
    LeaseId,
    PointId,
    RecordRef,
    Tag,
)
from harvester.model import TaskId as TaskId
from harvester.planning.nodes import NodeEnd, NodeRun
from harvester.store.history import Change, History
from harvester.store.sums import Sums
from payload_runner.protocol import from_fields, to_fields

_COLUMNS = (
    "attempt, lease, task, point, number, state, blame, reason, tag, node, loss, started_at,"
    " ended_at, resumed_from, checkpoint, progress, delivered, proof"
)
# Run time that checkpoints have carried over: of the runs of the same lease with progress.
_DONE = (
    "(SELECT coalesce(sum(b.duration_s), 0.0) FROM attempts b"
    " WHERE b.lease = a.lease AND b.progress = 1 AND b.attempt != a.attempt)"
)
# The longest run of the same point, under whatever lease, that ended before the payload did: cut
# off by walltime without anything saved, or by its own time limit.
_CUT = (
    "(SELECT coalesce(max(b.duration_s), 0.0) FROM attempts b"
    " WHERE b.task = a.task AND b.point = a.point AND ((b.blame = 'walltime' AND b.progress = 0)"
    " OR (b.state = 'timed_out' AND b.blame = 'point')))"
)
# Runs that prove the site to be well, whatever came of the point. As the index of that name has it.
_SOUND = "(state IN ('succeeded', 'pruned', 'timed_out') OR (state = 'failed' AND blame = 'point'))"
_COUNTED = ("leased", "ordered", "running", "ended", "delivered")
_LIVE = "state IN ('leased', 'ordered', 'running')"


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """A leased, ordered or running attempt with what planning needs of its lease."""

    attempt: AttemptId
    task: TaskId
    state: AttemptState
    since: float
    started_at: float | None
    tag: Tag | None
    payload_id: str
    priority: int
    done_s: float  # run time of its predecessors that its checkpoint has saved
    cut_s: float  # the longest run of its point that was cut off, see _CUT
    returned_by: tuple[Tag, ...]  # allocations that would not start it


@dataclass(frozen=True, slots=True)
class Running:
    """A running attempt for the status view."""

    attempt: AttemptId
    task: TaskId
    point: PointId
    tag: Tag | None
    node: str | None
    since: float | None
    last_step: int | None
    last_loss: float | None


class Attempts:
    """The table of attempts. Only ``step`` writes a state."""

    def __init__(self, connection: sqlite3.Connection, history: History, sums: Sums) -> None:
        self._connection = connection
        self._history = history
        self._sums = sums

    def add(
        self,
        attempt: AttemptId,
        of: tuple[LeaseId, TaskId, PointId],
        number: int,
        at: float,
        why: str,
        *,
        checkpoint: FileRef | None = None,
        resumed_from: AttemptId | None = None,
    ) -> None:
        """A new attempt in state LEASED; one that is known already is left alone."""
        done = self._connection.execute(
            "INSERT OR IGNORE INTO attempts (attempt, lease, task, point, number, state, since,"
            " resumed_from, checkpoint) VALUES (?, ?, ?, ?, ?, 'leased', ?, ?, ?)",
            (attempt, *of, number, at, resumed_from, _dump(checkpoint)),
        )
        if done.rowcount:
            self._sums.tally(of[1], "leased", 1)
            self._history.add("attempt", attempt, Change(at, None, "leased", why))

    def step(
        self,
        attempt: AttemptId,
        to: AttemptState,
        at: float,
        why: str,
        columns: Mapping[str, Any] | None = None,
    ) -> bool:
        """Move an attempt, setting ``columns`` along with it; False if it is there already.

        Raises:
            IllegalTransition: its life has no such step.
        """
        row = self._connection.execute(
            "SELECT state, task, lease, duration_s FROM attempts WHERE attempt = ?", (attempt,)
        ).fetchone()
        if row is None:
            raise KeyError(attempt)
        current = AttemptState(row[0])
        try:
            moved = lifecycle.step_attempt(current, to)
        except IllegalTransition as error:
            raise IllegalTransition(f"{error}{self._history.text(attempt)}") from None
        if moved is None:
            return False
        if columns and "duration_s" in columns:
            self._spend(row[1], row[2], columns["duration_s"] - row[3])
        self.change(attempt, {"state": to.value, "since": at, **(columns or {})})
        self._sums.tally(row[1], current.value, -1)
        self._sums.tally(row[1], to.value, 1)
        self._history.add("attempt", attempt, Change(at, current.value, to.value, why))
        return True

    def change(self, attempt: AttemptId, columns: Mapping[str, Any]) -> None:
        """Set columns other than the state."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self._connection.execute(
            f"UPDATE attempts SET {names} WHERE attempt = ?", (*columns.values(), attempt)
        )

    def state(self, attempt: AttemptId) -> AttemptState | None:
        """The state of an attempt, None if there is none of that id."""
        row = self._connection.execute(
            "SELECT state FROM attempts WHERE attempt = ?", (attempt,)
        ).fetchone()
        return None if row is None else AttemptState(row[0])

    def get(self, attempt: AttemptId) -> Attempt:
        """An attempt by its id; KeyError if there is none."""
        found = self._select("attempt = ?", (attempt,))
        if not found:
            raise KeyError(attempt)
        return found[0]

    def lease_of(self, attempt: AttemptId) -> LeaseId:
        """The lease that an attempt belongs to; KeyError if there is no such attempt."""
        row = self._connection.execute(
            "SELECT lease FROM attempts WHERE attempt = ?", (attempt,)
        ).fetchone()
        if row is None:
            raise KeyError(attempt)
        return LeaseId(row[0])

    def of_lease(self, lease: LeaseId) -> tuple[Attempt, ...]:
        """The attempts of a lease in the order of their numbers."""
        return self._select("lease = ? ORDER BY number", (lease,))

    def save_checkpoint(self, attempt: AttemptId, ref: FileRef) -> None:
        """A checkpoint of the attempt was committed."""
        self.change(attempt, {"saved": _dump(ref)})

    def keep_outcome(self, attempt: AttemptId, fields: Mapping[str, Any]) -> None:
        """Keep the runner's last word, in place of what was kept, until it is delivered."""
        self.change(attempt, {"outcome": json.dumps(fields)})

    def add_return(self, attempt: AttemptId, tag: Tag) -> None:
        """An allocation will not start it: it must not be ordered there again."""
        self._connection.execute(
            "UPDATE attempts SET returned_by = coalesce(returned_by || ',', '') || ?"
            " WHERE attempt = ?",
            (tag, attempt),
        )

    def remark(self, attempt: AttemptId, at: float, why: str) -> None:
        """Add to the attempt's past something that did not change its state."""
        state = self.state(attempt)
        if state is not None:
            self._history.add("attempt", attempt, Change(at, state.value, state.value, why))

    def saved(self, attempt: AttemptId) -> FileRef | None:
        """The newest checkpoint that the attempt itself committed."""
        row = self._connection.execute(
            "SELECT saved FROM attempts WHERE attempt = ?", (attempt,)
        ).fetchone()
        return _load(row[0])

    def drop_saved(self, tag: Tag) -> None:
        """The checkpoints of attempts that ran in an allocation are no more."""
        self._connection.execute(
            "UPDATE attempts SET saved = NULL WHERE tag = ? AND started_at IS NOT NULL", (tag,)
        )

    def needing(self) -> Iterator[tuple[Tag | None, FileRef | None, FileRef | None]]:
        """Allocation, start and newest checkpoint of each attempt whose lease is open, or which is
        not judged or not delivered: what lies there is still needed.
        """
        for where in (
            f"judged = 0 AND NOT {_LIVE}",
            "judged = 1 AND delivered < 2",
            _LIVE,
            "lease IN (SELECT lease FROM leases WHERE closed = 0)",
        ):
            rows = self._connection.execute(
                f"SELECT tag, checkpoint, saved FROM attempts WHERE {where}"
            )
            for tag, checkpoint, saved in rows:
                yield tag, _load(checkpoint), _load(saved)

    def saved_before(self, task: TaskId, point: PointId) -> tuple[AttemptId, FileRef] | None:
        """The checkpoint that the newest attempt at a point left, under whatever lease.

        None if that attempt committed none itself: where it had started from an older one and got
        no further, that one may be what it failed by, and the next starts from zero.
        """
        row = self._connection.execute(
            "SELECT attempt, saved FROM attempts WHERE task = ? AND point = ?"
            " ORDER BY number DESC LIMIT 1",
            (task, point),
        ).fetchone()
        saved = None if row is None else _load(row[1])
        return None if saved is None else (AttemptId(row[0]), saved)

    def outcome(self, attempt: AttemptId) -> dict[str, Any]:
        """The fields of its AttemptEnded event; empty when there was none."""
        row = self._connection.execute(
            "SELECT outcome FROM attempts WHERE attempt = ?", (attempt,)
        ).fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row[0] else {}
        return found

    def unjudged(self, limit: int = 1000) -> tuple[Attempt, ...]:
        """Ended attempts about which nothing was decided yet."""
        return self._select(f"judged = 0 AND NOT {_LIVE} LIMIT {limit:d}")

    def unwanted(self) -> tuple[Attempt, ...]:
        """Live attempts to be stopped, without a stop order yet."""
        # The plus keeps SQLite from walking all live attempts instead of the few unwanted ones.
        return self._select(
            "unwanted IS NOT NULL AND stop_ordered = 0 AND +state IN"
            " ('leased', 'ordered', 'running')"
        )

    def unwanted_why(self, attempt: AttemptId) -> str:
        """As what an unwanted attempt is to end."""
        row = self._connection.execute(
            "SELECT unwanted FROM attempts WHERE attempt = ?", (attempt,)
        ).fetchone()
        return str(row[0])

    def mark_unwanted(self, lease: LeaseId, outcome: str) -> None:
        """All live attempts of a lease are to be stopped."""
        self._connection.execute(
            f"UPDATE attempts SET unwanted = ? WHERE lease = ? AND {_LIVE}", (outcome, lease)
        )

    def mark_unstarted_unwanted(self, lease: LeaseId) -> None:
        """Attempts of a lease that do not run yet are not to be started any more."""
        self._connection.execute(
            "UPDATE attempts SET unwanted = 'cancelled' WHERE lease = ? AND state = 'leased'",
            (lease,),
        )

    def deliverable(self, limit: int) -> tuple[Attempt, ...]:
        """Judged attempts to tell the service, oldest end first.

        A lost one waits until its lease is settled: until then a late result may take its place.
        """
        return self._select(
            "judged = 1 AND delivered < 2 AND uploads = 0 AND (state != 'lost' OR EXISTS (SELECT 1"
            " FROM leases l WHERE l.lease = attempts.lease AND l.settled_by IS NOT NULL))"
            f" ORDER BY ended_at LIMIT {limit:d}"
        )

    def to_upload(self, but: Collection[AttemptId] = ()) -> Attempt | None:
        """An attempt with files that the service does not have yet, none of ``but``."""
        waiting = "judged = 1 AND delivered < 2 AND uploads > 0 ORDER BY attempt LIMIT"
        found = self._select(f"{waiting} {len(but) + 1:d}")
        return next((attempt for attempt in found if attempt.attempt not in but), None)

    def undelivered(self) -> tuple[int, float | None]:
        """How many outcomes wait for the service, and since when the oldest does."""
        row = self._connection.execute(
            "SELECT count(*), min(since) FROM attempts WHERE judged = 1 AND delivered < 2"
            " AND state != 'lost'"
        ).fetchone()
        return int(row[0]), row[1]

    def in_allocation(self, tag: Tag) -> tuple[Attempt, ...]:
        """Attempts ordered to or running in an allocation."""
        # The second condition names the index.
        return self._select(f"tag = ? AND state IN ('ordered', 'running') AND {_LIVE}", (tag,))

    def ran_in(self, tag: Tag) -> bool:
        """Whether any attempt was started in this allocation."""
        found = self._connection.execute(
            "SELECT 1 FROM attempts WHERE tag = ? AND started_at IS NOT NULL LIMIT 1", (tag,)
        )
        return found.fetchone() is not None

    def live(self) -> tuple[LiveAttempt, ...]:
        """All leased, ordered and running attempts that are wanted, oldest first."""
        rows = self._connection.execute(
            "SELECT a.attempt, a.task, a.state, a.since, a.started_at, a.tag, l.payload_id,"
            f" l.priority, CASE WHEN a.checkpoint IS NULL THEN 0.0 ELSE {_DONE} END,"
            f" CASE WHEN a.number = 1 THEN 0.0 ELSE {_CUT} END, a.returned_by"
            " FROM attempts a JOIN leases l ON l.lease = a.lease"
            " WHERE a.state IN ('leased', 'ordered', 'running') AND a.unwanted IS NULL"
            " ORDER BY a.since, a.attempt"
        )
        return tuple(_live(row) for row in rows)

    def site_faults(self, task: TaskId, newest: int) -> tuple[Attempt, ...]:
        """The newest failures and losses by the site's fault since the task's last sound run.

        Oldest first.
        """
        found = self._select(
            "state IN ('failed', 'lost') AND blame = 'site' AND task = ?1 AND ended_at >"
            f" coalesce((SELECT max(ended_at) FROM attempts WHERE {_SOUND} AND task = ?1), 0.0)"
            f" ORDER BY ended_at DESC LIMIT {newest:d}",
            (task,),
        )
        return found[::-1]

    def node_ends(self, since: float, newest: int) -> tuple[NodeEnd, ...]:
        """The newest failures and successes since then of attempts on one node; () if none failed.

        So many of each at most; the failures are those blamed on point or node.
        """
        failures = self._node_ends("state = 'failed' AND blame IN ('point', 'node')", since, newest)
        if not failures:
            return ()
        return (*failures, *self._node_ends("state = 'succeeded'", since, newest))

    def node_runs(self, oldest: int) -> tuple[NodeRun, ...]:
        """The attempts that have run for the longest, of those on one node."""
        rows = self._connection.execute(
            "SELECT node, tag, task, point, started_at FROM attempts WHERE state = 'running'"
            f" AND {_LIVE} AND started_at IS NOT NULL AND node IS NOT NULL"
            f" AND instr(node, ',') = 0 ORDER BY since LIMIT {oldest:d}"
        )
        return tuple(
            NodeRun(node=row[0], tag=row[1], task=row[2], point=row[3], started_at=row[4])
            for row in rows
        )

    def _node_ends(self, which: str, since: float, newest: int) -> tuple[NodeEnd, ...]:
        rows = self._connection.execute(
            "SELECT node, tag, task, point, blame, duration_s, ended_at FROM attempts"
            f" WHERE {which} AND ended_at > ? AND node IS NOT NULL AND instr(node, ',') = 0"
            f" ORDER BY ended_at DESC LIMIT {newest:d}",
            (since,),
        )
        return tuple(
            NodeEnd(
                node=row[0],
                tag=row[1],
                task=row[2],
                point=row[3],
                blame=None if row[4] is None else Blame(row[4]),
                duration_s=row[5],
                ended_at=row[6],
            )
            for row in rows
        )

    def running(self, limit: int) -> tuple[Running, ...]:
        """Running attempts for the status view, those that have run for the longest first."""
        rows = self._connection.execute(
            "SELECT attempt, task, point, tag, node, started_at, last_step, last_loss"
            f" FROM attempts WHERE state = 'running' AND {_LIVE} ORDER BY since LIMIT ?",
            (limit,),
        )
        return tuple(Running(*row) for row in rows)

    def counts(self) -> dict[str, int]:
        """How many attempts there are in each state."""
        found: dict[str, int] = {}
        for _, state, number in self._sums.tallies():
            if state != "delivered" and number > 0:
                found[state] = found.get(state, 0) + number
        return found

    def counts_by_task(self) -> dict[TaskId, dict[str, int]]:
        """Task -> leased, ordered, running, ended, delivered."""
        found: dict[TaskId, dict[str, int]] = {}
        for task, state, number in self._sums.tallies():
            counts = found.setdefault(task, dict.fromkeys(_COUNTED, 0))
            counts[state if state in _COUNTED else "ended"] += number
        return found

    def mark_delivering(self, attempts: Iterable[AttemptId]) -> None:
        """Their outcomes are about to be told to the service."""
        self._connection.executemany(
            "UPDATE attempts SET delivered = 1 WHERE attempt = ?", [(name,) for name in attempts]
        )

    def mark_delivered(self, attempt: AttemptId, verdict: str) -> None:
        """The service has given its receipt; what was kept for telling it may go.

        Not where a late word came while the outcome was under way: that has yet to be told.
        """
        row = self._connection.execute(
            "SELECT task, told FROM attempts WHERE attempt = ? AND delivered = 1", (attempt,)
        ).fetchone()
        if row is None:
            return
        self.change(attempt, {"delivered": 2, "verdict": verdict, "outcome": None, "told": 1})
        self._sums.tally(row[0], "delivered", 1 - row[1])

    def durations(self, newest: int) -> dict[TaskId, list[float]]:
        """Task -> durations of its newest successes, the runs that they resumed included."""
        rows = self._connection.execute(
            f"SELECT a.task, a.duration_s + {_DONE} FROM attempts a"
            " WHERE a.state = 'succeeded' AND a.duration_s > 0 ORDER BY a.ended_at DESC LIMIT ?",
            (newest,),
        )
        found: dict[TaskId, list[float]] = {}
        for task, duration in rows:
            found.setdefault(task, []).append(duration)
        return found

    def spent_s(self, task: TaskId) -> dict[str, float]:
        """Payload -> run time of the task's attempts that have ended, whatever their outcome."""
        return self._sums.spent_s(task)

    def done_s(self, attempt: AttemptId) -> float:
        """Run time that the attempt's checkpoint carries over from its predecessors."""
        row = self._connection.execute(
            f"SELECT {_DONE} FROM attempts a WHERE a.attempt = ? AND a.checkpoint IS NOT NULL",
            (attempt,),
        ).fetchone()
        return 0.0 if row is None else float(row[0])

    def add_reports(self, attempt: AttemptId, values: Iterable[Mapping[str, Any]]) -> None:
        """Keep metrics for the service; the newest value of a step replaces older ones."""
        rows = [(attempt, value["step"], json.dumps(value)) for value in values if "step" in value]
        self._connection.executemany("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", rows)

    def pending_reports(self, limit: int) -> tuple[tuple[AttemptId, dict[str, Any]], ...]:
        """Metrics that the service has not been told."""
        rows = self._connection.execute(
            "SELECT attempt, fields FROM reports ORDER BY attempt, step LIMIT ?", (limit,)
        )
        return tuple((attempt, json.loads(fields)) for attempt, fields in rows)

    def drop_reports(self, told: Iterable[tuple[AttemptId, dict[str, Any]]]) -> None:
        """Forget metrics that were told, unless a newer value of the step came meanwhile."""
        self._connection.executemany(
            "DELETE FROM reports WHERE attempt = ? AND step = ? AND fields = ?",
            [(attempt, value["step"], json.dumps(value)) for attempt, value in told],
        )

    def _spend(self, task: TaskId, lease: LeaseId, seconds: float) -> None:
        row = self._connection.execute(
            "SELECT payload_id FROM leases WHERE lease = ?", (lease,)
        ).fetchone()
        if row is not None:
            self._sums.spend(task, row[0], seconds)

    def _select(self, where: str, arguments: tuple[Any, ...] = ()) -> tuple[Attempt, ...]:
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM attempts WHERE {where}", arguments)
        return tuple(_attempt(row) for row in rows)


def _live(row: tuple[Any, ...]) -> LiveAttempt:
    returned_by = tuple(row[10].split(",")) if row[10] else ()
    return LiveAttempt(*(row[0], row[1], AttemptState(row[2]), *row[3:10], returned_by))


def _attempt(row: tuple[Any, ...]) -> Attempt:
    return Attempt(
        attempt=row[0],
        lease=row[1],
        task=row[2],
        point=row[3],
        number=row[4],
        state=AttemptState(row[5]),
        blame=None if row[6] is None else Blame(row[6]),
        reason=row[7],
        tag=row[8],
        node=row[9],
        loss=row[10],
        started_at=row[11],
        ended_at=row[12],
        resumed_from=row[13],
        checkpoint=_load(row[14]),
        progress=bool(row[15]),
        delivered=row[16] == 2,
        proof=None if row[17] is None else from_fields(RecordRef, json.loads(row[17])),
    )


def _dump(ref: FileRef | None) -> str | None:
    return None if ref is None else json.dumps(to_fields(ref))


def _load(text: str | None) -> FileRef | None:
    return None if text is None else from_fields(FileRef, json.loads(text))
