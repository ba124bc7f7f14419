"""Node-hours, maintenance and STOP are hard: the production daemon under the fake clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harvester.batch.port import JobState
from harvester.simulation.world import World
from harvester.site import Budgets, Reservation
from harvester.store import Store
from tests.simulation.daemon_world import (
    DAY_S,
    problems_of,
    running_jobs,
    small_world,
    spool_id_of,
    status_of,
)
from tests.simulation.reference import SPEC, reference_scenario, reference_site

HOUR_S = 3600.0
SHARE = 0.25  # of a node, for one payload


def world_with(tmp_path: Path, *, payload: Any = SPEC, **site: Any) -> World:
    """The reference search at a site with changes."""
    index = tmp_path / "index"
    return World(reference_scenario(index, site=reference_site(index, **site), payload=payload))


def run_for(world: World, seconds: float) -> None:
    daemon = world.daemon()
    until = world.clock.monotonic() + seconds
    world.run(daemon, lambda: world.clock.monotonic() > until, limit_s=2 * seconds)
    daemon.close()


def used_node_hours(world: World, since: float = 0.0, until: float = float("inf")) -> float:
    """Of the jobs that were submitted in a span of time, as the cluster would account them."""
    return sum(
        job.job.nodes * ((job.ended_at or world.clock.monotonic()) - job.started_at) / HOUR_S
        for job in world.cluster.jobs.values()
        if job.started_at is not None and since <= job.ready_at < until
    )


def test_task_stops_at_its_own_node_hours(tmp_path: Path) -> None:
    budget = 0.6
    payload = replace(SPEC, node_hours=budget, time_limit_s=HOUR_S)
    world = world_with(tmp_path, payload=payload)
    run_for(world, 5 * HOUR_S)
    store = Store.open(world.scenario.site.index, spool_id_of(world))
    assert store is not None
    ((task, _),) = store.leases.budgeted()
    spent = sum(store.attempts.spent_s(task).values())
    store.close()
    assert any("of its node-hours left" in problem for problem in problems_of(world))
    # What is left over does not pay for one more attempt up to its time limit.
    assert budget - 0.25 <= spent * SHARE / HOUR_S <= budget
    assert world.central.unsettled > 0
    assert not running_jobs(world)


def test_project_never_spends_more_than_its_total(tmp_path: Path) -> None:
    world = world_with(tmp_path, budgets=Budgets(jobs_in_flight=3, node_hours_total=1.0))
    run_for(world, 5 * HOUR_S)
    assert 0.7 <= used_node_hours(world) <= 1.0
    assert any("node-hours left" in problem for problem in problems_of(world))
    assert world.central.unsettled > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 25 s of processor time; half an hour where many share it
def test_no_day_costs_more_than_its_budget_and_the_search_goes_on_next_day(
    tmp_path: Path,
) -> None:
    world = world_with(tmp_path, budgets=Budgets(jobs_in_flight=3, node_hours_per_day=1.0))
    world.run(world.daemon(), world.is_over, limit_s=6 * DAY_S)
    assert used_node_hours(world) > 1.0
    for job in world.cluster.jobs.values():
        assert used_node_hours(world, job.ready_at, job.ready_at + DAY_S - 120) <= 1.0


def test_no_job_runs_into_a_maintenance_window(tmp_path: Path) -> None:
    world = world_with(tmp_path)
    start = world.clock.now() + 0.6 * HOUR_S
    window = Reservation(start=start, end=start + 2 * HOUR_S)
    site = replace(world.scenario.site, reservations=(window,))
    world.scenario = replace(world.scenario, site=site)
    ahead = window.start - world.clock.now() + world.clock.monotonic()
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    spans = [
        (job.started_at, job.ended_at)
        for job in world.cluster.jobs.values()
        if job.started_at is not None and job.ended_at is not None
    ]
    assert [span for span in spans if span[0] < ahead + 2 * HOUR_S and span[1] > ahead] == []
    assert any(end < ahead for _, end in spans), "some fitted before it"
    assert any(begin > ahead for begin, _ in spans), "the others came after it"


def test_bare_payload_never_runs_where_only_containers_may(tmp_path: Path) -> None:
    world = world_with(tmp_path, containers_only=True)
    run_for(world, HOUR_S)
    assert not world.cluster.jobs
    (problem,) = problems_of(world)
    assert "cannot run here now: site reference runs containers only" in problem


def test_stop_in_mid_run_drains_what_runs_and_submits_nothing_until_it_is_gone(
    tmp_path: Path,
) -> None:
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(running_jobs(world)), limit_s=DAY_S)
    world.login.create_exclusive(world.spool.stop, b"")
    before = len(world.cluster.jobs)

    def is_drained() -> bool:
        states = {job.state for job in world.cluster.jobs.values()}
        return states == {JobState.ENDED}

    world.run(daemon, is_drained, limit_s=DAY_S)
    until = world.clock.monotonic() + HOUR_S
    world.run(daemon, lambda: world.clock.monotonic() > until, limit_s=DAY_S)
    assert len(world.cluster.jobs) == before
    assert status_of(world)["state"] == "draining"
    world.login.remove(world.spool.stop)
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert world.central.unsettled == 0


def test_daemon_that_may_not_submit_sleeps_between_looks(tmp_path: Path) -> None:
    world = world_with(tmp_path, budgets=Budgets(jobs_in_flight=3, node_hours_total=0.5))
    run_for(world, 4 * HOUR_S)
    daemon = world.daemon(seed=2)
    ticks = 0
    until = world.clock.monotonic() + HOUR_S
    while world.clock.monotonic() < until:
        world.agenda.advance(max(daemon.tick().next_in_s, 0.001))
        ticks += 1
    daemon.close()
    assert ticks < 2000
