"""The index is a cache: lost, torn or foreign, it comes back from the logs as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harvester.recover import Sources, open_store, rebuild
from harvester.simulation.world import World
from harvester.site import Budgets
from harvester.store import Store
from tests.simulation.daemon_world import DAY_S, small_world, spool_id_of


def sources(world: World) -> Sources:
    return Sources(world.login, world.spool, world.scenario.site.state_dir)


@pytest.mark.fault("index lost or damaged")
def test_a_rebuilt_index_equals_the_one_that_was_lost(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    daemon.close()
    # What the last runners said after the daemon had left is read first.
    kept = open_store(sources(world), world.scenario.site.index, spool_id_of(world))
    before = kept.dump()
    kept.close()
    assert len(before["attempts"]) >= 8
    rebuilt = rebuild(sources(world), tmp_path / "another", spool_id_of(world))
    assert rebuilt.dump() == before


@pytest.mark.fault("index lost or damaged")
def test_an_index_lost_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    first = world.daemon()
    world.run(first, lambda: world.central.unsettled <= 4, limit_s=DAY_S)
    first.close()
    world.scenario.site.index.unlink()
    world.run(world.daemon(seed=2), world.is_over, limit_s=DAY_S)
    assert set(world.central.books.told.values()) == {1}
    assert all(point.state in ("done", "failed") for point in world.central.points.values())


@pytest.mark.fault("index lost or damaged")
def test_an_index_lost_gives_no_submission_of_the_hour_back(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    budgets = Budgets(submissions_per_hour=1, jobs_in_flight=2)
    world.scenario = replace(world.scenario, site=replace(world.scenario.site, budgets=budgets))
    first = world.daemon()
    world.run(first, lambda: bool(world.cluster.jobs), limit_s=DAY_S)
    first.close()
    world.lose_login_host()
    end = world.clock.monotonic() + 3500.0

    world.run(world.daemon(seed=2), lambda: world.clock.monotonic() > end, limit_s=DAY_S)

    assert len(world.cluster.jobs) == 1


@pytest.mark.fault("index lost or damaged")
def test_an_index_that_is_no_database_is_rebuilt(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    first = world.daemon()
    world.run(first, lambda: world.central.unsettled <= 4, limit_s=DAY_S)
    first.close()
    world.scenario.site.index.write_bytes(b"rubbish" * 1000)
    world.run(world.daemon(seed=2), world.is_over, limit_s=DAY_S)
    assert set(world.central.books.told.values()) == {1}


@pytest.mark.fault("index lost or damaged")
def test_an_index_damaged_under_the_daemon_is_rebuilt_while_it_runs(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, lambda: world.central.unsettled <= 4, limit_s=DAY_S)
    index = world.scenario.site.index
    with index.open("r+b") as file:
        file.write(b"\xff" * index.stat().st_size)
    index.with_name(index.name + "-wal").write_bytes(b"")
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert set(world.central.books.told.values()) == {1}


@pytest.mark.fault("index lost or damaged")
def test_an_index_of_another_spool_is_not_believed(tmp_path: Path) -> None:
    Store.create(tmp_path / "index", "another").close()
    assert Store.open(tmp_path / "index", "ours") is None
    world = small_world(tmp_path)
    world.run(world.daemon(), world.is_over, limit_s=DAY_S)
    assert world.central.unsettled == 0
