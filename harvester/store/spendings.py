"""What has been spent of the budgets: instants of queries and submissions, in sliding windows."""

from __future__ import annotations

import sqlite3

_KEPT_S = 2 * 86400.0


class Spendings:
    """The table of spendings. Times are wall-clock, since a window must outlive the process."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, what: str, at: float) -> None:
        """Record one query or submission and forget what no window reaches any more."""
        self._connection.execute("INSERT INTO spendings VALUES (?, ?)", (what, at))
        self._connection.execute("DELETE FROM spendings WHERE at < ?", (at - _KEPT_S,))

    def note(self, what: str, at: float) -> None:
        """Record what somebody else spent at that instant; telling it again changes nothing."""
        found = self._connection.execute(
            "SELECT 1 FROM spendings WHERE what = ? AND at = ?", (what, at)
        ).fetchone()
        if found is None:
            self.add(what, at)

    def within(self, what: str, window_s: float, now: float) -> int:
        """How many in the window. Those that a clock jump left in the future count as now."""
        count, newest = self._connection.execute(
            "SELECT count(*), max(at) FROM spendings WHERE what = ? AND at > ?",
            (what, now - window_s),
        ).fetchone()
        if count and newest > now:
            # Else they would count until the clock comes there, years from now perhaps.
            self._connection.execute("UPDATE spendings SET at = ?1 WHERE at > ?1", (now,))
        return int(count)
