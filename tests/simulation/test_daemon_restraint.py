"""A daemon whose allocations do no work must not answer with more of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harvester.daemon import Daemon
from harvester.effects import InlineEffects
from harvester.planning.facts import Plan, PlanInput
from harvester.planning.planner import plan
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
