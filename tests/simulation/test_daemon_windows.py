"""The daemon asks for backfill windows before a submission, within its budget, and not for long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harvester.simulation.world import World
from harvester.site import Budgets, SubmissionRules
from tests.simulation.daemon_world import DAY_S, small_world, status_of
from tests.simulation.reference import reference_site

FAR = 4e9  # wall clock


def world_with_windows(
    tmp_path: Path, budgets: Budgets | None = None, *, held: bool = False
) -> World:
    site = reference_site(tmp_path / "index", submission=SubmissionRules(held=held))
    return small_world(
        tmp_path, site=replace(site, budgets=budgets or site.budgets), free_until=FAR
    )


def test_a_submission_goes_by_windows_that_were_asked_for_just_before(tmp_path: Path) -> None:
    world = world_with_windows(tmp_path)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(world.cluster.jobs), limit_s=DAY_S)
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert world.cluster.windows_asked > 0
    assert "windows" in status_of(world)


def test_the_budget_of_queries_counts_them(tmp_path: Path) -> None:
    world = world_with_windows(tmp_path, Budgets(queries_per_minute=1.0, query_interval_s=60.0))
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    hours = world.clock.now() / 3600
    assert world.cluster.queries <= 60 * hours + 1


def test_what_fails_or_cannot_be_had_is_done_without(tmp_path: Path) -> None:
    world = world_with_windows(tmp_path)
    world.cluster.faults.no_windows = True
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert world.central.unsettled == 0
    assert status_of(world)["budgets"]["breaker"] == "closed"


def test_a_failure_is_followed_by_a_sound_look_before_anything_is_submitted(tmp_path: Path) -> None:
    world = world_with_windows(tmp_path)
    world.cluster.faults.no_windows = True
    daemon = world.daemon()
    world.run(daemon, lambda: world.cluster.windows_asked == 1, limit_s=DAY_S)
    looks = _looks(world)
    world.run(daemon, lambda: bool(world.cluster.jobs), limit_s=DAY_S)
    assert _looks(world) > looks


def _looks(world: World) -> int:
    return world.cluster.queries - world.cluster.windows_asked


def test_nobody_asks_for_jobs_that_will_be_held(tmp_path: Path) -> None:
    world = world_with_windows(tmp_path, held=True)
    daemon = world.daemon()
    world.run(daemon, lambda: bool(world.cluster.jobs), limit_s=DAY_S)
    assert world.cluster.windows_asked == 0
