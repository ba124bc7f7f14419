"""An answer with points that never came must not keep the daemon from other points."""

from __future__ import annotations

from pathlib import Path

from tests.simulation.daemon_world import DAY_S, small_world


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
