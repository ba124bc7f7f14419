"""What would be submitted, told from outside the daemon."""

from __future__ import annotations

from dataclasses import replace

from harvester.model import TaskId
from harvester.planning.preview import POINTS_MAX, Standing, Work, preview
from harvester.site import Budgets, Queue, Reservation
from payload_runner.protocol import Shape
from tests.planning_cases import allocation, queued, site

WORK = Work(task=TaskId("1"), points=8, shape=Shape(), expected_s=3000.0)


def test_work_without_a_place_is_submitted_for_with_its_reason() -> None:
    (chosen,) = preview(site(), [WORK], Standing(walltime_step_s=60.0)).submit
    assert (chosen.nodes, chosen.walltime_s % 60) == (2, 0)
    assert "8 attempts" in chosen.why


def test_work_that_fits_what_runs_needs_nothing_more() -> None:
    few = replace(WORK, points=4, expected_s=60.0)
    found = preview(site(), [few], Standing(live=(allocation(),)))
    assert found.submit == ()
    assert len(found.orders) == 4


def test_spent_budgets_and_a_stop_file_submit_nothing_and_say_why() -> None:
    strict = replace(site(), budgets=Budgets(submissions_per_hour=3))
    spent = preview(strict, [WORK], Standing(submissions=3))
    assert spent.submit == ()
    assert "hourly budget" in " ".join(spent.blocked.values())
    stopped = preview(site(), [WORK], Standing(stopping=True))
    assert "STOP" in " ".join(stopped.blocked.values())


def test_maintenance_shortens_or_puts_off_what_would_be_submitted() -> None:
    now = 1_800_000_000.0
    window = Reservation(start=now + 3000.0, end=now + 9000.0)
    closed = replace(site(), reservations=(window,))
    (soon,) = preview(closed, [replace(WORK, points=4, expected_s=600.0)], Standing(now=now)).submit
    assert soon.walltime_s <= 3000.0
    within = preview(closed, [WORK], Standing(now=now + 4000.0))
    assert within.submit == ()
    assert "no allocation of use" in " ".join(within.blocked.values())


def test_jobs_of_others_and_spent_node_hours_count() -> None:
    narrow = site(queue=Queue(name="batch", bins=(), total_max=3))
    busy = preview(narrow, [WORK], Standing(other_jobs={"batch": (1, 2)}))
    assert "takes no more jobs of this user" in " ".join(busy.blocked.values())
    shared = site(queue=Queue(name="batch", bins=(), total_max=3, limits_per="project"))
    assert preview(shared, [WORK], Standing(other_jobs={"batch": (1, 2)})).submit
    assert not preview(shared, [WORK], Standing(project_jobs={"batch": (1, 2)})).submit
    poor = preview(site(), [WORK], Standing(node_hours_left=0.01))
    assert "node-hours left" in " ".join(poor.blocked.values())


def test_a_huge_backlog_is_cut_to_what_one_planning_looks_at() -> None:
    assert len(replace(WORK, points=10**9).attempts()) == POINTS_MAX


def test_jobs_that_wait_already_are_not_planned_again() -> None:
    busy = replace(site(), budgets=Budgets(jobs_in_flight=1))
    assert preview(busy, [WORK], Standing(live=(queued(),))).submit == ()
