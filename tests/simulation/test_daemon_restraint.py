"""A daemon whose allocations do no work must not answer with more of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.daemon import Daemon
from harvester.effects import InlineEffects
from harvester.errors import BatchUnavailable
from harvester.ids import tag_prefix
from harvester.model import AllocationState, JobId, Tag
from harvester.planning.facts import Plan, PlanInput
from harvester.planning.planner import plan
from harvester.simulation.crashes import CrashingBatch, CrashPoint
from harvester.simulation.world import World
from harvester.site import Budgets
from harvester.spool.by_hand import record_query, record_submission
from tests.simulation.daemon_world import problems_of, small_world, spool_id_of, status_of

HOUR_S = 3600.0


def _never_order(facts: PlanInput) -> Plan:
    """As planned, but what is submitted gets nothing to do and leaves by itself."""
    return replace(plan(facts), orders=(), close=(), cancel=())


def _all_to_the_first(facts: PlanInput) -> Plan:
    """One allocation more than is needed, which finds all work given to the other."""
    found = plan(facts)
    accepting = [item.tag for item in facts.allocations if item.accepting]
    orders = [(item.attempt, accepting[0]) for item in facts.waiting if accepting]
    submit = () if facts.allocations else 2 * found.submit[:1]
    return replace(found, submit=submit, orders=tuple(orders), close=(), cancel=())


def test_allocation_that_finds_no_work_left_holds_up_no_other(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    daemon = Daemon(
        world.scenario.site,
        batch=world.cluster,
        central=world.central,
        files=world.login,
        clock=world.clock,
        effects=InlineEffects(),
        plan=_all_to_the_first,
        seed=1,
    )

    def one_has_left() -> bool:
        ended = [job.ended_at is not None for job in world.cluster.jobs.values()]
        return sorted(ended) == [False, True]

    world.run(daemon, one_has_left, limit_s=24 * HOUR_S)
    end = world.clock.monotonic() + 180.0
    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=HOUR_S)

    assert one_has_left(), "the other must still be at work"
    assert not problems_of(world)


@pytest.mark.fault("launcher broken")
def test_allocations_that_start_nothing_are_not_followed_by_a_flood(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    daemon = Daemon(
        world.scenario.site,
        batch=world.cluster,
        central=world.central,
        files=world.login,
        clock=world.clock,
        effects=InlineEffects(),
        plan=_never_order,
        seed=1,
    )
    end = world.clock.monotonic() + 4 * HOUR_S

    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=5 * HOUR_S)

    assert 6 <= len(world.cluster.jobs) <= 14
    assert any("without starting an evaluation" in what for what in problems_of(world))


def test_jobs_of_a_lost_state_directory_are_told_of_and_count(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    site = replace(world.scenario.site, budgets=Budgets(jobs_in_flight=2))
    world.scenario = replace(world.scenario, site=site)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(world.cluster.jobs), limit_s=HOUR_S)
    asked = next(iter(world.cluster.jobs.values())).job
    lost = [Tag(f"{tag_prefix(spool_id_of(world))}{end}") for end in ("zzzzzz", "yyyyyy")]
    for tag in lost:
        job = world.cluster.submit(replace(asked, tag=tag), Path("unused"))
        world.cluster.jobs[job].ready_at = math.inf  # it waits for good
    before = len(world.cluster.jobs)
    end = world.clock.monotonic() + 2 * HOUR_S

    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=3 * HOUR_S)

    assert len(world.cluster.jobs) == before
    (told,) = [what for what in problems_of(world) if "does not know" in what]
    assert all(tag in told for tag in lost)


def test_submissions_by_hand_use_up_the_hourly_budget(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    site = world.scenario.site
    site = replace(site, budgets=replace(site.budgets, submissions_per_hour=2))
    world.scenario = replace(world.scenario, site=site)
    for name in ("probe-aaaaaa", "probe-bbbbbb"):
        record_submission(world.login, site.state_dir, name, world.clock.now())
        world.clock.advance(1.0)
    end = world.clock.monotonic() + HOUR_S - 60.0

    world.run(world.daemon(), lambda: world.clock.monotonic() >= end, limit_s=2 * HOUR_S)

    assert not world.cluster.jobs


@pytest.mark.fault("clock set wrong")
def test_submission_by_hand_before_the_clock_was_set_back_stops_nobody(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    site = world.scenario.site
    site = replace(site, budgets=replace(site.budgets, submissions_per_hour=2))
    world.scenario = replace(world.scenario, site=site)
    record_submission(world.login, site.state_dir, "probe-aaaaaa", world.clock.now() + 86400.0)
    daemon = world.daemon()
    looked = world.clock.monotonic() + 600.0
    world.run(daemon, lambda: world.clock.monotonic() >= looked, limit_s=HOUR_S)

    assert status_of(world)["budgets"]["submissions_last_hour"] == len(world.cluster.jobs) > 0


def test_queries_by_hand_leave_the_daemon_none_of_that_minute(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    began = world.clock.now()
    for number in range(5):
        at = began + 0.001 * number
        record_query(world.login, world.scenario.site.state_dir, f"probe-aaaaaa-{number}", at)

    world.run(world.daemon(), lambda: bool(world.cluster.queries), limit_s=HOUR_S)

    assert 60.0 <= world.clock.now() - began < 120.0


@pytest.mark.fault("scheduler answers wrongly")
def test_breaker_stays_open_while_the_list_stays_empty(tmp_path: Path) -> None:
    world = small_world(tmp_path, wait_s=lambda job: 10 * HOUR_S)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(_live_allocations(world)), limit_s=HOUR_S)
    world.cluster.faults.forgotten.update(world.cluster.jobs)
    opened = world.clock.monotonic() + 120.0
    world.run(daemon, lambda: world.clock.monotonic() >= opened, limit_s=HOUR_S)
    breaker = status_of(world)["budgets"]["breaker"]
    assert breaker.startswith("open since")
    doubted = world.clock.monotonic() + 360.0

    world.run(daemon, lambda: world.clock.monotonic() >= doubted, limit_s=HOUR_S)

    assert _live_allocations(world)
    assert status_of(world)["budgets"]["breaker"] == breaker


@pytest.mark.fault("scheduler answers wrongly")
def test_job_that_is_listed_again_after_it_was_held_for_ended_takes_its_place(
    tmp_path: Path,
) -> None:
    world = small_world(tmp_path, wait_s=lambda job: 10 * HOUR_S)
    (queue,) = world.scenario.site.queues
    site = replace(world.scenario.site, queues=(replace(queue, queued_max=1),))
    world.scenario = replace(world.scenario, site=site)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(_live_allocations(world)), limit_s=HOUR_S)
    world.cluster.faults.forgotten.update(world.cluster.jobs)
    world.run(daemon, lambda: not _live_allocations(world), limit_s=2 * HOUR_S)
    world.cluster.faults.forgotten.clear()
    end = world.clock.monotonic() + 2 * HOUR_S

    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=3 * HOUR_S)

    assert len(world.cluster.jobs) == 1


class _Undying(CrashingBatch):
    """A batch system that cancels nothing, and says each time that something went wrong."""

    cancellations = 0

    def cancel(self, jobs: Sequence[JobId]) -> None:
        self.cancellations += 1
        raise BatchUnavailable("qdel failed: its node does not answer")


def test_job_that_cannot_be_cancelled_is_asked_for_ever_more_seldom_and_stops_nothing(
    tmp_path: Path,
) -> None:
    world = small_world(tmp_path, wait_s=lambda job: 100 * HOUR_S)
    batch = _Undying(world.cluster, CrashPoint())

    def cancel_the_first(facts: PlanInput) -> Plan:
        first = [found.tag for found in facts.allocations if found.state is AllocationState.QUEUED]
        wanted = () if batch.cancellations else tuple((tag, "unwanted") for tag in first[:1])
        return replace(plan(facts), cancel=wanted)

    daemon = Daemon(
        world.scenario.site,
        batch=batch,
        central=world.central,
        files=world.login,
        clock=world.clock,
        effects=InlineEffects(),
        plan=cancel_the_first,
        seed=1,
    )
    end = world.clock.monotonic() + 6 * HOUR_S

    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=8 * HOUR_S)

    assert 3 <= batch.cancellations <= 14
    assert len(world.cluster.jobs) >= 2, "another one was submitted for the work"


def _live_allocations(world: World) -> list[str]:
    allocations = status_of(world)["allocations"] if world.login.exists(world.spool.status) else []
    return [found["tag"] for found in allocations if found["state"] != "ended"]
