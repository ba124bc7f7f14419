"""After failures that are the site's fault: how many are tried, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harvester.model import Attempt, AttemptId, AttemptState, Blame, LeaseId, PointId, TaskId
from harvester.planning.facts import PlanInput
from harvester.planning.planner import plan
from harvester.planning.trials import OUTLASTS_S, PAUSE_MAX_S, SIDE_BY_SIDE_S, fault_series
from tests.planning_cases import allocation, attempt, attempts, facts

TASK, OTHER = TaskId("1"), TaskId("2")
EARLY, LATE = 1010.0, 1010.0 + PAUSE_MAX_S  # after the third failure


def fault(n: int, started_at: float | None, ended_at: float) -> Attempt:
    return Attempt(
        attempt=AttemptId(f"1.{n}.1.1"),
        lease=LeaseId(f"1.{n}.1"),
        task=TASK,
        point=PointId(str(n)),
        number=1,
        state=AttemptState.FAILED,
        blame=Blame.SITE,
        reason="no image",
        started_at=started_at,
        ended_at=ended_at,
    )


THREE = tuple(fault(n, 1000.0 + 2 * n, 1001.0 + 2 * n) for n in range(3))


def under_trial(**fields: Any) -> PlanInput:
    return facts(site_faults={TASK: THREE}, now=LATE, **fields)


def test_failures_side_by_side_are_one_accident() -> None:
    assert fault_series([fault(n, 1000.0, 1001.0 + n) for n in range(100)], 60.0) is None


def test_failures_before_the_start_are_told_apart_by_point_and_time() -> None:
    burst = [fault(n, None, 1000.0 + n / 100) for n in range(100)]
    assert fault_series(burst, 60.0) is None
    again = [fault(n, None, 1001.0 + n / 100) for n in (0, 1, 0)]
    assert fault_series([*burst, *again], 60.0) is not None
    apart = [fault(n, None, 1000.0 + SIDE_BY_SIDE_S * n) for n in range(3)]
    assert fault_series(apart, 60.0) is not None


def test_pauses_double_and_keep_below_an_hour() -> None:
    found = []
    for count in range(3, 40):
        faults = [fault(n, 10.0 * n, 10.0 * n + 1) for n in range(count)]
        series = fault_series(faults, 60.0)
        assert series is not None
        assert (series.count, series.since, series.last) == (count, 1.0, faults[-1])
        found.append(series.trial_at - (10.0 * (count - 1) + 1))
    for n, pause in enumerate(found):
        longest = min(3600.0, 60.0 * 2**n)
        assert longest / 2 <= pause <= longest


def test_nothing_is_ordered_or_submitted_before_the_pause_is_over() -> None:
    early = replace(under_trial(waiting=attempts(8), allocations=(allocation(),)), now=EARLY)
    answer = plan(early)
    assert (answer.orders, answer.submit, answer.close) == ((), (), ())
    assert set(answer.resting) == {item.attempt for item in attempts(8)}
    assert set(answer.on_trial) == {TASK}


def test_one_attempt_is_tried_in_a_job_of_its_size() -> None:
    waiting = attempts(400)
    assert sum(new.nodes for new in plan(facts(waiting=waiting)).submit) > 1
    answer = plan(under_trial(waiting=waiting, unleased=400, typical=attempt("typical")))
    assert [new.nodes for new in answer.submit] == [1]


def test_one_attempt_is_tried_at_a_time() -> None:
    there = allocation()
    first = plan(under_trial(waiting=attempts(4), allocations=(there,)))
    assert len(first.orders) == 1
    for busy in ({"ordered": (attempt("o"),)}, {"running": (attempt("r", waiting_s=1.0),)}):
        again = plan(under_trial(waiting=attempts(4), allocations=(replace(there, **busy),)))
        assert (again.orders, again.submit) == ((), ())


def test_a_run_from_before_the_failures_is_no_trial() -> None:
    old = allocation(running=(attempt("r", waiting_s=PAUSE_MAX_S + 1000.0),))
    assert len(plan(under_trial(waiting=attempts(4), allocations=(old,))).orders) == 1


def test_a_trial_that_outlasts_the_failures_lets_all_go_on() -> None:
    sound = allocation(running=(attempt("r", waiting_s=OUTLASTS_S + 2.0),))
    answer = plan(under_trial(waiting=attempts(3), allocations=(sound,)))
    assert (len(answer.orders), answer.on_trial) == (3, {})


def test_other_tasks_go_on() -> None:
    others = attempts(3, task=OTHER)
    answer = plan(under_trial(waiting=others, allocations=(allocation(),)))
    assert len(answer.orders) == 3


@pytest.mark.fault("clock set wrong")
def test_a_clock_that_was_set_back_does_not_keep_the_trial_waiting() -> None:
    back = replace(
        under_trial(waiting=attempts(4), allocations=(allocation(),)), now=EARLY - 2 * PAUSE_MAX_S
    )
    assert len(plan(back).orders) == 1
