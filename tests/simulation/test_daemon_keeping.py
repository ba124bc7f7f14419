"""A daemon that runs for years: what is over and delivered leaves spool and books, nothing else."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.audit import audit
from harvester.daemon import Daemon
from harvester.recover import Sources, open_store, rebuild
from harvester.simulation.crashes import Crash, CrashPoint
from harvester.simulation.world import World, parameters_of
from harvester.spool.ledger import ledgers
from harvester.spool.snapshots import snapshots
from harvester.store import Store
from tests.simulation.daemon_world import DAY_S, problems_of, small_world, spool_id_of, status_of
from tests.simulation.reference import check_books, reference_scenario, reference_site

RETENTION_S = 3600.0


def keeping_world(
    tmp_path: Path, retention_s: float = RETENTION_S, roll_bytes: int = 5_000
) -> World:
    """Twelve points, a short retention, and ledgers of a few minutes' work."""
    site = reference_site(tmp_path / "index")
    site = replace(site, retention_s=retention_s, roll_bytes=roll_bytes)
    return World(reference_scenario(tmp_path / "index", site=site, parameters=parameters_of(12)))


def kept_directories(world: World) -> tuple[str, ...]:
    return world.login.listdir(world.spool.allocations)


def run_for(world: World, daemon: Daemon, seconds: float) -> None:
    end = world.clock.monotonic() + seconds
    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=seconds + DAY_S)


def run_until_all_is_gone(world: World, daemon: Daemon) -> None:
    world.run(daemon, world.is_over, limit_s=DAY_S)
    world.run(daemon, lambda: not kept_directories(world), limit_s=DAY_S)
    run_for(world, daemon, 30.0)  # the books follow


def store_of(world: World) -> Store:
    store = Store.open(world.scenario.site.index, spool_id_of(world))
    assert store is not None
    return store


def test_what_is_over_and_delivered_leaves_the_spool_after_the_retention(tmp_path: Path) -> None:
    world = keeping_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    assert kept_directories(world)
    run_until_all_is_gone(world, daemon)
    daemon.close()
    check_books(world)
    assert set(world.central.books.told.values()) == {1}


def test_what_was_settled_long_ago_leaves_the_index_too(tmp_path: Path) -> None:
    world = keeping_world(tmp_path)
    daemon = world.daemon()
    run_until_all_is_gone(world, daemon)
    daemon.close()
    store = store_of(world)
    dumped = store.dump()
    assert dumped["attempts"] == dumped["leases"] == []
    assert len(dumped["allocations"]) >= 2  # for the budget of node-hours
    assert store.attempts.counts_by_task()["1"]["delivered"] >= 12
    store.close()


def test_an_audit_finds_in_the_snapshot_what_the_ledgers_no_longer_hold(tmp_path: Path) -> None:
    world = keeping_world(tmp_path, retention_s=DAY_S, roll_bytes=2_000)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    run_for(world, daemon, 600.0)
    daemon.close()
    site = world.scenario.site
    report = audit(world.login, site.spool, site.state_dir, world.central.task, tmp_path)
    assert report is not None
    assert report.is_proven
    assert {entry.attempt for entry in report.entries} == set(world.central.books.results)
    assert any("snapshot" in entry.judged.log for entry in report.entries if entry.judged)


def test_an_audit_finds_judgements_in_the_snapshot_that_were_delivered_much_later(
    tmp_path: Path,
) -> None:
    world = keeping_world(tmp_path, retention_s=DAY_S, roll_bytes=200)
    daemon = world.daemon()
    world.run(daemon, lambda: world.central.unsettled < 12, limit_s=DAY_S)
    world.central.faults.down = True
    run_for(world, daemon, 2 * 3600.0)
    told = set(world.central.books.results)
    world.central.faults.down = False
    world.run(daemon, lambda: set(world.central.books.results) > told, limit_s=DAY_S)
    daemon.close()
    site = world.scenario.site
    report = audit(world.login, site.spool, site.state_dir, world.central.task, tmp_path)
    assert report is not None
    late = {entry.attempt: entry for entry in report.entries if entry.attempt not in told}
    assert any(entry.judged and "snapshot" in entry.judged.log for entry in late.values())
    assert [entry.doubt for entry in report.entries if entry.doubt] == []


def test_an_audit_says_what_left_the_spool(tmp_path: Path) -> None:
    world = keeping_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    world.run(daemon, lambda: not kept_directories(world), limit_s=DAY_S)
    site = world.scenario.site
    report = audit(world.login, site.spool, site.state_dir, world.central.task, tmp_path)
    assert report is not None
    assert report.is_proven
    retired = [entry for entry in report.entries if entry.retired]
    assert len(retired) >= 12
    daemon.close()


def test_nothing_goes_within_the_retention(tmp_path: Path) -> None:
    world = keeping_world(tmp_path, retention_s=30 * DAY_S)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    kept = kept_directories(world)
    run_for(world, daemon, 0.2 * DAY_S)
    assert kept_directories(world) == kept


def test_nothing_that_is_not_delivered_goes_however_old(tmp_path: Path) -> None:
    world = keeping_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, lambda: world.central.unsettled <= 6, limit_s=DAY_S)
    world.central.faults.down = True
    run_for(world, daemon, 12 * RETENTION_S)
    assert kept_directories(world)
    world.central.faults.down = False
    run_until_all_is_gone(world, daemon)
    check_books(world)


def test_ledgers_that_two_snapshots_hold_are_removed(tmp_path: Path) -> None:
    world = keeping_world(tmp_path, retention_s=DAY_S)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    run_for(world, daemon, 600.0)
    state_dir = world.scenario.site.state_dir
    taken = snapshots(world.login, state_dir)
    assert len(taken) == 2
    left = ledgers(world.login, state_dir)
    assert state_dir / "ledger.1.log" not in left
    total = sum(len(world.login.read(path, 0, 1 << 30)) for path in left)
    assert total < 8 * world.scenario.site.roll_bytes
    check_books(world)


@pytest.mark.parametrize("roll_bytes", [2_000, 10_000])
def test_an_index_rebuilt_from_a_snapshot_and_later_ledgers_equals_the_lost_one(
    tmp_path: Path, roll_bytes: int
) -> None:
    world = keeping_world(tmp_path, roll_bytes=roll_bytes)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    daemon.close()
    sources = Sources(world.login, world.spool, world.scenario.site.state_dir)
    assert snapshots(world.login, sources.state_dir)
    assert sources.state_dir / "ledger.1.log" not in ledgers(world.login, sources.state_dir)
    kept = open_store(sources, world.scenario.site.index, spool_id_of(world))
    before = kept.dump()
    kept.close()
    assert rebuild(sources, tmp_path / "another", spool_id_of(world)).dump() == before


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_snapshot_costs_nothing(tmp_path: Path, damage: str) -> None:
    world = keeping_world(tmp_path, roll_bytes=5_000)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    daemon.close()
    sources = Sources(world.login, world.spool, world.scenario.site.state_dir)
    kept = open_store(sources, world.scenario.site.index, spool_id_of(world))
    before = kept.dump()
    kept.close()
    newest = snapshots(world.login, sources.state_dir)[-1].path
    data = world.login.read(newest, 0, 1 << 30)
    if damage == "gone":
        world.login.remove(newest)
    else:
        middle = len(data) // 2
        changed = data[:middle] + (b"" if damage == "short" else b"\xff" + data[middle + 1 :])
        world.login.replace(newest, changed)
    assert rebuild(sources, tmp_path / "another", spool_id_of(world)).dump() == before


def test_the_status_tells_the_space_that_is_used(tmp_path: Path) -> None:
    world = keeping_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    kept = len(kept_directories(world))
    assert kept > 0
    world.run(daemon, lambda: status_of(world)["space"]["allocations"] == kept, limit_s=300.0)
    space = status_of(world)["space"]
    assert min(space["log_bytes"], space["ledger_bytes"], space["index_bytes"]) > 0
    run_until_all_is_gone(world, daemon)
    world.run(daemon, lambda: status_of(world)["space"]["allocations"] == 0, limit_s=300.0)


def test_the_space_is_measured_more_often_than_is_tidied(tmp_path: Path) -> None:
    world = keeping_world(tmp_path, retention_s=30 * DAY_S)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    kept = len(kept_directories(world))
    world.run(daemon, lambda: status_of(world)["space"]["allocations"] == kept, limit_s=180.0)
    assert status_of(world)["space"]["log_bytes"] > 0


def test_a_directory_that_cannot_be_removed_holds_up_no_other(tmp_path: Path) -> None:
    world = keeping_world(tmp_path)
    daemon = world.daemon()
    world.run(daemon, world.is_over, limit_s=DAY_S)
    stuck = kept_directories(world)[0]

    def fault(operation: str, path: Path) -> None:
        if operation == "remove" and path.name == stuck:
            raise PermissionError(13, "Permission denied", str(path))

    world.disk.fault = fault
    world.run(daemon, lambda: kept_directories(world) == (stuck,), limit_s=DAY_S)
    run_for(world, daemon, 60.0)
    assert any("cannot be removed" in what for what in problems_of(world))
    world.disk.fault = lambda operation, path: None
    run_until_all_is_gone(world, daemon)
    run_for(world, daemon, 60.0)
    assert problems_of(world) == []


def test_a_point_resumed_from_an_old_allocation_keeps_its_directory(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    site = replace(world.scenario.site, retention_s=600.0)
    # Between the runs that a checkpoint connects they wait for hours.
    scenario = replace(world.scenario, site=site, wait_s=lambda job: 7200.0)
    world = World(scenario)
    world.run(world.daemon(), world.is_over, limit_s=10 * DAY_S)
    assert {point.state for point in world.central.points.values()} == {"done", "failed"}
    assert any(result.resumed_from for result in world.central.books.results.values())


def effects_of_keeping(tmp_path: Path) -> list[int]:
    """Of each kind of effect that keeping has the first and the last, in an undisturbed run."""
    point = CrashPoint()
    world = keeping_world(tmp_path)
    run_until_all_is_gone(world, world.daemon(point))
    kinds: dict[str, list[int]] = {}
    for number, effect in enumerate(point.effects, start=1):
        kind = re.sub(r"[0-9a-f]{64}|h[a-z2-7]{5}-[a-z2-7]{6}|\d+", "", effect)
        if re.search(r"snapshot|remove|ledger\.1\.\d", effect):
            kinds.setdefault(kind, []).append(number)
    assert len(kinds) >= 6
    return sorted({number for numbers in kinds.values() for number in (numbers[0], numbers[-1])})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_while_keeping_changes_no_result_and_leaves_nothing(
    tmp_path: Path, after: bool
) -> None:
    (tmp_path / "undisturbed").mkdir()
    for number in effects_of_keeping(tmp_path / "undisturbed"):
        place = tmp_path / str(number)
        place.mkdir()
        world = keeping_world(place)
        with contextlib.suppress(Crash):
            run_until_all_is_gone(world, world.daemon(CrashPoint(number, after=after)))
        if after:
            world.lose_login_host()
        run_until_all_is_gone(world, world.daemon(seed=2))
        check_books(world)
