"""The reference search: 40 points on 3 one-node allocations at a time, cut off by walltime.

Point 7 always fails for its own fault. The site allows 40 minutes a job, and a payload takes about
10, so that many are cut off, saved and resumed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from harvester.simulation.workload import Lognormal, loss_of
from harvester.simulation.world import Scenario, World, parameters_of
from harvester.site import Budgets, PlanningChoice, Queue, RunnerChoice, Site, WalltimeBin
from payload_runner.protocol import PENALTY_LOSS, CheckpointRule, NodeShape, PayloadSpec

POINTS = 40
BAD_POINT = "7"
SPEC = PayloadSpec("p1", "python train.py", checkpoint=CheckpointRule(("model",), interval_s=120.0))


def reference_site(index: Path, **changes: Any) -> Site:
    """A small site whose spool and state directory lie in memory."""
    queue = Queue(
        name="batch", bins=(WalltimeBin(nodes_min=1, nodes_max=1, walltime_max_s=2400.0),)
    )
    site = Site(
        name="reference",
        batch_system="simulated",
        node=NodeShape(gpus=4, cores=16),
        queues=(queue,),
        spool=Path("/spool"),
        state_dir=Path("/state"),
        index=index,
        budgets=Budgets(jobs_in_flight=3, submissions_per_hour=30),
        planning=PlanningChoice(boot_margin_s=30.0, default_expected_s=600.0),
        runner=RunnerChoice(drain_margin_s=60.0),
    )
    return replace(site, **changes)


def reference_scenario(index: Path, **changes: Any) -> Scenario:
    scenario = Scenario(
        site=reference_site(index),
        payload=SPEC,
        parameters=parameters_of(POINTS),
        workload=Lognormal(median_s=600.0, sigma=0.5, seed=3, failing=frozenset({BAD_POINT})),
        nodes=4,
        wait_s=lambda job: 60.0,
    )
    return replace(scenario, **changes)


def expected_losses(points: int = POINTS) -> dict[str, float]:
    """What every run of the search has to end with, whatever happened on the way."""
    losses = {str(n): loss_of(values) for n, values in enumerate(parameters_of(points))}
    losses[BAD_POINT] = PENALTY_LOSS
    return losses


def check_books(world: World) -> None:
    """The promise: every point once in effect, nothing run, submitted or charged in vain."""
    central = world.central
    assert dict(central.losses) == expected_losses(len(world.scenario.parameters))
    assert {point.state for point in central.points.values()} == {"done", "failed"}
    tags = Counter(job.job.tag for job in world.cluster.jobs.values())
    assert set(tags.values()) == {1}, f"a tag was submitted twice: {tags}"
    results = central.books.results.values()
    succeeded = Counter(result.lease for result in results if result.state == "succeeded")
    assert set(succeeded.values()) == {1}, f"a point was evaluated twice: {succeeded}"
    charged = Counter(result.attempt.split(".")[1] for result in results if result.blame == "point")
    assert charged == {BAD_POINT: 3}, "a point was charged for a fault that was not its own"
