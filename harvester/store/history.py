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
        self._added: list[tuple[str, str, float, str | None, str, str]] = []

    def add(self, what: str, name: str, change: Change) -> None:
        """Record a change of an attempt or allocation; written at the transaction's end."""
        self._added.append((what, name, change.at, change.was, change.became, change.why))

    def write(self) -> None:
        """Write what was added."""
        if self._added:
            self._connection.executemany(
                "INSERT INTO history (what, name, at, was, became, why) VALUES (?, ?, ?, ?, ?, ?)",
                self._added,
            )
        self.forget()

    def forget(self) -> None:
        """Drop what was added: its transaction was undone."""
        self._added.clear()

    def of(self, name: str) -> tuple[Change, ...]:
        """The past of an attempt or allocation, oldest first."""
        self.write()
        rows = self._connection.execute(
            "SELECT at, was, became, why FROM history WHERE name = ? ORDER BY id", (name,)
        )
        return tuple(Change(*row) for row in rows)

    def text(self, name: str) -> str:
        """The past in one line, for messages."""
        steps = [f"{change.became} ({change.why})" for change in self.of(name)]
        return f"{name}: {' -> '.join(steps) or 'none'}"
