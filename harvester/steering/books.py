"""The counts that every segment and task carries, and how they move with the points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select, update

from harvester.steering import feed
from harvester.steering.progress import Counts, PointState, Rules, TaskState, ending
from harvester.steering.tables import POINTS, SEGMENTS, TASKS

_STATES = tuple(state.value for state in PointState)
_LEARN_NOTHING = frozenset({"random", "sobol", "grid"})
_MOVE = (
    update(SEGMENTS)
    .where(SEGMENTS.c.task_id == bindparam("of_task"), SEGMENTS.c.number == bindparam("of_number"))
    .values({state: SEGMENTS.c[state] + bindparam(f"by_{state}") for state in _STATES})
)


@dataclass(slots=True)
class Moves:
    """Points that change state in one transaction, counted by segment."""

    _by_segment: dict[tuple[int, int], Counter[str]] = field(default_factory=dict)

    def add(
        self, task: int, segment: int, before: PointState | None, after: PointState, n: int = 1
    ) -> None:
        """``n`` points of a segment go from one state (None: they are new) to another."""
        counter = self._by_segment.setdefault((task, segment), Counter())
        if before is not None:
            counter[before.value] -= n
        counter[after.value] += n

    def write(self, connection: Connection) -> None:
        """Move the counts; a transaction calls it once, after the points themselves."""
        rows = [
            {"of_task": task, "of_number": segment}
            | {f"by_{state}": counter[state] for state in _STATES}
            for (task, segment), counter in self._by_segment.items()
            if any(counter.values())
        ]
        if rows:
            connection.execute(_MOVE, rows)


def rules_of(task: Row[Any]) -> Rules:
    """The rules in a row of ``tasks``."""
    return Rules(
        max_points=task.max_points,
        parallel=task.parallel,
        charge_limit=task.charge_limit,
        per_iteration=task.per_iteration,
        min_unevaluated=task.min_unevaluated,
        segments=task.segments,
        learns=task.sampler not in _LEARN_NOTHING,
    )


def counts_of(segment: Row[Any]) -> Counts:
    """The counts in a row of ``segments``, or in a sum of such rows."""
    return Counts(
        waiting=segment.waiting,
        leased=segment.leased,
        done=segment.done,
        failed=segment.failed,
        pruned=segment.pruned,
        cancelled=segment.cancelled,
    )


def task_counts(connection: Connection, tasks: Iterable[int]) -> dict[int, Counts]:
    """The counts of whole tasks."""
    sums = [func.sum(SEGMENTS.c[state]).label(state) for state in _STATES]
    query = (
        select(SEGMENTS.c.task_id, *sums)
        .where(SEGMENTS.c.task_id.in_(tuple(tasks)))
        .group_by(SEGMENTS.c.task_id)
    )
    return {row.task_id: counts_of(row) for row in connection.execute(query)}


def end_tasks(connection: Connection, tasks: Iterable[int], now: float) -> None:
    """Take each task as far towards its end as its counts say."""
    for task in sorted(set(tasks)):
        while _end_step(connection, task, now):
            pass


def _end_step(connection: Connection, task: int, now: float) -> bool:
    row = connection.execute(select(TASKS).where(TASKS.c.id == task)).one()
    exhausted = not connection.scalar(
        select(func.count())
        .select_from(SEGMENTS)
        .where(SEGMENTS.c.task_id == task, SEGMENTS.c.exhausted.is_(False))
    )
    step = ending(
        TaskState(row.state),
        rules_of(row),
        task_counts(connection, [task])[task],
        charged=row.charged_attempts,
        exhausted=exhausted,
    )
    if step is None:
        return False
    set_task_state(connection, task, step.state, now, step.reason)
    if step.state is TaskState.FINISHING:
        cancel_points(connection, task, (PointState.WAITING,), now)
    return True


def set_task_state(
    connection: Connection, task: int, state: TaskState, now: float, reason: str
) -> None:
    """Write a task's state, and say so in its log and in the feed."""
    connection.execute(
        update(TASKS)
        .where(TASKS.c.id == task)
        .values(state=state.value, ended_at=now if state.is_over else None)
    )
    feed.log(connection, now, task, f"{state.value}: {reason}")
    feed.record(connection, now, [feed.Change(task, "state", {"state": state.value})])


def cancel_points(
    connection: Connection, task: int, states: tuple[PointState, ...], now: float
) -> None:
    """Cancel every point of a task that is in one of these states."""
    moves = Moves()
    for state in states:
        chosen = (POINTS.c.task_id == task) & (POINTS.c.state == state.value)
        for segment, n in segment_sizes(connection, chosen).items():
            moves.add(task, segment, state, PointState.CANCELLED, n)
        connection.execute(
            update(POINTS).where(chosen).values(state=PointState.CANCELLED.value, settled_at=now)
        )
    moves.write(connection)


def segment_sizes(connection: Connection, chosen: Any) -> Mapping[int, int]:
    """How many points of each segment a condition of one task chooses."""
    query = select(POINTS.c.segment, func.count()).where(chosen).group_by(POINTS.c.segment)
    return {row[0]: row[1] for row in connection.execute(query)}


def discrepancies(connection: Connection) -> list[str]:
    """Where the counts differ from the points themselves; empty when the books are right."""
    counted: dict[tuple[int, int], Counter[str]] = {}
    query = select(POINTS.c.task_id, POINTS.c.segment, POINTS.c.state, func.count()).group_by(
        POINTS.c.task_id, POINTS.c.segment, POINTS.c.state
    )
    for task, segment, state, n in connection.execute(query):
        counted.setdefault((task, segment), Counter())[state] = n
    found = []
    for row in connection.execute(select(SEGMENTS)):
        points = counted.get((row.task_id, row.number), Counter())
        for state in _STATES:
            kept = row._mapping[state]
            if kept != points[state]:
                where = f"task={row.task_id} segment={row.number} state={state}"
                found.append(f"{where} counted={points[state]} kept={kept}")
    return found
