"""Allocations: their lives and what their runners and the batch system said of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harvester import lifecycle
from harvester.errors import IllegalTransition
from harvester.model import AllocationState, JobId, Tag
from harvester.store.history import Change, History


@dataclass(frozen=True, slots=True)
class AllocationRow:
    """An allocation as the index holds it; columns as in ``schema``."""

    tag: Tag
    state: AllocationState
    since: float
    queue: str
    nodes: int
    walltime_s: float
    gpus_per_node: int
    why: str
    job_id: JobId | None
    planned_at: float
    submitted_at: float | None
    started_at: float | None
    ended_at: float | None
    reason: str | None
    witness: str | None
    runner: str
    epoch_seen: int
    remaining_s: float | None
    heartbeat_at: float | None
    slots: float
    slots_busy: float
    slot_seconds: float
    busy_slot_seconds: float
    closing: bool
    cancel: int
    unseen: int
    unseen_since: float | None
    unseen_last: float | None
    end_witness: str | None
    end_reason: str | None
    end_blame: str | None
    end_said_at: float | None
    joined: bool = False


# A job that has ended took what it had; one that never started took nothing.
_SPENT_S = (
    "CASE WHEN state != 'ended' THEN walltime_s WHEN started_at IS NULL THEN 0"
    " ELSE min(walltime_s, max(0, coalesce(ended_at, started_at + walltime_s) - started_at)) END"
)
_COLUMNS = ", ".join(AllocationRow.__dataclass_fields__)


class Allocations:
    """The table of allocations. Only ``step`` writes a state."""

    def __init__(self, connection: sqlite3.Connection, history: History) -> None:
        self._connection = connection
        self._history = history
        self._not_ended: tuple[AllocationRow, ...] | None = None  # asked for many times a tick

    def add(self, tag: Tag, at: float, fields: Mapping[str, Any]) -> None:
        """A new allocation in state PLANNED; one that is known already is left alone."""
        self.reread()
        done = self._connection.execute(
            "INSERT OR IGNORE INTO allocations (tag, state, since, queue, nodes, walltime_s,"
            " gpus_per_node, why, planned_at) VALUES (?, 'planned', ?, ?, ?, ?, ?, ?, ?)",
            (
                tag,
                at,
                fields["queue"],
                fields["nodes"],
                fields["walltime_s"],
                fields["gpus_per_node"],
                fields["why"],
                at,
            ),
        )
        if done.rowcount:
            self._history.add("allocation", tag, Change(at, None, "planned", fields["why"]))

    def step(
        self,
        tag: Tag,
        to: AllocationState,
        at: float,
        why: str,
        columns: Mapping[str, Any] | None = None,
    ) -> bool:
        """Move an allocation, setting ``columns`` along with it; False if it is there already.

        Raises:
            IllegalTransition: its life has no such step.
        """
        current = self.state(tag)
        if current is None:
            raise KeyError(tag)
        try:
            moved = lifecycle.step_allocation(current, to)
        except IllegalTransition as error:
            raise IllegalTransition(f"{error}{self._history.text(tag)}") from None
        if moved is None:
            return False
        self.change(tag, {"state": to.value, "since": at, **(columns or {})})
        self._history.add("allocation", tag, Change(at, current.value, to.value, why))
        return True

    def change(self, tag: Tag, columns: Mapping[str, Any]) -> None:
        """Set columns other than the state."""
        self.reread()
        names = ", ".join(f"{name} = ?" for name in columns)
        self._connection.execute(
            f"UPDATE allocations SET {names} WHERE tag = ?", (*columns.values(), tag)
        )

    def remark(self, tag: Tag, at: float, why: str) -> None:
        """Add to the allocation's past something that did not change its state."""
        state = self.state(tag)
        if state is not None:
            self._history.add("allocation", tag, Change(at, state.value, state.value, why))

    def state(self, tag: Tag) -> AllocationState | None:
        """The state of an allocation, None if there is none of that tag."""
        row = self._connection.execute(
            "SELECT state FROM allocations WHERE tag = ?", (tag,)
        ).fetchone()
        return None if row is None else AllocationState(row[0])

    def get(self, tag: Tag) -> AllocationRow:
        """An allocation by its tag; KeyError if there is none."""
        found = self._select("tag = ?", (tag,))
        if not found:
            raise KeyError(tag)
        return found[0]

    def not_ended(self) -> tuple[AllocationRow, ...]:
        """All that have not ended, in the order of their planning."""
        if self._not_ended is None:
            # The plus keeps SQLite from walking all that ever were, in the order asked for.
            self._not_ended = self._select("state != 'ended' ORDER BY +planned_at, tag")
        return self._not_ended

    def reread(self) -> None:
        """Forget what was read: rows changed, or a transaction was undone."""
        self._not_ended = None

    def ended_since(self, instant: float) -> tuple[AllocationRow, ...]:
        """Those that ended at or after an instant, newest first."""
        return self._select("state = 'ended' AND ended_at >= ? ORDER BY ended_at DESC", (instant,))

    def kept(self, before: float) -> tuple[Tag, ...]:
        """Those that ended before an instant and whose directories are kept, oldest first."""
        rows = self._connection.execute(
            "SELECT tag FROM allocations WHERE state = 'ended' AND discard = 0 AND ended_at < ?"
            " ORDER BY ended_at",
            (before,),
        )
        return tuple(Tag(row[0]) for row in rows)

    def leaving(self) -> tuple[Tag, ...]:
        """Those whose directories are to be removed and are not known to be gone."""
        rows = self._connection.execute("SELECT tag FROM allocations WHERE discard = 1")
        return tuple(Tag(row[0]) for row in rows)

    def newest_ended(self, limit: int) -> tuple[AllocationRow, ...]:
        """Of those that have ended the newest, oldest of them first."""
        ended = "state = 'ended' ORDER BY planned_at DESC, tag DESC LIMIT"
        found = self._select(f"{ended} {limit:d}")
        return tuple(reversed(found))

    def node_seconds_since(self, instant: float) -> float:
        """Node seconds of what was planned since an instant: had, or still possible."""
        row = self._connection.execute(
            f"SELECT coalesce(sum(nodes * {_SPENT_S}), 0) FROM allocations"
            " WHERE planned_at >= ? AND joined = 0",
            (instant,),
        ).fetchone()
        return float(row[0])

    def _select(self, where: str, arguments: tuple[Any, ...] = ()) -> tuple[AllocationRow, ...]:
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM allocations WHERE {where}", arguments
        )
        return tuple(_row(row) for row in rows)


def _row(row: tuple[Any, ...]) -> AllocationRow:
    values = (
        row[0],
        AllocationState(row[1]),
        *row[2:23],
        bool(row[23]),
        *row[24:-1],
        bool(row[-1]),
    )
    return AllocationRow(*values)
