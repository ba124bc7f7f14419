"""How far each log has been applied, and which sequence numbers are missing."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace

Range = tuple[int, int]  # first and last, both included


@dataclass(frozen=True, slots=True)
class Position:
    """Progress in one log. Records are admitted once each, in whatever order they come."""

    offset: int = 0
    max_seq: int = 0
    missing: tuple[Range, ...] = ()

    @property
    def contiguous(self) -> int:
        """The sequence number up to which nothing is missing."""
        return self.missing[0][0] - 1 if self.missing else self.max_seq

    def admit(self, seq: int) -> Position | None:
        """The position with ``seq`` applied, or None if it was applied before."""
        if seq > self.max_seq:
            gap = ((self.max_seq + 1, seq - 1),) if seq > self.max_seq + 1 else ()
            return replace(self, max_seq=seq, missing=self.missing + gap)
        for first, last in self.missing:
            if first <= seq <= last:
                return self.without((seq, seq))
        return None

    def without(self, gone: Range) -> Position:
        """The position with a range of sequence numbers no longer waited for."""
        left: list[Range] = []
        for first, last in self.missing:
            if first < gone[0]:
                left.append((first, min(last, gone[0] - 1)))
            if last > gone[1]:
                left.append((max(first, gone[1] + 1), last))
            # A range inside the gone one leaves nothing.
        return replace(self, missing=tuple(left))


class Positions:
    """The table of positions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def get(self, log: str) -> Position:
        """Where a log stands; the beginning if it was never read."""
        row = self._connection.execute(
            "SELECT offset, max_seq, missing FROM positions WHERE log = ?", (log,)
        ).fetchone()
        if row is None:
            return Position()
        missing = tuple((first, last) for first, last in json.loads(row[2]))
        return Position(row[0], row[1], missing)

    def put(self, log: str, position: Position) -> None:
        """Store where a log stands; in the same transaction as the effects of its records."""
        self._connection.execute(
            "INSERT INTO positions VALUES (?1, ?2, ?3, ?4) ON CONFLICT (log)"
            " DO UPDATE SET offset = ?2, max_seq = ?3, missing = ?4",
            (log, position.offset, position.max_seq, json.dumps(position.missing)),
        )

    def offsets(self, prefix: str) -> dict[str, int]:
        """Log -> offset of all logs whose names begin so."""
        return dict(
            self._connection.execute(
                "SELECT log, offset FROM positions WHERE substr(log, 1, ?) = ?",
                (len(prefix), prefix),
            )
        )

    def forget(self, prefix: str) -> None:
        """Forget all logs whose names begin so: they are gone."""
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        self._connection.execute(
            "DELETE FROM positions WHERE log >= ? AND log < ?", (prefix, after)
        )

    def total(self, prefix: str) -> int:
        """Bytes read of all logs whose names begin so."""
        row = self._connection.execute(
            "SELECT coalesce(sum(offset), 0) FROM positions WHERE substr(log, 1, ?) = ?",
            (len(prefix), prefix),
        ).fetchone()
        return int(row[0])

    def incomplete(self) -> tuple[tuple[str, Position], ...]:
        """The logs that miss records."""
        rows = self._connection.execute("SELECT log FROM positions WHERE missing != '[]'")
        return tuple((log, self.get(log)) for (log,) in rows.fetchall())
