"""A small search for tests that look at one trait of the daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harvester.batch.port import JobState
from harvester.model import JobId
from harvester.simulation.workload import Lognormal
from harvester.simulation.world import World, parameters_of
from tests.simulation.reference import reference_scenario

DAY_S = 86_400.0
POINTS = 8
BAD_POINT = "1"


def small_world(tmp_path: Path, **changes: Any) -> World:
    """8 points, one of which always fails by itself; some are cut off by walltime."""
    values: dict[str, Any] = {
        "parameters": parameters_of(POINTS),
        "workload": Lognormal(median_s=900.0, sigma=0.5, seed=3, failing=frozenset({BAD_POINT})),
    }
    return World(reference_scenario(tmp_path / "index", **{**values, **changes}))


def status_of(world: World) -> dict[str, Any]:
    """The published status."""
    found: dict[str, Any] = json.loads(world.login.read(world.spool.status, 0, 1 << 24))
    return found


def spool_id_of(world: World) -> str:
    return str(json.loads(world.login.read(world.spool.identity, 0, 4096))["spool_id"])


def running_jobs(world: World) -> list[JobId]:
    return [job.job_id for job in world.cluster.jobs.values() if job.state is JobState.RUNNING]


def problems_of(world: World) -> list[str]:
    return [problem["what"] for problem in status_of(world)["problems"]]
