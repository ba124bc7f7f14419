"""What a daemon without work costs: it asks the service, and does nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harvester.daemon import Daemon
from harvester.effects import InlineEffects
from harvester.planning.facts import Plan, PlanInput
from harvester.planning.planner import plan
from harvester.simulation.world import World
from payload_runner.files import Files
from tests.simulation.reference import reference_scenario

HOUR_S = 3600.0


class Costs:
    """A file system and a planner that count what they are asked for."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.published = 0
        self.plans = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._files, name)

    def replace(self, path: Path, data: bytes) -> None:
        self.published += path.name == "status.json"
        self._files.replace(path, data)

    def plan(self, facts: PlanInput) -> Plan:
        self.plans += 1
        return plan(facts)


def test_idle_daemon_asks_often_but_plans_and_publishes_seldom(tmp_path: Path) -> None:
    scenario = reference_scenario(tmp_path / "index")
    local = replace(scenario, site=replace(scenario.site, filesystem="local"), parameters=())
    world = World(local)
    costs = Costs(world.login)
    daemon = Daemon(
        local.site,
        batch=world.cluster,
        central=world.central,
        files=costs,  # type: ignore[arg-type]  # passes everything on
        clock=world.clock,
        effects=InlineEffects(),
        plan=costs.plan,
        seed=1,
    )

    end = world.clock.monotonic() + HOUR_S
    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=2 * HOUR_S)

    assert world.central.books.calls["lease"] > 200
    assert costs.plans <= HOUR_S / 60 + 5
    assert costs.published <= HOUR_S / 30 + 5
