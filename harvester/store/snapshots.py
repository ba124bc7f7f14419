"""Whole copies of an index, and an index from such a copy, whatever its version (rule 17)."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harvester.errors import StorageUnavailable
from harvester.store.index import Store


def copy_index(index: Path, target: Path) -> None:
    """Copy an index as its last transaction left it, and check the copy. For any thread.

    Both lie on local disks; what lay at ``target`` is replaced.

    Raises:
        StorageUnavailable: it cannot be copied, or the copy is damaged.
    """
    target.unlink(missing_ok=True)
    try:
        source, copy = sqlite3.connect(f"file:{index}?mode=ro", uri=True), sqlite3.connect(target)
        try:
            # Not VACUUM INTO: that may give rows other numbers, and requests are counted by theirs.
            source.backup(copy)
            verdict = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            source.close()
            copy.close()
    except (OSError, sqlite3.Error) as error:
        raise StorageUnavailable(f"copying the index {index}: {error}") from error
    if verdict != "ok":
        raise StorageUnavailable(f"copying the index {index}: {verdict}")


def fill_from(store: Store, snapshot: Path, spool_id: str) -> bool:
    """Fill an empty index from a copy; columns and tables that only one of them has are left out.

    False, and the index is still empty, if the copy is of another spool or no sound index.
    """
    connection = store.connection
    try:
        connection.execute("ATTACH DATABASE ? AS old", (str(snapshot),))
    except sqlite3.Error:
        return False
    try:
        found = connection.execute("SELECT value FROM old.meta WHERE key = 'spool_id'").fetchone()
        if found is None or found[0] != spool_id:
            return False
        with store.transaction():
            for table in _tables(connection, "main"):
                _copy_table(connection, table)
    except (sqlite3.Error, StorageUnavailable):
        return False
    finally:
        connection.execute("DETACH DATABASE old")
    return True


@dataclass(frozen=True, slots=True)
class Settled:
    """What a copy says of a task."""

    attempts: int  # judged or not
    judged: dict[str, dict[str, Any]]  # attempt -> fields of its judgement's ``summary``
    delivered: frozenset[str]  # of these, those with a receipt
    gone: frozenset[str]  # tags whose directories are to go, of all tasks


def settled_in(snapshot: Path, task: str) -> Settled:
    """What a copy says of a task.

    Raises:
        StorageUnavailable: it is no sound index.
    """
    try:
        connection = sqlite3.connect(f"file:{snapshot}?mode=ro", uri=True)
        try:
            attempts = connection.execute(
                "SELECT attempt, state, loss, tag, proof,"
                " delivered = 2 AND coalesce(verdict, '') != 'refused'"
                ", judged FROM attempts WHERE task = ?",
                (task,),
            ).fetchall()
            gone = connection.execute("SELECT tag FROM allocations WHERE discard > 0").fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StorageUnavailable(f"the snapshot {snapshot}: {error}") from error
    judged = [row for row in attempts if row[-1]]
    return Settled(
        attempts=len(attempts),
        judged={
            attempt: {
                "state": state,
                "loss": loss,
                "tag": tag,
                "proof": proof and json.loads(proof),
            }
            for attempt, state, loss, tag, proof, *_ in judged
        },
        delivered=frozenset(row[0] for row in judged if row[-2]),
        gone=frozenset(tag for (tag,) in gone),
    )


def _copy_table(connection: sqlite3.Connection, table: str) -> None:
    ours, theirs = (_columns(connection, schema, table) for schema in ("main", "old"))
    shared = ", ".join(column for column in ours if column in theirs)
    if shared:
        kept = " WHERE key NOT IN ('version', 'spool_id')" if table == "meta" else ""
        connection.execute(
            f"INSERT INTO main.{table} ({shared}) SELECT {shared} FROM old.{table}{kept}"
        )


def _tables(connection: sqlite3.Connection, schema: str) -> list[str]:
    query = f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table' ORDER BY name"
    return [name for (name,) in connection.execute(query) if not name.startswith("sqlite_")]


def _columns(connection: sqlite3.Connection, schema: str, table: str) -> list[str]:
    """Its columns, and the number of its rows where that is one of its own."""
    row = connection.execute(
        f"SELECT sql FROM {schema}.sqlite_master WHERE name = ?", (table,)
    ).fetchone()
    if row is None:
        return []
    names = [found[1] for found in connection.execute(f"PRAGMA {schema}.table_info({table})")]
    return names if "WITHOUT ROWID" in row[0] else ["rowid", *names]
