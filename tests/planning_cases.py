"""Facts for planning tests: 4-GPU nodes, attempts of ten minutes, one-node allocations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harvester.model import AllocationState, AttemptId, Tag, TaskId
from harvester.planning.facts import AllocationFacts, PlanInput, WaitingAttempt
from harvester.site import PlanningChoice, Queue, RunnerChoice, Site, WalltimeBin
from payload_runner.protocol import NodeShape, Shape

NODE = NodeShape(gpus=4, cores=32, memory_mb=256_000)
A, B = Tag("habcde-aaaaaa"), Tag("habcde-bbbbbb")


def site(*bins: tuple[int, int, float], queue: Queue | None = None, **planning: Any) -> Site:
    """A site of 4-GPU nodes; bins are (nodes from, nodes to, walltime in seconds)."""
    found = tuple(
        WalltimeBin(nodes_min=low, nodes_max=high, walltime_max_s=limit)
        for low, high, limit in bins or ((1, 8, 7200.0),)
    )
    choice = PlanningChoice(boot_margin_s=60.0)
    return Site(
        name="testbed",
        batch_system="slurm",
        node=NODE,
        queues=(replace(queue, bins=found) if queue else Queue(name="batch", bins=found),),
        spool=Path("/spool"),
        runner=RunnerChoice(drain_margin_s=60.0),
        planning=replace(choice, **planning),
    )


def attempt(name: str, **fields: Any) -> WaitingAttempt:
    """A waiting attempt of 600 s on one GPU unless told otherwise."""
    base = WaitingAttempt(
        attempt=AttemptId(name),
        task=TaskId("1"),
        shape=Shape(),
        expected_s=600.0,
        checkpointable=False,
    )
    return replace(base, **fields)


def attempts(count: int, **fields: Any) -> tuple[WaitingAttempt, ...]:
    return tuple(attempt(f"1.{n}.1.1", **fields) for n in range(count))


def allocation(tag: Tag = A, **fields: Any) -> AllocationFacts:
    """A running allocation of one node with an hour left."""
    base = AllocationFacts(
        tag=tag,
        state=AllocationState.RUNNING,
        queue="batch",
        nodes=1,
        walltime_s=7200.0,
        remaining_s=3600.0,
        accepting=True,
    )
    return replace(base, **fields)


def facts(**fields: Any) -> PlanInput:
    base = PlanInput(site=site(), waiting=(), allocations=(), submissions_left=10)
    return replace(base, **fields)


def queued(tag: Tag = B, **fields: Any) -> AllocationFacts:
    return allocation(
        tag, state=AllocationState.QUEUED, remaining_s=None, accepting=False, **fields
    )
