"""A site that fails every attempt is tried less and less often, and recovers by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harvester.simulation.workload import SimulatedPayload, loss_of
from harvester.simulation.world import World
from payload_runner.protocol import Order
from tests.simulation.daemon_world import POINTS, problems_of, small_world, status_of

HOUR_S = 3600.0
REASON = "the image has not been brought to this site"


class SiteWorkload:
    """Every payload fails at once by the site's fault until the site is mended."""

    def __init__(self) -> None:
        self.is_broken = True
        self.started = 0

    def __call__(self, order: Order) -> SimulatedPayload:
        self.started += 1
        if self.is_broken:
            return SimulatedPayload(work_s=0.1, loss=None, blame="site", reason=REASON)
        return SimulatedPayload(work_s=600.0, loss=loss_of(order.parameters))


@pytest.fixture
def workload() -> SiteWorkload:
    return SiteWorkload()


@pytest.fixture
def world(tmp_path: Path, workload: SiteWorkload) -> World:
    return small_world(tmp_path, workload=workload)


def run_for(world: World, hours: float) -> None:
    daemon = world.daemon()
    end = world.clock.monotonic() + hours * HOUR_S
    world.run(daemon, lambda: world.clock.monotonic() >= end, limit_s=2 * hours * HOUR_S)
    daemon.close()


@pytest.mark.fault("launcher broken")
def test_attempts_that_the_site_fails_are_not_followed_by_a_flood(
    world: World, workload: SiteWorkload
) -> None:
    began = datetime.fromtimestamp(world.clock.now(), UTC)
    run_for(world, 2.0)

    assert 2 * POINTS <= workload.started <= 5 * POINTS
    assert len(world.cluster.jobs) <= 12
    (told,) = [found for found in status_of(world)["problems"] if REASON in found["what"]]
    assert "one at a time is tried, not before" in told["what"]
    assert "mend what the reason names" in told["cure"]
    assert told["count"] == 1
    since = datetime.fromisoformat(told["since"])
    assert began < since < began + timedelta(hours=1)

    before = workload.started
    for _ in range(5):
        run_for(world, 0.02)

    assert workload.started <= before + 2
    (again,) = [found for found in status_of(world)["problems"] if REASON in found["what"]]
    assert again["since"] == told["since"]


@pytest.mark.fault("launcher broken")
def test_all_goes_on_by_itself_once_a_trial_is_sound(world: World, workload: SiteWorkload) -> None:
    run_for(world, 1.0)
    assert any(REASON in what for what in problems_of(world))
    workload.is_broken = False

    world.run(world.daemon(), world.is_over, limit_s=6 * HOUR_S)

    assert not any(REASON in what for what in problems_of(world))
