"""What records make of the index, one at a time: repeats, strays and late words included."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harvester.errors import StorageUnavailable
from harvester.fold.logs import apply_event_records, apply_ledger_records, apply_order_records
from harvester.model import (
    AllocationState,
    AttemptId,
    AttemptState,
    Blame,
    FileRef,
    LeaseId,
    PointId,
    Tag,
    TaskId,
)
from harvester.store import Store
from payload_runner.logfile import Record

TAG = Tag("habcde-abcdef")
ATTEMPT = AttemptId("1.7.1.1")
LEDGER, ORDERS = "ledger.1.log", f"allocations/{TAG}/orders.1.log"
EVENTS = f"allocations/{TAG}/77.0/events.0-a.log"


class Bench:
    """An index, and logs that grow record by record."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._seq = {LEDGER: 0, ORDERS: 0, EVENTS: 0}

    def ledger(self, kind: str, **fields: Any) -> int:
        return apply_ledger_records(self.store, LEDGER, [self._record(LEDGER, kind, fields)], 0)

    def order(self, kind: str, **fields: Any) -> int:
        return apply_order_records(self.store, ORDERS, [self._record(ORDERS, kind, fields)], 0)

    def event(self, kind: str, **fields: Any) -> int:
        return apply_event_records(self.store, EVENTS, [self._record(EVENTS, kind, fields)], 0)

    def _record(self, log: str, kind: str, fields: dict[str, Any]) -> Record:
        self._seq[log] += 1
        return Record(self._seq[log], kind, 100.0 + self._seq[log], fields, 0, 0)

    def state(self, attempt: str = ATTEMPT) -> AttemptState | None:
        return self.store.attempts.state(AttemptId(attempt))

    def running(self) -> Bench:
        """The attempt runs in the allocation."""
        self.ledger("payload", payload_id="p", command="true")
        self.ledger(
            "leased", lease="1.7.1", task="1", point="7", parameters={"x": 1}, payload_id="p"
        )
        self.ledger(
            "planned", tag=TAG, queue="q", nodes=1, walltime_s=600.0, gpus_per_node=4, why="work"
        )
        self.ledger("submit_intent", tag=TAG)
        self.ledger("submitted", tag=TAG, job_id="77")
        self.event("open", **_OPENED)
        self.order("order", attempt=ATTEMPT)
        self.event("attempt_started", attempt=ATTEMPT, nodes=["n1"])
        assert self.state() is AttemptState.RUNNING
        return self


_OPENED = {
    "version": 1,
    "tag": TAG,
    "incarnation": "77.0",
    "writer": "0-a",
    "host": "n1",
    "runner_version": "1",
    "python": "3.9",
}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = Store.create(tmp_path / "index", "abcde")
    yield Bench(store)
    store.close()


def test_a_word_of_the_runner_proves_that_the_job_runs(bench: Bench) -> None:
    bench.running()
    row = bench.store.allocations.get(TAG)
    assert (row.state, row.job_id, row.started_at) == (AllocationState.RUNNING, "77", 101.0)


def test_a_record_is_applied_once_however_often_it_is_read(bench: Bench) -> None:
    bench.running()
    end = Record(3, "attempt_ended", 9.0, {"attempt": ATTEMPT, "state": "succeeded"}, 0, 0)
    assert apply_event_records(bench.store, EVENTS, [end], 10) == 1
    assert apply_event_records(bench.store, EVENTS, [end, end], 10) == 0
    steps = [change.became for change in bench.store.history.of(ATTEMPT)]
    assert steps == ["leased", "ordered", "running", "succeeded"]


def test_an_outcome_keeps_whom_it_blames_and_why(bench: Bench) -> None:
    bench.running().event(
        "attempt_ended",
        attempt=ATTEMPT,
        state="failed",
        blame="point",
        reason="exit code 3",
        stderr="Traceback",
    )
    found = bench.store.attempts.get(ATTEMPT)
    assert (found.state, found.blame, found.reason) == (
        AttemptState.FAILED,
        Blame.POINT,
        "exit code 3",
    )
    assert bench.store.attempts.outcome(ATTEMPT)["stderr"] == "Traceback"


def test_an_outcome_without_its_start_still_counts(bench: Bench) -> None:
    bench.running()
    bench.ledger("leased", lease="1.8.1", task="1", point="8", parameters={}, payload_id="p")
    bench.event("attempt_ended", attempt="1.8.1.1", state="succeeded", loss=0.5)
    assert bench.state("1.8.1.1") is AttemptState.SUCCEEDED


@pytest.mark.parametrize(
    ("kind", "fields", "counter"),
    [
        ("attempt_ended", {"attempt": "9.9.9.9", "state": "succeeded"}, "unknown_attempts"),
        ("attempt_ended", {"attempt": ATTEMPT, "state": "vanished"}, "bad_events"),
        ("attempt_ended", {"attempt": 3}, "bad_events"),
        ("from_the_future", {}, "unknown_events"),
        ("checkpoint", {"attempt": ATTEMPT, "file": "x"}, "bad_events"),
    ],
)
def test_a_stray_event_is_counted_and_stops_nothing(
    bench: Bench, kind: str, fields: dict[str, Any], counter: str
) -> None:
    bench.running().event(kind, **fields)
    assert bench.store.counted(counter) == 1
    assert bench.state() is AttemptState.RUNNING


def test_a_settled_attempt_does_not_change_its_mind(bench: Bench) -> None:
    bench.running().event("attempt_ended", attempt=ATTEMPT, state="succeeded", loss=0.5)
    bench.event("attempt_ended", attempt=ATTEMPT, state="failed", blame="point")
    assert bench.state() is AttemptState.SUCCEEDED
    assert bench.store.counted("late_events") == 1


def test_the_end_of_an_allocation_returns_or_loses_what_it_held(bench: Bench) -> None:
    bench.running()
    bench.ledger("leased", lease="1.8.1", task="1", point="8", parameters={}, payload_id="p")
    bench.order("order", attempt="1.8.1.1")
    end = {"tag": TAG, "witness": "runner", "reason": "left", "blame": "site", "returns": True}
    bench.ledger("allocation_ended", **end)
    assert bench.state("1.8.1.1") is AttemptState.LEASED
    assert bench.state() is AttemptState.LOST
    assert bench.store.attempts.get(ATTEMPT).blame is Blame.SITE
    assert bench.store.allocations.get(TAG).witness == "runner"


def test_a_late_result_of_a_lost_attempt_is_judged_anew(bench: Bench) -> None:
    bench.running()
    end = {"tag": TAG, "witness": "grace", "reason": "gone", "blame": "site", "returns": False}
    bench.ledger("allocation_ended", **end)
    bench.ledger("judged", attempt=ATTEMPT, final=False, summary={"state": "lost"})
    assert bench.store.attempts.unjudged() == ()
    bench.event("attempt_ended", attempt=ATTEMPT, state="succeeded", loss=0.5)
    assert [item.attempt for item in bench.store.attempts.unjudged()] == [ATTEMPT]


def test_a_receipt_of_a_loss_is_none_for_the_late_result_that_came_meanwhile(bench: Bench) -> None:
    bench.running()
    end = {"tag": TAG, "witness": "grace", "reason": "gone", "blame": "site", "returns": False}
    bench.ledger("allocation_ended", **end)
    bench.ledger("judged", attempt=ATTEMPT, final=True, summary={"state": "lost"})
    bench.ledger("delivering", attempts=[ATTEMPT])
    bench.event("attempt_ended", attempt=ATTEMPT, state="succeeded", loss=0.5, stdout="done")
    bench.ledger("delivered", receipts=[[ATTEMPT, "counted", ""]])
    bench.ledger("judged", attempt=ATTEMPT, final=True, summary={"state": "succeeded"})
    (told,) = bench.store.attempts.deliverable(10)
    assert (told.state, told.loss) == (AttemptState.SUCCEEDED, 0.5)
    assert bench.store.attempts.outcome(ATTEMPT)["stdout"] == "done"


def test_a_lost_attempt_is_told_only_after_its_lease_is_settled(bench: Bench) -> None:
    bench.running()
    end = {"tag": TAG, "witness": "grace", "reason": "gone", "blame": "site", "returns": False}
    bench.ledger("allocation_ended", **end)
    following = {"attempt": "1.7.1.2", "number": 2}
    bench.ledger("judged", attempt=ATTEMPT, final=False, summary={"state": "lost"}, next=following)
    assert bench.store.attempts.deliverable(10) == ()
    bench.event("attempt_ended", attempt="1.7.1.2", state="succeeded", loss=0.5)
    bench.ledger("judged", attempt="1.7.1.2", final=True, summary={"state": "succeeded"})
    told = {item.attempt for item in bench.store.attempts.deliverable(10)}
    assert told == {ATTEMPT, "1.7.1.2"}


def test_the_next_attempt_starts_from_the_checkpoint(bench: Bench) -> None:
    ref = {"path": "a/b.tar.gz", "size": 3, "sha256": "f" * 64}
    bench.running().event("checkpoint", attempt=ATTEMPT, file=ref)
    assert bench.store.attempts.saved(ATTEMPT) == FileRef("a/b.tar.gz", 3, "f" * 64)
    bench.event("attempt_ended", attempt=ATTEMPT, state="preempted", progress=True, duration_s=9.0)
    following = {
        "attempt": "1.7.1.2",
        "number": 2,
        "checkpoint": ref,
        "resumed_from": ATTEMPT,
    }
    bench.ledger(
        "judged", attempt=ATTEMPT, final=False, summary={"state": "preempted"}, next=following
    )
    found = bench.store.attempts.get(AttemptId("1.7.1.2"))
    assert (found.state, found.number, found.resumed_from) == (AttemptState.LEASED, 2, ATTEMPT)
    assert found.checkpoint == FileRef("a/b.tar.gz", 3, "f" * 64)
    assert bench.store.attempts.done_s(AttemptId("1.7.1.2")) == 9.0


def test_another_lease_of_a_point_starts_from_what_the_newest_attempt_left(bench: Bench) -> None:
    ref = {"path": "a/b.tar.gz", "size": 3, "sha256": "f" * 64}
    bench.running().event("checkpoint", attempt=ATTEMPT, file=ref)
    attempts, point = bench.store.attempts, (TaskId("1"), PointId("7"))
    saved = FileRef("a/b.tar.gz", 3, "f" * 64)
    assert attempts.saved_before(*point) == (ATTEMPT, saved)
    bench.ledger(
        "leased",
        lease="1.7.2",
        task="1",
        point="7",
        parameters={"x": 1},
        payload_id="p",
        attempts_before=1,
        checkpoint=ref,
        resumed_from=ATTEMPT,
    )
    found = attempts.get(AttemptId("1.7.2.1"))
    assert (found.checkpoint, found.resumed_from) == (saved, ATTEMPT)
    assert attempts.saved_before(*point) is None
    assert attempts.saved_before(TaskId("1"), PointId("8")) is None


@pytest.mark.parametrize(
    ("state", "blame", "progress", "cut_s"),
    [
        ("timed_out", "point", False, 24.0),  # its own time limit
        ("timed_out", "point", True, 24.0),
        ("timed_out", "walltime", False, 24.0),
        ("timed_out", "walltime", True, 0.0),
        ("failed", "point", False, 0.0),
    ],
)
def test_another_lease_of_a_point_knows_how_long_the_point_ran_before(
    bench: Bench, state: str, blame: str, progress: bool, cut_s: float
) -> None:
    bench.running()
    ended = {"attempt": ATTEMPT, "state": state, "blame": blame, "duration_s": 24.0}
    bench.event("attempt_ended", progress=progress, **ended)
    bench.ledger("judged", attempt=ATTEMPT, final=True, summary={})
    again = {"lease": "1.7.2", "task": "1", "point": "7", "parameters": {}, "payload_id": "p"}
    bench.ledger("leased", attempts_before=1, **again)
    bench.ledger("leased", **{**again, "lease": "1.8.1", "point": "8"})

    found = {live.attempt: live.cut_s for live in bench.store.attempts.live()}

    assert found == {"1.7.2.1": cut_s, "1.8.1.1": 0.0}


def test_a_handed_back_attempt_waits_again_but_not_for_the_same_allocation(bench: Bench) -> None:
    bench.running()
    bench.ledger("leased", lease="1.8.1", task="1", point="8", parameters={}, payload_id="p")
    bench.order("order", attempt="1.8.1.1")
    bench.event("handed_back", attempts=["1.8.1.1"], reason="too long")
    waiting = [live for live in bench.store.attempts.live() if live.attempt == "1.8.1.1"]
    assert [(live.state, live.tag, live.returned_by) for live in waiting] == [
        (AttemptState.LEASED, None, (TAG,))
    ]


def test_a_requeued_allocation_works_again_but_not_on_what_it_handed_back(bench: Bench) -> None:
    bench.running()
    bench.ledger("leased", lease="1.8.1", task="1", point="8", parameters={"x": 1}, payload_id="p")
    bench.order("order", attempt="1.8.1.1")
    bench.event("draining", reason="requeued")
    bench.event("handed_back", attempts=["1.8.1.1"], reason="the walltime ends")
    bench.event("allocation_ended", reason="x", slot_seconds=5.0, busy_slot_seconds=3.0)

    bench.event("open", **_OPENED)
    bench.event("allocation_started", nodes=["n1"], node={"gpus": 4, "cores": 8}, remaining_s=500.0)

    row = bench.store.allocations.get(TAG)
    assert (row.state, row.runner) == (AllocationState.RUNNING, "up")
    returned = {live.attempt: live.returned_by for live in bench.store.attempts.live()}
    assert returned[AttemptId("1.8.1.1")] == (TAG,)
    bench.event("allocation_ended", reason="x", slot_seconds=7.0, busy_slot_seconds=4.0)
    assert bench.store.allocations.get(TAG).slot_seconds == 12.0


def test_a_users_own_allocation_joins_and_counts_against_no_budget(bench: Bench) -> None:
    fields = {"tag": TAG, "job_id": "77", "nodes": 2, "walltime_s": 600.0, "gpus_per_node": 4}
    for _ in range(2):
        bench.ledger("joined", queue="", why="a user's own", **fields)
    row = bench.store.allocations.get(TAG)
    assert (row.state, row.job_id, row.joined) == (AllocationState.QUEUED, "77", True)
    assert bench.store.allocations.node_seconds_since(0.0) == 0.0
    bench.event("open", **_OPENED)
    assert bench.store.allocations.get(TAG).state is AllocationState.RUNNING


def test_a_stopped_lease_marks_its_attempts_until_the_order_is_given(bench: Bench) -> None:
    bench.running().ledger("lease_stop", lease="1.7.1", why="pruned")
    assert [item.attempt for item in bench.store.attempts.unwanted()] == [ATTEMPT]
    assert bench.store.attempts.unwanted_why(ATTEMPT) == "pruned"
    bench.order("stop", attempt=ATTEMPT)
    assert bench.store.attempts.unwanted() == ()


def test_the_ledger_alone_restores_an_outcome_whose_event_is_gone(bench: Bench) -> None:
    bench.running()
    summary = {"state": "succeeded", "loss": 0.25, "tag": TAG, "node": "n1", "ended_at": 50.0}
    bench.ledger("judged", attempt=ATTEMPT, final=True, summary=summary)
    found = bench.store.attempts.get(ATTEMPT)
    assert (found.state, found.loss, found.ended_at) == (AttemptState.SUCCEEDED, 0.25, 50.0)


def test_tallies_follow_every_step(bench: Bench) -> None:
    bench.running().event("attempt_ended", attempt=ATTEMPT, state="succeeded", loss=0.5)
    bench.ledger("judged", attempt=ATTEMPT, final=True, summary={"state": "succeeded"})
    for _ in range(2):  # a repeated delivery counts once
        bench.ledger("delivering", attempts=[ATTEMPT])
        bench.ledger("delivered", receipts=[[ATTEMPT, "counted", ""]])
    assert bench.store.attempts.counts() == {"succeeded": 1}
    assert bench.store.attempts.counts_by_task() == {
        "1": {"leased": 0, "ordered": 0, "running": 0, "ended": 1, "delivered": 1}
    }
    assert bench.store.leases.to_renew() == ()
    assert not bench.store.leases.get(LeaseId("1.7.1")).gone


def test_an_empty_answer_leaves_the_request_open(bench: Bench) -> None:
    bench.ledger("lease_asked", key="k1", points=4)
    assert [ask.key for ask in bench.store.leases.open_asks()] == ["k1"]
    bench.ledger("lease_answered", key="k1")
    assert bench.store.leases.open_asks() == ()


def test_a_failed_transaction_leaves_nothing_behind(bench: Bench) -> None:
    bench.running()
    with contextlib.suppress(RuntimeError), bench.store.transaction():
        bench.store.attempts.change(ATTEMPT, {"loss": 3.0})
        raise RuntimeError
    assert bench.store.attempts.get(ATTEMPT).loss is None


def test_an_index_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable, match="file/index"):
        Store.create(tmp_path / "file" / "index", "abcde")
