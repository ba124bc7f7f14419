"""What a payload made its runner say must never stop the daemon that reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harvester.fold.logs import apply_event_records, apply_ledger_records
from harvester.model import AttemptId, AttemptState
from harvester.store import Store
from payload_runner.logfile import Fields, Record
from payload_runner.outcome import Exit, judge
from payload_runner.protocol import AttemptEnded, PayloadSpec, to_fields

TAG = "habcde-aaaaaa"
EVENTS = f"allocations/{TAG}/77.0/events.0-a.log"
ATTEMPT = AttemptId("1.1.1.1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An index that knows one attempt and one allocation."""
    made = Store.create(tmp_path / "index.sqlite", "abcde")
    lease: Fields = {"lease": "1.1.1", "task": "1", "point": "1", "parameters": {}}
    planned: Fields = {"queue": "q", "nodes": 1, "walltime_s": 60.0, "gpus_per_node": 1, "why": "x"}
    told = [
        ("payload", to_fields(PayloadSpec("p", "true"))),
        ("leased", {**lease, "payload_id": "p"}),
        ("planned", {**planned, "tag": TAG}),
    ]
    records = [Record(n, kind, 0.0, fields, 0, 0) for n, (kind, fields) in enumerate(told, 1)]
    apply_ledger_records(made, "ledger.1.log", records, 100)
    return made


def test_a_message_that_is_no_unicode_fails_its_point_and_nothing_else(store: Store) -> None:
    verdict = judge(Exit(0), rb'{"status": 1, "message": "half a pair: \ud800"}')
    ended = AttemptEnded(ATTEMPT, verdict.state, verdict.blame, verdict.reason)

    apply_event_records(store, EVENTS, [Record(1, ended.KIND, 1.0, to_fields(ended), 0, 0)], 100)

    (attempt,) = store.attempts.unjudged()
    assert attempt.state is AttemptState.FAILED
    assert attempt.reason == "output.json: status is 1, not 0: half a pair: ?"


def test_an_unknown_blame_is_counted_and_blames_nobody(store: Store) -> None:
    fields = {"attempt": ATTEMPT, "state": "failed", "blame": "the moon", "reason": "full"}

    apply_event_records(store, EVENTS, [Record(1, "attempt_ended", 1.0, fields, 0, 0)], 100)

    (attempt,) = store.attempts.unjudged()
    assert (attempt.state, attempt.blame) == (AttemptState.FAILED, None)
    assert store.counted("bad_events") == 1


def test_records_whose_beginning_was_lost_are_skipped_and_the_rest_applied(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "index", "spool")
    known = {"queue": "q", "nodes": 1, "walltime_s": 60.0, "gpus_per_node": 1, "why": "backlog"}
    # Seq 1 to 3, a lease and the plan of an allocation among them, lay in a block of zeros.
    kept = (
        ("judged", {"attempt": "1.2.1.1", "final": True, "summary": {"state": "succeeded"}}),
        ("observed", {"tag": "haaaaa-bbbbbb", "state": "running"}),
        ("allocation_ended", {"tag": "haaaaa-bbbbbb", "returns": True, "reason": "", "blame": None,
                              "witness": "accounting"}),
        ("planned", {"tag": "haaaaa-cccccc", **known}),
    )  # fmt: skip
    records = [
        Record(seq, kind, 10.0, fields, 0, 0) for seq, (kind, fields) in enumerate(kept, start=4)
    ]
    apply_ledger_records(store, "ledger.1.log", records, 1000)
    assert [row.tag for row in store.allocations.not_ended()] == ["haaaaa-cccccc"]
    assert store.counted("orphaned_records") == 3
    store.close()
