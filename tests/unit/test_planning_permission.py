"""What may run at all: policy, a task's node-hours; and other users' jobs in routed queues."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harvester.model import TaskId
from harvester.planning.estimates import MARGIN
from harvester.planning.facts import PlanInput, WaitingAttempt
from harvester.planning.forecast import forecast
from harvester.planning.limits import Limits, offers
from harvester.planning.overhead import Overhead
from harvester.planning.planner import plan
from harvester.site import Queue
from payload_runner.protocol import Shape
from tests.planning_cases import A, allocation, attempt, attempts, facts, site

TASK, OTHER = TaskId("1"), TaskId("2")
# What a payload declared as 600 s is charged: what it almost surely needs, of a quarter node.
EACH = 0.25 * 600 * MARGIN / 3600


def with_budget(hours: float, **fields: Any) -> PlanInput:
    base = facts(task_node_hours_left={TASK: hours}, allocations=(allocation(nodes=8),))
    return replace(base, **fields)


def ordered(answer: Any) -> list[str]:
    return [name for name, _ in answer.orders]


def test_task_without_a_budget_runs_freely() -> None:
    answer = plan(facts(waiting=attempts(4), allocations=(allocation(),)))
    assert len(answer.orders) == 4


def test_no_more_is_started_than_the_tasks_node_hours_pay_for() -> None:
    answer = plan(with_budget(2.5 * EACH, waiting=attempts(4)))
    assert ordered(answer) == ["1.0.1.1", "1.1.1.1"]
    assert list(answer.blocked) == ["1.2.1.1", "1.3.1.1"]
    assert (
        f"task 1 has {EACH / 2:.3g} of its node-hours left, and this may need {EACH:.3g}"
        in (answer.blocked[attempt("1.2.1.1").attempt])
    )


def test_what_runs_and_what_is_ordered_is_charged_first() -> None:
    busy = allocation(nodes=8, running=(attempt("r", waiting_s=100.0),), ordered=(attempt("o"),))
    answer = plan(with_budget(3.5 * EACH, waiting=attempts(4), allocations=(busy,)))
    assert len(answer.orders) == 1


def test_run_that_takes_longer_than_expected_is_charged_what_it_took() -> None:
    busy = allocation(nodes=8, running=(attempt("r", waiting_s=7500.0),))
    answer = plan(with_budget(8.5 * EACH, waiting=attempts(4), allocations=(busy,)))
    assert len(answer.orders) == 0


def test_time_limit_makes_the_budget_exact() -> None:
    waiting = attempts(4, limit_s=3600.0)
    assert len(plan(with_budget(0.6, waiting=waiting)).orders) == 2


def test_other_tasks_are_served_beside_one_that_is_used_up() -> None:
    waiting = (*attempts(2), attempt("2.0.1.1", task=OTHER))
    answer = plan(with_budget(0.0, waiting=waiting))
    assert ordered(answer) == ["2.0.1.1"]
    assert len(answer.blocked) == 2


def test_used_up_task_gets_no_allocation() -> None:
    answer = plan(
        with_budget(0.0, waiting=attempts(8), allocations=(), unleased=40, typical=attempt("t"))
    )
    assert answer.submit == ()
    assert len(answer.blocked) == 8


def test_points_that_may_not_run_do_not_make_us_lease_more() -> None:
    free = plan(with_budget(100.0, waiting=attempts(20)))
    used_up = plan(with_budget(0.0, waiting=attempts(20)))
    assert used_up.lease == free.lease


def test_forbidden_attempt_is_blocked_with_the_reason() -> None:
    waiting = (attempt("bare", forbidden="containers only"), attempt("good"))
    answer = plan(facts(waiting=waiting, allocations=(allocation(),)))
    assert (ordered(answer), answer.blocked) == (["good"], {"bare": "containers only"})


def test_shape_that_fits_no_node_keeps_its_own_reason() -> None:
    waiting: tuple[WaitingAttempt, ...] = (attempt("big", shape=Shape(gpus_per_node=9)),)
    answer = plan(with_budget(1.0, waiting=waiting))
    assert "a node has 4" in answer.blocked[waiting[0].attempt]


# --- the user's other jobs ---


Jobs = dict[str, tuple[int, int]]


def room(queue: Queue, other_jobs: Jobs, project_jobs: Jobs | None = None) -> int:
    given = facts(site=site(queue=queue), other_jobs=other_jobs, project_jobs=project_jobs or {})
    return Limits.of(given).per_queue[queue.name]


@pytest.mark.parametrize(
    ("queue", "left"),
    [
        (Queue(name="prod", bins=(), total_max=10), 8),
        (Queue(name="prod", bins=(), total_max=10, routes_to=("small", "large")), 3),
        (Queue(name="prod", bins=(), total_max=10, kind="qos"), 2),
    ],
)
def test_jobs_behind_a_routing_queue_or_in_any_partition_of_a_qos_count(
    queue: Queue, left: int
) -> None:
    assert room(queue, {"prod": (1, 1), "small": (2, 1), "large": (1, 1), "else": (0, 1)}) == left


def test_a_job_of_unknown_queue_counts_against_every_queue() -> None:
    assert room(Queue(name="prod", bins=(), total_max=10), {"": (2, 0), "prod": (1, 0)}) == 7


@pytest.mark.parametrize(("limits_per", "left"), [("user", 9), ("project", 4)])
def test_where_the_centre_counts_by_project_all_its_members_jobs_count(
    limits_per: str, left: int
) -> None:
    queue = Queue(name="prod", bins=(), total_max=10, limits_per=limits_per)
    assert room(queue, {"prod": (0, 1)}, {"prod": (2, 4)}) == left


def test_a_full_queue_says_whose_jobs_fill_it() -> None:
    queue = replace(site().queues[0], total_max=3, limits_per="project")
    given = facts(site=site(queue=queue), project_jobs={queue.name: (2, 1)}, submissions_left=9)
    (offer, *_) = offers(given.site, Overhead(60.0))
    sentence = f"queue {queue.name} takes no more jobs of this project now"
    assert Limits.of(given).refusal(offer) == sentence


# --- queues for tests ---


@pytest.mark.parametrize(
    ("wanted", "used"),
    [((), {"prod"}), (("debug",), {"debug"}), (("prod", "debug"), {"prod", "debug"})],
)
def test_queue_for_tests_is_used_only_where_the_site_file_names_it(
    wanted: tuple[str, ...], used: set[str]
) -> None:
    base = site(queues=wanted)
    bins = base.queues[0].bins
    queues = (Queue(name="debug", bins=bins, planned=False), Queue(name="prod", bins=bins))
    given = replace(base, queues=queues)
    assert {offer.queue.name for offer in offers(given, Overhead(60.0))} == used


# --- forecasts ---


def test_forecast_is_points_times_share_times_duration() -> None:
    found = forecast(site(), shape=Shape(), points=100, expected_s=1800.0, budget=None)
    assert found is not None
    assert (found.node_hours, found.is_guess, found.warnings) == (12.5, False, ())
    assert "about 12.5 node-hours, 100 evaluations of 30 min on 0.25 node(s)" in found.sentence


def test_forecast_without_a_duration_says_that_it_guesses() -> None:
    found = forecast(site(), shape=Shape(), points=4, expected_s=None, budget=None)
    assert found is not None
    assert "a guess: payload.expected_minutes is not given" in found.sentence


def test_forecast_warns_of_every_budget_that_it_passes() -> None:
    tight = site()
    tight = replace(
        tight, budgets=replace(tight.budgets, node_hours_per_day=3.0, node_hours_total=10.0)
    )
    found = forecast(tight, shape=Shape(), points=100, expected_s=1800.0, budget=5.0)
    assert found is not None
    assert found.warnings == (
        "payload.node_hours (5) pays for about 40 evaluations only",
        "site testbed may spend 10 node-hours in all: it cannot finish",
        "site testbed may spend 3 node-hours a day: at least 5 days",
    )


def test_there_is_no_forecast_for_what_fits_no_node() -> None:
    shape = Shape(gpus_per_node=9)
    assert forecast(site(), shape=shape, points=1, expected_s=60.0, budget=None) is None


def test_stop_submits_and_orders_nothing_and_says_so() -> None:
    given = facts(waiting=attempts(8), allocations=(allocation(A),), stopping=True)
    answer = plan(given)
    assert (answer.submit, answer.orders, answer.lease) == ((), (), 0)
    assert "STOP" in answer.blocked[attempt("1.0.1.1").attempt]
