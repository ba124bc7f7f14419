"""Counts and sums over attempts, so that nobody need walk them: tallies by state, run time spent.

What a transaction adds is collected and written at its end: a batch of a thousand attempts of one
task touches a handful of rows.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict

from harvester.model import TaskId


class Sums:
    """The tables of tallies and of run time spent."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._tallies: defaultdict[tuple[TaskId, str], int] = defaultdict(int)
        self._spent: defaultdict[tuple[TaskId, str], float] = defaultdict(float)

    def tally(self, task: TaskId, state: str, by: int) -> None:
        """So many attempts of a task more (or fewer) are in a state."""
        self._tallies[task, state] += by

    def spend(self, task: TaskId, payload_id: str, seconds: float) -> None:
        """Attempts of a task with this payload ran so many seconds more."""
        self._spent[task, payload_id] += seconds

    def tallies(self) -> list[tuple[TaskId, str, int]]:
        """Task, state and number of attempts."""
        self.write()
        return self._connection.execute("SELECT task, state, number FROM tallies").fetchall()

    def spent_s(self, task: TaskId) -> dict[str, float]:
        """Payload -> run time of the task's attempts that have ended, whatever their outcome."""
        self.write()
        rows = self._connection.execute(
            "SELECT payload_id, seconds FROM spent WHERE task = ?", (task,)
        )
        return {payload_id: float(seconds) for payload_id, seconds in rows}

    def write(self) -> None:
        """Write what was collected."""
        if self._tallies:
            self._connection.executemany(
                "INSERT INTO tallies VALUES (?1, ?2, ?3) ON CONFLICT (task, state)"
                " DO UPDATE SET number = number + ?3",
                [(*key, by) for key, by in self._tallies.items()],
            )
        if self._spent:
            self._connection.executemany(
                "INSERT INTO spent VALUES (?1, ?2, ?3) ON CONFLICT (task, payload_id)"
                " DO UPDATE SET seconds = seconds + ?3",
                [(*key, seconds) for key, seconds in self._spent.items()],
            )
        self.forget()

    def forget(self) -> None:
        """Drop what was collected: its transaction was undone."""
        self._tallies.clear()
        self._spent.clear()
