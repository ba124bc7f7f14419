"""What becomes of points and tasks, as tables of cases."""

from __future__ import annotations

import pytest

from harvester.errors import IllegalTransition
from harvester.model import AttemptState, Blame
from harvester.steering.progress import (
    Action,
    Counts,
    Ending,
    Outcome,
    PointState,
    Rules,
    Standing,
    TaskState,
    act,
    ending,
    judge,
    points_in_reach,
    points_to_ask,
    points_to_lease,
    settle,
)
from harvester.steering.pruning import hopeless_points

RULES = Rules(max_points=100, parallel=8, charge_limit=200)
WAITING = Standing(PointState.WAITING, 0)
LEASED = Standing(PointState.LEASED, 0)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (Counts(), 8),
        (Counts(waiting=8), 0),
        (Counts(leased=8), 0),
        (Counts(leased=7, done=1), 1),
        (Counts(waiting=1, leased=4), 3),
        (Counts(done=97), 3),
        (Counts(done=95, leased=5), 0),
        (Counts(done=60, failed=20, pruned=10, cancelled=10), 0),
    ],
)
def test_asking_asynchronously_fills_the_parallel_evaluations(
    counts: Counts, expected: int
) -> None:
    assert points_to_ask(RULES, counts) == expected


@pytest.mark.parametrize(
    ("per_iteration", "minimum", "unevaluated", "expected"),
    [
        (10, 0, 0, 10),
        (10, 0, 1, 0),
        (10, 4, 5, 0),
        (10, 4, 4, 0),
        (10, 4, 3, 6),
        (10, 4, 0, 6),
        (2, 1, 0, 1),
    ],
)
def test_an_iteration_starts_below_the_minimum_and_brings_the_difference(
    per_iteration: int, minimum: int, unevaluated: int, expected: int
) -> None:
    rules = Rules(
        max_points=100,
        parallel=1,
        charge_limit=200,
        per_iteration=per_iteration,
        min_unevaluated=minimum,
    )
    assert points_to_ask(rules, Counts(waiting=unevaluated, done=20)) == expected


def test_a_sampler_that_learns_nothing_is_asked_ahead() -> None:
    rules = Rules(max_points=10_000, parallel=8, charge_limit=200, learns=False)
    assert points_to_ask(rules, Counts(leased=7)) == 2001
    assert points_to_ask(rules, Counts(leased=8, waiting=300)) == 0
    assert points_to_ask(rules, Counts(leased=7, done=9_990)) == 3


def test_segments_share_the_parallel_evaluations() -> None:
    rules = Rules(max_points=100, parallel=8, charge_limit=200, segments=3)
    assert points_to_ask(rules, Counts()) == 3


@pytest.mark.parametrize(
    ("counts", "asked", "expected"),
    [
        (Counts(waiting=10), 4, 4),
        (Counts(waiting=10), 40, 8),
        (Counts(waiting=10, leased=6), 40, 2),
        (Counts(waiting=1), 40, 1),
        (Counts(waiting=10, leased=9), 40, 0),
    ],
)
def test_leases_keep_to_the_parallel_evaluations(counts: Counts, asked: int, expected: int) -> None:
    assert points_to_lease(RULES, counts, asked) == expected


def test_points_in_reach_include_those_that_are_still_to_be_asked() -> None:
    assert points_in_reach(RULES, Counts(done=99)) == 1
    assert points_in_reach(RULES, Counts(done=20, leased=3)) == 5


@pytest.mark.parametrize(
    ("state", "blame", "expected"),
    [
        (AttemptState.SUCCEEDED, None, Outcome.LOSS),
        (AttemptState.PRUNED, None, Outcome.PRUNED),
        (AttemptState.FAILED, Blame.POINT, Outcome.CHARGED),
        (AttemptState.TIMED_OUT, Blame.POINT, Outcome.CHARGED),
        (AttemptState.TIMED_OUT, Blame.WALLTIME, Outcome.CHARGED),
        (AttemptState.FAILED, Blame.NODE, Outcome.UNCHARGED),
        (AttemptState.FAILED, Blame.SITE, Outcome.UNCHARGED),
        (AttemptState.FAILED, Blame.WALLTIME, Outcome.UNCHARGED),
        (AttemptState.FAILED, None, Outcome.UNCHARGED),
        (AttemptState.PREEMPTED, Blame.SITE, Outcome.UNCHARGED),
        (AttemptState.LOST, Blame.SITE, Outcome.UNCHARGED),
        (AttemptState.CANCELLED, None, Outcome.UNCHARGED),
    ],
)
def test_only_own_failures_are_charged(
    state: AttemptState, blame: Blame | None, expected: Outcome
) -> None:
    assert judge(state, blame) is expected


@pytest.mark.parametrize(
    ("before", "outcome", "current", "open_ended", "after"),
    [
        (LEASED, Outcome.LOSS, True, True, Standing(PointState.DONE, 0, 0.5)),
        (WAITING, Outcome.LOSS, False, True, Standing(PointState.DONE, 0, 0.5)),
        (LEASED, Outcome.PRUNED, True, True, Standing(PointState.PRUNED, 0, 0.5)),
        (LEASED, Outcome.CHARGED, True, True, Standing(PointState.WAITING, 1)),
        (LEASED, Outcome.CHARGED, True, False, Standing(PointState.CANCELLED, 1)),
        (LEASED, Outcome.CHARGED, False, True, Standing(PointState.LEASED, 1)),
        (WAITING, Outcome.CHARGED, False, True, Standing(PointState.WAITING, 1)),
        (LEASED, Outcome.UNCHARGED, True, True, Standing(PointState.WAITING, 0)),
        (LEASED, Outcome.UNCHARGED, True, False, Standing(PointState.CANCELLED, 0)),
        (LEASED, Outcome.UNCHARGED, False, True, Standing(PointState.LEASED, 0)),
        (
            Standing(PointState.LEASED, 2),
            Outcome.CHARGED,
            True,
            True,
            Standing(PointState.FAILED, 3, 1e5),
        ),
        (
            Standing(PointState.LEASED, 2),
            Outcome.CHARGED,
            False,
            True,
            Standing(PointState.FAILED, 3, 1e5),
        ),
        (Standing(PointState.DONE, 0, 0.1), Outcome.LOSS, True, True, None),
        (Standing(PointState.FAILED, 3, 1e5), Outcome.LOSS, True, True, None),
        (Standing(PointState.CANCELLED, 0), Outcome.LOSS, True, True, None),
    ],
)
def test_a_result_moves_its_point(
    before: Standing, outcome: Outcome, current: bool, open_ended: bool, after: Standing | None
) -> None:
    assert settle(before, outcome, 0.5, current=current, open_ended=open_ended) == after


@pytest.mark.parametrize(
    ("state", "counts", "charged", "exhausted", "expected"),
    [
        (TaskState.RUNNING, Counts(done=99), 99, False, None),
        (TaskState.RUNNING, Counts(done=99, leased=1), 99, False, None),
        (TaskState.RUNNING, Counts(done=100), 100, False, TaskState.FINISHED),
        (TaskState.RUNNING, Counts(done=1, failed=99), 298, False, TaskState.FINISHED),
        (TaskState.RUNNING, Counts(failed=100), 300, False, TaskState.FAILED),
        (TaskState.RUNNING, Counts(pruned=100), 100, False, TaskState.FINISHED),
        (TaskState.RUNNING, Counts(done=5), 5, True, TaskState.FINISHED),
        (TaskState.RUNNING, Counts(done=5, leased=1), 5, True, None),
        (TaskState.RUNNING, Counts(done=50, waiting=3), 200, False, TaskState.FINISHING),
        (TaskState.PAUSED, Counts(done=50, waiting=3), 200, False, TaskState.FINISHING),
        (TaskState.FINISHING, Counts(done=50, leased=3), 200, False, None),
        (TaskState.FINISHING, Counts(done=50, cancelled=3), 200, False, TaskState.FINISHED),
        (TaskState.FINISHING, Counts(cancelled=3), 0, False, TaskState.FAILED),
        (TaskState.CANCELLED, Counts(cancelled=3), 0, False, None),
    ],
)
def test_a_task_ends_when_nothing_is_left_to_do(
    state: TaskState, counts: Counts, charged: int, exhausted: bool, expected: TaskState | None
) -> None:
    step = ending(state, RULES, counts, charged=charged, exhausted=exhausted)
    assert (step.state if isinstance(step, Ending) else step) is expected


def test_a_user_may_repeat_an_action() -> None:
    for action in Action:
        after = act(TaskState.RUNNING, action)
        if action is not Action.RETRY:
            assert act(after, action) is after


def test_an_action_that_comes_too_late_is_refused_by_name() -> None:
    with pytest.raises(IllegalTransition, match="finished does not take 'pause'"):
        act(TaskState.FINISHED, Action.PAUSE)


def test_the_median_rule_stops_what_is_worse_than_its_peers() -> None:
    peers = {number: [(step, number / 10) for step in range(10)] for number in range(1, 8)}
    curves = peers | {8: [(step, 5.0) for step in range(5)], 9: [(step, 0.0) for step in range(5)]}
    assert hopeless_points(curves, [8, 9]) == [8]


def test_the_median_rule_waits_for_a_few_reports_and_for_peers() -> None:
    peers = {number: [(step, 0.1) for step in range(10)] for number in range(1, 8)}
    young = {8: [(step, 5.0) for step in range(3)]}
    assert hopeless_points(peers | young, [8]) == []
    alone = {8: [(step, 5.0) for step in range(9)], 1: peers[1]}
    assert hopeless_points(alone, [8]) == []
