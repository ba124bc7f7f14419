"""Every change of state: of what, when, from, to and why."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a life."""

    at: float
    was: str | None
    became: str
    why: str


class History:
    """The table of changes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, what: str, name: str, change: Change) -> None:
        """Record a change of an attempt or allocation."""
        self._connection.execute(
            "INSERT INTO history (what, name, at, was, became, why) VALUES (?, ?, ?, ?, ?, ?)",
            (what, name, change.at, change.was, change.became, change.why),
        )

    def of(self, name: str) -> tuple[Change, ...]:
        """The past of an attempt or allocation, oldest first."""
        rows = self._connection.execute(
            "SELECT at, was, became, why FROM history WHERE name = ? ORDER BY id", (name,)
        )
        return tuple(Change(*row) for row in rows)

    def text(self, name: str) -> str:
        """The past in one line, for messages."""
        steps = [f"{change.became} ({change.why})" for change in self.of(name)]
        return f"{name}: {' -> '.join(steps) or 'none'}"
