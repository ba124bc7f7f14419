"""A daemon whose allocations do no work must not answer with more of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harvester.daemon import Daemon
from harvester.effects import InlineEffects
from harvester.planning.facts import Plan, PlanInput
from harvester.planning.planner import plan
from harvester.spool.by_hand import record_submission
from tests.simulation.daemon_world import problems_of, small_world

HOUR_S = 3600.0


def _never_order(facts: PlanInput) -> Plan:
    """As planned, but what is submitted gets nothing to do and leaves by itself."""
    return replace(plan(facts), orders=(), close=(), cancel=())


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
