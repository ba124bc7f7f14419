"""Queries of the index that are asked once per attempt must not walk through all of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from harvester.fold.logs import apply_ledger_records
from harvester.model import AttemptId, AttemptState, Tag, TaskId
from harvester.store import Store
from harvester.store.leases import Ask
from payload_runner.logfile import Record

_LEASE = {"task": "1", "parameters": {"x": 1}, "payload_id": "p"}


def lease(n: int) -> tuple[str, dict[str, Any]]:
    return "leased", {**_LEASE, "lease": f"1.{n}.1", "point": str(n)}


def settle(n: int) -> list[tuple[str, dict[str, Any]]]:
    attempt = f"1.{n}.1.1"
    return [
        ("attempt_closed", {"attempt": attempt, "state": "cancelled", "reason": "x"}),
        ("judged", {"attempt": attempt, "final": True, "summary": {"state": "cancelled"}}),
        ("delivering", {"attempts": [attempt]}),
        ("delivered", {"receipts": [[attempt, "counted", ""]]}),
    ]


def hundreds_of_steps_to_settle_one_of(path: Path, points: int) -> int:
    """What SQLite's virtual machine does for one point, of so many that are leased."""
    Store.create(path, "abcde").close()
    connection = sqlite3.connect(path, isolation_level=None)
    store = Store(connection)
    told = [("payload", {"payload_id": "p", "command": "true"}), *map(lease, range(points))]
    records = [Record(n, kind, 1.0, fields, 0, 0) for n, (kind, fields) in enumerate(told, 1)]
    apply_ledger_records(store, "ledger.1.log", records, 1)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(count, 100)
    last = [
        Record(len(told) + n, kind, 2.0, fields, 0, 0)
        for n, (kind, fields) in enumerate(settle(points // 2), 1)
    ]
    assert apply_ledger_records(store, "ledger.1.log", last, 2) == len(last)
    connection.set_progress_handler(None, 0)
    assert len(store.leases.to_renew()) == points - 1
    store.close()
    return steps


def test_settling_a_point_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    few = hundreds_of_steps_to_settle_one_of(tmp_path / "few.sqlite", 50)
    many = hundreds_of_steps_to_settle_one_of(tmp_path / "many.sqlite", 2000)
    assert many <= few + 20, (few, many)


def test_what_was_spent_and_started_is_known_without_a_walk(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    Store.create(path, "abcde").close()
    connection = sqlite3.connect(path, isolation_level=None)
    store = Store(connection)
    told = [("payload", {"payload_id": "p", "command": "true"}), *map(lease, range(2000))]
    records = [Record(n, kind, 1.0, fields, 0, 0) for n, (kind, fields) in enumerate(told, 1)]
    apply_ledger_records(store, "ledger.1.log", records, 1)
    for n in range(2000):
        attempt = AttemptId(f"1.{n}.1.1")
        store.attempts.step(attempt, AttemptState.ORDERED, 1.0, "x", {"tag": f"haaaaa-{n}"})
        store.attempts.step(attempt, AttemptState.LOST, 2.0, "x")
        ended = {"started_at": 1.0, "duration_s": 2.0}
        store.attempts.step(attempt, AttemptState.FAILED, 3.0, "x", ended)
    steps: list[int] = []
    connection.set_progress_handler(lambda: steps.append(1), 100)

    assert store.attempts.spent_s(TaskId("1")) == {"p": 4000.0}
    assert store.attempts.ran_in(Tag("haaaaa-1999"))
    assert not store.attempts.ran_in(Tag("haaaaa-2000"))

    assert len(steps) <= 2
    store.close()


def test_a_tick_looks_at_open_requests_only(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    Store.create(path, "abcde").close()
    connection = sqlite3.connect(path, isolation_level=None)
    store = Store(connection)
    for n in range(1, 2001):
        store.leases.ask(f"k{n}", 4)
        store.leases.answer(f"k{n}")
    store.leases.ask("k2001", 5)
    steps: list[int] = []
    connection.set_progress_handler(lambda: steps.append(1), 100)

    assert (store.leases.asked(), store.leases.open_asks()) == (2001, (Ask("k2001", 5),))

    assert len(steps) <= 2
    store.close()


def test_a_tick_looks_at_allocations_in_flight_only(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    Store.create(path, "abcde").close()
    connection = sqlite3.connect(path, isolation_level=None)
    store = Store(connection)
    fields = {"queue": "q", "nodes": 1, "walltime_s": 60.0, "gpus_per_node": 1, "why": "x"}
    for n in range(2001):
        store.allocations.add(Tag(f"haaaaa-{n}"), float(n), fields)
    connection.execute("UPDATE allocations SET state = 'ended' WHERE planned_at < 2000")
    store.allocations.reread()
    steps: list[int] = []
    connection.set_progress_handler(lambda: steps.append(1), 100)

    assert [row.tag for row in store.allocations.not_ended()] == ["haaaaa-2000"]

    assert len(steps) <= 2
    store.close()


def test_failures_since_the_last_sound_run_are_known_without_a_walk(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    Store.create(path, "abcde").close()
    connection = sqlite3.connect(path, isolation_level=None)
    store = Store(connection)
    told = [("payload", {"payload_id": "p", "command": "true"}), *map(lease, range(2000))]
    records = [Record(n, kind, 1.0, fields, 0, 0) for n, (kind, fields) in enumerate(told, 1)]
    apply_ledger_records(store, "ledger.1.log", records, 1)
    faults = {*range(900, 1000), 1998, 1999}  # those before the last sound run are forgotten
    for n in range(2000):
        attempt = AttemptId(f"1.{n}.1.1")
        store.attempts.step(attempt, AttemptState.ORDERED, 1.0, "x", {"tag": f"haaaaa-{n}"})
        fault = AttemptState.LOST if n == 1999 else AttemptState.FAILED
        to = fault if n in faults else AttemptState.SUCCEEDED
        blame = "site" if n in faults else None
        store.attempts.step(attempt, to, float(n), "x", {"ended_at": float(n), "blame": blame})
    steps: list[int] = []
    connection.set_progress_handler(lambda: steps.append(1), 100)

    found = store.attempts.site_faults(TaskId("1"), 1000)

    assert [attempt.attempt for attempt in found] == ["1.1998.1.1", "1.1999.1.1"]
    assert store.attempts.site_faults(TaskId("2"), 1000) == ()
    assert len(steps) <= 2
    store.close()
