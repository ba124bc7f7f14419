"""What attempts came to: each told result is judged once, recorded, and answered by a receipt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, or_, select, update

from harvester.central.port import Receipt, Result
from harvester.model import AttemptState, Blame
from harvester.steering import books, feed
from harvester.steering.attempts import attempt_row
from harvester.steering.leases import Grant, parse_lease
from harvester.steering.progress import (
    TRIES,
    Outcome,
    PointState,
    Standing,
    TaskState,
    judge,
    settle,
)
from harvester.steering.tables import (
    ATTEMPTS,
    FILES,
    LEASES,
    POINTS,
    RESULT_FILES,
    SEGMENTS,
    TASKS,
)
from harvester.steering.tokens import Principal, Role
from payload_runner.protocol import METADATA_LIMIT_BYTES

_OPEN_ENDED = (TaskState.RUNNING.value, TaskState.PAUSED.value)
_STATES = {state.value: state for state in AttemptState}
_BLAMES = {blame.value: blame for blame in Blame}
COUNTED, RECORDED, REFUSED = "counted", "recorded", "refused"


def deliver(
    connection: Connection,
    principal: Principal,
    harvester: str,
    results: Sequence[Result],
    now: float,
) -> tuple[Receipt, ...]:
    """Take a batch of results; telling one again changes nothing."""
    batch = _Batch(connection, principal, harvester, now)
    batch.load(results)
    receipts = tuple(batch.take(result) for result in results)
    batch.write()
    return receipts


@dataclass(slots=True)
class _Point:
    """A point while a batch is applied to it."""

    row: Row[Any]
    standing: Standing
    attempts: int
    message: str | None = None
    metadata: str | None = None


@dataclass(slots=True)
class _Lease:
    holder: str
    state: str


@dataclass(slots=True)
class _Known:
    """What is known of an attempt from an earlier result."""

    n: int
    state: AttemptState
    final: bool

    def covers(self, result: Result) -> bool:
        """Whether a result brings nothing new.

        A lost attempt may turn up, and a lease that went on may end with its last attempt.
        """
        if self.final and self.state is not AttemptState.LOST:
            return True
        return self.state.value == result.state and self.final == result.final


@dataclass(slots=True)
class _Batch:
    connection: Connection
    principal: Principal
    harvester: str
    now: float
    tasks: dict[int, Row[Any]] = field(default_factory=dict)
    points: dict[tuple[int, int], _Point] = field(default_factory=dict)
    leases: dict[Grant, _Lease] = field(default_factory=dict)
    known: dict[str, _Known] = field(default_factory=dict)
    new_attempts: dict[str, dict[str, Any]] = field(default_factory=dict)
    changed_attempts: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    moves: books.Moves = field(default_factory=books.Moves)
    changes: dict[int, list[dict[str, Any]]] = field(default_factory=dict)  # points by task
    log: list[tuple[int, str]] = field(default_factory=list)
    moved: set[tuple[int, int]] = field(default_factory=set)
    ended_leases: list[Grant] = field(default_factory=list)
    charged: dict[int, int] = field(default_factory=dict)

    # --- before ---

    def load(self, results: Sequence[Result]) -> None:
        """Read everything that the batch touches, in a few queries."""
        numbers: dict[int, set[int]] = {}
        for result in results:
            grant = parse_lease(result.lease)
            if grant is not None:
                numbers.setdefault(grant.task, set()).add(grant.point)
        query = select(TASKS).where(TASKS.c.id.in_(sorted(numbers)))
        self.tasks = {row.id: row for row in self.connection.execute(query)}
        for task in self.tasks:
            self._load_points(task, sorted(numbers[task]))
        self._load_attempts([result.attempt for result in results])

    def _load_points(self, task: int, numbers: list[int]) -> None:
        points = select(POINTS).where(POINTS.c.task_id == task, POINTS.c.number.in_(numbers))
        for row in self.connection.execute(points):
            standing = Standing(PointState(row.state), row.tries, row.loss)
            self.points[task, row.number] = _Point(row, standing, row.attempts)
        leases = select(LEASES).where(LEASES.c.task_id == task, LEASES.c.point.in_(numbers))
        for row in self.connection.execute(leases):
            grant = Grant(task, row.point, row.grant_no)
            self.leases[grant] = _Lease(row.holder, row.state)

    def _load_attempts(self, attempts: list[str]) -> None:
        query = select(ATTEMPTS.c.attempt, ATTEMPTS.c.n, ATTEMPTS.c.state, ATTEMPTS.c.final).where(
            ATTEMPTS.c.attempt.in_(attempts)
        )
        for row in self.connection.execute(query):
            self.known[row.attempt] = _Known(row.n, AttemptState(row.state), row.final)

    # --- one result ---

    def take(self, result: Result) -> Receipt:
        """Judge one result."""
        grant = parse_lease(result.lease)
        fault = _fault(result) or self._stranger(grant, result)
        if fault or grant is None:
            return Receipt(result.attempt, REFUSED, fault)
        known = self.known.get(result.attempt)
        if known is not None and known.covers(result):
            return Receipt(result.attempt, RECORDED, "known already")
        counted, reason = self._settle(grant, result)
        self._record(grant, result, known, counted)
        return Receipt(result.attempt, COUNTED if counted else RECORDED, reason)

    def _stranger(self, grant: Grant | None, result: Result) -> str:
        """Why this lease is not one that the caller can tell of; empty if it is."""
        if grant is None:
            return f"{result.lease!r:.80} is not a lease id"
        if grant.task not in self.tasks:
            return f"there is no task {grant.task}"
        lease = self.leases.get(grant)
        if lease is None:
            return f"lease {grant} was never given out"
        if self.principal.role is not Role.ADMIN and lease.holder != self.principal.user:
            return f"lease {grant} is held by another user"
        return ""

    def _settle(self, grant: Grant, result: Result) -> tuple[bool, str]:
        if not result.final:
            return False, "the lease goes on"
        lease, point = self.leases[grant], self.points[grant.task, grant.point]
        current = lease.state == "live"
        if current:
            lease.state = "settled"
            self.ended_leases.append(grant)
        outcome = judge(_STATES[result.state], _BLAMES.get(result.blame or ""))
        open_ended = self.tasks[grant.task].state in _OPEN_ENDED
        after = settle(point.standing, outcome, result.loss, current=current, open_ended=open_ended)
        if after is None:
            return False, "the point was settled before"
        if outcome.is_charged:
            self.charged[grant.task] = self.charged.get(grant.task, 0) + 1
        self._move(grant, point, after, outcome, result)
        return True, ""

    def _move(
        self, grant: Grant, point: _Point, after: Standing, outcome: Outcome, result: Result
    ) -> None:
        before, point.standing = point.standing, after
        key = (grant.task, grant.point)
        self.moved.add(key)
        if after.state is not before.state:
            self.moves.add(grant.task, point.row.segment, before.state, after.state)
        if after.state.is_settled:
            point.message = result.message or result.reason
            point.metadata = self._metadata(grant, result)
        fields = {"point": str(grant.point), "state": after.state.value, "loss": after.loss}
        self.changes.setdefault(grant.task, []).append(fields)
        if outcome is Outcome.CHARGED:
            used = f"try {after.tries} of {TRIES}"
            self.log.append((grant.task, f"point {grant.point} failed ({used}): {result.reason}"))

    def _metadata(self, grant: Grant, result: Result) -> str | None:
        if result.metadata is None:
            return None
        text = feed.dump(result.metadata)
        if len(text) <= METADATA_LIMIT_BYTES:
            return text
        dropped = f"metadata of {len(text)} bytes dropped; the limit is {METADATA_LIMIT_BYTES}"
        self.log.append((grant.task, f"point {grant.point}: {dropped}"))
        return None

    def _record(self, grant: Grant, result: Result, known: _Known | None, counted: bool) -> None:
        point = self.points[grant.task, grant.point]
        if known is None:
            point.attempts += 1
            self.moved.add((grant.task, grant.point))
        n = point.attempts if known is None else known.n
        row = attempt_row(grant, result, n, counted, self.harvester, self.now)
        if known is None or result.attempt in self.new_attempts:
            self.new_attempts[result.attempt] = row
        else:
            self.changed_attempts[result.attempt] = row
        self.known[result.attempt] = _Known(n, _STATES[result.state], result.final)
        for item in result.files:
            self.files[result.attempt, item.role, item.name] = {
                "attempt": result.attempt,
                "role": item.role,
                "name": item.name,
                "task_id": grant.task,
                "point": grant.point,
                "size": item.size,
                "sha256": item.sha256,
            }

    # --- after ---

    def write(self) -> None:
        """Write what changed, in one statement per table."""
        self._write_attempts()
        self._write_points()
        self._write_leases()
        self.moves.write(self.connection)
        self._write_segments()
        self._write_tasks()
        changes = [feed.Change(task, "points", {"points": p}) for task, p in self.changes.items()]
        feed.record(self.connection, self.now, changes)
        self._note_missing_files()
        for task, text in self.log:
            feed.log(self.connection, self.now, task, text)
        books.end_tasks(self.connection, {task for task, _ in self.moved}, self.now)

    def _write_attempts(self) -> None:
        changed = list(self.changed_attempts)
        if changed:
            self.connection.execute(delete(ATTEMPTS).where(ATTEMPTS.c.attempt.in_(changed)))
            self.connection.execute(delete(RESULT_FILES).where(RESULT_FILES.c.attempt.in_(changed)))
        _insert(self.connection, ATTEMPTS, self.new_attempts.values())
        _insert(self.connection, ATTEMPTS, self.changed_attempts.values())
        _insert(self.connection, RESULT_FILES, self.files.values())

    def _write_points(self) -> None:
        rows = [self._point_row(key) for key in sorted(self.moved)]
        if rows:
            self.connection.execute(_WRITE_POINT, rows)

    def _point_row(self, key: tuple[int, int]) -> dict[str, Any]:
        point = self.points[key]
        fresh = point.standing.state.is_settled and point.row.settled_at is None
        return {
            "of_task": key[0],
            "of_number": key[1],
            "to_state": point.standing.state.value,
            "to_tries": point.standing.tries,
            "to_attempts": point.attempts,
            "to_loss": point.standing.loss,
            "to_message": point.message if fresh else point.row.message,
            "to_metadata": point.metadata if fresh else point.row.metadata,
            "to_settled_at": self.now if fresh else point.row.settled_at,
        }

    def _write_leases(self) -> None:
        settled: dict[int, list[int]] = {}
        for task, number in sorted(self.moved):
            if self.points[task, number].standing.state.is_settled:
                settled.setdefault(task, []).append(number)
        for task, numbers in settled.items():
            # Its own lease, and that of another harvester if a late result settled it.
            self.connection.execute(
                update(LEASES)
                .where(
                    LEASES.c.task_id == task, LEASES.c.point.in_(numbers), LEASES.c.state == "live"
                )
                .values(state="settled")
            )
        others = [
            {"of_task": grant.task, "of_point": grant.point, "of_grant": grant.number}
            for grant in self.ended_leases
            if not self.points[grant.task, grant.point].standing.state.is_settled
        ]
        if others:
            self.connection.execute(_END_LEASE, others)

    def _write_segments(self) -> None:
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for task, number in self.moved:
            point = self.points[task, number]
            if point.standing.state is PointState.DONE and point.standing.loss is not None:
                found = (point.standing.loss, number)
                key = (task, point.row.segment)
                best[key] = min(found, best.get(key, found))
        if best:
            self.connection.execute(
                _WRITE_BEST,
                [
                    {"of_task": key[0], "of_segment": key[1], "to_loss": loss, "to_point": number}
                    for key, (loss, number) in best.items()
                ],
            )

    def _write_tasks(self) -> None:
        new: dict[int, int] = {}
        for row in self.new_attempts.values():
            new[row["task_id"]] = new.get(row["task_id"], 0) + 1
        rows = [
            {"of_task": task, "by_attempts": new.get(task, 0), "by_charged": n}
            for task, n in {**dict.fromkeys(new, 0), **self.charged}.items()
        ]
        if rows:
            self.connection.execute(_WRITE_TASK, rows)

    def _note_missing_files(self) -> None:
        """A loss is worth more than its files: it counts, and the log says what has not come."""
        named = {row["sha256"] for row in self.files.values()}
        if not named:
            return
        query = select(FILES.c.sha256).where(FILES.c.sha256.in_(sorted(named)))
        missing = named - set(self.connection.scalars(query))
        for row in self.files.values():
            if row["sha256"] in missing:
                text = f"attempt {row['attempt']} names {row['name']}, which has not been uploaded"
                self.log.append((row["task_id"], text))


def _insert(connection: Connection, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    listed = list(rows)
    if listed:
        connection.execute(insert(table), listed)


def _fault(result: Result) -> str:
    """What makes a result unusable whatever it belongs to; empty if nothing does."""
    prefix, _, number = result.attempt.rpartition(".")
    if prefix != result.lease or not number.isdigit():
        return f"attempt {result.attempt!r:.80} is not one of lease {result.lease!r:.80}"
    state = _STATES.get(result.state)
    if state is None or not state.is_final:
        return f"{result.state!r:.80} is not the end of an attempt"
    if result.blame is not None and result.blame not in _BLAMES:
        return f"{result.blame!r:.80} is nobody to blame; expected point, node, site or walltime"
    if result.final and state is AttemptState.SUCCEEDED and result.loss is None:
        return "a success needs a loss"
    return ""


_WRITE_POINT = (
    update(POINTS)
    .where(POINTS.c.task_id == bindparam("of_task"), POINTS.c.number == bindparam("of_number"))
    .values(
        state=bindparam("to_state"),
        tries=bindparam("to_tries"),
        attempts=bindparam("to_attempts"),
        loss=bindparam("to_loss"),
        message=bindparam("to_message"),
        metadata=bindparam("to_metadata"),
        settled_at=bindparam("to_settled_at"),
    )
)
_END_LEASE = (
    update(LEASES)
    .where(
        LEASES.c.task_id == bindparam("of_task"),
        LEASES.c.point == bindparam("of_point"),
        LEASES.c.grant_no == bindparam("of_grant"),
    )
    .values(state="settled")
)
_WRITE_BEST = (
    update(SEGMENTS)
    .where(
        SEGMENTS.c.task_id == bindparam("of_task"),
        SEGMENTS.c.number == bindparam("of_segment"),
        or_(SEGMENTS.c.best_loss.is_(None), SEGMENTS.c.best_loss > bindparam("to_loss")),
    )
    .values(best_loss=bindparam("to_loss"), best_point=bindparam("to_point"))
)
_WRITE_TASK = (
    update(TASKS)
    .where(TASKS.c.id == bindparam("of_task"))
    .values(
        attempts=TASKS.c.attempts + bindparam("by_attempts"),
        charged_attempts=TASKS.c.charged_attempts + bindparam("by_charged"),
    )
)
