"""Whole searches through the production daemon, in a simulated world."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.batch.port import JobEnd, JobState
from harvester.daemon import Daemon
from harvester.model import JobId
from harvester.simulation.world import World
from tests.simulation.reference import POINTS, SPEC, check_books, reference_scenario

DAY_S = 86_400.0


def running_jobs(world: World) -> list[JobId]:
    return [job.job_id for job in world.cluster.jobs.values() if job.state is JobState.RUNNING]


def work_until_busy(world: World, daemon: Daemon) -> None:
    """Until three jobs have been running payloads for some minutes."""
    world.run(daemon, lambda: len(running_jobs(world)) >= 3, limit_s=DAY_S)
    busy_at = world.clock.monotonic() + 300
    world.run(daemon, lambda: world.clock.monotonic() >= busy_at, limit_s=DAY_S)


def test_the_reference_search_ends_with_every_point_told(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    check_books(world)
    assert len(world.cluster.jobs) >= 3
    states = Counter(result.state for result in world.central.books.results.values())
    assert states["succeeded"] == POINTS - 1
    assert states["timed_out"] > 0  # the walltime did cut some
    # The bad point's tries, and perhaps one on a node for which nothing spoke yet.
    assert states["failed"] in (3, 4)


def test_each_result_is_told_once_when_nothing_goes_wrong(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    assert set(world.central.books.told.values()) == {1}


@pytest.mark.fault("node lost")
def test_a_lost_node_costs_only_time(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    daemon = world.daemon()
    work_until_busy(world, daemon)
    world.cluster.lose_node(running_jobs(world)[0], 0)
    world.run(daemon, world.is_over, limit_s=DAY_S)
    check_books(world)


@pytest.mark.fault("node lost")
def test_jobs_killed_without_a_word_cost_only_time(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    daemon = world.daemon()
    work_until_busy(world, daemon)
    for job in list(world.cluster.jobs.values()):
        world.cluster.kill(job.job_id, JobEnd.NODE_FAILED)
    world.run(daemon, world.is_over, limit_s=DAY_S)
    check_books(world)


@pytest.mark.fault("log torn, zeroed or stale")
def test_late_visibility_between_hosts_changes_nothing(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index", visibility_s=30.0))
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    check_books(world)


@pytest.mark.fault("service away")
def test_an_outage_of_the_central_service_is_caught_up_with(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    daemon = world.daemon()
    work_until_busy(world, daemon)
    world.central.faults.down = True
    world.agenda.after(2 * 3600, lambda: setattr(world.central.faults, "down", False))
    world.run(daemon, world.is_over, limit_s=DAY_S)
    check_books(world)


@pytest.mark.fault("scheduler away")
def test_an_outage_of_the_scheduler_submits_nothing_twice(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    daemon = world.daemon()
    work_until_busy(world, daemon)
    world.cluster.faults.unavailable = True
    world.agenda.after(2 * 3600, lambda: setattr(world.cluster.faults, "unavailable", False))
    world.run(daemon, world.is_over, limit_s=DAY_S)
    check_books(world)


@pytest.mark.fault("scheduler answers wrongly")
def test_a_queue_that_looks_empty_ends_nothing(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    daemon = world.daemon()
    work_until_busy(world, daemon)
    before = len(world.cluster.jobs)
    world.cluster.faults.empty = True
    asked = world.cluster.queries
    world.run(daemon, lambda: world.cluster.queries > asked + 5, limit_s=DAY_S)
    assert len(world.cluster.jobs) == before
    world.cluster.faults.empty = False
    world.run(daemon, world.is_over, limit_s=DAY_S)
    check_books(world)


@pytest.mark.fault("walltime or preemption")
def test_a_preempted_job_starts_anew_and_loses_only_time(tmp_path: Path) -> None:
    world = World(reference_scenario(tmp_path / "index"))
    daemon = world.daemon()
    work_until_busy(world, daemon)
    for name in running_jobs(world):
        world.cluster.requeue(name)
    world.run(daemon, world.is_over, limit_s=DAY_S)
    check_books(world)


def test_payloads_that_save_nothing_are_given_the_time_that_they_need(tmp_path: Path) -> None:
    """Lengths vary widely and nobody declared one; each hopeless start would cost a whole run."""
    scenario = reference_scenario(tmp_path / "index", payload=replace(SPEC, checkpoint=None))
    world = World(scenario)
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    check_books(world)
    cut = sum(result.state == "timed_out" for result in world.central.books.results.values())
    assert cut <= POINTS // 10


def test_a_search_that_hands_out_few_points_at_a_time_keeps_its_allocations(
    tmp_path: Path,
) -> None:
    world = World(reference_scenario(tmp_path / "index", parallel=4))
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    check_books(world)
    # 40 points of 10 minutes, 4 at a time, are 100 minutes: 3 allocations of 40, and the tail.
    assert len(world.cluster.jobs) <= 6
