"""Opens the index and holds its parts together; one connection, one thread, one writer."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from harvester.errors import StorageUnavailable
from harvester.store.allocations import Allocations
from harvester.store.attempts import Attempts
from harvester.store.history import History
from harvester.store.leases import Leases
from harvester.store.positions import Positions
from harvester.store.schema import SCHEMA, VERSION
from harvester.store.spendings import Spendings
from harvester.store.sums import Sums


class Store:
    """The index of one spool.

    Everything in it is a fold over the ledger, the order logs and the event logs, except the
    queries among the ``spendings`` (budget windows): their loss costs a minute's budget at most.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._depth = 0
        self.history = History(connection)
        self._sums = Sums(connection)
        self.attempts = Attempts(connection, self.history, self._sums)
        self.allocations = Allocations(connection, self.history)
        self.leases = Leases(connection)
        self.positions = Positions(connection)
        self.spendings = Spendings(connection)

    @classmethod
    def open(cls, path: Path, spool_id: str) -> Store | None:
        """The index at ``path``, or None if there is no sound one of this spool and version."""
        if not path.exists():
            return None
        connection = None
        try:
            connection = _connect(path)
            found = dict(connection.execute("SELECT key, value FROM meta"))
        except sqlite3.DatabaseError:  # not ours, torn, or not a database at all
            if connection is not None:
                connection.close()
            return None
        if found.get("version") != VERSION or found.get("spool_id") != spool_id:
            connection.close()
            return None
        return cls(connection)

    @classmethod
    def create(cls, path: Path, spool_id: str) -> Store:
        """A new, empty index; whatever lies at ``path`` is removed (it is only a cache).

        Raises:
            StorageUnavailable: the place cannot be written.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            connection = _connect(path)
            connection.executescript(SCHEMA)
            connection.executemany(
                "INSERT INTO meta VALUES (?, ?)", [("version", VERSION), ("spool_id", spool_id)]
            )
        except (OSError, sqlite3.Error) as error:
            raise StorageUnavailable(f"the index {path}: {error}") from error
        return cls(connection)

    @property
    def connection(self) -> sqlite3.Connection:
        """The one connection, for what concerns all tables at once."""
        return self._connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; nested ones join the outer.

        Raises:
            StorageUnavailable: SQLite could not; what was done inside is undone.
        """
        self._depth += 1
        try:
            if self._depth == 1:
                self._connection.execute("BEGIN IMMEDIATE")
            yield
            if self._depth == 1:
                self._write_collected()
                self._connection.execute("COMMIT")
        except BaseException as error:
            if self._depth == 1:
                self._undo()
            if isinstance(error, sqlite3.Error):
                raise StorageUnavailable(f"the index: {error}") from error
            raise
        finally:
            self._depth -= 1

    def _write_collected(self) -> None:
        self._sums.write()
        self.history.write()

    def _undo(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._sums.forget()
        self.history.forget()
        self.allocations.reread()
        self.leases.reread()

    def count(self, what: str, by: int = 1) -> None:
        """Add to a counter that views show (log gaps, events of unknown attempts)."""
        self._connection.execute(
            "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (key)"
            " DO UPDATE SET value = CAST(value AS INTEGER) + ?2",
            (f"count.{what}", by),
        )

    def counted(self, what: str) -> int:
        """The value of a counter."""
        row = self._connection.execute(
            "SELECT value FROM meta WHERE key = ?", (f"count.{what}",)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """Every folded row, for comparing two indexes; without counters and budget windows."""
        self._write_collected()
        tables = ("positions", "payloads", "asks", "leases", "attempts", "tallies", "allocations")
        return {
            table: sorted(self._connection.execute(f"SELECT * FROM {table}"), key=repr)
            for table in tables
        }

    def close(self) -> None:
        """Close the connection; what is committed stays."""
        self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        # NORMAL may lose the last transactions at a power cut: they are read again from the logs.
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "cache_size = -4096",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
