"""Leases that are lost, one way or another, must not keep the daemon from other points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harvester.simulation.central import CentralFaults
from harvester.simulation.world import parameters_of
from tests.simulation.daemon_world import DAY_S, small_world, status_of

MANY = 8000


@pytest.mark.fault("daemon killed")
def test_a_daemon_that_comes_back_after_its_leases_ran_out_asks_anew(tmp_path: Path) -> None:
    world = small_world(tmp_path, lease_s=3600.0)
    first = world.daemon()
    world.central.faults.loses_answers = True
    world.run(first, lambda: world.central.books.calls["lease"] > 0, limit_s=DAY_S)
    world.central.faults.loses_answers = False
    world.agenda.advance(2 * 3600.0)

    world.run(world.daemon(seed=2), world.is_over, limit_s=DAY_S)

    assert world.central.unsettled == 0
    assert set(world.central.books.told.values()) == {1}


def test_thousands_of_leases_may_be_gone_at_once(tmp_path: Path) -> None:
    world = small_world(tmp_path, parameters=parameters_of(MANY), lease_s=3600.0)
    site = world.scenario.site
    eager = replace(site.planning, lookahead=float(MANY))
    world.scenario = replace(world.scenario, site=replace(site, planning=eager))
    daemon = world.daemon()
    points = world.central.points.values()
    world.run(daemon, lambda: all(point.state == "leased" for point in points), limit_s=DAY_S)
    for point in points:  # as when somebody kills the task
        point.state = "cancelled"

    def is_told() -> bool:
        renewed = world.central.books.calls["renew"] > 0
        return renewed and not status_of(world)["attempts"].get("leased")

    world.run(daemon, is_told, limit_s=DAY_S)

    daemon.close()


def test_leases_that_are_heard_of_late_are_renewed_as_seldom_as_others(tmp_path: Path) -> None:
    """The first answer is lost; the same request is answered again when little time is left."""
    world = small_world(tmp_path, lease_s=3600.0)
    daemon = world.daemon()
    world.central.faults.loses_answers = True
    world.run(daemon, lambda: world.central.books.calls["lease"] > 0, limit_s=DAY_S)
    world.central.faults.down = True
    world.agenda.advance(3200.0)  # it tries again within 300 s
    world.central.faults = CentralFaults()
    began = world.agenda.clock.monotonic()

    world.run(daemon, world.is_over, limit_s=DAY_S)

    took_s = world.agenda.clock.monotonic() - began
    assert took_s > 1200.0
    assert world.central.books.calls["renew"] <= 3 + took_s / 1200.0
