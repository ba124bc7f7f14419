"""What follows from an attempt's end: whom it is charged to, and whether another goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harvester.daemon.judging import FINAL, GO_ON, RECORD, Judgement, judge
from harvester.model import Attempt, AttemptId, AttemptState, Blame, LeaseId, PointId, TaskId
from harvester.store.leases import LeaseRow

S = AttemptState
LEASE = LeaseRow(
    lease=LeaseId("1.2.3"),
    parameters={},
    payload_id="p",
    segment=None,
    priority=0,
    attempts_before=0,
    gone=False,
    stop=None,
    settled_by=None,
)


def attempt(number: int, state: S, blame: Blame | None = None, **more: Any) -> Attempt:
    return Attempt(
        attempt=AttemptId(f"1.2.3.{number}"),
        lease=LEASE.lease,
        task=TaskId("1"),
        point=PointId("2"),
        number=number,
        state=state,
        blame=blame,
        **more,
    )


def judged(*ends: tuple[S, Blame | None] | tuple[S, Blame | None, bool]) -> Judgement:
    """The judgement of the newest of these attempts."""
    attempts = [
        attempt(n, end[0], end[1], progress=len(end) > 2) for n, end in enumerate(ends, start=1)
    ]
    return judge(attempts[-1], LEASE, attempts)


@pytest.mark.parametrize(
    ("state", "blame", "expected"),
    [
        (S.SUCCEEDED, None, FINAL),
        (S.FAILED, Blame.POINT, FINAL),
        (S.TIMED_OUT, Blame.POINT, FINAL),
        (S.PRUNED, None, FINAL),
        (S.CANCELLED, None, FINAL),
        (S.FAILED, Blame.NODE, GO_ON),
        (S.FAILED, Blame.SITE, GO_ON),
        (S.TIMED_OUT, Blame.WALLTIME, GO_ON),
        (S.PREEMPTED, Blame.SITE, GO_ON),
        (S.LOST, Blame.SITE, GO_ON),
        (S.LOST, Blame.WALLTIME, GO_ON),
    ],
)
def test_only_what_is_the_points_own_settles_its_lease(
    state: S, blame: Blame | None, expected: Judgement
) -> None:
    assert judged((state, blame)) == expected


def test_three_runs_without_progress_are_a_time_out() -> None:
    cut = (S.TIMED_OUT, Blame.WALLTIME)
    assert judged(cut, cut) == GO_ON
    assert judged(cut, cut, cut) == FINAL


def test_progress_starts_the_count_anew() -> None:
    cut = (S.TIMED_OUT, Blame.WALLTIME)
    assert judged(cut, cut, (*cut, True), cut, cut) == GO_ON


def test_a_preemption_neither_counts_nor_breaks_the_count() -> None:
    cut, taken = (S.TIMED_OUT, Blame.WALLTIME), (S.PREEMPTED, Blame.SITE)
    assert judged(cut, taken, cut, taken) == GO_ON
    assert judged(cut, taken, cut, taken, cut) == FINAL


def test_more_than_five_faults_in_a_row_return_the_point() -> None:
    fault, lost = (S.FAILED, Blame.NODE), (S.LOST, Blame.SITE)
    assert judged(fault, lost, fault, lost, fault) == GO_ON
    assert judged(fault, lost, fault, lost, fault, lost) == FINAL


def test_a_late_success_settles_although_a_newer_attempt_runs() -> None:
    late, newer = attempt(1, S.SUCCEEDED), attempt(2, S.RUNNING)
    assert judge(late, LEASE, [late, newer]) == FINAL


def test_a_late_failure_leaves_the_word_to_the_newer_attempt() -> None:
    late, newer = attempt(1, S.FAILED, Blame.POINT), attempt(2, S.RUNNING)
    assert judge(late, LEASE, [late, newer]) == RECORD


def test_after_the_lease_is_settled_everything_else_is_for_the_books() -> None:
    late = attempt(1, S.SUCCEEDED)
    settled = replace(LEASE, settled_by=AttemptId("1.2.3.2"))
    assert judge(late, settled, [late, attempt(2, S.SUCCEEDED)]) == RECORD


@pytest.mark.parametrize("change", [{"gone": True}, {"stop": "pruned"}])
def test_nothing_goes_on_under_a_lease_that_nobody_wants(change: dict[str, Any]) -> None:
    ended = attempt(1, S.FAILED, Blame.NODE)
    assert judge(ended, replace(LEASE, **change), [ended]) == FINAL
