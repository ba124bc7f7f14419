"""A disk that refuses for a while, at whatever moment, must cost time and nothing else."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harvester.simulation.world import World
from tests.simulation.daemon_world import DAY_S, small_world

Hits = Callable[[str, Path], bool]
REFUSED_S = 900.0
# What the daemon writes; its runners' disks are their own.
OURS = ("ledger.", "orders.", "lease.json", "status.json", "allocation.json")


def refuse_for_a_while(world: World, hits: Hits) -> list[str]:
    """From the first change that ``hits``, every change of the login node fails for 15 minutes."""
    refused: list[str] = []
    since: list[float] = []

    def fault(operation: str, path: Path) -> None:
        if not since and hits(operation, path):
            since.append(world.clock.monotonic())
        ours = path.name.startswith(OURS)
        if ours and since and world.clock.monotonic() - since[0] < REFUSED_S:
            refused.append(f"{operation} {path}")
            raise OSError(errno.ENOSPC, "No space left on device")

    world.disk.fault = fault
    return refused


def nth_change_of(part: str, n: int) -> Hits:
    """Holds at the n-th change of a path with ``part`` in it, and later."""
    seen = 0

    def hits(operation: str, path: Path) -> bool:
        nonlocal seen
        seen += part in path.name
        return seen >= n

    return hits


# Among them the moments before a submission, an order and a delivery.
@pytest.mark.fault("disk full at the login node")
@pytest.mark.parametrize(
    ("part", "n"),
    [("ledger.", 5), ("ledger.", 25), ("ledger.", 45), ("ledger.", 57), ("orders.", 5)],
)
def test_a_full_disk_costs_time_and_nothing_else(tmp_path: Path, part: str, n: int) -> None:
    world = small_world(tmp_path)
    refused = refuse_for_a_while(world, nth_change_of(part, n))
    daemon = world.daemon()

    world.run(daemon, world.is_over, limit_s=2 * DAY_S)

    assert world.central.unsettled == 0
    assert refused
    assert set(world.central.books.told.values()) == {1}
    daemon.close()


@pytest.mark.fault("disk full at the login node")
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_one_failed_write_of_an_order_log_does_not_stop_the_rounds_from_cron(
    tmp_path: Path, n: int
) -> None:
    world = small_world(tmp_path)
    hits = nth_change_of("orders.", n)
    failed: list[str] = []

    def fault(operation: str, path: Path) -> None:
        if not failed and hits(operation, path):
            failed.append(f"{operation} {path}")
            raise OSError(errno.EIO, "Input/output error")

    world.disk.fault = fault
    for _ in range(100):
        world.daemon().run_once(60.0)
        world.agenda.advance(300)
        if world.is_over():
            break

    assert failed
    assert world.central.unsettled == 0


@pytest.mark.fault("disk full at the login node")
def test_what_was_planned_before_limits_became_stricter_is_not_submitted(tmp_path: Path) -> None:
    world = small_world(tmp_path)
    refused: list[Path] = []

    def fault(operation: str, path: Path) -> None:
        if path.name == "batch.sh":
            refused.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")

    world.disk.fault = fault
    daemon = world.daemon()
    world.run(daemon, lambda: bool(refused), limit_s=DAY_S)
    daemon.close()
    world.disk.fault = lambda operation, path: None
    site = world.scenario.site
    stricter = replace(site, planning=replace(site.planning, walltime_max_s=1200.0))
    world.scenario = replace(world.scenario, site=stricter)

    world.run(world.daemon(), lambda: bool(world.cluster.jobs), limit_s=DAY_S)

    assert all(item.job.walltime_s <= 1200.0 for item in world.cluster.jobs.values())
    assert refused[0].parent.name not in {item.job.tag for item in world.cluster.jobs.values()}
